//! A card with a service that answers each request with its number plus one, driven by the real front end.

use super::*;
use crate::control::{Listener, SocketFile};
use crate::frontend::{Backing, Buffer, Client, DriverQueue, FrontConfig, GuestArena};
use crate::memory::PageSize;
use crate::ring::{Batch, FEATURE_EVENT_IDX, FEATURE_VERSION_1, SplitQueue};
use crate::vhost_user::Offer;
use crate::worker::{
    Interest, Outbox, QueueFault, QueueKey, QueueSlot, WorkerConfig, WorkerService,
};
use std::collections::HashMap;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);
const SEALED: Backing = Backing::Sealed(PageSize::Normal);
const FEATURES: u64 = FEATURE_VERSION_1 | FEATURE_EVENT_IDX;

/// Answers 8 bytes with their number plus one.
struct Echo {
    queues: HashMap<QueueSlot, (QueueKey, SplitQueue)>,
    batch: Batch,
}

impl Echo {
    fn new() -> Self {
        Self { queues: HashMap::new(), batch: Batch::new(32) }
    }
}

impl WorkerService for Echo {
    type Command = u32;
    type Report = u32;

    fn attach(&mut self, slot: QueueSlot, key: QueueKey, queue: SplitQueue) -> Interest {
        self.queues.insert(slot, (key, queue));
        Interest::Polled
    }

    fn queue(&mut self, slot: QueueSlot) -> Option<&mut SplitQueue> {
        self.queues.get_mut(&slot).map(|(_, queue)| queue)
    }

    fn detach(&mut self, slot: QueueSlot, outbox: &mut Outbox<u32>) {
        if let Some((_, queue)) = self.queues.remove(&slot) {
            outbox.detached(slot, queue);
        }
    }

    fn command(&mut self, command: u32, outbox: &mut Outbox<u32>) {
        outbox.report(command + 1);
    }

    fn poll_queue(&mut self, slot: QueueSlot, _: &mut Outbox<u32>) -> Result<usize, QueueFault> {
        let Some((key, queue)) = self.queues.get_mut(&slot) else { return Ok(0) };
        let index = key.index;
        let ring = |error| QueueFault::Ring { index, error };
        let taken = queue.take(32, &mut self.batch).map_err(ring)?;
        let memory = queue.memory().clone();
        for chain in self.batch.chains(&memory) {
            let number = chain.readable().read_array::<8>().map(u64::from_le_bytes);
            let written = match number {
                Some(number) => chain.writable().write(&(number + 1).to_le_bytes()),
                None => 0,
            };
            queue.complete(chain.head(), written as u32);
        }
        if taken > 0 && queue.publish() {
            queue.signal();
        }
        Ok(taken)
    }

    fn poll(&mut self, _: &mut Outbox<u32>) -> usize {
        0
    }
}

type Order = Box<dyn FnOnce(&mut Card<Echo>) + Send>;

/// A card on a thread of its own.
struct Running {
    folder: tempfile::TempDir,
    orders: tokio::sync::mpsc::UnboundedSender<Order>,
    events: mpsc::Receiver<CardEvent<u32>>,
    files: Vec<Option<SocketFile>>,
}

