//! PVH: an ELF kernel with a Xen note that names its 32-bit entry.
//!
//! Xen's documentation, "x86/HVM direct boot ABI", and the ELF specification name the fields. Segments are loaded at
//! their physical addresses; the kernel is entered in protected mode without paging and finds everything by the start
//! info.

use super::files::BootFile;
use super::layout;
use super::{BootError, Job};
use crate::vcpu::registers::Entry;
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{Bytes, GuestAddress};

const START_MAGIC: u32 = 0x336e_c578;
const MEMORY_MAP: u64 = layout::PARAMETERS + 0x100;
const MODULES: u64 = layout::PARAMETERS + 0x800;
/// Linux's own limit.
const CMDLINE_LIMIT: usize = 2047;

const ELF_HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const MACHINE_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// The note whose description is the entry's physical address.
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;
/// More program headers or longer notes than any kernel has.
const MAX_PROGRAM_HEADERS: u16 = 128;
const MAX_NOTES: u64 = 1 << 20;

/// A program header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    file_size: u64,
    memory_size: u64,
}

/// Little-endian fields of a byte string; out of range reads as `None`.
fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    field(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    field(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    field(bytes, at).map(u64::from_le_bytes)
}

fn segments(job: &Job<'_>) -> Result<Vec<Segment>, BootError> {
    let kernel = &job.source.files.kernel;
    let truncated = || job.refuse("its ELF header is truncated");
    let mut header = [0; ELF_HEADER];
    if kernel.read_at(&mut header, 0)? < ELF_HEADER {
        return Err(truncated());
    }
    if header[4] != CLASS_64 || header[5] != LITTLE_ENDIAN {
        return Err(job.refuse("it is no 64-bit little-endian ELF file"));
    }
    if u16_at(&header, 18) != Some(MACHINE_X86_64) {
        return Err(job.refuse("it is for another processor than x86-64"));
    }
    let table = u64_at(&header, 32).ok_or_else(truncated)?;
    let entry_size = u16_at(&header, 54).ok_or_else(truncated)?;
    let count = u16_at(&header, 56).ok_or_else(truncated)?;
    if usize::from(entry_size) != PROGRAM_HEADER || count == 0 || count > MAX_PROGRAM_HEADERS {
        return Err(job.refuse(format!("it has {count} program headers of {entry_size} bytes")));
    }
    let mut bytes = vec![0; usize::from(count) * PROGRAM_HEADER];
    if kernel.read_at(&mut bytes, table)? < bytes.len() {
        return Err(job.refuse("its program headers are truncated"));
    }
    let segments = bytes.chunks_exact(PROGRAM_HEADER).map(|entry| {
        Some(Segment {
            kind: u32_at(entry, 0)?,
            offset: u64_at(entry, 8)?,
            address: u64_at(entry, 24)?,
            file_size: u64_at(entry, 32)?,
            memory_size: u64_at(entry, 40)?,
        })
    });
    segments.collect::<Option<_>>().ok_or_else(truncated)
}

/// Checks that a segment lies in the file and in memory.
fn check(job: &Job<'_>, segment: &Segment) -> Result<(), BootError> {
    let kernel = &job.source.files.kernel;
    let end = segment.offset.checked_add(segment.file_size);
    if end.is_none_or(|end| end > kernel.size()) {
        return Err(job.refuse("it is truncated: a segment ends behind the end of the file"));
    }
    if segment.file_size > segment.memory_size {
        return Err(job.refuse("a segment is larger in the file than in memory"));
    }
    if !job.map.holds_kernel(segment.address, segment.memory_size) {
        if segment.address < layout::KERNEL {
            let what = format!("a segment is at {:#x}, below 1 MiB", segment.address);
            return Err(job.refuse(what));
        }
        return Err(BootError::TooLittleMemory {
            what: format!("the kernel {}", kernel.name()),
            needed: segment.address.saturating_add(segment.memory_size),
            limit: job.map.low_end(),
        });
    }
    Ok(())
}

/// Looks for the entry's address in a note segment.
fn entry_note(
    job: &Job<'_>,
    kernel: &BootFile,
    segment: &Segment,
) -> Result<Option<u64>, BootError> {
    if segment.file_size > MAX_NOTES {
        return Err(job.refuse("its notes are longer than any kernel's"));
    }
    let mut notes = vec![0; segment.file_size as usize];
    let read = kernel.read_at(&mut notes, segment.offset)?;
    notes.truncate(read);
    Ok(find_entry(&notes))
}

/// Notes are a header of three words, a name and a description, each padded to four bytes.
fn find_entry(mut notes: &[u8]) -> Option<u64> {
    loop {
        let (name_len, len, kind) = (u32_at(notes, 0)?, u32_at(notes, 4)?, u32_at(notes, 8)?);
        let name_end = 12_usize.checked_add(usize::try_from(name_len).ok()?)?;
        let start = name_end.checked_next_multiple_of(4)?;
        let end = start.checked_add(usize::try_from(len).ok()?)?;
        let (name, description) = (notes.get(12..name_end)?, notes.get(start..end)?);
        if kind == XEN_ELFNOTE_PHYS32_ENTRY && name == b"Xen\0" {
            return match len {
                4 => u32_at(description, 0).map(u64::from),
                _ => u64_at(description, 0),
            };
        }
        notes = notes.get(end.checked_next_multiple_of(4)?..)?;
    }
}

pub(super) fn load(job: &Job<'_>) -> Result<Entry, BootError> {
    let kernel = &job.source.files.kernel;
    let segments = segments(job)?;
    let mut entry = None;
    for note in segments.iter().filter(|s| s.kind == PT_NOTE) {
        entry = entry.or(entry_note(job, kernel, note)?);
    }
    let entry = entry.ok_or_else(|| {
        job.refuse("it has no PVH entry: build it with CONFIG_PVH, or give its bzImage")
    })?;
    let loads = || segments.iter().filter(|s| s.kind == PT_LOAD && s.memory_size > 0);
    // All are checked before the first is loaded.
    loads().try_for_each(|segment| check(job, segment))?;
    let inside = |s: &&Segment| entry >= s.address && entry - s.address < s.memory_size;
    if !loads().any(|segment| inside(&segment)) {
        return Err(job.refuse(format!("its entry {entry:#x} lies in no segment")));
    }
    let mut end = layout::KERNEL;
    for segment in loads() {
        kernel.load(job.memory, segment.offset, segment.file_size, segment.address)?;
        let rest = segment.memory_size - segment.file_size;
        job.zero(segment.address + segment.file_size, rest)?;
        end = end.max(segment.address + segment.memory_size);
    }
    job.write_command_line(CMDLINE_LIMIT)?;
    let initrd = job.load_initrd(end, u64::from(u32::MAX))?;
    write_start_info(job, initrd)?;
    let start_info = layout::PARAMETERS as u32;
    // Below 3 GiB, since it lies in a segment.
    Ok(Entry::Pvh { entry: entry as u32, start_info })
}

fn write_start_info(job: &Job<'_>, initrd: Option<(u64, u64)>) -> Result<(), BootError> {
    let entry_size = size_of::<hvm_memmap_table_entry>() as u64;
    for (address, entry) in (MEMORY_MAP..).step_by(entry_size as usize).zip(job.map.entries()) {
        let entry = hvm_memmap_table_entry {
            addr: entry.start,
            size: entry.len,
            type_: entry.kind as u32,
            reserved: 0,
        };
        job.memory.write_obj(entry, GuestAddress(address))?;
    }
    let module =
        initrd.map(|(paddr, size)| hvm_modlist_entry { paddr, size, ..Default::default() });
    if let Some(module) = module {
        job.memory.write_obj(module, GuestAddress(MODULES))?;
    }
    let start_info = hvm_start_info {
        magic: START_MAGIC,
        version: 1,
        nr_modules: u32::from(module.is_some()),
        modlist_paddr: if module.is_some() { MODULES } else { 0 },
        cmdline_paddr: layout::CMDLINE,
        rsdp_paddr: layout::ACPI,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: job.map.entries().len() as u32,
        ..Default::default()
    };
    Ok(job.memory.write_obj(start_info, GuestAddress(layout::PARAMETERS))?)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::tests::{source, try_load};
    use super::*;

    /// An ELF kernel: one segment of `code` at 16 MiB with 4 KiB of zeroes behind it, one note.
    pub(crate) fn image(code: &[u8], entry: u64) -> Vec<u8> {
        let mut note = Vec::new();
        note.extend_from_slice(&[4, 0, 0, 0, 8, 0, 0, 0, 18, 0, 0, 0]);
        note.extend_from_slice(b"Xen\0");
        note.extend_from_slice(&entry.to_le_bytes());
        let mut image = vec![0; ELF_HEADER];
        image[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
        image[18..20].copy_from_slice(&MACHINE_X86_64.to_le_bytes());
        image[32..40].copy_from_slice(&(ELF_HEADER as u64).to_le_bytes());
        image[54..56].copy_from_slice(&(PROGRAM_HEADER as u16).to_le_bytes());
        image[56..58].copy_from_slice(&2_u16.to_le_bytes());
        let data = (ELF_HEADER + 2 * PROGRAM_HEADER) as u64;
        let mut segment = |kind: u32, offset: u64, address: u64, file: u64, memory: u64| {
            let mut header = [0; PROGRAM_HEADER];
            header[..4].copy_from_slice(&kind.to_le_bytes());
            for (at, value) in [(8, offset), (24, address), (32, file), (40, memory)] {
                header[at..at + 8].copy_from_slice(&value.to_le_bytes());
            }
            image.extend_from_slice(&header);
        };
        let (code_len, note_len) = (code.len() as u64, note.len() as u64);
        segment(PT_LOAD, data + note_len, 0x100_0000, code_len, code_len + 4096);
        segment(PT_NOTE, data, 0, note_len, note_len);
        image.extend_from_slice(&note);
        image.extend_from_slice(code);
        image
    }

    #[test]
    fn a_kernel_is_loaded_and_finds_everything_by_its_start_info() {
        let bytes = image(b"code", 0x100_0000);
        let (entry, memory) = try_load(&source(&bytes, Some(b"initrd")), 64 << 20).unwrap();
        let start_info = layout::PARAMETERS as u32;
        assert_eq!(entry, Entry::Pvh { entry: 0x100_0000, start_info });
        let mut code = [0; 5];
        memory.read_slice(&mut code, GuestAddress(0x100_0000)).unwrap();
        assert_eq!(&code, b"code\0");
        let info: hvm_start_info = memory.read_obj(GuestAddress(layout::PARAMETERS)).unwrap();
        assert_eq!((info.magic, info.nr_modules, info.memmap_entries), (START_MAGIC, 1, 5));
        let module: hvm_modlist_entry = memory.read_obj(GuestAddress(info.modlist_paddr)).unwrap();
        assert_eq!((module.paddr, module.size), ((64 << 20) - 4096, 6));
    }

    #[test]
    fn what_is_wrong_with_a_kernel_is_said() {
        let said = |bytes: &[u8]| try_load(&source(bytes, None), 64 << 20).unwrap_err().to_string();
        let good = image(b"code", 0x100_0000);
        let changed = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            bytes
        };
        assert!(said(&good[..40]).contains("truncated"));
        assert!(said(&good[..100]).contains("program headers are truncated"));
        assert!(said(&good[..good.len() - 1]).contains("truncated: a segment ends"));
        assert!(said(&changed(4, 1)).contains("64-bit"));
        assert!(said(&changed(18, 3)).contains("another processor"));
        assert!(said(&changed(56, 0)).contains("0 program headers"));
        assert!(said(&image(b"code", 0x200_0000)).contains("lies in no segment"));
        let note = ELF_HEADER + 2 * PROGRAM_HEADER;
        assert!(said(&changed(note + 8, 17)).contains("no PVH entry"));
        // The segment's address: below 1 MiB, and above memory.
        assert!(said(&changed(ELF_HEADER + 24 + 3, 0)).contains("below 1 MiB"));
        assert!(said(&changed(ELF_HEADER + 24 + 3, 9)).contains("more memory"));
        let mut small = changed(ELF_HEADER + 40, 3);
        small[ELF_HEADER + 40 + 1] = 0;
        assert!(said(&small).contains("larger in the file"));
    }

    #[test]
    fn notes_are_walked_without_trust() {
        assert_eq!(find_entry(&[]), None);
        assert_eq!(find_entry(&[0xff; 64]), None);
        assert_eq!(find_entry(&[0; 64]), None);
        let mut short = vec![4, 0, 0, 0, 2, 0, 0, 0, 18, 0, 0, 0];
        short.extend_from_slice(b"Xen\0\x01\x02\0\0");
        assert_eq!(find_entry(&short), None, "a description that is too short for an address");
    }
}
