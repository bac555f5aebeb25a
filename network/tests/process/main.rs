//! The process as a whole: `bixi-network` is started as an operator starts it, and driven by front ends over real
//! vhost-user sockets. Tests that need root or a program that is not there say so and are skipped.

// A test that cannot go on panics, one that is skipped says so: in helpers too.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod control;
mod foreign;
mod guest;
mod hostile;
mod namespace;
mod overlay;
mod rates;
mod server;
mod services;
mod survival;
mod switching;
mod tap;
mod tiny;
