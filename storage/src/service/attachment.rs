//! One disk's attachment to a socket: a pure state machine.
//!
//! ```text
//!   (asked)              (found in the records)
//!      │                          │
//!  Checking ──refused──► Gone     │
//!      │                          │        Standing: told to be served, and not served yet:
//!      └───► Standing ◄───────────┘        the socket may still be somebody's, the lock a dead process's
//!               │ listening and held
//!            Serving
//!               │ detach, or stale (from Standing too)
//!            Leaving ──device removed, no job under way──► Gone
//! ```
//!
//! [`Attachment::step`] is given what happened and says what to do; the driver does it. Invariants, searched by
//! simulation in the tests: the disk is served only between a successful claim (which holds the writer lock and has
//! the epoch on the medium) and the release of that lock; the lock is released only when nothing of the device is on
//! any worker; a stale epoch never serves.

use bixi_api::storage::DiskAttach;
use std::time::Duration;

/// How soon a lock or socket that somebody else still has is tried again: at first, and at the longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(50));
/// How soon a disk that cannot be used is tried again.
const RETRY_FAULT: Duration = Duration::from_secs(1);

/// Where an attachment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// A job claims the disk for the first time; until it has an answer nothing is promised to anybody.
    Checking,
    /// Promised, not served yet.
    Standing {
        /// Whether front ends are answered.
        listening: bool,
        /// Whether a job tries to claim the disk.
        claiming: bool,
        /// Whether the writer lock is held.
        held: bool,
    },
    /// Rings run.
    Serving,
    /// On the way out.
    Leaving {
        /// Whether a job is under way whose result must be waited for.
        claiming: bool,
        /// Whether the device is gone from the card.
        removed: bool,
    },
    /// Over.
    Gone,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// It begins.
    Begin,
    /// The job that claims the disk has ended.
    Claimed(Claim),
    /// Listening for front ends worked, or did not.
    Listened(bool),
    /// The time that was asked for has passed.
    Tick,
    /// The operator wants it gone; or the process ends.
    Detach,
    /// The device is gone from the card: no queue of it is anywhere.
    Removed,
}

/// How a claim ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// The writer lock is held, and the epoch is on the medium.
    Held,
    /// Somebody has the lock. In a first claim: only the I/O of a dead process, and the epoch is on the medium.
    Busy,
    /// A higher epoch has been seen.
    Stale,
    /// Refused, or something failed.
    Failed,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Start a job that claims the disk; `first` if the attachment can still be refused.
    Claim {
        /// Whether a living holder is a reason to refuse.
        first: bool,
    },
    /// Write the attachment down. Failure counts as not listening.
    Record,
    /// Forget what was written down.
    Forget,
    /// Listen for front ends, their rings held back.
    Listen,
    /// Let the rings run on the claimed file.
    Serve,
    /// Remove the device from the card.
    Remove,
    /// Give the writer lock back, if it is held.
    Release,
    /// Give [`Event::Tick`] after this time.
    After(Duration),
    /// Tell whoever asked for the attachment that it stands.
    Accept,
    /// Tell whoever asked for the attachment that it is refused.
    Refuse,
    /// Tell whoever asked for its end that it is over.
    Detached,
}

/// An attachment.
#[derive(Debug, Clone)]
pub struct Attachment {
    /// What was asked for.
    pub attach: DiskAttach,
    stage: Stage,
    /// Whether somebody waits to hear that it stands.
    asked: bool,
    /// How often the lock or the socket was found taken.
    tries: u32,
}

impl Attachment {
    /// One that was asked for on the control socket.
    pub fn asked(attach: DiskAttach) -> Self {
        Self { attach, stage: Stage::Checking, asked: true, tries: 0 }
    }

    /// One that was found in the records.
    pub fn restored(attach: DiskAttach) -> Self {
        let stage = Stage::Standing { listening: false, claiming: true, held: false };
        Self { attach, stage, asked: false, tries: 0 }
    }

    /// Where it is.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// Whether `next` may follow the present stage.
    pub fn can_become(&self, next: Stage) -> bool {
        use Stage::{Checking, Gone, Leaving, Serving, Standing};
        match self.stage {
            Checking => matches!(next, Standing { .. } | Gone),
            Standing { .. } => !matches!(next, Checking),
            Serving => matches!(next, Leaving { .. }),
            Leaving { .. } => matches!(next, Leaving { .. } | Gone),
            Gone => false,
        }
    }

