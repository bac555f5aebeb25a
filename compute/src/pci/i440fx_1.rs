//! Board `i440fx-1`: which functions and bridges there are, and which addresses devices get. **Frozen for ever.**
//!
//! What a guest sees of this board never changes: a running guest is moved between releases, and a kernel names its
//! disks and interfaces by these addresses. A change is a new board with a new name and a file of its own.
//!
//! | address | what |
//! |---|---|
//! | `0` | host bridge 8086:1237 |
//! | `1`, `1.3` | ISA bridge 8086:7000, power management 8086:7113 |
//! | `2`, `3`, `4` | PCI-to-PCI bridges 1b36:0001, 31 slots behind each |
//! | `5` … `31` | free slots of the root bus; the entropy device is at `5` |
//!
//! Disks are given `2/1`, `2/2`, … `2/31`, `3/1`, … upwards; NICs `4/1`, … `4/31`, then `3/31`, `3/30`, … downwards; so
//! both grow to 31 devices and more before they meet. The order in which devices are configured decides, and an address
//! in the configuration overrules.

use super::PciPath;
use super::chipset::{host_bridge, isa_bridge, power_management};
use super::config::Identity;
use super::root::{Apertures, PciRoot};
use crate::bus::{MemoryBus, PortBus, PortDevice};
use std::ops::Range;
use std::sync::Arc;

/// The board's name in configurations and in state.
pub const NAME: &str = "i440fx-1";
/// Root slots of the bridges.
pub const BRIDGES: [u8; 3] = [2, 3, 4];
/// The host bridge's memory window below 4 GiB.
pub const MEMORY32: Range<u64> = 0xc000_0000..0xfec0_0000;
/// Where the memory window above all memory begins, if the guest's physical addresses reach so far.
pub const MEMORY64_START: u64 = 0x80_0000_0000;
/// Bytes of the memory window above all memory.
pub const MEMORY64_SIZE: u64 = 0x80_0000_0000;
/// The entropy device's address.
pub const RNG: PciPath = root(5, 0);

const BRIDGE: Identity =
    Identity { vendor: 0x1b36, device: 0x0001, revision: 0, class: 0x06_04_00, subsystem: None };

const fn root(slot: u8, function: u8) -> PciPath {
    match PciPath::root_function(slot, function) {
        Some(path) => path,
        None => panic!("the board names a slot that no bus has"),
    }
}

/// The windows of the board for a guest whose physical addresses have `address_bits` bits.
#[must_use]
pub fn apertures(address_bits: u8) -> Apertures {
    let end = MEMORY64_START + MEMORY64_SIZE;
    let reach = 1u64.checked_shl(address_bits.into()).unwrap_or(u64::MAX);
    Apertures { memory32: MEMORY32, memory64: (end <= reach).then_some(MEMORY64_START..end) }
}

/// Builds the hierarchy with the chipset in it. It does not keep the buses alive. `power` is the power-management block at the ports of function `1.3`.
#[must_use]
pub fn build(
    ports: Arc<PortBus>,
    memory: Arc<MemoryBus>,
    apertures: Apertures,
    power: Arc<dyn PortDevice>,
) -> Arc<PciRoot> {
    let chipset = vec![
        (root(0, 0), Arc::new(host_bridge())),
        (root(1, 0), Arc::new(isa_bridge())),
        (root(1, 3), Arc::new(power_management(power))),
    ];
    Arc::new(PciRoot::new(chipset, &BRIDGES, BRIDGE, &ports, &memory, apertures))
}

/// The addresses that disks get unless told, best first.
pub fn disk_addresses() -> impl Iterator<Item = PciPath> {
    behind(BRIDGES[0], 1..=31).chain(behind(BRIDGES[1], 1..=31))
}

/// The addresses that NICs get unless told, best first.
pub fn nic_addresses() -> impl Iterator<Item = PciPath> {
    behind(BRIDGES[2], 1..=31).chain(behind(BRIDGES[1], (1..=31).rev()))
}

fn behind(bridge: u8, slots: impl Iterator<Item = u8>) -> impl Iterator<Item = PciPath> {
    slots.filter_map(move |slot| PciPath::behind(bridge, slot))
}
