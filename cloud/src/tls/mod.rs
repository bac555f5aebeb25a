//! HTTPS with an own authority: its certificate is made at the first start and never again.
//!
//! Invariants: the authority's key never leaves the state directory and is readable by its owner alone; every start
//! makes a fresh certificate for the names and addresses it listens on. A client's certificate is asked for and not
//! required: who needs to know the client looks at [`Peer`].

mod authority;
mod head;
mod listen;

pub use authority::{Authority, AuthorityError};
pub(crate) use authority::{hex, keep};
pub(crate) use head::fuzz as fuzz_head;
pub use listen::{Peer, serve_http, serve_https};
