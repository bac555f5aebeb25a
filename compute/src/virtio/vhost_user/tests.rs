//! Front ends against a real card that dies, returns and changes its mind.

use super::super::device::VirtioDevice;
use super::super::driver::{Driver, PATIENCE, arena, until};
use super::super::features::{
    BLK_DISCARD, BLK_FLUSH, BLK_MQ, NET_CTRL_VQ, NET_MAC, NET_MQ, NET_STATUS, RING_EVENT_IDX,
    RING_INDIRECT_DESC, VERSION_1,
};
use super::super::fuzz::Around;
use super::super::registers::NEEDS_RESET;
use super::super::transport::VirtioPci;
use super::contact::{BackEnd, VhostUser};
use super::peer::{Peer, Script};
use super::task::Patience;
use super::{GuestShare, blk, net};
use crate::device::Device;
use crate::pci::PciPath;
use bixi_api::compute::{DiskConfig, NicConfig};
use bixi_api::file::FileSource;
use bixi_api::state::{Declared, Movable};
use bixi_offload::frontend::{Buffer, DriverQueue, FrontConfig, GuestArena, Shell, Target};
use bixi_offload::vhost_user::Offer;
use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const RING: u64 = VERSION_1 | RING_EVENT_IDX | RING_INDIRECT_DESC;
const DISK: u64 = RING | BLK_FLUSH | BLK_DISCARD;

/// What a test has around its device.
struct Rig {
    folder: tempfile::TempDir,
    arena: GuestArena,
    share: GuestShare,
    script: Arc<Script>,
}

impl Rig {
    fn new() -> Self {
        let arena = arena();
        let share = GuestShare::of(&arena);
        let folder = tempfile::tempdir().unwrap();
        Self { folder, arena, share, script: Arc::default() }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("card.sock")
    }

    fn disk(capacity: u64) -> Offer {
        let mut config = vec![0; blk::CONFIG_LEN];
        config[..8].copy_from_slice(&capacity.to_le_bytes());
        Offer {
            features: DISK,
            config,
            config_writable: 0..0,
            queues: 2,
            max_queue_size: 1024,
            inflight: true,
            mtu: false,
        }
    }

    fn nic() -> Offer {
        Offer { features: RING, config: Vec::new(), queues: 4, inflight: false, ..Self::disk(0) }
    }

    fn peer(&self, offer: Offer) -> Peer {
        Peer::start(&self.socket(), offer, &self.script)
    }

    fn disk_config(&self) -> DiskConfig {
        DiskConfig {
            id: "d0".to_owned(),
            socket: FileSource::Path(self.socket()),
            address: None,
            queues: None,
            queue_size: 256,
        }
    }

    async fn blk(&self) -> (Arc<VhostUser>, Driver) {
        let config = self.disk_config();
        let connected = blk::connect(&config, 2, &self.share);
        let device = tokio::time::timeout(PATIENCE, connected).await.unwrap().unwrap();
        let driver = driver(Arc::clone(&device));
        (device, driver)
    }

    async fn net(&self, pairs: u16) -> (Arc<VhostUser>, Driver) {
        let config = NicConfig {
            id: "n0".to_owned(),
            socket: FileSource::Path(self.socket()),
            mac: "02:00:00:00:00:07".to_owned(),
            address: None,
            queue_pairs: Some(pairs),
            queue_size: 256,
            mtu: None,
        };
        let connected = net::connect(&config, &self.share);
        let device = tokio::time::timeout(PATIENCE, connected).await.unwrap().unwrap();
        let driver = driver(Arc::clone(&device));
        (device, driver)
    }

    fn queue(&mut self, index: u16, features: u64) -> Requests {
        let queue = DriverQueue::new(&mut self.arena, index, 64, features).unwrap();
        let buffers = self.arena.allocate(64 * 64, 64).unwrap();
        let free = (0..64).rev().collect();
        Requests { queue, buffers, free, waiting: BTreeMap::new(), next: 1 }
    }
}

