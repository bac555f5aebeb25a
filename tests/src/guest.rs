//! A guest in a server: a `bixi-vmm` process, its control socket and its console.

use crate::control::Control;
use crate::daemon::Lease;
use crate::error::{Failure, Result};
use crate::wait_for;
use bixi_api::compute::{
    BootConfig, ConsoleConfig, CpuConfig, DiskConfig, HostFiles, MemoryConfig, NicConfig, PageSize,
    VmConfig, VmDescription, VmState, VmStatistics,
};
use bixi_api::file::FileSource;
use bixi_lab::{Console, Process, Server};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// An emulated server is slow.
const LIMIT: Duration = Duration::from_secs(30);

/// A guest that has not offered a shell by then is broken.
const BOOT_LIMIT: Duration = Duration::from_secs(120);

/// The forms of the same kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// As Debian ships it.
    BzImage,
    /// The ELF inside it, entered by PVH.
    Elf,
}

impl Kernel {
    /// Where it is in a server.
    #[must_use]
    pub fn path(self) -> PathBuf {
        PathBuf::from(match self {
            Self::BzImage => "/opt/guest/bzImage",
            Self::Elf => "/opt/guest/vmlinux",
        })
    }
}

/// A guest to be.
#[derive(Debug, Clone)]
pub struct GuestPlan {
    /// What `bixi-vmm` is told.
    pub config: VmConfig,
}

impl GuestPlan {
    /// A guest with one vCPU, 192 MiB and no device but the console.
    #[must_use]
    pub fn new(id: &str, kernel: Kernel) -> Self {
        let folder = folder(id);
        let path = |name: &str| FileSource::Path(folder.join(name));
        let config = VmConfig {
            id: id.to_owned(),
            board: "i440fx-1".to_owned(),
            cpus: CpuConfig { count: 1 },
            memory: MemoryConfig { size: 192 << 20, pages: PageSize::Small },
            boot: BootConfig {
                kernel: FileSource::Path(kernel.path()),
                initrd: Some(FileSource::Path("/opt/guest/initrd".into())),
                cmdline: "console=ttyS0 quiet panic=-1".to_owned(),
            },
            disks: Vec::new(),
            nics: Vec::new(),
            rng: true,
            console: ConsoleConfig::Socket(path("console.sock")),
            control: Some(path("control.sock")),
            autostart: true,
            host: HostFiles::default(),
        };
        Self { config }
    }

    /// With so many vCPUs.
    #[must_use]
    pub fn cpus(mut self, count: u8) -> Self {
        self.config.cpus.count = count;
        self
    }

    /// With a disk whose back end listens at `socket`.
    #[must_use]
    pub fn disk(mut self, id: &str, socket: &Path) -> Self {
        self.config.disks.push(DiskConfig {
            id: id.to_owned(),
            socket: FileSource::Path(socket.to_owned()),
            address: None,
            queues: None,
            queue_size: 256,
        });
        self
    }

    /// With a network interface whose back end listens at `socket`.
    #[must_use]
    pub fn nic(mut self, id: &str, socket: &Path, mac: &str) -> Self {
        self.config.nics.push(NicConfig {
            id: id.to_owned(),
            socket: FileSource::Path(socket.to_owned()),
            mac: mac.to_owned(),
            address: None,
            queue_pairs: None,
            queue_size: 256,
            mtu: None,
        });
        self
    }

    /// With this added to the kernel's command line.
    #[must_use]
    pub fn argument(mut self, text: &str) -> Self {
        self.config.boot.cmdline.push(' ');
        self.config.boot.cmdline.push_str(text);
        self
    }
}

/// A guest.
#[derive(Debug)]
pub struct Guest {
    /// Its console.
    pub console: Console,
    server: Server,
    id: String,
    control: Control,
    process: Option<Process>,
}

