//! The load on a switch: two front ends in one thread, of which one sends and the other receives.
//!
//! Buffers are made once. To send a frame again is one store into the available ring, to post a receive buffer again too; so per
//! packet the generator does less than the switch, which also copies. It says how often it found nothing to do
//! ([`Measured::idle`]): where that is rare, the generator is what was measured.

use super::frame::{End, udp};
use crate::load::clock::{self, Clock};
use crate::setup::interrupt;
use crate::{BenchError, Effort};
use bixi_offload::frontend::{
    Backing, Buffer, Client, DriverQueue, FrontConfig, GuestArena, Target,
};
use bixi_offload::memory::PageSize;
use bixi_offload::ring::FEATURE_VERSION_1;
use std::time::{Duration, Instant};

/// Entries of each ring.
const RING: u16 = 1024;
/// Frames that are on their way at most.
const WINDOW: u16 = 512;
/// The virtio-net header of a modern device.
const HEADER: usize = 12;
/// Bytes of a buffer.
const BUFFER: u32 = 2048;
/// Bytes from one buffer to the next: an odd number of cache lines, so that the buffers' beginnings, which are all that a small frame
/// touches, spread over all sets of a cache, as those of real drivers do.
const STRIDE: u32 = BUFFER + 64;
/// How long anything but the load itself may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// A switch that forwards nothing for so many seconds has stopped.
const SILENCE: f64 = 5.0;

/// Huge pages the two front ends need.
pub const PAGES: u64 = 2 * ARENA_PAGES;
const ARENA_PAGES: u64 = 4;

/// One front end with its two rings.
#[derive(Debug)]
struct Port {
    /// Keeps the connection.
    _client: Client,
    receive: DriverQueue,
    send: DriverQueue,
    arena: GuestArena,
    /// Guest addresses of the receive buffers, by head.
    buffers: Vec<u64>,
}

/// What a run gave.
#[derive(Debug, Clone, Copy)]
pub struct Measured {
    /// Packets received a second.
    pub rate: f64,
    /// Packets that the switch took and did not deliver, as a share of those it took.
    pub lost: f64,
    /// Turns in which the generator waited for the switch, as a share of all.
    pub idle: f64,
}

/// Two front ends at one switch.
#[derive(Debug)]
pub struct Traffic {
    from: Port,
    to: Port,
    clock: Clock,
    heads: Vec<u16>,
    frame: Vec<u8>,
}

impl Port {
    fn connect(target: Target) -> Result<Self, BenchError> {
        let backing = Backing::Sealed(PageSize::Huge2M);
        let mut arena = GuestArena::new(0, ARENA_PAGES << 21, backing)?;
        // Old back ends know no configuration space of a NIC; none is needed.
        let config = FrontConfig {
            features: FEATURE_VERSION_1,
            rings: 2,
            in_order: true,
            ..FrontConfig::default()
        };
        let mut client = Client::with_target(config, target, &arena);
        let features = client.probe(PATIENCE)?.features;
        let mut ring = |index| {
            let mut queue = DriverQueue::new(&mut arena, index, RING, features)
                .map_err(BenchError::system("make a ring"))?;
            queue.calls_off();
            Ok::<_, BenchError>(queue)
        };
        let (receive, send) = (ring(0)?, ring(1)?);
        client.activate(features, &[&receive, &send], PATIENCE)?;
        Ok(Self { _client: client, receive, send, arena, buffers: vec![0; usize::from(RING)] })
    }

    fn allocate(&mut self, len: u32) -> Result<u64, BenchError> {
        let room = self.arena.allocate(u64::from(len), 64);
        room.ok_or_else(|| BenchError::Wrong("the load's memory is too small".to_owned()))
    }

    /// Posts all receive buffers.
    fn post(&mut self) -> Result<(), BenchError> {
        for _ in 0..RING {
            let addr = self.allocate(STRIDE)?;
            let head = self.receive.prepare(&[Buffer::writable(addr, BUFFER)]);
            let head = head.ok_or_else(|| BenchError::Wrong("no descriptor".to_owned()))?;
            self.buffers[usize::from(head)] = addr;
            self.receive.push(head);
        }
        self.receive.submit();
        Ok(())
    }

    /// Prepares the frames to send; gives their heads.
    fn load(&mut self, frame: &[u8]) -> Result<Vec<u16>, BenchError> {
        let mut bytes = vec![0; HEADER];
        bytes.extend_from_slice(frame);
        let mut heads = Vec::with_capacity(usize::from(RING));
        for _ in 0..WINDOW {
            let addr = self.allocate(STRIDE)?;
            let room = self.arena.memory().get(addr, u64::from(BUFFER));
            let written = room.is_some_and(|room| room.write(0, &bytes));
            let head = self.send.prepare(&[Buffer::readable(addr, bytes.len() as u32)]);
            let head = head.filter(|_| written);
            heads.push(head.ok_or_else(|| BenchError::Wrong("no descriptor".to_owned()))?);
        }
        Ok(heads)
    }
}