fn driver(device: Arc<VhostUser>) -> Driver {
    let host = Arc::new(Around::default());
    let (dyn_host, path) = (Arc::clone(&host) as _, PciPath::behind(2, 1).unwrap());
    let function = VirtioPci::new("d0", path, device, dyn_host).unwrap();
    Driver { function, host }
}

/// A queue of numbered requests, each of which must be answered once with its number plus one.
struct Requests {
    queue: DriverQueue,
    buffers: u64,
    free: Vec<u64>,
    waiting: BTreeMap<u16, (u64, u64)>,
    next: u64,
}

impl Requests {
    fn send(&mut self, count: usize) {
        for _ in 0..count.min(self.free.len()).min(self.queue.free() / 2) {
            let slot = self.free.pop().unwrap();
            let at = self.buffers + slot * 64;
            let memory = Arc::clone(self.queue.memory());
            assert!(memory.get(at, 8).unwrap().write(0, &self.next.to_le_bytes()));
            assert!(memory.get(at + 32, 8).unwrap().write(0, &[0xff; 8]));
            let buffers = [Buffer::readable(at, 8), Buffer::writable(at + 32, 8)];
            let head = self.queue.add(&buffers).unwrap();
            assert!(self.waiting.insert(head, (slot, self.next)).is_none());
            self.next += 1;
        }
    }

    /// Takes what has been answered; returns how many.
    fn answers(&mut self) -> usize {
        let mut answers = 0;
        while let Some(used) = self.queue.take().unwrap() {
            let (slot, number) = self.waiting.remove(&used.head).expect("answered twice");
            let at = self.buffers + slot * 64 + 32;
            let answer = self.queue.memory().get(at, 8).unwrap().read_array(0).unwrap();
            assert_eq!((u64::from_le_bytes(answer), used.len), (number + 1, 8));
            self.free.push(slot);
            answers += 1;
        }
        answers
    }

    async fn all(&mut self, driver: &Driver) {
        let vector = usize::from(self.queue.ring().index) + 1;
        let deadline = Instant::now() + PATIENCE;
        while !self.waiting.is_empty() {
            assert!(Instant::now() < deadline, "{} requests are lost", self.waiting.len());
            // As a driver: look, ask for an interrupt, wait for it.
            if self.answers() == 0 && !self.queue.calls_on() {
                until("an interrupt", || driver.raised(vector)).await;
            }
        }
    }

    async fn round(&mut self, driver: &Driver, count: usize) {
        self.send(count);
        driver.submit(&mut self.queue);
        self.all(driver).await;
    }
}

#[tokio::test]
async fn a_guest_sees_its_first_back_end_and_is_served_by_it() {
    let mut rig = Rig::new();
    let _peer = rig.peer(Rig::disk(2048));
    let (device, driver) = rig.blk().await;
    assert_eq!(device.queue_sizes(), [256, 256]);
    assert_eq!(driver.offered(), DISK | BLK_MQ);
    assert_eq!((driver.read(0x1000, 8), driver.read(0x1022, 2)), (2048, 2));
    let mut queues = [rig.queue(0, DISK), rig.queue(1, DISK)];
    driver.drive(DISK | BLK_MQ, &[&queues[0].queue, &queues[1].queue]).await;
    for queue in &mut queues {
        for _ in 0..50 {
            queue.round(&driver, 7).await;
        }
    }
    let description = driver.function.describe().unwrap();
    assert_eq!((description.connected, description.reconnects), (true, 0));
    assert_eq!((description.kind.as_str(), description.driver_ok), ("virtio-blk", true));
}

#[tokio::test]
async fn firmware_with_one_queue_and_then_a_kernel_with_two() {
    let mut rig = Rig::new();
    let _peer = rig.peer(Rig::disk(2048));
    let (_, driver) = rig.blk().await;
    for round in 0..5 {
        let mut one = rig.queue(0, VERSION_1);
        // Firmware does not wait for its reset.
        driver.set_status(0);
        driver.negotiate(VERSION_1);
        driver.set_up(&one.queue.ring());
        driver.ready();
        one.round(&driver, 3 + round).await;
        let mut queues = [rig.queue(0, DISK), rig.queue(1, DISK)];
        driver.drive(DISK | BLK_MQ, &[&queues[0].queue, &queues[1].queue]).await;
        for queue in &mut queues {
            queue.round(&driver, 9).await;
        }
    }
}

