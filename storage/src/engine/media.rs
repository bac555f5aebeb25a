//! The disk behind a device, as the workers see it: immutable, shared, counted.
//!
//! The driver makes a [`ServedDisk`] once a disk may be used (its writer lock is held) and sends it to the workers;
//! they keep it until the device is gone. Invariant: nothing here changes after that but atomics, each of which is
//! either written by one worker (counters) or says so (block locks).

use super::ranges::RangeLocks;
use crate::disk::id::SERIAL_LENGTH;
use crate::disk::layer::LayerFile;
use bixi_api::state::{Declared, Movable, Payload};
use bixi_api::storage::DiskStatistics;
use bixi_offload::ring::Segments;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

/// A disk in use.
#[derive(Debug)]
pub struct ServedDisk {
    /// Its size in bytes.
    pub size: u64,
    /// What `VIRTIO_BLK_T_GET_ID` answers.
    pub serial: [u8; SERIAL_LENGTH],
    /// Whether writes are refused.
    pub read_only: bool,
    /// Where its bytes are.
    pub media: Media,
    /// What was done, by queue.
    pub counters: Box<[Counters]>,
}

/// Where a disk's bytes are.
#[derive(Debug)]
pub enum Media {
    /// In a file.
    File(FileMedia),
    /// In this process, gone with it: for measurements of all but the file system.
    Memory(MemoryMedia),
    /// Nowhere: reads leave the guest's buffer as it is. For measurements of the path alone.
    Null,
}

/// A disk in a file.
#[derive(Debug)]
pub struct FileMedia {
    /// The file.
    pub layer: LayerFile,
    /// Blocks that are being changed.
    pub ranges: RangeLocks,
    /// The error number of the first flush that failed; 0 if none did.
    flush_fault: AtomicI32,
    #[cfg(test)]
    injected: AtomicI32,
}

impl FileMedia {
    /// A disk in this file, nothing of it being changed.
    pub fn new(layer: LayerFile) -> Self {
        Self {
            layer,
            ranges: RangeLocks::default(),
            flush_fault: AtomicI32::new(0),
            #[cfg(test)]
            injected: AtomicI32::new(0),
        }
    }

    /// A flush failed. The kernel says so once and forgets what it could not write: a later flush that succeeds would
    /// say that lost writes are safe. So this stays until the disk is attached anew.
    pub fn flush_failed(&self, error: i32) {
        let first =
            self.flush_fault.compare_exchange(0, error, Ordering::Relaxed, Ordering::Relaxed);
        if first.is_ok() {
            let error = std::io::Error::from_raw_os_error(error);
            tracing::error!(%error, "a flush failed: the disk takes no more writes or flushes");
        }
    }

    /// The error number of the first flush that failed, if one did.
    #[inline]
    pub fn flush_fault(&self) -> Option<i32> {
        match self.flush_fault.load(Ordering::Relaxed) {
            0 => None,
            error => Some(error),
        }
    }

    /// Makes the next flush or durable write fail with this error number.
    #[cfg(test)]
    pub fn inject(&self, error: i32) {
        self.injected.store(error, Ordering::Relaxed);
    }

    /// The result of a flush or durable write: what the kernel said, but in a test that injects an error.
    #[inline]
    pub(super) fn durable_result(&self, result: i32) -> i32 {
        #[cfg(test)]
        if let error @ 1.. = self.injected.swap(0, Ordering::Relaxed) {
            return -error;
        }
        result
    }
}

/// What was done on one queue. Written by the queue's worker alone, read by anybody; a cache line of its own, so that
/// workers do not disturb each other.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Counters {
    reads: AtomicU64,
    read_bytes: AtomicU64,
    writes: AtomicU64,
    write_bytes: AtomicU64,
    flushes: AtomicU64,
    discards: AtomicU64,
    errors: AtomicU64,
    limited: AtomicU64,
}

/// What one batch did, to be added to the counters at once.
#[derive(Debug, Default, Clone, Copy)]
pub struct Done {
    /// Reads.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Writes.
    pub writes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Flushes.
    pub flushes: u64,
    /// Discards and write-zeroes.
    pub discards: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Requests that had to wait for the disk's limits.
    pub limited: u64,
}

