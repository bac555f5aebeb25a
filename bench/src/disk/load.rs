//! The load on a vhost-user-blk server: requests of one size at random places, a fixed number in flight.
//!
//! Every request has a slot of its own: three chained descriptors (header, data, status) that are written once. To send it again is
//! one store into the available ring. The driver polls the used ring and wants no calls, so that the load generator's core does
//! nothing but the ring; it drives several million requests a second and is not what is measured.

use crate::load::clock::{self, Clock};
use crate::load::histogram::Histogram;
use crate::setup::interrupt;
use crate::{BenchError, Effort};
use bixi_offload::frontend::{Backing, Buffer, Client, DriverQueue, FrontConfig, GuestArena, Used};
use bixi_offload::memory::PageSize;
use bixi_offload::ring::{FEATURE_EVENT_IDX, FEATURE_VERSION_1};
use std::path::Path;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

/// VIRTIO_BLK_F_MQ: several queues.
const FEATURE_QUEUES: u64 = 1 << 12;
/// Bytes of configuration space read: as many as old back ends give.
const CONFIG_LEN: u32 = 60;
/// How long anything but the load itself may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// A server that answers nothing for so many seconds has stopped.
const SILENCE: f64 = 5.0;

/// What is asked of a disk.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Whether to write instead of read.
    pub write: bool,
    /// Bytes of a request; a multiple of 512.
    pub block: u32,
    /// Requests in flight on each queue.
    pub depth: u16,
    /// Queues.
    pub queues: u16,
}

impl Shape {
    /// Memory it needs, in huge pages.
    #[must_use]
    pub fn pages(&self) -> u64 {
        let data = u64::from(self.queues) * u64::from(self.depth) * (u64::from(self.block) + 4096);
        2 + (data >> 21)
    }

    fn ring_size(&self) -> u16 {
        (self.depth * 3).next_power_of_two().max(128)
    }
}

/// What a run gave.
#[derive(Debug)]
pub struct Measured {
    /// Requests a second.
    pub rate: f64,
    /// Their latencies in ticks, from the store of the available index to the sight of the used one.
    pub latencies: Histogram,
}

/// The header of one request, the status behind it, and when it was sent.
#[derive(Debug)]
struct Slot {
    sector: *mut AtomicU64,
    status: *mut AtomicU8,
    sent: u64,
}

/// One queue with its slots, by head.
#[derive(Debug)]
struct Lane {
    queue: DriverQueue,
    slots: Vec<Slot>,
    /// Requests to send.
    heads: Vec<u16>,
}

/// A front end that is set up and ready to load its server.
#[derive(Debug)]
pub struct Load {
    client: Client,
    lanes: Vec<Lane>,
    clock: Clock,
    /// Blocks of the disk.
    blocks: u64,
    sectors_per_block: u64,
    random: u64,
    // The lanes' pointers lead into it.
    _arena: GuestArena,
}

impl Load {
    /// Connects to the server at `socket` and sets the rings up.
    ///
    /// # Errors
    /// The server does not answer, or offers less than is needed.
    pub fn connect(socket: &Path, shape: &Shape) -> Result<Self, BenchError> {
        let size = shape.pages() << 21;
        let mut arena = GuestArena::new(0, size, Backing::Sealed(PageSize::Huge2M))?;
        let config = FrontConfig {
            features: FEATURE_VERSION_1 | FEATURE_EVENT_IDX | FEATURE_QUEUES,
            config_len: CONFIG_LEN,
            rings: shape.queues,
            ..FrontConfig::default()
        };
        let mut client = Client::new(config, socket, &arena);
        let probe = client.probe(PATIENCE)?;
        let sectors = probe.config.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let sectors_per_block = u64::from(shape.block) / 512;
        let blocks = sectors / sectors_per_block;
        if blocks == 0 {
            return Err(BenchError::Wrong(format!("a disk of {sectors} sectors")));
        }
        let lanes = (0..shape.queues)
            .map(|index| Lane::new(&mut arena, index, shape, probe.features))
            .collect::<Result<Vec<_>, _>>()?;
        let queues: Vec<_> = lanes.iter().map(|lane| &lane.queue).collect();
        client.activate(probe.features, &queues, PATIENCE)?;
        let clock = Clock::new();
        let random = 0x9e37_79b9_7f4a_7c15;
        Ok(Self { client, lanes, clock, blocks, sectors_per_block, random, _arena: arena })
    }

    /// The clock that latencies are counted with.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Whether the server gave an in-flight record.
    #[must_use]
    pub fn has_record(&self) -> bool {
        self.client.record().is_some()
    }

    /// Loads the server; figures are taken after the warm-up, `begin` is called when that is over.
    ///
    /// # Errors
    /// A wrong answer, or none.
    pub fn run(&mut self, effort: &Effort, begin: impl FnOnce()) -> Result<Measured, BenchError> {
        self.fill();
        let mut latencies = Histogram::default();
        self.drive(effort.warm_up, &mut latencies)?;
        latencies.clear();
        begin();
        let seconds = self.drive(effort.measured, &mut latencies)?;
        Ok(Measured { rate: latencies.total() as f64 / seconds, latencies })
    }

