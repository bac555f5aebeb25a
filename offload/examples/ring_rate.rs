//! How fast the device's side of a ring is: packets or requests per second and core.
//!
//! `ring_rate xconnect [SECONDS [alone]]` moves 64-byte packets from one queue to another; `ring_rate null [SECONDS]` answers
//! 4 KiB reads of a disk without data, with the in-flight record; `null-norecord` without. The driver's side runs on
//! processor 1, the device's on processor 0, both without notifications. On a machine that does other things too, only
//! the time of full batches says something.

#![allow(clippy::print_stdout)]

use bixi_offload::memory::{GuestMemory, MappingOptions, PageSize, RegionDescriptor, SharedMemory};
use bixi_offload::ring::{Batch, InflightMap, Notifiers, QueueLayout, QueueSetup, SplitQueue};
use bixi_offload::sigbus::Watch;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::{Duration, Instant};

const SIZE: u16 = 256;
const BATCH: usize = 32;
const RING: u64 = 0x10000;
const HEADER: u32 = 12;
const PACKET: u32 = 64;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// One queue of the driver.
struct Side {
    memory: Arc<GuestMemory>,
    base: u64,
    available: u16,
    used: u16,
}

impl Side {
    fn new(memory: &Arc<GuestMemory>, base: u64) -> Self {
        Self { memory: Arc::clone(memory), base, available: 0, used: 0 }
    }

    fn layout(&self) -> QueueLayout {
        QueueLayout {
            size: SIZE,
            descriptors: self.base,
            available: self.base + 0x4000,
            used: self.base + 0x8000,
        }
    }

    fn setup(&self, inflight: Option<bixi_offload::ring::InflightQueue>) -> QueueSetup {
        QueueSetup {
            layout: self.layout(),
            features: 0,
            base: 0,
            notifiers: Notifiers::default(),
            inflight,
            log: None,
        }
    }

    fn at(&self, addr: u64) -> *mut u8 {
        self.memory.get(addr, 16).map_or(std::ptr::null_mut(), |bytes| bytes.as_ptr())
    }

    fn idx(&self, area: u64) -> &AtomicU16 {
        // SAFETY: inside the memory, which `self` holds, and aligned.
        unsafe { AtomicU16::from_ptr(self.at(area + 2).cast()) }
    }

    fn descriptor(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        // SAFETY: inside the memory; the device does not run yet.
        unsafe {
            let at = self.at(self.base + 16 * u64::from(index));
            at.cast::<u64>().write(addr);
            at.cast::<u32>().add(2).write(len);
            at.cast::<u16>().add(6).write(flags);
            at.cast::<u16>().add(7).write(next);
        }
    }

    /// Entry `index` of the available ring names `head`.
    fn entry(&self, index: u16, head: u16) {
        // SAFETY: inside the memory; the device does not run yet.
        unsafe { self.at(self.base + 0x4004 + 2 * u64::from(index)).cast::<u16>().write(head) };
    }

    fn publish(&mut self, n: u16) {
        self.available = self.available.wrapping_add(n);
        self.idx(self.base + 0x4000).store(self.available, Ordering::Release);
    }

    /// How many more the device has used.
    fn reap(&mut self) -> u16 {
        let idx = self.idx(self.base + 0x8000).load(Ordering::Acquire);
        let n = idx.wrapping_sub(self.used);
        self.used = idx;
        n
    }

    fn buffer(&self, index: u16) -> u64 {
        self.base + 0x10_0000 + 2304 * u64::from(index)
    }
}

fn pin(core: usize) -> Result<(), Failure> {
    let mut set = rustix::thread::CpuSet::new();
    set.set(core);
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}

fn memory() -> Result<Arc<GuestMemory>, Failure> {
    let size = 64 << 20;
    let file = SharedMemory::new("ring-rate", size, PageSize::Normal)?;
    let options = MappingOptions { require_sealed: true, watch: Watch::new() };
    let region = RegionDescriptor { guest_addr: 0, size, user_addr: 0, mmap_offset: 0 };
    Ok(GuestMemory::map(&[(region, file.as_fd())], &options)?)
}

