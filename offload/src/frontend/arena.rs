//! Guest memory for a driver without a guest: tests, load generators.
//!
//! A [`GuestArena`] is shared memory that is laid out at guest addresses and handed out piece by piece; nothing is taken
//! back. It plays the guest's RAM for [`DriverQueue`](super::DriverQueue)s and their buffers.
//!
//! Invariant: what [`GuestArena::allocate`] gave lies wholly inside one region and overlaps nothing it gave before.

use super::types::Region;
use crate::memory::{
    GuestMemory, MappingOptions, MemoryError, PageSize, RegionDescriptor, SharedMemory,
};
use crate::ring::SharedFd;
use crate::sigbus::Watch;
use rustix::fs::MemfdFlags;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// Which file backs an arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// A memfd that nobody can shrink, as our VMM's.
    Sealed(PageSize),
    /// A memfd that can be shrunk, as that of foreign front ends.
    Unsealed,
}

/// One piece of an arena.
#[derive(Debug)]
struct Piece {
    region: Region,
    file: SharedFd,
    /// The first guest address not handed out.
    next: u64,
}

/// Shared memory at guest addresses. See the module's text.
#[derive(Debug)]
pub struct GuestArena {
    pieces: Vec<Piece>,
    memory: Arc<GuestMemory>,
}

impl GuestArena {
    /// One region of `size` bytes at guest address `at`.
    ///
    /// # Errors
    /// The kernel refuses, or the size is no whole number of pages.
    pub fn new(at: u64, size: u64, backing: Backing) -> Result<Self, MemoryError> {
        Self::with_regions(&[(at, size)], backing)
    }

    /// Several regions, each `(guest address, size)` and each in a file of its own.
    ///
    /// # Errors
    /// As [`GuestArena::new`]; and regions that overlap.
    pub fn with_regions(regions: &[(u64, u64)], backing: Backing) -> Result<Self, MemoryError> {
        let mut pieces = Vec::with_capacity(regions.len());
        for (slot, &(guest_addr, size)) in (0..).zip(regions) {
            let file = Arc::new(make_file(size, backing)?);
            let region = Region { slot, guest_addr, size, mmap_offset: 0 };
            pieces.push(Piece { region, file, next: guest_addr });
        }
        let described: Vec<_> =
            pieces.iter().map(|piece| (describe(&piece.region), piece.file.as_fd())).collect();
        let options = MappingOptions { require_sealed: false, watch: Watch::new() };
        let memory = GuestMemory::map(&described, &options)?;
        drop(described);
        Ok(Self { pieces, memory })
    }

    /// The memory, mapped here.
    #[must_use]
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// The regions with their files, as a session is told.
    #[must_use]
    pub fn regions(&self) -> Vec<(Region, SharedFd)> {
        self.pieces.iter().map(|piece| (piece.region, piece.file.clone())).collect()
    }

    /// The guest address of `len` fresh bytes, zero and aligned to `align` (a power of two), in the first region that
    /// has room.
    #[must_use]
    pub fn allocate(&mut self, len: u64, align: u64) -> Option<u64> {
        self.pieces.iter_mut().find_map(|piece| piece.allocate(len, align))
    }

    /// As [`GuestArena::allocate`], in region `slot`.
    #[must_use]
    pub fn allocate_in(&mut self, slot: u32, len: u64, align: u64) -> Option<u64> {
        let piece = self.pieces.iter_mut().find(|piece| piece.region.slot == slot)?;
        piece.allocate(len, align)
    }
}

impl Piece {
    fn allocate(&mut self, len: u64, align: u64) -> Option<u64> {
        let start = self.next.checked_next_multiple_of(align.max(1))?;
        let end = start.checked_add(len)?;
        if end > self.region.guest_addr + self.region.size {
            return None;
        }
        self.next = end;
        Some(start)
    }
}

fn make_file(size: u64, backing: Backing) -> Result<OwnedFd, MemoryError> {
    let system = |what| move |e: rustix::io::Errno| MemoryError::System { what, source: e.into() };
    match backing {
        Backing::Sealed(page) => SharedMemory::new("arena", size, page).map(SharedMemory::into_fd),
        Backing::Unsealed => {
            let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
            let file =
                rustix::fs::memfd_create("arena", flags).map_err(system("create a memfd"))?;
            rustix::fs::ftruncate(&file, size).map_err(system("size a memfd"))?;
            Ok(file)
        }
    }
}

fn describe(region: &Region) -> RegionDescriptor {
    RegionDescriptor {
        guest_addr: region.guest_addr,
        size: region.size,
        user_addr: region.guest_addr,
        mmap_offset: region.mmap_offset,
    }
}
