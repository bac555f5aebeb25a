//! The side that shall run.
//!
//! ```text
//!  waiting ─Offer─► building ─Built─► prepared ─State─► restoring ─Restored─► claiming ─Won─► running
//!     │                │                 │                  │                    │
//!     └── Gone, Abort, failed, Deadline ─┴── Abort, failed ─┴───── Abort, Lost ──┴──────────► over
//! ```
//!
//! Invariant: it runs after it has won the record and never otherwise. With the whole state in hand it goes on though the
//! source is gone: the record says whether the source runs again.

use super::{Message, Verdict};

/// The state of the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Target {
    /// It has been started, and nothing was offered yet.
    Waiting,
    /// It builds what was offered.
    Building,
    /// It waits for the state.
    Prepared,
    /// It puts the state into what it built.
    Restoring,
    /// It asks the record for the right to run.
    Claiming,
    /// It runs, and is what the source was.
    Running,
    /// It never runs.
    Over,
}

/// What happens to the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// The source said something.
    Said(Message),
    /// [`Action::Build`] has ended, well or not.
    Built(bool),
    /// [`Action::Restore`] has ended, well or not.
    Restored(bool),
    /// The answer to [`Action::Claim`].
    Decided(Verdict),
    /// The source has died, or the way to it is cut.
    Gone,
    /// The time for the source's next word, or before the record is asked again, is over.
    Deadline,
}

/// What the target's shell does, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Build all that needs no state, and tell by [`Event::Built`].
    Build,
    /// Put the state into it, and tell by [`Event::Restored`].
    Restore,
    /// Ask the record, and tell by [`Event::Decided`].
    Claim,
    /// Ask the record again after a while: [`Event::Deadline`].
    Again,
    /// Let it run.
    Run,
    /// Say this; a source that is gone is not told.
    Send(Message),
    /// Give up all that was taken over, without touching what the source has.
    End,
}

impl Target {
    /// What comes next.
    #[must_use]
    pub fn step(self, event: Event) -> (Self, Vec<Action>) {
        use Target::{Building, Claiming, Over, Prepared, Restoring, Running, Waiting};
        match (self, event) {
            (Waiting, Event::Said(Message::Offer)) => (Building, vec![Action::Build]),
            (Building, Event::Built(true)) => (Prepared, vec![Action::Send(Message::Prepared)]),
            (Prepared, Event::Said(Message::State)) => (Restoring, vec![Action::Restore]),
            (Restoring, Event::Restored(true)) => (Claiming, vec![Action::Claim]),
            (Building, Event::Built(false)) | (Restoring, Event::Restored(false)) => {
                (Over, vec![Action::Send(Message::Refused), Action::End])
            }
            (Claiming, Event::Decided(Verdict::Won)) => {
                (Running, vec![Action::Run, Action::Send(Message::Running)])
            }
            (Claiming, Event::Decided(Verdict::Lost)) => (Over, vec![Action::End]),
            (Claiming, Event::Decided(Verdict::Unknown)) => (self, vec![Action::Again]),
            (Claiming, Event::Deadline) => (self, vec![Action::Claim]),
            // While a claim is under way its answer alone counts: it may have been won.
            (Waiting | Building | Prepared | Restoring, Event::Said(Message::Abort))
            | (Waiting | Building | Prepared, Event::Gone | Event::Deadline) => {
                (Over, vec![Action::End])
            }
            _ => (self, vec![]),
        }
    }

    /// Whether this transition is one of the diagram.
    #[must_use]
    pub fn can_become(self, next: Self) -> bool {
        use Target::{Building, Claiming, Over, Prepared, Restoring, Running, Waiting};
        self == next
            || matches!(
                (self, next),
                (Waiting, Building)
                    | (Building, Prepared)
                    | (Prepared, Restoring)
                    | (Restoring, Claiming)
                    | (Claiming, Running)
                    | (Waiting | Building | Prepared | Restoring | Claiming, Over)
            )
    }
}
