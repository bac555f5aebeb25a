//! What is said to and by `bixi-vmm`: a VM's configuration, its description and its statistics.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /v1/vm` | | [`VmDescription`] |
//! | `PUT /v1/vm/start`, `pause`, `resume`, `power-button`, `reset`, `stop` | | [`VmDescription`] |
//! | `GET /v1/vm/statistics` | | [`VmStatistics`] |

use crate::file::FileSource;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A VM, whole: what `bixi-vmm --config` reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct VmConfig {
    /// The instance's id: 1 to 64 letters, digits, `-` or `_`.
    pub id: String,
    /// The frozen board version; `i440fx-1` is the only one of this release.
    #[serde(default = "default_board")]
    pub board: String,
    /// Virtual CPUs.
    #[serde(default)]
    pub cpus: CpuConfig,
    /// Guest memory.
    pub memory: MemoryConfig,
    /// What the vCPUs run first.
    pub boot: BootConfig,
    /// Disks, in the order in which free addresses are given.
    #[serde(default)]
    pub disks: Vec<DiskConfig>,
    /// Network interfaces, in the order in which free addresses are given.
    #[serde(default)]
    pub nics: Vec<NicConfig>,
    /// The entropy device; on unless told otherwise.
    #[serde(default = "yes")]
    pub rng: bool,
    /// Where the first serial port goes.
    #[serde(default)]
    pub console: ConsoleConfig,
    /// The control socket; none unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<FileSource>,
    /// Whether the vCPUs run as soon as the VM is built; otherwise they wait for `start`.
    #[serde(default = "yes")]
    pub autostart: bool,
    /// The host's files that the process uses.
    #[serde(default)]
    pub host: HostFiles,
}

/// Files of the host's kernel that the VMM uses; a jail has no path to them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct HostFiles {
    /// KVM.
    #[serde(default = "default_kvm")]
    pub kvm: FileSource,
    /// Where the process reads how much memory it uses.
    #[serde(default = "default_status")]
    pub status: FileSource,
}

impl Default for HostFiles {
    fn default() -> Self {
        Self { kvm: default_kvm(), status: default_status() }
    }
}

fn default_kvm() -> FileSource {
    FileSource::Path(PathBuf::from("/dev/kvm"))
}

fn default_status() -> FileSource {
    FileSource::Path(PathBuf::from("/proc/self/status"))
}

fn default_board() -> String {
    "i440fx-1".to_owned()
}

fn yes() -> bool {
    true
}

/// Virtual CPUs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct CpuConfig {
    /// How many vCPUs, 1 to 64.
    pub count: u8,
}

impl Default for CpuConfig {
    fn default() -> Self {
        Self { count: 1 }
    }
}

/// Guest memory, held in a sealed memfd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct MemoryConfig {
    /// Size in bytes, a multiple of the page size in use.
    pub size: u64,
    /// Which pages back it.
    #[serde(default)]
    pub pages: PageSize,
}

/// The size of the pages that back guest memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PageSize {
    /// Ordinary pages.
    #[default]
    #[serde(rename = "4k")]
    Small,
    /// Reserved huge pages of 2 MiB.
    #[serde(rename = "2m")]
    Huge2M,
    /// Reserved huge pages of 1 GiB.
    #[serde(rename = "1g")]
    Huge1G,
}

/// Direct boot of a kernel: a bzImage or an ELF with a PVH entry note, told apart by content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct BootConfig {
    /// The kernel.
    pub kernel: FileSource,
    /// The initial RAM disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<FileSource>,
    /// The kernel's command line.
    #[serde(default)]
    pub cmdline: String,
}

/// A disk: a virtio-blk device whose back end listens on a vhost-user socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct DiskConfig {
    /// The disk's id, unique in this VM.
    pub id: String,
    /// The back end's socket.
    pub socket: FileSource,
    /// `"bridge/slot"` or, on the root bus, `"slot"`; the first free one unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Request queues, 1 to 64; as many as vCPUs unless told, and never more than the back end has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<u16>,
    /// Entries of each queue: a power of two from 2 to 1,024.
    #[serde(default = "default_queue_size")]
    pub queue_size: u16,
}

fn default_queue_size() -> u16 {
    256
}