#[tokio::test]
async fn a_card_dies_a_hundred_times_and_nothing_is_lost() {
    let mut rig = Rig::new();
    let mut peer = Some(rig.peer(Rig::disk(2048)));
    let (device, driver) = rig.blk().await;
    let mut queues = [rig.queue(0, DISK), rig.queue(1, DISK)];
    driver.drive(DISK | BLK_MQ, &[&queues[0].queue, &queues[1].queue]).await;
    for death in 0..100 {
        // Every other time it dies with requests taken and not answered.
        let keep = death % 2 == 1;
        queues.iter_mut().for_each(|queue| queue.send(1 + death % 13));
        rig.script.keep(keep);
        let before = [rig.script.taken(0), rig.script.taken(1)];
        queues.iter_mut().for_each(|queue| driver.submit(&mut queue.queue));
        if keep {
            let taken = |index: usize| rig.script.taken(index) > before[index];
            until("requests in flight", || taken(0) && taken(1)).await;
        }
        drop(peer.take());
        rig.script.keep(false);
        // More comes while nobody is there.
        queues.iter_mut().for_each(|queue| queue.send(death % 5));
        queues.iter_mut().for_each(|queue| driver.submit(&mut queue.queue));
        peer = Some(rig.peer(Rig::disk(2048)));
        for queue in &mut queues {
            queue.all(&driver).await;
        }
    }
    assert!(rig.script.recovered.load(Ordering::SeqCst) >= 100, "the record was used");
    assert_eq!(device.back_end(), (true, 100));
    assert_eq!(driver.status() & NEEDS_RESET, 0);
}

#[tokio::test]
async fn a_guest_resets_while_its_back_end_is_away() {
    let mut rig = Rig::new();
    let peer = rig.peer(Rig::disk(2048));
    let (device, driver) = rig.blk().await;
    let mut lost = rig.queue(0, DISK);
    driver.drive(DISK, &[&lost.queue]).await;
    rig.script.keep(true);
    lost.send(5);
    driver.submit(&mut lost.queue);
    until("requests in flight", || rig.script.taken(0) > 0).await;
    drop(peer);
    until("the loss", || !device.back_end().0).await;
    rig.script.keep(false);
    // Resets are done at once, and each life is its own.
    for _ in 0..20 {
        let queue = rig.queue(0, DISK);
        driver.drive(DISK, &[&queue.queue]).await;
    }
    let mut queue = rig.queue(1, DISK);
    driver.drive(DISK, &[&queue.queue]).await;
    queue.send(5);
    driver.submit(&mut queue.queue);
    let _peer = rig.peer(Rig::disk(2048));
    queue.all(&driver).await;
    assert_eq!(
        rig.script.recovered.load(Ordering::SeqCst),
        0,
        "the reset forgot what was in flight"
    );
}

#[tokio::test]
async fn a_lesser_back_end_is_refused_until_a_good_one_comes() {
    let mut rig = Rig::new();
    let peer = rig.peer(Rig::disk(2048));
    let (device, driver) = rig.blk().await;
    let mut queue = rig.queue(0, DISK);
    driver.drive(DISK | BLK_MQ, &[&queue.queue]).await;
    queue.round(&driver, 5).await;
    drop(peer);
    let lesser = [
        Offer { features: DISK & !BLK_DISCARD, ..Rig::disk(2048) },
        Offer { queues: 1, ..Rig::disk(2048) },
    ];
    for offer in lesser {
        let before = rig.script.taken(0);
        let peer = rig.peer(offer);
        queue.send(2);
        driver.submit(&mut queue.queue);
        let (_, reconnects) = device.back_end();
        until("several tries", || device.back_end().1 > reconnects + 2 || !device.back_end().0)
            .await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(rig.script.taken(0), before, "it was not given the rings");
        drop(peer);
    }
    let _peer = rig.peer(Rig::disk(2048));
    queue.all(&driver).await;
}

