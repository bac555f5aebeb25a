//! Micro-guests with a virtio device: notifications out, interrupts in, a BAR that moves.
//!
//! The registers are programmed through the buses, as a vCPU's exits are; what must not exit or must reach a vCPU is
//! done by guest code.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

use bixi_api::state::{Declared, Movable, Payload};
use bixi_compute::device::{Device, Quiesce, RestoreError};
use bixi_compute::microguest::{self, MicroGuest};
use bixi_compute::pci::PciPath;
use bixi_compute::pci::msix::Call;
use bixi_compute::virtio::{
    Activation, ActiveQueue, DeviceLink, Kind, KvmHost, VirtioDevice, VirtioPci,
};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use std::future::ready;
use std::sync::{Arc, Mutex};

const ENTRY: u64 = 0x10_0000;
const IDT: u64 = 0x20_0000;
const HANDLER: u64 = 0x11_0000;
/// What the guest counts: interrupts, and turns of its loop.
const COUNTERS: u64 = 0x30_0000;
/// Where the guest finds an address to use.
const ADDRESS: u64 = 0x30_0100;
const VECTOR: u32 = 0x41;
const SLOT: u8 = 7;
const VERSION_1: u64 = 1 << 32;

/// Assembles 64-bit code for `address`.
fn long(address: u64, build: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(64).unwrap();
    build(&mut assembler).unwrap();
    assembler.assemble(address).unwrap()
}

/// A device that keeps what the driver set up.
#[derive(Debug, Default)]
struct Kept {
    link: Arc<DeviceLink>,
    active: Mutex<Option<Activation>>,
}

impl Movable for Kept {
    fn declare(&self) -> Declared {
        Declared::State(Payload { kind: "kept".to_owned(), version: 1, bytes: Vec::new() })
    }
}

impl VirtioDevice for Kept {
    fn kind(&self) -> &'static Kind {
        &Kind { id: 4, name: "kept", class: 0x00_ff_00 }
    }
    fn features(&self) -> u64 {
        VERSION_1
    }
    fn queue_sizes(&self) -> Vec<u16> {
        vec![16, 16]
    }
    fn link(&self) -> &Arc<DeviceLink> {
        &self.link
    }
    fn activate(&self, activation: Activation) {
        *self.active.lock().unwrap() = Some(activation);
    }
    fn reset(&self, number: u64) {
        self.link.reset_done(number);
    }
    fn set_call(&self, _: u16, _: Option<Call>) {}
    fn quiesce(&self) -> Quiesce<'_> {
        Box::pin(ready(Ok(())))
    }
    fn resume(&self) {}
    fn restore(&self, _: &Payload, active: Option<Activation>) -> Result<(), RestoreError> {
        *self.active.lock().unwrap() = active;
        Ok(())
    }
}

/// A micro-guest with a device in a slot of the root bus, its two queues set up.
struct Rig {
    guest: MicroGuest,
    device: Arc<Kept>,
    function: Arc<VirtioPci>,
}

impl Rig {
    fn new() -> Option<Self> {
        let rig = Self::undriven()?;
        rig.drive();
        Some(rig)
    }

    fn undriven() -> Option<Self> {
        let host = microguest::host()?;
        let guest = MicroGuest::new(&host, 1, 8 << 20).unwrap();
        let device = Arc::new(Kept::default());
        let around = KvmHost {
            vm: Arc::clone(guest.machine.vm()),
            interrupts: Arc::clone(guest.machine.interrupts()),
        };
        let path = PciPath::root(SLOT).unwrap();
        let function =
            VirtioPci::new("kept", path, Arc::clone(&device) as _, Arc::new(around)).unwrap();
        guest.machine.board().pci.insert(path, Arc::clone(&function) as _).unwrap();
        guest.machine.board().pci.assign().unwrap();
        Some(Self { guest, device, function })
    }

    fn config(&self, register: u8) {
        let address = 1u32 << 31 | u32::from(SLOT) << 11 | u32::from(register);
        assert!(self.guest.machine.around().ports.write(0xcf8, &address.to_le_bytes()));
    }

    fn config_read(&self, register: u8) -> u32 {
        let mut data = [0; 4];
        self.config(register);
        assert!(self.guest.machine.around().ports.read(0xcfc, &mut data));
        u32::from_le_bytes(data)
    }

    fn config_write(&self, register: u8, value: u32) {
        self.config(register);
        assert!(self.guest.machine.around().ports.write(0xcfc, &value.to_le_bytes()));
    }

    fn bar(&self) -> u64 {
        u64::from(self.config_read(0x10) & !0xf)
    }

    fn write(&self, offset: u64, width: usize, value: u64) {
        let data = value.to_le_bytes();
        assert!(self.guest.machine.around().memory.write(self.bar() + offset, &data[..width]));
    }

