//! The process: who may use which disk, and what is said on the control socket.
//!
//! ```text
//! control socket ── control ──► driver ──► card (sessions, queues) ──► workers (engine)
//!                  handlers      │  ▲
//!                  only enqueue  │  └── results of jobs
//!                                └─────► jobs: whatever may wait for a disk, on threads of their own
//! ```
//!
//! The driver task owns all state and applies one event at a time, without waiting. Invariants: a disk is served only
//! while its writer lock is held and its epoch is the highest it has seen (`attachment` is the state machine that says
//! so); an attachment that was answered survives the death of the process (`records`).

pub mod attachment;
pub mod control;
pub mod driver;
pub mod jobs;
pub mod live;
pub mod policy;
pub mod records;
pub mod refusal;
pub mod serve;
