//! Whether a request is allowed in the process's present phase: asked by handlers, without the driver's time.
//!
//! Invariant: phases only advance.

use bixi_offload::control::Refusal;
use std::sync::atomic::{AtomicU8, Ordering};

/// What the process is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// It serves.
    Serving = 0,
    /// It lets its ports go and ends; what it has promised stays written down for its successor.
    Stopping = 1,
}

impl Phase {
    /// Whether `next` may follow.
    pub fn can_become(self, next: Self) -> bool {
        next >= self
    }
}

/// The phase, shared between the driver, which sets it, and the handlers.
#[derive(Debug, Default)]
pub struct Policy(AtomicU8);

impl Policy {
    /// The process goes on to `phase`; back it never goes.
    pub fn enter(&self, phase: Phase) {
        self.0.fetch_max(phase as u8, Ordering::Relaxed);
    }

    /// The present phase.
    pub fn phase(&self) -> Phase {
        match self.0.load(Ordering::Relaxed) {
            0 => Phase::Serving,
            _ => Phase::Stopping,
        }
    }

    /// Whether something may be changed now.
    ///
    /// # Errors
    /// The process is ending.
    pub fn allow_change(&self) -> Result<(), Refusal> {
        match self.phase() {
            Phase::Serving => Ok(()),
            Phase::Stopping => Err(Refusal::conflict(
                "Stopping",
                "the process is ending.",
                "Ask its successor; its ports and segments are written down.",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ending_process_changes_nothing_and_never_goes_back() {
        let policy = Policy::default();
        assert!(policy.allow_change().is_ok());
        policy.enter(Phase::Stopping);
        policy.enter(Phase::Serving);
        assert_eq!(policy.phase(), Phase::Stopping);
        assert_eq!(policy.allow_change().unwrap_err().error.code, "Stopping");
        assert!(Phase::Serving.can_become(Phase::Stopping));
        assert!(!Phase::Stopping.can_become(Phase::Serving));
    }
}
