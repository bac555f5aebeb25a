//! The registers with which a guest is entered without firmware.
//!
//! Three entries: real mode (what a processor does by itself, at an address of choice), 32-bit protected mode without
//! paging (PVH), 64-bit mode with an identity map (Linux's 64-bit boot protocol). The tables that protected modes need
//! lie in guest memory, written by [`write_tables`].

use crate::kvm::{KvmError, Refused};
use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

/// Where the first vCPU begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// Real mode at `segment << 4`, with IP 0 and all data segments zero.
    Real {
        /// The code segment.
        segment: u16,
    },
    /// 32-bit protected mode without paging; EBX points to the PVH start info.
    Pvh {
        /// The instruction pointer.
        entry: u32,
        /// The start info's guest address.
        start_info: u32,
    },
    /// 64-bit mode, the first 4 GiB mapped one to one; RSI points to Linux's boot parameters.
    Long {
        /// The instruction pointer.
        entry: u64,
        /// The boot parameters' guest address.
        boot_params: u64,
    },
}

/// Where the tables lie; below the boot parameters and never where a kernel is loaded.
const GDT: u64 = 0x500;
const IDT: u64 = 0x540;
const PAGE_TABLES: u64 = 0x9000;
const STACK: u64 = 0x8ff0;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// Page-table entry bits: present and writable, and "maps 2 MiB itself".
const PRESENT_WRITABLE: u64 = 3;
const LARGE: u64 = 1 << 7;

/// A flat segment of the table at [`GDT`].
#[derive(Debug, Clone, Copy)]
struct Flat {
    /// Its place in the table.
    index: u16,
    /// The type field: code or data.
    kind: u8,
    /// Whether it is 64-bit code.
    long: bool,
}

impl Flat {
    /// A busy task state segment: the processor demands one.
    fn is_task(self) -> bool {
        self.kind == 0xb && self.index == 4
    }

    fn descriptor(self) -> u64 {
        let mut flags: u64 = if self.long { 0xa } else { 0xc };
        let (mut limit, mut system): (u64, u64) = (0xf_ffff, 1 << 4);
        if self.is_task() {
            (flags, limit, system) = (0, 0x67, 0);
        }
        let access = u64::from(self.kind) | system | 1 << 7;
        (limit & 0xffff) | access << 40 | (limit >> 16) << 48 | flags << 52
    }

    fn segment(self) -> kvm_segment {
        let task = self.is_task();
        kvm_segment {
            base: 0,
            limit: if task { 0x67 } else { 0xffff_ffff },
            selector: self.index * 8,
            type_: self.kind,
            present: 1,
            dpl: 0,
            db: u8::from(!self.long && !task),
            s: u8::from(!task),
            l: u8::from(self.long),
            g: u8::from(!task),
            ..Default::default()
        }
    }
}

/// Linux's 64-bit protocol demands code at selector 0x10 and data at 0x18; PVH does not say.
const fn code(long: bool) -> Flat {
    Flat { index: 2, kind: 0xb, long }
}
const DATA: Flat = Flat { index: 3, kind: 3, long: false };
const TASK: Flat = Flat { index: 4, kind: 0xb, long: false };

/// Writes descriptor and page tables where `entry` needs them.
///
/// # Errors
/// Guest memory does not reach that far.
pub fn write_tables(memory: &GuestMemoryMmap, entry: &Entry) -> Result<(), GuestMemoryError> {
    let long = match entry {
        Entry::Real { .. } => return Ok(()),
        Entry::Pvh { .. } => false,
        Entry::Long { .. } => true,
    };
    let gdt = [0, 0, code(long).descriptor(), DATA.descriptor(), TASK.descriptor()];
    for (slot, descriptor) in (0..).zip(gdt) {
        memory.write_obj(descriptor, GuestAddress(GDT + 8 * slot))?;
    }
    memory.write_obj(0_u64, GuestAddress(IDT))?;
    if long {
        write_identity_map(memory)?;
    }
    Ok(())
}

