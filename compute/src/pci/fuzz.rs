//! Fuzz functions of this module: any bytes, any order, no panic.

use super::PciPath;
use super::config::{ConfigSpace, Identity};
use super::i440fx_1;
use super::msix::Vector;
use super::region::{Bar, BarKind, PciFunction, Region};
use crate::bus::{MemoryBus, PortBus, PortDevice};
use crate::device::Device;
use crate::interrupts::InterruptError;
use bixi_api::state::{Declared, Movable, Payload};
use std::sync::{Arc, Mutex, PoisonError};
use vmm_sys_util::eventfd::EventFd;

/// A function with BARs of all kinds that fills reads with zeroes.
#[derive(Debug)]
pub(super) struct Plain(Mutex<ConfigSpace>);

impl Plain {
    pub(super) fn new() -> Arc<Self> {
        let identity =
            Identity { vendor: 0x1234, device: 0x11, revision: 0, class: 0, subsystem: None };
        let mut config = ConfigSpace::new(identity);
        config.add_bar(Bar { index: 0, kind: BarKind::Memory32, size: 0x4000 });
        config.add_bar(Bar { index: 2, kind: BarKind::Prefetchable64, size: 1 << 20 });
        config.add_bar(Bar { index: 4, kind: BarKind::Io, size: 0x20 });
        Arc::new(Self(Mutex::new(config)))
    }

    fn config(&self) -> std::sync::MutexGuard<'_, ConfigSpace> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PciFunction for Plain {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.config().read(offset, data);
    }
    fn config_write(&self, offset: u16, data: &[u8]) {
        self.config().write(offset, data);
    }
    fn bars(&self) -> Vec<Bar> {
        self.config().bars().to_vec()
    }
    fn regions(&self) -> Vec<Region> {
        self.config().regions()
    }
    fn region_read(&self, id: u8, _: u64, data: &mut [u8]) {
        data.fill(id);
    }
    fn region_write(&self, _: u8, _: u64, _: &[u8]) {}
    fn mapped(&self, _: u8, _: Option<u64>) {}
    fn reset(&self) {
        self.config().reset();
    }
}

/// An interrupt vector that keeps a record in place of an interrupt controller.
#[derive(Debug)]
pub(crate) struct Recorded {
    event: EventFd,
    message: Mutex<(u64, u32)>,
    bound: Mutex<Option<(u64, u32)>>,
}

impl Recorded {
    pub(crate) fn new() -> std::io::Result<Arc<Self>> {
        let event = EventFd::new(libc::EFD_NONBLOCK)?;
        Ok(Arc::new(Self { event, message: Mutex::default(), bound: Mutex::default() }))
    }

    /// The message that signals become, while the vector is unmasked.
    pub(crate) fn bound(&self) -> Option<(u64, u32)> {
        *self.bound.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_bound(&self, message: Option<(u64, u32)>) {
        *self.bound.lock().unwrap_or_else(PoisonError::into_inner) = message;
    }

    /// Whether it was signalled since the last look.
    #[cfg(test)]
    pub(crate) fn signalled(&self) -> bool {
        self.event.read().is_ok()
    }
}

impl Vector for Recorded {
    fn eventfd(&self) -> &EventFd {
        &self.event
    }
    fn set_message(&self, address: u64, data: u32) -> Result<(), InterruptError> {
        *self.message.lock().unwrap_or_else(PoisonError::into_inner) = (address, data);
        if self.bound().is_some() {
            self.set_bound(Some((address, data)));
        }
        Ok(())
    }
    fn mask(&self) -> Result<(), InterruptError> {
        self.set_bound(None);
        Ok(())
    }
    fn unmask(&self) -> Result<(), InterruptError> {
        let message = *self.message.lock().unwrap_or_else(PoisonError::into_inner);
        self.set_bound(Some(message));
        Ok(())
    }
    fn is_pending(&self) -> bool {
        let pending = self.event.read().unwrap_or(0);
        // What was just read fits back in.
        let _ = if pending > 0 { self.event.write(pending) } else { Ok(()) };
        pending > 0
    }
}

/// Ports that read as zero.
#[derive(Debug)]
pub(super) struct NoPower;

impl PortDevice for NoPower {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }
    fn write(&self, _: u64, _: &[u8]) {}
}

/// Port and memory accesses of a guest to a board with a few functions: five bytes an access.
pub fn pci_accesses(data: &[u8]) {
    let (ports, memory) = (Arc::new(PortBus::default()), Arc::new(MemoryBus::default()));
    let apertures = i440fx_1::apertures(40);
    let power = Arc::new(NoPower);
    let pci = i440fx_1::build(Arc::clone(&ports), Arc::clone(&memory), apertures, power);
    for path in ["5", "2/1", "2/2", "4/31"] {
        let path: Result<PciPath, _> = path.parse();
        let _ = path.map(|path| pci.insert(path, Plain::new()));
    }
    for (range, device) in pci.config_ports() {
        let _ = ports.insert(range, device);
    }
    // Half of the inputs begin with a board that firmware has set up.
    if data.first().is_some_and(|b| b & 1 == 1) {
        let _ = pci.assign();
    }
    for access in data.chunks_exact(5) {
        let [what, rest @ ..] = access else { return };
        let value = [rest[0], rest[1], rest[2], rest[3]];
        let width = [1, 2, 4, 4][usize::from(what >> 2 & 3)];
        let port = 0xcf8 + u64::from(what >> 4 & 7);
        match what & 3 {
            0 => drop(ports.write(0xcf8, &(u32::from_le_bytes(value) | 1 << 31).to_le_bytes())),
            1 => drop(ports.write(port, &value[..width])),
            2 => drop(ports.read(port, &mut [0; 4][..width])),
            _ => drop(memory.read(u64::from(u32::from_le_bytes(value)), &mut [0; 8])),
        }
    }
    if let Declared::State(payload) = pci.declare() {
        let _ = pci.restore(&payload);
    }
}

/// Saved state of a hierarchy from an untrusted place.
pub fn pci_state(data: &[u8]) {
    let (ports, memory) = (Arc::new(PortBus::default()), Arc::new(MemoryBus::default()));
    let apertures = i440fx_1::apertures(40);
    let pci =
        i440fx_1::build(Arc::clone(&ports), Arc::clone(&memory), apertures, Arc::new(NoPower));
    let _ = pci.restore(&Payload { kind: "pci-root".into(), version: 1, bytes: data.to_vec() });
    pci.resume();
}
