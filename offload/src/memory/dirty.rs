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
        let end = (self.map.len() as u64).saturating_mul(8);
        let last = (addr.saturating_add(len - 1) / LOG_PAGE).min(end - 1);
        let mut page = addr / LOG_PAGE;
        while page <= last {
            // All pages of one byte at once: a hostile chain may name gigabytes.
            let (byte, bit) = (page / 8, page % 8);
            let bits = (last - page + 1).min(8 - bit);
            // SAFETY: page / 8 < len of the mapping by the bound above; AtomicU8 has the layout of u8 and may be
            // shared with another process.
            let byte = unsafe { AtomicU8::from_ptr(self.map.as_ptr().add(byte as usize)) };
            // The front end takes the bit first and reads the page then, so the data must be there before the bit.
            byte.fetch_or((0xffu8 >> (8 - bits)) << bit, Ordering::Release);
            page += bits;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{PageSize, SharedMemory};
    use crate::sigbus::Watch;
    use std::os::fd::AsFd;

    #[test]
    fn exactly_the_pages_of_a_range_are_marked() {
        let file = SharedMemory::new("log", 4096, PageSize::Normal).unwrap();
        let options = MappingOptions { require_sealed: true, watch: Watch::new() };
        // 100 bytes: 800 pages.
        let log = DirtyLog::map(file.as_fd(), 0, 100, &options).unwrap();
        for (addr, len, pages) in [
            (0, 0, 0..0),
            (0, 1, 0..1),
            (4095, 2, 0..2),
            (7 * 4096, 4096, 7..8),
            (7 * 4096, 4097, 7..9),
            (3 * 4096, 30 * 4096, 3..33),
            (8 * 4096, 16 * 4096, 8..24),
            (799 * 4096, 8192, 799..800),
            (800 * 4096, 1, 0..0),
            (0, u64::MAX, 0..800),
            (u64::MAX, u64::MAX, 0..0),
            (5, u64::MAX - 2, 0..800),
        ] {
            rustix::io::pwrite(&file, &[0; 128], 0).unwrap();
            log.mark(addr, len);
            let mut bytes = [0; 128];
            rustix::io::pread(&file, &mut bytes, 0).unwrap();
            for page in 0..1024u64 {
                let marked = bytes[(page / 8) as usize] >> (page % 8) & 1 == 1;
                assert_eq!(marked, pages.contains(&page), "{addr:#x} {len:#x} page {page}");
            }
        }
    }
}
