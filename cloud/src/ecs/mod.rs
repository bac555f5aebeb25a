//! The tenants' API: Alibaba Cloud's ECS, version 2014-05-26, in its own wire form, so that existing clients work.
//!
//! ```text
//! HTTP ─► service ─► wire: decode, limits, signature, time, nonce ─► dispatch ─► an action ─► view
//!            │                                                          │                      │
//! HTTP ◄─────┴────── wire: JSON or XML ◄──────────── reply or refusal ◄─┴──────────── draft ◄──┘
//! ```
//!
//! Invariants: nothing of a request is believed before its signature was checked; a parameter that ECS documents and
//! this cloud does not know is refused, never ignored in silence; another tenant's id is answered as if it did not
//! exist. Who calls it: the process's HTTP and HTTPS listeners.

mod actions;
pub mod dispatch;
pub mod documented;
#[doc(hidden)]
pub mod fuzz;
mod paging;
pub mod refusal;
pub mod service;
pub mod wire;

#[cfg(test)]
mod clients_test;
#[cfg(test)]
pub(crate) mod harness;
#[cfg(test)]
mod tests;
