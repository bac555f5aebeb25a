//! Everything here that reads bytes of a guest or of a front end, as functions that take any bytes and must not panic.

pub use crate::frontend::fuzz::*;
pub use crate::ring::fuzz::ring;
pub use crate::vhost_user::fuzz::{codec, session, session_state};
