//! Storage virtualization: cloud disks, served to virtual machines and boards by vhost-user-blk.
//!
//! ```text
//!   cli ──► service: who may use which disk; sessions, attachments, the control socket
//!              │ ServedDisk, by message
//!           engine: on worker threads; from a chain of descriptors to the medium and back
//!              │ one open file description per disk
//!            disk: what lies under the root directory, and who may touch it
//! ```
//!
//! A disk is attached to a socket with an epoch; a front end (a VMM's, or a board's QEMU) connects there and the rings
//! of its guest are served from its memory. The process may die at any instant: attachments are written down, requests
//! in flight are in memory that the front end holds, and a successor begins when the writer lock says that the dead
//! one's I/O is over. Nothing here knows of KVM.

pub mod cli;
pub mod disk;
pub mod engine;
#[doc(hidden)]
pub mod fuzz;
pub mod service;
