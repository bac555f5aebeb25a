//! What tenants say to the cloud: ECS's own API, version 2014-05-26, in the newer of its two signed forms.
//!
//! `sign` makes the headers of a request, `client` sends it, `words` names what comes back. Fields of an answer that have
//! no name here are kept as they came: ECS's documents name hundreds, and a program that reads an answer as JSON wants
//! all of them. Who calls it: the command line.

mod client;
mod sign;
mod words;

pub use client::{EcsClient, EcsClientError, EcsRefusal, Nothing, Parameters};
pub use sign::{AccessKey, Signed, Unsigned, sign};
pub use words::*;

/// The version of the API.
pub const VERSION: &str = "2014-05-26";
