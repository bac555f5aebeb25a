//! What a release of Bixi holds: its programs, and the files for systemd, which lie in `units/` of this crate.

use crate::bundle::Source;
use crate::manifest::Mode;
use std::path::Path;

/// The programs.
pub const PROGRAMS: [&str; 6] =
    ["bixi", "bixi-agent", "bixi-cloud", "bixi-network", "bixi-storage", "bixi-vmm"];

/// The unit of the control plane.
pub const CLOUD_UNIT: &str = "bixi-cloud.service";
/// The unit of a server's agent.
pub const AGENT_UNIT: &str = "bixi-agent.service";
/// The unit in whose control group VMs and card processes run.
pub const INSTANCES_UNIT: &str = "bixi-instances.service";
/// The user that the control plane runs as, for systemd-sysusers.
pub const USERS: &str = "bixi-users.conf";

/// The files for systemd.
const UNITS: [&str; 4] = [AGENT_UNIT, CLOUD_UNIT, INSTANCES_UNIT, USERS];

/// The files of a release whose programs are in the directory `programs`, and the files for systemd in `units`.
#[must_use]
pub fn sources(programs: &Path, units: &Path) -> Vec<Source> {
    let source = |folder: &str, mode, from: &Path, name: &str| Source {
        path: format!("{folder}/{name}"),
        mode,
        file: from.join(name),
    };
    let programs = PROGRAMS.map(|name| source("bin", Mode::Program, programs, name));
    let units = UNITS.map(|name| source("units", Mode::Data, units, name));
    programs.into_iter().chain(units).collect()
}

#[cfg(test)]
#[path = "units_tests.rs"]
mod tests;
