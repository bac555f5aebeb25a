//! Where direct boot puts things in guest memory, and the memory map that tells the kernel.
//!
//! | address | what |
//! |---|---|
//! | 0x500 – 0x600 | descriptor tables ([`crate::vcpu::registers`]) |
//! | 0x7000 | boot parameters (Linux) or start info, memory map and module list (PVH) |
//! | 0x9000 – 0xF000 | page tables |
//! | 0x20000 – 0x21000 | command line |
//! | 0xE0000 – 0x100000 | ACPI tables, RSDP first; reserved in the map |
//! | 0x100000 and up | kernel, where it wants to be |
//! | below the end of low memory | initrd |

use crate::memory::{GuestRam, HIGH_START, LOW_END};

/// Boot parameters or start info.
pub const PARAMETERS: u64 = 0x7000;
/// The command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Bytes that the command line may take, with its final zero.
pub const CMDLINE_SIZE: usize = 0x1000;
/// The random seed for the kernel's generator, as one entry of Linux's setup data.
pub const SETUP_DATA: u64 = 0x1_f000;
/// The ACPI tables.
pub const ACPI: u64 = 0xe_0000;
/// Where memory that a kernel may lie in begins.
pub const KERNEL: u64 = 0x10_0000;

/// Where the extended BIOS data area would be: conventional memory ends here.
const CONVENTIONAL_END: u64 = 0x9_fc00;
/// The pages that KVM uses for itself on processors that cannot run real mode natively.
const KVM_PAGES: u64 = 0xfeff_c000;
const KVM_PAGES_LEN: u64 = 0x4000;

/// What a piece of the address space is for; the values are those of the BIOS's map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// Memory that the kernel may use.
    Usable = 1,
    /// Not for the kernel.
    Reserved = 2,
}

/// One entry of the memory map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapEntry {
    /// Its first address.
    pub start: u64,
    /// Its length in bytes.
    pub len: u64,
    /// What it is for.
    pub kind: Kind,
}

/// The memory map of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryMap {
    entries: Vec<MapEntry>,
    low_end: u64,
}

impl MemoryMap {
    /// The map of a machine with that memory.
    #[must_use]
    pub fn new(ram: &GuestRam) -> Self {
        Self::with_size(ram.regions().iter().map(|region| region.size).sum())
    }

    pub(crate) fn with_size(size: u64) -> Self {
        let low_end = size.min(LOW_END);
        let mut entries = Vec::with_capacity(5);
        let mut add = |start: u64, end: u64, kind| {
            if end > start {
                entries.push(MapEntry { start, len: end - start, kind });
            }
        };
        add(0, CONVENTIONAL_END.min(low_end), Kind::Usable);
        add(CONVENTIONAL_END, 0xa_0000, Kind::Reserved);
        add(ACPI, KERNEL, Kind::Reserved);
        add(KERNEL, low_end, Kind::Usable);
        add(KVM_PAGES, KVM_PAGES + KVM_PAGES_LEN, Kind::Reserved);
        add(HIGH_START, HIGH_START.saturating_add(size - low_end), Kind::Usable);
        Self { entries, low_end }
    }

    /// The entries, lowest address first.
    #[must_use]
    pub fn entries(&self) -> &[MapEntry] {
        &self.entries
    }

    /// Where memory below the hole ends.
    #[must_use]
    pub fn low_end(&self) -> u64 {
        self.low_end
    }

    /// Whether `start..start + len` is memory above 1 MiB and below the hole.
    #[must_use]
    pub fn holds_kernel(&self, start: u64, len: u64) -> bool {
        start >= KERNEL && start.checked_add(len).is_some_and(|end| end <= self.low_end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_do_not_overlap_and_all_memory_is_there() {
        for size in [64 << 20, 3 << 30, (3 << 30) + 4096, 16 << 30] {
            let map = MemoryMap::with_size(size);
            let entries = map.entries();
            assert!(entries.windows(2).all(|w| w[0].start + w[0].len <= w[1].start), "{entries:?}");
            let usable: u64 =
                entries.iter().filter(|e| e.kind == Kind::Usable).map(|e| e.len).sum();
            assert_eq!(usable, size - (KERNEL - CONVENTIONAL_END));
        }
    }

    #[test]
    fn a_kernel_lies_above_1_mib_and_below_the_hole() {
        let map = MemoryMap::with_size(8 << 30);
        assert!(map.holds_kernel(KERNEL, LOW_END - KERNEL));
        assert!(!map.holds_kernel(KERNEL, LOW_END - KERNEL + 1));
        assert!(!map.holds_kernel(KERNEL - 1, 1));
        assert!(!map.holds_kernel(u64::MAX, 2));
    }
}
