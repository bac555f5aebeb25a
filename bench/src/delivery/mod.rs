//! `bench delivery`: from the request for an instance to the first packet that its guest sends, by phase, beside QEMU.
//!
//! Ours is the whole product in one server of a rack: `bixi-cloud`, an agent and the card that it starts, asked by the command
//! line. The peer is a hypervisor started by hand: QEMU's microvm with the same kernel, initial RAM file system and memory,
//! and a network interface that leads to a file; it has no cloud, no disks and no jail, and so is what is possible at the
//! least. Where the rack is emulated its times are no performance figures; the ratio of the two is.
//!
//! | row | from, to |
//! |---|---|
//! | `vm-direct` | the start of `bixi instance run`, the first packet at the card |
//! | `vm-direct/api` | … the cloud plans it |
//! | `vm-direct/placed` | … its server's agent has written it down |
//! | `vm-direct/prepared` | … images, disks and card are ready |
//! | `vm-direct/started` | … its VMM is permitted to begin |
//! | `vm-direct/running` | … its vCPUs run |
//! | `vm-direct/first-packet` | … the first packet |
//!
//! The image is at the server already; a first instance that is not counted brings it there.

mod ours;
mod qemu;

use crate::report::{Better, Row};
use crate::rounds::{Measure, Side, alternate};
use crate::setup::folder::Folder;
use crate::{BenchError, Effort};
use bixi_lab::{Config, Rack, Server};
use ours::Ours;
use qemu::Microvm;
use std::rc::Rc;
use std::time::Duration;

const fn phase(suffix: &'static str) -> Measure {
    Measure { suffix, unit: "s", better: Better::Lower }
}

const MEASURES: &[Measure] = &[
    phase(""),
    phase("/api"),
    phase("/placed"),
    phase("/prepared"),
    phase("/started"),
    phase("/running"),
    phase("/first-packet"),
];

/// An emulated server is slow; nothing here takes longer.
const LIMIT: Duration = Duration::from_secs(120);
/// Guest memory in MiB: that of the type `bixi.tiny`.
const MEMORY: u64 = 256;
/// The server's clock in microseconds since 1970, by what its busybox has.
const CLOCK: &str = "clock() { adjtimex | awk '/time.tv_sec/ { s = $2 } /time.tv_usec/ { u = $2 } \
                     END { printf \"%d%06d\\n\", s, u }'; }";

/// Measures all rows.
///
/// # Errors
/// Ours cannot run here, or there can be no rack.
pub fn run(effort: Effort) -> Result<Vec<Row>, BenchError> {
    let folder = Folder::new()?;
    let mut config = Config::new(folder.path())?;
    if std::env::var_os("BIXI_LAB_CACHE").is_none() {
        config.cache = concat!(env!("CARGO_MANIFEST_DIR"), "/../.lab/cache").into();
    }
    config.servers = 1;
    let peer = crate::first_light::microvm(&mut config);
    let rack = Rc::new(Rack::up(&config)?);
    let mut ours = Ours::new(&rack);
    let mut peers: [Box<dyn Side>; 1] = [Box::new(Microvm::new(&rack, peer))];
    alternate("vm-direct", MEASURES, &effort, &mut ours, &mut peers)
}

/// What a script prints.
fn printed(server: &Server, script: &str) -> Result<String, BenchError> {
    let output = server.command("/bin/sh").args(["-c", script]).limit(LIMIT).run()?;
    match output.success() {
        true => Ok(output.text().trim().to_owned()),
        false => Err(BenchError::Wrong(format!("`{script}` {}", output.describe()))),
    }
}
