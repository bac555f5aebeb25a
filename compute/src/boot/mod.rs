//! Direct boot: a kernel and its initrd go into guest memory as its boot protocol wants, without firmware.
//!
//! A bzImage and an ELF with a PVH entry are told apart by their first bytes. Kernels are untrusted: every number in them
//! is checked against the file and against guest memory before it is used, and a kernel that does not fit is refused
//! with what is wrong. The files stay open, because a reset loads them again.
//!
//! Where things lie: see [`layout`]. The driver calls [`BootFiles::open`] once and [`load`] before each start.

pub mod bzimage;
pub mod files;
pub mod layout;
pub mod pvh;

use crate::acpi;
use crate::memory::GuestRam;
use crate::pci::AcpiFacts;
use crate::vcpu::registers::Entry;
use files::{BootFiles, FileError};
use layout::MemoryMap;
use std::io;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

/// Why a kernel cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The kernel is of no kind that is known.
    #[error("{kernel} is neither a bzImage nor an ELF kernel: it begins with {start}{hint}")]
    UnknownFormat {
        /// The kernel.
        kernel: String,
        /// Its first bytes, in hexadecimal.
        start: String,
        /// What it looks like.
        hint: &'static str,
    },
    /// The kernel is malformed or lacks what direct boot needs.
    #[error("{kernel} cannot be booted: {what}")]
    Kernel {
        /// The kernel.
        kernel: String,
        /// What is wrong with it.
        what: String,
    },
    /// The guest has too little memory for what must be loaded.
    #[error("{what} needs {needed} bytes of memory below {limit:#x}: give the guest more memory")]
    TooLittleMemory {
        /// What does not fit.
        what: String,
        /// Bytes that must be free.
        needed: u64,
        /// The end of where it may lie.
        limit: u64,
    },
    /// The command line is too long.
    #[error("the kernel's command line has {len} bytes, this kernel takes {limit}: shorten it")]
    CommandLineTooLong {
        /// Its bytes.
        len: usize,
        /// The most that the kernel takes.
        limit: usize,
    },
    /// Guest memory cannot be written where the layout says.
    #[error("the guest's memory is too small to boot anything: give it at least 32 MiB")]
    Memory(#[from] GuestMemoryError),
}

/// What an operator asked to boot.
#[derive(Debug)]
pub struct BootSource {
    /// The open files.
    pub files: BootFiles,
    /// The kernel's command line.
    pub cmdline: String,
}

/// What the machine looks like to a kernel.
#[derive(Debug)]
pub struct Surrounding<'a> {
    /// Guest memory.
    pub ram: &'a GuestRam,
    /// The number of vCPUs.
    pub vcpus: u8,
    /// The PCI hierarchy's facts.
    pub pci: AcpiFacts,
    /// Whether guest memory is as the kernel made it, all zeroes; otherwise what must be zero is zeroed.
    pub fresh: bool,
}

/// Loads everything and says where the first vCPU begins.
///
/// # Errors
/// The files are not what they should be or do not fit.
pub fn load(source: &BootSource, around: &Surrounding<'_>) -> Result<Entry, BootError> {
    let memory = around.ram.memory();
    let kernel = &source.files.kernel;
    let mut start = [0; 4];
    kernel.read_at(&mut start, 0)?;
    let tables = acpi::tables(layout::ACPI, around.vcpus, &around.pci);
    memory.write_slice(&tables, GuestAddress(layout::ACPI))?;
    let map = MemoryMap::new(around.ram);
    let job = Job { source, memory, map: &map, fresh: around.fresh };
    if start == *b"\x7fELF" {
        pvh::load(&job)
    } else if bzimage::is_bzimage(kernel)? {
        bzimage::load(&job)
    } else {
        Err(BootError::UnknownFormat {
            kernel: kernel.name().to_owned(),
            start: start.map(|byte| format!("{byte:02x}")).join(" "),
            hint: compression(start),
        })
    }
}

/// One boot in progress, as both protocols see it.
struct Job<'a> {
    source: &'a BootSource,
    memory: &'a vm_memory::GuestMemoryMmap,
    map: &'a MemoryMap,
    fresh: bool,
}

