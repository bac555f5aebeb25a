//! A driver to test the device's side against: it writes rings as virtio 1.2 says and believes nothing that it can
//! check. Its chains, heads and the order of its operations come from the test.

use super::{
    Batch, FEATURE_EVENT_IDX, FEATURE_INDIRECT, InflightMap, Notifiers, QueueLayout, QueueSetup,
    SplitQueue, UsedLog,
};
use crate::memory::{
    GuestBytes, GuestMemory, MappingOptions, PageSize, RegionDescriptor, SharedMemory,
};
use crate::sigbus::Watch;
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::AsFd;
use std::sync::Arc;

/// Where the model's memory begins.
pub(crate) const BASE: u64 = 0x4000_0000;
/// Its two adjoining regions, in bytes each: buffers go over the border between them.
pub(crate) const REGION: u64 = 512 * 1024;

const DESCRIPTORS: u64 = BASE;
const AVAILABLE: u64 = BASE + 0x10000;
const USED: u64 = BASE + 0x20000;
const TABLES: u64 = BASE + 0x30000;
/// Buffers are cut out of what is around the border of the regions.
const BUFFERS: u64 = BASE + 0x50000;
/// Bytes of indirect table that each head has.
const TABLE: u64 = 64 * 16;

pub(crate) fn unsealed_options() -> MappingOptions {
    MappingOptions { require_sealed: false, watch: Watch::new() }
}

/// Two adjoining regions in two files.
pub(crate) fn memory() -> Arc<GuestMemory> {
    let files: Vec<_> =
        (0..2).map(|_| SharedMemory::new("model", REGION, PageSize::Normal).unwrap()).collect();
    let regions: Vec<_> = files
        .iter()
        .enumerate()
        .map(|(i, file)| {
            let guest_addr = BASE + i as u64 * REGION;
            let user_addr = guest_addr + 0x7000_0000_0000;
            (RegionDescriptor { guest_addr, size: REGION, user_addr, mmap_offset: 0 }, file.as_fd())
        })
        .collect();
    GuestMemory::map(&regions, &unsealed_options()).unwrap()
}

/// One buffer of a chain to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Buffer {
    pub len: u32,
    pub write: bool,
}

/// A chain to be: readable buffers first, of which `direct` stand before the indirect table, if there is one.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub buffers: Vec<Buffer>,
    pub indirect: bool,
    pub direct: usize,
}

/// A chain that the device owns.
#[derive(Debug, Clone)]
pub(crate) struct Owned {
    pub id: u64,
    pub readable: Vec<u8>,
    pub writable: usize,
    writable_at: Vec<(u64, u32)>,
    descriptors: Vec<u16>,
}

/// The driver.
#[derive(Debug)]
pub(crate) struct Driver {
    pub memory: Arc<GuestMemory>,
    pub size: u16,
    pub features: u64,
    pub available: u16,
    pub used: u16,
    free: VecDeque<u16>,
    pub owned: BTreeMap<u16, Owned>,
    next_id: u64,
}

impl Driver {
    pub fn new(size: u16, features: u64, start: u16) -> Self {
        let driver = Self {
            memory: memory(),
            size,
            features,
            available: start,
            used: start,
            free: (0..size).collect(),
            owned: BTreeMap::new(),
            next_id: 1,
        };
        driver.put(AVAILABLE + 2, &start.to_le_bytes());
        driver.put(USED + 2, &start.to_le_bytes());
        driver
    }

    pub fn layout(&self) -> QueueLayout {
        QueueLayout { size: self.size, descriptors: DESCRIPTORS, available: AVAILABLE, used: USED }
    }

    pub fn setup(&self, base: u16) -> QueueSetup {
        QueueSetup {
            layout: self.layout(),
            features: self.features,
            base,
            notifiers: Notifiers::default(),
            inflight: None,
            log: None,
        }
    }