/// One top-level page, one page of 1 GiB entries, four pages of 2 MiB entries: the first 4 GiB.
fn write_identity_map(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    let page = |number: u64| PAGE_TABLES + 0x1000 * number;
    memory.write_obj(page(1) | PRESENT_WRITABLE, GuestAddress(page(0)))?;
    for gigabyte in 0..4 {
        memory.write_obj(
            page(2 + gigabyte) | PRESENT_WRITABLE,
            GuestAddress(page(1) + 8 * gigabyte),
        )?;
        let mut entries = [0; 4096];
        for (number, entry) in (0_u64..).zip(entries.chunks_exact_mut(8)) {
            let address = (gigabyte << 30) | (number << 21);
            entry.copy_from_slice(&(address | PRESENT_WRITABLE | LARGE).to_le_bytes());
        }
        memory.write_slice(&entries, GuestAddress(page(2 + gigabyte)))?;
    }
    Ok(())
}

/// Sets the registers of the first vCPU.
///
/// # Errors
/// KVM refuses.
pub fn enter_at(fd: &VcpuFd, entry: &Entry) -> Result<(), KvmError> {
    let mut sregs = fd.get_sregs().refused("read a vCPU's system registers")?;
    let mut regs = kvm_regs { rflags: 2, rsp: STACK, rbp: STACK, ..Default::default() };
    match *entry {
        Entry::Real { segment } => {
            sregs.cs.selector = segment;
            sregs.cs.base = u64::from(segment) << 4;
        }
        Entry::Pvh { entry, start_info } => {
            set_flat_segments(&mut sregs, false);
            sregs.cr0 = CR0_PE | CR0_ET;
            sregs.cr4 = 0;
            (regs.rip, regs.rbx) = (u64::from(entry), u64::from(start_info));
        }
        Entry::Long { entry, boot_params } => {
            set_flat_segments(&mut sregs, true);
            sregs.cr3 = PAGE_TABLES;
            sregs.cr4 |= CR4_PAE;
            sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
            sregs.efer |= EFER_LME | EFER_LMA;
            (regs.rip, regs.rsi) = (entry, boot_params);
        }
    }
    fd.set_sregs(&sregs).refused("set a vCPU's system registers")?;
    fd.set_regs(&regs).refused("set a vCPU's registers")
}

fn set_flat_segments(sregs: &mut kvm_bindings::kvm_sregs, long: bool) {
    sregs.gdt = kvm_dtable { base: GDT, limit: 5 * 8 - 1, ..Default::default() };
    sregs.idt = kvm_dtable { base: IDT, limit: 7, ..Default::default() };
    sregs.cs = code(long).segment();
    let data = DATA.segment();
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = TASK.segment();
}

/// LINT0 takes the PIC's interrupts, LINT1 is the NMI: what a PC's firmware sets.
///
/// # Errors
/// KVM refuses.
pub fn set_local_interrupts(fd: &VcpuFd) -> Result<(), KvmError> {
    const LVT_LINT0: usize = 0x350;
    const LVT_LINT1: usize = 0x360;
    const DELIVERY: u32 = 0x700;
    const EXTERNAL: u32 = 0x700;
    const NMI: u32 = 0x400;
    let mut lapic = fd.get_lapic().refused("read a vCPU's interrupt controller")?;
    for (register, mode) in [(LVT_LINT0, EXTERNAL), (LVT_LINT1, NMI)] {
        let bytes = &mut lapic.regs[register..register + 4];
        let value = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]].map(|b| b as u8));
        let value = (value & !DELIVERY) | mode;
        for (byte, new) in bytes.iter_mut().zip(value.to_le_bytes()) {
            *byte = new as _;
        }
    }
    fd.set_lapic(&lapic).refused("set a vCPU's interrupt controller")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_say_what_the_segments_say() {
        assert_eq!(code(true).descriptor(), 0x00af_9b00_0000_ffff);
        assert_eq!(code(false).descriptor(), 0x00cf_9b00_0000_ffff);
        assert_eq!(DATA.descriptor(), 0x00cf_9300_0000_ffff);
        assert_eq!(TASK.descriptor(), 0x0000_8b00_0000_0067);
    }

    #[test]
    fn the_identity_map_reaches_4_gib() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        write_tables(&memory, &Entry::Long { entry: 0, boot_params: 0 }).unwrap();
        let read = |address| memory.read_obj::<u64>(GuestAddress(address)).unwrap();
        let walk = |address: u64| {
            let third = read(PAGE_TABLES) & !0xfff;
            let second = read(third + 8 * (address >> 30)) & !0xfff;
            (read(second + 8 * ((address >> 21) & 0x1ff)) & !0xfff) | (address & 0x1f_ffff)
        };
        for address in [0, 0x1000, 0x20_0000, 0xfee0_0000, 0xffff_ffff] {
            assert_eq!(walk(address), address);
        }
    }
}
