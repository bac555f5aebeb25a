//! Network virtualization.

pub mod address;
pub mod answer;
pub mod engine;
pub mod packet;
pub mod state;
pub mod switch;
pub mod tables;
pub mod underlay;
