//! An agent with its server: a folder, the real programs beside it, and the processes that come of it.

use crate::cloud::{Cloud, DEADLINE};
use crate::guest;
use bixi_api::agent::{
    BootSource, Cidata, DesiredDisk, DesiredInstance, DesiredNic, DesiredSegment, DiskRole,
    InstanceLimits, InstanceState, ObservedInstance, Power, StopMode,
};
use bixi_api::network::SegmentConfig;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Once;
use std::time::{Duration, Instant};

pub const DISK: &str = "d-0123456789abcdefghij";
pub const CIDATA: &str = "c-0123456789abcdefghij";
pub const VNI: u32 = 7;

/// The programs' folder, or why the test is skipped.
pub fn programs() -> Option<PathBuf> {
    let own = Path::new(env!("CARGO_BIN_EXE_bixi-agent"));
    let folder = own.parent().unwrap().to_owned();
    static SAID: Once = Once::new();
    let skipped = |why: &str| {
        SAID.call_once(|| eprintln!("SKIPPED: {why}"));
        None
    };
    for name in ["bixi-vmm", "bixi-storage", "bixi-network"] {
        if !folder.join(name).exists() {
            return skipped(&format!("{name} is not built: cargo build --workspace --bins"));
        }
    }
    if !rustix::process::geteuid().is_root() {
        return skipped("a jail can be made by root only");
    }
    let kvm = std::fs::File::options().read(true).write(true).open("/dev/kvm");
    if kvm.is_err() { skipped("this machine has no usable /dev/kvm") } else { Some(folder) }
}

/// The server.
pub struct Rig {
    pub cloud: Cloud,
    folder: tempfile::TempDir,
    agent: Option<Child>,
    programs: PathBuf,
}

impl Rig {
    /// A server that has joined; its agent does not run yet.
    pub fn new() -> Option<Self> {
        Self::of(Cloud::start())
    }

    /// A server that has joined this cloud.
    pub fn of(cloud: Cloud) -> Option<Self> {
        let programs = programs()?;
        // Short: paths of sockets are.
        let folder = tempfile::Builder::new().prefix("bxa").tempdir_in("/tmp").unwrap();
        let rig = Self { cloud, folder, agent: None, programs };
        let (status, said) = rig.join(&rig.cloud.token().to_string());
        assert!(status == 0 && said.contains("this server is s-1"), "{status} {said}");
        Some(rig)
    }

