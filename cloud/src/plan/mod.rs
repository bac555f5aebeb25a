//! What the cloud decides, as pure functions from a view to a draft: no clock, no randomness, no store.
//!
//! ```text
//!   a request  ──► create, power, tenancy ──┐
//!   a report   ──► observe ─────────────────┼──► Draft ──► one transaction, or a conflict and a new plan
//!   nothing    ──► reconcile (task, settle) ┘
//!   the view   ──► desired ──► what a server is to do
//! ```
//!
//! Invariants: every draft is whole: a cloud that dies between any two of them goes on with the next. Whatever changes
//! at a server changes through `desired` and is known through `observe` alone; so a message that is lost or comes twice
//! changes nothing but time.

pub mod create;
pub mod desired;
pub mod launch;
pub mod observe;
pub mod power;
pub mod progress;
pub mod reconcile;
pub mod schedule;
#[cfg(test)]
pub(crate) mod simulation;
pub mod task;
pub mod tenancy;

use crate::model::ids;
use crate::model::{Event, Severity};

/// What a plan needs of the world.
pub struct Context<'a> {
    /// Milliseconds since 1970.
    pub now: u64,
    /// Where ids come from.
    pub ids: &'a mut dyn ids::Source,
}

impl std::fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("now", &self.now).finish_non_exhaustive()
    }
}

impl Context<'_> {
    /// An event of now.
    pub fn event(
        &mut self,
        tenant: Option<&str>,
        subject: &str,
        kind: &str,
        severity: Severity,
        message: String,
    ) -> Event {
        let rest = self.ids.characters(b"0123456789abcdefghijklmnopqrstuvwxyz", 7);
        Event {
            id: format!("e-{:013}{rest}", self.now),
            at: self.now,
            tenant: tenant.map(str::to_owned),
            subject: subject.to_owned(),
            kind: kind.to_owned(),
            message,
            severity,
            task: None,
        }
    }
}

/// Why a request is not done. Each kind is one code of each interface.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such thing, or it is another tenant's.
    #[error("there is no {what} {id}")]
    NotFound {
        /// `instance`, `image`, `vswitch`, `security group`, `disk`, `tenant`, `server`, `task`.
        what: &'static str,
        /// What was asked for.
        id: String,
    },
    /// The instance's status does not allow it.
    #[error("instance {id} is {status}: {hint}")]
    Status {
        /// The instance.
        id: String,
        /// Its status, as ECS writes it.
        status: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// A task works on the instance.
    #[error("task {task} works on instance {id}: wait for it or cancel it")]
    Busy {
        /// The instance.
        id: String,
        /// The task.
        task: String,
    },
    /// The tenant has as much as it may have.
    #[error(
        "the quota of {what} is {limit}, {used} are used and {wanted} more were asked for: delete some, or ask the operator for more"
    )]
    Quota {
        /// `instances`, `vcpus`, `memory-mib`, `disks`, `disk-gib`.
        what: &'static str,
        /// The quota.
        limit: u64,
        /// What is used.
        used: u64,
        /// What was asked for.
        wanted: u64,
    },
    /// No server can take it.
    #[error("no server can take it: {0}")]
    NoStock(String),
    /// The image cannot run on what the type is.
    #[error(
        "image {image} is for {is}, and the type is {needs}: take an image or a type of the other's architecture"
    )]
    Architecture {
        /// The image.
        image: String,
        /// What it is for.
        is: String,
        /// What the type is.
        needs: String,
    },
    /// A value is not possible.
    #[error("{parameter}: {message}")]
    Invalid {
        /// Which, as ECS names it.
        parameter: &'static str,
        /// What is wrong and what would be right.
        message: String,
    },
    /// The address is another interface's.
    #[error("{0}")]
    Address(String),
    /// Deletion is protected.
    #[error("instance {0} is protected against deletion: lift the protection first")]
    Protected(String),
    /// The ClientToken was used with other parameters.
    #[error("the ClientToken was used for another request: use a new one")]
    TokenMismatch,
    /// A name is taken.
    #[error("{what} {name} exists already: choose another name")]
    Exists {
        /// What.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// Something still uses it.
    #[error("{0}")]
    InUse(String),
}