/// A network interface: a virtio-net device whose back end listens on a vhost-user socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct NicConfig {
    /// The interface's id, unique in this VM.
    pub id: String,
    /// The back end's socket.
    pub socket: FileSource,
    /// The hardware address, `02:…`.
    pub mac: String,
    /// `"bridge/slot"` or, on the root bus, `"slot"`; the first free one unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Pairs of receive and transmit queues, 1 to 32; one unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_pairs: Option<u16>,
    /// Entries of each queue: a power of two from 2 to 1,024.
    #[serde(default = "default_queue_size")]
    pub queue_size: u16,
    /// The MTU the guest is told, in bytes; none is told unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
}

/// Where the first serial port goes. Its output never blocks the guest; its input is never lost.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ConsoleConfig {
    /// Nowhere.
    #[default]
    Off,
    /// To this process's terminal, in raw mode; `Ctrl-]` leaves.
    Terminal,
    /// Appended to a file; there is no input.
    File(FileSource),
    /// To whoever connects to a UNIX socket that the VMM listens on; late-comers get the newest 64 KiB first.
    Socket(FileSource),
}

/// Where a VM is in its life.
///
/// ```text
/// described ──► built ──► running ◄──► paused
///                 │          │            │
///                 └──────────┴────────────┴──► stopped
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VmState {
    /// The configuration is checked; nothing exists yet.
    Described,
    /// Memory, vCPUs and devices exist; no vCPU has run.
    Built,
    /// The vCPUs run.
    Running,
    /// The vCPUs stand still and may go on.
    Paused,
    /// The guest has powered off or was stopped; the process ends.
    Stopped,
}

impl VmState {
    /// Whether the life of a VM may go from here to `next`.
    #[must_use]
    pub fn can_become(self, next: Self) -> bool {
        use VmState::{Built, Described, Paused, Running, Stopped};
        matches!(
            (self, next),
            (Described, Built)
                | (Built | Paused, Running)
                | (Running, Paused)
                | (Built | Running | Paused, Stopped)
        )
    }
}

/// A VM as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct VmDescription {
    /// The instance's id.
    pub id: String,
    /// The release of the process that answers.
    pub release: String,
    /// Its process id.
    pub pid: u32,
    /// Where the VM is in its life.
    pub state: VmState,
    /// The configuration as it is in force, addresses and queue counts filled in.
    pub config: VmConfig,
    /// The devices on the bus.
    pub devices: Vec<DeviceDescription>,
}

/// One device of the board.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DeviceDescription {
    /// The id from the configuration, or the built-in device's name.
    pub id: String,
    /// `virtio-blk`, `virtio-net`, `virtio-rng`.
    pub kind: String,
    /// Its address as a path: `"bridge/slot"`, or `"slot"` on the root bus.
    pub address: String,
    /// For a vhost-user device, whether its back end is there; `true` for others.
    pub connected: bool,
    /// How often the back end has come back since the start.
    pub reconnects: u64,
    /// Whether the guest's driver has taken the device.
    pub driver_ok: bool,
}

/// Counters of a VM since its start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct VmStatistics {
    /// Time since the vCPUs first ran, in nanoseconds.
    pub uptime_ns: u64,
    /// Resident memory of the process beyond the guest's memory, in bytes.
    pub overhead_bytes: u64,
    /// Resident guest memory, in bytes.
    pub guest_resident_bytes: u64,
    /// One entry per vCPU.
    pub vcpus: Vec<VcpuStatistics>,
}

/// Counters of one vCPU.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct VcpuStatistics {
    /// The vCPU's index.
    pub index: u8,
    /// Exits to user space by reason: `io-in`, `io-out`, `mmio-read`, `mmio-write`, `halt`, `interrupted`, …
    pub exits: BTreeMap<String, u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_config_reads_and_an_unknown_field_does_not() {
        let text = r#"{"id":"i-1","memory":{"size":268435456},"boot":{"kernel":{"path":"/k"}}}"#;
        let config: VmConfig = serde_json::from_str(text).unwrap();
        assert_eq!((config.board.as_str(), config.cpus.count, config.rng), ("i440fx-1", 1, true));
        let wrong = text.replace("\"id\"", "\"colour\":1,\"id\"");
        let error = serde_json::from_str::<VmConfig>(&wrong).unwrap_err().to_string();
        assert!(error.contains("unknown field `colour`"), "{error}");
    }
}
