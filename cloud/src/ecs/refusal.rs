//! How the API refuses: ECS's own codes and HTTP statuses, on which clients act.

use crate::plan;
use std::borrow::Cow;

/// One refusal. The envelope around it (RequestId, HostId) is the wire's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// ECS's code, such as `InvalidInstanceId.NotFound`.
    pub code: Cow<'static, str>,
    /// What is wrong, with the values at fault.
    pub message: String,
    /// What to do next; empty where the message says it all.
    pub recommend: &'static str,
}

impl Refusal {
    /// A refusal with any status.
    pub fn new(
        status: u16,
        code: impl Into<Cow<'static, str>>,
        message: impl Into<String>,
        recommend: &'static str,
    ) -> Self {
        Self { status, code: code.into(), message: message.into(), recommend }
    }

    /// The request cannot be meant like this (400).
    pub fn bad(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(400, code, message, "")
    }

    /// It is understood, and not allowed now or not allowed at all (403).
    pub fn denied(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(403, code, message, "")
    }

    /// What it names is not there, or is another tenant's (404).
    pub fn not_found(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(404, code, message, "")
    }

    /// The same refusal with what to do next.
    #[must_use]
    pub fn recommend(mut self, next: &'static str) -> Self {
        self.recommend = next;
        self
    }

    /// A mandatory parameter is absent.
    pub fn missing(name: &str) -> Self {
        Self::bad(
            "MissingParameter",
            format!(
                "The input parameter \"{name}\" that is mandatory for processing this request is \
                 not supplied."
            ),
        )
    }

    /// A parameter's value cannot be used; `why` begins with a small letter and is no sentence.
    pub fn invalid(name: &str, why: impl std::fmt::Display) -> Self {
        Self::bad(
            "InvalidParameter",
            format!("The specified parameter \"{name}\" is not valid: {why}."),
        )
    }

    /// The cloud itself failed; what happened is in its log under the request's id.
    pub fn internal() -> Self {
        Self::new(
            500,
            "InternalError",
            "The request processing has failed due to some unknown error.",
            "Look for the RequestId in the log of bixi-cloud.",
        )
    }
}

/// What a plan does not do, in ECS's words.
impl From<plan::Refusal> for Refusal {
    fn from(refusal: plan::Refusal) -> Self {
        use plan::Refusal as P;
        let message = sentence(&refusal);
        match refusal {
            P::NotFound { what, .. } => Self::not_found(not_found(what), message),
            // What a task works on is on its way into another status: clients wait and ask again.
            P::Status { .. } | P::Busy { .. } => Self::denied("IncorrectInstanceStatus", message),
            P::Quota { what, .. } => Self::bad(quota(what), message),
            P::NoStock(_) => Self::denied("OperationDenied.NoStock", message),
            P::Architecture { .. } => Self::denied("ImageNotSupportInstanceType", message),
            P::Invalid { .. } => Self::bad("InvalidParameter", message),
            P::Address(_) => Self::denied("InvalidIPAddress.AlreadyUsed", message),
            P::Protected(_) => Self::denied("InvalidOperation.DeletionProtection", message),
            P::TokenMismatch => Self::bad("IdempotentParameterMismatch", message),
            P::Exists { .. } => Self::bad("InvalidName.Duplicate", message),
            P::InUse(_) => Self::denied("OperationConflict", message),
        }
    }
}

/// A refusal's text with a capital and a full stop.
fn sentence(refusal: &plan::Refusal) -> String {
    let text = refusal.to_string();
    let mut characters = text.chars();
    let first = characters.next().map(|first| first.to_uppercase().to_string());
    format!("{}{}.", first.unwrap_or_default(), characters.as_str().trim_end_matches('.'))
}

fn not_found(what: &str) -> &'static str {
    match what {
        "instance" => "InvalidInstanceId.NotFound",
        "image" => "InvalidImageId.NotFound",
        "vswitch" => "InvalidVSwitchId.NotFound",
        "security group" => "InvalidSecurityGroupId.NotFound",
        "disk" => "InvalidDiskId.NotFound",
        "task" => "InvalidTaskId.NotFound",
        _ => "InvalidResource.NotFound",
    }
}

fn quota(what: &str) -> &'static str {
    match what {
        "instances" => "QuotaExceed.Instance",
        "vcpus" => "QuotaExceed.ElasticQuota",
        "memory-mib" => "QuotaExceed.Memory",
        "disks" => "QuotaExceed.Disk",
        "disk-gib" => "QuotaExceed.DiskCapacity",
        _ => "QuotaExceed",
    }
}
