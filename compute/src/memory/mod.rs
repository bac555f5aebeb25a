//! Guest memory: one sealed memfd, mapped once, with a hole below 4 GiB.
//!
//! Memory lies below 3 GiB and, what does not fit there, from 4 GiB on. The memfd is sealed against shrinking, growing
//! and unsealing, so that a card process may map it without fear of SIGBUS. Guest addresses map to the memfd without
//! gap: what lies above 4 GiB follows what lies below 3 GiB.
//!
//! Whether the host has that much is checked before ([`availability`]): a VM that cannot have its memory is refused with a
//! sentence, not killed later. Huge pages are reserved when they are mapped.
//!
//! The driver makes it; devices and front ends share it by reference.

pub mod availability;

use crate::device::RestoreError;
use bixi_api::compute::PageSize;
use bixi_api::state::{Declared, Movable, Payload};
use bixi_offload::memory::{PageSize as SharedPages, SharedMemory};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

/// Where the hole for devices begins.
pub const LOW_END: u64 = 3 << 30;
/// Where memory goes on after the hole.
pub const HIGH_START: u64 = 4 << 30;

/// One contiguous piece of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RamRegion {
    /// Its first guest-physical address.
    pub guest_address: u64,
    /// Its size in bytes.
    pub size: u64,
    /// Where it begins in the memfd, in bytes.
    pub file_offset: u64,
    /// Where it is mapped in this process.
    pub host_address: u64,
}

/// The guest's memory.
#[derive(Debug)]
pub struct GuestRam {
    memory: GuestMemoryMmap,
    file: Arc<File>,
    regions: Vec<RamRegion>,
}

/// Why there is no guest memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The memfd cannot be made.
    #[error("cannot make the memfd that holds {size} bytes of guest memory")]
    Memfd {
        /// Bytes asked for.
        size: u64,
        /// What went wrong.
        source: bixi_offload::memory::MemoryError,
    },
    /// The host has too little.
    #[error(transparent)]
    Unavailable(#[from] availability::Shortage),
    /// The memfd cannot be mapped.
    #[error("cannot map {size} bytes of guest memory at guest address {guest_address:#x}")]
    Map {
        /// The region's guest address.
        guest_address: u64,
        /// Its size in bytes.
        size: u64,
        /// What went wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl GuestRam {
    /// Makes `size` bytes of guest memory, backed by `pages`.
    ///
    /// # Errors
    /// The kernel refuses the memfd or its mapping.
    pub fn new(size: u64, pages: PageSize) -> Result<Self, MemoryError> {
        let shared_pages = match pages {
            PageSize::Small => SharedPages::Normal,
            PageSize::Huge2M => SharedPages::Huge2M,
            PageSize::Huge1G => SharedPages::Huge1G,
        };
        let shared = SharedMemory::new("guest", size, shared_pages)
            .map_err(|source| MemoryError::Memfd { size, source })?;
        let file = Arc::new(File::from(shared.into_fd()));
        let low = size.min(LOW_END);
        let mut ram = Self { memory: GuestMemoryMmap::new(), file, regions: Vec::new() };
        ram.map(0, low, 0, pages)?;
        if size > low {
            ram.map(HIGH_START, size - low, low, pages)?;
        }
        Ok(ram)
    }

    fn map(
        &mut self,
        guest_address: u64,
        size: u64,
        file_offset: u64,
        pages: PageSize,
    ) -> Result<(), MemoryError> {
        let refuse = |source: Box<dyn std::error::Error + Send + Sync>| MemoryError::Map {
            guest_address,
            size,
            source,
        };
        let length = usize::try_from(size).map_err(|e| refuse(e.into()))?;
        // Huge pages are reserved here, or a later access would end in SIGBUS; of others there is no fixed pool.
        let reserve = if pages == PageSize::Small { libc::MAP_NORESERVE } else { 0 };
        let mapping = MmapRegionBuilder::new(length)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED | reserve)
            .with_file_offset(FileOffset::from_arc(Arc::clone(&self.file), file_offset))
            .build()
            .map_err(|e| refuse(e.into()))?;
        let host_address = mapping.as_ptr() as u64;
        let region = GuestRegionMmap::new(mapping, GuestAddress(guest_address))
            .ok_or_else(|| refuse("the address wraps".into()))?;
        self.memory = self.memory.insert_region(Arc::new(region)).map_err(|e| refuse(e.into()))?;
        self.regions.push(RamRegion { guest_address, size, file_offset, host_address });
        Ok(())
    }

    /// The memory, for checked access.
    #[must_use]
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// The pieces, lowest address first: what a vhost-user memory table holds.
    #[must_use]
    pub fn regions(&self) -> &[RamRegion] {
        &self.regions
    }

    /// Bytes of it that exist in the host's memory now, whoever touched them.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn resident_bytes(&self) -> io::Result<u64> {
        use std::os::unix::fs::MetadataExt;
        const BLOCK: u64 = 512;
        Ok(self.file.metadata()?.blocks() * BLOCK)
    }

    /// The sealed memfd.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The layout of guest memory as it travels; what is in it travels another way.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MemoryState {
    /// The pieces, lowest address first.
    #[prost(message, repeated, tag = "1")]
    pub regions: Vec<RegionState>,
}

