//! The tenant's side: one request, one connection, one answer.
//!
//! Parameters go in the body, which has room for user data; lists come page by page until they are whole.

use super::sign::{AccessKey, Unsigned, encode, hex, sign};
use super::{Page, VERSION};
use crate::error::ErrorBody;
use crate::https::{self, Failure, Fault};
use aws_lc_rs::rand;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::timeout;
use tokio_rustls::rustls::ClientConfig;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Items of a list in one answer: the most that ECS gives.
const PAGE: u64 = 100;
const FORM: &str = "application/x-www-form-urlencoded";

/// Parameters by name: `Tag.1.Key`, as ECS flattens them.
pub type Parameters = BTreeMap<String, String>;
type Result<T> = std::result::Result<T, EcsClientError>;

/// Why the cloud has given no good answer.
#[derive(Debug, thiserror::Error)]
pub enum EcsClientError {
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
    Refused(#[from] EcsRefusal),
    /// The answer is not what ECS documents.
    #[error("unexpected answer from the cloud at {cloud}: {text}")]
    Answer {
        /// Its address.
        cloud: String,
        /// What came.
        text: String,
    },
}

/// A refusal in ECS's words.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, thiserror::Error)]
#[serde(rename_all = "PascalCase")]
#[error("{message}{}{recommend}", if recommend.is_empty() { "" } else { " " })]
pub struct EcsRefusal {
    /// The HTTP status.
    #[serde(skip)]
    pub status: u16,
    /// ECS's code, such as `InvalidInstanceId.NotFound`.
    pub code: String,
    /// What is wrong.
    pub message: String,
    /// What to do next.
    #[serde(default)]
    pub recommend: String,
    /// By which the cloud's log knows the request.
    #[serde(default)]
    pub request_id: String,
}

/// Asks the cloud for a tenant. Cheap to copy; holds no connection between requests.
#[derive(Debug, Clone)]
pub struct EcsClient {
    cloud: String,
    region: String,
    key: AccessKey,
    config: Arc<ClientConfig>,
}

impl EcsClient {
    /// A client for the cloud at `cloud`, `HOST:PORT`, whose authority is `ca_pem`.
    ///
    /// # Errors
    /// The authority's certificate cannot be used.
    pub fn new(cloud: &str, ca_pem: &str, key: AccessKey, region: &str) -> Result<Self> {
        let config =
            https::by_authority(ca_pem).map_err(|e| EcsClientError::Authority(e.to_string()))?;
        let (cloud, region) = (cloud.to_owned(), region.to_owned());
        Ok(Self { cloud, region, key, config })
    }

    /// Asks for `action`; the region is added to the parameters.
    ///
    /// # Errors
    /// See [`EcsClientError`].
    pub async fn call<A: DeserializeOwned>(
        &self,
        action: &str,
        parameters: &Parameters,
    ) -> Result<A> {
        let late = || self.broken(io::Error::from(io::ErrorKind::TimedOut).into());
        let whole = self.exchange(action, parameters);
        timeout(PATIENCE, whole).await.unwrap_or_else(|_| Err(late()))
    }

    /// Asks for a list, page by page until it is whole.
    ///
    /// # Errors
    /// See [`EcsClientError`].
    pub async fn list<P: Page + DeserializeOwned>(
        &self,
        parameters: &Parameters,
    ) -> Result<Vec<P::Item>> {
        let (mut items, mut number) = (Vec::new(), 1_u64);
        loop {
            let mut parameters = parameters.clone();
            if P::NUMBERED {
                parameters.insert("PageNumber".to_owned(), number.to_string());
                parameters.insert("PageSize".to_owned(), PAGE.to_string());
            }
            let page: P = self.call(P::ACTION, &parameters).await?;
            let total = page.total();
            let some = page.items();
            let empty = some.is_empty();
            items.extend(some);
            if !P::NUMBERED || empty || u64::try_from(items.len()).unwrap_or(u64::MAX) >= total {
                return Ok(items);
            }
            number += 1;
        }
    }

    async fn exchange<A: DeserializeOwned>(
        &self,
        action: &str,
        parameters: &Parameters,
    ) -> Result<A> {
        let mut parameters = parameters.clone();
        parameters.entry("RegionId".to_owned()).or_insert_with(|| self.region.clone());
        let pairs = parameters.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let answer = self.send(action, encode(pairs).into_bytes()).await?;
        let status = answer.status();
        let body = https::whole(answer).await.map_err(|e| self.broken(e))?;
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|e| self.answer(e.to_string()));
        }
        Err(self.refusal(status.as_u16(), &body))
    }

    async fn send(&self, action: &str, body: Vec<u8>) -> Result<Response<Incoming>> {
        let mut nonce = [0; 16];
        rand::fill(&mut nonce).map_err(|_| self.broken("there is no randomness".into()))?;
        let signed = sign(
            &self.key,
            &Unsigned {
                host: &self.cloud,
                action,
                version: VERSION,
                at: seconds(),
                nonce: &hex(&nonce),
                query: "",
                content_type: Some(FORM),
                body: &body,
            },
        );
        let mut request = Request::builder().method(Method::POST).uri("/");
        for (name, value) in signed {
            request = request.header(name, value);
        }
        let request = request.header("accept", "application/json");
        let request = request.body(Full::new(Bytes::from(body)));
        let request = request.map_err(|e| self.broken(e.into()))?;
        let answer = https::exchange(&self.cloud, &self.config, PATIENCE, request).await;
        answer.map_err(|fault| match fault {
            Fault::Connect(source) => EcsClientError::Connect { cloud: self.cloud.clone(), source },
            Fault::Broken(source) => self.broken(source),
        })
    }

    fn refusal(&self, status: u16, body: &[u8]) -> EcsClientError {
        if let Ok(refusal) = serde_json::from_slice::<EcsRefusal>(body) {
            return EcsRefusal { status, ..refusal }.into();
        }
        // Beside its API for tenants the cloud refuses in its own envelope.
        if let Ok(ErrorBody { error }) = serde_json::from_slice(body) {
            let (code, message, recommend) = (error.code, error.message, error.hint);
            let request_id = String::new();
            return EcsRefusal { status, code, message, recommend, request_id }.into();
        }
        let text = String::from_utf8_lossy(&body[..body.len().min(200)]);
        self.answer(format!("{status} {text}"))
    }

    fn broken(&self, source: Failure) -> EcsClientError {
        EcsClientError::Broken { cloud: self.cloud.clone(), source }
    }

    fn answer(&self, text: String) -> EcsClientError {
        EcsClientError::Answer { cloud: self.cloud.clone(), text }
    }
}

fn seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    i64::try_from(since).unwrap_or(i64::MAX)
}

/// An answer that says nothing but its request's id.
pub type Nothing = BTreeMap<String, Value>;
