//! Micro-guests on `/dev/kvm`: ports, timers, power, resets, several vCPUs, pauses.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

use bixi_compute::board::{pm, reset};
use bixi_compute::doorbell::Ring;
use bixi_compute::microguest::{self, CODE, MicroGuest};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

/// Assembles 16-bit code for [`CODE`].
fn real(build: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(16).unwrap();
    build(&mut assembler).unwrap();
    assembler.assemble(0).unwrap()
}

/// Assembles 64-bit code for `address`.
fn long(address: u64, build: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(64).unwrap();
    build(&mut assembler).unwrap();
    assembler.assemble(address).unwrap()
}

fn put_char(a: &mut CodeAssembler, character: u8) -> Result<(), IcedError> {
    a.mov(dx, 0x3f8)?;
    a.mov(al, u32::from(character))?;
    a.out(dx, al)
}

#[test]
fn a_guest_writes_to_the_serial_port_and_powers_off() {
    let Some(host) = microguest::host() else { return };
    let guest = MicroGuest::new(&host, 1, 1 << 20).unwrap();
    let code = real(|a| {
        for character in *b"hello" {
            put_char(a, character)?;
        }
        a.mov(dx, u32::from(pm::PM_BASE) + 4)?;
        a.mov(ax, 0x2000)?;
        a.out(dx, ax)?;
        put_char(a, b'!')?;
        a.hlt()
    });
    guest.load(CODE, &code).unwrap();
    guest.start_real().unwrap();
    assert!(guest.wait_ring(Ring::PowerOff));
    guest.machine.park().unwrap();
    assert_eq!(guest.output(), b"hello", "the vCPU stands still at once");
    let exits = guest.machine.vcpus()[0].exits().snapshot();
    assert_eq!(exits.get("io-out"), Some(&6));
}

#[test]
fn long_mode_is_entered_with_all_of_4_gib_mapped() {
    let Some(host) = microguest::host() else { return };
    let guest = MicroGuest::new(&host, 1, 4 << 20).unwrap();
    let entry = 0x10_0000;
    let code = long(entry, |a| {
        a.mov(rax, 0x1122_3344_5566_7788_u64)?;
        a.mov(rbx, 0x20_0000_u64)?;
        a.mov(qword_ptr(rbx), rax)?;
        // The LAPIC's version register, near the end of the map.
        a.mov(rbx, 0xfee0_0030_u64)?;
        a.mov(eax, dword_ptr(rbx))?;
        a.mov(rbx, 0x20_0008_u64)?;
        a.mov(dword_ptr(rbx), eax)?;
        a.mov(dx, u32::from(reset::RESET_PORT))?;
        a.mov(al, u32::from(reset::RESET_VALUE))?;
        a.out(dx, al)?;
        a.hlt()
    });
    guest.load(entry, &code).unwrap();
    guest.start_long(entry).unwrap();
    assert!(guest.wait_ring(Ring::Reset));
    assert_eq!(guest.peek::<u64>(0x20_0000).unwrap(), 0x1122_3344_5566_7788);
    let version: u32 = guest.peek(0x20_0008).unwrap();
    assert_eq!(version & 0xf0, 0x10, "an integrated LAPIC: {version:#x}");
}