/// One piece of guest memory.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct RegionState {
    /// Its first guest-physical address.
    #[prost(uint64, tag = "1")]
    pub guest_address: u64,
    /// Its size in bytes.
    #[prost(uint64, tag = "2")]
    pub size: u64,
    /// Where it begins in the memfd, in bytes.
    #[prost(uint64, tag = "3")]
    pub file_offset: u64,
}

/// The kind of this state.
const KIND: &str = "memory";
const VERSION: u32 = 1;

impl GuestRam {
    fn layout(&self) -> MemoryState {
        let regions = self.regions.iter().map(|region| RegionState {
            guest_address: region.guest_address,
            size: region.size,
            file_offset: region.file_offset,
        });
        MemoryState { regions: regions.collect() }
    }

    /// Checks that a machine with memory of that layout can go on with this memory.
    ///
    /// # Errors
    /// It cannot.
    pub fn check(&self, payload: &Payload) -> Result<(), RestoreError> {
        let theirs: MemoryState = payload.read(KIND, VERSION)?;
        if theirs == self.layout() {
            return Ok(());
        }
        let what =
            format!("another layout: {:?}, here {:?}", theirs.regions, self.layout().regions);
        Err(RestoreError::Value { device: KIND.to_owned(), what })
    }
}

impl Movable for GuestRam {
    fn declare(&self) -> Declared {
        Declared::State(Payload::new(KIND, VERSION, &self.layout()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestMemoryBackend};

    #[test]
    fn memory_has_a_hole_below_4_gib_and_follows_itself_in_the_memfd() {
        let ram = GuestRam::new((3 << 30) + (1 << 20), PageSize::Small).unwrap();
        let layout: Vec<_> =
            ram.regions().iter().map(|r| (r.guest_address, r.size, r.file_offset)).collect();
        assert_eq!(layout, [(0, LOW_END, 0), (HIGH_START, 1 << 20, LOW_END)]);
        assert!(!ram.memory().address_in_range(GuestAddress(LOW_END)));
        ram.memory().write_obj(7_u8, GuestAddress(HIGH_START)).unwrap();
        assert_eq!(ram.resident_bytes().unwrap(), 4096);
        let seals = rustix::fs::fcntl_get_seals(ram.fd()).unwrap();
        assert!(seals.contains(rustix::fs::SealFlags::SHRINK | rustix::fs::SealFlags::SEAL));
    }

    #[test]
    fn another_layout_is_refused() {
        let ram = GuestRam::new(1 << 20, PageSize::Small).unwrap();
        let Declared::State(payload) = ram.declare() else { panic!("movable") };
        ram.check(&payload).unwrap();
        let other = GuestRam::new(2 << 20, PageSize::Small).unwrap();
        assert!(matches!(other.check(&payload), Err(RestoreError::Value { .. })));
    }
}
