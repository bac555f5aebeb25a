//! The client of a control socket: one request, one connection, one answer.

use crate::error::{ApiError, ErrorBody};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;

/// No answer of a control socket is larger than this many bytes.
const ANSWER_LIMIT: usize = 8 << 20;

/// Asks one control socket. Cheap to make; holds no connection between requests.
#[derive(Debug, Clone)]
pub struct ControlClient {
    socket: PathBuf,
    deadline: Duration,
}

/// Why a request has no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The socket cannot be reached.
    #[error("cannot reach the control socket {}: is the process running?", socket.display())]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The connection broke before the answer was whole.
    #[error("the connection to {} broke", socket.display())]
    Broken {
        /// The socket.
        socket: PathBuf,
        /// What HTTP said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No answer in time.
    #[error("no answer from {} within {deadline:?}", socket.display())]
    Deadline {
        /// The socket.
        socket: PathBuf,
        /// How long the client waited.
        deadline: Duration,
    },
    /// The request was understood and refused.
    #[error(transparent)]
    Refused(#[from] ApiError),
    /// The answer is not what this release expects.
    #[error("unexpected answer from {}: {text}", socket.display())]
    Answer {
        /// The socket.
        socket: PathBuf,
        /// The beginning of what came.
        text: String,
    },
}

impl ControlClient {
    /// A client of the control socket at `socket`, which waits ten seconds for each answer.
    pub fn new(socket: impl AsRef<Path>) -> Self {
        Self { socket: socket.as_ref().to_owned(), deadline: Duration::from_secs(10) }
    }

    /// The same client with another deadline for each request.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// `GET path`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn get<A: DeserializeOwned>(&self, path: &str) -> Result<A, ClientError> {
        self.ask(Method::GET, path, Vec::new()).await
    }

    /// `PUT path` with a JSON body.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn put<A: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<A, ClientError> {
        self.ask(Method::PUT, path, self.encode(body)?).await
    }

    /// `POST path` with a JSON body.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn post<A: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<A, ClientError> {
        self.ask(Method::POST, path, self.encode(body)?).await
    }

    /// `DELETE path`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn delete<A: DeserializeOwned>(&self, path: &str) -> Result<A, ClientError> {
        self.ask(Method::DELETE, path, Vec::new()).await
    }

    fn encode(&self, body: &impl Serialize) -> Result<Vec<u8>, ClientError> {
        serde_json::to_vec(body).map_err(|e| ClientError::Answer {
            socket: self.socket.clone(),
            text: format!("the request does not encode: {e}"),
        })
    }

    async fn ask<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<A, ClientError> {
        match tokio::time::timeout(self.deadline, self.exchange(method, path, body)).await {
            Ok(answer) => self.decode(answer?),
            Err(_) => {
                Err(ClientError::Deadline { socket: self.socket.clone(), deadline: self.deadline })
            }
        }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let broken = |source: Box<dyn std::error::Error + Send + Sync>| ClientError::Broken {
            socket: self.socket.clone(),
            source,
        };
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| ClientError::Connect { socket: self.socket.clone(), source })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| broken(e.into()))?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| broken(e.into()))?;
        let answer = async {
            let answer = sender.send_request(request).await.map_err(|e| broken(e.into()))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_LIMIT).collect().await;
            Ok((status, body.map_err(broken)?.to_bytes()))
        };
        tokio::pin!(answer, connection);
        tokio::select! {
            answer = &mut answer => answer,
            _ = &mut connection => answer.await,
        }
    }

    fn decode<A: DeserializeOwned>(
        &self,
        (status, body): (StatusCode, Bytes),
    ) -> Result<A, ClientError> {
        if !status.is_success()
            && let Ok(refusal) = serde_json::from_slice::<ErrorBody>(&body)
        {
            return Err(refusal.error.into());
        }
        let body: &[u8] = if body.is_empty() { b"null" } else { &body };
        match serde_json::from_slice(body) {
            Ok(answer) if status.is_success() => Ok(answer),
            _ => Err(ClientError::Answer {
                socket: self.socket.clone(),
                text: format!("{status} {}", String::from_utf8_lossy(&body[..body.len().min(200)])),
            }),
        }
    }
}
