//! The dirty log: one bit per 4 KiB page of guest memory, shared with the front end while it migrates.
//!
//! Invariants: bits are only ever set here, atomically, because the front end reads and clears them meanwhile; an
//! address beyond the log is ignored, as the front end has said that it does not care about it.

use super::{Mapping, MappingOptions, MemoryError};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU8, Ordering};

/// Bytes of guest memory that one bit stands for (vhost-user, VHOST_LOG_PAGE).
pub const LOG_PAGE: u64 = 4096;

/// A shared bitmap of the pages that we wrote.
#[derive(Debug)]
pub struct DirtyLog {
    map: Mapping,
}

impl DirtyLog {
    /// Maps the `size` bytes at `offset` of the file that came with SET_LOG_BASE.
    ///
    /// # Errors
    /// See [`MemoryError`].
    pub fn map(
        fd: BorrowedFd<'_>,
        offset: u64,
        size: u64,
        options: &MappingOptions,
    ) -> Result<Self, MemoryError> {
        Ok(Self { map: Mapping::new(fd, offset, size, options)? })
    }

    /// Marks the pages of the `len` bytes at guest address `addr`.
    pub fn mark(&self, addr: u64, len: u64) {
        if len == 0 {
            return;
        }
        let last = addr.saturating_add(len - 1) / LOG_PAGE;
        let end = (self.map.len() as u64).saturating_mul(8);
        for page in addr / LOG_PAGE..=last.min(end.saturating_sub(1)) {
            // SAFETY: page / 8 < len of the mapping by the bound above; AtomicU8 has the layout of u8 and may be
            // shared with another process.
            let byte = unsafe { AtomicU8::from_ptr(self.map.as_ptr().add((page / 8) as usize)) };
            // The front end takes the bit first and reads the page then, so the data must be there before the bit.
            byte.fetch_or(1 << (page % 8), Ordering::Release);
        }
    }
}
