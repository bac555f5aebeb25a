//! What operators say to `bixi-cloud`: servers, tenants, images, and everything that ECS hides from tenants.
//!
//! HTTPS (HTTP/1.1, JSON bodies) with `authorization: Bearer TOKEN`; the token is in the cloud's state directory. A
//! refusal is the envelope of [`crate::error`]. The OpenAPI document is at `GET /v1/openapi.json`, without a token.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /v1/cloud` | | [`CloudDescription`] |
//! | `GET /v1/servers` | | `[`[`ServerDescription`]`]` |
//! | `GET /v1/servers/{id or name}` | | [`ServerDescription`] |
//! | `PATCH /v1/servers/{id or name}` | [`ServerChange`] | [`ServerDescription`] |
//! | `DELETE /v1/servers/{id or name}` | | `null` |
//! | `POST /v1/join-tokens` | | [`JoinTokenDescription`] |
//! | `GET /v1/tenants` | | `[`[`TenantDescription`]`]` |
//! | `POST /v1/tenants` | [`TenantCreate`] | [`TenantDescription`] |
//! | `PATCH /v1/tenants/{id or name}` | [`TenantChange`] | [`TenantDescription`] |
//! | `DELETE /v1/tenants/{id or name}` | | `null` |
//! | `GET /v1/tenants/{id or name}/access-keys` | | `[`[`AccessKeyDescription`]`]`, without secrets |
//! | `POST /v1/tenants/{id or name}/access-keys` | | [`AccessKeyDescription`], with its secret, once |
//! | `DELETE /v1/access-keys/{id}` | | `null` |
//! | `GET /v1/images` | | `[`[`ImageDescription`]`]` |
//! | `POST /v1/images` | [`ImageCreate`] | [`ImageDescription`] |
//! | `PUT /v1/images/{id}/{disk, kernel or initrd}` | the bytes, with [`crate::agent::SHA256_HEADER`] | [`ImageDescription`] |
//! | `PUT /v1/images/{id}/available` | | [`ImageDescription`] |
//! | `DELETE /v1/images/{id}` | | `null` |
//! | `GET /v1/instances` | | `[`[`InstanceDescription`]`]` |
//! | `GET /v1/instances/{id}` | | [`InstanceDescription`] |
//! | `POST /v1/instances/{id}/{start, stop, reboot or delete}` | [`PowerRequest`] | [`TaskDescription`] |
//! | `GET /v1/instances/{id}/ledger` | | `[`[`LedgerDescription`]`]` |
//! | `POST /v1/instances/{id}/console` | | 101, then the raw bytes of its console, both ways |
//! | `POST /v1/schedule` | [`ScheduleQuestion`] | [`ScheduleAnswer`] |
//! | `GET /v1/tasks`, `GET /v1/tasks/{id}` | | [`TaskDescription`] |
//! | `DELETE /v1/tasks/{id}` | | [`TaskDescription`]: somebody wants it to end |
//! | `GET /v1/events?after=ID&follow=BOOL` | | `[`[`EventDescription`]`]`, or a stream of them (SSE) |

#[cfg(feature = "operator-client")]
mod client;

#[cfg(feature = "operator-client")]
pub use client::{OperatorClient, OperatorClientError};

use crate::agent::Inventory;
use serde::{Deserialize, Serialize};

