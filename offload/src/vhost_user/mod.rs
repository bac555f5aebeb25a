//! The vhost-user protocol, the back end's side.
//!
//! [`codec`] turns bytes into typed messages and back (both sides use it); [`Session`] is the back end's state
//! machine, pure and serialisable. The shell that owns sockets, mappings and queues is [`crate::card`].

pub mod codec;
mod requests;
mod session;
mod state;
mod types;
mod vring;

pub use session::Session;
pub use state::{RestoreError, SessionState};
pub use types::{Action, Change, Event, Offer, RingSetup, SharedArea, SharedRegion};

/// VHOST_F_LOG_ALL: the back end logs what it writes.
pub const FEATURE_LOG_ALL: u64 = 1 << 26;
/// VHOST_USER_F_PROTOCOL_FEATURES: protocol features can be negotiated, and rings start disabled.
pub const FEATURE_PROTOCOL_FEATURES: u64 = 1 << 30;

/// Protocol features that every device of a card has; MTU, IN-FLIGHT and CONFIG come from its [`Offer`].
pub const PROTOCOL_FEATURES: u64 = codec::protocol::MQ
    | codec::protocol::LOG_SHMFD
    | codec::protocol::REPLY_ACK
    | codec::protocol::BACKEND_REQ
    | codec::protocol::RESET_DEVICE
    | codec::protocol::CONFIGURE_MEM_SLOTS;

#[doc(hidden)]
pub mod fuzz;
#[cfg(test)]
mod tests;
