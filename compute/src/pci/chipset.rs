//! The chipset's own functions: host bridge, ISA bridge and power management of an i440FX with a PIIX.
//!
//! Their registers are what firmware and kernels recognise the board by. Most are memory without effect; the one with an
//! effect is the base of the power-management block, whose registers are a device of their own ([`crate::bus::PortDevice`]).

use super::config::{ConfigSpace, ForeignConfig, Identity, register};
use super::region::{Bar, PciFunction, Region, Space};
use crate::bus::PortDevice;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Subsystem of the chipset: what every machine of this family of boards says, and firmware looks for.
const SUBSYSTEM: (u16, u16) = (0x1af4, 0x1100);
/// Power management: the register that holds the base of its ports.
const PM_BASE: u8 = 0x40;
/// Power management: bit 0 lets the ports answer.
const PM_ENABLE: u8 = 0x80;
/// The region of the power-management ports, which is in no BAR.
const PM_REGION: u8 = 8;
/// Ports of the power-management block.
const PM_PORTS: u64 = 64;

/// One function of the chipset.
pub(super) struct ChipsetFunction {
    config: Mutex<ConfigSpace>,
    /// The power-management block, in the function that has one.
    ports: Option<Arc<dyn PortDevice>>,
}

impl std::fmt::Debug for ChipsetFunction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.lock().fmt(f)
    }
}

/// The host bridge, 8086:1237.
pub(super) fn host_bridge() -> ChipsetFunction {
    let mut config = ConfigSpace::new(Identity {
        vendor: 0x8086,
        device: 0x1237,
        revision: 2,
        class: 0x06_00_00,
        subsystem: Some(SUBSYSTEM),
    });
    config.build(register::COMMAND, &0x0006u16.to_le_bytes());
    config.build(register::STATUS, &0x0280u16.to_le_bytes());
    // PAM0 to PAM6 shadow the ROM area and SMRAM hides a bit of it; memory below 1 MiB is always memory here, so
    // they only remember what firmware wrote.
    config.allow(0x59, &[0x30, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33]);
    config.build(0x72, &[0x02]);
    config.allow(0x72, &[0x7f]);
    ChipsetFunction { config: Mutex::new(config), ports: None }
}

/// The ISA bridge, 8086:7000, function 0 of a multi-function slot.
pub(super) fn isa_bridge() -> ChipsetFunction {
    let mut config = ConfigSpace::new(Identity {
        vendor: 0x8086,
        device: 0x7000,
        revision: 0,
        class: 0x06_01_00,
        subsystem: Some(SUBSYSTEM),
    });
    config.build(register::COMMAND, &0x0007u16.to_le_bytes());
    config.build(register::STATUS, &0x0280u16.to_le_bytes());
    config.build(register::HEADER_TYPE, &[0x80]);
    // PIRQ A to D, not routed. No function of this board has an interrupt pin, so they only remember.
    config.build(0x60, &[0x80; 4]);
    config.allow(0x60, &[0x8f; 4]);
    ChipsetFunction { config: Mutex::new(config), ports: None }
}

/// Power management, 8086:7113, with its ports at 0xB000 unless the guest moves them.
pub(super) fn power_management(ports: Arc<dyn PortDevice>) -> ChipsetFunction {
    let mut config = ConfigSpace::new(Identity {
        vendor: 0x8086,
        device: 0x7113,
        revision: 3,
        class: 0x06_80_00,
        subsystem: Some(SUBSYSTEM),
    });
    config.build(register::STATUS, &0x0280u16.to_le_bytes());
    config.build(register::HEADER_TYPE, &[0x80]);
    config.build(register::INTERRUPT_LINE, &[9, 1]);
    config.build(PM_BASE, &0x0000_b001u32.to_le_bytes());
    config.allow(PM_BASE, &0x0000_ffc0u32.to_le_bytes());
    // APMC_EN: without it SeaBIOS asks for a system-management interrupt that never comes.
    config.build(0x58, &0x0200_0000u32.to_le_bytes());
    config.allow(0x58, &[0xff; 4]);
    config.build(PM_ENABLE, &[1]);
    config.allow(PM_ENABLE, &[1]);
    ChipsetFunction { config: Mutex::new(config), ports: Some(ports) }
}

impl ChipsetFunction {
    fn lock(&self) -> MutexGuard<'_, ConfigSpace> {
        // Every change is a loop of byte assignments: a poisoned space is still a space.
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The registers, for the root's state.
    pub(super) fn save(&self) -> Vec<u8> {
        self.lock().save()
    }

    /// Takes saved registers.
    pub(super) fn restore(&self, saved: &[u8]) -> Result<(), ForeignConfig> {
        self.lock().restore(saved)
    }
}

impl PciFunction for ChipsetFunction {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.lock().read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        self.lock().write(offset, data);
    }

    fn bars(&self) -> Vec<Bar> {
        Vec::new()
    }

    fn regions(&self) -> Vec<Region> {
        let config = self.lock();
        if self.ports.is_none() || config.u8(PM_ENABLE) & 1 == 0 {
            return Vec::new();
        }
        let base = u64::from(config.u32(PM_BASE) & 0xffc0);
        vec![Region { id: PM_REGION, space: Space::Io, base, size: PM_PORTS }]
    }

    fn region_read(&self, _: u8, offset: u64, data: &mut [u8]) {
        if let Some(ports) = &self.ports {
            ports.read(offset, data);
        }
    }

    fn region_write(&self, _: u8, offset: u64, data: &[u8]) {
        if let Some(ports) = &self.ports {
            ports.write(offset, data);
        }
    }

    fn mapped(&self, _: u8, _: Option<u64>) {}

    fn reset(&self) {
        self.lock().reset();
    }
}
