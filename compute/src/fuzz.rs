//! Entry points for fuzzing: one function per parser of untrusted bytes and per register block. None may panic.
//!
//! What a guest writes: [`registers`]. What an operator gives: [`kernel`], [`config`]. What another process or a file
//! gives: [`states`]. PCI and virtio have their own in [`crate::pci::fuzz`] and [`crate::virtio`].

use crate::board::clock::{Clock, Timed};
use crate::board::pm::{GpePorts, PmPorts, PowerManagement};
use crate::board::reset::{FastReset, KeyboardController, KeyboardData, ResetControl};
use crate::board::rtc::Rtc;
use crate::board::serial::Serial;
use crate::boot::files::{BootFile, BootFiles};
use crate::boot::{BootSource, Surrounding, load};
use crate::bus::PortDevice;
use crate::console::output::{Output, Writer};
use crate::device::Device;
use crate::doorbell::Doorbell;
use crate::interrupts::Line;
use crate::machine::MachineState;
use crate::memory::GuestRam;
use crate::pci::{AcpiFacts, i440fx_1};
use crate::vcpu::state::VcpuState;
use bixi_api::compute::PageSize;
use bixi_api::state::{Declared, Payload};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A clock that the fuzzer moves, and a line that goes nowhere.
#[derive(Debug, Default)]
struct Idle(AtomicU64);