#[tokio::test]
async fn a_capacity_that_changes_is_told() {
    let mut rig = Rig::new();
    let peer = rig.peer(Rig::disk(2048));
    let (_, driver) = rig.blk().await;
    let mut queue = rig.queue(0, DISK);
    driver.drive(DISK, &[&queue.queue]).await;
    driver.write(0x10, 2, 0);
    queue.round(&driver, 1).await;
    let generation = driver.read(0x15, 1);
    peer.offer(Rig::disk(4096));
    until("the interrupt", || driver.raised(0)).await;
    assert_eq!((driver.read(0x1000, 8), driver.read(0x800, 1)), (4096, 2));
    assert_ne!(driver.read(0x15, 1), generation);
    // And while the card was away.
    drop(peer);
    let _peer = rig.peer(Rig::disk(8192));
    until("the interrupt", || driver.raised(0)).await;
    assert_eq!((driver.read(0x1000, 8), driver.read(0x1022, 2)), (8192, 2));
    queue.round(&driver, 1).await;
}

#[tokio::test]
async fn a_guest_that_breaks_its_ring_can_reset_and_go_on() {
    let mut rig = Rig::new();
    let _peer = rig.peer(Rig::disk(2048));
    let (_, driver) = rig.blk().await;
    for _ in 0..3 {
        let mut queue = rig.queue(0, DISK);
        driver.drive(DISK, &[&queue.queue]).await;
        queue.round(&driver, 3).await;
        queue.queue.write_avail_idx(40_000);
        driver.write(0x2000, 2, 0);
    }
    let mut queue = rig.queue(0, DISK);
    driver.drive(DISK, &[&queue.queue]).await;
    queue.round(&driver, 3).await;
}

#[tokio::test]
async fn a_device_rests_and_goes_on_here_or_elsewhere() {
    let mut rig = Rig::new();
    let mut peer = Some(rig.peer(Rig::disk(2048)));
    let (_, mut driver) = rig.blk().await;
    let mut queues = [rig.queue(0, DISK), rig.queue(1, DISK)];
    driver.drive(DISK | BLK_MQ, &[&queues[0].queue, &queues[1].queue]).await;
    for round in 0..6 {
        for queue in &mut queues {
            queue.round(&driver, 5).await;
        }
        if round == 3 {
            // A pause while the back end is away.
            drop(peer.take());
            until("the loss", || !driver.function.describe().unwrap().connected).await;
        }
        assert!(matches!(driver.function.declare(), Declared::NotMovable(_)));
        driver.function.quiesce().await.unwrap();
        // What the guest sent just before waits in the ring.
        queues.iter_mut().for_each(|queue| queue.send(3));
        queues.iter_mut().for_each(|queue| driver.submit(&mut queue.queue));
        if round == 3 {
            let Declared::NotMovable(why) = driver.function.declare() else { panic!("unclear") };
            assert!(why.contains("wait until it is back"), "{why}");
            peer = Some(rig.peer(Rig::disk(2048)));
        } else if round % 2 == 0 {
            let Declared::State(state) = driver.function.declare() else { panic!("at rest") };
            drop(driver);
            driver = rig.blk().await.1;
            driver.function.restore(&state).unwrap();
        }
        assert_eq!(queues[0].answers(), 0, "nobody serves a resting device");
        driver.function.resume();
        for queue in &mut queues {
            queue.all(&driver).await;
        }
    }
}

