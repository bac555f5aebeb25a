//! Micro-guests on `/dev/kvm`: ports, timers, power, resets, several vCPUs, pauses.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

use bixi_compute::board::{pm, reset};
use bixi_compute::doorbell::Ring;
use bixi_compute::microguest::{self, CODE, MicroGuest};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use vm_memory::{Bytes, GuestAddress};

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

#[test]
fn a_triple_fault_is_a_reset_and_the_machine_boots_again() {
    let Some(host) = microguest::host() else { return };
    let guest = MicroGuest::new(&host, 1, 4 << 20).unwrap();
    let entry = 0x10_0000;
    let code = long(entry, |a| {
        // Counts its starts, then loads an empty interrupt table and breaks.
        a.mov(rbx, 0x20_0000_u64)?;
        a.inc(dword_ptr(rbx))?;
        a.mov(rbx, 0x20_0100_u64)?;
        a.lidt(ptr(rbx))?;
        a.ud2()
    });
    guest.load(entry, &code).unwrap();
    guest.start_long(entry).unwrap();
    for starts in 1..=3 {
        assert!(guest.wait_ring(Ring::Reset));
        guest.machine.park().unwrap();
        assert_eq!(guest.peek::<u32>(0x20_0000).unwrap(), starts);
        guest.machine.reset().unwrap();
        guest.start_long(entry).unwrap();
    }
}

#[test]
fn the_pm_timer_never_goes_back() {
    let Some(host) = microguest::host() else { return };
    let guest = MicroGuest::new(&host, 1, 1 << 20).unwrap();
    let code = real(|a| {
        a.mov(cx, 500)?;
        a.mov(dx, u32::from(pm::PM_BASE) + 8)?;
        a.in_(eax, dx)?;
        a.mov(ebx, eax)?;
        let mut again = a.create_label();
        let mut back = a.create_label();
        a.set_label(&mut again)?;
        a.in_(eax, dx)?;
        a.mov(esi, eax)?;
        a.sub(eax, ebx)?;
        // Modulo 24 bits: more than half of the range ahead is behind.
        a.and(eax, 0xff_ffff)?;
        a.cmp(eax, 0x80_0000)?;
        a.jae(back)?;
        a.mov(ebx, esi)?;
        a.dec(cx)?;
        a.jnz(again)?;
        put_char(a, b'+')?;
        a.hlt()?;
        a.set_label(&mut back)?;
        put_char(a, b'-')?;
        a.hlt()
    });
    guest.load(CODE, &code).unwrap();
    guest.start_real().unwrap();
    assert!(guest.wait(|guest| !guest.output().is_empty()));
    assert_eq!(guest.output(), b"+");
}

/// A guest that counts at 0x20_0000 as fast as it can and writes the low byte to an unclaimed port now and then.
fn counter(entry: u64) -> Vec<u8> {
    long(entry, |a| {
        a.mov(rbx, 0x20_0000_u64)?;
        a.mov(dx, 0x80)?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.mov(rax, qword_ptr(rbx))?;
        a.inc(rax)?;
        a.mov(qword_ptr(rbx), rax)?;
        a.out(dx, al)?;
        a.jmp(again)
    })
}

#[test]
fn a_pause_at_any_instant_holds_and_loses_nothing() {
    let Some(host) = microguest::host() else { return };
    let guest = MicroGuest::new(&host, 1, 4 << 20).unwrap();
    let entry = 0x10_0000;
    guest.load(entry, &counter(entry)).unwrap();
    guest.start_long(entry).unwrap();
    let count = |guest: &MicroGuest| guest.peek::<u64>(0x20_0000).unwrap();
    assert!(guest.wait(|guest| count(guest) > 0));
    let mut seed = 0x9e37_79b9_u32;
    for _ in 0..100 {
        guest.machine.park().unwrap();
        let held = count(&guest);
        let exits = guest.machine.vcpus()[0].exits().snapshot()["io-out"];
        // Between the write to memory and the exit there is one instruction.
        assert!(held - exits <= 1, "{held} counted, {exits} exits");
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        assert_eq!(count(&guest), held, "it counts while it is parked");
        guest.machine.run();
        if seed & 0x100_0000 != 0 {
            assert!(guest.wait(|guest| count(guest) > held), "it does not go on after {held}");
        }
    }
}

