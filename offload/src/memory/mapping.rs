//! One mapping of a file that somebody else shares with us.
//!
//! Invariants: the file is in memory, the mapping is as long as asked for and was backed by the file when it was made; it is registered with
//! [`crate::sigbus`] for as long as it exists, so that a file that shrinks later breaks one session only.

use super::MemoryError;
use super::quota::Share;
use crate::sigbus::{self, Watch};
use rustix::fs::SealFlags;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;

/// The number of tmpfs, and so of a memfd (TMPFS_MAGIC of linux/magic.h).
const TMPFS: u32 = 0x0102_1994;
/// The number of hugetlbfs, and so of a memfd on huge pages (HUGETLBFS_MAGIC of linux/magic.h).
const HUGETLBFS: u32 = 0x9584_58f6;

/// How a session's files are mapped.
#[derive(Debug, Clone)]
pub struct MappingOptions {
    /// Refuse files that are not sealed against shrinking.
    pub require_sealed: bool,
    /// What is marked broken when a mapping faults.
    pub watch: Arc<Watch>,
}

/// A shared, readable and writable mapping of `len` bytes of a file.
#[derive(Debug)]
pub struct Mapping {
    /// First byte asked for.
    start: NonNull<u8>,
    /// Bytes asked for.
    len: usize,
    /// What is really mapped: whole pages of the file's page size.
    whole: NonNull<u8>,
    whole_len: usize,
    guard: Option<sigbus::Guard>,
    _share: Share,
}

// SAFETY: the mapping is plain shared memory, valid from any thread until dropped.
unsafe impl Send for Mapping {}
// SAFETY: as above; `Mapping` gives out raw pointers only.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes at `offset` of the file `fd`.
    ///
    /// # Errors
    /// A file that is too short, not sealed although that is required, or cannot be mapped.
    pub fn new(
        fd: BorrowedFd<'_>,
        offset: u64,
        len: u64,
        options: &MappingOptions,
    ) -> Result<Self, MemoryError> {
        if options.require_sealed && !is_sealed(fd) {
            return Err(MemoryError::NotSealed);
        }
        if !is_in_memory(fd)? {
            return Err(MemoryError::NotInMemory);
        }
        let stat = rustix::fs::fstat(fd).map_err(MemoryError::system("stat a shared file"))?;
        let file = u64::try_from(stat.st_size).unwrap_or(0);
        let end = offset.checked_add(len).filter(|end| *end <= isize::MAX as u64);
        let Some(end) = end.filter(|end| len > 0 && *end <= file) else {
            return Err(MemoryError::Short { file, end: offset.saturating_add(len) });
        };
        let page = page_size(stat.st_blksize as u64);
        let first = offset & !(page - 1);
        // A file on huge pages is a whole number of them, so that rounding up stays inside the file; on ordinary
        // pages the kernel backs the last page whole.
        let whole_len = (end - first).next_multiple_of(page) as usize;
        let share = Share::take(whole_len as u64)?;
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let whole = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                whole_len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::NORESERVE,
                fd,
                first,
            )
        }
        .map_err(MemoryError::system("map shared memory"))?;
        let Some(whole) = NonNull::new(whole.cast::<u8>()) else {
            return Err(MemoryError::system("map shared memory")(rustix::io::Errno::NOMEM));
        };
        // SAFETY: the range was mapped just now. A core dump of a card must not hold its guests' memory; a kernel
        // that refuses the advice costs nothing but that.
        let _ =
            unsafe { rustix::mm::madvise(whole.as_ptr().cast(), whole_len, Advice::LinuxDontDump) };
        let range = whole.as_ptr() as usize..whole.as_ptr() as usize + whole_len;
        let guard = sigbus::guard(range, Arc::clone(&options.watch)).map_err(|source| {
            // SAFETY: mapped above, and nothing points into it yet.
            let _ = unsafe { rustix::mm::munmap(whole.as_ptr().cast(), whole_len) };
            MemoryError::System { what: "install the SIGBUS handler", source }
        })?;
        // SAFETY: offset - first < whole_len.
        let start = unsafe { whole.add((offset - first) as usize) };
        Ok(Self { start, len: len as usize, whole, whole_len, guard: Some(guard), _share: share })
    }

    /// The first byte. Valid for [`Mapping::len`] bytes while the mapping lives.
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Size in bytes; never 0.
    #[allow(clippy::len_without_is_empty)] // an empty mapping cannot be made
    pub fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // The handler must forget the range before its addresses can be used for something else.
        drop(self.guard.take());
        // SAFETY: mapped by `new`; whoever holds pointers into it also holds the mapping, so nobody does.
        let _ = unsafe { rustix::mm::munmap(self.whole.as_ptr().cast(), self.whole_len) };
    }
}

/// Whether `fd` is sealed against shrinking. Files that know no seals are not.
pub(super) fn is_sealed(fd: impl AsFd) -> bool {
    rustix::fs::fcntl_get_seals(fd).is_ok_and(|seals| seals.contains(SealFlags::SHRINK))
}

/// Whether the pages of a file never have to be fetched: a worker that touches a page of a disk, or of a file system that is
/// another process (FUSE), waits for as long as that likes, and all its other sessions with it.
fn is_in_memory(fd: BorrowedFd<'_>) -> Result<bool, MemoryError> {
    let system = rustix::fs::fstatfs(fd).map_err(MemoryError::system("stat a shared file"))?;
    // Only the low 32 bits are the file system's number, whatever the field's type.
    Ok(matches!(system.f_type as u32, TMPFS | HUGETLBFS))
}

/// The page size of a file whose preferred block size is `block`: huge pages report theirs there.
fn page_size(block: u64) -> u64 {
    let system = rustix::param::page_size() as u64;
    if block.is_power_of_two() && block > system { block } else { system }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fd: impl AsFd) -> Result<Mapping, MemoryError> {
        let options = MappingOptions { require_sealed: false, watch: Watch::new() };
        Mapping::new(fd.as_fd(), 0, 4096, &options)
    }

    #[test]
    fn a_file_that_is_not_in_memory_is_refused() {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let memory = rustix::fs::memfd_create("mapping", flags).unwrap();
        rustix::fs::ftruncate(&memory, 4096).unwrap();
        assert_eq!(map(&memory).unwrap().len(), 4096);
        // Where programs are is a disk; the kernel's own files are no memory either.
        for path in ["/proc/self/exe", "/proc/self/maps"] {
            let file = std::fs::File::open(path).unwrap();
            assert!(matches!(map(&file), Err(MemoryError::NotInMemory)), "{path}");
        }
    }
}