    fn read(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        assert!(self.guest.machine.around().memory.read(self.bar() + offset, &mut data));
        u32::from_le_bytes(data)
    }

    /// From reset to DRIVER_OK, with a vector for each queue.
    fn drive(&self) {
        for status in [0, 1, 3] {
            self.write(0x14, 1, status);
        }
        self.write(0x08, 4, 1);
        self.write(0x0c, 4, VERSION_1 >> 32);
        self.write(0x14, 1, 11);
        for queue in 0..2 {
            self.write(0x16, 2, queue);
            self.write(0x1a, 2, queue + 1);
            for (register, at) in [(0x20, 0x40_0000), (0x28, 0x40_1000), (0x30, 0x40_2000)] {
                self.write(register, 4, at + queue * 0x1_0000);
            }
            self.write(0x1c, 2, 1);
        }
        self.write(0x14, 1, 15);
        assert!(self.device.active.lock().unwrap().is_some(), "the device has its queues");
    }

    fn queue(&self, index: usize) -> ActiveQueue {
        self.device.active.lock().unwrap().as_ref().unwrap().queues[index].clone()
    }

    fn counter(&self, index: u64) -> u64 {
        self.guest.peek(COUNTERS + 8 * index).unwrap()
    }

    /// Sets an entry of the MSI-X table up and says whether it is masked.
    fn vector(&self, index: u64, masked: bool) {
        let at = 0x3000 + 16 * index;
        let words = [0xfee0_0000, 0, u64::from(VECTOR), u64::from(masked)];
        (0..).step_by(4).zip(words).for_each(|(word, value)| self.write(at + word, 4, value));
    }

    /// Turns MSI-X on.
    fn msix_on(&self) {
        let at = self.config_read(0x34) as u8;
        assert_eq!(self.config_read(at) & 0xff, 0x11);
        self.config_write(at, 0x8000_0000);
    }

    /// Loads a handler that counts interrupts, and runs the guest with `body` in an endless loop.
    fn start(&self, body: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) {
        let handler = long(HANDLER, |a| {
            a.push(rax)?;
            a.mov(rax, COUNTERS)?;
            a.inc(qword_ptr(rax))?;
            // End of interrupt.
            a.mov(rax, 0xfee0_00b0_u64)?;
            a.mov(dword_ptr(rax), 0)?;
            a.pop(rax)?;
            a.iretq()
        });
        self.guest.load(HANDLER, &handler).unwrap();
        let gate = u128::from(HANDLER & 0xffff)
            | 0x10 << 16
            | 0x8e00 << 32
            | u128::from(HANDLER >> 16 & 0xffff) << 48
            | u128::from(HANDLER >> 32) << 64;
        self.guest.load(IDT + 16 * u64::from(VECTOR), &gate.to_le_bytes()).unwrap();
        let mut pointer = 0xfffu16.to_le_bytes().to_vec();
        pointer.extend(IDT.to_le_bytes());
        self.guest.load(IDT + 0x1000, &pointer).unwrap();
        let code = long(ENTRY, |a| {
            a.mov(rax, IDT + 0x1000)?;
            a.lidt(ptr(rax))?;
            // The local interrupt controller on.
            a.mov(rax, 0xfee0_00f0_u64)?;
            a.mov(dword_ptr(rax), 0x1ff)?;
            a.sti()?;
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            body(a)?;
            a.mov(rax, COUNTERS + 8)?;
            a.inc(qword_ptr(rax))?;
            a.jmp(again)
        });
        self.guest.load(ENTRY, &code).unwrap();
        // PCI is assigned again here, to the same addresses.
        self.guest.start_long(ENTRY).unwrap();
        // From its first turn on its interrupt controller takes messages.
        assert!(self.guest.wait(|_| self.counter(1) > 0));
    }

    /// Waits until the guest has gone on for a while.
    fn let_run(&self) {
        let turns = self.counter(1);
        assert!(self.guest.wait(|_| self.counter(1) > turns + 20));
    }
}

#[test]
fn a_notification_reaches_its_eventfd_without_an_exit() {
    let Some(rig) = Rig::new() else { return };
    let (first, second) = (rig.queue(0), rig.queue(1));
    let notify = rig.bar() + 0x2004;
    // One write for each turn, until the host says enough.
    rig.guest.poke(ADDRESS, notify).unwrap();
    rig.start(|a| {
        a.mov(rax, ADDRESS)?;
        a.mov(rbx, qword_ptr(rax))?;
        a.mov(word_ptr(rbx), 1)
    });
    assert!(rig.guest.wait(|_| rig.counter(1) >= 100));
    rig.guest.machine.park().unwrap();
    let turns = rig.counter(1);
    let kicks = second.kick.read().unwrap();
    assert!((turns..=turns + 1).contains(&kicks), "{kicks} kicks in {turns} turns");
    assert!(first.kick.read().is_err(), "the other queue's");
    let exits = rig.guest.machine.vcpus()[0].exits().snapshot();
    assert_eq!(exits.get("mmio-write").copied().unwrap_or(0), 0, "{exits:?}");
}

