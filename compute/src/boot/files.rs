//! The kernel and the initrd, opened.

use super::short;
use bixi_api::compute::BootConfig;
use bixi_api::file::FileSource;
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It is not there.
    #[error("{what} {name} does not exist: check boot.{what} in the configuration")]
    Missing {
        /// `kernel` or `initrd`.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// It cannot be opened or read.
    #[error("cannot read {what} {name}")]
    Read {
        /// `kernel` or `initrd`.
        what: &'static str,
        /// Its name.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// It is something else than a file with something in it.
    #[error("{what} {name} is {problem}: give a file")]
    NoFile {
        /// `kernel` or `initrd`.
        what: &'static str,
        /// Its name.
        name: String,
        /// What it is.
        problem: &'static str,
    },
}

/// An open file of the boot.
#[derive(Debug)]
pub struct BootFile {
    what: &'static str,
    name: String,
    file: File,
    size: u64,
}

impl BootFile {
    /// Opens `source`; `what` is its role, for errors.
    ///
    /// # Errors
    /// It is not there, cannot be read, is no regular file or is empty.
    pub fn open(what: &'static str, source: &FileSource) -> Result<Self, FileError> {
        let name = source.to_string();
        let read = |source: io::Error| FileError::Read { what, name: name.clone(), source };
        let file = match source {
            FileSource::Path(path) => File::open(path),
            FileSource::Fd(fd) => duplicate(*fd),
        };
        let file = file.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => FileError::Missing { what, name: name.clone() },
            _ => read(error),
        })?;
        let metadata = file.metadata().map_err(read)?;
        let problem = match metadata.file_type() {
            kind if kind.is_dir() => Some("a directory"),
            kind if !kind.is_file() => Some("no regular file"),
            _ if metadata.len() == 0 => Some("empty"),
            _ => None,
        };
        match problem {
            Some(problem) => Err(FileError::NoFile { what, name, problem }),
            None => Ok(Self { what, name, file, size: metadata.len() }),
        }
    }

    /// A file that holds `bytes`, for tests and fuzzing.
    pub(crate) fn from_bytes(bytes: &[u8]) -> io::Result<Self> {
        let fd = rustix::fs::memfd_create("kernel", rustix::fs::MemfdFlags::CLOEXEC)?;
        let file = File::from(fd);
        file.write_all_at(bytes, 0)?;
        Ok(Self { what: "kernel", name: "test".to_owned(), file, size: bytes.len() as u64 })
    }

    /// How an operator knows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its size in bytes when it was opened.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    fn failed(&self, source: io::Error) -> FileError {
        FileError::Read { what: self.what, name: self.name.clone(), source: short(source) }
    }

    /// Fills `buffer` from `offset` on; what lies beyond the end of the file stays as it is.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize, FileError> {
        let mut done = 0;
        while done < buffer.len() {
            match self.file.read_at(&mut buffer[done..], offset.saturating_add(done as u64)) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // An offset beyond what a file can have.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
                Err(error) => return Err(self.failed(error)),
            }
        }
        Ok(done)
    }

    /// Copies `len` bytes from `offset` on to guest memory at `address`.
    ///
    /// # Errors
    /// The file is shorter, or that is no guest memory.
    pub fn load(
        &self,
        memory: &GuestMemoryMmap,
        offset: u64,
        len: u64,
        address: u64,
    ) -> Result<(), FileError> {
        use std::io::{Seek, SeekFrom};
        let too_large = || io::Error::from_raw_os_error(libc::EFBIG);
        let len = usize::try_from(len).map_err(|_| self.failed(too_large()))?;
        let mut file = &self.file;
        file.seek(SeekFrom::Start(offset)).map_err(|error| self.failed(error))?;
        memory
            .read_exact_volatile_from(GuestAddress(address), &mut file, len)
            .map_err(|error| self.failed(into_io(error)))
    }
}

fn into_io(error: vm_memory::GuestMemoryError) -> io::Error {
    match error {
        vm_memory::GuestMemoryError::IOError(error) => error,
        vm_memory::GuestMemoryError::PartialBuffer { .. } => {
            io::Error::from(io::ErrorKind::UnexpectedEof)
        }
        other => io::Error::other(other),
    }
}

/// A duplicate of an inherited descriptor.
/// Another descriptor of what is behind `fd`.
///
/// # Errors
/// Nothing is.
pub(crate) fn duplicate(fd: i32) -> io::Result<File> {
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: the number is borrowed for this one call only, which answers EBADF if nothing is behind it.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    Ok(File::from(borrowed.try_clone_to_owned()?))
}

/// The files of a boot.
#[derive(Debug)]
pub struct BootFiles {
    /// The kernel.
    pub kernel: BootFile,
    /// The initial RAM disk.
    pub initrd: Option<BootFile>,
}

impl BootFiles {
    /// Opens what `config` names.
    ///
    /// # Errors
    /// One of them cannot be used.
    pub fn open(config: &BootConfig) -> Result<Self, FileError> {
        let kernel = BootFile::open("kernel", &config.kernel)?;
        let initrd = config.initrd.as_ref().map(|source| BootFile::open("initrd", source));
        Ok(Self { kernel, initrd: initrd.transpose()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_file_is_refused_by_what_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let open = |path: &std::path::Path| {
            BootFile::open("kernel", &FileSource::Path(path.to_owned())).unwrap_err().to_string()
        };
        let missing = open(&folder.path().join("none"));
        assert!(missing.contains("does not exist: check boot.kernel"), "{missing}");
        assert!(open(folder.path()).contains("a directory"));
        std::fs::write(folder.path().join("empty"), b"").unwrap();
        assert!(open(&folder.path().join("empty")).contains("empty"));
        let error = BootFile::open("initrd", &FileSource::Fd(-1)).unwrap_err();
        assert!(matches!(error, FileError::Read { what: "initrd", .. }), "{error}");
    }
}
