//! How the API refuses: ECS's own codes and HTTP statuses, on which clients act.

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