    pub fn bytes(&self, addr: u64, len: u64) -> GuestBytes<'_> {
        self.memory.get(addr, len).unwrap()
    }

    /// Writes byte by byte, so that both regions may be met.
    pub fn put(&self, addr: u64, bytes: &[u8]) {
        for (i, byte) in bytes.iter().enumerate() {
            assert!(self.bytes(addr + i as u64, 1).write(0, &[*byte]));
        }
    }

    pub fn get(&self, addr: u64, len: u64) -> Vec<u8> {
        (0..len).map(|i| self.bytes(addr + i, 1).read_array::<1>(0).unwrap()[0]).collect()
    }

    pub fn word(&self, addr: u64) -> u16 {
        u16::from_le_bytes(self.bytes(addr, 2).read_array(0).unwrap())
    }

    fn descriptor(&self, at: u64, addr: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.put(at, &bytes);
    }

    /// Makes a chain available, if there are descriptors for it. Returns its id.
    pub fn add(&mut self, plan: &Plan) -> Option<u64> {
        let indirect = plan.indirect && self.features & FEATURE_INDIRECT != 0;
        let direct =
            if indirect { plan.direct.min(plan.buffers.len() - 1) } else { plan.buffers.len() };
        let needed = direct + usize::from(indirect);
        if needed > self.free.len() {
            return None;
        }
        let descriptors: Vec<u16> = self.free.drain(..needed).collect();
        let head = descriptors[0];
        let id = self.next_id;
        self.next_id += 1;
        let mut owned = Owned {
            id,
            readable: Vec::new(),
            writable: 0,
            writable_at: Vec::new(),
            descriptors: descriptors.clone(),
        };
        // Each head has room of its own for buffers; those of heads in the middle lie over the border.
        let room = (2 * REGION - (BUFFERS - BASE)) / u64::from(self.size);
        let mut at = BUFFERS + u64::from(head) * room;
        let end = at + room;
        let table = TABLES + u64::from(head) * TABLE;
        for (i, buffer) in plan.buffers.iter().enumerate() {
            let len = buffer.len.min((end - at) as u32);
            let write = if buffer.write { 2 } else { 0 };
            let last = i + 1 == plan.buffers.len();
            if i < direct {
                let goes_on = !last || indirect;
                let next = if goes_on { descriptors[i + 1] } else { 0xdead };
                let flags = write | u16::from(goes_on);
                self.descriptor(DESCRIPTORS + 16 * u64::from(descriptors[i]), at, len, flags, next);
            } else {
                // The table is linked backwards, as nothing says that it is in order: entry 0 first, then the last.
                let n = plan.buffers.len() - direct;
                let place = |k: usize| if k == 0 { 0 } else { n - k };
                let k = i - direct;
                let next = if last { 0xbeef } else { place(k + 1) as u16 };
                let entry = table + 16 * place(k) as u64;
                self.descriptor(entry, at, len, write | u16::from(!last), next);
            }
            if buffer.write {
                owned.writable += len as usize;
                owned.writable_at.push((at, len));
                self.put(at, &vec![0; len as usize]);
            } else {
                let content: Vec<u8> =
                    (0..len).map(|k| (id as u8) ^ (i as u8).rotate_left(4) ^ k as u8).collect();
                self.put(at, &content);
                owned.readable.extend(content);
            }
            at += u64::from(len);
        }
        if indirect {
            let len = 16 * (plan.buffers.len() - direct) as u32;
            // The WRITE flag has no meaning here.
            let flags = 4 | if id.is_multiple_of(2) { 2 } else { 0 };
            let place = DESCRIPTORS + 16 * u64::from(descriptors[direct]);
            self.descriptor(place, table, len, flags, 0);
        }
        let entry = AVAILABLE + 4 + 2 * u64::from(self.available % self.size);
        self.put(entry, &head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        self.put(AVAILABLE + 2, &self.available.to_le_bytes());
        assert!(self.owned.insert(head, owned).is_none());
        Some(id)
    }

    /// Takes what the device has used, and checks it. Returns the ids.
    pub fn reap(&mut self) -> Vec<u64> {
        let idx = self.word(USED + 2);
        let mut ids = Vec::new();
        while self.used != idx {
            let at = USED + 4 + 8 * u64::from(self.used % self.size);
            let element = self.bytes(at, 8).read_array::<8>(0).unwrap();
            let head = u32::from_le_bytes(element[..4].try_into().unwrap());
            let len = u32::from_le_bytes(element[4..].try_into().unwrap());
            let owned = self.owned.remove(&(head as u16)).expect("a head that was not in flight");
            assert_eq!(len as usize, owned.writable);
            let written: Vec<u8> =
                owned.writable_at.iter().flat_map(|(at, n)| self.get(*at, (*n).into())).collect();
            assert_eq!(written, pattern(owned.id, owned.writable), "chain {}", owned.id);
            self.free.extend(owned.descriptors);
            self.used = self.used.wrapping_add(1);
            ids.push(owned.id);
        }
        ids
    }

    /// Asks for a call when used.idx passes `event`.
    pub fn set_used_event(&self, event: u16) {
        assert!(self.features & FEATURE_EVENT_IDX != 0);
        self.put(AVAILABLE + 4 + 2 * u64::from(self.size), &event.to_le_bytes());
    }

    /// Whether a driver that went from `before` to the present avail.idx must kick.
    pub fn must_kick(&self, before: u16) -> bool {
        if self.features & FEATURE_EVENT_IDX == 0 {
            return self.word(USED) & 1 == 0;
        }
        let event = self.word(USED + 4 + 8 * u64::from(self.size));
        self.available.wrapping_sub(event).wrapping_sub(1) < self.available.wrapping_sub(before)
    }

    pub fn suppress_calls(&self, suppress: bool) {
        self.put(AVAILABLE, &u16::from(suppress).to_le_bytes());
    }
}

