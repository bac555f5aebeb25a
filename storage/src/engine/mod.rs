//! Disks in use: from a chain of descriptors to the bytes on the medium and back.
//!
//! ```text
//! worker ── service ── request (what does the guest want?)
//!              │
//!            file ── slot: one request under way, a small state machine over
//!              │        uring    the kernel's asynchronous I/O
//!              │        bounce   aligned buffers for what direct I/O refuses
//!              │        ranges   no two changes of one block at once
//!            media ── the disk behind a device: a file, memory, or nothing (the last two for measurements)
//! ```
//!
//! Invariants: a request's status byte is written and its chain completed exactly once; a request in flight pins the
//! guest memory it uses; a flush is acknowledged after every write acknowledged before is on the medium; nothing is
//! allocated and no lock is waited for while requests move.

pub mod bounce;
pub mod config;
pub mod file;
pub mod harness;
pub mod media;
pub mod points;
pub mod ranges;
pub mod request;
pub mod service;
pub mod slot;
pub mod uring;
