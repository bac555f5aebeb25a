//! The agent's side of the conversation: one request, one connection, one answer.
//!
//! While joining, the cloud's authority is known by the fingerprint of the token alone.

use super::tls::{self, TlsError};
use super::{
    DesiredState, JoinAnswer, JoinRequest, JoinToken, RenewAnswer, RenewRequest, Report,
    SHA256_HEADER, STREAM_PROTOCOL,
};
use crate::error::{ApiError, ErrorBody};
use crate::https::{self, Failure, Fault};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, UPGRADE};
use hyper::upgrade::Upgraded;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::time::timeout;
use tokio_rustls::rustls::{self, AlertDescription, ClientConfig};

/// How long a connection may take to be made, and an answer to begin beyond what was asked for.
const PATIENCE: Duration = Duration::from_secs(15);

/// Who the agent is, and whom it believes: all in PEM.
#[derive(Clone)]
pub struct Credentials {
    /// The agent's certificate, issued by `join`.
    pub certificate_pem: String,
    /// Its private key.
    pub key_pem: String,
    /// The cloud's authority.
    pub ca_pem: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The key stays out of logs.
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

/// Asks the cloud. Cheap to copy; holds no connection between requests; all copies show the same certificate.
#[derive(Debug, Clone)]
pub struct AgentClient {
    cloud: String,
    config: Arc<RwLock<Arc<ClientConfig>>>,
}

/// Why the cloud has given no good answer.
#[derive(Debug, thiserror::Error)]
pub enum AgentClientError {
    /// The credentials cannot be used.
    #[error("the agent's credentials cannot be used: join the cloud again")]
    Credentials(#[source] TlsError),
    /// The cloud cannot be reached, or is not who it should be.
    #[error("cannot reach the cloud at {cloud}")]
    Connect {
        /// Its address.
        cloud: String,
        /// What the kernel or TLS said.
        source: io::Error,
    },
    /// The cloud does not take the certificate any more.
    #[error(
        "the certificate of this server has ended: make a token by `bixi server token`, remove the agent's identity \
         from its state and join again by `bixi-agent join TOKEN`"
    )]
    Expired,
    /// The connection broke before the answer was whole.
    #[error("the connection to the cloud at {cloud} broke")]
    Broken {
        /// Its address.
        cloud: String,
        /// What HTTP said.
        source: Failure,
    },
    /// No answer in time.
    #[error("no answer from the cloud at {cloud} within {deadline:?}")]
    Deadline {
        /// Its address.
        cloud: String,
        /// How long the client waited.
        deadline: Duration,
    },
    /// The request was understood and refused.
    #[error(transparent)]
    Refused(#[from] ApiError),
    /// The answer is not what this release expects.
    #[error("unexpected answer from the cloud at {cloud}: {text}")]
    Answer {
        /// Its address.
        cloud: String,
        /// What is wrong with it.
        text: String,
    },
}

type Result<T> = std::result::Result<T, AgentClientError>;

/// Joins the cloud that `token` names; `name` is to be the server's, `csr_pem` asks for its certificate.
///
/// # Errors
/// See [`AgentClientError`].
pub async fn connect_to_join(token: &JoinToken, name: &str, csr_pem: &str) -> Result<JoinAnswer> {
    let config = tls::by_fingerprint(token.ca_sha256).map_err(AgentClientError::Credentials)?;
    let config = Arc::new(RwLock::new(Arc::new(config)));
    let client = AgentClient { cloud: token.cloud.clone(), config };
    let request = JoinRequest {
        secret: token.secret.clone(),
        name: name.to_owned(),
        csr_pem: csr_pem.to_owned(),
    };
    let body = client.encode(&request)?;
    let answer = client.ask(Method::POST, "/agent/v1/join", body, PATIENCE).await?;
    client.decode(answer).await
}

impl AgentClient {
    /// A client for the cloud at `cloud`, `HOST:PORT`.
    ///
    /// # Errors
    /// The credentials cannot be used.
    pub fn new(cloud: &str, credentials: &Credentials) -> Result<Self> {
        let config = tls::by_authority(credentials).map_err(AgentClientError::Credentials)?;
        let config = Arc::new(RwLock::new(Arc::new(config)));
        Ok(Self { cloud: cloud.to_owned(), config })
    }

    /// Shows other credentials from the next connection on, in all copies.
    ///
    /// # Errors
    /// The credentials cannot be used; the old ones are shown still.
    pub fn show(&self, credentials: &Credentials) -> Result<()> {
        let config = tls::by_authority(credentials).map_err(AgentClientError::Credentials)?;
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
        Ok(())
    }

    /// A new certificate for this server; `csr_pem` asks for it.
    ///
    /// # Errors
    /// See [`AgentClientError`].
    pub async fn renew(&self, csr_pem: &str) -> Result<RenewAnswer> {
        let body = self.encode(&RenewRequest { csr_pem: csr_pem.to_owned() })?;
        let answer = self.ask(Method::POST, "/agent/v1/renew", body, PATIENCE).await?;
        self.decode(answer).await
    }

    /// The desired state once its revision is other than `after`, or `None` if it is not within `wait`.
    ///
    /// # Errors
    /// See [`AgentClientError`].
    pub async fn desired(&self, after: u64, wait: Duration) -> Result<Option<DesiredState>> {
        let path = format!("/agent/v1/desired?after={after}&wait={}", wait.as_secs());
        let answer = self.ask(Method::GET, &path, Vec::new(), wait + PATIENCE).await?;
        if answer.status() == StatusCode::NO_CONTENT {
            return Ok(None);
        }
        self.decode(answer).await.map(Some)
    }

