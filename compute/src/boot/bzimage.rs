//! Linux's 64-bit boot protocol: a bzImage, entered in long mode.
//!
//! Linux's documentation, "The Linux/x86 Boot Protocol", names the fields. Version 2.12 (Linux 3.8) is the oldest that
//! says whether there is a 64-bit entry.

use super::files::{BootFile, FileError};
use super::layout::{self, MapEntry};
use super::{BootError, Job};
use crate::vcpu::registers::Entry;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{ByteValued, Bytes, GuestAddress};

const HEADER_OFFSET: usize = 0x1f1;
const BOOT_FLAG: u16 = 0xaa55;
const MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
const OLDEST: u16 = 0x20c;
const LOADED_HIGH: u8 = 1;
const KERNEL_64: u16 = 1;
/// A boot loader without a number of its own.
const UNDEFINED_LOADER: u8 = 0xff;
const ENTRY_64: u64 = 0x200;
const SECTOR: u64 = 512;
/// Setup data: a seed for the random number generator.
const SETUP_RNG_SEED: u32 = 9;
const SEED_LEN: usize = 32;

/// Whether `kernel` has the signature of a bzImage or of its ancestors.
pub(super) fn is_bzimage(kernel: &BootFile) -> Result<bool, FileError> {
    let header = header(kernel)?;
    Ok(header.is_some_and(|h| h.boot_flag == BOOT_FLAG && h.header == MAGIC))
}

fn header(kernel: &BootFile) -> Result<Option<setup_header>, FileError> {
    let mut bytes = [0; size_of::<setup_header>()];
    let read = kernel.read_at(&mut bytes, HEADER_OFFSET as u64)?;
    let whole = read == bytes.len();
    Ok(setup_header::from_slice(&bytes).copied().filter(|_| whole))
}

/// Where the parts of a bzImage lie.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    /// Where the protected-mode kernel begins in the file.
    offset: u64,
    /// Its bytes.
    len: u64,
    /// Where it goes.
    address: u64,
    /// Bytes from there that it needs before it has a memory map of its own.
    needs: u64,
}

fn plan(job: &Job<'_>, header: &setup_header) -> Result<Plan, BootError> {
    let (version, loadflags, xloadflags) = (header.version, header.loadflags, header.xloadflags);
    if version < OLDEST {
        let (major, minor) = (version >> 8, version & 0xff);
        let what = format!("it speaks boot protocol {major}.{minor:02}, older than 2.12");
        return Err(job.refuse(what));
    }
    if loadflags & LOADED_HIGH == 0 {
        return Err(job.refuse("it is a zImage, not a bzImage"));
    }
    if xloadflags & KERNEL_64 == 0 {
        return Err(job.refuse("it is a 32-bit kernel without a 64-bit entry"));
    }
    let sectors = if header.setup_sects == 0 { 4 } else { u64::from(header.setup_sects) };
    let offset = (sectors + 1) * SECTOR;
    let (syssize, size) = (u64::from(header.syssize) * 16, job.source.files.kernel.size());
    let len = size.checked_sub(offset).filter(|len| *len > ENTRY_64).unwrap_or(0);
    // The size is rounded up to 16 bytes; what is behind it is a signature.
    if len == 0 || len.saturating_add(15) < syssize {
        let what = format!("it is truncated: {size} bytes of {}", offset + syssize);
        return Err(job.refuse(what));
    }
    let needs = u64::from(header.init_size).max(len);
    let address = place(job, header, needs)?;
    Ok(Plan { offset, len, address, needs })
}

/// The kernel's preferred address, or the lowest that its alignment allows if memory ends before.
fn place(job: &Job<'_>, header: &setup_header, needs: u64) -> Result<u64, BootError> {
    let preferred = header.pref_address;
    if job.map.holds_kernel(preferred, needs) {
        return Ok(preferred);
    }
    let alignment = u64::from(header.kernel_alignment);
    if header.relocatable_kernel != 0 && alignment.is_power_of_two() {
        let lowest = layout::KERNEL.next_multiple_of(alignment);
        if job.map.holds_kernel(lowest, needs) {
            return Ok(lowest);
        }
    }
    let what = format!("the kernel {}", job.source.files.kernel.name());
    let needed = preferred.saturating_add(needs);
    Err(BootError::TooLittleMemory { what, needed, limit: layout::KERNEL.max(job.map.low_end()) })
}

pub(super) fn load(job: &Job<'_>) -> Result<Entry, BootError> {
    let kernel = &job.source.files.kernel;
    let header = header(kernel)?.ok_or_else(|| job.refuse("it is truncated"))?;
    let plan = plan(job, &header)?;
    kernel.load(job.memory, plan.offset, plan.len, plan.address)?;
    job.write_command_line(header.cmdline_size as usize)?;
    let above = u64::from(header.initrd_addr_max).saturating_add(1);
    let initrd = job.load_initrd(plan.address.saturating_add(plan.needs), above)?;
    let mut parameters = boot_params { hdr: header, ..Default::default() };
    parameters.hdr.type_of_loader = UNDEFINED_LOADER;
    parameters.hdr.code32_start = plan.address as u32;
    parameters.hdr.cmd_line_ptr = layout::CMDLINE as u32;
    if let Some((address, size)) = initrd {
        // Both lie below 3 GiB, as loading has checked.
        parameters.hdr.ramdisk_image = address as u32;
        parameters.hdr.ramdisk_size = size as u32;
    }
    parameters.hdr.setup_data = seed(job)?;
    parameters.acpi_rsdp_addr = layout::ACPI;
    let entries = job.map.entries().iter().map(e820);
    let mut count = 0;
    for (slot, entry) in parameters.e820_table.iter_mut().zip(entries) {
        *slot = entry;
        count += 1;
    }
    parameters.e820_entries = count;
    job.memory.write_obj(parameters, GuestAddress(layout::PARAMETERS))?;
    Ok(Entry::Long { entry: plan.address + ENTRY_64, boot_params: layout::PARAMETERS })
}

