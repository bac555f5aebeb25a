//! What is said between `bixi-agent`, one on each server, and `bixi-cloud`.
//!
//! The agent is the client, the cloud the server: HTTPS (HTTP/1.1, JSON bodies), both sides with a certificate of the
//! cloud's own authority. The cloud shows a certificate for [`CLOUD_NAME`] and sends its authority's certificate along;
//! the agent's is issued by `join`, for the client's part of TLS only, and the cloud knows the server by it.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `POST /agent/v1/join` | [`JoinRequest`] | [`JoinAnswer`]; the only one that needs no client certificate |
//! | `POST /agent/v1/renew` | [`RenewRequest`] | [`RenewAnswer`] |
//! | `GET /agent/v1/desired?after=REV&wait=SECONDS` | | [`DesiredState`], or 204 if the revision is still `REV` after so long |
//! | `POST /agent/v1/report` | [`Report`] | `null` |
//! | `GET /agent/v1/images/{id}` | | the bytes, with `content-length` and [`SHA256_HEADER`] |
//! | `POST /agent/v1/streams/{id}` | | 101, and from then on the raw bytes of an instance's console, both ways |
//!
//! `desired` is answered at once if the revision is any other than `REV`; 0 is never a revision. A stream is opened with
//! `connection: upgrade` and `upgrade: `[`STREAM_PROTOCOL`]; it ends when either side closes it.
//!
//! What is desired is whole: it replaces what was desired before. An instance that it leaves out is **not** stopped or
//! deleted for that: it stays as it is and stays in the reports, so that a cloud that lost its memory harms nobody. To
//! get rid of one, desire it [`Power::Deleted`] until it is reported [`InstanceState::Deleted`]; then leave it out, and
//! the agent forgets it.
//!
//! **What is started, and how often.** A start is named by the placement's epoch and the boot generation. The agent
//! starts each such pair once, writes it down durably before, and refuses a lower epoch for ever. A guest that powered
//! off, a VMM that died and a server that lost its power are therefore reported [`InstanceState::Stopped`] and are not
//! started again until the cloud raises the boot generation (same server) or the epoch (new placement). While an
//! instance runs, a higher boot generation or epoch is a reboot, in the way that [`DesiredInstance::stop`] says.
//!
//! Types here refuse unknown fields in what is asked for, in both directions: a field that an older agent does not know
//! may be a limit that it would not keep. The agent then goes on with the last state that it understood and says so in
//! [`Report::refused`]. So the cloud sends a new field only to agents whose [`Report::release`] knows it.

#[cfg(feature = "agent-client")]
mod client;
#[cfg(feature = "agent-client")]
mod tls;
mod token;
mod validity;

#[cfg(feature = "agent-client")]
pub use client::{AgentClient, AgentClientError, Credentials, ImageStream, connect_to_join};
#[cfg(feature = "agent-client")]
pub use tls::TlsError;
pub use token::{JoinToken, TokenError};
pub use validity::Validity;

use crate::error::ApiError;
use crate::network::SegmentConfig;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// The name in the cloud's certificate, whatever its address is.
pub const CLOUD_NAME: &str = "bixi-cloud";
/// The header with the SHA-256 of an image, in hexadecimal.
pub const SHA256_HEADER: &str = "x-bixi-sha256";
/// What a console stream is upgraded to.
pub const STREAM_PROTOCOL: &str = "bixi-stream";
/// The longest that `desired` may be asked to wait, in seconds.
pub const WAIT_LIMIT: u64 = 60;

/// A server asks to become one of the cloud's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct JoinRequest {
    /// The secret of the [`JoinToken`]; good once.
    pub secret: String,
    /// The server's name, unique in the cloud: 1 to 63 letters, digits and `-`.
    pub name: String,
    /// A PKCS#10 request in PEM. Of it only the public key counts, and the proof that the sender has the private one.
    pub csr_pem: String,
}

/// The server is one of the cloud's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct JoinAnswer {
    /// The server's id, for ever.
    pub server_id: String,
    /// The agent's certificate.
    pub certificate_pem: String,
    /// The authority's certificate; its SHA-256 is that of the token.
    pub ca_pem: String,
    /// When the agent's certificate is good; clouds that do not tell gave one without an end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validity: Option<Validity>,
}

/// The server needs a new certificate. The present one is taken until the new one was shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RenewRequest {
    /// As in [`JoinRequest`].
    pub csr_pem: String,
}

/// The server's new certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RenewAnswer {
    /// The agent's certificate.
    pub certificate_pem: String,
    /// When it is good.
    pub validity: Validity,
}

