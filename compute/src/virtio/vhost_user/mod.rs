//! Devices whose back end is a card process: block and net over vhost-user.
//!
//! ```text
//!  transport ── orders ──► mailbox ──► task ──► Shell (offload::frontend) ──► card
//!                                       │ facts: configuration, connected, reconnects
//!  transport ◄── DeviceLink ────────────┘
//! ```
//!
//! One task per device, on the driver's runtime, owns the session and carries it out. A back end may die at any instant
//! and come back after any time: the guest sees a stall, the task connects again for as long as it takes, refuses a back
//! end that offers less than the guest relies on, and says so. The first back end decides what the guest sees:
//! features, queues and configuration space.
//!
//! Invariants: the guest is told only what its first back end offered and this crate passes on honestly; a later back end is
//! used only if it offers as much; no method called by a vCPU waits.

pub mod blk;
pub mod net;

mod contact;
mod control;
mod phase;
mod poller;
mod share;
mod task;

#[cfg(test)]
mod peer;
#[cfg(test)]
mod tests;

pub use contact::{ConnectError, VhostUser};
pub use share::{GuestShare, ShareError};
