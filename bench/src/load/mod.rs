//! What a load generator needs.

pub mod clock;
pub mod histogram;
