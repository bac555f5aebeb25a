//! One ring of a session, as the front end has described it.
//!
//! ```text
//! Stopped ──► Running ──► Stopping ──► Stopped
//! ```
//!
//! A ring runs while it is *started* (a kick descriptor came, no GET_VRING_BASE since), *enabled*, and everything that
//! a queue needs is known.

use super::codec::VringAddr;

/// Whether a queue exists for the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Run {
    /// There is none.
    #[default]
    Stopped,
    /// A worker has it.
    Running,
    /// It was asked back.
    Stopping,
}

impl Run {
    /// Whether a ring may go from here to `next`.
    pub fn can_become(self, next: Self) -> bool {
        matches!(
            (self, next),
            (Self::Stopped, Self::Running)
                | (Self::Running, Self::Stopping)
                | (Self::Stopping, Self::Stopped)
        )
    }
}

/// How the driver tells that it has work.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum Kick<F> {
    /// Not said yet, or stopped since: the ring is not started.
    #[default]
    Unset,
    /// It does not: the device polls.
    Polled,
    /// By an eventfd.
    Fd(F),
}

/// One ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Vring<F> {
    /// Descriptors; 0 until told.
    pub size: u16,
    pub addr: Option<VringAddr>,
    /// The next available entry to take, while it stands still.
    pub base: u16,
    pub kick: Kick<F>,
    pub call: Option<F>,
    pub error: Option<F>,
    /// What SET_VRING_ENABLE said last; until then the negotiation decides.
    pub enabled: Option<bool>,
    pub run: Run,
}

impl<F> Default for Vring<F> {
    fn default() -> Self {
        Self {
            size: 0,
            addr: None,
            base: 0,
            kick: Kick::Unset,
            call: None,
            error: None,
            enabled: None,
            run: Run::Stopped,
        }
    }
}

impl<F> Vring<F> {
    /// Goes on to `next`; false, and nothing changed, where its life does not allow that.
    pub fn advance(&mut self, next: Run) -> bool {
        let allowed = self.run.can_become(next);
        if allowed {
            self.run = next;
        }
        allowed
    }

    /// Forgets all but the descriptors that the front end set up for notification.
    pub fn reset(&mut self) {
        let (call, error) = (self.call.take(), self.error.take());
        *self = Self { call, error, run: self.run, ..Self::default() };
    }
}
