//! The command line of Bixi: what tenants and operators type.
//!
//! ```text
//!   command: noun and verb ──► context: profile, clients ──► the ECS API (tenants) or /v1 (operators)
//!                                  │
//!   exit status ◄── failure    output: table, JSON, names on stdout · progress on stderr
//! ```
//!
//! Invariants: nothing is decided here, the two APIs decide; standard output carries answers and nothing else; text that
//! came from elsewhere never reaches a terminal with control characters in it.

mod cloud;
mod command;
mod context;
mod doctor;
mod event;
mod failure;
#[doc(hidden)]
pub mod fuzz;
mod image;
mod instance;
mod key;
mod output;
mod profile;
mod progress;
mod release;
mod server;
mod systemd;
mod task;
mod tenant;
mod types;

pub use command::run;