impl Running {
    fn new(spin: Duration) -> Self {
        let (orders, mut inbox) = tokio::sync::mpsc::unbounded_channel::<Order>();
        let (tell, events) = mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let mut card = Card::new().unwrap();
                let config = WorkerConfig { name: "echo".to_owned(), core: None, spin };
                card.add_worker(config, || Ok(Echo::new())).unwrap();
                loop {
                    tokio::select! {
                        event = card.next() => if tell.send(event).is_err() { return },
                        order = inbox.recv() => match order {
                            Some(order) => order(&mut card),
                            None => return,
                        },
                    }
                }
            });
        });
        Self { folder: tempfile::tempdir().unwrap(), orders, events, files: Vec::new() }
    }

    fn order<R: Send + 'static>(
        &self,
        order: impl FnOnce(&mut Card<Echo>) -> R + Send + 'static,
    ) -> R {
        let (answer, result) = mpsc::channel();
        assert!(self.orders.send(Box::new(move |card| _ = answer.send(order(card)))).is_ok());
        result.recv_timeout(PATIENCE).unwrap()
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn device(&mut self, name: &str, held: bool, require_sealed: bool) -> DeviceId {
        let (listener, file) =
            Listener::bind_path(&self.socket(name)).unwrap().into_parts().unwrap();
        self.files.push(file);
        self.order(move |card| {
            let offer = Offer {
                features: FEATURES,
                config: vec![7; 8],
                config_writable: 0..0,
                queues: 2,
                max_queue_size: 256,
                inflight: true,
                mtu: false,
            };
            let workers = vec![WorkerId(0)];
            card.add_device(DeviceConfig { listener, offer, require_sealed, workers, held })
        })
        .unwrap()
    }

    /// Waits for the first event that `wanted` takes.
    fn wait<T>(&self, wanted: impl Fn(&CardEvent<u32>) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let event = self.events.recv_timeout(left).expect("the event did not come");
            if let Some(found) = wanted(&event) {
                return found;
            }
        }
    }

    fn wait_disconnected(&self, device: DeviceId) -> Option<String> {
        self.wait(|event| match event {
            CardEvent::Disconnected { device: d, fault } if *d == device => Some(fault.clone()),
            _ => None,
        })
    }
}

/// A front end with one queue.
struct Front {
    arena: GuestArena,
    client: Client,
    queue: DriverQueue,
    buffer: u64,
}

impl Front {
    fn new(socket: &Path, backing: Backing) -> Self {
        let mut arena = GuestArena::new(0, 1 << 20, backing).unwrap();
        let config = FrontConfig { features: FEATURES, config_len: 8, ..FrontConfig::default() };
        let mut client = Client::new(config, socket, &arena);
        let probe = client.probe(PATIENCE).unwrap();
        assert_eq!(probe.config, vec![7; 8]);
        let queue = DriverQueue::new(&mut arena, 0, 64, probe.features).unwrap();
        let buffer = arena.allocate(4096, 4096).unwrap();
        Self { arena, client, queue, buffer }
    }

    fn start(&mut self) {
        self.client
            .activate(self.client.probed().unwrap().features, &[&self.queue], PATIENCE)
            .unwrap();
    }

    fn submit(&mut self, number: u64) {
        let memory = self.arena.memory();
        assert!(memory.get(self.buffer, 8).unwrap().write(0, &number.to_le_bytes()));
        let buffers = [Buffer::readable(self.buffer, 8), Buffer::writable(self.buffer + 64, 8)];
        self.queue.add(&buffers).unwrap();
        self.queue.submit();
    }

    fn answer(&mut self) -> u64 {
        assert!(self.queue.wait(Instant::now() + PATIENCE).unwrap(), "no answer");
        assert_eq!(self.queue.take_all(|used| assert_eq!(used.len, 8)).unwrap(), 1);
        let bytes = self.arena.memory().get(self.buffer + 64, 8).unwrap();
        u64::from_le_bytes(bytes.read_array(0).unwrap())
    }

    fn ask(&mut self, number: u64) {
        self.submit(number);
        assert_eq!(self.answer(), number + 1);
    }
}

#[test]
fn a_worker_that_sleeps_after_each_request_loses_no_kick() {
    let mut card = Running::new(Duration::ZERO);
    card.device("a", false, true);
    let mut front = Front::new(&card.socket("a"), SEALED);
    front.start();
    for number in 0..2000 {
        front.ask(number);
    }
}

#[test]
fn front_ends_come_and_go_and_neighbours_do_not_notice() {
    let mut card = Running::new(Duration::from_micros(50));
    let (a, _b) = (card.device("a", false, true), card.device("b", false, true));
    let mut neighbour = Front::new(&card.socket("b"), SEALED);
    neighbour.start();
    for round in 0..20 {
        let mut front = Front::new(&card.socket("a"), SEALED);
        front.start();
        front.ask(round);
        drop(front);
        assert_eq!(card.wait_disconnected(a), None);
        neighbour.ask(round);
    }
}

