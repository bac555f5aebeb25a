//! Kick, call and error eventfds of a queue.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// A descriptor that a session and its queues hold together; the last one closes it.
pub type SharedFd = Arc<OwnedFd>;

/// The eventfds of one queue. All of them come from the front end and may be any kind of descriptor: they are only
/// ever written and read without blocking, and errors are ignored.
#[derive(Debug, Clone, Default)]
pub struct Notifiers {
    /// The driver's *look at the ring*; `None` means that the device must poll.
    pub kick: Option<SharedFd>,
    /// Our *look at the used ring*; `None` means that the driver polls.
    pub call: Option<SharedFd>,
    /// Our *this ring is broken*.
    pub error: Option<SharedFd>,
}

impl Notifiers {
    /// The kick descriptor, to wait on.
    pub fn kick_fd(&self) -> Option<BorrowedFd<'_>> {
        self.kick.as_ref().map(|fd| fd.as_fd())
    }
}
