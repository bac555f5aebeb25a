//! HTTPS with an own authority: its certificate is made at the first start and good for twenty years.
//!
//! Invariants: the authority's key never leaves the state directory and is readable by its owner alone; every start
//! makes a fresh certificate for the names and addresses it listens on, and so does the process before that one ends.
//! An agent's certificate is good for a year and renewed by the agent. A client's certificate is asked for and not
//! required: who needs to know the client looks at [`Peer`].

mod authority;
mod head;
mod listen;
mod shown;

pub use authority::{Authority, AuthorityError, Lives, Signed};
pub(crate) use authority::{hex, keep};
pub(crate) use head::fuzz as fuzz_head;
pub use listen::{Peer, serve_http, serve_https};
pub use shown::Shown;
