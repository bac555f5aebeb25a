//! The tenants' API: Alibaba Cloud's ECS, version 2014-05-26, in its own wire form, so that existing clients work.
//!
//! ```text
//! HTTP ─► wire: decode, limits ─► signature, time, nonce ─► Call ─► action ─► model
//!                                                                     │
//! HTTP ◄─ wire: JSON or XML  ◄──────────────────────────── reply or Refusal
//! ```
//!
//! Invariants: nothing of a request is believed before its signature was checked; a parameter that ECS documents and
//! this cloud does not know is refused, never ignored in silence; another tenant's id is answered as if it did not
//! exist. Who calls it: the process's HTTP and HTTPS listeners.

pub mod documented;
pub mod refusal;
pub mod wire;
