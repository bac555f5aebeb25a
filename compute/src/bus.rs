//! Dispatch of port and memory-mapped accesses to devices.
//!
//! vCPU threads call [`Bus::read`] and [`Bus::write`] on every such exit; the driver and devices call [`Bus::insert`]
//! and [`Bus::remove`], also while the guest runs, because a guest moves BARs.
//!
//! Invariants: ranges never overlap; no lock of the bus is held while a device runs, so a device may change the bus from
//! within its own access; what nobody claims reads as all ones and swallows writes, as on a PC.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

/// A device that answers on I/O ports.
///
/// Called by several vCPU threads at once: implementations lock for themselves, briefly.
pub trait PortDevice: Send + Sync {
    /// Fills `data` (1, 2 or 4 bytes) with the registers from `offset` on, relative to the range's start.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Takes `data` (1, 2 or 4 bytes) into the registers from `offset` on, relative to the range's start.
    fn write(&self, offset: u64, data: &[u8]);
}

/// A device that answers on guest-physical addresses.
///
/// Called by several vCPU threads at once: implementations lock for themselves, briefly.
pub trait MemoryDevice: Send + Sync {
    /// Fills `data` (1 to 8 bytes) with the registers from `offset` on, relative to the range's start.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Takes `data` (1 to 8 bytes) into the registers from `offset` on, relative to the range's start.
    fn write(&self, offset: u64, data: &[u8]);
}

/// What both kinds of device look like to the dispatcher.
pub trait BusDevice {
    /// See [`PortDevice::read`].
    fn bus_read(&self, offset: u64, data: &mut [u8]);
    /// See [`PortDevice::write`].
    fn bus_write(&self, offset: u64, data: &[u8]);
}

impl BusDevice for dyn PortDevice {
    fn bus_read(&self, offset: u64, data: &mut [u8]) {
        self.read(offset, data);
    }
    fn bus_write(&self, offset: u64, data: &[u8]) {
        self.write(offset, data);
    }
}

impl BusDevice for dyn MemoryDevice {
    fn bus_read(&self, offset: u64, data: &mut [u8]) {
        self.read(offset, data);
    }
    fn bus_write(&self, offset: u64, data: &[u8]) {
        self.write(offset, data);
    }
}

/// The bus of I/O ports.
pub type PortBus = Bus<dyn PortDevice>;
/// The bus of guest-physical addresses that are not memory.
pub type MemoryBus = Bus<dyn MemoryDevice>;

/// A half-open range of addresses: `start..start + len`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BusRange {
    /// The first address.
    pub start: u64,
    /// The number of addresses; never zero, and `start + len` fits in 64 bits.
    pub len: u64,
}

/// Why a range cannot be put on a bus.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BusError {
    /// Another device is there already.
    #[error("the range {:#x}+{:#x} overlaps the device at {:#x}+{:#x}", .new.start, .new.len, .old.start, .old.len)]
    Overlap {
        /// The range asked for.
        new: BusRange,
        /// The range that is taken.
        old: BusRange,
    },
    /// The range is empty or goes beyond the last address.
    #[error("the range {:#x}+{:#x} is empty or wraps", .0.start, .0.len)]
    Malformed(BusRange),
}

/// Maps addresses to devices.
pub struct Bus<D: ?Sized> {
    /// Sorted by start. A reader holds the lock for one binary search and one reference count.
    entries: RwLock<Vec<(BusRange, Arc<D>)>>,
}

impl<D: ?Sized> fmt::Debug for Bus<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        f.debug_list().entries(entries.iter().map(|(range, _)| range)).finish()
    }
}

impl<D: ?Sized> Default for Bus<D> {
    fn default() -> Self {
        Self { entries: RwLock::new(Vec::new()) }
    }
}

