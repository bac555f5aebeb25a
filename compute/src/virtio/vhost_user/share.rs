//! What every vhost-user device of a VM is given of guest memory.

use super::super::ring::{RingMemoryError, ring_memory};
use crate::memory::GuestRam;
use bixi_offload::frontend::{ReadUsed, Region};
use bixi_offload::memory::GuestMemory;
use bixi_offload::ring::SharedFd;
use std::io;
use std::sync::Arc;

/// Guest memory as it is shared with back ends, and as rings in this process see it.
#[derive(Debug, Clone)]
pub struct GuestShare {
    rings: Arc<GuestMemory>,
    regions: Arc<[(Region, SharedFd)]>,
}

/// Guest memory cannot be shared.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// It cannot be mapped for rings of this process.
    #[error(transparent)]
    Map(#[from] RingMemoryError),
    /// Its file cannot be named once more.
    #[error("cannot share guest memory: raise the limit of open files")]
    File(#[from] io::Error),
}

impl GuestShare {
    /// Shares `ram`.
    ///
    /// # Errors
    /// The process is out of descriptors or address space.
    pub fn new(ram: &GuestRam) -> Result<Self, ShareError> {
        let file = Arc::new(ram.fd().try_clone_to_owned()?);
        let regions = (0..).zip(ram.regions()).map(|(slot, region)| {
            let region = Region {
                slot,
                guest_addr: region.guest_address,
                size: region.size,
                mmap_offset: region.file_offset,
            };
            (region, Arc::clone(&file))
        });
        Ok(Self { regions: regions.collect(), rings: ring_memory(ram)? })
    }

    /// Shares memory that is no VM's.
    #[cfg(test)]
    pub(in super::super) fn of(arena: &bixi_offload::frontend::GuestArena) -> Self {
        Self { rings: Arc::clone(arena.memory()), regions: arena.regions().into() }
    }

    /// The memory for rings that this process serves itself.
    #[must_use]
    pub fn rings(&self) -> &Arc<GuestMemory> {
        &self.rings
    }

    /// The regions with their files, as a session is told.
    pub(super) fn regions(&self) -> Vec<(Region, SharedFd)> {
        self.regions.to_vec()
    }

    /// The used index of the ring whose used area is at `used`.
    pub(super) fn used_index(&self, used: u64) -> u16 {
        // The transport hands on only rings that lie in memory; of any other nothing was ever used.
        let at = used.checked_add(2).and_then(|at| self.rings.get(at, 2));
        at.and_then(|bytes| bytes.read_array(0)).map_or(0, u16::from_le_bytes)
    }

    /// Reads used indices for a session.
    pub(super) fn read_used(&self) -> ReadUsed {
        let share = self.clone();
        Box::new(move |ring| share.used_index(ring.used))
    }
}
