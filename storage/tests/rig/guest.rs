//! A guest under verify load: it knows what each block must hold, and counts every error.
//!
//! Each block of 4 KiB holds its own number and the count of writes to it, over and over. A block is in at most one
//! request at a time, so that the guest orders all that it does to it: whatever was acknowledged must be read.

use super::{PATIENCE, Random};
use bixi_offload::frontend::{
    Backing, Buffer, Client, DriverQueue, FrontConfig, GuestArena, Keeper,
};
use bixi_offload::memory::{GuestMemory, PageSize};
use bixi_offload::ring::{FEATURE_EVENT_IDX, FEATURE_INDIRECT, FEATURE_VERSION_1};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub const READ: u32 = 0;
pub const WRITE: u32 = 1;
pub const FLUSH: u32 = 4;
pub const DISCARD: u32 = 11;
pub const ZEROES: u32 = 13;

/// What the guest's driver acknowledges: all that a Linux guest would.
pub const FEATURES: u64 = FEATURE_VERSION_1
    | FEATURE_INDIRECT
    | FEATURE_EVENT_IDX
    | 1 << 9
    | 1 << 12
    | 1 << 13
    | 1 << 14
    | 1 << 2
    | 1 << 6
    | 1 << 10;

const BLOCK: u64 = 4096;
/// The most blocks of one request.
const MOST: u64 = 8;

/// Room for one request in guest memory.
#[derive(Clone, Copy)]
struct Room {
    header: u64,
    data: u64,
    status: u64,
}

#[derive(Clone, Copy)]
struct Pending {
    kind: u32,
    first: u64,
    count: u64,
    room: Room,
}

#[derive(Clone, Copy, Default)]
struct Block {
    /// What was acknowledged last: 0 is zeroes.
    version: u64,
    /// What is on its way.
    next: Option<u64>,
    busy: bool,
    /// A discard was acknowledged after the last write: it may be zeroes too.
    discarded: bool,
}

/// A guest with a disk.
pub struct Guest {
    pub keeper: Keeper,
    pub queues: Vec<DriverQueue>,
    memory: Arc<GuestMemory>,
    blocks: Vec<Block>,
    rooms: Vec<Room>,
    pending: Vec<HashMap<u16, Pending>>,
    random: Random,
    depth: usize,
    /// Requests completed.
    pub completed: u64,
    /// When the last one was.
    pub last: Instant,
    /// The longest time without a completion.
    pub stall: Duration,
    /// Whether holes are among the requests.
    pub holes: bool,
    /// Whether flushes are.
    pub flushes: bool,
}

/// A client of the disk at `socket`.
pub fn client(socket: &Path, arena: &GuestArena) -> Client {
    let config = FrontConfig { features: FEATURES, config_len: 60, ..FrontConfig::default() };
    Client::new(config, socket, arena)
}

impl Guest {
    /// Boots: connects to `socket` and starts `queues` queues, to keep `depth` requests in flight on each.
    pub fn boot(socket: &Path, blocks: usize, queues: u16, depth: usize, seed: u64) -> Self {
        let size = (queues as u64 * depth as u64 * (MOST * BLOCK + 8192) + (8 << 20))
            .next_multiple_of(2 << 20);
        let backing = Backing::Sealed(PageSize::Normal);
        let mut arena = GuestArena::new(1 << 20, size, backing).unwrap();
        let mut client = client(socket, &arena);
        let probe = client.probe(PATIENCE).unwrap();
        assert_eq!(probe.features & FEATURES, FEATURES, "{:#x}", probe.features);
        let drivers: Vec<DriverQueue> = (0..queues)
            .map(|index| DriverQueue::new(&mut arena, index, 256, FEATURES).unwrap())
            .collect();
        let rooms = (0..usize::from(queues) * depth)
            .map(|_| Room {
                header: arena.allocate(16, 64).unwrap(),
                // On a sector but not always on a page, as guests do it.
                data: arena.allocate(MOST * BLOCK + 512, 4096).unwrap() + 512,
                status: arena.allocate(1, 1).unwrap(),
            })
            .collect();
        client.activate(FEATURES, &drivers.iter().collect::<Vec<_>>(), PATIENCE).unwrap();
        Self {
            memory: Arc::clone(arena.memory()),
            keeper: client.keep().unwrap(),
            pending: drivers.iter().map(|_| HashMap::new()).collect(),
            queues: drivers,
            blocks: vec![Block::default(); blocks],
            rooms,
            random: Random(seed),
            depth,
            completed: 0,
            last: Instant::now(),
            stall: Duration::ZERO,
            holes: true,
            flushes: true,
        }
    }

    /// Keeps the queues full for a moment and checks what has come; returns how many requests have.
    pub fn pump(&mut self) -> u64 {
        for queue in 0..self.queues.len() {
            while self.pending[queue].len() < self.depth && self.ask(queue) {}
        }
        let before = self.completed;
        self.take();
        if self.completed == before {
            let waited = self.last.elapsed();
            assert!(waited < PATIENCE, "nothing for {waited:?}: {:?}", self.state());
            // Whichever queue answers first; not long, since others may be the first.
            let queue = self.random.below(self.queues.len() as u64) as usize;
            let _ = self.queues[queue].wait(Instant::now() + Duration::from_millis(1)).unwrap();
        }
        self.completed - before
    }

    /// Pumps until so many requests have completed.
    pub fn pump_for(&mut self, requests: u64) {
        let goal = self.completed + requests;
        while self.completed < goal {
            self.pump();
        }
    }