impl Clock for Idle {
    fn monotonic_ns(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn realtime_ns(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Line for Idle {
    fn set(&self, _active: bool) {}
}

/// The legacy devices, without a machine.
struct Rig {
    clock: Arc<Idle>,
    pm: Arc<PowerManagement>,
    rtc: Arc<Rtc>,
    serial: Arc<Serial>,
    ports: Vec<Arc<dyn PortDevice>>,
}

impl Rig {
    fn new() -> Option<Self> {
        let clock = Arc::new(Idle::default());
        let bell = Arc::new(Doorbell::new().ok()?);
        let output = Writer(Some(Arc::new(Output::default())));
        let pm = Arc::new(PowerManagement::new(clock.clone(), clock.clone(), bell.clone()));
        let sizes = (3 << 30, 1 << 40);
        let rtc = Arc::new(Rtc::new(clock.clone(), clock.clone(), bell.clone(), sizes, 64));
        let serial = Arc::new(Serial::new(output, clock.clone()));
        let ports: Vec<Arc<dyn PortDevice>> = vec![
            Arc::new(PmPorts(pm.clone())),
            Arc::new(GpePorts(pm.clone())),
            rtc.clone(),
            serial.clone(),
            Arc::new(ResetControl::new(bell.clone())),
            Arc::new(KeyboardData),
            Arc::new(KeyboardController(bell.clone())),
            Arc::new(FastReset(bell)),
        ];
        Some(Self { clock, pm, rtc, serial, ports })
    }

    fn devices(&self) -> [Arc<dyn Device>; 3] {
        [self.pm.clone(), self.rtc.clone(), self.serial.clone()]
    }

    /// Six bytes are one step: what, where, and four of data.
    fn step(&self, step: [u8; 6]) {
        let [what, place, data @ ..] = step;
        let port = &self.ports[usize::from(what & 7) % self.ports.len()];
        let offset = u64::from(place & 0x3f);
        let len = [1, 2, 4, 3][usize::from(place >> 6)];
        match what >> 3 {
            0..12 => port.write(offset, &data[..len]),
            12..20 => port.read(offset, &mut { data }[..len]),
            20..24 => {
                let ns = u64::from(u32::from_le_bytes(data)) << (place & 0x1f);
                // Never back, and not beyond what a clock can say.
                let _ = self.clock.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
                    now.checked_add(ns).filter(|now| *now < 1 << 62)
                });
            }
            24..26 => drop((self.pm.next_timer_ns(), self.rtc.next_timer_ns())),
            26..28 => {
                self.pm.on_timer();
                self.rtc.on_timer();
            }
            28 => self.pm.press_power_button(),
            29 => drop(self.serial.offer(&data)),
            30 => self.devices().iter().for_each(|device| device.reset()),
            _ => self.round_trip(),
        }
    }

    /// What a device declares it takes back, and then declares the same.
    fn round_trip(&self) {
        for device in self.devices() {
            let Declared::State(before) = device.declare() else { continue };
            if device.restore(&before).is_ok() {
                let after = device.declare();
                assert_eq!(after, Declared::State(before), "a state changed on its way");
            }
        }
    }
}

/// Any sequence of accesses to the legacy devices, with time, timers, resets and moves in between.
pub fn registers(data: &[u8]) {
    if let Some(rig) = Rig::new() {
        registers_of(&rig, data);
    }
}

fn registers_of(rig: &Rig, data: &[u8]) {
    for step in data.as_chunks::<6>().0 {
        rig.step(*step);
    }
}

/// Any file as a kernel.
pub fn kernel(data: &[u8]) {
    thread_local! {
        static RAM: Option<GuestRam> = GuestRam::new(48 << 20, PageSize::Small).ok();
    }
    let Ok(kernel) = BootFile::from_bytes(data) else { return };
    let initrd = BootFile::from_bytes(&data[..data.len().min(64)]).ok();
    let source = BootSource { files: BootFiles { kernel, initrd }, cmdline: "quiet".to_owned() };
    RAM.with(|ram| {
        let Some(ram) = ram else { return };
        let apertures = i440fx_1::apertures(40);
        let pci = AcpiFacts { last_bus: 255, apertures, bridges: vec![2, 3, 4] };
        let around = Surrounding { ram, vcpus: 3, pci, fresh: data.len().is_multiple_of(2) };
        let _ = load(&source, &around);
    });
}

/// Any file as a configuration.
pub fn config(data: &[u8]) {
    if let Ok(config) = crate::config::parse(data, Path::new("vm.json")) {
        let _ = crate::config::check(config);
    }
}

/// Any bytes as the state of a machine and of each legacy device.
pub fn states(data: &[u8]) {
    let Some(rig) = Rig::new() else { return };
    let _ = <MachineState as prost::Message>::decode(data);
    let _ = <VcpuState as prost::Message>::decode(data);
    for (device, kind) in rig.devices().iter().zip(["piix4-pm", "rtc-mc146818", "serial-16550"]) {
        let payload = Payload { kind: kind.to_owned(), version: 1, bytes: data.to_vec() };
        if device.restore(&payload).is_ok() {
            rig.round_trip();
        }
    }
    // Whatever was taken over, the registers live with it.
    registers_of(&rig, data);
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn registers_survive_anything(data in vec(any::<u8>(), 0..400)) {
            super::registers(&data);
        }

        #[test]
        fn states_survive_anything(data in vec(any::<u8>(), 0..200)) {
            super::states(&data);
        }

        #[test]
        fn states_survive_what_looks_like_one(
            registers in vec(any::<u8>(), 0..12),
            received in vec(any::<u8>(), 0..80),
        ) {
            let payload = crate::board::serial::SerialPayload { registers, received };
            super::states(&prost::Message::encode_to_vec(&payload));
        }

        #[test]
        fn kernels_survive_anything(
            start in prop_oneof![Just(b"\x7fELF\x02\x01\x01".to_vec()), Just(vec![0; 0x1f1])],
            data in vec(any::<u8>(), 0..300),
        ) {
            super::kernel(&[start, data].concat());
        }

        #[test]
        fn configs_survive_anything(text in ".{0,200}") {
            super::config(text.as_bytes());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// Good images with a few bytes changed reach deeper than noise does.
        #[test]
        fn changed_kernels_are_survived(
            elf in any::<bool>(),
            changes in vec((0_usize..1100, any::<u8>()), 0..6),
            cut in 0_usize..1400,
        ) {
            let mut image = if elf {
                crate::boot::pvh::tests::image(b"code", 0x100_0000)
            } else {
                crate::boot::bzimage::tests::image(700, |_| {})
            };
            for (at, value) in changes {
                let len = image.len();
                image[at % len] = value;
            }
            image.truncate(cut.max(1));
            super::kernel(&image);
        }
    }
}
