//! The types that cross a process boundary, and the typed clients that carry them.
//!
//! Every process of a server has one control socket: HTTP/1.1 with JSON bodies over a UNIX stream socket, all paths
//! under `/v1`. This crate names what is said there ([`compute`], [`storage`], [`network`]), how a refusal looks
//! ([`error`]), how a file is named ([`file`]), and how a component's state is wrapped ([`state`]).
//!
//! Invariants: no behaviour lives here but encoding, decoding and asking; an unknown field in a request is refused,
//! never ignored. Between servers and the cloud [`agent`] is spoken, between
//! operators and the cloud [`operator`], between tenants and the cloud `ecs`, all over HTTPS.

pub mod agent;
pub mod client;
pub mod compute;
#[cfg(feature = "ecs-client")]
pub mod ecs;
pub mod error;
pub mod file;
#[cfg(any(feature = "agent-client", feature = "operator-client", feature = "ecs-client"))]
mod https;
pub mod network;
pub mod operator;
pub mod state;
pub mod storage;

/// The release of this build, as every process reports it on its control socket.
pub const RELEASE: &str = env!("CARGO_PKG_VERSION");
