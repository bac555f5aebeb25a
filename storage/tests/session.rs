//! Front ends that misbehave: their session ends, the process and its other sessions live.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test says what it found by failing"
)]

mod rig;

use bixi_offload::frontend::{Backing, Buffer, Client, DriverQueue, FrontConfig, GuestArena};
use bixi_offload::memory::PageSize;
use rig::guest::{FEATURES, Guest, client};
use rig::{DISK, PATIENCE, Random, Rig, code, until};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Duration;

const OTHER: &str = "d-zyxwvutsrq9876543210";
const BLOCKS: usize = 512;

/// A process with a disk for whoever misbehaves and one for a guest that must not notice.
struct Pair {
    rig: Rig,
    good: Guest,
}

impl Pair {
    fn new(require_sealed: bool) -> Self {
        let mut rig = Rig::new(None);
        rig.start();
        for id in [DISK, OTHER] {
            rig.create(id, BLOCKS as u64 * 4096);
        }
        let mut attach = rig.attachment(DISK, 1);
        attach.require_sealed = require_sealed;
        rig.attach_as(DISK, &attach).unwrap();
        rig.attach(OTHER, 1).unwrap();
        let good = Guest::boot(&rig.socket(OTHER), BLOCKS, 2, 8, 11);
        Self { rig, good }
    }

    /// Waits until the bad session was ended for a reason that has `word` in it, while the good guest works.
    fn until_fault(&mut self, word: &str) {
        let Self { rig, good } = self;
        let mut last = None;
        until(&format!("a session ended with `{word}`"), || {
            good.pump();
            last = rig.show(DISK).attachment.unwrap().last_fault;
            last.as_ref().is_some_and(|fault| fault.contains(word))
        });
    }

    /// The good guest goes on, in the same session and process.
    fn end(mut self) {
        self.good.pump_for(500);
        self.good.verify_all();
        assert_eq!(self.good.keeper.with(|client| client.starts()), Some(1));
        assert!(!self.rig.has_ended());
    }
}

/// A front end on the first disk, with one queue.
fn bad(rig: &Rig, backing: Backing) -> (Client, GuestArena, DriverQueue) {
    let mut arena = GuestArena::new(1 << 20, 8 << 20, backing).unwrap();
    let queue = DriverQueue::new(&mut arena, 0, 64, FEATURES).unwrap();
    let mut client = client(&rig.socket(DISK), &arena);
    client.probe(PATIENCE).unwrap();
    (client, arena, queue)
}

#[test]
fn a_front_end_that_talks_nonsense_ends_only_itself() {
    let mut pair = Pair::new(true);
    let mut random = Random(5);
    for round in 0..60 {
        let mut stream = UnixStream::connect(pair.rig.socket(DISK)).unwrap();
        let messages = 1 + random.below(8);
        for _ in 0..messages {
            // Noise, or a header with a plausible request and length.
            let mut bytes: Vec<u8> =
                (0..random.below(200)).map(|_| random.below(256) as u8).collect();
            if round % 3 > 0 {
                let request = random.below(45) as u32;
                let mut message = request.to_le_bytes().to_vec();
                message.extend(1u32.to_le_bytes());
                message.extend((bytes.len() as u32).to_le_bytes());
                message.append(&mut bytes);
                bytes = message;
            }
            if stream.write_all(&bytes).is_err() {
                break;
            }
        }
        pair.good.pump();
    }
    // Whoever comes next is served.
    let (mut client, _arena, queue) = bad(&pair.rig, Backing::Sealed(PageSize::Normal));
    client.activate(FEATURES, &[&queue], PATIENCE).unwrap();
    pair.end();
}

#[test]
fn a_ring_full_of_nonsense_ends_only_its_session() {
    let mut pair = Pair::new(true);
    let mut random = Random(9);
    for round in 0..12u64 {
        let (mut client, mut arena, mut queue) = bad(&pair.rig, Backing::Sealed(PageSize::Normal));
        client.activate(FEATURES, &[&queue], PATIENCE).unwrap();
        let status = arena.allocate(16, 16).unwrap();
        for at in 0..64 {
            let (addr, len) = (random.below(1 << 40), random.below(1 << 32) as u32);
            let flags = random.below(8) as u16;
            queue.write_descriptor(at, addr, len, flags, random.below(80) as u16);
        }
        match round % 3 {
            0 => queue.write_avail_idx(60_000),
            1 => queue.push_raw(random.below(0x10000) as u16),
            _ => {
                // A chain whose second descriptor lies nowhere.
                queue.write_descriptor(0, status, 16, 1, 1);
                queue.write_descriptor(1, 1 << 50, 4096, 0, 0);
                queue.push_raw(0);
            }
        }
        if round % 3 > 0 {
            let _ = queue.publish();
        }
        queue.kick();
        pair.until_fault("queue 0");
    }
    pair.end();
}