#[tokio::test]
async fn a_hung_back_end_hangs_neither_a_pause_nor_a_reset() {
    let mut rig = Rig::new();
    let mut peer = Some(rig.peer(Rig::disk(2048)));
    let config = rig.disk_config();
    let mut back_end = BackEnd::new("d0", &config.socket).unwrap();
    let short = Duration::from_millis(100);
    back_end.patience = Patience { rest: short, reset: 2 * short };
    let device = blk::connect_to(back_end, &config, 1, &rig.share).await.unwrap();
    let driver = driver(device);
    for pause in [true, false] {
        let mut queue = rig.queue(0, DISK);
        driver.drive(DISK, &[&queue.queue]).await;
        queue.round(&driver, 3).await;
        rig.script.frozen.store(true, Ordering::SeqCst);
        rig.script.hangs.store(false, Ordering::SeqCst);
        queue.send(3);
        driver.submit(&mut queue.queue);
        until("a hung back end", || rig.script.hangs.load(Ordering::SeqCst)).await;
        let begin = Instant::now();
        if pause {
            let error = driver.function.quiesce().await.unwrap_err().to_string();
            assert!(error.contains("look after that process"), "{error}");
        } else {
            driver.reset().await;
            assert!(begin.elapsed() >= short, "the guest is not told too early");
        }
        assert!(begin.elapsed() < PATIENCE);
        rig.script.frozen.store(false, Ordering::SeqCst);
        drop(peer.take());
        peer = Some(rig.peer(Rig::disk(2048)));
        driver.function.resume();
        if pause {
            queue.all(&driver).await;
        }
    }
}

