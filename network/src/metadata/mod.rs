//! The metadata server: what a guest reads of itself at 100.100.100.200 and 169.254.169.254.
//!
//! ```text
//! controller ── documents ──► service ── immutable snapshot ──┐
//!                                                             ▼
//! guest ── frames for port 80 ──► switch ──► stack (TCP) ──► http ──► documents, token
//! ```
//!
//! Whose documents a guest gets is decided by the port its frames came from, never by an address in them: two tenants
//! with the same addresses each get their own. A stack lives only while its guest talks.
//!
//! Invariants: [`http`], [`documents`] and [`token`] are pure; a guest holds at most [`stack::CONNECTIONS`] connections
//! with fixed buffers, each for a bounded time, and only its own: whatever it does, other ports' stacks are others.

pub mod documents;
pub mod http;
pub mod stack;
pub mod token;

use crate::packet::{Ipv4, TCP};
use documents::Documents;
use std::net::Ipv4Addr;
use token::Key;

/// Where guests ask: Alibaba's address, and that of everybody else.
pub const ADDRESSES: [Ipv4Addr; 2] =
    [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(169, 254, 169, 254)];
/// The port of HTTP.
const PORT: u16 = 80;

/// Whether a packet is for the metadata server.
pub fn is_request(ipv4: &Ipv4) -> bool {
    ipv4.protocol == TCP && ipv4.ports[1] == PORT && ADDRESSES.contains(&ipv4.destination)
}

/// All that a port's guest can read: an immutable snapshot.
#[derive(Debug, PartialEq, Eq)]
pub struct Metadata {
    /// The port's id, which its tokens hold for.
    pub port: String,
    /// The documents.
    pub documents: Documents,
    /// Whether a token is needed.
    pub tokens_required: bool,
    /// What tokens are made with.
    pub key: Key,
}