    /// Waits until nothing is in flight.
    pub fn drain(&mut self) {
        while self.pending.iter().any(|pending| !pending.is_empty()) {
            self.take();
            assert!(self.last.elapsed() < PATIENCE, "not drained: {:?}", self.state());
            std::thread::yield_now();
        }
    }

    /// Reads every block back.
    pub fn verify_all(&mut self) {
        self.drain();
        let mut first = 0;
        while first < self.blocks.len() as u64 {
            let count = MOST.min(self.blocks.len() as u64 - first);
            while !self.start(0, READ, first, count) {
                self.take();
                assert!(self.last.elapsed() < PATIENCE);
            }
            first += count;
        }
        self.drain();
    }

    fn state(&self) -> String {
        let running = self.keeper.with(|client| (client.is_running(), client.downs().to_vec()));
        format!(
            "in flight {:?}, {running:?}",
            self.pending.iter().map(HashMap::len).collect::<Vec<_>>()
        )
    }

    fn ask(&mut self, queue: usize) -> bool {
        let first = self.random.below(self.blocks.len() as u64);
        let count = (1 + self.random.below(MOST)).min(self.blocks.len() as u64 - first);
        let kind = match self.random.below(20) {
            0..=8 => WRITE,
            9..=16 => READ,
            17 if self.flushes => FLUSH,
            18 if self.holes => ZEROES,
            19 if self.holes => DISCARD,
            _ => READ,
        };
        self.start(queue, kind, first, count)
    }

    fn start(&mut self, queue: usize, kind: u32, first: u64, count: u64) -> bool {
        let range = first as usize..(first + count) as usize;
        if kind != FLUSH && self.blocks[range.clone()].iter().any(|block| block.busy) {
            return false;
        }
        let Some(room) = self.rooms.pop() else { return false };
        let bytes = count as usize * BLOCK as usize;
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        if matches!(kind, READ | WRITE) {
            header[8..].copy_from_slice(&(first * 8).to_le_bytes());
        }
        self.write(room.header, &header);
        self.write(room.status, &[0xee]);
        let data = match kind {
            FLUSH => None,
            READ => Some(Buffer::writable(room.data, bytes as u32)),
            WRITE => {
                let mut text = Vec::with_capacity(bytes);
                for (index, block) in (first..).zip(&mut self.blocks[range.clone()]) {
                    let version = block.version.max(block.next.unwrap_or(0)) + 1;
                    block.next = Some(version);
                    text.extend(content(index, version));
                }
                self.write(room.data, &text);
                Some(Buffer::readable(room.data, bytes as u32))
            }
            _ => {
                let unmap = u32::from(kind == ZEROES && self.random.below(2) == 0);
                let mut text = (first * 8).to_le_bytes().to_vec();
                text.extend(((count * 8) as u32).to_le_bytes());
                text.extend(unmap.to_le_bytes());
                self.write(room.data, &text);
                Some(Buffer::readable(room.data, 16))
            }
        };
        let mut buffers = vec![Buffer::readable(room.header, 16)];
        buffers.extend(data);
        buffers.push(Buffer::writable(room.status, 1));
        let driver = &mut self.queues[queue];
        let Some(head) = driver.add(&buffers) else {
            self.rooms.push(room);
            return false;
        };
        driver.submit();
        if kind != FLUSH {
            self.blocks[range].iter_mut().for_each(|block| block.busy = true);
        }
        self.pending[queue].insert(head, Pending { kind, first, count, room });
        true
    }

    fn take(&mut self) {
        for queue in 0..self.queues.len() {
            while let Some(used) = self.queues[queue].take().unwrap() {
                let pending = self.pending[queue].remove(&used.head).unwrap();
                let now = Instant::now();
                self.stall = self.stall.max(now - self.last);
                self.last = now;
                self.completed += 1;
                self.check(&pending);
                self.rooms.push(pending.room);
            }
        }
    }

    fn check(&mut self, pending: &Pending) {
        let Pending { kind, first, count, room } = *pending;
        let status = self.read(room.status, 1)[0];
        assert_eq!(status, 0, "type {kind} at block {first}, {count} blocks");
        if kind == FLUSH {
            return;
        }
        let bytes = self.read(room.data, (count * BLOCK) as usize);
        for at in 0..count {
            let block = &mut self.blocks[(first + at) as usize];
            block.busy = false;
            match kind {
                WRITE => {
                    block.version = block.next.take().unwrap();
                    block.discarded = false;
                }
                ZEROES => (block.version, block.discarded) = (0, false),
                DISCARD => block.discarded = true,
                _ => {
                    let got = &bytes[(at * BLOCK) as usize..((at + 1) * BLOCK) as usize];
                    let good = got == content(first + at, block.version);
                    let zero = block.discarded && got.iter().all(|byte| *byte == 0);
                    let seen = u64::from_le_bytes(got[8..16].try_into().unwrap());
                    let wanted = block.version;
                    assert!(good || zero, "block {}: write {seen} instead of {wanted}", first + at);
                }
            }
        }
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        assert!(self.memory.get(at, bytes.len() as u64).unwrap().write(0, bytes));
    }

    fn read(&self, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        assert!(self.memory.get(at, length as u64).unwrap().read(0, &mut bytes));
        bytes
    }
}

fn content(block: u64, version: u64) -> Vec<u8> {
    if version == 0 {
        return vec![0; BLOCK as usize];
    }
    let word = [block.to_le_bytes(), version.to_le_bytes()].concat();
    word.repeat(BLOCK as usize / 16)
}
