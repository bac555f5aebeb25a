//! What the supervisor is told, what it says, and where a rack's files are.
//!
//! Shared by [`crate::rack`], which writes the plan and asks, and [`crate::supervisor`], which obeys and answers. Both
//! are the same release of this crate.

use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The MTU of the underlay in bytes: room for guests' packets of 1,500 bytes inside VXLAN, and for larger ones.
pub const UNDERLAY_MTU: u16 = 8950;

/// The MTU of the management network in bytes.
pub(crate) const MANAGEMENT_MTU: u16 = 1500;

/// A rack to be run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// The rack's folder.
    pub folder: PathBuf,
    /// QEMU's arguments for the processor.
    pub processor: Vec<String>,
    /// In words, how the servers get their processors.
    pub acceleration: String,
    /// The servers' kernel.
    pub kernel: PathBuf,
    /// Its initial RAM file system.
    pub initrd: PathBuf,
    /// What the kernel is told, beside what each server is told.
    pub command_line: String,
    /// The disk with a system of their own; what they write to it is gone when they are.
    pub system: Option<PathBuf>,
    /// Their read-only disk.
    pub disk: PathBuf,
    /// How many there are.
    pub servers: usize,
    /// Memory of each, in MiB.
    pub memory_mib: u32,
    /// Processors of each.
    pub cpus: u32,
    /// The scratch disk of each, in GiB.
    pub scratch_gib: u32,
}

impl Plan {
    /// A server that does not answer within this time after its start is broken.
    pub fn boot_limit(&self) -> Duration {
        Duration::from_secs(if self.system.is_some() { 900 } else { 180 })
    }
}

/// Where a rack's files are.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    /// The rack's folder, which goes when the rack goes.
    pub folder: PathBuf,
}

impl Places {
    pub fn new(state: &Path) -> Self {
        Self { folder: state.join("rack") }
    }

    /// Held by the supervisor as long as it lives.
    pub fn lock(&self) -> PathBuf {
        self.folder.join("lock")
    }

    /// Where the supervisor answers.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("rack.sock")
    }

    /// What it was told.
    pub fn plan(&self) -> PathBuf {
        self.folder.join("plan.json")
    }

    /// What it logs.
    pub fn log(&self) -> PathBuf {
        self.folder.join("supervisor.log")
    }

    /// The folder of one server.
    pub fn server(&self, number: usize) -> PathBuf {
        self.folder.join(format!("server-{number}"))
    }
}

/// A question to the supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// How is the rack? Answers [`Say::Status`].
    Status,
    /// A connection to a server's agent: answers [`Say::Done`] and a descriptor.
    Connect { server: usize },
    /// Cut a server's power and start it again with an empty disk: answers [`Say::Done`] once it is up.
    Restart { server: usize },
    /// End the rack: answers [`Say::Done`] and ends.
    Down,
}

/// An answer of the supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Say {
    /// How the rack is.
    Status(Status),
    /// It is done.
    Done,
    /// It cannot be done.
    Failed { message: String },
}

/// What the supervisor reports to whoever started it, one line of JSON each.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Event {
    /// A server is up.
    Up { server: usize, seconds: f64 },
    /// All are up.
    Ready,
    /// The rack cannot be.
    Failed { message: String },
}

/// How a rack is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// In words, how the servers get their processors.
    pub acceleration: String,
    /// The inode of the rack's network namespace.
    pub network_namespace: u64,
    /// Its servers.
    pub servers: Vec<ServerStatus>,
}

/// How a server is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServerStatus {
    /// Its number, from 1.
    pub number: usize,
    /// Where it is in its life.
    pub state: ServerState,
    /// Its address on the management network.
    pub management: Ipv4Addr,
    /// Its address on the underlay network.
    pub underlay: Ipv4Addr,
}

/// Where a server is in its life.
///
/// ```text
/// starting ──► up ──► ended
///     └────────────────▲  │
///     ▲────────────────┴──┘ (restart)
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServerState {
    /// It boots.
    Starting,
    /// Its agent answers.
    Up,
    /// Its QEMU is gone; the last it said.
    Ended(String),
}

/// A server's address on the management network.
#[must_use]
pub fn management_address(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 88, 0, octet(number))
}

/// A server's address on the underlay network.
#[must_use]
pub fn underlay_address(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 99, 0, octet(number))
}

/// Racks have few servers; a number beyond the network's room is refused long before it comes here.
pub(crate) fn octet(number: usize) -> u8 {
    u8::try_from(number).unwrap_or(u8::MAX)
}
