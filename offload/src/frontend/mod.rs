//! The front end's side of vhost-user: what a VMM, a test or a load generator needs to drive a card process.
//!
//! - [`FrontSession`] is the pure session: it connects, negotiates, sets up and, when its back end dies, does all of it again.
//! - [`Shell`] moves its bytes without blocking and without a runtime: `compute`'s devices drive it on tokio, [`Client`] with
//!   poll(2) for tests and benchmarks, and [`Keeper`] in a thread of its own.
//! - [`DriverQueue`] is the driver's side of a split ring in a [`GuestArena`], for whoever plays the guest's driver.
//!
//! Invariant: guest addresses are sent as *user addresses*, so nothing in a card points into the process that called it.

mod arena;
mod client;
mod connection;
mod conversation;
#[doc(hidden)]
pub mod fuzz;
mod queue;
mod session;
mod shell;
mod state;
mod types;

pub use arena::{Backing, GuestArena};
pub use client::{Client, ClientError, Keeper};
pub use queue::{
    BrokenDevice, Buffer, DESC_INDIRECT, DESC_NEXT, DESC_WRITE, DriverQueue, TABLE_ENTRIES, Used,
};
pub use session::FrontSession;
pub use shell::{Carried, Notice, ReadUsed, RingFds, Shell, Target};
pub use state::{KIND, RestoreError, VERSION};
pub use types::{
    Action, Activation, ActivationError, Descriptor, Down, Event, FrontConfig, Incoming, LogArea,
    Outgoing, Probe, Record, Region, Ring, Timer,
};

#[cfg(test)]
mod peer_tests;
#[cfg(test)]
mod queue_tests;
#[cfg(test)]
mod simulation;