#[tokio::test]
async fn a_reset_of_the_machine_waits_for_a_hung_back_end_until_it_is_gone() {
    let mut rig = Rig::new();
    let mut peer = Some(rig.peer(Rig::disk(2048)));
    let config = rig.disk_config();
    let mut back_end = BackEnd::new("d0", &config.socket).unwrap();
    let short = Duration::from_millis(20);
    back_end.patience = Patience { rest: short, reset: short };
    let device = blk::connect_to(back_end, &config, 1, &rig.share).await.unwrap();
    let driver = driver(device);
    let mut queue = rig.queue(0, DISK);
    driver.drive(DISK, &[&queue.queue]).await;
    queue.round(&driver, 3).await;
    rig.script.frozen.store(true, Ordering::SeqCst);
    queue.send(3);
    driver.submit(&mut queue.queue);
    until("a hung back end", || rig.script.hangs.load(Ordering::SeqCst)).await;
    let mut resting = driver.function.quiesce_fully();
    assert!(tokio::time::timeout(10 * short, &mut resting).await.is_err(), "it is waited for");
    assert!(driver.function.describe().unwrap().connected, "and not cut off");
    rig.script.frozen.store(false, Ordering::SeqCst);
    drop(peer.take());
    tokio::time::timeout(PATIENCE, resting).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_back_end_that_says_nothing_hangs_no_pause() {
    let mut rig = Rig::new();
    let peer = rig.peer(Rig::disk(2048));
    let config = rig.disk_config();
    let mut back_end = BackEnd::new("d0", &config.socket).unwrap();
    back_end.patience.rest = Duration::from_millis(100);
    let device = blk::connect_to(back_end, &config, 1, &rig.share).await.unwrap();
    let driver = driver(device);
    let mut queue = rig.queue(0, DISK);
    driver.drive(DISK, &[&queue.queue]).await;
    queue.round(&driver, 3).await;
    drop(peer);
    std::fs::remove_file(rig.socket()).unwrap();
    let listener = UnixListener::bind(rig.socket()).unwrap();
    let accepted = std::thread::spawn(move || listener.accept().unwrap().0);
    until("a silent back end", || accepted.is_finished()).await;
    let begin = Instant::now();
    // Whether it is worth an error that it had to be cut off is the session's to say.
    let _ = driver.function.quiesce().await;
    assert!(begin.elapsed() < PATIENCE);
    drop(accepted.join().unwrap());
    std::fs::remove_file(rig.socket()).unwrap();
    let _peer = rig.peer(Rig::disk(2048));
    driver.function.resume();
    queue.round(&driver, 3).await;
}

#[tokio::test]
async fn pairs_are_switched_on_when_the_driver_asks() {
    let mut rig = Rig::new();
    let mut peer = Some(rig.peer(Rig::nic()));
    let (device, driver) = rig.net(2).await;
    assert_eq!(driver.offered(), RING | NET_MAC | NET_STATUS | NET_CTRL_VQ | NET_MQ);
    assert_eq!(driver.read(0x1000, 8), 0x0001_0700_0000_0002, "address and link");
    let features = RING | NET_MAC | NET_CTRL_VQ | NET_MQ;
    let mut queues: Vec<_> = (0..4).map(|index| rig.queue(index, features)).collect();
    let mut control = DriverQueue::new(&mut rig.arena, 4, 64, features).unwrap();
    let command = rig.arena.allocate(8, 8).unwrap();
    let memory = Arc::clone(rig.arena.memory());
    let mut all: Vec<_> = queues.iter().map(|requests| &requests.queue).collect();
    all.push(&control);
    driver.drive(features, &all).await;
    let byte = |at: u64| memory.get(at, 1).unwrap().read_array::<1>(0).unwrap()[0];
    for death in 0..5 {
        for (bytes, answer) in [
            ([4, 0, 2, 0], 0),
            ([4, 0, 3, 0], 1),
            ([4, 0, 0, 0], 1),
            ([4, 1, 1, 0], 1),
            ([1, 0, 1, 0], 1),
            ([4, 0, 1, 0], 0),
        ] {
            assert!(memory.get(command, 8).unwrap().write(0, &bytes));
            let buffers = [
                Buffer::readable(command, 2),
                Buffer::readable(command + 2, 2),
                Buffer::writable(command + 7, 1),
            ];
            assert_eq!(driver.ask(&mut control, &buffers).await, 1);
            assert_eq!(byte(command + 7), answer, "{bytes:?}");
            if bytes == [4, 0, 2, 0] {
                for queue in &mut queues {
                    queue.round(&driver, 5).await;
                }
            }
        }
        // With one pair in use, the second stands still, also for the next card.
        let before = rig.script.taken(2);
        drop(peer.take());
        peer = Some(rig.peer(Rig::nic()));
        until("the return", || device.back_end() == (true, death + 1)).await;
        queues[2].send(1);
        driver.submit(&mut queues[2].queue);
        queues[0].round(&driver, 5).await;
        queues[1].round(&driver, 5).await;
        assert_eq!(rig.script.taken(2), before);
        assert!(memory.get(command, 8).unwrap().write(0, &[4, 0, 2, 0]));
        let buffers = [Buffer::readable(command, 4), Buffer::writable(command + 7, 1)];
        assert_eq!(driver.ask(&mut control, &buffers).await, 1);
        queues[2].all(&driver).await;
    }
}

#[tokio::test]
async fn a_driver_of_one_pair_gets_packets_on_one_pair() {
    let mut rig = Rig::new();
    let _peer = rig.peer(Rig::nic());
    let (_, driver) = rig.net(2).await;
    // Without MQ the control queue comes third.
    for features in [RING, RING | NET_CTRL_VQ] {
        let mut queues = [rig.queue(0, features), rig.queue(1, features)];
        let mut control = DriverQueue::new(&mut rig.arena, 2, 64, features).unwrap();
        driver.drive(features, &[&queues[0].queue, &queues[1].queue, &control]).await;
        for queue in &mut queues {
            queue.round(&driver, 5).await;
        }
        if features & NET_CTRL_VQ != 0 {
            let at = rig.arena.allocate(8, 8).unwrap();
            assert!(rig.arena.memory().get(at, 4).unwrap().write(0, &[4, 0, 1, 0]));
            let buffers = [Buffer::readable(at, 4), Buffer::writable(at + 7, 1)];
            assert_eq!(driver.ask(&mut control, &buffers).await, 1);
        }
        assert_eq!(rig.script.taken(2), 0);
    }
}

#[tokio::test]
async fn a_broken_control_queue_needs_a_reset() {
    let mut rig = Rig::new();
    let _peer = rig.peer(Rig::nic());
    let (_, driver) = rig.net(2).await;
    let features = RING | NET_CTRL_VQ | NET_MQ;
    for _ in 0..3 {
        let mut queue = rig.queue(0, features);
        let mut control = DriverQueue::new(&mut rig.arena, 4, 64, features).unwrap();
        driver.drive(features, &[&queue.queue, &control]).await;
        queue.round(&driver, 3).await;
        control.write_avail_idx(30_000);
        driver.write(0x2010, 2, 0);
        until("a reset asked for", || driver.status() & NEEDS_RESET != 0).await;
    }
}

#[tokio::test]
async fn a_nic_at_rest_keeps_its_pairs() {
    let mut rig = Rig::new();
    let _peer = rig.peer(Rig::nic());
    let (_, driver) = rig.net(2).await;
    let features = RING | NET_CTRL_VQ | NET_MQ;
    let mut queues: Vec<_> = (0..4).map(|index| rig.queue(index, features)).collect();
    let mut control = DriverQueue::new(&mut rig.arena, 4, 64, features).unwrap();
    let mut all: Vec<_> = queues.iter().map(|requests| &requests.queue).collect();
    all.push(&control);
    driver.drive(features, &all).await;
    let at = rig.arena.allocate(8, 8).unwrap();
    assert!(rig.arena.memory().get(at, 4).unwrap().write(0, &[4, 0, 2, 0]));
    let buffers = [Buffer::readable(at, 4), Buffer::writable(at + 7, 1)];
    assert_eq!(driver.ask(&mut control, &buffers).await, 1);
    driver.function.quiesce().await.unwrap();
    let Declared::State(state) = driver.function.declare() else { panic!("at rest") };
    drop(driver);
    let (_, driver) = rig.net(2).await;
    driver.function.restore(&state).unwrap();
    driver.function.resume();
    for queue in &mut queues {
        queue.round(&driver, 5).await;
    }
    assert_eq!(driver.ask(&mut control, &buffers).await, 1);
}

#[tokio::test]
async fn a_socket_file_handed_in_by_descriptor_is_connected_again_and_again() {
    let mut rig = Rig::new();
    let _peer = rig.peer(Rig::disk(2048));
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
    let file = rustix::fs::open(rig.socket(), flags, rustix::fs::Mode::empty()).unwrap();
    let config = DiskConfig { socket: FileSource::Fd(file.into_raw_fd()), ..rig.disk_config() };
    let device = blk::connect(&config, 1, &rig.share).await.unwrap();
    let driver = driver(Arc::clone(&device));
    for _ in 0..5 {
        let mut queue = rig.queue(0, DISK);
        driver.drive(DISK, &[&queue.queue]).await;
        queue.round(&driver, 3).await;
        // The card ends a session whose ring is broken, and listens on.
        let (_, before) = device.back_end();
        queue.queue.write_avail_idx(40_000);
        driver.write(0x2000, 2, 0);
        until("another connection", || device.back_end().1 > before).await;
    }
}

#[tokio::test]
async fn a_connected_stream_serves_until_it_is_cut() {
    let mut rig = Rig::new();
    let peer = rig.peer(Rig::disk(2048));
    let stream = UnixStream::connect(rig.socket()).unwrap();
    let config = DiskConfig { socket: FileSource::Fd(stream.into_raw_fd()), ..rig.disk_config() };
    let device = blk::connect(&config, 1, &rig.share).await.unwrap();
    let driver = driver(Arc::clone(&device));
    let mut queue = rig.queue(0, DISK);
    driver.drive(DISK, &[&queue.queue]).await;
    queue.round(&driver, 3).await;
    drop(peer);
    until("the loss", || !device.back_end().0).await;
    let _peer = rig.peer(Rig::disk(2048));
    driver.reset().await;
    driver.drive(DISK, &[&rig.queue(0, DISK).queue]).await;
    assert!(!device.back_end().0, "it stays away");
}

#[tokio::test]
async fn a_descriptor_that_is_no_socket_is_refused() {
    let rig = Rig::new();
    let file = std::fs::File::open("/dev/null").unwrap();
    let null = file.as_raw_fd();
    for fd in [-1, 1 << 20, null] {
        let config = DiskConfig { socket: FileSource::Fd(fd), ..rig.disk_config() };
        let error = blk::connect(&config, 1, &rig.share).await.unwrap_err().to_string();
        assert!(error.contains("O_PATH"), "{error}");
    }
    // The last one was taken over, and closed.
    std::mem::forget(file);
}

#[tokio::test]
async fn a_connected_stream_that_ends_before_it_said_anything_is_an_error() {
    let rig = Rig::new();
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    let config = DiskConfig { socket: FileSource::Fd(ours.into_raw_fd()), ..rig.disk_config() };
    let lost = tokio::time::timeout(PATIENCE, blk::connect(&config, 1, &rig.share));
    let error = lost.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("cannot be connected again"), "{error}");
}