/// What the device writes into the writable bytes of chain `id`.
pub(crate) fn pattern(id: u64, len: usize) -> Vec<u8> {
    (0..len).map(|i| (id as u8).wrapping_mul(31).wrapping_add(i as u8)).collect()
}

/// A device that checks what it reads and answers with the pattern.
#[derive(Debug)]
pub(crate) struct Device {
    pub queue: SplitQueue,
    pub batch: Batch,
    /// Taken and not answered: head, id, writable bytes.
    pub pending: Vec<(u16, u64, u32)>,
}

impl Device {
    pub fn new(driver: &Driver, setup: QueueSetup) -> Self {
        let queue = SplitQueue::new(Arc::clone(&driver.memory), setup).unwrap();
        Self { queue, batch: Batch::new(8), pending: Vec::new() }
    }

    /// Takes chains and carries them out, without answering. Returns their ids.
    pub fn take(&mut self, driver: &Driver, max: usize) -> Vec<u64> {
        let n = self.queue.take(max, &mut self.batch).unwrap();
        assert_eq!(n, self.batch.len());
        let mut ids = Vec::new();
        for chain in self.batch.chains(&driver.memory) {
            let owned = &driver.owned[&chain.head()];
            let mut read = vec![0; owned.readable.len() + 1];
            assert_eq!(chain.readable().read(&mut read), owned.readable.len());
            assert_eq!(read[..owned.readable.len()], owned.readable);
            assert_eq!(chain.readable().len(), owned.readable.len());
            assert_eq!(chain.writable().len(), owned.writable);
            assert_eq!(chain.writable().write(&pattern(owned.id, owned.writable)), owned.writable);
            self.pending.push((chain.head(), owned.id, owned.writable as u32));
            ids.push(owned.id);
        }
        ids
    }

    /// Answers pending chain number `index`.
    pub fn complete(&mut self, index: usize) {
        let (head, _, written) = self.pending.remove(index);
        self.queue.complete(head, written);
    }

    pub fn complete_all(&mut self) {
        while !self.pending.is_empty() {
            self.complete(0);
        }
    }
}

/// A record for `queues` queues of `size`.
pub(crate) fn record(queues: u16, size: u16) -> Arc<InflightMap> {
    let (fd, bytes) = InflightMap::create(queues, size).unwrap();
    InflightMap::map(fd.as_fd(), 0, bytes, queues, size, &unsealed_options()).unwrap()
}

/// A log over all of the model's memory, and its bytes.
pub(crate) fn log() -> (UsedLog, GuestMemoryFile) {
    let bytes = (BASE + 2 * REGION) / 4096 / 8;
    let file = SharedMemory::new("log", bytes.next_multiple_of(4096), PageSize::Normal).unwrap();
    let log = crate::memory::DirtyLog::map(file.as_fd(), 0, bytes, &unsealed_options()).unwrap();
    (UsedLog { log: Arc::new(log), used: Some(USED) }, GuestMemoryFile(file))
}

/// The log's file.
#[derive(Debug)]
pub(crate) struct GuestMemoryFile(SharedMemory);

impl GuestMemoryFile {
    /// The pages of the model's memory that are marked.
    pub fn pages(&self) -> Vec<u64> {
        let mut bytes = vec![0; self.0.size() as usize];
        rustix::io::pread(&self.0, &mut bytes, 0).unwrap();
        (0..bytes.len() as u64 * 8)
            .filter(|page| bytes[(page / 8) as usize] >> (page % 8) & 1 == 1)
            .collect()
    }
}
