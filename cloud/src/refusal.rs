//! How the operator's and the agents' interfaces refuse: one envelope, one status for each kind.

use crate::plan::Refusal as Planned;
use crate::service::ChangeError;
use crate::store::StoreError;
use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bixi_api::error::{ApiError, ErrorBody};

/// An answer that is no success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status.
    pub status: StatusCode,
    /// What is said.
    pub error: ApiError,
}

impl Refusal {
    /// A refusal.
    pub fn new(
        status: StatusCode,
        code: &str,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self { status, error: ApiError::new(code, message, hint) }
    }

    /// There is no such thing.
    pub fn not_found(what: &str, id: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFound", format!("There is no {what} {id}."), "")
    }

    /// A request that says something impossible.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "InvalidRequest", message, "")
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, Json(ErrorBody { error: self.error })).into_response()
    }
}

impl From<Planned> for Refusal {
    fn from(planned: Planned) -> Self {
        let (status, code) = match &planned {
            Planned::NotFound { .. } => (StatusCode::NOT_FOUND, "NotFound"),
            Planned::Status { .. } => (StatusCode::CONFLICT, "WrongStatus"),
            Planned::Busy { .. } => (StatusCode::CONFLICT, "Busy"),
            Planned::Quota { .. } => (StatusCode::FORBIDDEN, "QuotaExceeded"),
            Planned::NoStock(_) => (StatusCode::CONFLICT, "NoServer"),
            Planned::Architecture { .. } => (StatusCode::CONFLICT, "WrongArchitecture"),
            Planned::Invalid { .. } => (StatusCode::BAD_REQUEST, "InvalidRequest"),
            Planned::Address(_) => (StatusCode::CONFLICT, "AddressInUse"),
            Planned::Protected(_) => (StatusCode::FORBIDDEN, "Protected"),
            Planned::TokenMismatch => (StatusCode::BAD_REQUEST, "TokenMismatch"),
            Planned::Exists { .. } => (StatusCode::CONFLICT, "Exists"),
            Planned::InUse(_) => (StatusCode::CONFLICT, "InUse"),
        };
        Self::new(status, code, planned.to_string(), "")
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        let code = match error {
            StoreError::Full { .. } => "StateFull",
            _ => "StateUnavailable",
        };
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, error.to_string(), "")
    }
}

impl From<ChangeError> for Refusal {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::Refused(refusal) => refusal.into(),
            ChangeError::Store(error) => error.into(),
            ChangeError::Contended => Self::new(
                StatusCode::CONFLICT,
                "Contended",
                ChangeError::<Planned>::Contended.to_string(),
                "",
            ),
        }
    }
}

impl From<JsonRejection> for Refusal {
    fn from(rejection: JsonRejection) -> Self {
        Self::new(rejection.status(), "InvalidRequest", rejection.body_text(), "")
    }
}

impl From<QueryRejection> for Refusal {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(rejection.status(), "InvalidRequest", rejection.body_text(), "")
    }
}
