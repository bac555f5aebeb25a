//! Where the three areas of a split ring are, and the only place that touches their bytes.
//!
//! Invariants: each area lies wholly inside one mapping and is aligned (checked once, in [`Areas::new`]); every index
//! is masked or below the queue's size when it gets here; every access is a single load or store, so that a driver
//! that writes meanwhile is seen before or after, never twice.

use super::RingError;
use crate::memory::GuestMemory;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

/// The largest queue that virtio allows, in descriptors.
pub const MAX_QUEUE_SIZE: u16 = 32768;
/// The most descriptors that one indirect table may have, whatever the queue's size.
pub const MAX_INDIRECT: u16 = 1024;

/// Bytes of a descriptor.
pub(super) const DESCRIPTOR_BYTES: usize = 16;
/// The descriptor goes on at `next`.
pub(super) const NEXT: u16 = 1;
/// The device may write the buffer; else it may read it.
pub(super) const WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub(super) const INDIRECT: u16 = 4;
/// avail.flags: the driver wants no call.
const NO_INTERRUPT: u16 = 1;
/// used.flags: the device wants no kick.
const NO_NOTIFY: u16 = 1;

/// Where the entries begin in the available and in the used ring, behind flags and idx.
const RING: usize = 4;

/// The guest addresses of a split ring (virtio 1.2, section 2.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLayout {
    /// Descriptors; a power of two.
    pub size: u16,
    /// The descriptor table, 16 bytes each, aligned to 16.
    pub descriptors: u64,
    /// The available ring (driver area), aligned to 2.
    pub available: u64,
    /// The used ring (device area), aligned to 4.
    pub used: u64,
}

/// A descriptor as it was read, once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Descriptor {
    pub addr: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

impl Descriptor {
    #[inline(always)]
    fn from_words(addr: u64, word: u64) -> Self {
        let (addr, word) = (u64::from_le(addr), u64::from_le(word));
        Self { addr, len: word as u32, flags: (word >> 32) as u16, next: (word >> 48) as u16 }
    }

    /// Reads entry `index` of an indirect table.
    ///
    /// # Safety
    /// The table has more than `index` entries in a live mapping.
    #[inline]
    pub unsafe fn indirect(table: *const u8, index: u16) -> Self {
        // SAFETY: the caller promises the entry. Tables need not be aligned, hence the unaligned reads.
        unsafe {
            let at = table.add(usize::from(index) * DESCRIPTOR_BYTES).cast::<u64>();
            Self::from_words(at.read_unaligned(), at.add(1).read_unaligned())
        }
    }
}

/// The mapped areas of one ring. Valid while the memory they were made from lives, which the queue sees to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Areas {
    descriptors: *const u8,
    available: *const u8,
    used: *mut u8,
    size: u16,
}

// SAFETY: pointers to shared memory that any thread may use.
unsafe impl Send for Areas {}

impl Areas {
    /// Checks and translates the areas. `events` is whether the event fields behind the rings exist.
    pub fn new(
        memory: &GuestMemory,
        layout: &QueueLayout,
        events: bool,
    ) -> Result<Self, RingError> {
        let size = layout.size;
        if !size.is_power_of_two() || size > MAX_QUEUE_SIZE {
            return Err(RingError::Size(size));
        }
        let tail = if events { 2 } else { 0 };
        let n = u64::from(size);
        let find = |area, addr: u64, len: u64, align: u64| {
            let bytes = memory.get(addr, len).ok_or(RingError::Area { area, addr })?;
            let host = bytes.as_ptr();
            // The host's address too: a region may begin at any byte of its file.
            if (addr | host as u64) & (align - 1) != 0 {
                return Err(RingError::Alignment { area, addr, align });
            }
            Ok(host)
        };
        Ok(Self {
            descriptors: find("descriptor", layout.descriptors, n * 16, 16)?,
            available: find("available", layout.available, 4 + n * 2 + tail, 2)?,
            used: find("used", layout.used, 4 + n * 8 + tail, 4)?,
            size,
        })
    }

    #[inline(always)]
    fn mask(&self, index: u16) -> usize {
        usize::from(index & (self.size - 1))
    }

