//! An opened layer file: how its bytes can be reached.
//!
//! Called when a disk is attached. [`LayerFile::open`] asks the file system what it can do and settles the [`Access`]:
//!
//! | access | when | what it means for a request |
//! |---|---|---|
//! | `Direct` | `O_DIRECT` and its alignment is reported (`STATX_DIOALIGN`) | past the page cache, aligned |
//! | `Buffered` | a file system without direct I/O | through the page cache, any alignment |
//! | `Memory` | tmpfs, ramfs | as `Buffered`, but a request never waits: it may run in the worker itself |
//!
//! Invariant: one open file description, which carries the I/O and the writer lock (see [`super::lock`]); the
//! descriptor is never duplicated into another description.

use super::lock;
use rustix::fs::{AtFlags, FallocateFlags, StatxFlags};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

const TMPFS_MAGIC: i64 = 0x0102_1994;
const RAMFS_MAGIC: i64 = 0x8584_58f6;

/// The strictest alignment served: of larger blocks no direct I/O is attempted.
const ALIGNMENT_LIMIT: u32 = 4096;

/// How the bytes of a layer are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// `O_DIRECT`.
    Direct {
        /// Addresses of buffers are multiples of this.
        memory: u32,
        /// Offsets and lengths are multiples of this; 512 or more.
        offset: u32,
    },
    /// Through the page cache.
    Buffered,
    /// Through the page cache that is the medium.
    Memory,
}

/// What can be done with a layer, and how. What is found to be unsupported in use is remembered.
#[derive(Debug)]
pub struct Abilities {
    access: Access,
    punch_hole: AtomicBool,
    zero_range: AtomicBool,
}

impl Abilities {
    /// All that is not known to be impossible.
    pub fn new(access: Access, punch_hole: bool) -> Self {
        let (punch_hole, zero_range) = (AtomicBool::new(punch_hole), AtomicBool::new(true));
        Self { access, punch_hole, zero_range }
    }

    /// How its bytes are reached.
    pub fn access(&self) -> Access {
        self.access
    }

    /// Whether holes can be punched: discard, and write-zeroes that may deallocate.
    pub fn punch_hole(&self) -> bool {
        self.punch_hole.load(Ordering::Relaxed)
    }

    /// Punching a hole was refused as unsupported, against all appearances.
    pub fn punch_hole_unsupported(&self) {
        self.punch_hole.store(false, Ordering::Relaxed);
    }

    /// Whether ranges can be zeroed without deallocating them, as far as is known.
    pub fn zero_range(&self) -> bool {
        self.zero_range.load(Ordering::Relaxed)
    }

    /// Zeroing a range was refused as unsupported. Learnt in use, since no attempt is without effect.
    pub fn zero_range_unsupported(&self) {
        self.zero_range.store(false, Ordering::Relaxed);
    }
}

/// An opened layer.
#[derive(Debug)]
pub struct LayerFile {
    file: File,
    abilities: Abilities,
}

/// Why a layer cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The file is missing, or not ours to open.
    #[error("its layer file {name} cannot be opened: {source}")]
    Open {
        /// The file's name.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file has another size than the disk's meta says.
    #[error(
        "its layer file {name} has {got} bytes, its meta says {expected}: it is not the file that was made"
    )]
    Size {
        /// The file's name.
        name: String,
        /// Its size.
        got: u64,
        /// The size it should have.
        expected: u64,
    },
}

