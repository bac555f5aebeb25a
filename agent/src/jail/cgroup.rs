//! Control groups, version 2: one for each VMM, with what its type allows.
//!
//! They are in `bixi` under the mount, or in a group that somebody else lends them: under systemd a unit does, which was
//! given the whole group (`Delegate=`) and outlives the agent's own. The card's processes go there too. systemd removes the
//! group of a unit in which nothing runs and keeps what is above it, so the group is made again whenever it is needed.
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
    /// The group that is held for VMMs, or `bixi` under the mount of version 2, made ready.
    ///
    /// # Errors
    /// Why there is none, as a sentence that says what to do.
    pub fn open(held: Option<&Path>) -> Result<Self, String> {
        match held {
            Some(held) => Self::open_held(held),
            None => Self::open_under(Path::new("/sys/fs/cgroup")),
        }
    }

    /// A group that was delegated: its controllers are there already.
    fn open_held(held: &Path) -> Result<Self, String> {
        let failed = |what: String| {
            format!(
                "{what}, so VMs have no limits of processor time and memory: start the unit that holds this group \
                 (bixi-instances.service), then the agent again"
            )
        };
        let name = held.display();
        make(held).map_err(|error| {
            failed(format!("the control group {name} cannot be made ({error})"))
        })?;
        let controllers = fs::read_to_string(held.join("cgroup.controllers")).map_err(|error| {
            failed(format!("the control group {name} cannot be used ({error})"))
        })?;
        if let Some(missing) = missing(&controllers) {
            return Err(failed(format!("the control group {name} has no controller {missing}")));
        }
        let groups = Self { directory: held.to_owned() };
        groups.ready().map_err(|error| {
            failed(format!("the control group {name} cannot be used ({error})"))
        })?;
        Ok(groups)
    }

    fn open_under(mount: &Path) -> Result<Self, String> {
        let controllers = fs::read_to_string(mount.join("cgroup.controllers")).map_err(|_| {
            "no cgroup v2 at /sys/fs/cgroup, so VMs have no limits of processor time and memory: boot with \
             systemd.unified_cgroup_hierarchy=1, or mount it"
                .to_owned()
        })?;
        if let Some(missing) = missing(&controllers) {
            return Err(format!(
                "cgroup v2 has no controller {missing}, so VMs have no limits: unmount it from cgroup v1"
            ));
        }
        let groups = Self { directory: mount.join("bixi") };
        let written = fs::write(mount.join("cgroup.subtree_control"), CONTROLLERS);
        written.and_then(|()| groups.ready()).map_err(|error| {
            format!(
                "cgroup v2 cannot be written ({error}), so VMs have no limits: run the agent as root, outside of a container"
            )
        })?;
        Ok(groups)
    }

    /// Makes the group of all, if it is not there, and lets it control those below it.
    fn ready(&self) -> io::Result<()> {
        make(&self.directory)?;
        fs::write(self.directory.join("cgroup.subtree_control"), CONTROLLERS)
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
        self.ready()?;
        make(&group)?;
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

/// Of the controllers that VMMs need, one that is not among these.
fn missing(controllers: &str) -> Option<&'static str> {
    let has = |name: &str| controllers.split_whitespace().any(|controller| controller == name);
    ["cpu", "memory", "pids"].into_iter().find(|name| !has(name))
}

/// Makes a group that may be there.
fn make(group: &Path) -> io::Result<()> {
    match fs::create_dir(group) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Moves a process into a group, which is made if it is not there, as is the one above it. It has no limits.
///
/// # Errors
/// The kernel refuses.
pub fn enter(group: &Path, pid: u32) -> io::Result<()> {
    group.parent().map_or(Ok(()), make)?;
    make(group)?;
    fs::write(group.join("cgroup.procs"), pid.to_string())
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

    #[test]
    fn a_group_that_is_held_is_used_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let held = folder.path().join("bixi-instances.service");
        let none = Groups::open(Some(&folder.path().join("none/x"))).unwrap_err();
        assert!(none.contains("start the unit"), "{none}");
        let none = Groups::open(Some(&held)).unwrap_err();
        assert!(none.contains("cannot be used") && held.exists(), "{none}");
        fs::write(held.join("cgroup.controllers"), "cpu memory\n").unwrap();
        let less = Groups::open(Some(&held)).unwrap_err();
        assert!(less.contains("no controller pids"), "{less}");
        fs::write(held.join("cgroup.controllers"), "cpu memory pids\n").unwrap();
        let groups = Groups::open(Some(&held)).unwrap();
        groups.confine("i-1", 7, &InstanceLimits::default()).unwrap();
        for _ in 0..2 {
            enter(&held.join("card"), 8).unwrap();
        }
        let read = |name| fs::read_to_string(held.join(name)).unwrap();
        assert_eq!((read("i-1/cgroup.procs"), read("card/cgroup.procs")), ("7".into(), "8".into()));
        assert!(
            enter(&folder.path().join("no/ne/card"), 8).is_err(),
            "no groups of its own making"
        );
    }
}
