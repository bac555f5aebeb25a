//! The operator's side: one request, one connection, one answer.
//!
//! Invariant: the token is said to nobody who has not shown a certificate of the cloud's authority.

use crate::agent::{SHA256_HEADER, STREAM_PROTOCOL};
use crate::error::{ApiError, ErrorBody};
use crate::https::{self, Failure, Fault};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, UPGRADE};
use hyper::upgrade::Upgraded;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use tokio_rustls::rustls::ClientConfig;

/// How long an answer may take; uploads have as long as they need.
const PATIENCE: Duration = Duration::from_secs(30);

type Body = BoxBody<Bytes, Failure>;
type Result<T> = std::result::Result<T, OperatorClientError>;

/// Why the cloud has given no good answer.
#[derive(Debug, thiserror::Error)]
pub enum OperatorClientError {
    /// The authority's certificate cannot be used.
    #[error(
        "the cloud's authority cannot be used: {0}; copy ca.pem from the cloud's state directory"
    )]
    Authority(String),
    /// The cloud cannot be reached, or is not who it should be.
    #[error("cannot reach the cloud at {cloud}: {source}")]
    Connect {
        /// Its address.
        cloud: String,
        /// What the kernel or TLS said.
        source: io::Error,
    },
    /// The connection broke before the answer was whole, or nothing came in time.
    #[error("the connection to the cloud at {cloud} broke: {source}")]
    Broken {
        /// Its address.
        cloud: String,
        /// What HTTP said.
        source: Failure,
    },
    /// The request was understood and refused.
    #[error(transparent)]
    Refused(#[from] ApiError),
    /// The answer is not what this release expects.
    #[error("unexpected answer from the cloud at {cloud}: {text}")]
    Answer {
        /// Its address.
        cloud: String,
        /// What came.
        text: String,
    },
}

/// Asks the cloud for an operator. Cheap to copy; holds no connection between requests.
#[derive(Clone)]
pub struct OperatorClient {
    cloud: String,
    token: String,
    config: Arc<ClientConfig>,
}

impl std::fmt::Debug for OperatorClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The token stays out of logs.
        f.debug_struct("OperatorClient").field("cloud", &self.cloud).finish_non_exhaustive()
    }
}

impl OperatorClient {
    /// A client for the cloud at `cloud`, `HOST:PORT`, whose authority is `ca_pem`.
    ///
    /// # Errors
    /// The authority's certificate cannot be used.
    pub fn new(cloud: &str, ca_pem: &str, token: &str) -> Result<Self> {
        let config = https::by_authority(ca_pem)
            .map_err(|e| OperatorClientError::Authority(e.to_string()))?;
        Ok(Self { cloud: cloud.to_owned(), token: token.trim().to_owned(), config })
    }

    /// `GET path`.
    ///
    /// # Errors
    /// See [`OperatorClientError`].
    pub async fn get<A: DeserializeOwned>(&self, path: &str) -> Result<A> {
        self.ask(Method::GET, path, &()).await
    }

    /// A request with a JSON body.
    ///
    /// # Errors
    /// See [`OperatorClientError`].
    pub async fn ask<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<A> {
        let body = serde_json::to_vec(body).map_err(|e| self.answer(e.to_string()))?;
        let request = Request::builder().method(method).uri(path);
        let request = request.header(CONTENT_TYPE, "application/json");
        let body = if body == b"null" { Vec::new() } else { body };
        let whole = async {
            let answer = self.send(request, full(body)).await?;
            self.decode(answer).await
        };
        let late = || self.broken(io::Error::from(io::ErrorKind::TimedOut).into());
        timeout(PATIENCE, whole).await.unwrap_or_else(|_| Err(late()))
    }

    /// Uploads a file of an image; `body` has as long as it needs.
    ///
    /// # Errors
    /// See [`OperatorClientError`].
    pub async fn upload<A: DeserializeOwned>(
        &self,
        path: &str,
        sha256: &str,
        body: BoxBody<Bytes, Failure>,
    ) -> Result<A> {
        let request = Request::builder().method(Method::PUT).uri(path);
        let answer = self.send(request.header(SHA256_HEADER, sha256), body).await?;
        self.decode(answer).await
    }

    /// The answer to `GET path` as it comes: for streams of events.
    ///
    /// # Errors
    /// See [`OperatorClientError`].
    pub async fn stream(&self, path: &str) -> Result<Incoming> {
        let request = Request::builder().method(Method::GET).uri(path);
        let answer = self.send(request, full(Vec::new())).await?;
        if answer.status().is_success() {
            return Ok(answer.into_body());
        }
        Err(self.refusal(answer).await)
    }

    /// The console of an instance: raw bytes, both ways.
    ///
    /// # Errors
    /// See [`OperatorClientError`].
    pub async fn console(&self, instance: &str) -> Result<TokioIo<Upgraded>> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("/v1/instances/{instance}/console"))
            .header(CONNECTION, "upgrade")
            .header(UPGRADE, STREAM_PROTOCOL);
        let answer = self.send(request, full(Vec::new())).await?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(self.refusal(answer).await);
        }
        let upgraded = hyper::upgrade::on(answer).await.map_err(|e| self.broken(e.into()))?;
        Ok(TokioIo::new(upgraded))
    }

    async fn send(
        &self,
        request: hyper::http::request::Builder,
        body: Body,
    ) -> Result<Response<Incoming>> {
        let request = request
            .header(HOST, &self.cloud)
            .header(AUTHORIZATION, format!("Bearer {}", self.token))
            .body(body)
            .map_err(|e| self.broken(e.into()))?;
        let answer = https::exchange(&self.cloud, &self.config, PATIENCE, request).await;
        answer.map_err(|fault| match fault {
            Fault::Connect(source) => {
                OperatorClientError::Connect { cloud: self.cloud.clone(), source }
            }
            Fault::Broken(source) => self.broken(source),
        })
    }

    async fn decode<A: DeserializeOwned>(&self, answer: Response<Incoming>) -> Result<A> {
        if !answer.status().is_success() {
            return Err(self.refusal(answer).await);
        }
        let body = self.body(answer).await?;
        let body: &[u8] = if body.is_empty() { b"null" } else { &body };
        serde_json::from_slice(body).map_err(|e| self.answer(e.to_string()))
    }

    async fn refusal(&self, answer: Response<Incoming>) -> OperatorClientError {
        let status = answer.status();
        match self.body(answer).await {
            Err(error) => error,
            Ok(body) => match serde_json::from_slice::<ErrorBody>(&body) {
                Ok(refusal) if !status.is_success() => refusal.error.into(),
                _ => {
                    let text = String::from_utf8_lossy(&body[..body.len().min(200)]);
                    self.answer(format!("{status} {text}"))
                }
            },
        }
    }

    async fn body(&self, answer: Response<Incoming>) -> Result<Bytes> {
        https::whole(answer).await.map_err(|e| self.broken(e))
    }

    fn broken(&self, source: Failure) -> OperatorClientError {
        OperatorClientError::Broken { cloud: self.cloud.clone(), source }
    }

    fn answer(&self, text: String) -> OperatorClientError {
        OperatorClientError::Answer { cloud: self.cloud.clone(), text }
    }
}

fn full(bytes: Vec<u8>) -> Body {
    Full::new(Bytes::from(bytes)).map_err(|never| match never {}).boxed()
}
