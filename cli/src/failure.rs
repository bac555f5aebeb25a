//! Why a command failed: what is said about it, and the exit status.

use crate::output::printable;
use crate::profile::ProfileError;
use bixi_api::ecs::{EcsClientError, EcsRefusal};
use bixi_api::operator::OperatorClientError;
use bixi_release::ReleaseError;
use std::io;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The command line asks for something that cannot be.
    #[error("{0}")]
    Usage(String),
    /// What it names is not there.
    #[error("{0}")]
    NotFound(String),
    /// It was not seen to be done in time.
    #[error("{0}")]
    Timeout(String),
    /// It was tried, and failed.
    #[error("{0}")]
    Failed(String),
    /// The tenants' API.
    #[error(transparent)]
    Ecs(#[from] EcsClientError),
    /// The operators' API.
    #[error(transparent)]
    Operator(#[from] OperatorClientError),
    /// The profiles.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// An image.
    #[error(transparent)]
    Image(#[from] bixi_image::Error),
    /// A release.
    #[error(transparent)]
    Release(#[from] ReleaseError),
    /// A system call.
    #[error("cannot {action}: {source}")]
    System {
        /// What was attempted.
        action: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Failure {
    /// A system call failed while attempting `action`.
    pub fn system(action: impl Into<String>, source: io::Error) -> Self {
        Self::System { action: action.into(), source }
    }

    /// The exit status.
    pub fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::NotFound(_) | Self::Release(ReleaseError::NotInstalled(_)) => 3,
            Self::Timeout(_) => 4,
            Self::Ecs(EcsClientError::Refused(refusal)) if is_absent(refusal) => 3,
            Self::Operator(OperatorClientError::Refused(refusal)) if refusal.code == "NotFound" => {
                3
            }
            Self::Ecs(EcsClientError::Broken { source, .. })
            | Self::Operator(OperatorClientError::Broken { source, .. })
                if is_late(source.as_ref()) =>
            {
                4
            }
            Self::Ecs(EcsClientError::Connect { source, .. })
            | Self::Operator(OperatorClientError::Connect { source, .. })
                if source.kind() == io::ErrorKind::TimedOut =>
            {
                4
            }
            Self::Profile(ProfileError::Unknown { .. }) => 3,
            _ => 1,
        }
    }

    /// Says on the standard error stream what is wrong.
    pub fn report(&self) {
        eprintln!("{}", self.text());
    }

    fn text(&self) -> String {
        let mut text = format!("bixi: {}", printable(&self.to_string()));
        match self {
            Self::Ecs(EcsClientError::Refused(refusal)) => {
                text.push_str(&format!("\n  code: {}", printable(&refusal.code)));
                if !refusal.request_id.is_empty() {
                    text.push_str(&format!("\n  request: {}", printable(&refusal.request_id)));
                }
                text.push_str(next_step(&refusal.code));
            }
            Self::Operator(OperatorClientError::Refused(refusal)) => {
                text.push_str(&format!("\n  code: {}", printable(&refusal.code)));
                if refusal.code == "Unauthorized" {
                    text.push_str("\n  next: look whether the profile has this cloud's operator.token");
                }
            }
            Self::Ecs(EcsClientError::Connect { .. })
            | Self::Operator(OperatorClientError::Connect { .. }) => text.push_str(
                "\n  next: look whether bixi-cloud runs there, and whether the profile's authority is its ca.pem",
            ),
            _ => {}
        }
        text
    }
}

/// What ECS's documents leave to the reader.
fn next_step(code: &str) -> &'static str {
    match code {
        "InvalidInstanceType.ValueNotSupported" => "\n  next: `bixi type list`",
        "InvalidImageId.NotFound" => "\n  next: `bixi image list`",
        "InvalidInstanceId.NotFound" => "\n  next: `bixi instance list`",
        "IncorrectInstanceStatus" => "\n  next: `bixi task list` shows what is under way",
        "OperationDenied.NoStock" => {
            "\n  next: an operator sees by `bixi server list` what is free"
        }
        "InvalidOperation.DeletionProtection" => {
            "\n  next: the instance is protected from deletion"
        }
        "InvalidAccessKeyId.NotFound" | "SignatureDoesNotMatch" => {
            "\n  next: an operator makes a new key by `bixi key create TENANT --save PROFILE`"
        }
        "IllegalTimestamp" | "InvalidTimeStamp.Expired" => "\n  next: set this machine's clock",
        _ => "",
    }
}

fn is_absent(refusal: &EcsRefusal) -> bool {
    refusal.status == 404 || refusal.code.ends_with(".NotFound")
}

fn is_late(error: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    let io = error.downcast_ref::<io::Error>();
    io.is_some_and(|error| error.kind() == io::ErrorKind::TimedOut)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bixi_api::error::ApiError;

    fn refusal(status: u16, code: &str) -> Failure {
        let (code, message) = (code.to_owned(), "It is not so.\u{1b}[2J".to_owned());
        let (recommend, request_id) = ("Try again.".to_owned(), "R-1".to_owned());
        EcsClientError::from(EcsRefusal { status, code, message, recommend, request_id }).into()
    }

    #[test]
    fn each_failure_has_its_exit_status() {
        assert_eq!(Failure::Usage(String::new()).code(), 2);
        assert_eq!(refusal(404, "InvalidInstanceId.NotFound").code(), 3);
        assert_eq!(refusal(403, "IncorrectInstanceStatus").code(), 1);
        let absent = OperatorClientError::from(ApiError::new("NotFound", "no", ""));
        assert_eq!(Failure::from(absent).code(), 3);
        let source = io::Error::from(io::ErrorKind::TimedOut).into();
        let late = EcsClientError::Broken { cloud: String::new(), source };
        assert_eq!(Failure::from(late).code(), 4);
    }

    #[test]
    fn a_refusal_is_told_with_its_request_and_what_to_do() {
        let text = refusal(403, "IncorrectInstanceStatus").text();
        assert!(text.contains("Try again.") && text.contains("request: R-1"), "{text}");
        assert!(text.contains("bixi task list"), "{text}");
        assert!(!text.contains('\u{1b}'), "a control character came through");
    }
}
