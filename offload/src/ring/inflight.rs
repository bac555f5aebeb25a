//! The in-flight record: which heads a process has taken and not yet published, in memory that outlives it
//! (vhost-user, "Inflight I/O tracking", split virtqueue).
//!
//! ```text
//! queue i at i * queue_bytes(size):
//!   0  u64 features | 8 u16 version | 10 u16 desc_num | 12 u16 last_batch_head | 14 u16 used_idx
//!   16 + 16 * head:  0 u8 inflight | 6 u16 next | 8 u64 counter
//! ```
//!
//! Invariants: the front end holds the same memory and may write any byte of it, so nothing here is used as an index
//! before it is compared, and following a list is bounded by the queue's size. Stores are in program order, each
//! atomic: a process that dies between any two leaves one of the states that recovery knows.
//!
//! Callers: [`super::SplitQueue`]; the card's runtime makes and maps the record.

use super::{MAX_QUEUE_SIZE, RingError};
use crate::memory::{Mapping, MappingOptions, MemoryError, PageSize, SharedMemory};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

/// The layout's version.
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 16;
const ENTRY_BYTES: usize = 16;

const VERSION_AT: usize = 8;
const DESC_NUM_AT: usize = 10;
const LAST_BATCH_HEAD_AT: usize = 12;
const USED_IDX_AT: usize = 14;

const INFLIGHT_AT: usize = 0;
const NEXT_AT: usize = 6;
const COUNTER_AT: usize = 8;

/// The mapped record of all queues of one device.
#[derive(Debug)]
pub struct InflightMap {
    map: Mapping,
    queues: u16,
    size: u16,
}

impl InflightMap {
    /// Bytes of the record of one queue of `size` descriptors, padded to 64.
    pub fn queue_bytes(size: u16) -> u64 {
        ((HEADER_BYTES + usize::from(size) * ENTRY_BYTES) as u64).next_multiple_of(64)
    }

    /// Makes a fresh record, all zeroes, for `queues` queues of `size` descriptors: a sealed memfd and its size.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn create(queues: u16, size: u16) -> Result<(OwnedFd, u64), MemoryError> {
        let bytes = u64::from(queues.max(1)) * Self::queue_bytes(size);
        let file = bytes.next_multiple_of(PageSize::Normal.bytes());
        let memory = SharedMemory::new("vhost-inflight", file, PageSize::Normal)?;
        Ok((memory.into_fd(), bytes))
    }

    /// Maps the record that came with SET_INFLIGHT_FD.
    ///
    /// # Errors
    /// A record too small for its queues, or one that cannot be mapped.
    pub fn map(
        fd: BorrowedFd<'_>,
        offset: u64,
        bytes: u64,
        queues: u16,
        size: u16,
        options: &MappingOptions,
    ) -> Result<Arc<Self>, MemoryError> {
        let needed = u64::from(queues) * Self::queue_bytes(size);
        if size > MAX_QUEUE_SIZE || bytes < needed || !offset.is_multiple_of(8) {
            return Err(MemoryError::Short { file: bytes, end: needed });
        }
        let map = Mapping::new(fd, offset, needed, options)?;
        Ok(Arc::new(Self { map, queues, size }))
    }

    /// The record of queue `index`, if the map has it.
    pub fn queue(self: &Arc<Self>, index: u16) -> Option<InflightQueue> {
        if index >= self.queues {
            return None;
        }
        let offset = usize::from(index) * Self::queue_bytes(self.size) as usize;
        // SAFETY: `map` checked that all queues fit into the mapping.
        let start = unsafe { self.map.as_ptr().add(offset) };
        Some(InflightQueue { start, size: self.size, next_counter: 0, map: Arc::clone(self) })
    }
}

/// The record of one queue.
#[derive(Debug, Clone)]
pub struct InflightQueue {
    start: *mut u8,
    /// Entries of the record.
    size: u16,
    next_counter: u64,
    /// Keeps `start` mapped.
    #[allow(dead_code)] // held for its lifetime alone
    map: Arc<InflightMap>,
}

// SAFETY: `start` points into `map`, shared memory that any thread may use.
unsafe impl Send for InflightQueue {}

impl InflightQueue {
    /// Entries of the record.
    pub fn size(&self) -> u16 {
        self.size
    }