impl LayerFile {
    /// Opens the file `name` in `directory`, which should have `size` bytes.
    ///
    /// # Errors
    /// See [`LayerError`].
    pub fn open(directory: &Path, name: &str, size: u64) -> Result<Self, LayerError> {
        let failed = |source| LayerError::Open { name: name.to_owned(), source };
        let path = directory.join(name);
        let access = preferred_access(&path).map_err(failed)?;
        let (file, access) = match access {
            Access::Direct { .. } => match open(&path, libc::O_DIRECT) {
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
                    (open(&path, 0).map_err(failed)?, Access::Buffered)
                }
                opened => (opened.map_err(failed)?, access),
            },
            _ => (open(&path, 0).map_err(failed)?, access),
        };
        let got = file.metadata().map_err(failed)?.len();
        if got != size {
            return Err(LayerError::Size { name: name.to_owned(), got, expected: size });
        }
        let abilities = Abilities::new(access, can_punch(&file, size));
        Ok(Self { file, abilities })
    }

    /// What can be done with it.
    pub fn abilities(&self) -> &Abilities {
        &self.abilities
    }

    /// The same, reached as another device or file system would have it.
    #[cfg(test)]
    pub fn with_access(mut self, access: Access) -> Self {
        if access == Access::Buffered {
            let flags = rustix::fs::fcntl_getfl(&self.file).unwrap();
            let buffered = flags - rustix::fs::OFlags::DIRECT;
            rustix::fs::fcntl_setfl(&self.file, buffered).unwrap();
        }
        self.abilities.access = access;
        self
    }

    /// Gives the writer lock back, whoever else still refers to the description.
    ///
    /// # Errors
    /// The file system cannot lock.
    pub fn unlock(&self) -> io::Result<()> {
        lock::unlock(&self.file)
    }

    /// Tries to take the writer lock; `false` if another description has it.
    ///
    /// # Errors
    /// The file system cannot lock.
    pub fn try_lock(&self) -> io::Result<bool> {
        lock::try_lock(&self.file)
    }

    /// The descriptor, for the engine.
    pub fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// The file, for I/O in place.
    pub fn file(&self) -> &File {
        &self.file
    }
}

fn open(path: &Path, flags: i32) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(flags | libc::O_NOFOLLOW).open(path)
}

/// What the file system reports for the file at `path`.
fn preferred_access(path: &Path) -> io::Result<Access> {
    let kind = rustix::fs::statfs(path)?.f_type;
    if matches!(kind as i64, TMPFS_MAGIC | RAMFS_MAGIC) {
        return Ok(Access::Memory);
    }
    let wanted = StatxFlags::DIOALIGN;
    let report = rustix::fs::statx(rustix::fs::CWD, path, AtFlags::SYMLINK_NOFOLLOW, wanted)?;
    let (memory, offset) = (report.stx_dio_mem_align, report.stx_dio_offset_align);
    let usable = report.stx_mask & wanted.bits() != 0
        && memory.is_power_of_two()
        && offset.is_power_of_two()
        && memory.max(offset) <= ALIGNMENT_LIMIT;
    Ok(match usable {
        true => Access::Direct { memory, offset: offset.max(512) },
        false => Access::Buffered,
    })
}

/// Tries to punch a hole where it changes nothing: behind the end of the file, its size kept.
fn can_punch(file: &File, size: u64) -> bool {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(file.as_fd(), flags, size, super::meta::BLOCK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_opened_as_its_file_system_allows() {
        for directory in [&std::env::temp_dir(), Path::new("/dev/shm")] {
            let file = tempfile::NamedTempFile::new_in(directory).unwrap();
            file.as_file().set_len(8192).unwrap();
            let name = file.path().file_name().unwrap().to_str().unwrap();
            let layer = LayerFile::open(directory, name, 8192).unwrap();
            if directory == Path::new("/dev/shm") {
                assert_eq!(layer.abilities().access(), Access::Memory);
            }
            assert!(layer.abilities().punch_hole());
            assert_eq!(layer.file().metadata().unwrap().len(), 8192);
            assert!(layer.try_lock().unwrap());
            let other = LayerFile::open(directory, name, 8192).unwrap();
            assert!(!other.try_lock().unwrap());
        }
    }

    #[test]
    fn a_missing_swapped_or_cut_layer_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let open = |name: &str| LayerFile::open(directory.path(), name, 8192);
        assert!(matches!(open("a.raw"), Err(LayerError::Open { .. })));
        std::fs::write(directory.path().join("a.raw"), [0; 4096]).unwrap();
        assert!(matches!(open("a.raw"), Err(LayerError::Size { got: 4096, .. })));
        std::os::unix::fs::symlink("a.raw", directory.path().join("b.raw")).unwrap();
        assert!(matches!(open("b.raw"), Err(LayerError::Open { .. })));
    }
}