    fn become_stage(&mut self, next: Stage) {
        debug_assert!(self.can_become(next), "{:?} to {next:?}", self.stage);
        self.stage = next;
    }

    /// The one transition function.
    pub fn step(&mut self, event: Event) -> Vec<Action> {
        match (self.stage, event) {
            (Stage::Checking, Event::Begin) => vec![Action::Claim { first: true }],
            (Stage::Standing { .. }, Event::Begin) => {
                vec![Action::Listen, Action::Claim { first: false }]
            }
            (Stage::Checking, Event::Claimed(claim)) => self.checked(claim),
            (Stage::Standing { .. }, _) => self.standing(event),
            (Stage::Serving, Event::Detach) => {
                self.become_stage(Stage::Leaving { claiming: false, removed: false });
                vec![Action::Remove]
            }
            (Stage::Leaving { .. }, _) => self.leaving(event),
            _ => Vec::new(),
        }
    }

    fn checked(&mut self, claim: Claim) -> Vec<Action> {
        match claim {
            Claim::Held | Claim::Busy => {
                let held = claim == Claim::Held;
                self.become_stage(Stage::Standing { listening: false, claiming: false, held });
                vec![Action::Record, Action::Listen]
            }
            Claim::Stale | Claim::Failed => {
                self.become_stage(Stage::Gone);
                vec![Action::Refuse]
            }
        }
    }

    fn standing(&mut self, event: Event) -> Vec<Action> {
        let Stage::Standing { mut listening, mut claiming, mut held } = self.stage else {
            return Vec::new();
        };
        match event {
            Event::Listened(false) if self.asked => {
                self.become_stage(Stage::Gone);
                return vec![Action::Forget, Action::Release, Action::Refuse];
            }
            Event::Claimed(Claim::Stale) => {
                self.become_stage(Stage::Leaving { claiming: false, removed: false });
                return vec![Action::Remove];
            }
            Event::Detach => {
                self.become_stage(Stage::Leaving { claiming, removed: false });
                return vec![Action::Remove];
            }
            _ => {}
        }
        let mut actions = Vec::new();
        match event {
            Event::Listened(true) => listening = true,
            Event::Listened(false) => actions.push(Action::After(self.retry())),
            Event::Claimed(claim) => {
                claiming = false;
                held = claim == Claim::Held;
                match claim {
                    Claim::Busy => actions.push(Action::After(self.retry())),
                    Claim::Failed => actions.push(Action::After(RETRY_FAULT)),
                    _ => {}
                }
            }
            Event::Tick => {
                if !listening {
                    actions.push(Action::Listen);
                }
                if !claiming && !held {
                    claiming = true;
                    actions.push(Action::Claim { first: false });
                }
            }
            _ => {}
        }
        self.become_stage(Stage::Standing { listening, claiming, held });
        if listening && std::mem::take(&mut self.asked) {
            actions.push(Action::Accept);
            if !held {
                actions.push(Action::After(self.retry()));
            }
        }
        if listening && held {
            self.become_stage(Stage::Serving);
            actions.push(Action::Serve);
        }
        actions
    }

    fn leaving(&mut self, event: Event) -> Vec<Action> {
        let Stage::Leaving { mut claiming, mut removed } = self.stage else { return Vec::new() };
        let mut actions = Vec::new();
        match event {
            Event::Claimed(_) => claiming = false,
            Event::Removed if !removed => {
                removed = true;
                actions.extend([Action::Forget, Action::Release, Action::Detached]);
            }
            _ => return actions,
        }
        self.become_stage(Stage::Leaving { claiming, removed });
        if removed && !claiming {
            // What a late claim brought is given back too.
            actions.push(Action::Release);
            self.become_stage(Stage::Gone);
        }
        actions
    }

    fn retry(&mut self) -> Duration {
        self.tries = self.tries.saturating_add(1);
        let (first, longest) = RETRY;
        first.saturating_mul(1 << self.tries.min(8)).min(longest)
    }
}

#[cfg(test)]
#[path = "attachment_tests.rs"]
mod tests;