/// Whether driver and device take turns on one processor: then nothing else disturbs, and no line moves between two.
static ALONE: AtomicBool = AtomicBool::new(false);

/// Runs `device` for as long as `seconds`, beside `driver`. `device` returns how much it did in one turn.
fn measure(
    what: &str,
    seconds: u64,
    mut device: impl FnMut() -> Result<usize, Failure> + Send,
    mut driver: impl FnMut() + Send,
) -> Result<(), Failure> {
    let end = AtomicBool::new(false);
    let alone = ALONE.load(Ordering::Relaxed);
    std::thread::scope(|scope| {
        pin(0)?;
        let mut turn = || {
            let before = Instant::now();
            device().map(|n| (n, before.elapsed().as_nanos() as u32))
        };
        if alone {
            return report(what, seconds, || {
                driver();
                turn()
            });
        }
        scope.spawn(|| {
            let _ = pin(1);
            while !end.load(Ordering::Relaxed) {
                driver();
            }
        });
        let reported = report(what, seconds, turn);
        end.store(true, Ordering::Relaxed);
        reported
    })
}

/// Prints how much was done a second, and how long full batches took.
fn report(
    what: &str,
    seconds: u64,
    mut turn: impl FnMut() -> Result<(usize, u32), Failure>,
) -> Result<(), Failure> {
    let (mut busy, mut rates) = (Vec::new(), Vec::new());
    for _ in 0..seconds {
        let start = Instant::now();
        let mut done = 0;
        while start.elapsed() < Duration::from_secs(1) {
            for _ in 0..1000 {
                let (n, nanoseconds) = turn()?;
                done += n;
                if n == BATCH {
                    busy.push(nanoseconds);
                }
            }
        }
        rates.push(done as f64 / start.elapsed().as_secs_f64() / 1e6);
    }
    rates.sort_by(f64::total_cmp);
    busy.sort_unstable();
    let each = |part: usize| {
        let nanoseconds = busy.get(busy.len() * part / 100).copied().unwrap_or(0);
        f64::from(nanoseconds) / BATCH as f64
    };
    println!(
        "{what}: median {:.2} M/s; full batches, ns each: p25 {:.1}, p50 {:.1}, p75 {:.1} ({:.1} M/s)",
        rates[rates.len() / 2],
        each(25),
        each(50),
        each(75),
        1e3 / each(50)
    );
    Ok(())
}

fn xconnect(seconds: u64) -> Result<(), Failure> {
    let memory = memory()?;
    let (mut transmit, mut receive) = (Side::new(&memory, RING), Side::new(&memory, 32 << 20));
    for i in 0..SIZE {
        transmit.descriptor(i, transmit.buffer(i), HEADER + PACKET, 0, 0);
        receive.descriptor(i, receive.buffer(i), 1536, 2, 0);
        transmit.entry(i, i);
        receive.entry(i, i);
    }
    let mut from = SplitQueue::new(Arc::clone(&memory), transmit.setup(None))?;
    let mut to = SplitQueue::new(Arc::clone(&memory), receive.setup(None))?;
    transmit.publish(SIZE);
    receive.publish(SIZE);
    let (mut out, mut room) = (Batch::new(BATCH), Batch::new(BATCH));
    let device = || {
        let n = from.take(BATCH, &mut out)?;
        if n == 0 {
            return Ok(0);
        }
        let m = to.take(n, &mut room)?;
        for (packet, space) in out.chains(&memory).zip(room.chains(&memory)) {
            let written = space.writable().copy_from(&packet.readable());
            to.complete(space.head(), written as u32);
        }
        for packet in out.chains(&memory).take(m) {
            from.complete(packet.head(), 0);
        }
        from.give_back(&mut out, n - m);
        if to.publish() {
            to.signal();
        }
        if from.publish() {
            from.signal();
        }
        Ok(m)
    };
    let (mut next, mut seen) = (0u16, 0u16);
    let driver = || {
        let n = transmit.reap();
        for _ in 0..n {
            // What a guest does at least: it writes the frame's addresses.
            // SAFETY: a buffer that the device has given back.
            unsafe { transmit.at(transmit.buffer(next % SIZE)).cast::<[u64; 2]>().write([1, 2]) };
            next = next.wrapping_add(1);
        }
        if n > 0 {
            transmit.publish(n);
        }
        let n = receive.reap();
        for _ in 0..n {
            // SAFETY: as above.
            std::hint::black_box(unsafe { *receive.at(receive.buffer(seen % SIZE)).cast::<u64>() });
            seen = seen.wrapping_add(1);
        }
        if n > 0 {
            receive.publish(n);
        }
        std::hint::spin_loop();
    };
    measure("xconnect-64", seconds, device, driver)
}

