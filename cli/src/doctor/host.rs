//! What the kernel tells of this machine. All of it is read below one folder, so that tests can be other machines.

use super::Check;
use std::path::{Path, PathBuf};

/// The oldest kernel whose KVM has what a VM here needs.
const KERNEL: (u32, u32) = (5, 10);
/// What the agent limits instances by.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// A machine, by the folder that is its root.
#[derive(Debug)]
pub struct Machine {
    root: PathBuf,
}

impl Machine {
    /// The machine whose files are below `root`.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    fn read(&self, path: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.root.join(path)).ok()?;
        Some(text.trim().to_owned())
    }

    fn has(&self, path: &str) -> bool {
        self.root.join(path).exists()
    }

    /// All checks that need no guest.
    pub fn checks(&self) -> Vec<Check> {
        vec![
            self.root_user(),
            self.kernel(),
            self.processor(),
            self.kvm(),
            self.memory(),
            self.huge_pages(),
            self.cgroup(),
            self.io_uring(),
        ]
    }

    fn root_user(&self) -> Check {
        let status = self.read("proc/self/status").unwrap_or_default();
        let uid = status.lines().find_map(|line| line.strip_prefix("Uid:"));
        match uid.and_then(|line| line.split_whitespace().nth(1)) {
            Some("0") => Check::ok("root", "this is root"),
            _ => Check::no("root", "this is not root", "the agent needs root: use sudo"),
        }
    }

    fn kernel(&self) -> Check {
        let release = self.read("proc/sys/kernel/osrelease").unwrap_or_default();
        let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
        let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        let (major, minor) = KERNEL;
        match version >= KERNEL {
            true => Check::ok("kernel", release),
            false => {
                Check::no("kernel", release, format!("use a kernel of {major}.{minor} or newer"))
            }
        }
    }

    fn processor(&self) -> Check {
        let text = self.read("proc/cpuinfo").unwrap_or_default();
        let flags = text.lines().find(|line| line.starts_with("flags")).unwrap_or("");
        let count = text.lines().filter(|line| line.starts_with("processor")).count();
        let has = |flag: &str| flags.split_whitespace().any(|one| one == flag);
        let found = |with: &str| format!("{count} CPUs with {with}");
        match (has("vmx"), has("svm")) {
            (true, _) => Check::ok("processor", found("Intel VT-x")),
            (_, true) => Check::ok("processor", found("AMD-V")),
            // A KVM without either is possible: only the guest tells.
            _ => Check::warning(
                "processor",
                found("neither VT-x nor AMD-V"),
                "enable virtualization in the firmware, or nested virtualization in the host of this VM",
            ),
        }
    }

    fn kvm(&self) -> Check {
        let modules = ["kvm_intel", "kvm_amd", "kvm"];
        let loaded = modules.into_iter().find(|module| self.has(&format!("sys/module/{module}")));
        let module =
            loaded.map_or("no module of its name".to_owned(), |name| format!("module {name}"));
        let device = self.root.join("dev/kvm");
        let open = std::fs::File::options().read(true).write(true).open(&device);
        match open {
            Ok(_) => Check::ok("kvm", format!("/dev/kvm, {module}")),
            Err(_) if !device.exists() => {
                let next =
                    "`modprobe kvm_intel` or `modprobe kvm_amd`, after virtualization is enabled";
                Check::no("kvm", format!("there is no /dev/kvm; {module}"), next)
            }
            Err(error) => {
                let next = "let this user read and write it, for example by the group kvm";
                Check::no("kvm", format!("/dev/kvm: {error}"), next)
            }
        }
    }

    fn memory(&self) -> Check {
        let text = self.read("proc/meminfo").unwrap_or_default();
        let total = field(&text, "MemTotal:").unwrap_or(0) >> 10;
        let free = field(&text, "MemAvailable:").unwrap_or(0) >> 10;
        let found = format!("{total} MiB, of which {free} are available");
        match free {
            0..=511 => Check::warning("memory", found, "make room: the smallest type has 256 MiB"),
            _ => Check::ok("memory", found),
        }
    }

    fn huge_pages(&self) -> Check {
        let text = self.read("proc/meminfo").unwrap_or_default();
        let of = |name| field(&text, name).unwrap_or(0);
        let (total, free, size) =
            (of("HugePages_Total:"), of("HugePages_Free:"), of("Hugepagesize:") >> 10);
        let gigantic = "sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages";
        let gigantic: u64 = self.read(gigantic).and_then(|n| n.parse().ok()).unwrap_or(0);
        let found = format!("{total} of {size} MiB, {free} free; {gigantic} of 1 GiB");
        match total + gigantic {
            0 => Check::warning(
                "huge pages",
                found,
                "instances use small pages; `sysctl vm.nr_hugepages=NUMBER` reserves some",
            ),
            _ => Check::ok("huge pages", found),
        }
    }

    fn cgroup(&self) -> Check {
        let Some(controllers) = self.read("sys/fs/cgroup/cgroup.controllers") else {
            let next = "the agent runs VMMs without limits of CPU, memory and tasks; to have them, boot with \
                        systemd.unified_cgroup_hierarchy=1";
            return Check::warning("cgroup", "there is no cgroup v2 at /sys/fs/cgroup", next);
        };
        let has = |name: &&&str| !controllers.split_whitespace().any(|one| one == **name);
        let lacking: Vec<&str> = CONTROLLERS.iter().filter(has).copied().collect();
        match lacking.as_slice() {
            [] => Check::ok("cgroup", format!("v2 with {}", CONTROLLERS.join(", "))),
            lacking => {
                let found = format!("v2 without {}", lacking.join(", "));
                let next = "the agent runs VMMs without limits of CPU, memory and tasks; to have them, let the \
                            kernel, or this container's host, give them";
                Check::warning("cgroup", found, next)
            }
        }
    }

    fn io_uring(&self) -> Check {
        match self.read("proc/sys/kernel/io_uring_disabled").as_deref() {
            Some("2") => {
                let next = "`sysctl kernel.io_uring_disabled=0`: disks need it";
                Check::no("io_uring", "it is switched off", next)
            }
            Some("1") => Check::ok("io_uring", "for root alone"),
            // Kernels before 6.6 have no switch.
            _ => Check::ok("io_uring", "it is on"),
        }
    }
}

