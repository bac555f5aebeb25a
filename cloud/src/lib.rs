//! The control plane of Bixi: model, store, scheduler, tasks, reconcilers and the two APIs.

pub mod catalogue;
pub mod ecs;
pub mod model;
pub mod plan;
pub mod store;