/// All that one server is to do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct DesiredState {
    /// The server that is meant; an agent refuses another's.
    pub server: String,
    /// Other than before whenever anything is; never 0.
    pub revision: u64,
    /// The instances placed on this server.
    #[serde(default)]
    pub instances: Vec<DesiredInstance>,
    /// The segments that their interfaces are in.
    #[serde(default)]
    pub segments: Vec<DesiredSegment>,
    /// Consoles that somebody waits for; each is answered with a stream, once.
    #[serde(default)]
    pub streams: Vec<WantedStream>,
}

/// One instance as it is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct DesiredInstance {
    /// The instance's id: 1 to 64 letters, digits, `-` or `_`.
    pub id: String,
    /// The placement's epoch, from 1.
    pub epoch: u64,
    /// Whether it is to run.
    pub power: Power,
    /// Which start is wanted, from 1: see the module.
    pub boot: u64,
    /// How it is stopped, when it is stopped, rebooted or deleted.
    pub stop: StopMode,
    /// What its type gives it.
    pub limits: InstanceLimits,
    /// What it boots.
    pub source: BootSource,
    /// Its disks, in the guest's order.
    pub disks: Vec<DesiredDisk>,
    /// Its interfaces, in the guest's order.
    pub nics: Vec<DesiredNic>,
    /// What the NoCloud disk says; there is none unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cidata: Option<Cidata>,
    /// What the metadata service answers: documents by path, without the leading `/`.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
}

/// Whether an instance is to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Power {
    /// It runs.
    Running,
    /// It does not run; its disks stay.
    Stopped,
    /// It is gone, with those disks that go with it.
    Deleted,
}

/// How a running guest is brought to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "kebab-case", deny_unknown_fields)]
pub enum StopMode {
    /// The power button is pressed; a guest that is still there after the deadline loses its power.
    Orderly {
        /// Seconds from the button to the loss of power.
        deadline_seconds: u32,
    },
    /// It loses its power at once.
    Forced,
}

/// What an instance's type gives it. Rates that are not told are not limited; the card holds an instance to those that it
/// was started with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct InstanceLimits {
    /// Virtual CPUs, 1 to 64.
    pub vcpus: u8,
    /// Memory in bytes.
    pub memory: u64,
    /// Packets a second of all interfaces, each direction: each interface gets an equal part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nic_packets: Option<u64>,
    /// Bits a second of all interfaces, each direction: each interface gets an equal part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nic_bits: Option<u64>,
    /// Requests a second of each disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_iops: Option<u64>,
}

/// What an instance boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum BootSource {
    /// A kernel of the image's bundle, loaded by the VMM; the disks are those of [`DesiredInstance::disks`].
    Kernel {
        /// A bzImage or an ELF with a PVH entry note.
        kernel: ImageFile,
        /// The initial RAM disk.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        initrd: Option<ImageFile>,
        /// The kernel's command line.
        cmdline: String,
    },
}

/// A file that the cloud gives out under `/agent/v1/images/{id}`; it never changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ImageFile {
    /// Its id: 1 to 64 letters, digits, `-`, `_` or `.`, beginning with a letter or digit.
    pub id: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its SHA-256, in 64 lower-case hexadecimal digits.
    pub sha256: String,
}

/// A disk of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct DesiredDisk {
    /// The disk's id: a prefix, `-` and 20 letters or digits.
    pub id: String,
    /// Its size in bytes, a multiple of 512 and not less than the image's.
    pub size: u64,
    /// The raw image it begins with; zeroes unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageFile>,
    /// What it is for.
    pub role: DiskRole,
    /// Whether it goes when the instance is deleted.
    pub delete_with_instance: bool,
}

/// What a disk is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskRole {
    /// The system is on it.
    System,
    /// Anything else.
    Data,
}

/// An interface of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct DesiredNic {
    /// The ENI's id.
    pub id: String,
    /// Its hardware address, `02:…`.
    pub mac: String,
    /// Its address.
    pub ipv4: Ipv4Addr,
    /// The segment it is in: a VXLAN network identifier that [`DesiredState::segments`] has.
    pub segment: u32,
}

/// A segment that interfaces of this server are in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct DesiredSegment {
    /// The VXLAN network identifier.
    pub vni: u32,
    /// What the card is to know of it.
    pub config: SegmentConfig,
}