impl Counters {
    /// Adds what was done. Called by the queue's worker only.
    #[inline]
    pub fn add(&self, done: &Done) {
        // No other thread writes, so that a plain load and store lose nothing and cost less than an atomic addition.
        let add = |to: &AtomicU64, by: u64| {
            if by != 0 {
                to.store(to.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
            }
        };
        add(&self.reads, done.reads);
        add(&self.read_bytes, done.read_bytes);
        add(&self.writes, done.writes);
        add(&self.write_bytes, done.write_bytes);
        add(&self.flushes, done.flushes);
        add(&self.discards, done.discards);
        add(&self.errors, done.errors);
        add(&self.limited, done.limited);
    }
}

impl ServedDisk {
    /// A disk of no bytes, each request of which fails.
    pub fn nothing() -> Self {
        let (serial, media) = ([b'0'; SERIAL_LENGTH], Media::Null);
        Self { size: 0, serial, read_only: true, media, counters: Box::default() }
    }

    /// Why it takes no more writes, if it does not.
    pub fn fault(&self) -> Option<String> {
        let Media::File(media) = &self.media else { return None };
        let error = std::io::Error::from_raw_os_error(media.flush_fault()?);
        Some(format!(
            "a flush failed ({error}) and acknowledged writes may be lost: writes and flushes fail until the disk is \
             attached anew; check the medium and the disk's content first"
        ))
    }

    /// The counters of all queues together.
    pub fn statistics(&self) -> DiskStatistics {
        let sum = |of: fn(&Counters) -> &AtomicU64| {
            self.counters.iter().map(|queue| of(queue).load(Ordering::Relaxed)).sum()
        };
        DiskStatistics {
            reads: sum(|queue| &queue.reads),
            read_bytes: sum(|queue| &queue.read_bytes),
            writes: sum(|queue| &queue.writes),
            write_bytes: sum(|queue| &queue.write_bytes),
            flushes: sum(|queue| &queue.flushes),
            discards: sum(|queue| &queue.discards),
            errors: sum(|queue| &queue.errors),
            replayed: 0,
            limited: sum(|queue| &queue.limited),
        }
    }
}

/// The kind of the payload that counters travel as.
pub const COUNTERS_KIND: &str = "disk-counters";
/// The newest version of it that this release knows.
pub const COUNTERS_VERSION: u32 = 1;

/// A disk's counters as they travel: all queues together.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CountersState {
    /// Reads.
    #[prost(uint64, tag = "1")]
    pub reads: u64,
    /// Bytes read.
    #[prost(uint64, tag = "2")]
    pub read_bytes: u64,
    /// Writes.
    #[prost(uint64, tag = "3")]
    pub writes: u64,
    /// Bytes written.
    #[prost(uint64, tag = "4")]
    pub write_bytes: u64,
    /// Flushes.
    #[prost(uint64, tag = "5")]
    pub flushes: u64,
    /// Discards and write-zeroes.
    #[prost(uint64, tag = "6")]
    pub discards: u64,
    /// Requests answered with an error.
    #[prost(uint64, tag = "7")]
    pub errors: u64,
    /// Requests that waited because of the disk's limits.
    #[prost(uint64, tag = "8")]
    pub limited: u64,
}

impl Movable for ServedDisk {
    /// Of a disk in use only its counters travel: bytes stay where they are, and the rest is made anew. A disk in this
    /// process's memory is gone with it.
    fn declare(&self) -> Declared {
        if let Media::Memory(_) = self.media {
            return Declared::NotMovable("its bytes are in this process's memory".to_owned());
        }
        let now = self.statistics();
        let state = CountersState {
            reads: now.reads,
            read_bytes: now.read_bytes,
            writes: now.writes,
            write_bytes: now.write_bytes,
            flushes: now.flushes,
            discards: now.discards,
            errors: now.errors,
            limited: now.limited,
        };
        Declared::State(Payload::new(COUNTERS_KIND, COUNTERS_VERSION, &state))
    }
}

/// Counters for `queues` queues.
pub fn counters(queues: u16) -> Box<[Counters]> {
    (0..queues).map(|_| Counters::default()).collect()
}

