//! A PCI-to-PCI bridge: a type-1 header whose bus numbers and windows say what it passes on.
//!
//! The guest programs the numbers and windows, and the bridge honours them: a configuration cycle goes behind it only if
//! the bus number lies between secondary and subordinate, an access only if a window holds it and the command register
//! lets it. Owned by the root, behind the root's lock.

use super::config::{
    COMMAND_IO, COMMAND_MEMORY, ConfigSpace, ForeignConfig, Identity, register as header,
};
use super::region::{Region, Space};
use std::ops::Range;

/// Offsets of the registers of a type-1 header (PCI-to-PCI bridge 1.2, section 3.2).
pub(super) mod register {
    pub const PRIMARY: u8 = 0x18;
    pub const SECONDARY: u8 = 0x19;
    pub const SUBORDINATE: u8 = 0x1a;
    pub const LATENCY: u8 = 0x1b;
    pub const IO_BASE: u8 = 0x1c;
    pub const IO_LIMIT: u8 = 0x1d;
    pub const SECONDARY_STATUS: u8 = 0x1e;
    pub const MEMORY_BASE: u8 = 0x20;
    pub const MEMORY_LIMIT: u8 = 0x22;
    pub const PREFETCH_BASE: u8 = 0x24;
    pub const PREFETCH_LIMIT: u8 = 0x26;
    pub const PREFETCH_BASE_HIGH: u8 = 0x28;
    pub const PREFETCH_LIMIT_HIGH: u8 = 0x2c;
    pub const CONTROL: u8 = 0x3e;
}

/// Bridge control: the bus behind is held in reset.
const CONTROL_RESET: u16 = 1 << 6;
/// Bridge control bits that exist: parity, SERR, ISA, VGA, VGA 16-bit, master abort, reset, timers.
const CONTROL_WRITABLE: u16 = 0x0b7f;
/// The prefetchable window takes 64-bit addresses.
const PREFETCH_64: u16 = 1;

/// One bridge.
#[derive(Debug, Clone)]
pub(super) struct Bridge {
    config: ConfigSpace,
}

impl Bridge {
    /// A bridge that passes nothing on yet.
    pub(super) fn new(identity: Identity) -> Self {
        let mut config = ConfigSpace::new(identity);
        config.build(header::HEADER_TYPE, &[1]);
        for at in [register::PRIMARY, register::SECONDARY, register::SUBORDINATE, register::LATENCY]
        {
            config.allow(at, &[0xff]);
        }
        config.allow(register::IO_BASE, &[0xf0, 0xf0]);
        config.clear_by_one(register::SECONDARY_STATUS, &0xf900u16.to_le_bytes());
        for at in [register::MEMORY_BASE, register::MEMORY_LIMIT] {
            config.allow(at, &0xfff0u16.to_le_bytes());
        }
        for at in [register::PREFETCH_BASE, register::PREFETCH_LIMIT] {
            config.build(at, &PREFETCH_64.to_le_bytes());
            config.allow(at, &0xfff0u16.to_le_bytes());
        }
        config.allow(register::PREFETCH_BASE_HIGH, &[0xff; 8]);
        config.allow(register::CONTROL, &CONTROL_WRITABLE.to_le_bytes());
        Self { config }
    }

    pub(super) fn read(&self, offset: u16, data: &mut [u8]) {
        self.config.read(offset, data);
    }

    /// Returns whether the write began a reset of the bus behind.
    #[must_use]
    pub(super) fn write(&mut self, offset: u16, data: &[u8]) -> bool {
        let before = self.in_reset();
        self.config.write(offset, data);
        !before && self.in_reset()
    }

    pub(super) fn reset(&mut self) {
        self.config.reset();
    }

    pub(super) fn save(&self) -> Vec<u8> {
        self.config.save()
    }

    pub(super) fn restore(&mut self, saved: &[u8]) -> Result<(), ForeignConfig> {
        self.config.restore(saved)
    }

    fn in_reset(&self) -> bool {
        self.config.u16(register::CONTROL) & CONTROL_RESET != 0
    }

    /// The number of the bus directly behind, if the guest has given one and the bus is not held in reset.
    pub(super) fn secondary(&self) -> Option<u8> {
        let secondary = self.config.u8(register::SECONDARY);
        (secondary != 0 && !self.in_reset()).then_some(secondary)
    }

    /// Whether a configuration cycle for `bus` goes behind this bridge.
    pub(super) fn leads_to(&self, bus: u8) -> bool {
        let subordinate = self.config.u8(register::SUBORDINATE);
        self.secondary().is_some_and(|secondary| (secondary..=subordinate).contains(&bus))
    }

    /// Whether accesses to all of `region` go behind this bridge.
    pub(super) fn forwards(&self, region: &Region) -> bool {
        let command = self.config.u16(header::COMMAND);
        let Some(end) = region.end() else { return false };
        let holds = |window: &Range<u64>| window.start <= region.base && end <= window.end;
        match region.space {
            _ if self.in_reset() => false,
            Space::Io => command & COMMAND_IO != 0 && holds(&self.io_window()),
            Space::Memory => {
                command & COMMAND_MEMORY != 0
                    && (holds(&self.memory_window()) || holds(&self.prefetch_window()))
            }
        }
    }

    /// A limit below the base gives an empty range, which is how a guest closes a window.
    fn io_window(&self) -> Range<u64> {
        let part = |at| u64::from(self.config.u8(at) & 0xf0) << 8;
        part(register::IO_BASE)..part(register::IO_LIMIT) + 0x1000
    }