    #[inline(always)]
    fn driver_word(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: callers pass offsets inside the available area, which is mapped and aligned to 2.
        unsafe { AtomicU16::from_ptr(self.available.add(offset).cast_mut().cast()) }
    }

    #[inline(always)]
    fn device_word(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: callers pass offsets inside the used area, which is mapped and aligned to 4.
        unsafe { AtomicU16::from_ptr(self.used.add(offset).cast()) }
    }

    /// avail.idx; what the driver wrote before it is visible after.
    #[inline(always)]
    pub fn available_idx(&self) -> u16 {
        u16::from_le(self.driver_word(2).load(Ordering::Acquire))
    }

    /// The head in entry `index` of the available ring, any value.
    #[inline(always)]
    pub fn available_head(&self, index: u16) -> u16 {
        u16::from_le(self.driver_word(RING + 2 * self.mask(index)).load(Ordering::Relaxed))
    }

    /// Whether the driver wants no call, without EVENT_IDX.
    #[inline(always)]
    pub fn calls_suppressed(&self) -> bool {
        u16::from_le(self.driver_word(0).load(Ordering::Relaxed)) & NO_INTERRUPT != 0
    }

    /// used_event: the driver wants a call when used.idx passes this. Only with EVENT_IDX.
    #[inline(always)]
    pub fn used_event(&self) -> u16 {
        let offset = RING + 2 * usize::from(self.size);
        u16::from_le(self.driver_word(offset).load(Ordering::Relaxed))
    }

    /// Where descriptor `index` is, to prefetch it.
    #[inline(always)]
    pub fn descriptor_at(&self, index: u16) -> *const u8 {
        self.descriptors.wrapping_add(usize::from(index) * DESCRIPTOR_BYTES)
    }

    /// Reads a descriptor of the table. `index` is masked: callers compare it before.
    #[inline(always)]
    pub fn descriptor(&self, index: u16) -> Descriptor {
        let at = self.descriptor_at(self.mask(index) as u16).cast_mut().cast::<u64>();
        // SAFETY: the masked index is inside the table, which is mapped and aligned to 16.
        unsafe {
            Descriptor::from_words(
                AtomicU64::from_ptr(at).load(Ordering::Relaxed),
                AtomicU64::from_ptr(at.add(1)).load(Ordering::Relaxed),
            )
        }
    }

    /// used.idx as it stands in memory.
    pub fn used_idx(&self) -> u16 {
        u16::from_le(self.device_word(2).load(Ordering::Acquire))
    }

    /// Publishes used.idx; what was written before it is visible to whoever sees it.
    #[inline(always)]
    pub fn set_used_idx(&self, idx: u16) {
        self.device_word(2).store(idx.to_le(), Ordering::Release);
    }

    /// Writes entry `index` of the used ring.
    #[inline(always)]
    pub fn set_used(&self, index: u16, head: u16, written: u32) {
        let element = [u32::from(head).to_le(), written.to_le()];
        // SAFETY: the masked entry is inside the used area, which is mapped and aligned to 4. The driver does not read
        // it before used.idx says so, which is stored with Release.
        unsafe { self.used.add(RING + 8 * self.mask(index)).cast::<[u32; 2]>().write(element) };
    }

    /// Where entry `index` of the used ring is, to prefetch it.
    #[inline(always)]
    pub fn used_at(&self, index: u16) -> *const u8 {
        self.used.wrapping_add(RING + 8 * self.mask(index))
    }

    /// Whether the driver is asked not to kick, without EVENT_IDX.
    pub fn suppress_kicks(&self, suppress: bool) {
        let flags = if suppress { NO_NOTIFY } else { 0 };
        self.device_word(0).store(flags.to_le(), Ordering::Relaxed);
    }

    /// avail_event: the device wants a kick when avail.idx passes this. Only with EVENT_IDX.
    pub fn set_available_event(&self, event: u16) {
        let offset = self.available_event_offset();
        self.device_word(offset).store(event.to_le(), Ordering::Relaxed);
    }

    /// Where avail_event is in the used area.
    pub fn available_event_offset(&self) -> usize {
        RING + 8 * usize::from(self.size)
    }

    /// Where entry `index` is in the used area.
    pub fn used_offset(&self, index: u16) -> usize {
        RING + 8 * self.mask(index)
    }
}