#[test]
fn a_front_end_that_dies_with_requests_in_flight_leaves_nothing_behind() {
    let mut pair = Pair::new(true);
    for _ in 0..10 {
        let (mut client, mut arena, mut queue) = bad(&pair.rig, Backing::Sealed(PageSize::Normal));
        client.activate(FEATURES, &[&queue], PATIENCE).unwrap();
        let header = arena.allocate(16, 16).unwrap();
        let data = arena.allocate(1 << 20, 4096).unwrap();
        while queue
            .add(&[Buffer::readable(header, 16), Buffer::writable(data, (1 << 20) - 511)])
            .is_some()
        {}
        queue.submit();
        drop(client);
        pair.good.pump();
    }
    until("the last one's session is over", || {
        pair.good.pump();
        !pair.rig.show(DISK).attachment.unwrap().connected
    });
    // The lock is free as soon as the disk is detached: nothing is in flight.
    pair.rig.detach(DISK).unwrap();
    pair.rig.delete(DISK).unwrap();
    pair.end();
}

#[test]
fn memory_that_can_shrink_is_refused_where_sealing_is_required() {
    let mut pair = Pair::new(true);
    let (mut client, _arena, queue) = bad(&pair.rig, Backing::Unsealed);
    let refused = client.activate(FEATURES, &[&queue], Duration::from_secs(2));
    assert!(refused.is_err());
    pair.until_fault("not sealed");
    drop(client);
    pair.end();
}

#[test]
fn memory_that_shrinks_under_requests_ends_only_its_session() {
    let mut pair = Pair::new(false);
    let (mut errors, mut seen) = (0, (0, 0));
    for round in 0..6u64 {
        let (mut client, mut arena, mut queue) = bad(&pair.rig, Backing::Unsealed);
        client.activate(FEATURES, &[&queue], PATIENCE).unwrap();
        let header = arena.allocate(16, 16).unwrap();
        let status = arena.allocate(1, 1).unwrap();
        let data = arena.allocate(256 << 10, 4096).unwrap() + 4096;
        let buffers = |write: bool| {
            // Unaligned every other time: then the engine itself copies, and not the kernel.
            let buffer = Buffer { addr: data + round % 2, len: 128 << 10, writable: !write };
            [Buffer::readable(header, 16), buffer, Buffer::writable(status, 1)]
        };
        assert!(arena.memory().get(header, 16).unwrap().write(0, &[u8::from(round % 3 == 0)]));
        let (_, file) = arena.regions().remove(0);
        while queue.add(&buffers(round % 3 == 0)).is_some() {}
        queue.submit();
        // The rings stay, the data goes.
        let gone = if round < 4 { data - (1 << 20) } else { 0 };
        rustix::fs::ftruncate(&*file, gone).unwrap();
        queue.kick();
        let Pair { rig, good } = &mut pair;
        until("the session is over or its requests have failed", || {
            good.pump();
            if round < 4 {
                // The first ones may have been done before the data went.
                let _ = queue.take_all(|_| ());
                while queue.add(&buffers(round % 3 == 0)).is_some() {}
                queue.submit();
            }
            let attachment = rig.show(DISK).attachment.unwrap();
            let failed = attachment.statistics.errors - errors;
            seen = (seen.0 + u64::from(failed > 0), seen.1 + u64::from(!attachment.connected));
            failed > 0 || !attachment.connected
        });
        errors = rig.show(DISK).attachment.unwrap().statistics.errors;
        drop(client);
    }
    assert!(seen.1 > 0, "no session was ended: {seen:?}");
    pair.end();
}

#[test]
fn a_device_without_flush_is_a_device_that_writes_through() {
    let mut rig = Rig::new(None);
    rig.start();
    rig.create(DISK, 1 << 20);
    rig.attach(DISK, 1).unwrap();
    let features = FEATURES & !(1 << 9);
    let mut arena = GuestArena::new(1 << 20, 4 << 20, Backing::Sealed(PageSize::Normal)).unwrap();
    let mut queue = DriverQueue::new(&mut arena, 0, 64, features).unwrap();
    let config = FrontConfig { features, config_len: 60, ..FrontConfig::default() };
    let mut client = Client::new(config, &rig.socket(DISK), &arena);
    client.activate(features, &[&queue], PATIENCE).unwrap();
    let header = arena.allocate(16, 16).unwrap();
    let status = arena.allocate(1, 1).unwrap();
    let data = arena.allocate(4096, 4096).unwrap();
    let memory = arena.memory();
    for kind in [1u32, 13] {
        let mut text = [0; 16];
        text[..4].copy_from_slice(&kind.to_le_bytes());
        assert!(memory.get(header, 16).unwrap().write(0, &text));
        let length = if kind == 1 { 4096 } else { 16 };
        let range = [0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0];
        assert!(memory.get(data, 16).unwrap().write(0, &range));
        let chain = [
            Buffer::readable(header, 16),
            Buffer::readable(data, length),
            Buffer::writable(status, 1),
        ];
        queue.add(&chain).unwrap();
        queue.submit();
        until("it is answered", || queue.take().unwrap().is_some());
        assert_eq!(memory.get(status, 1).unwrap().read_array::<1>(0), Some([0]));
    }
    assert_eq!(code(rig.delete(DISK)), "DiskInUse");
}