    fn memory_window(&self) -> Range<u64> {
        let part = |at| u64::from(self.config.u16(at) & 0xfff0) << 16;
        part(register::MEMORY_BASE)..part(register::MEMORY_LIMIT) + 0x10_0000
    }

    fn prefetch_window(&self) -> Range<u64> {
        let part = |low, high| {
            u64::from(self.config.u32(high)) << 32 | u64::from(self.config.u16(low) & 0xfff0) << 16
        };
        let base = part(register::PREFETCH_BASE, register::PREFETCH_BASE_HIGH);
        let limit = part(register::PREFETCH_LIMIT, register::PREFETCH_LIMIT_HIGH);
        base..limit.saturating_add(0x10_0000)
    }

    /// Programs the bridge as firmware would: bus numbers, windows, decoding on.
    pub(super) fn program(&mut self, bus: u8, windows: &Windows) {
        let mut set = |at: u8, value: &[u8]| self.config.write(u16::from(at), value);
        set(register::PRIMARY, &[0, bus, bus]);
        let high16 = |address: u64| ((address >> 16) as u16).to_le_bytes();
        let high32 = |address: u64| ((address >> 32) as u32).to_le_bytes();
        let io = &windows.io;
        set(register::IO_BASE, &[(io.start >> 8) as u8, ((io.end - 1) >> 8) as u8]);
        set(register::MEMORY_BASE, &high16(windows.memory.start));
        set(register::MEMORY_LIMIT, &high16(windows.memory.end - 1));
        // Base above limit: closed.
        let prefetch = windows.prefetch.as_ref().map_or((0x10_0000, 0), |w| (w.start, w.end - 1));
        set(register::PREFETCH_BASE, &high16(prefetch.0));
        set(register::PREFETCH_LIMIT, &high16(prefetch.1));
        set(register::PREFETCH_BASE_HIGH, &high32(prefetch.0));
        set(register::PREFETCH_LIMIT_HIGH, &high32(prefetch.1));
        set(header::COMMAND, &0x0007u16.to_le_bytes());
    }
}

/// What a bridge passes on: none of the ranges is empty; memory ranges are in whole MiB, ports in whole 4 KiB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Windows {
    pub(super) io: Range<u64>,
    pub(super) memory: Range<u64>,
    pub(super) prefetch: Option<Range<u64>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bridge() -> Bridge {
        Bridge::new(Identity {
            vendor: 0x1b36,
            device: 1,
            revision: 0,
            class: 0x06_04_00,
            subsystem: None,
        })
    }

    fn memory(base: u64, size: u64) -> Region {
        Region { id: 0, space: Space::Memory, base, size }
    }

    fn programmed() -> Bridge {
        let mut bridge = bridge();
        bridge.program(
            3,
            &Windows {
                io: 0xc000..0xd000,
                memory: 0xc000_0000..0xc200_0000,
                prefetch: Some(0x80_0000_0000..0x90_0000_0000),
            },
        );
        bridge
    }

    #[test]
    fn a_bridge_fresh_from_reset_passes_nothing() {
        let bridge = bridge();
        assert!((0..=255).all(|bus| !bridge.leads_to(bus)));
        assert!(!bridge.forwards(&memory(0, 0x1000)), "window 0..1 MiB, but the command forbids");
    }

    #[test]
    fn numbers_and_windows_are_honoured() {
        let bridge = programmed();
        assert!(bridge.leads_to(3) && !bridge.leads_to(2) && !bridge.leads_to(4));
        assert!(bridge.forwards(&memory(0xc000_0000, 0x4000)));
        assert!(bridge.forwards(&memory(0xc1ff_c000, 0x4000)));
        assert!(!bridge.forwards(&memory(0xc1ff_e000, 0x4000)), "half outside");
        assert!(!bridge.forwards(&memory(0xc200_0000, 0x4000)));
        assert!(bridge.forwards(&memory(0x8f_ffff_c000, 0x4000)));
        assert!(!bridge.forwards(&memory(0x90_0000_0000, 0x4000)));
        assert!(!bridge.forwards(&memory(u64::MAX - 0xfff, 0x1000)), "wraps");
        let io = |base| Region { id: 4, space: Space::Io, base, size: 0x20 };
        assert!(bridge.forwards(&io(0xcfe0)) && !bridge.forwards(&io(0xd000)));
    }

    #[test]
    fn memory_decoding_off_or_base_above_limit_closes_the_window() {
        let mut bridge = programmed();
        assert!(!bridge.write(4, &[1]));
        assert!(!bridge.forwards(&memory(0xc000_0000, 0x4000)));
        let mut bridge = programmed();
        assert!(!bridge.write(0x20, &[0xf0, 0xff, 0, 0]));
        assert!(!bridge.forwards(&memory(0xc000_0000, 0x4000)));
    }

    #[test]
    fn a_bus_held_in_reset_is_not_there() {
        let mut bridge = programmed();
        assert!(bridge.write(0x3e, &[0x40]), "the reset begins");
        assert!(!bridge.write(0x3e, &[0x40]), "and begins only once");
        assert!(!bridge.leads_to(3) && !bridge.forwards(&memory(0xc000_0000, 0x4000)));
        assert!(!bridge.write(0x3e, &[0]));
        assert!(bridge.leads_to(3));
    }
}
