//! The front end's side of vhost-user: what a VMM, a test or a load generator needs to drive a card process.
//!
//! - [`FrontSession`] is the pure session: it connects, negotiates, sets up and, when its back end dies, does all of it again.
//!   A shell moves its bytes: `compute`'s devices have one on tokio, [`Client`] is a blocking one for tests and benchmarks.
//! - [`DriverQueue`] is the driver's side of a split ring, for whoever plays the guest's driver.
//!
//! Invariant: guest addresses are sent as *user addresses*, so nothing in a card points into the process that called it.

mod conversation;
#[doc(hidden)]
pub mod fuzz;
mod session;
mod state;
mod types;

#[cfg(test)]
mod simulation;

pub use session::FrontSession;
pub use state::{KIND, RestoreError, VERSION};
pub use types::{
    Action, Activation, ActivationError, Descriptor, Down, Event, FrontConfig, Incoming, LogArea,
    Outgoing, Probe, Record, Region, Ring, Timer,
};
