//! A descriptor that may or may not be pollable, read and written without blocking the driver.
//!
//! Terminals, pipes and sockets are pollable and made non-blocking; files are not, and never make one wait for long.

use rustix::event::{PollFd, PollFlags};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// One end of a console.
#[derive(Debug)]
pub(super) enum Stream {
    /// Tells when it is ready.
    Pollable(AsyncFd<File>),
    /// Always ready.
    Plain(File),
}

impl Stream {
    /// Takes `fd`, which must not block if it is pollable. Must be called in the runtime.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        let file = File::from(fd);
        // SAFETY: the file owns its descriptor, which nobody closes or replaces while the poll set has it.
        let registered = unsafe { AsyncFd::register(file) };
        // A file cannot be polled: EPERM.
        match registered {
            Ok(pollable) => Ok(Self::Pollable(pollable)),
            Err(error) => {
                let (file, error) = error.into_parts();
                match error.raw_os_error() {
                    Some(libc::EPERM) => Ok(Self::Plain(file)),
                    _ => Err(error),
                }
            }
        }
    }

    /// Reads what is there, at least one byte; zero at the end.
    pub(super) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Pollable(fd) => {
                fd.async_io(Interest::READABLE, |mut file: &File| file.read(buffer)).await
            }
            Self::Plain(file) => (&*file).read(buffer),
        }
    }

    /// Writes all of `bytes`, waiting where the other side is slow.
    pub(super) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = match self {
                Self::Pollable(fd) => {
                    fd.async_io(Interest::WRITABLE, |mut file: &File| file.write(bytes)).await?
                }
                Self::Plain(file) => (&*file).write(bytes)?,
            };
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            bytes = &bytes[written..];
        }
        Ok(())
    }
}

impl Stream {
    /// Done when both directions are closed. A peer that only closed its sending side still listens, and the poll set
    /// does not tell the two apart, so this looks once a second.
    pub(super) async fn hung_up(&self) {
        let Self::Pollable(fd) = self else { return std::future::pending().await };
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        loop {
            let mut fds = [PollFd::new(fd.get_ref(), PollFlags::empty())];
            let gone = PollFlags::HUP | PollFlags::ERR;
            if rustix::event::poll(&mut fds, Some(&now)).is_ok()
                && fds[0].revents().intersects(gone)
            {
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

/// Opens the file behind `fd` once more, so that making it non-blocking does not change what other processes share; where
/// that cannot be (a socket, no `/proc`), `fd` itself is duplicated and made non-blocking.
pub(super) fn reopen(fd: &impl AsRawFd, write: bool) -> io::Result<OwnedFd> {
    use std::os::unix::fs::OpenOptionsExt;
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let opened = File::options()
        .read(!write)
        .write(write)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC)
        .open(path);
    if let Ok(file) = opened {
        return Ok(file.into());
    }
    // SAFETY: the number is borrowed from its owner for this call only.
    let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd.as_raw_fd()) };
    let duplicate = borrowed.try_clone_to_owned()?;
    let flags = rustix::fs::fcntl_getfl(&duplicate)?;
    rustix::fs::fcntl_setfl(&duplicate, flags | rustix::fs::OFlags::NONBLOCK)?;
    Ok(duplicate)
}