impl Guest {
    /// Starts a guest; it boots when this returns.
    ///
    /// # Errors
    /// When `bixi-vmm` does not start; what it logged is told.
    pub fn start(server: &Server, plan: &GuestPlan, lease: Lease) -> Result<Self> {
        let id = plan.config.id.clone();
        let folder = folder(&id);
        let config = folder.join("vm.json");
        server.put(&serde_json::to_vec_pretty(&plan.config)?, &config, 0o600)?;
        let command = server.command("/usr/bin/bixi-vmm").arg("--config");
        let command = command.arg(config.to_string_lossy());
        let log = folder.join("vmm.log");
        let process = match lease {
            Lease::Handle => Some(command.spawn_logged(log)?),
            Lease::Own => {
                command.detach(log)?;
                None
            }
        };
        let control = Control::new(server, &folder.join("control.sock"))?;
        let stream = wait_for(&format!("the console of {id}"), LIMIT, || {
            if let Some(ended) = process.as_ref().and_then(Process::ended) {
                return Ok(Some(Err(format!("bixi-vmm ended: {ended:?}"))));
            }
            Ok(Some(Ok(server.connect(folder.join("console.sock"))?)))
        })
        .and_then(|stream| stream.map_err(Failure::new))
        .map_err(|e| Failure::new(format!("{e}; its log: {}", log_of(server, &id))))?;
        let console = Console::new(id.clone(), stream)?;
        Ok(Self { console, server: server.clone(), id, control, process })
    }

    /// Starts a guest and waits for its shell.
    ///
    /// # Errors
    /// When it does not boot; what its VMM logged is told.
    pub fn boot(server: &Server, plan: &GuestPlan, lease: Lease) -> Result<Self> {
        let mut guest = Self::start(server, plan, lease)?;
        guest.login()?;
        Ok(guest)
    }

    /// Waits for its shell.
    ///
    /// # Errors
    /// When it does not boot; what its VMM logged is told.
    pub fn login(&mut self) -> Result<()> {
        self.console
            .login(BOOT_LIMIT)
            .map_err(|e| Failure::new(format!("{e}; log of its VMM: {}", self.logged())))
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Runs a command in it that must succeed; what it wrote.
    ///
    /// # Errors
    /// When the command fails or does not end in time.
    pub fn sh(&mut self, command: &str, limit: Duration) -> Result<String> {
        Ok(self.console.sh(command, limit)?)
    }

    /// What its VMM says about it.
    ///
    /// # Errors
    /// When its VMM does not answer.
    pub fn describe(&self) -> Result<VmDescription> {
        Ok(self.control.get("/v1/vm")?)
    }

    /// What its VMM has counted.
    ///
    /// # Errors
    /// When its VMM does not answer.
    pub fn statistics(&self) -> Result<VmStatistics> {
        Ok(self.control.get("/v1/vm/statistics")?)
    }

    /// Tells its VMM `start`, `pause`, `resume`, `power-button`, `reset` or `stop`.
    ///
    /// # Errors
    /// When its VMM refuses.
    pub fn order(&self, verb: &str) -> Result<VmDescription> {
        Ok(self.control.put(&format!("/v1/vm/{verb}"), &Value::Null)?)
    }

    /// Waits until it is in a state of its life.
    ///
    /// # Errors
    /// When that does not happen in time.
    pub fn wait_state(&self, state: VmState) -> Result<()> {
        wait_for(&format!("{} {state:?}", self.id), LIMIT, || {
            Ok((self.describe()?.state == state).then_some(()))
        })
    }

    /// Waits until its VMM has ended; the exit code.
    ///
    /// # Errors
    /// When it does not end in time, or was not started with a handle.
    pub fn wait_end(&self, limit: Duration) -> Result<Option<i32>> {
        match &self.process {
            Some(process) => Ok(process.wait(limit)?.code),
            None => Err(Failure::new("a process without a handle cannot be waited for")),
        }
    }

    /// Connects to its console anew.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn reconnect(&mut self) -> Result<()> {
        let stream = self.server.connect(folder(&self.id).join("console.sock"))?;
        self.console = Console::new(self.id.clone(), stream)?;
        Ok(())
    }

    /// The end of its VMM's log.
    #[must_use]
    pub fn logged(&self) -> String {
        log_of(&self.server, &self.id)
    }
}

fn log_of(server: &Server, id: &str) -> String {
    let log = folder(id).join("vmm.log");
    let tail = server.command("tail").args(["-n", "30"]).arg(log.to_string_lossy()).run();
    tail.map_or_else(|e| e.to_string(), |output| output.text())
}

/// A guest's folder in its server.
fn folder(id: &str) -> PathBuf {
    PathBuf::from(format!("/run/bixi/vm/{id}"))
}
