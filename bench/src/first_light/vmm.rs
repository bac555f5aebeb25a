//! A hypervisor's process in a server of the rack.

use crate::rounds::{Outcome, Side};
use crate::setup::cores::{Cores, Disturbance};
use crate::{BenchError, Effort};
use bixi_api::compute::{BootConfig, ConsoleConfig, CpuConfig, MemoryConfig, PageSize, VmConfig};
use bixi_api::file::FileSource;
use bixi_lab::{Process, Rack};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// What the guest's first program says first.
const INIT: &str = "bixi-guest: init at";
/// An emulated server is slow.
const LIMIT: Duration = Duration::from_secs(90);
/// Guest memory in MiB.
const MEMORY: u64 = 192;
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 bixi.no-network";
const CONFIG: &str = "/run/bench-vm.json";

/// Resident memory of a process outside its guest's memory, which both hold in a memfd, in KiB.
const RESIDENT: &str = r#"awk '/^[0-9a-f]+-/ { guest = ($6 ~ /^\/memfd:/) } /^Rss:/ && !guest { kib += $2 } END { print kib }'"#;

/// Which hypervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Ours,
    Microvm,
}

/// A hypervisor that boots the rack's guest.
pub struct Vmm {
    kind: Kind,
    rack: Rc<Rack>,
    ready: Option<BenchError>,
}

impl Vmm {
    /// `ready` is whether its packages are there.
    pub fn new(kind: Kind, rack: &Rc<Rack>, ready: Result<(), BenchError>) -> Self {
        Self { kind, rack: Rc::clone(rack), ready: ready.err() }
    }

    fn start(&self) -> Result<Process, BenchError> {
        let server = self.rack.server(1);
        let command = match self.kind {
            Kind::Ours => server.command("/usr/bin/bixi-vmm").args(["--config", CONFIG]),
            Kind::Microvm => {
                let words = format!(
                    "-L /opt/firmware -M microvm,accel=kvm,memory-backend=ram,rtc=on -cpu host -smp 1 \
                     -m {MEMORY} -object memory-backend-memfd,id=ram,size={MEMORY}M,share=on \
                     -nodefaults -no-user-config -display none -no-reboot -serial stdio \
                     -kernel /opt/guest/bzImage -initrd /opt/guest/initrd"
                );
                let command = server.command("/opt/bin/qemu-system-x86_64");
                command.args(words.split_whitespace()).args(["-append", COMMAND_LINE])
            }
        };
        Ok(command.spawn()?)
    }

    fn resident_mib(&self, process: &Process) -> Result<f64, BenchError> {
        let server = self.rack.server(1);
        let said = server.sh(&format!("{RESIDENT} /proc/{}/smaps", process.pid()))?;
        let kib = said.trim().parse::<f64>();
        kib.map(|kib| kib / 1024.0)
            .map_err(|_| BenchError::Wrong(format!("resident memory of `{said}` KiB")))
    }
}

impl Side for Vmm {
    fn name(&self) -> &str {
        match self.kind {
            Kind::Ours => "ours",
            Kind::Microvm => "qemu-microvm",
        }
    }

    fn prepare(&mut self) -> Result<(), BenchError> {
        if let Some(error) = self.ready.take() {
            return Err(error);
        }
        if self.kind == Kind::Ours {
            let config = serde_json::to_vec(&config());
            let config = config.map_err(|e| BenchError::Wrong(e.to_string()))?;
            self.rack.server(1).put(&config, CONFIG, 0o600)?;
        }
        Ok(())
    }

    fn run(&mut self, _: &Cores, _: &Effort) -> Result<Outcome, BenchError> {
        let start = Instant::now();
        let mut process = self.start()?;
        process.wait_for(INIT, LIMIT)?;
        let boot = start.elapsed().as_secs_f64() * 1000.0;
        let resident = self.resident_mib(&process);
        process.kill()?;
        let figures = BTreeMap::from([("boot-to-init", boot), ("vmm-memory", resident?)]);
        Ok(Outcome { figures, disturbance: Disturbance::default() })
    }
}

/// Our guest: the same as the peer's, its console on the process's standard output.
fn config() -> VmConfig {
    let file = |path: &str| FileSource::Path(path.into());
    VmConfig {
        id: "bench".to_owned(),
        board: "i440fx-1".to_owned(),
        cpus: CpuConfig { count: 1 },
        memory: MemoryConfig { size: MEMORY << 20, pages: PageSize::Small },
        boot: BootConfig {
            kernel: file("/opt/guest/bzImage"),
            initrd: Some(file("/opt/guest/initrd")),
            cmdline: COMMAND_LINE.to_owned(),
        },
        disks: Vec::new(),
        nics: Vec::new(),
        rng: false,
        console: ConsoleConfig::File(FileSource::Fd(1)),
        control: None,
        autostart: true,
        host: bixi_api::compute::HostFiles::default(),
    }
}