/// Derives what every type here has.
macro_rules! words {
    ($($(#[$doc:meta])* pub struct $name:ident { $($(#[$fdoc:meta])* pub $field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        #[serde(rename_all = "kebab-case", deny_unknown_fields)]
        pub struct $name {
            $($(#[$fdoc])* pub $field: $type,)*
        }
    )*};
}

words! {
    /// The cloud as it is now.
    pub struct CloudDescription {
        /// The release of the process that answers.
        pub release: String,
        /// Its process id.
        pub pid: u32,
        /// The region that tenants see.
        pub region: String,
        /// Its zone.
        pub zone: String,
        /// The revision of its state.
        pub revision: u64,
        /// Servers that joined.
        pub servers: usize,
        /// Servers that were heard lately.
        pub servers_alive: usize,
        /// Instances there are.
        pub instances: usize,
        /// Tasks that have not ended.
        pub tasks: usize,
    }

    /// A server as it is now.
    pub struct ServerDescription {
        /// Its id.
        pub id: String,
        /// Its name.
        pub name: String,
        /// When it joined, in milliseconds since 1970.
        pub joined: u64,
        /// Whether new instances may come here.
        pub schedulable: bool,
        /// Whether its agent was heard lately.
        pub alive: bool,
        /// How long ago it was heard, in milliseconds, if since the cloud was started.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub heard: Option<u64>,
        /// The release of its agent.
        pub release: String,
        /// Instances placed here.
        pub instances: usize,
        /// vCPUs promised here.
        pub used_vcpus: u64,
        /// vCPUs that may be promised here.
        pub vcpus: u64,
        /// Memory promised here, in MiB.
        pub used_memory_mib: u64,
        /// Memory that may be promised here, in MiB.
        pub memory_mib: u64,
        /// What it told of itself last, since the cloud was started.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
        pub inventory: Option<Inventory>,
        /// Its card processes, as it told of them last.
        #[cfg_attr(feature = "openapi", schema(value_type = Vec<Object>))]
        pub cards: Vec<crate::agent::ObservedCard>,
        /// Why it does not work on what the cloud wants, if it does not.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub refused: Option<String>,
    }

    /// What is to change at a server.
    pub struct ServerChange {
        /// Whether new instances may come here.
        pub schedulable: bool,
    }

    /// A token by which one server can join.
    pub struct JoinTokenDescription {
        /// The token; nobody is shown it again.
        pub token: String,
        /// When it ends, in milliseconds since 1970.
        pub expires: u64,
    }

    /// How much a tenant may have at once.
    pub struct QuotaDescription {
        /// Instances.
        pub instances: u64,
        /// vCPUs of all instances.
        pub vcpus: u64,
        /// Memory of all instances in MiB.
        pub memory_mib: u64,
        /// Disks.
        pub disks: u64,
        /// Size of all disks in GiB.
        pub disk_gib: u64,
    }

    /// A new tenant.
    pub struct TenantCreate {
        /// Its name: 1 to 63 letters, digits and `-`.
        pub name: String,
        /// How much it may have; a usual amount unless told.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub quota: Option<QuotaDescription>,
    }

    /// What is to change at a tenant.
    pub struct TenantChange {
        /// How much it may have.
        pub quota: QuotaDescription,
    }

    /// A tenant.
    pub struct TenantDescription {
        /// Its id.
        pub id: String,
        /// Its name.
        pub name: String,
        /// When it was made, in milliseconds since 1970.
        pub created: u64,
        /// How much it may have.
        pub quota: QuotaDescription,
        /// How much it has.
        pub used: QuotaDescription,
        /// The VPC it was made with.
        pub default_vpc: String,
        /// That VPC's vSwitch.
        pub default_vswitch: String,
        /// That VPC's security group.
        pub default_security_group: String,
    }

    /// An access key.
    pub struct AccessKeyDescription {
        /// Its public half.
        pub id: String,
        /// Its secret half: shown once, when it is made.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub secret: Option<String>,
        /// Whose it is.
        pub tenant: String,
        /// When it was made, in milliseconds since 1970.
        pub created: u64,
    }

    /// A new image, without its files.
    pub struct ImageCreate {
        /// Its name, unique among the images of its owner.
        pub name: String,
        /// What it is.
        #[serde(default)]
        pub description: String,
        /// Whose it is, id or name; everybody's unless told.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub tenant: Option<String>,
        /// `x86_64` or `arm64`.
        pub architecture: String,
        /// The system's name, for people.
        pub os_name: String,
        /// The kernel's command line.
        #[serde(default)]
        pub cmdline: String,
    }

    /// An image.
    pub struct ImageDescription {
        /// Its id.
        pub id: String,
        /// Its name.
        pub name: String,
        /// What it is.
        pub description: String,
        /// Whose it is; everybody's if nobody's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub tenant: Option<String>,
        /// `x86_64` or `arm64`.
        pub architecture: String,
        /// The system's name, for people.
        pub os_name: String,
        /// The kernel's command line.
        pub cmdline: String,
        /// When it was made, in milliseconds since 1970.
        pub created: u64,
        /// Whether instances can be made of it.
        pub available: bool,
        /// Its files.
        pub files: Vec<ImageFileDescription>,
    }

    /// A file of an image.
    pub struct ImageFileDescription {
        /// `disk`, `kernel` or `initrd`.
        pub part: String,
        /// Its size in bytes.
        pub size: u64,
        /// Its SHA-256, in hexadecimal.
        pub sha256: String,
    }

    /// An instance as the operator sees it.
    pub struct InstanceDescription {
        /// Its id.
        pub id: String,
        /// Whose it is.
        pub tenant: String,
        /// Its name.
        pub name: String,
        /// Its type.
        pub instance_type: String,
        /// Its image.
        pub image: String,
        /// What tenants are told: `Pending`, `Starting`, `Running`, `Stopping`, `Stopped`.
        pub status: String,
        /// Where it is.
        pub server: String,
        /// The placement's epoch.
        pub epoch: u64,
        /// Which start is wanted.
        pub boot: u64,
        /// `running`, `stopped` or `deleted`.
        pub desired: String,
        /// What its server told last.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub observed: Option<String>,
        /// What went wrong at its server last, if something did.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub error: Option<String>,
        /// How it ended last.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub ended: Option<String>,
        /// The task that works on it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub task: Option<String>,
        /// Its virtual CPUs.
        pub vcpus: u32,
        /// Its memory in MiB.
        pub memory_mib: u64,
        /// Its addresses.
        pub addresses: Vec<String>,
        /// Its disks.
        pub disks: Vec<String>,
        /// When it was made, in milliseconds since 1970.
        pub created: u64,
        /// When it was last seen to start, in milliseconds since 1970; 0 for never.
        pub started: u64,
        /// How long each phase of its last start took, in order.
        #[cfg_attr(feature = "openapi", schema(value_type = Vec<Object>))]
        pub phases: Vec<crate::agent::PhaseTime>,
        /// When the steps of its last start were seen, as its server told since the cloud was started; `requested` is the
        /// cloud's.
        #[cfg_attr(feature = "openapi", schema(value_type = Vec<Object>))]
        pub moments: Vec<crate::agent::Moment>,
    }

    /// What is asked of an instance.
    pub struct PowerRequest {
        /// Whether the guest loses its power at once, and a running instance may be deleted.
        #[serde(default)]
        pub force: bool,
    }

    /// A task.
    pub struct TaskDescription {
        /// Its id.
        pub id: String,
        /// Whose it is.
        pub tenant: String,
        /// The instance.
        pub instance: String,
        /// `run`, `start`, `stop`, `reboot`, `delete`.
        pub kind: String,
        /// `accepted`, `waiting`, `undoing`, `done`, `failed`, `cancelled`.
        pub step: String,
        /// How far it is, in percent.
        pub progress: u8,
        /// When it was made, in milliseconds since 1970.
        pub created: u64,
        /// When it last went on, in milliseconds since 1970.
        pub updated: u64,
        /// When it must be done, in milliseconds since 1970.
        pub deadline: u64,
        /// Why it did not bring about what it should.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub failure: Option<String>,
    }

    /// Something that happened.
    pub struct EventDescription {
        /// Its id.
        pub id: String,
        /// When, in milliseconds since 1970.
        pub at: u64,
        /// Whose affair it is, if a tenant's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub tenant: Option<String>,
        /// The instance or server.
        pub subject: String,
        /// A stable word.
        pub kind: String,
        /// For people.
        pub message: String,
        /// `info`, `warning` or `error`.
        pub severity: String,
        /// The task that it ends, if any.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub task: Option<String>,
    }

    /// One break that an instance has felt.
    pub struct LedgerDescription {
        /// The server that told.
        pub server: String,
        /// The server's number of it.
        pub sequence: u64,
        /// When it began, in milliseconds since 1970.
        pub at: u64,
        /// Its cause.
        pub cause: String,
        /// Its length in milliseconds.
        pub milliseconds: u64,
    }

    /// Where would it be placed?
    pub struct ScheduleQuestion {
        /// Virtual CPUs.
        pub vcpus: u64,
        /// Memory in MiB.
        pub memory_mib: u64,
        /// Size of its disks in GiB.
        pub disk_gib: u64,
        /// `x86_64` or `arm64`.
        pub architecture: String,
    }

    /// Where it would be placed, and why not elsewhere.
    pub struct ScheduleAnswer {
        /// The server, if any can.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub chosen: Option<String>,
        /// What was decided about each server, best first.
        pub servers: Vec<ScheduleVerdict>,
    }

    /// What was decided about one server.
    pub struct ScheduleVerdict {
        /// The server.
        pub server: String,
        /// How good it is; more is better.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub score: Option<u64>,
        /// Why it cannot take it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub reason: Option<String>,
    }
}
