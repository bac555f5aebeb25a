//! The rings of one session as its shell sees them.
//!
//! ```text
//! Stopped ──► Running ──► Stopping ──► Stopped
//!    └──► Held ──┴───────────────────────►
//! ```

use crate::ring::SharedFd;
use crate::vhost_user::{Change, RingSetup};

/// Where a ring is in its life.
#[derive(Debug, Default)]
pub(super) enum Ring {
    /// There is no queue.
    #[default]
    Stopped,
    /// Told to start while its device is held back.
    Held(Box<Held>),
    /// Its queue is on a worker.
    Running,
    /// Its worker was asked for its queue.
    Stopping,
}

/// A ring that starts when its device is released.
#[derive(Debug)]
pub(super) struct Held {
    /// What it is made of.
    pub setup: RingSetup<SharedFd>,
    /// Whether its writes are logged, and the used ring's address in the log.
    pub log: Option<(bool, Option<u64>)>,
}

impl Ring {
    /// Whether a ring may go from here to `next`.
    pub fn can_become(&self, next: &Self) -> bool {
        matches!(
            (self, next),
            (Self::Stopped, Self::Held(_) | Self::Running)
                | (Self::Held(_), Self::Running | Self::Stopped)
                | (Self::Running, Self::Stopping)
                | (Self::Stopping, Self::Stopped)
        )
    }

    /// Goes on to `next`; false, and nothing changed, where its life does not allow that.
    pub fn advance(&mut self, next: Self) -> bool {
        let allowed = self.can_become(&next);
        if allowed {
            *self = next;
        }
        allowed
    }
}

impl Held {
    /// Changes a ring that has not started yet.
    pub fn change(&mut self, change: Change<SharedFd>) {
        match change {
            Change::Call(fd) => self.setup.call = fd,
            Change::Error(fd) => self.setup.error = fd,
            Change::Log { on, used } => self.log = Some((on, used)),
        }
    }
}