/// A disk in this process's memory.
#[derive(Debug)]
pub struct MemoryMedia {
    start: NonNull<u8>,
    size: usize,
}

// SAFETY: plain memory, reached by raw copies only; two workers that write the same bytes at once leave a mix of both,
// as two writes of a guest at once to one block may.
unsafe impl Send for MemoryMedia {}
// SAFETY: as above.
unsafe impl Sync for MemoryMedia {}

impl MemoryMedia {
    /// A disk of `size` zero bytes.
    ///
    /// # Errors
    /// There is no such address space.
    pub fn new(size: u64) -> std::io::Result<Self> {
        use rustix::mm::{MapFlags, ProtFlags};
        let size = usize::try_from(size)
            .map_err(|_| std::io::Error::new(std::io::ErrorKind::InvalidInput, "too large"))?;
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let start = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                size,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        let start = NonNull::new(start.cast()).ok_or(rustix::io::Errno::NOMEM)?;
        Ok(Self { start, size })
    }

    /// The `length` bytes at `offset`, if they are there.
    #[inline]
    fn at(&self, offset: u64, length: usize) -> Option<*mut u8> {
        let offset = usize::try_from(offset).ok()?;
        if offset > self.size || length > self.size - offset {
            return None;
        }
        // SAFETY: inside the mapping.
        Some(unsafe { self.start.as_ptr().add(offset) })
    }

    /// Copies from `offset` on into guest bytes; false if not all of it is inside the disk.
    #[inline]
    pub fn read(&self, offset: u64, to: &Segments<'_>) -> bool {
        let Some(mut from) = self.at(offset, to.len()) else { return false };
        for piece in to.iter() {
            // SAFETY: the piece is mapped for its length, and the disk has as many bytes from `from` on.
            unsafe {
                std::ptr::copy_nonoverlapping(from, piece.as_ptr(), piece.len());
                from = from.add(piece.len());
            }
        }
        true
    }

    /// Copies guest bytes to `offset`; false if not all of it is inside the disk.
    #[inline]
    pub fn write(&self, offset: u64, from: &Segments<'_>) -> bool {
        let Some(mut to) = self.at(offset, from.len()) else { return false };
        for piece in from.iter() {
            // SAFETY: as in `read`.
            unsafe {
                std::ptr::copy_nonoverlapping(piece.as_ptr(), to, piece.len());
                to = to.add(piece.len());
            }
        }
        true
    }

    /// Sets bytes to zero; false if not all of them are inside the disk.
    pub fn zero(&self, offset: u64, length: u64) -> bool {
        let Ok(length) = usize::try_from(length) else { return false };
        let Some(to) = self.at(offset, length) else { return false };
        // SAFETY: inside the mapping.
        unsafe { std::ptr::write_bytes(to, 0, length) };
        true
    }
}

impl Drop for MemoryMedia {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this size; pointers into it do not outlive the calls that made them.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.size) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_all_queues_are_summed() {
        let media = Media::Null;
        let disk = ServedDisk {
            size: 512,
            serial: [0; 20],
            read_only: false,
            media,
            counters: counters(3),
        };
        let done = Done { reads: 2, read_bytes: 8192, errors: 1, ..Done::default() };
        disk.counters[0].add(&done);
        disk.counters[2].add(&done);
        let statistics = disk.statistics();
        assert_eq!((statistics.reads, statistics.read_bytes, statistics.errors), (4, 16384, 2));
        assert_eq!(statistics.writes, 0);
        let Declared::State(payload) = disk.declare() else { panic!("counters travel") };
        let state: CountersState = payload.read(COUNTERS_KIND, COUNTERS_VERSION).unwrap();
        assert_eq!((state.reads, state.errors), (4, 2));
    }

    #[test]
    fn memory_ends_where_it_ends() {
        let memory = MemoryMedia::new(8192).unwrap();
        assert!(memory.zero(0, 8192) && memory.zero(8192, 0));
        assert!(!memory.zero(1, 8192) && !memory.zero(u64::MAX, 1) && !memory.zero(8193, 0));
    }
}