#[test]
fn a_machine_goes_on_in_another_where_it_stood() {
    let Some(host) = microguest::host() else { return };
    let entry = 0x10_0000;
    let first = MicroGuest::new(&host, 1, 4 << 20).unwrap();
    first.load(entry, &counter(entry)).unwrap();
    first.start_long(entry).unwrap();
    let count = |guest: &MicroGuest| guest.peek::<u64>(0x20_0000).unwrap();
    assert!(first.wait(|guest| count(guest) > 1000));
    first.machine.park().unwrap();
    let state = first.machine.save().unwrap();
    let bytes = prost::Message::encode_to_vec(&state);
    let state: bixi_compute::machine::MachineState = prost::Message::decode(&*bytes).unwrap();
    let second = MicroGuest::new(&host, 1, 4 << 20).unwrap();
    let mut memory = vec![0; 4 << 20];
    let (from, to) = (first.machine.ram().memory(), second.machine.ram().memory());
    from.read_slice(&mut memory, GuestAddress(0)).unwrap();
    to.write_slice(&memory, GuestAddress(0)).unwrap();
    second.machine.restore(&state).unwrap();
    let held = count(&second);
    second.machine.run();
    assert!(second.wait(|guest| count(guest) > held + 1000), "it stands at {held}");
    assert_eq!(count(&first), held, "and the first one still stands");
    let other = MicroGuest::new(&host, 1, 8 << 20).unwrap();
    assert!(other.machine.restore(&state).is_err(), "a machine of another size");
}

#[test]
fn every_vcpu_is_started_by_the_first_one() {
    let Some(host) = microguest::host() else { return };
    const VCPUS: u8 = 4;
    let guest = MicroGuest::new(&host, VCPUS, 4 << 20).unwrap();
    let entry = 0x10_0000;
    // What the others run, in real mode at 0x3000: each adds one at 0x4000.
    let others = {
        let mut a = CodeAssembler::new(16).unwrap();
        a.xor(ax, ax).unwrap();
        a.mov(ds, eax).unwrap();
        a.lock().inc(dword_ptr(0x4000)).unwrap();
        a.hlt().unwrap();
        a.assemble(0x3000).unwrap()
    };
    let code = long(entry, |a| {
        // INIT and start-up message to all but itself, by the LAPIC's command register.
        a.mov(rbx, 0xfee0_0300_u64)?;
        a.mov(dword_ptr(rbx), 0x000c_4500_u32)?;
        a.mov(dword_ptr(rbx), 0x000c_4603_u32)?;
        a.hlt()
    });
    guest.load(0x3000, &others).unwrap();
    guest.load(entry, &code).unwrap();
    for _ in 0..2 {
        guest.poke(0x4000, 0_u32).unwrap();
        guest.start_long(entry).unwrap();
        let all = u32::from(VCPUS) - 1;
        assert!(guest.wait(|guest| guest.peek::<u32>(0x4000).unwrap() == all));
        guest.machine.park().unwrap();
        guest.machine.reset().unwrap();
    }
}

#[test]
fn unclaimed_ports_and_addresses_read_as_ones() {
    let Some(host) = microguest::host() else { return };
    let guest = MicroGuest::new(&host, 1, 4 << 20).unwrap();
    let entry = 0x10_0000;
    let code = long(entry, |a| {
        a.mov(rbx, 0x20_0000_u64)?;
        a.mov(dx, 0x5678)?;
        a.xor(eax, eax)?;
        a.in_(eax, dx)?;
        a.mov(dword_ptr(rbx), eax)?;
        a.mov(rcx, 0xd000_0000_u64)?;
        a.mov(rax, qword_ptr(rcx))?;
        a.mov(qword_ptr(rbx + 8), rax)?;
        put_char(a, b'.')?;
        a.hlt()
    });
    guest.load(entry, &code).unwrap();
    guest.start_long(entry).unwrap();
    assert!(guest.wait_output(b"."));
    assert_eq!(guest.peek::<u32>(0x20_0000).unwrap(), u32::MAX);
    assert_eq!(guest.peek::<u64>(0x20_0008).unwrap(), u64::MAX);
    let exits = guest.machine.vcpus()[0].exits().snapshot();
    assert_eq!((exits.get("io-in"), exits.get("mmio-read")), (Some(&1), Some(&1)));
}

#[test]
fn typed_input_reaches_the_guest_whole() {
    let Some(host) = microguest::host() else { return };
    let guest = MicroGuest::new(&host, 1, 1 << 20).unwrap();
    // Echoes what it receives.
    let code = real(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.mov(dx, 0x3fd)?;
        a.in_(al, dx)?;
        a.test(al, 1)?;
        a.jz(again)?;
        a.mov(dx, 0x3f8)?;
        a.in_(al, dx)?;
        a.out(dx, al)?;
        a.jmp(again)
    });
    guest.load(CODE, &code).unwrap();
    guest.start_real().unwrap();
    let text: Vec<u8> = (0..2000_u32).map(|n| b'a' + (n % 26) as u8).collect();
    let mut rest = text.as_slice();
    let serial = &guest.machine.board().serial;
    assert!(guest.wait(|_| {
        let taken = serial.offer(rest);
        rest = &rest[taken..];
        rest.is_empty()
    }));
    assert!(guest.wait(|guest| guest.output().len() == text.len()));
    assert!(guest.output() == text);
}
