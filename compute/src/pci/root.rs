//! The root of the hierarchy: configuration cycles in, regions out.
//!
//! Called by vCPU threads through the two ports of configuration mechanism #1, by the board at start-up, and by the
//! driver to insert and remove functions. One lock guards registers of bridges, the list of functions and what is mapped;
//! configuration cycles are rare and slow on any machine.

use super::PciPath;
use super::bridge::Bridge;
use super::chipset::ChipsetFunction;
use super::config::Identity;
use super::region::{PciFunction, Region, Space};
use super::state::{FunctionState, ROOT, RootState};
use crate::bus::{BusRange, MemoryBus, MemoryDevice, PortBus, PortDevice};
use crate::device::{Device, RestoreError};
use bixi_api::compute::DeviceDescription;
use bixi_api::state::{Declared, Movable, Payload};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// The port of the address latch; only a write of four bytes reaches it.
pub const CONFIG_ADDRESS: u16 = 0xcf8;
/// The four ports of the data window.
pub const CONFIG_DATA: u16 = 0xcfc;
/// Address latch: cycles are on.
const ENABLE: u32 = 1 << 31;
/// Address latch: the bits that hold what is written.
const LATCHED: u32 = 0x80ff_fffc;

/// The addresses that the host bridge passes to PCI. Regions outside of them are never visible.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Apertures {
    /// Below 4 GiB, free of memory and of the interrupt controllers.
    pub memory32: Range<u64>,
    /// Above memory, within the guest's physical address bits; none on a CPU with too few.
    pub memory64: Option<Range<u64>>,
}

impl Apertures {
    fn hold(&self, region: &Region) -> bool {
        let Some(end) = region.end() else { return false };
        let inside = |range: &Range<u64>| range.start <= region.base && end <= range.end;
        match region.space {
            Space::Io => end <= 0x1_0000,
            Space::Memory => inside(&self.memory32) || self.memory64.as_ref().is_some_and(inside),
        }
    }
}

/// What the ACPI tables say of the hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcpiFacts {
    /// The last bus number; the first is 0.
    pub last_bus: u8,
    /// The windows of memory.
    pub apertures: Apertures,
    /// Root slots of the bridges.
    pub bridges: Vec<u8>,
}

/// Why a function cannot be inserted.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InsertError {
    /// Something is there already.
    #[error("address {0} is taken: choose another")]
    Taken(PciPath),
    /// There is no such bridge.
    #[error(
        "address {0} is behind a bridge that this board has not: it has bridges in root slots {1}"
    )]
    NoBridge(PciPath, String),
    /// Behind a bridge, slot 0 stays empty.
    #[error("address {0} is not usable: behind a bridge slots go from 1 to 31")]
    ReservedSlot(PciPath),
}

/// The PCI hierarchy of one VM.
pub struct PciRoot {
    pub(super) inner: Mutex<Inner>,
    /// Those of the functions whose registers the root answers for.
    chipset: Vec<(PciPath, Arc<ChipsetFunction>)>,
    /// Weak: the buses hold this root's ports.
    ports: Weak<PortBus>,
    memory: Weak<MemoryBus>,
    pub(super) apertures: Apertures,
}

pub(super) struct Inner {
    address: u32,
    pub(super) bridges: BTreeMap<u8, Bridge>,
    pub(super) functions: BTreeMap<PciPath, Arc<dyn PciFunction>>,
    mapped: Vec<(PciPath, Region)>,
}

impl std::fmt::Debug for PciRoot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let inner = self.lock();
        let functions: Vec<_> = inner.functions.keys().map(ToString::to_string).collect();
        f.debug_struct("PciRoot")
            .field("functions", &functions)
            .field("mapped", &inner.mapped)
            .finish()
    }
}

/// Whom a configuration cycle is for.
enum Target {
    Bridge(u8),
    Function(PciPath),
}

