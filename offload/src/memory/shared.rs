//! Memory that a front end shares: a memfd, sealed so that nobody can take it away from whoever maps it.
//!
//! Invariants: its size never changes (F_SEAL_SHRINK, F_SEAL_GROW), and no seal can be added any more.

use super::{MemoryError, RegionDescriptor};
use rustix::fs::{MemfdFlags, SealFlags};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The pages that back a [`SharedMemory`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PageSize {
    /// The system's ordinary pages.
    #[default]
    Normal,
    /// 2 MiB pages from the system's pool.
    Huge2M,
    /// 1 GiB pages from the system's pool.
    Huge1G,
}

impl PageSize {
    /// Size in bytes.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Normal => rustix::param::page_size() as u64,
            Self::Huge2M => 2 << 20,
            Self::Huge1G => 1 << 30,
        }
    }
}

/// A sealed memfd. It maps nothing itself.
#[derive(Debug)]
pub struct SharedMemory {
    fd: OwnedFd,
    size: u64,
}

impl SharedMemory {
    /// Makes `size` bytes of zeroes, named `name` in `/proc`.
    ///
    /// # Errors
    /// The kernel refuses, or `size` is 0 or not a whole number of pages.
    pub fn new(name: &str, size: u64, page: PageSize) -> Result<Self, MemoryError> {
        if size == 0 || !size.is_multiple_of(page.bytes()) || size > i64::MAX as u64 {
            return Err(MemoryError::Shape(RegionDescriptor {
                guest_addr: 0,
                size,
                user_addr: 0,
                mmap_offset: 0,
            }));
        }
        let flags = MemfdFlags::CLOEXEC
            | MemfdFlags::ALLOW_SEALING
            | match page {
                PageSize::Normal => MemfdFlags::empty(),
                PageSize::Huge2M => MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
                PageSize::Huge1G => MemfdFlags::HUGETLB | MemfdFlags::HUGE_1GB,
            };
        let fd =
            rustix::fs::memfd_create(name, flags).map_err(MemoryError::system("create a memfd"))?;
        rustix::fs::ftruncate(&fd, size).map_err(MemoryError::system("size a memfd"))?;
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
            .map_err(MemoryError::system("seal a memfd"))?;
        Ok(Self { fd, size })
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Gives the descriptor away.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }
}

impl AsFd for SharedMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
