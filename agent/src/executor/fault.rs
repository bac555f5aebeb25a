//! Why an action could not be done, on its way to the operator.

use crate::record::RecordError;
use bixi_api::agent::AgentClientError;
use bixi_api::client::ClientError;
use bixi_api::error::ApiError;
use std::io;

/// Why an action could not be done.
#[derive(Debug)]
pub struct Fault(ApiError);

/// An error with its causes, as one line.
pub fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let next = cause.to_string();
        // A transparent error repeats its cause.
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        source = cause.source();
    }
    text
}

impl Fault {
    /// A fault with a code that programs match on, what is wrong and what to do.
    pub fn new(code: &str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self(ApiError::new(code, message, hint))
    }

    /// Something that should not be.
    pub fn internal(error: &dyn std::error::Error) -> Self {
        Self::new("Internal", format!("{}.", describe(error)), "Please report this.")
    }

    /// The file system refused; `what` was being done.
    pub fn io(what: &str, error: &io::Error) -> Self {
        let message = format!("cannot {what}: {error}.");
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::full(message),
            _ => Self::new("FileFault", message, "Look at the agent's file systems and its log."),
        }
    }

    /// There is no room.
    pub fn full(message: String) -> Self {
        Self::new("NoSpace", message, "Make room on this server, or place the instance elsewhere.")
    }

    /// Whether a card refused with this code.
    pub fn is(&self, code: &str) -> bool {
        self.0.code == code
    }
}

impl From<Fault> for ApiError {
    fn from(fault: Fault) -> Self {
        fault.0
    }
}

impl From<RecordError> for Fault {
    fn from(error: RecordError) -> Self {
        let message = format!("{}.", describe(&error));
        if error.is_full() { Self::full(message) } else { Self::internal(&error) }
    }
}

impl From<ClientError> for Fault {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Refused(refusal) => Self(refusal),
            other => Self::new(
                "CardAway",
                format!("{}.", describe(&other)),
                "The agent starts the card again; look at its log if this stays.",
            ),
        }
    }
}

impl From<AgentClientError> for Fault {
    fn from(error: AgentClientError) -> Self {
        match error {
            AgentClientError::Refused(refusal) => Self(refusal),
            other => Self::new(
                "CloudAway",
                format!("{}.", describe(&other)),
                "The agent asks again; look after the cloud if this stays.",
            ),
        }
    }
}
