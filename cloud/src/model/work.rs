//! What is being done and what has happened: tasks, events, the disturbance ledger.

use super::fields::{numbered, record};

numbered! {
    /// What a task brings about.
    pub enum TaskKind {
        /// A new instance that runs.
        1 Run,
        /// A stopped instance runs.
        2 Start,
        /// An instance is stopped.
        3 Stop,
        /// An instance starts anew.
        4 Reboot,
        /// An instance and what goes with it are gone.
        5 Delete,
    }
}

numbered! {
    /// Where a task is: see `crate::task` for the diagram.
    pub enum Step {
        /// Nothing was asked of the server yet.
        1 Accepted,
        /// The server was asked; its report is waited for.
        2 Waiting,
        /// The task failed or was cancelled; what it began is being taken back.
        3 Undoing,
        /// Its effect was seen.
        4 Done,
        /// It ended without its effect.
        5 Failed,
        /// It was cancelled.
        6 Cancelled,
    }
}

record! {
    /// A long operation on an instance.
    pub struct Task / TaskState {
        /// Its id: `task-…`.
        1 id: String as String [string];
        /// Whose it is.
        2 tenant: String as String [string];
        /// The instance.
        3 instance: String as String [string];
        /// What it brings about.
        4 kind: TaskKind as u32 [uint32];
        /// Where it is.
        5 step: Step as u32 [uint32];
        /// When it was made, in milliseconds since 1970.
        6 created: u64 as u64 [uint64];
        /// When it last went on, in milliseconds since 1970.
        7 updated: u64 as u64 [uint64];
        /// When it must be done, in milliseconds since 1970.
        8 deadline: u64 as u64 [uint64];
        /// Whether somebody wants it to end.
        9 cancel: bool as bool [bool];
        /// Whether a stop, a reboot or a deletion takes the guest's power at once.
        10 force: bool as bool [bool];
        /// Why it did not bring about what it should.
        11 failure: Option<Failure> as Option<FailureState> [message, optional];
    }
}

record! {
    /// Why something failed.
    pub struct Failure / FailureState {
        /// A stable word.
        1 code: String as String [string];
        /// What happened, and what to do.
        2 message: String as String [string];
    }
}

numbered! {
    /// How much an event matters.
    pub enum Severity {
        /// As it should be.
        1 Info,
        /// Somebody should look.
        2 Warning,
        /// Something is lost or does not work.
        3 Error,
    }
}

record! {
    /// Something that happened.
    pub struct Event / EventState {
        /// Its id: `e-…`.
        1 id: String as String [string];
        /// When, in milliseconds since 1970.
        2 at: u64 as u64 [uint64];
        /// Whose affair it is; the operator's alone if nobody's.
        3 tenant: Option<String> as Option<String> [string, optional];
        /// The instance or server.
        4 subject: String as String [string];
        /// A stable word, for example `InstanceStarted`.
        5 kind: String as String [string];
        /// For people.
        6 message: String as String [string];
        /// How much it matters.
        7 severity: Severity as u32 [uint32];
        /// The task that it ends, if any.
        8 task: Option<String> as Option<String> [string, optional];
    }
}

record! {
    /// One break that an instance has felt.
    pub struct Disturbance / DisturbanceState {
        /// The instance.
        1 instance: String as String [string];
        /// The server that told.
        2 server: String as String [string];
        /// The server's number of it, by which it is told once.
        3 sequence: u64 as u64 [uint64];
        /// When it began, in milliseconds since 1970.
        4 at: u64 as u64 [uint64];
        /// Its cause, for example `storage-restart`.
        5 cause: String as String [string];
        /// Its length in milliseconds.
        6 milliseconds: u64 as u64 [uint64];
    }
}

impl Step {
    /// Whether a task may go from here to `next`.
    #[must_use]
    pub fn can_become(self, next: Self) -> bool {
        use Step::{Accepted, Cancelled, Done, Failed, Undoing, Waiting};
        matches!(
            (self, next),
            (Accepted, Waiting | Done | Failed | Cancelled)
                | (Waiting, Done | Undoing | Failed)
                | (Undoing, Failed | Cancelled)
        )
    }

    /// Whether nothing follows.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}