/// The files of the NoCloud disk, word for word.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Cidata {
    /// The disk's id: a prefix, `-` and 20 letters or digits. It is made anew at every start and goes with the instance.
    pub disk: String,
    /// `meta-data`: the instance's id, name and keys.
    pub meta_data: String,
    /// `user-data`.
    #[serde(default)]
    pub user_data: String,
    /// `network-config`, version 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_config: Option<String>,
}

/// A console that somebody waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct WantedStream {
    /// The stream's id: it is opened once, whatever becomes of it.
    pub id: String,
    /// Whose console.
    pub instance: String,
}

/// What one server is and does now. Sent whenever something changed, and now and then as a sign of life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Report {
    /// The release of the agent.
    pub release: String,
    /// What the server has.
    pub inventory: Inventory,
    /// The revision of the desired state that the agent works on; 0 for none.
    pub applied: u64,
    /// Why a newer desired state is not worked on, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<ApiError>,
    /// Every instance that the agent knows, desired or not.
    pub instances: Vec<ObservedInstance>,
    /// The card processes.
    pub cards: Vec<ObservedCard>,
}

/// What a server has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Inventory {
    /// Processors that are online.
    pub cores: u32,
    /// Memory in bytes.
    pub memory: u64,
    /// Memory that instances may still get, in bytes: available, less what running ones have not touched yet.
    pub memory_free: u64,
    /// What kind of KVM there is.
    pub kvm: KvmKind,
    /// The processor's model.
    pub cpu: String,
    /// The kernel's release.
    pub kernel: String,
    /// Changes with every boot of the server.
    pub boot_id: String,
    /// Size of the file system that holds the disks, in bytes.
    pub disk: u64,
    /// Of it free, in bytes.
    pub disk_free: u64,
    /// This server's tunnel end point, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub underlay: Option<std::net::SocketAddr>,
    /// `x86_64` or `arm64`. Agents that do not tell are of the releases that ran on the former alone.
    #[serde(default = "x86_64")]
    pub architecture: String,
    /// What this server lacks, one sentence each with what to do: for example a writable cgroup v2.
    #[serde(default)]
    pub lacks: Vec<String>,
}

fn x86_64() -> String {
    "x86_64".to_owned()
}

/// What kind of KVM a server has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KvmKind {
    /// Intel's VMX.
    Vmx,
    /// AMD's SVM.
    Svm,
    /// A KVM without hardware support: small guests only.
    Software,
    /// None that can be used.
    #[default]
    None,
}

/// An instance as the agent sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ObservedInstance {
    /// The instance's id.
    pub id: String,
    /// The epoch that the agent has accepted last.
    pub epoch: u64,
    /// The boot generation that was started last; 0 for none.
    pub boot: u64,
    /// Where it is in its life on this server.
    pub state: InstanceState,
    /// Why it is not as desired, if it is not: what went wrong last and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ApiError>,
    /// How it ended last, once it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Ending>,
    /// How far what takes long is, while it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// How long each phase of its last start took, in order.
    #[serde(default)]
    pub phases: Vec<PhaseTime>,
    /// When the steps of its last start were seen, in order, if this agent has seen them: `accepted`, `images`, `disks`,
    /// `network`, `released`, `running`, `first-packet`.
    #[serde(default)]
    pub moments: Vec<Moment>,
    /// Breaks that it has felt and that no report has carried yet. A report that fails is sent again with them: who
    /// receives tells them apart by `sequence`.
    #[serde(default)]
    pub ledger: Vec<LedgerEntry>,
}

/// Where an instance is in its life on one server.
///
/// ```text
///  preparing ──► starting ──► running ──► stopping
///    ▲    │          │           │            │
///    │    ▼          ▼           ▼            ▼
///    └─ stopped ◄────┴───────────┴────────────┘
///          │
///          └──► deleting ──► deleted              (preparing may become deleting too)
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InstanceState {
    /// Images, disks and ports are being made for its start.
    Preparing,
    /// Its VMM is being started.
    Starting,
    /// It runs.
    Running,
    /// It is being brought to its end.
    Stopping,
    /// It does not run.
    Stopped,
    /// What it has here is being removed.
    Deleting,
    /// Nothing of it is here any more.
    Deleted,
}

impl InstanceState {
    /// Whether the life of an instance may go from here to `next`.
    #[must_use]
    pub fn can_become(self, next: Self) -> bool {
        use InstanceState::{Deleted, Deleting, Preparing, Running, Starting, Stopped, Stopping};
        matches!(
            (self, next),
            (Preparing, Starting | Stopped | Deleting)
                | (Starting, Running | Stopping | Stopped)
                | (Running, Stopping | Stopped)
                | (Stopping, Stopped)
                | (Stopped, Preparing | Deleting)
                | (Deleting, Deleted)
        )
    }
}

