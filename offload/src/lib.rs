//! What the card services share: guest memory, rings, vhost-user sessions, workers and control sockets.
//!
//! ```text
//!  control ── driver task of the service ── card ── vhost_user (pure) ── front end's socket
//!                                            │ mailbox
//!                                          worker ── ring ── memory ── front end's memory
//! ```
//!
//! Nothing here knows a disk or a packet. `storage/` and `network/` implement [`worker::WorkerService`] and drive a
//! [`card::Card`]; `compute/` uses [`memory::SharedMemory`], [`control`] and [`frontend`].

pub mod card;
pub mod control;
pub mod failpoint;
pub mod frontend;
#[doc(hidden)]
pub mod fuzz;
pub mod handover;
pub mod log_sink;
pub mod memory;
pub mod rate;
pub mod ring;
pub mod sigbus;
pub mod vhost_user;
pub mod worker;
