//! The side that runs, and wants to be rid of it.
//!
//! ```text
//!  running ─Begin─► preparing ─Prepared─► stopping ─Stopped─► sent ─Running, Gone, Refused, Deadline─┐
//!     ▲                 │                    │                                                        │
//!     │                 └─ Refused, Gone, Deadline, failed ─────────────► taking back ◄───────────────┘
//!     └──────────────────────── Won ─────────────────────────────────────────┘ └─ Lost ─► released
//! ```
//!
//! Invariant: once something was offered, the only way back to running leads through a won record.

use super::{Message, Verdict};

/// The state of the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// It runs, and nothing is under way.
    Running,
    /// It runs; the target builds what was offered.
    Preparing,
    /// It is being stopped; the target waits.
    Stopping,
    /// It stands still; the target has its state.
    Sent,
    /// It asks the record for the right to run.
    TakingBack {
        /// Why.
        why: Why,
        /// Whether it was told to stand still.
        stopped: bool,
    },
    /// The target runs; nothing here ever does again.
    Released,
}

/// What ended a hand-over, as the source sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Why {
    /// The target says that it runs.
    Told,
    /// The target refused, before or after it had the state.
    Refused,
    /// The target has died, or the way to it is cut.
    Gone,
    /// It took too long.
    Deadline,
    /// It could not be stopped, or its state cannot be had.
    NotMovable,
    /// Somebody here wants it to end.
    Cancelled,
}

/// What happens to the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// Somebody here wants a hand-over, and the target is there.
    Begin,
    /// Somebody here wants it no longer.
    Cancel,
    /// The target said something.
    Said(Message),
    /// [`Action::Stop`] has ended: it stands still and its state is there, or it does not.
    Stopped(bool),
    /// The answer to [`Action::TakeBack`].
    Decided(Verdict),
    /// The target has died, or the way to it is cut.
    Gone,
    /// The time of the last [`Action::Arm`] is over.
    Deadline,
}

/// What the source's shell does, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Open the record, and send this, with what belongs to it.
    Send(Message),
    /// Let the time for this phase begin; it replaces an earlier one.
    Arm(Phase),
    /// Stop it and take its state, and tell by [`Event::Stopped`].
    Stop,
    /// Ask the record, and tell by [`Event::Decided`].
    TakeBack,
    /// Let it run again, if it was told to stop.
    Resume,
    /// The target runs: give up what is left, without touching what was handed over.
    Release,
    /// The hand-over has ended here, because of this.
    Ended(Why),
}

/// A phase with a time of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// The target builds; the guest runs meanwhile.
    Prepare,
    /// The guest stands still.
    Blackout,
    /// Before the record is asked again.
    Again,
}

impl Source {
    /// What comes next.
    #[must_use]
    pub fn step(self, event: Event) -> (Self, Vec<Action>) {
        use Source::{Preparing, Released, Running, Sent, Stopping, TakingBack};
        match (self, event) {
            (Running, Event::Begin) => {
                (Preparing, vec![Action::Send(Message::Offer), Action::Arm(Phase::Prepare)])
            }
            (Preparing, Event::Said(Message::Prepared)) => {
                (Stopping, vec![Action::Arm(Phase::Blackout), Action::Stop])
            }
            (Stopping, Event::Stopped(true)) => (Sent, vec![Action::Send(Message::State)]),
            (Stopping, Event::Stopped(false)) => self.take_back(Why::NotMovable),
            (Preparing | Stopping | Sent, event) => match event {
                Event::Said(Message::Running) => self.take_back(Why::Told),
                Event::Said(Message::Refused) => self.take_back(Why::Refused),
                Event::Gone => self.take_back(Why::Gone),
                Event::Deadline => self.take_back(Why::Deadline),
                Event::Cancel => self.take_back(Why::Cancelled),
                // What the target may not say now, and answers to what was never asked.
                _ => (self, vec![]),
            },
            (TakingBack { why, stopped }, Event::Decided(Verdict::Won)) => {
                let resume = stopped.then_some(Action::Resume);
                let abort = (why != Why::Gone).then_some(Action::Send(Message::Abort));
                let actions = resume.into_iter().chain(abort).chain([Action::Ended(why)]);
                (Running, actions.collect())
            }
            (TakingBack { why, .. }, Event::Decided(Verdict::Lost)) => {
                (Released, vec![Action::Release, Action::Ended(why)])
            }
            (TakingBack { .. }, Event::Decided(Verdict::Unknown)) => {
                (self, vec![Action::Arm(Phase::Again)])
            }
            (TakingBack { .. }, Event::Deadline) => (self, vec![Action::TakeBack]),
            (Running | TakingBack { .. } | Released, _) => (self, vec![]),
        }
    }

    fn take_back(self, why: Why) -> (Self, Vec<Action>) {
        let stopped = matches!(self, Self::Stopping | Self::Sent);
        (Self::TakingBack { why, stopped }, vec![Action::TakeBack])
    }

    /// Whether this transition is one of the diagram.
    #[must_use]
    pub fn can_become(self, next: Self) -> bool {
        use Source::{Preparing, Released, Running, Sent, Stopping, TakingBack};
        self == next
            || matches!(
                (self, next),
                (Running, Preparing)
                    | (Preparing, Stopping)
                    | (Stopping, Sent)
                    | (Preparing | Stopping | Sent, TakingBack { .. })
                    | (TakingBack { .. }, Running | Released)
            )
    }
}