impl PciRoot {
    /// A hierarchy of `chipset` and of bridges in the root slots `bridges`, whose regions appear on `ports` and `memory`.
    pub(super) fn new(
        chipset: Vec<(PciPath, Arc<ChipsetFunction>)>,
        bridges: &[u8],
        bridge: Identity,
        ports: &Arc<PortBus>,
        memory: &Arc<MemoryBus>,
        apertures: Apertures,
    ) -> Self {
        let (ports, memory) = (Arc::downgrade(ports), Arc::downgrade(memory));
        let functions =
            chipset.iter().map(|(path, f)| (*path, Arc::clone(f) as Arc<dyn PciFunction>));
        let inner = Inner {
            address: 0,
            bridges: bridges.iter().map(|slot| (*slot, Bridge::new(bridge))).collect(),
            functions: functions.collect(),
            mapped: Vec::new(),
        };
        let root = Self { inner: Mutex::new(inner), chipset, ports, memory, apertures };
        root.remap(&mut root.lock());
        root
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        // Registers are plain values, and what is mapped is computed anew from them.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The ports of configuration mechanism #1, for the port bus. Ports in between are not PCI's: 0xCF9 is the reset
    /// register.
    #[must_use]
    pub fn config_ports(self: &Arc<Self>) -> [(BusRange, Arc<dyn PortDevice>); 2] {
        let range = |port: u16, len| BusRange { start: u64::from(port), len };
        [
            (range(CONFIG_ADDRESS, 1), Arc::new(AddressPort(Arc::clone(self)))),
            (range(CONFIG_DATA, 4), Arc::new(DataPort(Arc::clone(self)))),
        ]
    }

    /// What the ACPI tables say of the hierarchy.
    #[must_use]
    pub fn acpi_facts(&self) -> AcpiFacts {
        AcpiFacts {
            last_bus: 0xff,
            apertures: self.apertures.clone(),
            bridges: self.lock().bridges.keys().copied().collect(),
        }
    }

    /// Puts `function` at `path`. The guest may run; it finds the function when it looks.
    ///
    /// # Errors
    /// The address is taken or does not exist.
    pub fn insert(&self, path: PciPath, function: Arc<dyn PciFunction>) -> Result<(), InsertError> {
        let mut inner = self.lock();
        match path.bridge() {
            None if inner.bridges.contains_key(&path.slot()) => {
                return Err(InsertError::Taken(path));
            }
            Some(bridge) if !inner.bridges.contains_key(&bridge) => {
                let slots: Vec<_> = inner.bridges.keys().map(ToString::to_string).collect();
                return Err(InsertError::NoBridge(path, slots.join(", ")));
            }
            Some(_) if path.slot() == 0 => return Err(InsertError::ReservedSlot(path)),
            _ => {}
        }
        if inner.functions.contains_key(&path) {
            return Err(InsertError::Taken(path));
        }
        inner.functions.insert(path, function);
        self.remap(&mut inner);
        Ok(())
    }

    /// Takes the function at `path` away, its regions first.
    pub fn remove(&self, path: PciPath) -> Option<Arc<dyn PciFunction>> {
        let mut inner = self.lock();
        let function = inner.functions.remove(&path)?;
        let gone: Vec<_> = inner.mapped.iter().filter(|(p, _)| *p == path).copied().collect();
        for (_, region) in gone {
            self.unmap(&mut inner, path, &region, &function);
        }
        self.remap(&mut inner);
        Some(function)
    }

    /// The functions and where they sit, the chipset's too.
    #[must_use]
    pub fn functions(&self) -> Vec<(PciPath, Arc<dyn PciFunction>)> {
        self.lock().functions.iter().map(|(path, f)| (*path, Arc::clone(f))).collect()
    }

    /// Whether a device can be put at `path` now.
    #[must_use]
    pub fn is_free(&self, path: PciPath) -> bool {
        let inner = self.lock();
        let on_root = path.bridge().is_none();
        let reachable = match path.bridge() {
            None => !inner.bridges.contains_key(&path.slot()),
            Some(bridge) => path.slot() != 0 && inner.bridges.contains_key(&bridge),
        };
        // On the root bus a slot that holds any function is a chipset's or a device's: functions are not shared.
        let taken = inner
            .functions
            .keys()
            .any(|other| other.bridge() == path.bridge() && other.slot() == path.slot());
        reachable && !taken && !(on_root && path.slot() == 0)
    }

    /// Reads configuration space through the latched address. `offset` counts from the data port.
    fn data_read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let inner = self.lock();
        let Some((target, register)) = inner.cycle(offset) else { return };
        let len = within_dword(register, data.len());
        inner.read(&target, register, &mut data[..len]);
    }

    fn data_write(&self, offset: u64, data: &[u8]) {
        let mut inner = self.lock();
        let Some((target, register)) = inner.cycle(offset) else { return };
        let data = &data[..within_dword(register, data.len())];
        self.config_write(&mut inner, &target, register, data);
    }