    #[inline(always)]
    fn word(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: offsets are inside the header or an entry of this queue, and even; the record is aligned to 8.
        unsafe { AtomicU16::from_ptr(self.start.add(offset).cast()) }
    }

    #[inline(always)]
    fn entry(&self, head: u16) -> usize {
        debug_assert!(head < self.size);
        HEADER_BYTES + usize::from(head) * ENTRY_BYTES
    }

    #[inline(always)]
    fn flag(&self, head: u16) -> &AtomicU8 {
        // SAFETY: callers compare `head` with the queue's size, which `attach` compared with the record's.
        unsafe { AtomicU8::from_ptr(self.start.add(self.entry(head) + INFLIGHT_AT)) }
    }

    #[inline(always)]
    fn counter(&self, head: u16) -> &AtomicU64 {
        // SAFETY: as in `flag`; entries and counters are aligned to 8.
        unsafe { AtomicU64::from_ptr(self.start.add(self.entry(head) + COUNTER_AT).cast()) }
    }

    /// Whether no process has used the record yet.
    pub(super) fn is_fresh(&self) -> bool {
        self.word(VERSION_AT).load(Ordering::Acquire) == 0
    }

    /// Begins to use the record for a queue of `queue_size` whose ring says `used_idx`. Returns the heads that the
    /// process before had in flight, oldest first.
    pub(super) fn attach(&mut self, queue_size: u16, used_idx: u16) -> Result<Vec<u16>, RingError> {
        if queue_size > self.size {
            return Err(RingError::Record { record: self.size, size: queue_size });
        }
        match self.word(VERSION_AT).load(Ordering::Acquire) {
            0 => {
                self.initialize(used_idx);
                Ok(Vec::new())
            }
            VERSION => Ok(self.recover(queue_size, used_idx)),
            other => Err(RingError::RecordVersion(other)),
        }
    }

    /// A record that nobody has used. The ring may have been used all the same (before a migration, for example), so
    /// used_idx is the ring's and not 0: else the first recovery would clear a request that was never answered.
    fn initialize(&self, used_idx: u16) {
        for head in 0..self.size {
            self.flag(head).store(0, Ordering::Relaxed);
        }
        self.word(DESC_NUM_AT).store(self.size, Ordering::Relaxed);
        self.word(LAST_BATCH_HEAD_AT).store(0, Ordering::Relaxed);
        self.word(USED_IDX_AT).store(used_idx, Ordering::Relaxed);
        self.word(VERSION_AT).store(VERSION, Ordering::Release);
    }

    fn recover(&mut self, queue_size: u16, used_idx: u16) -> Vec<u16> {
        // The last batch was published and perhaps not cleared: its heads were answered.
        let batch = used_idx.wrapping_sub(self.word(USED_IDX_AT).load(Ordering::Relaxed));
        let mut head = self.word(LAST_BATCH_HEAD_AT).load(Ordering::Relaxed);
        for _ in 0..batch.min(queue_size) {
            if head >= queue_size {
                break;
            }
            self.flag(head).store(0, Ordering::Relaxed);
            head = self.word(self.entry(head) + NEXT_AT).load(Ordering::Relaxed);
        }
        self.word(USED_IDX_AT).store(used_idx, Ordering::Release);

        let mut found: Vec<(u64, u16)> = (0..queue_size)
            .filter(|head| self.flag(*head).load(Ordering::Relaxed) == 1)
            .map(|head| (self.counter(head).load(Ordering::Relaxed), head))
            .collect();
        found.sort_unstable();
        self.next_counter = found.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        found.into_iter().map(|(_, head)| head).collect()
    }

    /// A head was taken.
    #[inline(always)]
    pub(super) fn take(&mut self, head: u16) {
        self.counter(head).store(self.next_counter, Ordering::Relaxed);
        self.next_counter = self.next_counter.wrapping_add(1);
        self.flag(head).store(1, Ordering::Release);
    }

    /// A head's used element was written: it belongs to the batch that is published next.
    #[inline(always)]
    pub(super) fn complete(&mut self, head: u16) {
        let last = self.word(LAST_BATCH_HEAD_AT);
        let next = last.load(Ordering::Relaxed);
        self.word(self.entry(head) + NEXT_AT).store(next, Ordering::Relaxed);
        last.store(head, Ordering::Release);
    }

    /// A head is answered, or was given back.
    #[inline(always)]
    pub(super) fn clear(&self, head: u16) {
        self.flag(head).store(0, Ordering::Release);
    }