impl Job<'_> {
    fn refuse(&self, what: impl Into<String>) -> BootError {
        let kernel = self.source.files.kernel.name().to_owned();
        BootError::Kernel { kernel, what: what.into() }
    }

    /// Writes the command line with its final zero.
    fn write_command_line(&self, kernel_takes: usize) -> Result<(), BootError> {
        let line = self.source.cmdline.as_bytes();
        let limit = kernel_takes.min(layout::CMDLINE_SIZE - 1);
        if line.len() > limit {
            return Err(BootError::CommandLineTooLong { len: line.len(), limit });
        }
        self.memory.write_slice(line, GuestAddress(layout::CMDLINE))?;
        Ok(self.memory.write_obj(0_u8, GuestAddress(layout::CMDLINE + line.len() as u64))?)
    }

    /// Loads the initrd as high as it may lie: whole pages, above `floor`, below `ceiling`. Returns address and size.
    fn load_initrd(&self, floor: u64, ceiling: u64) -> Result<Option<(u64, u64)>, BootError> {
        let Some(initrd) = &self.source.files.initrd else { return Ok(None) };
        let limit = ceiling.min(self.map.low_end());
        let too_little = || BootError::TooLittleMemory {
            what: format!("the initrd {} above the kernel", initrd.name()),
            needed: floor.saturating_add(initrd.size()),
            limit,
        };
        let address = limit.checked_sub(initrd.size()).ok_or_else(too_little)? & !0xfff;
        if address < floor {
            return Err(too_little());
        }
        initrd.load(self.memory, 0, initrd.size(), address)?;
        Ok(Some((address, initrd.size())))
    }

    /// Makes a piece of guest memory zero, if it is not yet.
    fn zero(&self, address: u64, len: u64) -> Result<(), BootError> {
        if self.fresh {
            return Ok(());
        }
        let zeroes = [0; 4096];
        let mut done = 0;
        while done < len {
            let now = (len - done).min(zeroes.len() as u64) as usize;
            self.memory.write_slice(&zeroes[..now], GuestAddress(address + done))?;
            done += now as u64;
        }
        Ok(())
    }
}

/// What a file that is no kernel probably is.
fn compression(start: [u8; 4]) -> &'static str {
    match start {
        [0x1f, 0x8b, ..] => " (gzip: decompress it)",
        [0x28, 0xb5, 0x2f, 0xfd] => " (zstd: decompress it)",
        [0xfd, b'7', b'z', b'X'] => " (xz: decompress it)",
        [b'B', b'Z', b'h', _] => " (bzip2: decompress it)",
        [0x04, 0x22, 0x4d, 0x18] | [0x02, 0x21, 0x4c, 0x18] => " (lz4: decompress it)",
        _ => "",
    }
}

/// Turns "the file ended early" into an error that names the file.
fn short(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => {
            io::Error::new(error.kind(), "it ends before what its header announces")
        }
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::GuestRam;
    use crate::pci::Apertures;
    use bixi_api::compute::PageSize;
    use files::BootFile;
    use vm_memory::GuestMemoryMmap;

    pub(super) fn source(kernel: &[u8], initrd: Option<&[u8]>) -> BootSource {
        let kernel = BootFile::from_bytes(kernel).unwrap();
        let initrd = initrd.map(|bytes| BootFile::from_bytes(bytes).unwrap());
        BootSource { files: BootFiles { kernel, initrd }, cmdline: "console=ttyS0".to_owned() }
    }

    pub(super) fn try_load(
        source: &BootSource,
        memory: u64,
    ) -> Result<(Entry, GuestMemoryMmap), BootError> {
        let ram = GuestRam::new(memory, PageSize::Small).unwrap();
        let apertures = Apertures { memory32: 0xc000_0000..0xfec0_0000, memory64: None };
        let pci = AcpiFacts { last_bus: 255, apertures, bridges: vec![2] };
        let around = Surrounding { ram: &ram, vcpus: 1, pci, fresh: true };
        let entry = load(source, &around)?;
        Ok((entry, ram.memory().clone()))
    }

    #[test]
    fn what_is_no_kernel_is_refused_with_a_hint() {
        let said = |bytes: &[u8]| try_load(&source(bytes, None), 64 << 20).unwrap_err().to_string();
        let zstd = said(&[0x28, 0xb5, 0x2f, 0xfd, 0, 0]);
        assert!(zstd.contains("28 b5 2f fd (zstd: decompress it)"), "{zstd}");
        assert!(said(b"x").contains("begins with 78 00 00 00"));
        assert!(said(&[0; 4096]).contains("neither"));
    }

    #[test]
    fn memory_too_small_for_anything_is_said() {
        let bytes = bzimage::tests::image(4096, |_| {});
        let error = try_load(&source(&bytes, None), 0x4_0000).unwrap_err();
        assert!(error.to_string().contains("at least 32 MiB"), "{error}");
    }
}