    fn config_write(&self, inner: &mut Inner, target: &Target, register: u16, data: &[u8]) {
        match target {
            Target::Bridge(slot) => {
                let Some(bridge) = inner.bridges.get_mut(slot) else { return };
                if bridge.write(register, data) {
                    for (path, function) in &inner.functions {
                        if path.bridge() == Some(*slot) {
                            function.reset();
                        }
                    }
                }
                self.remap(inner);
            }
            Target::Function(path) => {
                let Some(function) = inner.functions.get(path) else { return };
                let before = function.regions();
                function.config_write(register, data);
                if before != function.regions() {
                    self.remap(inner);
                }
            }
        }
    }

    /// Brings the buses in line with the registers.
    pub(super) fn remap(&self, inner: &mut Inner) {
        let wanted = inner.visible(&self.apertures);
        let gone: Vec<_> =
            inner.mapped.iter().filter(|mapping| !wanted.contains(mapping)).copied().collect();
        for (path, region) in gone {
            if let Some(function) = inner.functions.get(&path).map(Arc::clone) {
                self.unmap(inner, path, &region, &function);
            }
        }
        for (path, region) in wanted {
            if !inner.mapped.contains(&(path, region)) {
                self.map(inner, path, region);
            }
        }
    }

    fn map(&self, inner: &mut Inner, path: PciPath, region: Region) {
        let Some(function) = inner.functions.get(&path).map(Arc::clone) else { return };
        let window = Arc::new(Window { function: Arc::clone(&function), id: region.id });
        let range = BusRange { start: region.base, len: region.size };
        // A machine whose buses are gone is being taken down; nobody looks any more.
        let done = match region.space {
            Space::Io => self.ports.upgrade().map(|bus| bus.insert(range, window)),
            Space::Memory => self.memory.upgrade().map(|bus| bus.insert(range, window)),
        };
        // A device that is no PCI function is in the way. It keeps its place, as a decoder nearer to the CPU would.
        if done.is_some_and(|done| done.is_ok()) {
            inner.mapped.push((path, region));
            function.mapped(region.id, Some(region.base));
        }
    }

    fn unmap(
        &self,
        inner: &mut Inner,
        path: PciPath,
        region: &Region,
        function: &Arc<dyn PciFunction>,
    ) {
        function.mapped(region.id, None);
        let range = BusRange { start: region.base, len: region.size };
        match region.space {
            Space::Io => drop(self.ports.upgrade().map(|bus| bus.remove(range))),
            Space::Memory => drop(self.memory.upgrade().map(|bus| bus.remove(range))),
        }
        inner.mapped.retain(|mapping| *mapping != (path, *region));
    }
}

/// How many of `len` bytes at `register` lie in the same dword: a cycle carries no more.
fn within_dword(register: u16, len: usize) -> usize {
    len.min(4 - usize::from(register & 3))
}

impl Inner {
    /// Whom the latched address is for, and which register `offset` ports into the data window is.
    fn cycle(&self, offset: u64) -> Option<(Target, u16)> {
        if self.address & ENABLE == 0 || offset > 3 {
            return None;
        }
        let [register, devfn, bus, _] = self.address.to_le_bytes();
        let register = u16::from(register & 0xfc) + offset as u16;
        Some((self.target(bus, devfn)?, register))
    }

    fn target(&self, bus: u8, devfn: u8) -> Option<Target> {
        let (slot, function) = (devfn >> 3, devfn & 7);
        let path = if bus == 0 {
            if self.bridges.contains_key(&slot) {
                return (function == 0).then_some(Target::Bridge(slot));
            }
            PciPath::root_function(slot, function)?
        } else {
            let (at, bridge) = self.bridges.iter().find(|(_, bridge)| bridge.leads_to(bus))?;
            // A bus number beyond the secondary belongs to a bridge further down; there is none.
            if bridge.secondary() != Some(bus) || function != 0 {
                return None;
            }
            PciPath::behind(*at, slot)?
        };
        self.functions.contains_key(&path).then_some(Target::Function(path))
    }

    /// What is on the buses now.
    #[cfg(test)]
    pub(super) fn mapped(&self) -> Vec<(PciPath, Region)> {
        let mut mapped = self.mapped.clone();
        mapped.sort_by_key(|(path, region)| (*path, region.id));
        mapped
    }

