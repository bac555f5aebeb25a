//! The writer lock: who may write a disk.
//!
//! The lock is an open-file-description lock (`F_OFD_SETLK`) over the whole layer file, taken on the very description
//! that carries the I/O. The kernel drops it when the last reference to that description goes, and a request in
//! flight in an io_uring holds one: a process killed with requests on their way to the medium keeps the lock until
//! the last of them has ended. So whoever gets the lock may replay the dead process's requests and no write of the
//! dead one can come after.
//!
//! The kernel does not say who holds such a lock, so the holder leaves a note beside the disk ([`Owner`]). The note
//! explains; only the lock decides.

use super::durable;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

/// The note's name in the disk's directory.
pub const OWNER_FILE: &str = "owner";

/// Tries to take the writer lock on the description behind `file`; `false` if another description has it.
///
/// # Errors
/// What the kernel says, for a file system that cannot lock.
pub fn try_lock(file: &File) -> io::Result<bool> {
    match set(file, libc::F_WRLCK) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        other => other.map(|()| true),
    }
}

/// Gives the writer lock of the description behind `file` back. Only when no I/O of it is under way: whoever waits for
/// the lock takes it as proof of that.
///
/// # Errors
/// What the kernel says.
pub fn unlock(file: &File) -> io::Result<()> {
    set(file, libc::F_UNLCK)
}

fn set(file: &File, kind: libc::c_int) -> io::Result<()> {
    let mut lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open as long as `file` lives, and `lock` is a valid flock structure that the kernel
    // reads, and may write, during the call only.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &mut lock) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Held while a disk's `meta` is read, changed and written again: two processes that wait for one writer lock must not
/// lose each other's epoch.
#[derive(Debug)]
pub struct MetaGuard(#[allow(dead_code, reason = "the lock lives as long as the descriptor")] File);

impl MetaGuard {
    /// Waits for the guard. Its holders keep it for one small write, so the wait is short.
    ///
    /// # Errors
    /// The directory cannot be opened or locked.
    pub fn take(directory: &Path) -> io::Result<Self> {
        let directory = File::open(directory)?;
        loop {
            match rustix::fs::flock(directory.as_fd(), rustix::fs::FlockOperation::LockExclusive) {
                Ok(()) => return Ok(Self(directory)),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// The note of who took the writer lock last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The boot that the process belongs to, so that a process id of another host or another day is not believed.
    pub boot: String,
    /// Its process id.
    pub pid: u32,
    /// When it started, in clock ticks since the boot: process ids come again, this pair does not.
    pub start: u64,
    /// Its release.
    pub release: String,
}

/// What is known of the process that holds a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// It runs.
    Alive(Owner),
    /// It has ended; what holds the lock is its I/O that the kernel has not finished.
    Dead(Owner),
    /// Nobody can tell.
    Unknown,
}

impl Owner {
    /// The note of this process.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn this_process() -> io::Result<Self> {
        let pid = std::process::id();
        let (_, start) = state_and_start(pid)?;
        Ok(Self { boot: boot()?, pid, start, release: bixi_api::RELEASE.to_owned() })
    }

    /// Leaves the note beside the disk.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, directory: &Path) -> io::Result<()> {
        durable::replace(&directory.join(OWNER_FILE), &serde_json::to_vec(self)?)
    }
}

impl Holder {
    /// Reads the note beside the disk and looks whether that process lives.
    pub fn look(directory: &Path) -> Self {
        let note = durable::read_small(&directory.join(OWNER_FILE), 4096).ok();
        let Some(owner) = note.and_then(|n| serde_json::from_slice::<Owner>(&n).ok()) else {
            return Self::Unknown;
        };
        match boot() {
            Ok(boot) if boot == owner.boot => {}
            _ => return Self::Unknown,
        }
        match state_and_start(owner.pid) {
            Ok((state, start)) if start == owner.start && !matches!(state, 'Z' | 'X' | 'x') => {
                Self::Alive(owner)
            }
            _ => Self::Dead(owner),
        }
    }
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Alive(owner) => write!(f, "process {}", owner.pid),
            Self::Dead(owner) => {
                write!(f, "unfinished I/O of process {}, which has ended", owner.pid)
            }
            Self::Unknown => f.write_str("another process"),
        }
    }
}

fn boot() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// The state and the start time of a process. The name in the second field may hold blanks and parentheses, so
/// fields are counted from the last `)`.
fn state_and_start(pid: u32) -> io::Result<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = text.rsplit_once(')').map(|(_, rest)| rest.split_ascii_whitespace());
    fields
        .and_then(|mut fields| {
            let state = fields.next()?.chars().next()?;
            Some((state, fields.nth(18)?.parse().ok()?))
        })
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/PID/stat is unreadable"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_second_description_is_refused_until_the_first_is_gone() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(file.path()).unwrap();
        let (first, second) = (open(), open());
        assert!(try_lock(&first).unwrap());
        assert!(try_lock(&first).unwrap());
        assert!(!try_lock(&second).unwrap());
        let copy = first.try_clone().unwrap();
        drop(first);
        assert!(!try_lock(&second).unwrap(), "a copy of the descriptor keeps the description");
        drop(copy);
        assert!(try_lock(&second).unwrap());
    }

    #[test]
    fn the_holder_is_named_while_it_lives() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Holder::look(directory.path()), Holder::Unknown);
        let us = Owner::this_process().unwrap();
        us.write(directory.path()).unwrap();
        assert_eq!(Holder::look(directory.path()), Holder::Alive(us.clone()));

        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let (_, start) = state_and_start(child.id()).unwrap();
        let theirs = Owner { pid: child.id(), start, ..us.clone() };
        theirs.write(directory.path()).unwrap();
        assert_eq!(Holder::look(directory.path()), Holder::Alive(theirs.clone()));
        child.kill().unwrap();
        // Not reaped yet or reaped: dead both ways.
        child.wait().unwrap();
        assert_eq!(Holder::look(directory.path()), Holder::Dead(theirs));

        let reused = Owner { start: us.start + 1, ..us.clone() };
        reused.write(directory.path()).unwrap();
        assert_eq!(Holder::look(directory.path()), Holder::Dead(reused));
        Owner { boot: "another".into(), ..us }.write(directory.path()).unwrap();
        assert_eq!(Holder::look(directory.path()), Holder::Unknown);
        fs::write(directory.path().join(OWNER_FILE), b"{").unwrap();
        assert_eq!(Holder::look(directory.path()), Holder::Unknown);
    }
}