impl<D: ?Sized> Bus<D> {
    /// Puts `device` at `range`. May be called while the guest runs.
    ///
    /// # Errors
    /// The range overlaps another device's, is empty or wraps.
    pub fn insert(&self, range: BusRange, device: Arc<D>) -> Result<(), BusError> {
        if range.len == 0 || range.start.checked_add(range.len).is_none() {
            return Err(BusError::Malformed(range));
        }
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let at = entries.partition_point(|(r, _)| r.start < range.start);
        let before = at.checked_sub(1).and_then(|i| entries.get(i));
        let old = before
            .filter(|(r, _)| r.start + r.len > range.start)
            .or_else(|| entries.get(at).filter(|(r, _)| r.start < range.start + range.len));
        if let Some((old, _)) = old {
            return Err(BusError::Overlap { new: range, old: *old });
        }
        entries.insert(at, (range, device));
        Ok(())
    }

    /// Takes away the device at exactly `range`; returns it if it was there.
    pub fn remove(&self, range: BusRange) -> Option<Arc<D>> {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let at = entries.binary_search_by_key(&range.start, |(r, _)| r.start).ok()?;
        (entries[at].0 == range).then(|| entries.remove(at).1)
    }

    /// The device at `address` and the offset into it.
    fn find(&self, address: u64) -> Option<(Arc<D>, u64)> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let at = entries.partition_point(|(r, _)| r.start <= address).checked_sub(1)?;
        let (range, device) = &entries[at];
        let offset = address - range.start;
        (offset < range.len).then(|| (Arc::clone(device), offset))
    }
}

impl<D: ?Sized + BusDevice> Bus<D> {
    /// Reads `data.len()` bytes at `address`. Returns whether a device answered; if none did, `data` is all ones.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        data.fill(0xff);
        let Some((device, offset)) = self.find(address) else { return false };
        device.bus_read(offset, data);
        true
    }

    /// Writes `data` at `address`. Returns whether a device took it.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        let Some((device, offset)) = self.find(address) else { return false };
        device.bus_write(offset, data);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo(u8);
    impl PortDevice for Echo {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(self.0 + offset as u8);
        }
        fn write(&self, _: u64, _: &[u8]) {}
    }

    fn range(start: u64, len: u64) -> BusRange {
        BusRange { start, len }
    }

    #[test]
    fn overlapping_empty_and_wrapping_ranges_are_refused() {
        let bus = PortBus::default();
        bus.insert(range(0x10, 0x10), Arc::new(Echo(0))).unwrap();
        for (start, len) in [(0x10, 1), (0xf, 2), (0x1f, 1), (0, 0x100), (0x18, 0x20)] {
            let error = bus.insert(range(start, len), Arc::new(Echo(0))).unwrap_err();
            assert!(matches!(error, BusError::Overlap { .. }), "{start:#x}+{len:#x}");
        }
        for (start, len) in [(0x40, 0), (u64::MAX, 2)] {
            let error = bus.insert(range(start, len), Arc::new(Echo(0))).unwrap_err();
            assert!(matches!(error, BusError::Malformed(_)));
        }
        bus.insert(range(0x20, 1), Arc::new(Echo(0))).unwrap();
        bus.insert(range(0xf, 1), Arc::new(Echo(0))).unwrap();
    }

    #[test]
    fn an_access_reaches_its_device_and_no_other() {
        let bus = PortBus::default();
        bus.insert(range(0x10, 4), Arc::new(Echo(0x40))).unwrap();
        let mut data = [0; 2];
        assert!(bus.read(0x13, &mut data));
        assert_eq!(data, [0x43, 0x43]);
        assert!(!bus.read(0x14, &mut data));
        assert_eq!(data, [0xff, 0xff], "unclaimed ports float high");
        assert!(!bus.write(0xf, &data));
        assert!(bus.remove(range(0x10, 3)).is_none());
        assert!(bus.remove(range(0x10, 4)).is_some());
        assert!(!bus.read(0x10, &mut data));
    }
}