/// A number of a file of fields.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    fn machine(files: &[(&str, &str)]) -> (tempfile::TempDir, Machine) {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let machine = Machine::new(folder.path());
        (folder, machine)
    }

    #[test]
    fn a_good_machine_is_good() {
        let (_folder, machine) = machine(&[
            ("proc/self/status", "Name:\tbixi\nUid:\t1000\t0\t0\t0\n"),
            ("proc/sys/kernel/osrelease", "6.1.0-37-cloud-amd64\n"),
            ("proc/cpuinfo", "processor : 0\nflags : fpu svm\nprocessor : 1\nflags : fpu svm\n"),
            (
                "proc/meminfo",
                "MemTotal: 8000000 kB\nMemAvailable: 7000000 kB\nHugePages_Total: 8\nHugePages_Free: 8\nHugepagesize: 2048 kB\n",
            ),
            ("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids\n"),
            ("sys/module/kvm_amd/refcnt", "0"),
            ("dev/kvm", ""),
        ]);
        let checks = machine.checks();
        assert!(checks.iter().all(|check| check.state == State::Ok), "{checks:#?}");
        assert!(checks.iter().any(|check| check.found == "2 CPUs with AMD-V"));
        assert!(checks.iter().any(|check| check.found.contains("kvm_amd")));
    }

    #[test]
    fn what_is_lacking_is_told_with_what_to_do() {
        let (_folder, machine) = machine(&[
            ("proc/sys/kernel/osrelease", "5.4.0"),
            ("proc/sys/kernel/io_uring_disabled", "2"),
            ("sys/fs/cgroup/cgroup.controllers", "cpu"),
        ]);
        for check in machine.checks() {
            assert_ne!(check.state, State::Ok, "{check:?}");
            assert!(!check.next.is_empty(), "{check:?}");
            // The agent runs without limits too.
            assert!(check.check != "cgroup" || check.state == State::Warning);
        }
        assert_eq!(machine.cgroup().found, "v2 without memory, pids");
    }
}