    /// The batch up to `used_idx` is published and its heads are cleared.
    #[inline(always)]
    pub(super) fn finish(&self, used_idx: u16) {
        self.word(USED_IDX_AT).store(used_idx, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::{Buffer, Device, Driver, Plan, record};
    use super::super::{FEATURE_INDIRECT, QueueSetup};
    use super::*;
    use crate::sigbus::Watch;
    use std::os::fd::AsFd;

    fn plan() -> Plan {
        let buffers = vec![Buffer { len: 16, write: false }, Buffer { len: 16, write: true }];
        Plan { buffers, indirect: true, direct: 0 }
    }

    /// The record of queue 0 as plain bytes, read by offsets of the C structures in the specification and by the
    /// rules of libvhost-user, without any code above.
    struct Foreign(Vec<u8>);

    impl Foreign {
        fn of(map: &InflightMap) -> Self {
            let at = map.map.as_ptr();
            // SAFETY: the mapping lives, and nobody writes meanwhile.
            Self((0..map.map.len()).map(|i| unsafe { at.add(i).read_volatile() }).collect())
        }
        fn u16(&self, at: usize) -> u16 {
            u16::from_le_bytes([self.0[at], self.0[at + 1]])
        }
        fn u64(&self, at: usize) -> u64 {
            u64::from_le_bytes(self.0[at..at + 8].try_into().unwrap())
        }
        /// vu_check_queue_inflights: what it would resubmit, in order.
        fn resubmit(&mut self, used_idx: u16) -> Vec<u16> {
            assert_eq!(self.u16(8), 1, "version");
            let desc_num = self.u16(10);
            if self.u16(14) != used_idx {
                let last = usize::from(self.u16(12));
                self.0[16 + 16 * last] = 0;
            }
            let mut list: Vec<(u64, u16)> = (0..desc_num)
                .filter(|i| self.0[16 + 16 * usize::from(*i)] == 1)
                .map(|i| (self.u64(16 + 16 * usize::from(i) + 8), i))
                .collect();
            list.sort_unstable();
            list.into_iter().map(|(_, head)| head).collect()
        }
    }

    #[test]
    fn sizes_are_those_that_other_back_ends_answer() {
        // SPDK's answer for one queue of 128 descriptors.
        assert_eq!(InflightMap::queue_bytes(128), 2112);
        assert_eq!(InflightMap::queue_bytes(1), 64);
        assert_eq!(InflightMap::queue_bytes(3), 64);
        assert_eq!(InflightMap::queue_bytes(4), 128);
    }

    #[test]
    fn every_byte_is_where_the_specification_has_it() {
        let mut driver = Driver::new(4, FEATURE_INDIRECT, 500);
        let map = record(1, 4);
        let setup = QueueSetup { inflight: map.queue(0), ..driver.setup(500) };
        let mut device = Device::new(&driver, setup);
        for _ in 0..3 {
            driver.add(&plan()).unwrap();
        }
        device.take(&driver, 8);
        device.complete(2);
        device.complete(0);
        let mut expected = vec![0u8; 128];
        expected[8] = 1; // version
        expected[10] = 4; // desc_num
        expected[12..16].copy_from_slice(&[0, 0, 0xf4, 0x01]); // last_batch_head 0, used_idx 500
        for (head, next, counter) in [(0, 2, 0), (1, 0, 1), (2, 0, 2)] {
            let at = 16 + 16 * head;
            expected[at] = 1;
            expected[at + 6] = next;
            expected[at + 8] = counter;
        }
        assert_eq!(Foreign::of(&map).0, expected);
        let _ = device.queue.publish();
        expected[14..16].copy_from_slice(&[0xf6, 0x01]); // used_idx 502
        expected[16] = 0;
        expected[16 + 32] = 0;
        assert_eq!(Foreign::of(&map).0, expected);
        assert_eq!(driver.reap(), [3, 1]);
    }

    #[test]
    fn libvhost_user_would_resubmit_the_same_in_the_same_order() {
        let mut driver = Driver::new(8, FEATURE_INDIRECT, 65533);
        let map = record(1, 8);
        let setup = |driver: &Driver| QueueSetup { inflight: map.queue(0), ..driver.setup(65533) };
        let mut device = Device::new(&driver, setup(&driver));
        for _ in 0..8 {
            driver.add(&plan()).unwrap();
        }
        device.take(&driver, 8);
        for which in [5, 0] {
            device.complete(which);
            let _ = device.queue.publish();
        }
        driver.reap();
        for _ in 0..2 {
            driver.add(&plan()).unwrap();
        }
        device.take(&driver, 1);
        // One is completed and not published: it is still in flight.
        device.complete(3);
        let foreign = Foreign::of(&map).resubmit(65533u16.wrapping_add(2));
        let mut next = Device::new(&driver, setup(&driver));
        assert_eq!(next.queue.recovered(), 7);
        let ids = next.take(&driver, 4);
        assert!(next.batch.is_recovered());
        assert_eq!(ids, [2, 3, 4, 5]);
        // Given back, they come again.
        next.queue.give_back(&mut next.batch, 3);
        next.pending.truncate(1);
        assert_eq!(next.take(&driver, 8), [3, 4, 5, 7, 8, 9]);
        let heads: Vec<u16> = next.pending.iter().map(|p| p.0).collect();
        assert_eq!(heads, foreign);
        // Only then something new.
        assert_eq!(next.take(&driver, 8), [10]);
        next.complete_all();
        let _ = next.queue.publish();
        assert_eq!(driver.reap(), [2, 3, 4, 5, 7, 8, 9, 10]);
    }

    #[test]
    fn a_fresh_record_on_a_used_ring_loses_nothing_at_the_first_crash() {
        let mut driver = Driver::new(8, FEATURE_INDIRECT, 500);
        let map = record(1, 8);
        let setup = |driver: &Driver| QueueSetup { inflight: map.queue(0), ..driver.setup(500) };
        let mut device = Device::new(&driver, setup(&driver));
        driver.add(&plan()).unwrap();
        driver.add(&plan()).unwrap();
        assert_eq!(device.take(&driver, 8), [1, 2]);
        let mut device = Device::new(&driver, setup(&driver));
        assert_eq!(device.take(&driver, 8), [1, 2]);
        device.complete_all();
        let _ = device.queue.publish();
        assert_eq!(driver.reap(), [1, 2]);
    }

    #[test]
    fn a_record_that_does_not_fit_or_is_too_new_is_refused() {
        let driver = Driver::new(8, 0, 0);
        let attach = |map: &Arc<InflightMap>| {
            let setup = QueueSetup { inflight: map.queue(0), ..driver.setup(0) };
            super::super::SplitQueue::new(Arc::clone(&driver.memory), setup).unwrap_err()
        };
        assert_eq!(attach(&record(1, 4)), RingError::Record { record: 4, size: 8 });
        let map = record(1, 8);
        // SAFETY: inside the mapping, aligned to 2.
        unsafe { map.map.as_ptr().add(8).cast::<u16>().write(2) };
        assert_eq!(attach(&map), RingError::RecordVersion(2));
        assert!(map.queue(1).is_none());
        let (fd, bytes) = InflightMap::create(2, 8).unwrap();
        let options = MappingOptions { require_sealed: true, watch: Watch::new() };
        let map = |offset, bytes, queues, size| {
            InflightMap::map(fd.as_fd(), offset, bytes, queues, size, &options)
        };
        assert!(map(0, bytes, 2, 8).is_ok());
        assert!(map(0, bytes - 1, 2, 8).is_err());
        assert!(map(4, bytes, 1, 8).is_err());
        assert!(map(4096, bytes, 2, 8).is_err());
        assert!(map(u64::MAX - 7, bytes, 2, 8).is_err());
        assert!(map(0, u64::MAX, u16::MAX, u16::MAX).is_err());
    }

    #[test]
    fn a_record_full_of_nonsense_recovers_without_harm() {
        for seed in 0..200u64 {
            let driver = Driver::new(8, 0, 0);
            let map = record(1, 8);
            let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            for i in 0..map.map.len() {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                // SAFETY: inside the mapping.
                unsafe { map.map.as_ptr().add(i).write((x % 11) as u8) };
            }
            // SAFETY: inside the mapping, aligned to 2.
            unsafe { map.map.as_ptr().add(8).cast::<u16>().write(1) };
            let setup = QueueSetup { inflight: map.queue(0), ..driver.setup(0) };
            let queue = super::super::SplitQueue::new(Arc::clone(&driver.memory), setup).unwrap();
            assert!(queue.recovered() <= 8);
        }
    }
}