#[test]
fn a_held_device_answers_the_handshake_and_serves_when_released() {
    let mut card = Running::new(Duration::from_micros(50));
    let device = card.device("a", true, true);
    let mut front = Front::new(&card.socket("a"), SEALED);
    front.start();
    front.submit(1);
    // The worker has been up for a whole round trip of the driver and has nothing to poll.
    card.order(|card| card.command(WorkerId(0), 41));
    card.wait(|event| matches!(event, CardEvent::Report(_, 42)).then_some(()));
    assert_eq!(front.queue.used_idx(), 0);
    card.order(move |card| card.release(device));
    assert_eq!(front.answer(), 2);
}

#[test]
fn nonsense_ends_its_session_only() {
    let mut card = Running::new(Duration::from_micros(50));
    let (a, _b) = (card.device("a", false, true), card.device("b", false, true));
    let mut neighbour = Front::new(&card.socket("b"), SEALED);
    neighbour.start();
    for nonsense in [&[0xff; 64][..], &[1, 0, 0, 0, 1, 0, 0, 0, 0xff, 0xff, 0, 0], b"GET / HTTP"] {
        let mut stream = UnixStream::connect(card.socket("a")).unwrap();
        let _ = stream.write_all(nonsense);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        card.wait_disconnected(a);
        neighbour.ask(1);
    }
    // A ring that breaks the rules.
    let mut front = Front::new(&card.socket("a"), SEALED);
    front.start();
    front.ask(1);
    front.queue.write_avail_idx(40_000);
    front.queue.kick();
    assert!(card.wait_disconnected(a).is_some());
    neighbour.ask(2);
}

#[test]
fn memory_that_is_taken_away_ends_its_session_only() {
    let mut card = Running::new(Duration::from_micros(50));
    let (a, sealed) = (card.device("a", false, false), card.device("sealed", false, true));
    let mut neighbour = Front::new(&card.socket("sealed"), SEALED);
    neighbour.start();
    let mut front = Front::new(&card.socket("a"), Backing::Unsealed);
    front.start();
    front.ask(1);
    let (_, file) = front.arena.regions().remove(0);
    front.queue.kick();
    rustix::fs::ftruncate(&file, 0).unwrap();
    front.queue.kick();
    let fault = card.wait_disconnected(a);
    assert!(fault.as_ref().is_some_and(|fault| fault.contains("memory")), "{fault:?}");
    neighbour.ask(1);
    drop(neighbour);
    card.wait_disconnected(sealed);
    // And where memory must be sealed, memory that is not does not get in.
    let mut arena = GuestArena::new(0, 1 << 20, Backing::Unsealed).unwrap();
    let config = FrontConfig { features: FEATURES, config_len: 8, ..FrontConfig::default() };
    let mut client = Client::new(config, &card.socket("sealed"), &arena);
    let probe = client.probe(PATIENCE).unwrap();
    let queue = DriverQueue::new(&mut arena, 0, 64, probe.features).unwrap();
    let short = Duration::from_millis(50);
    assert!(client.activate(probe.features, &[&queue], short).is_err());
    let fault = card.wait_disconnected(sealed);
    assert!(fault.as_ref().is_some_and(|fault| fault.contains("sealed")), "{fault:?}");
}

#[test]
fn a_removed_device_gives_its_queues_back_first() {
    let mut card = Running::new(Duration::from_micros(50));
    let device = card.device("a", false, true);
    let mut front = Front::new(&card.socket("a"), SEALED);
    front.start();
    front.ask(1);
    card.order(move |card| card.remove_device(device));
    card.wait(|event| matches!(event, CardEvent::Stopped { index: 0, .. }).then_some(()));
    assert_eq!(card.wait_disconnected(device), None);
    card.wait(|event| matches!(event, CardEvent::Removed(_)).then_some(()));
}
