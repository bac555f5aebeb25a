//! From a checked configuration to a machine: `Described → Built`.
//!
//! What can be refused is refused in the order of its cost: KVM, memory, files, sockets, then the machine. Nothing of it
//! outlives an error: sockets' files go with their owners.

use crate::board::clock::HostClock;
use crate::boot::files::BootFiles;
use crate::boot::{self, BootError, BootSource, Surrounding};
use crate::config::Checked;
use crate::console::output::Writer;
use crate::kvm::host::{Host, HostError};
use crate::machine::{Machine, MachineError, MachineSpec};
use crate::memory::{GuestRam, MemoryError, availability};
use crate::pci::{InsertError, PciPath};
use crate::virtio::rng::Rng;
use crate::virtio::vhost_user::{ConnectError, GuestShare, ShareError, blk, net};
use crate::virtio::{BuildError as VirtioError, KvmHost, VirtioDevice, VirtioPci};
use bixi_api::compute::VmConfig;
use std::sync::Arc;
use tokio::task::JoinSet;

/// Why a VM cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// No usable KVM.
    #[error(transparent)]
    Host(#[from] HostError),
    /// More vCPUs than this host's KVM gives.
    #[error("cpus.count is {wanted}: this host's KVM gives a VM at most {most}")]
    Vcpus {
        /// vCPUs asked for.
        wanted: u8,
        /// The most there are.
        most: usize,
    },
    /// No memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The kernel or the initrd is not what it should be.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The machine cannot be made.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// A back end's socket cannot be used.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// Guest memory cannot be shared.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// A device cannot be made.
    #[error(transparent)]
    Virtio(#[from] VirtioError),
    /// A device's address is taken.
    #[error(transparent)]
    Insert(#[from] InsertError),
    /// A task of the process died.
    #[error("a device's task died while it was built: this is a bug, please report it")]
    Task,
}

/// A VM that is built and has not run.
#[derive(Debug)]
pub struct Built {
    /// The machine.
    pub machine: Machine,
    /// What it boots.
    pub source: BootSource,
    /// Queues in force, per disk of the configuration.
    pub disk_queues: Vec<u16>,
}

/// What costs little and can be refused: before any socket is made.
#[derive(Debug)]
pub struct Prepared {
    host: Host,
    source: BootSource,
    ram: Arc<GuestRam>,
}

impl Prepared {
    /// Checks the host and opens the files of the boot.
    ///
    /// # Errors
    /// The host or the files are not as the configuration needs them.
    pub fn new(config: &VmConfig) -> Result<Self, BuildError> {
        let host = Host::open_at(&config.host.kvm)?;
        let (wanted, most) = (config.cpus.count, host.capabilities().max_vcpus);
        if usize::from(wanted) > most {
            return Err(BuildError::Vcpus { wanted, most });
        }
        let files = BootFiles::open(&config.boot).map_err(BootError::from)?;
        let memory = &config.memory;
        availability::check(memory.size, memory.pages).map_err(MemoryError::from)?;
        let ram = Arc::new(GuestRam::new(memory.size, memory.pages)?);
        let source = BootSource { files, cmdline: config.boot.cmdline.clone() };
        Ok(Self { host, source, ram })
    }

    /// Builds the machine with all its devices and loads the kernel. Waits for back ends as long as it takes; dropped, it
    /// leaves nothing behind.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub async fn build(self, checked: &Checked, console: Writer) -> Result<Built, BuildError> {
        let vcpus = checked.config.cpus.count;
        let connected = connect(checked, &self.ram).await?;
        let spec = MachineSpec { vcpus, ram: self.ram, console, clock: Arc::new(HostClock) };
        let mut machine = Machine::build(&self.host, spec)?;
        let host = Arc::new(KvmHost {
            vm: Arc::clone(machine.vm()),
            interrupts: Arc::clone(machine.interrupts()),
        });
        let mut disk_queues = Vec::new();
        for Connected { id, path, device, is_disk } in connected {
            if is_disk {
                disk_queues.push(device.queue_sizes().len() as u16);
            }
            let function = VirtioPci::new(&id, path, device, Arc::clone(&host) as _)?;
            machine.board().pci.insert(path, Arc::clone(&function) as _)?;
            machine.plug(path.to_string(), function);
        }
        let built = Built { machine, source: self.source, disk_queues };
        built.load(true)?;
        Ok(built)
    }
}

impl Built {
    /// Loads the boot files and sets the vCPUs up to begin with them.
    ///
    /// # Errors
    /// The files do not fit, or KVM refuses.
    pub fn load(&self, fresh: bool) -> Result<(), BuildError> {
        let vcpus = self.machine.vcpus().len() as u8;
        let pci = self.machine.board().pci.acpi_facts();
        let ram = Arc::clone(self.machine.ram());
        let entry = boot::load(&self.source, &Surrounding { ram: &ram, vcpus, pci, fresh })?;
        Ok(self.machine.boot(&entry)?)
    }
}

/// A device whose back end is there.
struct Connected {
    id: String,
    path: PciPath,
    device: Arc<dyn VirtioDevice>,
    is_disk: bool,
}

/// Connects all devices at once; they come back in the order of the configuration.
async fn connect(checked: &Checked, ram: &GuestRam) -> Result<Vec<Connected>, BuildError> {
    let Checked { config, plan } = checked;
    if config.disks.is_empty() && config.nics.is_empty() && plan.rng.is_none() {
        return Ok(Vec::new());
    }
    let share = Arc::new(GuestShare::new(ram)?);
    let mut tasks = JoinSet::new();
    let vcpus = config.cpus.count;
    for (order, (disk, path)) in config.disks.iter().cloned().zip(plan.disks.clone()).enumerate() {
        let share = Arc::clone(&share);
        tasks.spawn(async move {
            let device = blk::connect(&disk, vcpus, &share).await?;
            let connected = Connected { id: disk.id, path, device, is_disk: true };
            Ok::<_, ConnectError>((order, connected))
        });
    }
    let disks = config.disks.len();
    for (order, (nic, path)) in config.nics.iter().cloned().zip(plan.nics.clone()).enumerate() {
        let share = Arc::clone(&share);
        tasks.spawn(async move {
            let device = net::connect(&nic, &share).await?;
            Ok((disks + order, Connected { id: nic.id, path, device, is_disk: false }))
        });
    }
    let mut connected = Vec::new();
    while let Some(done) = tasks.join_next().await {
        connected.push(done.map_err(|_| BuildError::Task)??);
    }
    connected.sort_by_key(|(order, _)| *order);
    let mut connected: Vec<_> = connected.into_iter().map(|(_, device)| device).collect();
    if let Some(path) = plan.rng {
        let device = Rng::new(Arc::clone(share.rings()));
        connected.push(Connected { id: "rng".to_owned(), path, device, is_disk: false });
    }
    Ok(connected)
}