    /// Tells the cloud how this server is.
    ///
    /// # Errors
    /// See [`AgentClientError`].
    pub async fn report(&self, report: &Report) -> Result<()> {
        let body = self.encode(report)?;
        let answer = self.ask(Method::POST, "/agent/v1/report", body, PATIENCE).await?;
        self.decode(answer).await
    }

    /// The bytes of an image.
    ///
    /// # Errors
    /// See [`AgentClientError`].
    pub async fn image(&self, id: &str) -> Result<ImageStream> {
        let path = format!("/agent/v1/images/{id}");
        let answer = self.ask(Method::GET, &path, Vec::new(), PATIENCE).await?;
        if !answer.status().is_success() {
            return Err(self.refusal(answer).await);
        }
        let header = |name: &str| answer.headers().get(name).and_then(|v| v.to_str().ok());
        let size = header(CONTENT_LENGTH.as_str()).and_then(|text| text.parse().ok());
        let (Some(size), Some(sha256)) = (size, header(SHA256_HEADER).map(str::to_owned)) else {
            return Err(self.answer("an image without its size or sum".to_owned()));
        };
        Ok(ImageStream { size, sha256, body: answer.into_body(), cloud: self.cloud.clone() })
    }

    /// Opens the stream `id`: raw bytes, both ways.
    ///
    /// # Errors
    /// See [`AgentClientError`].
    pub async fn stream(&self, id: &str) -> Result<TokioIo<Upgraded>> {
        let path = format!("/agent/v1/streams/{id}");
        let request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header(CONNECTION, "upgrade")
            .header(UPGRADE, STREAM_PROTOCOL);
        let answer = self.send(request, Vec::new(), PATIENCE).await?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(self.refusal(answer).await);
        }
        let upgraded = hyper::upgrade::on(answer).await.map_err(|e| self.broken(e.into()))?;
        Ok(TokioIo::new(upgraded))
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        deadline: Duration,
    ) -> Result<Response<Incoming>> {
        let request = Request::builder().method(method).uri(path);
        self.send(request.header(CONTENT_TYPE, "application/json"), body, deadline).await
    }

    async fn send(
        &self,
        request: hyper::http::request::Builder,
        body: Vec<u8>,
        deadline: Duration,
    ) -> Result<Response<Incoming>> {
        let request = request.header(HOST, &self.cloud).body(Full::new(Bytes::from(body)));
        let request = request.map_err(|e| self.broken(e.into()))?;
        let late = || AgentClientError::Deadline { cloud: self.cloud.clone(), deadline };
        timeout(deadline, self.exchange(request)).await.unwrap_or_else(|_| Err(late()))
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>> {
        let config = self.config.read().unwrap_or_else(PoisonError::into_inner).clone();
        let answer = https::exchange(&self.cloud, &config, PATIENCE, request).await;
        answer.map_err(|fault| match fault {
            Fault::Connect(source) if has_expired(&source) => AgentClientError::Expired,
            Fault::Broken(source) if has_expired(source.as_ref()) => AgentClientError::Expired,
            Fault::Connect(source) => {
                AgentClientError::Connect { cloud: self.cloud.clone(), source }
            }
            Fault::Broken(source) => self.broken(source),
        })
    }

    fn encode(&self, body: &impl serde::Serialize) -> Result<Vec<u8>> {
        serde_json::to_vec(body)
            .map_err(|e| self.answer(format!("the request does not encode: {e}")))
    }

    async fn decode<A: DeserializeOwned>(&self, answer: Response<Incoming>) -> Result<A> {
        if !answer.status().is_success() {
            return Err(self.refusal(answer).await);
        }
        let body = self.body(answer).await?;
        let body: &[u8] = if body.is_empty() { b"null" } else { &body };
        serde_json::from_slice(body).map_err(|e| self.answer(e.to_string()))
    }

    async fn refusal(&self, answer: Response<Incoming>) -> AgentClientError {
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
        let late = || AgentClientError::Deadline { cloud: self.cloud.clone(), deadline: PATIENCE };
        match timeout(PATIENCE, https::whole(answer)).await {
            Ok(body) => body.map_err(|e| self.broken(e)),
            Err(_) => Err(late()),
        }
    }

    fn broken(&self, source: Failure) -> AgentClientError {
        AgentClientError::Broken { cloud: self.cloud.clone(), source }
    }

    fn answer(&self, text: String) -> AgentClientError {
        AgentClientError::Answer { cloud: self.cloud.clone(), text }
    }
}

/// Whether the cloud has said that the certificate ended, somewhere below this error.
fn has_expired(error: &(dyn std::error::Error + 'static)) -> bool {
    let told = |error: &(dyn std::error::Error + 'static)| {
        let alert = rustls::Error::AlertReceived(AlertDescription::CertificateExpired);
        error.downcast_ref::<rustls::Error>().is_some_and(|error| *error == alert)
    };
    let within = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    told(error)
        || within.is_some_and(|inner| told(inner))
        || error.source().is_some_and(has_expired)
}

/// An image on its way.
#[derive(Debug)]
pub struct ImageStream {
    /// Its size in bytes, as the cloud says.
    pub size: u64,
    /// Its SHA-256 in hexadecimal, as the cloud says.
    pub sha256: String,
    body: Incoming,
    cloud: String,
}

impl ImageStream {
    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// The connection broke, or nothing came for a while.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            let cloud = || self.cloud.clone();
            let Ok(frame) = timeout(PATIENCE, self.body.frame()).await else {
                return Err(AgentClientError::Deadline { cloud: cloud(), deadline: PATIENCE });
            };
            match frame {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    // Anything else is a trailer.
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
                Some(Err(e)) => {
                    return Err(AgentClientError::Broken { cloud: cloud(), source: e.into() });
                }
            }
        }
    }
}