    fn fill(&mut self) {
        for lane in &mut self.lanes {
            lane.send(&mut self.random, self.blocks, self.sectors_per_block);
        }
    }

    /// Sends each request again as soon as it is answered, for so many seconds; returns how many it really were.
    fn drive(&mut self, seconds: f64, latencies: &mut Histogram) -> Result<f64, BenchError> {
        let start = clock::now();
        let (end, silence) = (self.clock.ticks(seconds), self.clock.ticks(SILENCE));
        let (mut last, mut turns) = (start, 0u32);
        loop {
            let mut answered = false;
            for lane in &mut self.lanes {
                let sent =
                    lane.turn(latencies, &mut self.random, self.blocks, self.sectors_per_block)?;
                answered |= sent;
            }
            turns = turns.wrapping_add(1);
            if turns % 64 != 0 {
                continue;
            }
            let now = clock::now();
            if answered {
                last = now;
            } else if now.wrapping_sub(last) > silence {
                return Err(BenchError::Silent(format!("nothing came back for {SILENCE} s")));
            }
            if now.wrapping_sub(start) > end {
                interrupt::check()?;
                return Ok(self.clock.nanoseconds(now.wrapping_sub(start)) as f64 / 1e9);
            }
        }
    }
}

impl Lane {
    fn new(
        arena: &mut GuestArena,
        index: u16,
        shape: &Shape,
        features: u64,
    ) -> Result<Self, BenchError> {
        let no_room = || BenchError::Wrong("the load's memory is too small".to_owned());
        let queue = DriverQueue::new(arena, index, shape.ring_size(), features);
        let mut queue = queue.map_err(BenchError::system("make a ring"))?;
        queue.calls_off();
        let size = usize::from(shape.ring_size());
        let nothing =
            || Slot { sector: std::ptr::null_mut(), status: std::ptr::null_mut(), sent: 0 };
        let mut slots: Vec<_> = (0..size).map(|_| nothing()).collect();
        let mut heads = Vec::new();
        for _ in 0..shape.depth {
            let header = arena.allocate(64, 64).ok_or_else(no_room)?;
            let data = arena.allocate(shape.block.into(), 4096).ok_or_else(no_room)?;
            let place = |addr, len| arena.memory().get(addr, len).map(|bytes| bytes.as_ptr());
            let (at, status) = place(header, 64).zip(place(header + 16, 1)).ok_or_else(no_room)?;
            let buffers = [
                Buffer::readable(header, 16),
                Buffer { addr: data, len: shape.block, writable: !shape.write },
                Buffer::writable(header + 16, 1),
            ];
            let head = queue.prepare(&buffers).ok_or_else(no_room)?;
            let kind = u32::from(shape.write).to_le_bytes();
            if !arena.memory().get(header, 4).is_some_and(|bytes| bytes.write(0, &kind)) {
                return Err(no_room());
            }
            // SAFETY: 8 bytes into the 64 that `at` leads to.
            let sector = unsafe { at.add(8) };
            slots[usize::from(head)] =
                Slot { sector: sector.cast(), status: status.cast(), sent: 0 };
            heads.push(head);
        }
        Ok(Self { queue, slots, heads })
    }

    /// Sends the requests in `heads`, each for a random block, and notes when.
    #[inline]
    fn send(&mut self, random: &mut u64, blocks: u64, sectors: u64) {
        for head in &self.heads {
            *random ^= *random << 13;
            *random ^= *random >> 7;
            *random ^= *random << 17;
            // The high half of a product is a fair number below `blocks`, without a division.
            let block = ((u128::from(*random) * u128::from(blocks)) >> 64) as u64;
            let slot = &self.slots[usize::from(*head)];
            // SAFETY: the pointers lead into the arena, which lives as long as the load; the server only reads the one
            // and writes the other, and all accesses are atomic.
            unsafe {
                (*slot.sector).store((block * sectors).to_le(), Ordering::Relaxed);
                (*slot.status).store(0xff, Ordering::Relaxed);
            }
            self.queue.push(*head);
        }
        let now = clock::now();
        for head in self.heads.drain(..) {
            self.slots[usize::from(head)].sent = now;
        }
        self.queue.submit();
    }

    /// Takes what has come back and sends it again. Whether anything had.
    #[inline]
    fn turn(
        &mut self,
        latencies: &mut Histogram,
        random: &mut u64,
        blocks: u64,
        sectors: u64,
    ) -> Result<bool, BenchError> {
        let now = clock::now();
        let (mut wrong, heads, slots) = (None, &mut self.heads, &self.slots);
        let taken = self.queue.take_all(|Used { head, .. }| {
            let slot = &slots[usize::from(head)];
            // SAFETY: as in `send`.
            let status = unsafe { (*slot.status).load(Ordering::Relaxed) };
            if status != 0 {
                wrong = Some(status);
            }
            latencies.record(now.wrapping_sub(slot.sent));
            heads.push(head);
        });
        let taken = taken.map_err(|broken| BenchError::Wrong(broken.to_string()))?;
        if let Some(status) = wrong {
            return Err(BenchError::Wrong(format!("a request has status {status}")));
        }
        if taken == 0 {
            return Ok(false);
        }
        self.send(random, blocks, sectors);
        Ok(true)
    }
}
