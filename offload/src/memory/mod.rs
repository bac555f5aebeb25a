//! The memory border: what a card session sees of a front end's memory.
//!
//! [`GuestMemory`] is an immutable snapshot of the regions that one front end shares. Everything else asks it for
//! bytes by guest address ([`GuestMemory::get`]) and gets a [`GuestBytes`], which cannot outlive the snapshot. A
//! change of the memory table makes a new snapshot; requests in flight pin the old one by holding its `Arc`.
//!
//! Invariants: regions never overlap in guest addresses; every byte that a `GuestBytes` names lies inside one mapping
//! that is alive; a mapping that the front end shrinks under us is healed by [`crate::sigbus`] and marks its
//! [`Watch`] broken, which ends the session and nothing else. The guest writes to this memory at any time: a byte
//! read twice may have two values, so whoever decides on a byte reads it once.
//!
//! Callers: the ring ([`crate::ring`]), the card's runtime ([`crate::card`]), front ends for [`SharedMemory`].

mod bytes;
mod dirty;
mod mapping;
mod quota;
mod shared;

pub use bytes::GuestBytes;
pub use dirty::{DirtyLog, LOG_PAGE};
pub use mapping::{Mapping, MappingOptions};
pub use shared::{PageSize, SharedMemory};

use crate::sigbus::Watch;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// The most regions that a front end may share: as many as KVM has slots to show a guest.
pub const MAX_REGIONS: usize = 509;

/// One region as the front end describes it (vhost-user, "Memory region description").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RegionDescriptor {
    /// Where the guest sees it.
    pub guest_addr: u64,
    /// Its size in bytes.
    pub size: u64,
    /// Where the front end sees it. Ring addresses are in this space; our own front end puts the guest address here.
    pub user_addr: u64,
    /// Where it begins in the file that backs it, in bytes.
    pub mmap_offset: u64,
}

/// Why memory could not be shared.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// A region is empty, or wraps around the end of an address space.
    #[error("memory region {0:x?} is empty or wraps around: the front end is at fault")]
    Shape(RegionDescriptor),
    /// Two regions claim one guest address.
    #[error("memory regions at {first:#x} and {second:#x} overlap: the front end is at fault")]
    Overlap {
        /// Guest address of the lower region.
        first: u64,
        /// Guest address of the higher region.
        second: u64,
    },
    /// More regions than [`MAX_REGIONS`].
    #[error("{0} memory regions, more than {MAX_REGIONS}")]
    TooMany(usize),
    /// All sessions together map as much as a process may.
    #[error(
        "the sessions of this process map {} TiB or {} regions already: end some, or serve them by another process",
        quota::MAX_BYTES >> 40,
        quota::MAX_MAPPINGS
    )]
    Quota,
    /// The file ends before the region does.
    #[error("a shared file of {file} bytes ends before byte {end} of its mapping")]
    Short {
        /// Size of the file in bytes.
        file: u64,
        /// The byte that should be there.
        end: u64,
    },
    /// The file can be shrunk, and the device does not accept that.
    #[error(
        "shared memory is not sealed against shrinking: use a memfd with F_SEAL_SHRINK, or set require-sealed to false"
    )]
    NotSealed,
    /// The file's pages come from a medium or from another process, and a worker that touches one would wait for it.
    #[error(
        "shared memory is a file on a disk or of another file system: use a memfd, or a file on tmpfs or hugetlbfs"
    )]
    NotInMemory,
    /// The kernel refused.
    #[error("cannot {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
}

impl MemoryError {
    fn system(what: &'static str) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |e| Self::System { what, source: e.into() }
    }
}

/// One region as it is looked up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    /// First guest address.
    pub guest: u64,
    /// First address in the front end.
    user: u64,
    /// Size in bytes.
    pub size: u64,
    /// Where it is mapped here.
    pub host: *mut u8,
}

// SAFETY: a span is a note of where memory is; whoever uses its pointer holds the memory.
unsafe impl Send for Span {}

impl Span {
    /// A span that has no byte.
    pub const NONE: Self = Self { guest: 0, user: 0, size: 0, host: std::ptr::null_mut() };

    /// Where the `len` bytes at guest address `addr` are here, if this region has them all.
    #[inline(always)]
    pub fn find(&self, addr: u64, len: u32) -> Option<*mut u8> {
        let offset = addr.wrapping_sub(self.guest);
        // The second half cannot wrap when the first holds, and decides when it does not.
        if offset < self.size && u64::from(len) <= self.size - offset {
            Some(self.host.wrapping_add(offset as usize))
        } else {
            None
        }
    }
}

/// An immutable snapshot of one front end's memory.
#[derive(Debug)]
pub struct GuestMemory {
    /// Sorted by guest address, not overlapping.
    spans: Box<[Span]>,
    /// Keeps every span's mapping alive.
    mappings: Box<[(RegionDescriptor, Arc<Mapping>)]>,
    watch: Arc<Watch>,
}

// SAFETY: the pointers in `spans` point into `mappings`, which live as long as the snapshot and are plain shared
// memory: any thread may access them, and all accesses go through `GuestBytes` or the ring's atomics.
unsafe impl Send for GuestMemory {}
// SAFETY: as above; the snapshot itself never changes.
unsafe impl Sync for GuestMemory {}