impl Traffic {
    /// Connects both front ends; the first sends frames of `len` bytes from the end `from` to the end `to`.
    ///
    /// # Errors
    /// The switch does not answer, or offers too little.
    pub fn connect(
        targets: [Target; 2],
        from: &End,
        to: &End,
        len: usize,
    ) -> Result<Self, BenchError> {
        let [one, other] = targets;
        let (mut from_port, mut to_port) = (Port::connect(one)?, Port::connect(other)?);
        to_port.post()?;
        from_port.post()?;
        let frame = udp(from, to, len);
        let heads = from_port.load(&frame)?;
        Ok(Self { from: from_port, to: to_port, clock: Clock::new(), heads, frame })
    }

    /// Sends single frames until one arrives as it was sent: the path stands.
    ///
    /// # Errors
    /// None arrives.
    pub fn await_path(&mut self) -> Result<(), BenchError> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            interrupt::check()?;
            let Some(head) = self.heads.pop() else { break };
            self.from.send.push(head);
            self.from.send.submit();
            let until = Instant::now() + Duration::from_millis(50);
            let mut arrived = false;
            while Instant::now() < until && !(arrived && self.heads.contains(&head)) {
                let heads = &mut self.heads;
                taken(self.from.send.take_all(|used| heads.push(used.head)))?;
                arrived |= self.receive_one()?;
            }
            if arrived && self.heads.contains(&head) {
                return Ok(());
            }
        }
        Err(BenchError::Silent("no frame has passed the switch".to_owned()))
    }

    /// Takes a received frame, if there is one, and compares it.
    fn receive_one(&mut self) -> Result<bool, BenchError> {
        let Some(used) =
            self.to.receive.take().map_err(|broken| BenchError::Wrong(broken.to_string()))?
        else {
            return Ok(false);
        };
        let len = used.len as usize;
        let addr = self.to.buffers[usize::from(used.head)];
        let mut got = vec![0; len.saturating_sub(HEADER)];
        let bytes = self.to.arena.memory().get(addr, u64::from(BUFFER));
        let read = bytes.is_some_and(|bytes| bytes.read(HEADER, &mut got));
        self.to.receive.push(used.head);
        self.to.receive.submit();
        // A switch may say something of its own first (LLDP, ARP).
        Ok(read && got == self.frame)
    }

    /// Loads the switch; figures are taken after the warm-up, `begin` is called when that is over.
    ///
    /// # Errors
    /// A wrong answer, or none.
    pub fn run(&mut self, effort: &Effort, begin: impl FnOnce()) -> Result<Measured, BenchError> {
        for head in self.heads.drain(..) {
            self.from.send.push(head);
        }
        self.from.send.submit();
        self.drive(effort.warm_up)?;
        begin();
        self.drive(effort.measured)
    }

    fn drive(&mut self, seconds: f64) -> Result<Measured, BenchError> {
        let start = clock::now();
        let (end, silence) = (self.clock.ticks(seconds), self.clock.ticks(SILENCE));
        let (mut sent, mut received, mut idle, mut turns) = (0u64, 0u64, 0u64, 0u64);
        let mut last = start;
        loop {
            let arrived = renew(&mut self.to.receive, &mut self.heads)?;
            let gone = renew(&mut self.from.send, &mut self.heads)?;
            received += arrived as u64;
            sent += gone as u64;
            idle += u64::from(gone + arrived == 0);
            turns += 1;
            if !turns.is_multiple_of(64) {
                continue;
            }
            let now = clock::now();
            if arrived > 0 {
                last = now;
            } else if now.wrapping_sub(last) > silence {
                return Err(BenchError::Silent(format!("nothing arrived for {SILENCE} s")));
            }
            let elapsed = now.wrapping_sub(start);
            if elapsed > end {
                interrupt::check()?;
                let seconds = self.clock.nanoseconds(elapsed) as f64 / 1e9;
                return Ok(Measured {
                    rate: received as f64 / seconds,
                    lost: sent.saturating_sub(received) as f64 / sent.max(1) as f64,
                    idle: idle as f64 / turns as f64,
                });
            }
        }
    }
}

/// Puts what has been used back into the ring; how much it was.
#[inline]
fn renew(queue: &mut DriverQueue, heads: &mut Vec<u16>) -> Result<usize, BenchError> {
    let count = taken(queue.take_all(|used| heads.push(used.head)))?;
    if count > 0 {
        for head in heads.drain(..) {
            queue.push(head);
        }
        queue.submit();
    }
    Ok(count)
}

fn taken(result: Result<usize, bixi_offload::frontend::BrokenDevice>) -> Result<usize, BenchError> {
    result.map_err(|broken| BenchError::Wrong(broken.to_string()))
}
