//! Small files that are whole or not there: write anew, flush, rename over, flush the directory.
//!
//! Called for a disk's `meta`, its owner note and the attachment records. After [`replace`] returns, the new content
//! is on the medium; a crash before leaves the old content, and at most a leftover whose name ends in
//! [`UNFINISHED`], which [`sweep`] removes at the next start.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The end of the name of a file or directory that is still being made.
pub const UNFINISHED: &str = ".unfinished";

/// Makes `path` hold `content`, durably and at once.
///
/// # Errors
/// Whatever the file system says; `path` then still holds what it held.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a file in a directory is needed"));
    };
    let mut unfinished = name.to_owned();
    unfinished.push(UNFINISHED);
    let unfinished = parent.join(unfinished);
    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&unfinished)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&unfinished, path)
    })();
    if written.is_err() {
        // Best effort: what stays is swept at the next start.
        let _ = fs::remove_file(&unfinished);
    }
    written?;
    sync_directory(parent)
}

#[cfg(test)]
thread_local! {
    static FAILING: std::cell::RefCell<Option<std::path::PathBuf>> =
        const { std::cell::RefCell::new(None) };
}

/// Runs `work` on a medium that fails whenever the entries of `path` are flushed.
#[cfg(test)]
pub(super) fn with_failing_sync<T>(path: &Path, work: impl FnOnce() -> T) -> T {
    FAILING.set(Some(path.to_owned()));
    let result = work();
    FAILING.set(None);
    result
}

/// Puts a directory's entries on the medium.
///
/// # Errors
/// Whatever the file system says.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    #[cfg(test)]
    if FAILING.with_borrow(|failing| failing.as_deref() == Some(path)) {
        return Err(io::Error::from_raw_os_error(libc::EIO));
    }
    File::open(path)?.sync_all()
}

/// Reads a file that should have at most `limit` bytes; one byte more is read of a larger one, for the caller to see.
///
/// # Errors
/// Whatever the file system says.
pub fn read_small(path: &Path, limit: usize) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.take(limit as u64 + 1).read_to_end(&mut content)?;
    Ok(content)
}

/// Removes what unfinished work left in `directory`, and says what it removed.
///
/// # Errors
/// The directory cannot be read. What cannot be removed is left and not reported.
pub fn sweep(directory: &Path) -> io::Result<Vec<String>> {
    let mut swept = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.ends_with(UNFINISHED) {
            continue;
        }
        let removed = match entry.file_type()?.is_dir() {
            true => fs::remove_dir_all(entry.path()),
            false => fs::remove_file(entry.path()),
        };
        if removed.is_ok() {
            swept.push(name);
        }
    }
    Ok(swept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_replaced_and_leftovers_are_swept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("meta");
        replace(&path, b"one").unwrap();
        replace(&path, b"two").unwrap();
        assert_eq!(read_small(&path, 10).unwrap(), b"two");
        assert_eq!(read_small(&path, 2).unwrap(), b"two");
        fs::write(directory.path().join("meta.unfinished"), b"x").unwrap();
        fs::create_dir(directory.path().join("d.unfinished")).unwrap();
        fs::write(directory.path().join("d.unfinished/0"), b"x").unwrap();
        let mut swept = sweep(directory.path()).unwrap();
        swept.sort();
        assert_eq!(swept, ["d.unfinished", "meta.unfinished"]);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_replacement_leaves_the_old_content() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("meta");
        fs::create_dir(&path).unwrap();
        assert!(replace(&path, b"x").is_err());
        assert!(path.is_dir());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
