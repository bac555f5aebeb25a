//! The control socket of a process: HTTP/1.1 with JSON over a UNIX stream socket.
//!
//! [`listen`] makes the socket, [`serve`] serves an axum router on it. Every refusal, also those of the HTTP layer
//! (unknown path, wrong method, bad JSON, unknown field, too large), has the envelope of [`bixi_api::error`].
//! Handlers take their bodies by [`Json`] and return [`Refusal`]s.
//!
//! Invariants: the socket has mode 0600; a socket file left by a dead process is replaced, one of a living process
//! never is.

use axum::Router;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bixi_api::error::{ApiError, ErrorBody};
use bixi_api::file::FileSource;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// No request body is larger, in bytes.
pub const BODY_LIMIT: usize = 1 << 20;

/// Why a socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// A living process serves it.
    #[error("{} is served by another process: stop it, or choose another path", .0.display())]
    InUse(PathBuf),
    /// Something that is no socket is there.
    #[error("{} exists and is not a socket: remove it, or choose another path", .0.display())]
    NotASocket(PathBuf),
    /// The kernel refuses.
    #[error("cannot {what} {}", path.display())]
    System {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// A refused request.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// The HTTP status.
    pub status: StatusCode,
    /// What is wrong.
    pub error: ApiError,
}

impl Refusal {
    /// A refusal with this status, code, message and hint (see [`ApiError::new`]).
    pub fn new(
        status: StatusCode,
        code: &str,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self { status, error: ApiError::new(code, message, hint) }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, axum::Json(ErrorBody { error: self.error })).into_response()
    }
}

/// A JSON body, both ways. As an extractor, a body that does not fit is a [`Refusal`] with code `BadRequest`.
#[derive(Debug, Clone, Copy)]
pub struct Json<T>(pub T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Refusal;

    async fn from_request(_request: Request, _state: &S) -> Result<Self, Refusal> {
        unimplemented!()
    }
}

/// Listens at `path` with mode 0600 and replaces what a dead process left there. Non-blocking.
///
/// # Errors
/// See [`ControlError`].
pub fn bind(_path: &Path) -> Result<UnixListener, ControlError> {
    unimplemented!()
}

/// The listening socket that `source` names: bound here, or inherited listening.
///
/// # Errors
/// See [`ControlError`].
pub fn listen(_source: &FileSource) -> Result<UnixListener, ControlError> {
    unimplemented!()
}

/// Serves `router` until `end` completes; requests under way are answered first. The socket's file stays.
///
/// # Errors
/// The listener cannot be used with the runtime.
pub async fn serve(
    _listener: UnixListener,
    _router: Router,
    _end: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    unimplemented!()
}
