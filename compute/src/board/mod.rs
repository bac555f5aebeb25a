//! The board `i440fx-1`: fixed devices at fixed places, a frozen version.
//!
//! Whatever a guest can see of the board is part of the version: ports, lines, identifiers, what a register reads after
//! power-on. A change of any of it is a new version beside this one. PCI functions and bridges are in
//! [`crate::pci::i440fx_1`]; KVM has the interrupt controllers and the timer.
//!
//! The driver builds a [`Board`] on the buses of a VM that has no vCPU yet.

pub mod calendar;
pub mod clock;
pub mod pm;
pub mod reset;
pub mod rtc;
pub mod serial;

use crate::bus::{BusError, BusRange, PortDevice};
use crate::console::output::Writer;
use crate::device::Device;
use crate::interrupts::Interrupts;
use crate::memory::{GuestRam, HIGH_START};
use crate::pci::{PciRoot, i440fx_1};
use crate::vcpu::thread::Surroundings;
use clock::{Clock, Timed};
use pm::PowerManagement;
use rtc::Rtc;
use serial::Serial;
use std::sync::Arc;

/// The fixed part of the board.
#[derive(Debug)]
pub struct Board {
    /// The PCI hierarchy.
    pub pci: Arc<PciRoot>,
    /// The power-management block.
    pub pm: Arc<PowerManagement>,
    /// The real-time clock.
    pub rtc: Arc<Rtc>,
    /// The first serial port.
    pub serial: Arc<Serial>,
}

/// What the board is told about the machine it sits in.
#[derive(Debug)]
pub struct BoardSpec<'a> {
    /// The guest's memory.
    pub ram: &'a GuestRam,
    /// The number of vCPUs.
    pub vcpus: u8,
    /// Bits of a guest-physical address.
    pub physical_bits: u8,
    /// Where the serial port writes.
    pub console: Writer,
    /// The time that devices tell.
    pub clock: Arc<dyn Clock>,
}

impl Board {
    /// Puts the board on the buses.
    ///
    /// # Errors
    /// A place is taken: the buses were not empty.
    pub fn build(
        around: &Surroundings,
        interrupts: &Interrupts,
        spec: BoardSpec<'_>,
    ) -> Result<Self, BusError> {
        let line = |gsi: u32| Arc::new(interrupts.line(gsi));
        let bell = || Arc::clone(&around.bell);
        let (clock, vcpus) = (spec.clock, spec.vcpus);
        let pm = Arc::new(PowerManagement::new(Arc::clone(&clock), line(pm::SCI), bell()));
        let sizes = memory_sizes(spec.ram);
        let rtc = Arc::new(Rtc::new(clock, line(rtc::LINE), bell(), sizes, vcpus));
        let serial = Arc::new(Serial::new(spec.console, line(serial::LINE)));
        let pci = i440fx_1::build(
            Arc::clone(&around.ports),
            Arc::clone(&around.memory),
            i440fx_1::apertures(spec.physical_bits),
            Arc::new(pm::PmPorts(Arc::clone(&pm))),
        );
        let put = |start: u16, len: u16, device: Arc<dyn PortDevice>| {
            around.ports.insert(BusRange { start: start.into(), len: len.into() }, device)
        };
        for (range, device) in pci.config_ports() {
            around.ports.insert(range, device)?;
        }
        put(reset::RESET_PORT, 1, Arc::new(reset::ResetControl::new(bell())))?;
        put(reset::KEYBOARD_PORT, 1, Arc::new(reset::KeyboardData))?;
        put(reset::KEYBOARD_COMMAND_PORT, 1, Arc::new(reset::KeyboardController(bell())))?;
        put(reset::FAST_RESET_PORT, 1, Arc::new(reset::FastReset(bell())))?;
        put(rtc::PORT, 2, Arc::clone(&rtc) as _)?;
        put(serial::PORT, 8, Arc::clone(&serial) as _)?;
        put(pm::GPE_BASE, pm::GPE_LEN, Arc::new(pm::GpePorts(Arc::clone(&pm))))?;
        Ok(Self { pci, pm, rtc, serial })
    }

    /// The fixed devices, by the names under which their states travel. PCI comes first: other devices' registers
    /// appear where its bridges say.
    #[must_use]
    pub fn devices(&self) -> [(&'static str, Arc<dyn Device>); 4] {
        [
            ("pci", Arc::clone(&self.pci) as _),
            ("pm", Arc::clone(&self.pm) as _),
            ("rtc", Arc::clone(&self.rtc) as _),
            ("serial", Arc::clone(&self.serial) as _),
        ]
    }

    /// The devices that want to be called at a time.
    #[must_use]
    pub fn timed(&self) -> [&dyn Timed; 2] {
        [&*self.pm, &*self.rtc]
    }
}

/// Bytes of memory below and above 4 GiB.
fn memory_sizes(ram: &GuestRam) -> (u64, u64) {
    let sum = |high: bool| {
        let regions = ram.regions().iter().filter(|r| (r.guest_address >= HIGH_START) == high);
        regions.map(|region| region.size).sum()
    };
    (sum(false), sum(true))
}
