//! What a benchmark takes of the machine, and gives back when it ends.

pub mod control;
pub mod cores;
pub mod folder;
pub mod interrupt;
pub mod packages;
pub mod pages;
pub mod process;
