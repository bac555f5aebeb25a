//! Kick, call and error eventfds of a queue.
//!
//! Invariants: all of them come from the front end, which may hand over any descriptor and change its flags at any
//! time. So a kick is only waited for, edge-triggered, and never read; a call is one write of a descriptor that was
//! found to be an eventfd and made non-blocking before the queue took it.

use super::RingError;
use rustix::fs::OFlags;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// A descriptor that a session and its queues hold together; the last one closes it.
pub type SharedFd = Arc<OwnedFd>;

/// The eventfds of one queue.
#[derive(Debug, Clone, Default)]
pub struct Notifiers {
    /// The driver's *look at the ring*; `None` means that the device must poll.
    pub kick: Option<SharedFd>,
    /// Our *look at the used ring*; `None` means that the driver polls.
    pub call: Option<SharedFd>,
    /// Our *this ring is broken*.
    pub error: Option<SharedFd>,
    /// Whether this process has made them all: eventfds for certain, where nobody else's would be looked at. A process
    /// in a jail has no `/proc` to look with.
    pub own: bool,
}

impl Notifiers {
    /// The kick descriptor, to wait on.
    pub fn kick_fd(&self) -> Option<BorrowedFd<'_>> {
        self.kick.as_ref().map(|fd| fd.as_fd())
    }

    /// Whether all of them can be used without ever blocking.
    pub(super) fn check(&self) -> Result<(), RingError> {
        let named = [("kick", &self.kick), ("call", &self.call), ("error", &self.error)];
        named.into_iter().try_for_each(|(name, fd)| check(name, fd.as_ref(), self.own))
    }
}

/// What the kernel calls an eventfd in `/proc`.
const EVENTFD: &[u8] = b"anon_inode:[eventfd]";

/// Whether a front end's descriptor is an eventfd, which can be used without ever blocking; makes it non-blocking.
///
/// Asked of the kernel's own table and not of the file: a file system in user space may never answer.
pub(super) fn check(name: &'static str, fd: Option<&SharedFd>, own: bool) -> Result<(), RingError> {
    let Some(fd) = fd else { return Ok(()) };
    let nonblocking = (own || is_eventfd(fd))
        && rustix::fs::fcntl_getfl(fd)
            .and_then(|flags| rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK))
            .is_ok();
    if nonblocking { Ok(()) } else { Err(RingError::Notifier(name)) }
}

fn is_eventfd(fd: &SharedFd) -> bool {
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    rustix::fs::readlink(link, Vec::new()).is_ok_and(|link| link.as_bytes() == EVENTFD)
}

/// Adds one to an eventfd. A counter that is full has been signalled already, and a descriptor that refuses is the
/// front end's own loss.
#[inline]
pub(super) fn signal(fd: Option<&SharedFd>) {
    if let Some(fd) = fd {
        let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
    }
}
