//! The client against a back end that is not ours: QEMU's storage daemon, where it is installed.

use super::*;
use crate::ring::{FEATURE_EVENT_IDX, FEATURE_VERSION_1};
use bixi_api::state::Declared;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);

/// A storage daemon with an empty disk of 1 GiB; ends with its owner.
struct Daemon {
    child: Child,
}

impl Daemon {
    fn start(socket: &Path) -> Self {
        let export = format!(
            "vhost-user-blk,id=e,node-name=n,writable=on,num-queues=2,addr.type=unix,addr.path={}",
            socket.display()
        );
        let _ = std::fs::remove_file(socket);
        let child = Command::new("qemu-storage-daemon")
            .args(["--blockdev", "null-co,node-name=n,size=1073741824,read-zeroes=on"])
            .args(["--export", &export])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn installed() -> bool {
    let found = Command::new("qemu-storage-daemon").arg("--version").stdout(Stdio::null()).status();
    let found = found.is_ok_and(|status| status.success());
    if !found {
        println!("SKIPPED: qemu-storage-daemon is not installed (Debian: qemu-utils)");
    }
    found
}

struct Bench {
    _folder: tempfile::TempDir,
    socket: PathBuf,
    arena: GuestArena,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("blk.sock");
        let regions = [(0, 4 << 20), (16 << 20, 4 << 20)];
        let arena = GuestArena::with_regions(&regions, Backing::Unsealed).unwrap();
        Self { _folder: folder, socket, arena }
    }

    fn config(&self) -> FrontConfig {
        FrontConfig {
            features: FEATURE_VERSION_1 | FEATURE_EVENT_IDX,
            config_len: 60,
            rings: 2,
            // The empty disk answers in any order, but its requests may be done twice.
            in_order: true,
            channel: true,
            ..FrontConfig::default()
        }
    }

    fn client(&self) -> Client {
        Client::new(self.config(), &self.socket, &self.arena)
    }

    /// A read of the first 4 KiB.
    fn read(&mut self, queue: &mut DriverQueue) -> u16 {
        let header = self.arena.allocate(16, 16).unwrap();
        let data = self.arena.allocate(4096, 4096).unwrap();
        let status = self.arena.allocate(1, 1).unwrap();
        assert!(self.arena.memory().get(status, 1).unwrap().write(0, &[0xff]));
        let buffers = [
            Buffer::readable(header, 16),
            Buffer::writable(data, 4096),
            Buffer::writable(status, 1),
        ];
        queue.prepare(&buffers).unwrap()
    }
}

fn complete(queue: &mut DriverQueue, count: usize) {
    let deadline = Instant::now() + PATIENCE;
    let mut done = 0;
    while done < count {
        assert!(queue.wait(deadline).unwrap(), "{done} of {count} requests came back");
        done += queue.take_all(|used| assert_eq!(used.len, 4097)).unwrap();
    }
}

#[test]
fn a_foreign_back_end_serves_stops_and_resumes() {
    if !installed() {
        return;
    }
    let mut bench = Bench::new();
    let _daemon = Daemon::start(&bench.socket);
    let mut client = bench.client();
    let probe = client.probe(PATIENCE).unwrap();
    assert_eq!(probe.rings, 2);
    assert_eq!(probe.config[..8], (1u64 << 21).to_le_bytes());
    let mut first = DriverQueue::new(&mut bench.arena, 0, 64, probe.features).unwrap();
    let mut second = DriverQueue::new(&mut bench.arena, 1, 128, probe.features).unwrap();
    let heads = [bench.read(&mut first), bench.read(&mut second)];
    client.activate(probe.features, &[&first, &second], PATIENCE).unwrap();
    for (queue, head) in [(&mut first, heads[0]), (&mut second, heads[1])] {
        for _ in 0..300 {
            queue.push(head);
            queue.submit();
            complete(queue, 1);
        }
    }
    client.replace_call(&mut first, PATIENCE).unwrap();
    client.enable_ring(1, false, PATIENCE).unwrap();
    client.enable_ring(1, true, PATIENCE).unwrap();
    first.push(heads[0]);
    first.submit();
    complete(&mut first, 1);
    let bases = client.deactivate(true, PATIENCE).unwrap();
    assert_eq!(bases, [(0, Some(301)), (1, Some(300))]);
    let rings = vec![first.ring_at(301, true), second.ring_at(300, true)];
    client.activate_rings(probe.features, rings, &[&first, &second], PATIENCE).unwrap();
    second.push(heads[1]);
    second.submit();
    complete(&mut second, 1);
    assert_eq!(client.downs(), []);
}

#[test]
fn a_foreign_back_end_dies_and_returns_under_load() {
    if !installed() {
        return;
    }
    let mut bench = Bench::new();
    let mut daemon = Daemon::start(&bench.socket);
    let mut client = bench.client();
    let features = client.probe(PATIENCE).unwrap().features;
    let mut queue = DriverQueue::new(&mut bench.arena, 0, 64, features).unwrap();
    let heads: Vec<_> = (0..8).map(|_| bench.read(&mut queue)).collect();
    client.activate(features, &[&queue], PATIENCE).unwrap();
    let keeper = client.keep().unwrap();
    for round in 0..5 {
        for _ in 0..200 {
            heads.iter().for_each(|head| queue.push(*head));
            queue.submit();
            complete(&mut queue, heads.len());
        }
        heads.iter().for_each(|head| queue.push(*head));
        queue.submit();
        drop(daemon);
        daemon = Daemon::start(&bench.socket);
        complete(&mut queue, heads.len());
        let starts = keeper.with(move |client| client.wait_starts(round + 2, PATIENCE)).unwrap();
        starts.unwrap();
    }
    let client = keeper.release().unwrap();
    assert!(client.downs().iter().all(|down| *down == Down::Closed), "{:?}", client.downs());
}

/// The session goes to another shell, as in a hot upgrade; the back end notices nothing but a new call eventfd.
#[test]
fn a_session_is_handed_over_with_its_connection() {
    if !installed() {
        return;
    }
    let mut bench = Bench::new();
    let _daemon = Daemon::start(&bench.socket);
    let mut client = bench.client();
    let features = client.probe(PATIENCE).unwrap().features;
    let mut queue = DriverQueue::new(&mut bench.arena, 0, 64, features).unwrap();
    let head = bench.read(&mut queue);
    client.activate(features, &[&queue], PATIENCE).unwrap();
    for round in 0..3 {
        client.wait_steady(PATIENCE).unwrap();
        let (Declared::State(payload), carried) = client.into_shell().dismantle() else {
            panic!("no state");
        };
        assert!(carried.connection.is_some());
        let rings = [(0, queue.fds().clone())].into();
        let files = bench.arena.regions().into_iter().map(|(region, file)| (region.slot, file));
        let target = Target::Path(bench.socket.clone());
        let used = Box::new(|_: &Ring| panic!("nothing is set up anew"));
        let shell = Shell::assemble(
            bench.config(),
            target,
            used,
            &payload,
            carried,
            files.collect(),
            rings,
        )
        .unwrap();
        client = Client::around(shell);
        client.replace_call(&mut queue, PATIENCE).unwrap();
        for _ in 0..100 {
            queue.push(head);
            queue.submit();
            complete(&mut queue, 1);
        }
        assert_eq!((client.shell().session().connections(), client.starts()), (1, 0), "{round}");
    }
}
