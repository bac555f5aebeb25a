//! The virtual rack: real Linux servers with real KVM inside QEMU, and two networks between them.
//!
//! ```text
//!   this machine                         │ namespaces of the rack: PID, network, mounts
//!   bixi-lab, tests ──rack.sock──────────┼─► supervisor (first process; when it ends, all ends)
//!                                        │      │ starts
//!                                        │   QEMU server-1 … QEMU server-N      (TCG with SVM, or nested KVM)
//!                                        │      ║ mgmt 10.88.0.0/24, under 10.99.0.0/24: bridges and TAPs
//!                                        │   agent in each server on mgmt: run, put, get, connect, reset
//! ```
//!
//! A server runs Debian's own cloud kernel with KVM, busybox, the agent and our binaries; guests for it lie in
//! `/opt/guest`. [`Rack::up`] builds what is missing, says what it installs, and gives a rack that ends with the value or
//! the process that holds it, in whatever way that ends.
//!
//! Invariants: no file outside the state and cache folders, no process outside the rack's PID namespace, no network
//! outside its network namespace. Nothing here ships to production.

mod agent;
mod console;
mod error;
mod forward;
mod host;
mod link;
pub mod load;
mod plan;
mod process;
mod rack;
mod server;
mod server_image;
mod socket;
pub mod stream;
mod supervisor;
mod terminal;
mod wire;

pub use agent::serve as serve_agent;
pub use bixi_image::host::{Needed, ensure_programs, install, say, set_quiet};
pub use console::Console;
pub use error::{Error, Result};
pub use forward::Forward;
pub use host::Acceleration;
pub use plan::{
    ServerState, ServerStatus, Status, UNDERLAY_MTU, management_address, underlay_address,
};
pub use process::{Output, Process};
pub use rack::{Config, Rack};
pub use server::{Command, Hello, Server};
pub use server_image::Contents;
pub use supervisor::{enter as enter_rack, supervise as supervise_rack};
pub use wire::Ended;
