//! Network virtualization.

pub mod address;
pub mod answer;
pub mod packet;
