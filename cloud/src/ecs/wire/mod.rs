//! The wire form of the RPC API: from an HTTP request to a believed call, and from a reply to bytes.
//!
//! `request` decodes and limits, `signature` says whether the caller holds the key's secret, `nonces` whether the
//! request is seen for the first time, `params` gives an action its typed parameters, and `reply` writes JSON or XML.
//! Everything here is pure: the clock and the keys come from the caller.

pub mod authenticate;
pub mod nonces;
pub mod params;
pub mod percent;
pub mod reply;
pub mod request;
pub mod signature;
pub mod timestamp;
