//! The hand-over of what runs in one process, the *source*, to another, the *target*, as two pure state machines and the
//! record that decides between them.
//!
//! ```text
//!  source                                 record                                  target
//!  running   ── Offer ─────────────────────────────────────────────────────────►  waiting
//!  preparing ◄──────────────────────────────────────────────────────── Prepared   building, prepared
//!  stopping                             (all the time the guest runs up to here)
//!  sent      ── State ─────────────────────────────────────────────────────────►  restoring
//!            ── take back ──►  one compare-and-set  ◄───────────────── claim ──   claiming
//!  released, or running again                                          Running    running, or over
//! ```
//!
//! Invariants, which `simulation` searches every small schedule for:
//! - Never do both run. No message is permission: only who wins the record runs, and the loser never does.
//! - Never does neither run for ever, unless a process died: whatever fails or takes too long before the decision ends in a
//!   taken-back record and a source that runs again.
//! - A side that cannot learn the decision stands still and asks again ([`Verdict::Unknown`]).
//!
//! Nothing here knows what is handed over, a clock, a socket or a thread: a process's shell carries out the actions and
//! tells their ends as events. No process has such a shell yet: the simulation alone drives it.

pub mod record;
#[cfg(test)]
mod simulation;
pub mod source;
pub mod target;

/// What the record says to who asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The one who asked runs.
    Won,
    /// The other runs.
    Lost,
    /// The record cannot be reached now. On one host, where it is a word in memory, this does not happen.
    Unknown,
}

/// What the two sides say to each other. What is offered and what the state is travels beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Message {
    /// Source to target: what can be had before the stop.
    Offer,
    /// Source to target: the state of what has stopped.
    State,
    /// Source to target: the hand-over is off.
    Abort,
    /// Target to source: what was offered is built, and waits for its state.
    Prepared,
    /// Target to source: it cannot be.
    Refused,
    /// Target to source: it runs there.
    Running,
}