    fn read(&self, target: &Target, register: u16, data: &mut [u8]) {
        match target {
            Target::Bridge(slot) => {
                if let Some(bridge) = self.bridges.get(slot) {
                    bridge.read(register, data);
                }
            }
            Target::Function(path) => {
                if let Some(function) = self.functions.get(path) {
                    function.config_read(register, data);
                }
            }
        }
    }

    /// The regions that accesses reach, computed from registers alone.
    fn visible(&self, apertures: &Apertures) -> Vec<(PciPath, Region)> {
        let mut visible: Vec<(PciPath, Region)> = Vec::new();
        for (path, function) in &self.functions {
            let bridge = path.bridge().map(|slot| self.bridges.get(&slot));
            for region in function.regions() {
                let passed = bridge.is_none_or(|b| b.is_some_and(|b| b.forwards(&region)));
                let free = visible.iter().all(|(_, other)| !other.overlaps(&region));
                if passed && free && apertures.hold(&region) {
                    visible.push((*path, region));
                }
            }
        }
        visible
    }
}

impl Movable for PciRoot {
    fn declare(&self) -> Declared {
        let inner = self.lock();
        let bridges = inner.bridges.iter().map(|(slot, bridge)| FunctionState {
            devfn: u32::from(*slot) << 3,
            config: bridge.save(),
        });
        let chipset = self.chipset.iter().map(|(path, function)| FunctionState {
            devfn: path.devfn().into(),
            config: function.save(),
        });
        let functions = bridges.chain(chipset).collect();
        Declared::State(Payload::new(ROOT, 1, &RootState { address: inner.address, functions }))
    }
}

impl Device for PciRoot {
    fn describe(&self) -> Option<DeviceDescription> {
        None
    }

    /// Resets the bus: every register of every bridge and function, devices included, as after power-on.
    fn reset(&self) {
        let mut inner = self.lock();
        inner.address = 0;
        inner.bridges.values_mut().for_each(Bridge::reset);
        inner.functions.values().for_each(|function| function.reset());
        self.remap(&mut inner);
    }

    fn restore(&self, state: &Payload) -> Result<(), RestoreError> {
        let state: RootState = state.read(ROOT, 1)?;
        let mut inner = self.lock();
        let value = |what: String| RestoreError::Value { device: "the PCI root".into(), what };
        // As many as there are, each known and none twice: so none is missing.
        if state.functions.len() != inner.bridges.len() + self.chipset.len() {
            return Err(value(format!("{} functions", state.functions.len())));
        }
        let mut seen = BTreeSet::new();
        for FunctionState { devfn, config } in &state.functions {
            let chipset = self.chipset.iter().find(|(path, _)| u32::from(path.devfn()) == *devfn);
            let slot = u8::try_from(*devfn >> 3).ok().filter(|_| *devfn & 7 == 0);
            let bridge = slot.and_then(|slot| inner.bridges.get_mut(&slot));
            let done = match (chipset, bridge) {
                _ if !seen.insert(*devfn) => Err(value(format!("function {devfn:#x} twice"))),
                (Some((_, function)), _) => {
                    function.restore(config).map_err(|e| value(e.to_string()))
                }
                (None, Some(bridge)) => bridge.restore(config).map_err(|e| value(e.to_string())),
                (None, None) => {
                    Err(value(format!("a function {devfn:#x} that this board has not")))
                }
            };
            done?;
        }
        inner.address = state.address & LATCHED;
        Ok(())
    }

    fn resume(&self) {
        // Devices restored after the root have brought their BARs along.
        self.remap(&mut self.lock());
    }
}

/// Port 0xCF8.
struct AddressPort(Arc<PciRoot>);

impl PortDevice for AddressPort {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if offset == 0 && data.len() == 4 {
            data.copy_from_slice(&self.0.lock().address.to_le_bytes());
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        // Narrower accesses are for other devices that hide in these ports.
        if let (0, Ok(address)) = (offset, data.try_into().map(u32::from_le_bytes)) {
            self.0.lock().address = address & LATCHED;
        }
    }
}

/// Ports 0xCFC to 0xCFF.
struct DataPort(Arc<PciRoot>);

impl PortDevice for DataPort {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.0.data_read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.0.data_write(offset, data);
    }
}

/// A region on a bus.
struct Window {
    function: Arc<dyn PciFunction>,
    id: u8,
}

impl PortDevice for Window {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.function.region_read(self.id, offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.function.region_write(self.id, offset, data);
    }
}

impl MemoryDevice for Window {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.function.region_read(self.id, offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.function.region_write(self.id, offset, data);
    }
}