#[test]
fn a_call_reaches_the_guests_handler() {
    let Some(rig) = Rig::new() else { return };
    rig.vector(1, false);
    rig.msix_on();
    rig.start(|a| a.pause());
    let call = rig.queue(0).call.unwrap();
    for round in 1..=50 {
        call.signal();
        assert!(rig.guest.wait(|_| rig.counter(0) == round), "interrupt {round}");
    }
    rig.let_run();
    assert_eq!(rig.counter(0), 50, "once each");
}

#[test]
fn what_was_signalled_while_masked_is_delivered_once() {
    let Some(rig) = Rig::new() else { return };
    rig.vector(1, true);
    rig.msix_on();
    rig.start(|a| a.pause());
    let call = rig.queue(0).call.unwrap();
    for round in 1..=20 {
        for _ in 0..3 {
            call.signal();
        }
        rig.let_run();
        assert_eq!((rig.counter(0), rig.read(0x3800)), (round - 1, 2), "pending, not delivered");
        rig.vector(1, false);
        assert!(rig.guest.wait(|_| rig.counter(0) == round));
        assert_eq!(rig.read(0x3800), 0);
        rig.vector(1, true);
        assert_eq!(rig.read(0x3800), 0, "nothing is pending again");
        rig.vector(1, false);
        rig.let_run();
        assert_eq!(rig.counter(0), round, "delivered once");
        rig.vector(1, true);
    }
}

#[test]
fn a_bar_moves_while_the_guest_uses_it() {
    let Some(rig) = Rig::new() else { return };
    let home = rig.bar();
    let kick = rig.queue(0).kick;
    rig.guest.poke(ADDRESS, home).unwrap();
    // Reads a register and notifies, at whatever address it is told.
    rig.start(|a| {
        a.mov(rax, ADDRESS)?;
        a.mov(rbx, qword_ptr(rax))?;
        a.mov(ecx, dword_ptr(rbx + 0x12))?;
        a.mov(rax, ADDRESS + 8)?;
        a.mov(dword_ptr(rax), ecx)?;
        a.mov(word_ptr(rbx + 0x2000), 0)
    });
    rig.let_run();
    // Elsewhere, and for a moment where nothing of PCI may be: memory, the interrupt controllers, nowhere.
    for base in [0xd000_0000, 0x10_0000, 0xfec0_0000, 0xfee0_0000, 0xffff_c000, 0, 0xe000_0000] {
        rig.config_write(0x10, base);
        rig.let_run();
    }
    assert_eq!(rig.guest.peek::<u32>(ADDRESS + 8).unwrap(), u32::MAX, "nobody at the old address");
    let _ = kick.read();
    rig.let_run();
    assert!(kick.read().is_err(), "nor a notification");
    rig.guest.poke(ADDRESS, 0xe000_0000_u64).unwrap();
    assert!(rig.guest.wait(|guest| guest.peek::<u16>(ADDRESS + 8).unwrap() == 2));
    assert!(rig.guest.wait(|_| kick.read().is_ok()));
    let status = rig.read(0x14) & 0xff;
    assert_eq!(status, 15, "the device noticed nothing");
}

#[test]
fn a_device_with_its_state_goes_on_in_another_machine() {
    let Some(rig) = Rig::new() else { return };
    rig.vector(1, true);
    rig.msix_on();
    rig.config_write(0x10, 0xd000_0000);
    rig.queue(0).call.unwrap().signal();
    let parts = |rig: &Rig| {
        [
            Arc::clone(&rig.guest.machine.board().pci) as Arc<dyn Device>,
            Arc::clone(&rig.function) as _,
        ]
    };
    let states = parts(&rig).map(|part| part.declare());
    let moved = Rig::undriven().unwrap();
    moved.start(|a| a.pause());
    // The guest has not touched the device: as good as before it ran.
    for (part, state) in parts(&moved).iter().zip(&states) {
        let Declared::State(state) = state else { panic!("movable") };
        part.restore(state).unwrap();
    }
    parts(&moved).iter().for_each(|part| part.resume());
    assert_eq!((moved.bar(), moved.read(0x14) & 0xff), (0xd000_0000, 15));
    assert_eq!(moved.read(0x3800), 2, "what was pending still is");
    moved.vector(1, false);
    assert!(moved.guest.wait(|_| moved.counter(0) == 1), "and is delivered there");
    moved.queue(0).call.unwrap().signal();
    assert!(moved.guest.wait(|_| moved.counter(0) == 2));
    let notify = 0xd000_2000u64;
    assert!(moved.guest.machine.around().memory.write(notify, &[0, 0]));
    assert!(moved.queue(0).kick.read().is_ok());
}
