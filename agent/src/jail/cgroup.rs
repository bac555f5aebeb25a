//! Control groups, version 2: one for each VMM, with what its type allows.
//!
//! Where the server has none that can be written, VMMs run without, and the inventory says so.

use bixi_api::agent::InstanceLimits;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Memory of a VMM beyond its guest's, in bytes: far more than one uses.
const OVERHEAD: u64 = 64 << 20;
/// The period of processor time, in microseconds.
const PERIOD: u64 = 100_000;
/// What is controlled.
const CONTROLLERS: &str = "+cpu +memory +pids";

/// The group of all VMMs.
#[derive(Debug, Clone)]
pub struct Groups {
    directory: PathBuf,
}

impl Groups {
    /// The group `bixi` under the mount of version 2, made ready.
    ///
    /// # Errors
    /// Why there is none, as a sentence that says what to do.
    pub fn open() -> Result<Self, String> {
        Self::open_under(Path::new("/sys/fs/cgroup"))
    }

    fn open_under(mount: &Path) -> Result<Self, String> {
        let controllers = fs::read_to_string(mount.join("cgroup.controllers")).map_err(|_| {
            "no cgroup v2 at /sys/fs/cgroup, so VMs have no limits of processor time and memory: boot with \
             systemd.unified_cgroup_hierarchy=1, or mount it"
                .to_owned()
        })?;
        let has = |name: &str| controllers.split_whitespace().any(|controller| controller == name);
        if let Some(missing) = ["cpu", "memory", "pids"].into_iter().find(|name| !has(name)) {
            return Err(format!(
                "cgroup v2 has no controller {missing}, so VMs have no limits: unmount it from cgroup v1"
            ));
        }
        let directory = mount.join("bixi");
        let ready = || -> io::Result<()> {
            fs::create_dir_all(&directory)?;
            fs::write(mount.join("cgroup.subtree_control"), CONTROLLERS)?;
            fs::write(directory.join("cgroup.subtree_control"), CONTROLLERS)
        };
        ready().map_err(|error| {
            format!(
                "cgroup v2 cannot be written ({error}), so VMs have no limits: run the agent as root, outside of a container"
            )
        })?;
        Ok(Self { directory })
    }

    fn group(&self, id: &str) -> PathBuf {
        self.directory.join(id)
    }

    /// Puts the process `pid` into the group of the instance `id`, with its limits.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn confine(&self, id: &str, pid: i32, limits: &InstanceLimits) -> io::Result<()> {
        let group = self.group(id);
        fs::create_dir_all(&group)?;
        let memory = limits.memory.saturating_add(OVERHEAD);
        // One processor beside the vCPUs, for the devices.
        let quota = (u64::from(limits.vcpus) + 1) * PERIOD;
        let threads = u64::from(limits.vcpus) + 16;
        fs::write(group.join("memory.max"), memory.to_string())?;
        fs::write(group.join("cpu.max"), format!("{quota} {PERIOD}"))?;
        fs::write(group.join("pids.max"), threads.to_string())?;
        fs::write(group.join("cgroup.procs"), pid.to_string())
    }

    /// Removes the group of an instance that does not run; that there is none is no error.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn remove(&self, id: &str) -> io::Result<()> {
        match fs::remove_dir(self.group(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lacking_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let none = Groups::open_under(folder.path()).unwrap_err();
        assert!(none.contains("no cgroup v2"), "{none}");
        fs::write(folder.path().join("cgroup.controllers"), "cpu pids\n").unwrap();
        let less = Groups::open_under(folder.path()).unwrap_err();
        assert!(less.contains("no controller memory"), "{less}");
    }

    #[test]
    fn limits_are_written_down_before_the_process_is_moved() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("cgroup.controllers"), "cpuset cpu memory pids\n").unwrap();
        let groups = Groups::open_under(folder.path()).unwrap();
        let limits = InstanceLimits { vcpus: 2, memory: 1 << 30, ..InstanceLimits::default() };
        groups.confine("i-1", 7, &limits).unwrap();
        let read = |name| fs::read_to_string(folder.path().join("bixi/i-1").join(name)).unwrap();
        assert_eq!(read("memory.max"), ((1_u64 << 30) + OVERHEAD).to_string());
        assert_eq!((read("cpu.max"), read("cgroup.procs")), ("300000 100000".into(), "7".into()));
    }
}
