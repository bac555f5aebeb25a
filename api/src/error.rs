//! How a control socket refuses: one envelope, a stable code, and what the operator does next.

use serde::{Deserialize, Serialize};

/// The body of every answer whose HTTP status is not 2xx: `{"error":{"code":…,"message":…,"hint":…}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The refusal.
    pub error: ApiError,
}

/// One refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}{}{hint}", if hint.is_empty() { "" } else { " " })]
pub struct ApiError {
    /// A stable word that programs match on, in CamelCase: `DiskInUse`, `StaleEpoch`, `UnknownField`.
    pub code: String,
    /// What is wrong, with the values at fault, as one sentence.
    pub message: String,
    /// What the operator does next; empty where the message says it all.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hint: String,
}

impl ApiError {
    /// A refusal with a stable `code`, what is wrong and what to do next.
    pub fn new(code: &str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into(), hint: hint.into() }
    }
}