#[tokio::test]
async fn a_back_end_that_is_of_no_use_is_not_tried_again_at_once() {
    let rig = Rig::new();
    let _listener = UnixListener::bind(rig.socket()).unwrap();
    let mut shell =
        Shell::new(FrontConfig::default(), Target::Path(rig.socket()), rig.share.read_used());
    shell.turn();
    assert!(shell.session().is_connected());
    shell.refuse();
    assert!(!shell.session().is_connected());
    assert!(shell.deadline().unwrap() > Instant::now() + Duration::from_millis(50));
}

#[tokio::test]
async fn a_first_back_end_that_comes_late_is_waited_for() {
    let rig = Rig::new();
    let share = rig.share.clone();
    let config = rig.disk_config();
    let waiting = tokio::spawn(async move { blk::connect(&config, 1, &share).await });
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert!(!waiting.is_finished());
    // One that is of no use does not count.
    let useless = rig.peer(Offer { features: 0, ..Rig::disk(2048) });
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert!(!waiting.is_finished());
    drop(useless);
    let _peer = rig.peer(Rig::disk(2048));
    tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap().unwrap();
}

/// Orders in any sequence, as fast as a hostile guest gives them, against a card that comes and goes.
#[tokio::test]
async fn a_guest_that_resets_and_sets_up_in_a_loop_fills_nothing_and_is_served_after() {
    let mut rig = Rig::new();
    let mut peer = Some(rig.peer(Rig::disk(2048)));
    let (_, driver) = rig.blk().await;
    let ring = rig.queue(0, DISK).queue.ring();
    for turn in 0..2000 {
        driver.set_status(0);
        driver.negotiate(DISK);
        driver.set_up(&ring);
        driver.ready();
        driver.write(0x2000, 2, 0);
        driver.write(0x16, 2, 0);
        driver.write(0x1a, 2, turn % 4);
        if turn % 97 == 0 {
            tokio::task::yield_now().await;
        }
        if turn % 500 == 250 {
            drop(peer.take());
            peer = Some(rig.peer(Rig::disk(2048)));
        }
    }
    let mut queue = rig.queue(0, DISK);
    driver.drive(DISK, &[&queue.queue]).await;
    queue.round(&driver, 5).await;
}

/// The test's own listener, to see what is sent first.
#[tokio::test]
async fn nothing_is_left_behind_when_the_wait_is_given_up() {
    let rig = Rig::new();
    let listener = UnixListener::bind(rig.socket()).unwrap();
    let config = rig.disk_config();
    let connect = blk::connect(&config, 1, &rig.share);
    assert!(tokio::time::timeout(Duration::from_millis(50), connect).await.is_err());
    let (mut accepted, _) = listener.accept().unwrap();
    let mut sent = Vec::new();
    accepted.read_to_end(&mut sent).unwrap();
    assert_eq!(sent[..4], 1u32.to_ne_bytes(), "GET_FEATURES, and then the end");
}