/// How a run of an instance ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Ending {
    /// The guest powered off by itself.
    PoweredOff,
    /// It was stopped because that was desired.
    Stopped {
        /// Whether the guest did not go by itself and lost its power.
        forced: bool,
    },
    /// The VMM failed.
    Failed {
        /// What it said last, and its exit code or signal.
        reason: String,
    },
    /// It was gone when the agent came back: the guest powered off, the VMM failed, or somebody ended it.
    Unseen,
    /// The server was restarted.
    ServerRestarted,
}

/// How far something is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Progress {
    /// What is being done: `image`, `disk`.
    pub what: String,
    /// Bytes done.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

/// How long one phase of a start took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PhaseTime {
    /// `images`, `disks`, `network`, `vmm`.
    pub phase: String,
    /// Its length in milliseconds.
    pub milliseconds: u64,
}

/// When a step of a start was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Moment {
    /// Which.
    pub what: String,
    /// In milliseconds since 1970, by the clock of whoever saw it.
    pub at: u64,
}

/// One disturbance of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct LedgerEntry {
    /// Grows by one with each entry of the instance on this server, from 1.
    pub sequence: u64,
    /// When it began, in milliseconds since 1970.
    pub at: u64,
    /// `storage-restart`, `network-restart`.
    pub cause: String,
    /// Its length in milliseconds.
    pub milliseconds: u64,
}

/// A card process as the agent sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ObservedCard {
    /// `storage` or `network`.
    pub name: String,
    /// Its process id, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// The release it reports, while it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<String>,
    /// How often the agent has started it again since the server's boot.
    pub restarts: u64,
    /// Why it does not run, if it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ApiError>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_desired_state_reads_and_an_unknown_field_anywhere_in_it_does_not() {
        let text = r#"{"server":"s-1","revision":3,
            "instances":[{"id":"i-1","epoch":1,"power":"running","boot":1,
              "stop":{"orderly":{"deadline-seconds":30}},
              "limits":{"vcpus":1,"memory":268435456},
              "source":{"kernel":{"kernel":{"id":"m-1.kernel","size":1,"sha256":"00"},"cmdline":"quiet"}},
              "disks":[{"id":"d-0123456789abcdefghij","size":512,"role":"system","delete-with-instance":true}],
              "nics":[{"id":"eni-1","mac":"02:00:00:00:00:01","ipv4":"10.0.0.5","segment":7}],
              "cidata":{"disk":"d-0123456789abcdefghik","meta-data":"instance-id: i-1"}}],
            "segments":[{"vni":7,"config":{"generation":1,"network":"10.0.0.0","prefix-len":24,"mtu":1450}}],
            "streams":[{"id":"c-1","instance":"i-1"}]}"#;
        let state: DesiredState = serde_json::from_str(text).unwrap();
        let again = serde_json::from_str(&serde_json::to_string(&state).unwrap()).unwrap();
        assert_eq!(state, again);
        for field in
            ["\"server\"", "\"id\"", "\"vcpus\"", "\"cmdline\"", "\"vni\"", "\"prefix-len\""]
        {
            let wrong = text.replacen(field, &format!("\"colour\":1,{field}"), 1);
            let error = serde_json::from_str::<DesiredState>(&wrong).unwrap_err().to_string();
            assert!(error.contains("unknown field `colour`"), "{field}: {error}");
        }
    }

    #[test]
    fn a_server_that_tells_no_architecture_is_x86_64() {
        let inventory = Inventory { architecture: "arm64".to_owned(), ..Inventory::default() };
        let mut told = serde_json::to_value(&inventory).unwrap();
        assert_eq!(serde_json::from_value::<Inventory>(told.clone()).unwrap(), inventory);
        told.as_object_mut().unwrap().remove("architecture");
        let older: Inventory = serde_json::from_value(told).unwrap();
        assert_eq!(older.architecture, "x86_64");
    }

    #[test]
    fn a_deleted_instance_comes_from_nowhere_but_its_deletion() {
        use InstanceState::{Deleted, Deleting, Preparing, Running, Starting, Stopped, Stopping};
        let all = [Preparing, Starting, Running, Stopping, Stopped, Deleting, Deleted];
        for from in all {
            assert_eq!(from.can_become(Deleted), from == Deleting);
            assert!(!Deleted.can_become(from) && !from.can_become(from));
            assert_eq!(from.can_become(Running), from == Starting, "{from:?}");
        }
    }
}