fn null(seconds: u64, record: bool, depth: u16) -> Result<(), Failure> {
    let memory = memory()?;
    let mut side = Side::new(&memory, RING);
    for i in 0..depth {
        let (head, buffer) = (3 * i, side.buffer(i));
        side.descriptor(head, buffer, 16, 1, head + 1);
        side.descriptor(head + 1, buffer + (16 << 20), 4096, 3, head + 2);
        side.descriptor(head + 2, buffer + 64, 1, 2, 0);
    }
    for i in 0..SIZE {
        side.entry(i, 3 * (i % depth));
    }
    let options = MappingOptions { require_sealed: true, watch: Watch::new() };
    let (fd, bytes) = InflightMap::create(1, SIZE)?;
    let map = InflightMap::map(fd.as_fd(), 0, bytes, 1, SIZE, &options)?;
    let inflight = if record { map.queue(0) } else { None };
    let mut queue = SplitQueue::new(Arc::clone(&memory), side.setup(inflight))?;
    side.publish(depth);
    let mut batch = Batch::new(BATCH);
    let device = || {
        let n = queue.take(BATCH, &mut batch)?;
        for chain in batch.chains(&memory) {
            let header = chain.readable().read_array::<16>();
            let room = chain.writable();
            let written = match (header, room.split_at(room.len().saturating_sub(1))) {
                (Some(header), Some((data, status))) if header[0] == 0 => {
                    status.write(&[0]);
                    data.len() + 1
                }
                _ => 0,
            };
            queue.complete(chain.head(), written as u32);
        }
        if queue.publish() {
            queue.signal();
        }
        Ok(n)
    };
    let mut next = 0;
    let driver = || {
        let n = side.reap();
        for _ in 0..n {
            // What a guest does at least: it looks at the status and writes the next request.
            let buffer = side.buffer(next % depth);
            // SAFETY: a request that the device has answered.
            unsafe {
                std::hint::black_box(*side.at(buffer + 64));
                side.at(buffer).cast::<[u64; 2]>().write([0, next.into()]);
            }
            next = (next + 1) % depth;
        }
        if n > 0 {
            side.publish(n);
        }
        std::hint::spin_loop();
    };
    let what = if record { "null-randread-4k" } else { "null-norecord-randread-4k" };
    measure(&format!("{what}-qd{depth}"), seconds, device, driver)
}

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let what = arguments.next().unwrap_or_else(|| "xconnect".to_owned());
    let seconds = arguments.next().and_then(|s| s.parse().ok()).unwrap_or(5);
    ALONE.store(arguments.next().is_some_and(|word| word == "alone"), Ordering::Relaxed);
    match what.as_str() {
        "null" => null(seconds, true, 32),
        "null-norecord" => null(seconds, false, 32),
        _ => xconnect(seconds),
    }
}