    pub fn join(&self, token: &str) -> (i32, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bixi-agent"));
        command.args(["join", token, "--name", "test", "--state"]).arg(self.path("state"));
        let output = command.output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&said).into_owned())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts the agent; `failpoint` names where it dies.
    pub fn start(&mut self, failpoint: Option<&str>) {
        let log = std::fs::File::options().create(true).append(true).open(self.path("log"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_bixi-agent"));
        command.arg("serve");
        for name in ["state", "run", "disks"] {
            command.arg(format!("--{name}")).arg(self.path(name));
        }
        command.arg("--programs").arg(&self.programs).stdin(Stdio::null()).stderr(log.unwrap());
        command.env("BIXI_LOG", "debug").env_remove("BIXI_FAILPOINT");
        if let Some(point) = failpoint {
            command.env("BIXI_FAILPOINT", point);
        }
        self.agent = Some(command.spawn().unwrap());
    }

    /// Whether the agent has died.
    pub fn has_died(&mut self) -> bool {
        self.agent.as_mut().is_none_or(|agent| agent.try_wait().unwrap().is_some())
    }

    pub fn kill(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            agent.kill().unwrap();
            agent.wait().unwrap();
        }
    }

    /// Every process of `program` that belongs to this rig.
    pub fn processes(&self, program: &str) -> Vec<i32> {
        let folder = self.folder.path().to_string_lossy().into_owned();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap() {
            let Ok(pid) = entry.unwrap().file_name().to_string_lossy().parse::<i32>() else {
                continue;
            };
            let proc = PathBuf::from(format!("/proc/{pid}"));
            let Ok(exe) = std::fs::read_link(proc.join("exe")) else { continue };
            if exe.file_name().is_none_or(|name| name != program) {
                continue;
            }
            // A VMM names nothing by path; where its output goes tells whose it is.
            let line = std::fs::read_to_string(proc.join("cmdline")).unwrap_or_default();
            let log = std::fs::read_link(proc.join("fd/2")).unwrap_or_default();
            let log = log.to_string_lossy();
            // The child that waits in a jail is this program too, and no agent.
            let own = line.contains(&folder) || log.starts_with(&folder);
            if own && !line.contains("\0jail\0") {
                found.push(pid);
            }
        }
        found
    }

    pub fn vmms(&self) -> Vec<i32> {
        self.processes("bixi-vmm")
    }

    /// Waits until exactly one VMM is there.
    pub fn one_vmm(&self) -> i32 {
        let vmms = self.vmms();
        assert_eq!(vmms.len(), 1, "{vmms:?}");
        vmms[0]
    }

    pub fn log(&self) -> String {
        let read = |name: &str| std::fs::read_to_string(self.path(name)).unwrap_or_default();
        format!(
            "--- agent\n{}\n--- storage\n{}\n--- network\n{}\n--- vmm\n{}",
            read("log"),
            read("run/storage.log"),
            read("run/network.log"),
            read("run/vm/i-1/log")
        )
    }

    /// Waits until the instance is in `state`, and nothing keeps it from what is desired now.
    pub fn wait_state(&self, state: InstanceState) -> ObservedInstance {
        let revision = self.cloud.revision();
        self.cloud.wait(&format!("instance {state:?}"), |report| {
            let found = report.instances.iter().find(|found| found.id == "i-1")?;
            (report.applied == revision && found.state == state).then(|| found.clone())
        })
    }

    /// The instance of the tests, with the guest `code`.
    pub fn instance(&self, code: &[u8]) -> DesiredInstance {
        let kernel = self.cloud.image("m-1.kernel", guest::kernel(code));
        let image = self.cloud.image("m-1.disk", b"a disk".repeat(512));
        DesiredInstance {
            id: "i-1".into(),
            epoch: 1,
            power: Power::Running,
            boot: 1,
            stop: StopMode::Orderly { deadline_seconds: 20 },
            limits: InstanceLimits { vcpus: 1, memory: 32 << 20, ..InstanceLimits::default() },
            source: BootSource::Kernel { kernel, initrd: None, cmdline: "quiet".into() },
            disks: vec![DesiredDisk {
                id: DISK.into(),
                size: 1 << 20,
                image: Some(image),
                role: DiskRole::System,
                delete_with_instance: true,
            }],
            nics: vec![DesiredNic {
                id: "eni-1".into(),
                mac: "02:00:00:00:00:05".into(),
                ipv4: [10, 0, 0, 5].into(),
                segment: VNI,
            }],
            cidata: Some(Cidata {
                disk: CIDATA.into(),
                meta_data: "instance-id: i-1\n".into(),
                ..Cidata::default()
            }),
            metadata: BTreeMap::new(),
        }
    }

    /// Desires one instance as `change` makes it, in its segment.
    pub fn desire(&self, instance: &DesiredInstance) {
        let config = serde_json::json!({
            "generation": 1, "network": "10.0.0.0", "prefix-len": 24, "mtu": 1450,
        });
        let config: SegmentConfig = serde_json::from_value(config).unwrap();
        self.cloud.desire(|desired| {
            desired.instances = vec![instance.clone()];
            desired.segments = vec![DesiredSegment { vni: VNI, config }];
        });
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        self.kill();
        for program in ["bixi-vmm", "bixi-storage", "bixi-network"] {
            for pid in self.processes(program) {
                if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
            }
        }
    }
}

/// Waits until `condition` has an answer.
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < deadline, "no {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
