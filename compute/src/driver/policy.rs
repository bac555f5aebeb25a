//! Whether a request is allowed in the state that the VM is in.
//!
//! A pure table, asked twice: by the control socket's handlers, which read the state without a lock and refuse at once,
//! and by the owner, which has the last word when it applies the request.

use axum::http::StatusCode;
use bixi_api::compute::VmState;
use bixi_offload::control::Refusal;
use std::sync::atomic::{AtomicU8, Ordering};

/// What an operator can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Tell what the VM is.
    Describe,
    /// Tell what it has done.
    Statistics,
    /// Let the vCPUs run for the first time.
    Start,
    /// Let everything stand still.
    Pause,
    /// Go on.
    Resume,
    /// Press the power button.
    PowerButton,
    /// Reset the machine.
    Reset,
    /// End the VM.
    Stop,
}

/// What the table says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Do it.
    Do,
    /// It is so already.
    Nothing,
    /// Not now; the sentence says what to do first.
    Refuse(&'static str),
}

/// The table.
#[must_use]
pub fn verdict(state: VmState, request: Request) -> Verdict {
    use Request::{Describe, PowerButton, Reset, Resume, Start, Statistics, Stop};
    use VmState::{Built, Described, Paused, Running, Stopped};
    match (request, state) {
        (Describe | Statistics, _) => Verdict::Do,
        (Stop, Stopped) => Verdict::Nothing,
        (Stop, _) => Verdict::Do,
        (_, Described) => Verdict::Refuse("It is being built: wait until its back ends are there."),
        (_, Stopped) => Verdict::Refuse("It has ended."),
        (Start, Built) | (Resume, Paused) | (Request::Pause, Running) => Verdict::Do,
        (Start | Resume, Running) | (Request::Pause, Paused) => Verdict::Nothing,
        (Start, Paused) => Verdict::Refuse("Resume it."),
        (Resume | Request::Pause, Built) => Verdict::Refuse("Start it first."),
        (PowerButton, Running) | (Reset, Running | Paused) => Verdict::Do,
        (PowerButton | Reset, Built) => Verdict::Refuse("Start it first."),
        (PowerButton, Paused) => Verdict::Refuse("Resume it first."),
    }
}

/// The state as handlers see it.
#[derive(Debug)]
pub struct Policy(AtomicU8);

const STATES: [VmState; 5] =
    [VmState::Described, VmState::Built, VmState::Running, VmState::Paused, VmState::Stopped];

impl Policy {
    /// A policy for a VM that is described.
    #[must_use]
    pub fn new() -> Self {
        Self(AtomicU8::new(0))
    }

    /// The state.
    #[must_use]
    pub fn state(&self) -> VmState {
        let index = usize::from(self.0.load(Ordering::Acquire));
        STATES.get(index).copied().unwrap_or(VmState::Stopped)
    }

    /// Tells handlers a new state. Only the owner calls this; a transition that the life of a VM does not have is a
    /// mistake of the owner and is logged.
    pub fn set(&self, next: VmState) {
        let now = self.state();
        if now != next && !now.can_become(next) {
            tracing::error!(?now, ?next, "a VM took a step that its life does not have");
        }
        let index = STATES.iter().position(|state| *state == next).unwrap_or(STATES.len() - 1);
        self.0.store(index as u8, Ordering::Release);
    }

    /// Refuses what is not allowed now.
    ///
    /// # Errors
    /// It is not.
    pub fn check(&self, request: Request) -> Result<Verdict, Refusal> {
        let state = self.state();
        match verdict(state, request) {
            Verdict::Refuse(hint) => Err(refusal(state, hint)),
            verdict => Ok(verdict),
        }
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self::new()
    }
}

fn refusal(state: VmState, hint: &str) -> Refusal {
    let name = match state {
        VmState::Described => "described",
        VmState::Built => "built",
        VmState::Running => "running",
        VmState::Paused => "paused",
        VmState::Stopped => "stopped",
    };
    Refusal::new(StatusCode::CONFLICT, "WrongState", format!("the VM is {name}."), hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUESTS: [Request; 8] = [
        Request::Describe,
        Request::Statistics,
        Request::Start,
        Request::Pause,
        Request::Resume,
        Request::PowerButton,
        Request::Reset,
        Request::Stop,
    ];

    #[test]
    fn what_is_done_is_a_step_of_a_vms_life() {
        let target = |request| match request {
            Request::Start | Request::Resume => Some(VmState::Running),
            Request::Pause => Some(VmState::Paused),
            _ => None,
        };
        for state in STATES {
            for request in REQUESTS {
                let Some(next) = target(request) else { continue };
                match verdict(state, request) {
                    Verdict::Do => assert!(state.can_become(next), "{state:?} {request:?}"),
                    Verdict::Nothing => assert_eq!(state, next),
                    Verdict::Refuse(_) => {}
                }
            }
        }
    }

    #[test]
    fn a_vm_can_always_be_looked_at_and_ended() {
        for state in STATES {
            assert_eq!(verdict(state, Request::Describe), Verdict::Do);
            assert!(!matches!(verdict(state, Request::Stop), Verdict::Refuse(_)));
        }
        let policy = Policy::new();
        assert_eq!(policy.check(Request::Pause).unwrap_err().error.code, "WrongState");
        policy.set(VmState::Built);
        assert_eq!(policy.state(), VmState::Built);
    }
}
