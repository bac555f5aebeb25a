//! The VMM of an instance: into its jail, and permitted to begin.

use super::{Executor, Fault, cards};
use crate::jail::{self, Spec};
use crate::points;
use crate::process::Identity;
use crate::record::{Record, Run};
use bixi_api::agent::{BootSource, DesiredInstance};
use bixi_api::compute::{
    BootConfig, ConsoleConfig, CpuConfig, DiskConfig, HostFiles, MemoryConfig, NicConfig, PageSize,
    VmConfig,
};
use bixi_api::file::FileSource;
use bixi_offload::failpoint;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;

/// As much of a log is told as its end, in bytes.
const LOG_END: usize = 600;

impl Executor {
    /// Puts a VMM into its jail, where it waits.
    pub(super) async fn spawn(
        &self,
        id: &str,
        slot: u32,
        desired: &DesiredInstance,
    ) -> Result<Run, Fault> {
        let vm = self.places.vm(id);
        let io = |what: &'static str| move |error: io::Error| Fault::io(what, &error);
        check_memory(desired.limits.memory)?;
        let spec = Spec {
            vmm: self.places.program("bixi-vmm"),
            config: self.config(id, desired)?,
            user: self.first_user + slot,
            cards: vm.cards(),
            root: vm.root(),
            launched: vm.launched(),
        };
        fs::create_dir_all(vm.root()).map_err(io("make the jail's root"))?;
        let _ = fs::remove_file(vm.launched());
        let text = serde_json::to_vec(&spec).map_err(|e| Fault::internal(&e))?;
        fs::write(vm.spec(), text).map_err(io("write the jail's description"))?;
        let log = File::options().create(true).append(true).open(vm.log());
        let log = log.map_err(io("open the VMM's log"))?;
        // This very program, also where its file was replaced by a newer one meanwhile.
        let mut command = Command::new("/proc/self/exe");
        command.arg("jail").arg(vm.spec()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let mut helper = command.spawn().map_err(io("start the jail"))?;
        let (Some(permission), Some(said)) = (helper.stdin.take(), helper.stdout.take()) else {
            return Err(Fault::new("Internal", "the jail has no pipes.", "Please report this."));
        };
        let mut line = String::new();
        let read = BufReader::new(said).read_line(&mut line).await;
        read.map_err(io("hear of the jail"))?;
        helper.wait().await.map_err(io("wait for the jail"))?;
        let identity = line.trim().parse().ok().and_then(Identity::of);
        let Some(identity) = identity else {
            let message = format!("the jail of {id} cannot be made: {}.", log_end(&vm.log()));
            return Err(Fault::new("JailFailed", message, "Look at the VM's log on this server."));
        };
        failpoint::hit(points::AFTER_SPAWN);
        if let Some(groups) = &self.groups {
            groups
                .confine(id, identity.pid, &desired.limits)
                .map_err(io("confine the VMM by a control group"))?;
        }
        self.waiting().insert(id.to_owned(), (identity, permission));
        let Identity { pid, start } = identity;
        Ok(Run { pid, start, boot_id: self.boot_id.clone() })
    }

    /// Writes the start down, then lets the VMM begin.
    pub(super) async fn release(&self, id: &str, record: &Record) -> Result<(), Fault> {
        let waiting = self.waiting().remove(id);
        let (identity, mut permission) = waiting.ok_or_else(|| {
            Fault::new("VmmLost", "nobody waits in the jail.", "The agent tries again.")
        })?;
        if record.run.as_ref().map(|run| (run.pid, run.start))
            != Some((identity.pid, identity.start))
        {
            return Err(Fault::new("VmmLost", "another one waits in the jail.", ""));
        }
        // Dropped on an error, and with it the VMM.
        self.write(id, record)?;
        failpoint::hit(points::BEFORE_PERMISSION);
        permission.write_all(b"g").await.map_err(|e| Fault::io("let the VMM begin", &e))?;
        failpoint::hit(points::AFTER_PERMISSION);
        Ok(())
    }

    /// Refuses the permission of a VMM that waits, if one does.
    pub fn refuse(&self, id: &str) {
        self.waiting().remove(id);
    }

    fn config(&self, id: &str, desired: &DesiredInstance) -> Result<VmConfig, Fault> {
        let vm = self.places.vm(id);
        let path = |path: PathBuf| FileSource::Path(path);
        let inside = |name: &str| path(Path::new(jail::CARDS).join(name));
        let BootSource::Kernel { kernel, initrd, cmdline } = &desired.source;
        let disk = |id: &String| DiskConfig {
            id: id.clone(),
            socket: inside(id),
            address: None,
            queues: None,
            queue_size: 256,
        };
        let nic = |nic: &bixi_api::agent::DesiredNic| NicConfig {
            id: nic.id.clone(),
            socket: inside(&nic.id),
            mac: nic.mac.clone(),
            address: None,
            queue_pairs: None,
            queue_size: 256,
            mtu: None,
        };
        Ok(VmConfig {
            id: id.to_owned(),
            board: "i440fx-1".to_owned(),
            cpus: CpuConfig { count: desired.limits.vcpus },
            memory: MemoryConfig { size: desired.limits.memory, pages: PageSize::Small },
            boot: BootConfig {
                kernel: path(self.image(kernel)?),
                initrd: initrd.as_ref().map(|i| self.image(i)).transpose()?.map(path),
                cmdline: cmdline.clone(),
            },
            disks: cards::disks(desired).map(disk).collect(),
            nics: desired.nics.iter().map(nic).collect(),
            rng: true,
            console: ConsoleConfig::Socket(path(vm.console())),
            control: Some(path(vm.control())),
            autostart: true,
            host: HostFiles::default(),
        })
    }
}

/// The VMM cannot look for itself from inside its jail.
fn check_memory(wanted: u64) -> Result<(), Fault> {
    let available = crate::inventory::memory_available();
    match available {
        Some(available) if available < wanted => Err(Fault::new(
            "NoMemory",
            format!(
                "the instance is to have {wanted} bytes of memory, this server has {available}."
            ),
            "Stop another instance, or place this one elsewhere.",
        )),
        _ => Ok(()),
    }
}

/// What a VMM said last, as one line.
pub(crate) fn log_end(path: &Path) -> String {
    let text = fs::read(path).unwrap_or_default();
    let end = &text[text.len().saturating_sub(LOG_END)..];
    let text = String::from_utf8_lossy(end);
    // A panic's last line says nothing of it.
    let tells = |line: &&str| !line.trim().is_empty() && !line.starts_with("note: run with");
    let line = text.lines().rev().find(tells);
    line.unwrap_or("it said nothing").trim().trim_end_matches('.').to_owned()
}
