//! Waiting for the sockets of a session on tokio.
//!
//! The session opens and closes its sockets as it likes. They are watched by an epoll instance of the device's own, and
//! that one by the runtime: the kernel forgets a socket when it is closed, so no registration can outlive its descriptor
//! and meet another one of the same number.

use rustix::event::epoll;
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Waits for any of the sockets that it was last told.
#[derive(Debug)]
pub(super) struct Poller(AsyncFd<OwnedFd>);

impl Poller {
    /// Watches nothing yet. Must be called inside the runtime.
    pub(super) fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        // SAFETY: the descriptor is owned by the `AsyncFd` until it is dropped.
        Ok(Self(unsafe { AsyncFd::register_with_interest(epoll, Interest::READABLE) }?))
    }

    /// Watches `sources`, open all of them: readable always, writable if the flag says so. Those watched before and not
    /// among them have been closed.
    pub(super) fn watch<'a>(
        &self,
        sources: impl Iterator<Item = (BorrowedFd<'a>, bool)>,
    ) -> io::Result<()> {
        let epoll = self.0.get_ref();
        for (fd, writable) in sources {
            let mut flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP;
            if writable {
                flags |= epoll::EventFlags::OUT;
            }
            let data = epoll::EventData::new_u64(fd.as_raw_fd() as u64);
            match epoll::add(epoll, fd, data, flags) {
                Err(Errno::EXIST) => epoll::modify(epoll, fd, data, flags)?,
                other => other?,
            }
        }
        Ok(())
    }

    /// Waits until a source is ready or may be. Cancel-safe.
    pub(super) async fn ready(&self) -> io::Result<()> {
        // Cleared before the sources are looked at: what comes meanwhile makes it ready again.
        self.0.readable().await?.clear_ready();
        Ok(())
    }
}
