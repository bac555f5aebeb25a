//! The agent: one process per server, which owns the life of the instances that the cloud places there.
//!
//! ```text
//!  cloud ◄── report ── driver ──(plan)──► executor ──► bixi-storage, bixi-network   (their control sockets)
//!    └───── desired ────►│ ▲                  └──────► jail ──► bixi-vmm            (one per instance)
//!                        ▼ └── what came of it, ends of processes
//!                    instance: the pure machine of one life
//! ```
//!
//! Invariants: the driver is the only owner of the state; a start is durable before it happens and happens once; the
//! agent's own death, the cloud's and the card's stop no instance; a process is known by number and start time, never by
//! number or name alone.

pub mod cli;
pub mod cloud;
pub mod console;
pub mod driver;
pub mod durable;
pub mod executor;
pub mod identity;
pub mod instance;
pub mod inventory;
pub mod jail;
pub mod places;
pub mod points;
pub mod process;
pub mod record;
pub mod renewal;
pub mod serve;
pub mod supervisor;
