//! The agent with the real card and real VMMs, driven through its contract by a cloud in the test.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

mod cloud;
mod crash;
mod full;
mod guest;
mod jail;
mod life;
mod renewal;
mod rig;
mod seccomp;