impl GuestMemory {
    /// Maps `regions`, each from the file beside it.
    ///
    /// # Errors
    /// See [`MemoryError`]; nothing stays mapped then.
    pub fn map(
        regions: &[(RegionDescriptor, BorrowedFd<'_>)],
        options: &MappingOptions,
    ) -> Result<Arc<Self>, MemoryError> {
        let mappings = regions
            .iter()
            .map(|(region, fd)| Ok((*region, Arc::new(Self::map_region(region, *fd, options)?))))
            .collect::<Result<Vec<_>, MemoryError>>()?;
        Self::from_mappings(mappings, Arc::clone(&options.watch))
    }

    /// Maps one region, to be put together by [`GuestMemory::from_mappings`].
    ///
    /// # Errors
    /// See [`MemoryError`].
    pub fn map_region(
        region: &RegionDescriptor,
        fd: BorrowedFd<'_>,
        options: &MappingOptions,
    ) -> Result<Mapping, MemoryError> {
        check_shape(region)?;
        Mapping::new(fd, region.mmap_offset, region.size, options)
    }

    /// Puts mapped regions together. `watch` is the one they were mapped with.
    ///
    /// # Errors
    /// Regions that overlap in guest addresses, too many, or not of their mapping's size.
    pub fn from_mappings(
        mut mappings: Vec<(RegionDescriptor, Arc<Mapping>)>,
        watch: Arc<Watch>,
    ) -> Result<Arc<Self>, MemoryError> {
        if mappings.len() > MAX_REGIONS {
            return Err(MemoryError::TooMany(mappings.len()));
        }
        mappings.sort_by_key(|(region, _)| region.guest_addr);
        for (region, mapping) in &mappings {
            check_shape(region)?;
            if region.size != mapping.len() as u64 {
                return Err(MemoryError::Shape(*region));
            }
        }
        for pair in mappings.windows(2) {
            let (first, second) = (pair[0].0, pair[1].0);
            if first.guest_addr + first.size > second.guest_addr {
                return Err(MemoryError::Overlap {
                    first: first.guest_addr,
                    second: second.guest_addr,
                });
            }
        }
        let spans = mappings
            .iter()
            .map(|(region, mapping)| Span {
                guest: region.guest_addr,
                user: region.user_addr,
                size: region.size,
                host: mapping.as_ptr(),
            })
            .collect();
        Ok(Arc::new(Self { spans, mappings: mappings.into(), watch }))
    }

    /// The regions, sorted by guest address.
    pub fn regions(&self) -> impl ExactSizeIterator<Item = &(RegionDescriptor, Arc<Mapping>)> {
        self.mappings.iter()
    }

    /// The `len` bytes at guest address `addr`, if one region has them all.
    #[inline]
    pub fn get(&self, addr: u64, len: u64) -> Option<GuestBytes<'_>> {
        let span = self.span(addr)?;
        let offset = addr - span.guest;
        if len > span.size - offset {
            return None;
        }
        // SAFETY: offset + len <= size of a mapping that `self` keeps alive, and sizes fit isize (check_shape).
        Some(unsafe { GuestBytes::new(span.host.add(offset as usize), len as usize) })
    }

    /// The region that has guest address `addr`.
    #[inline]
    pub(crate) fn span(&self, addr: u64) -> Option<&Span> {
        let after = self.spans.partition_point(|span| span.guest <= addr);
        let span = self.spans.get(after.checked_sub(1)?)?;
        (addr - span.guest < span.size).then_some(span)
    }

    /// The guest address of an address of the front end, as in SET_VRING_ADDR.
    pub fn user_to_guest(&self, addr: u64) -> Option<u64> {
        self.spans
            .iter()
            .find(|span| addr.wrapping_sub(span.user) < span.size)
            .map(|span| span.guest + (addr - span.user))
    }

    /// Whether the front end took memory away that it had shared: the bytes read since are not the guest's.
    #[inline]
    pub fn is_broken(&self) -> bool {
        self.watch.is_broken()
    }

    /// The session's watch, with which all mappings of one session are made.
    pub fn watch(&self) -> &Arc<Watch> {
        &self.watch
    }
}

fn check_shape(region: &RegionDescriptor) -> Result<(), MemoryError> {
    let fits = |start: u64| start.checked_add(region.size).is_some();
    let good = region.size > 0
        && region.size <= isize::MAX as u64
        && fits(region.guest_addr)
        && fits(region.user_addr)
        && fits(region.mmap_offset);
    if good { Ok(()) } else { Err(MemoryError::Shape(*region)) }
}

/// Asks the processor to fetch the line at `at`, without waiting. Any address is allowed.
#[inline(always)]
pub(crate) fn prefetch(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults, whatever the address.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Asks the processor to fetch the line at `at` for writing: the other side has read it, and taking it away from there
/// costs as much as fetching it. Any address is allowed.
#[inline(always)]
pub(crate) fn prefetch_for_write(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults, whatever the address, and a processor that does not know it does nothing. It has
    // no intrinsic that is always this instruction.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) at, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}