fn e820(entry: &MapEntry) -> boot_e820_entry {
    boot_e820_entry { addr: entry.start, size: entry.len, r#type: entry.kind as u32 }
}

/// Writes a random seed, so that the guest's generator is ready before its entropy device is. Returns its address.
fn seed(job: &Job<'_>) -> Result<u64, BootError> {
    let mut seed = [0; SEED_LEN];
    // SAFETY: the buffer is as long as said.
    let got = unsafe { libc::getrandom(seed.as_mut_ptr().cast(), SEED_LEN, libc::GRND_NONBLOCK) };
    if got != SEED_LEN as isize {
        // A host without entropy yet: the guest then waits for its own.
        return Ok(0);
    }
    let mut data = Vec::with_capacity(16 + SEED_LEN);
    data.extend_from_slice(&0_u64.to_le_bytes());
    data.extend_from_slice(&SETUP_RNG_SEED.to_le_bytes());
    data.extend_from_slice(&(SEED_LEN as u32).to_le_bytes());
    data.extend_from_slice(&seed);
    job.memory.write_slice(&data, GuestAddress(layout::SETUP_DATA))?;
    Ok(layout::SETUP_DATA)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::tests::{source, try_load};
    use super::*;

    /// A bzImage of nothing but a header and `len` bytes of kernel.
    pub(crate) fn image(len: usize, change: impl FnOnce(&mut setup_header)) -> Vec<u8> {
        let mut header = setup_header {
            setup_sects: 1,
            syssize: (len as u32).div_ceil(16),
            boot_flag: BOOT_FLAG,
            header: MAGIC,
            version: 0x20f,
            loadflags: LOADED_HIGH,
            xloadflags: KERNEL_64,
            initrd_addr_max: 0x7fff_ffff,
            kernel_alignment: 0x20_0000,
            relocatable_kernel: 1,
            cmdline_size: 2047,
            pref_address: 0x100_0000,
            init_size: 0x10_0000,
            ..Default::default()
        };
        change(&mut header);
        let mut image = vec![0; 1024 + len];
        image[HEADER_OFFSET..HEADER_OFFSET + size_of::<setup_header>()]
            .copy_from_slice(header.as_slice());
        image
    }

    #[test]
    fn a_kernel_goes_where_it_wants_or_where_it_may() {
        let bytes = image(4096, |_| {});
        let (entry, memory) = try_load(&source(&bytes, Some(b"initrd")), 64 << 20).unwrap();
        let at = layout::PARAMETERS;
        assert_eq!(entry, Entry::Long { entry: 0x100_0200, boot_params: at });
        let parameters: boot_params = memory.read_obj(GuestAddress(at)).unwrap();
        let (image, size) = (parameters.hdr.ramdisk_image, parameters.hdr.ramdisk_size);
        assert_eq!((image, size), ((64 << 20) - 4096, 6));
        let mut initrd = [0; 6];
        memory.read_slice(&mut initrd, GuestAddress(u64::from(image))).unwrap();
        assert_eq!(&initrd, b"initrd");
        let (entry, _) = try_load(&source(&bytes, None), 8 << 20).unwrap();
        assert_eq!(entry, Entry::Long { entry: 0x20_0200, boot_params: at });
    }

    #[test]
    fn what_is_wrong_with_a_kernel_is_said() {
        let said = |bytes: &[u8], size: u64| {
            try_load(&source(bytes, Some(b"initrd")), size).unwrap_err().to_string()
        };
        let old = said(&image(4096, |h| h.version = 0x20b), 64 << 20);
        assert!(old.contains("protocol 2.11, older than 2.12"), "{old}");
        assert!(said(&image(4096, |h| h.loadflags = 0), 64 << 20).contains("zImage"));
        assert!(said(&image(4096, |h| h.xloadflags = 0), 64 << 20).contains("32-bit"));
        let truncated = said(&image(4096, |h| h.syssize = 4096), 64 << 20);
        assert!(truncated.contains("truncated: 5120 bytes of 66560"), "{truncated}");
        let large = said(&image(4096, |h| h.init_size = u32::MAX), 64 << 20);
        assert!(large.contains("more memory"), "{large}");
        let high = said(&image(4096, |h| h.initrd_addr_max = 0xfff), 64 << 20);
        assert!(high.contains("initrd"), "{high}");
        let fixed = image(4096, |h| (h.relocatable_kernel, h.pref_address) = (0, u64::MAX));
        assert!(said(&fixed, 64 << 20).contains("more memory"));
        let mut long = source(&image(4096, |h| h.cmdline_size = 10), None);
        long.cmdline = "x".repeat(11);
        let long = try_load(&long, 64 << 20).unwrap_err().to_string();
        assert!(long.contains("11 bytes, this kernel takes 10"), "{long}");
    }
}
