//! The control plane of Bixi: model, store, scheduler, tasks, reconcilers and the two APIs.
//!
//! ```text
//!   cli ──► serve: state directory, authority, listeners
//!             │
//!  ecs, operator, agents: HTTP(S) ──► service: the view that follows the store, the changes of requests, the reconciler
//!             │                        │
//!           images: files           plan: what is decided, as pure functions ──► model: records, view, draft
//!                                      │
//!                                    store: keys and values with revisions, in one file
//! ```
//!
//! Invariants: the state is what the store has acknowledged, and everything else can be lost; nothing here touches a
//! server but through what its agent is told to bring about and tells that it has seen.

pub mod agents;
pub mod catalogue;
pub mod cli;
pub mod ecs;
#[doc(hidden)]
pub mod fuzz;
pub mod images;
pub mod model;
pub mod operator;
pub mod plan;
pub mod refusal;
pub mod serve;
#[cfg(test)]
mod serve_tests;
pub mod service;
pub mod store;
pub mod tls;
