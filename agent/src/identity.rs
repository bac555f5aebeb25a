//! Who this server is: made once by `join`, read at every start, its certificate renewed by `renewal`.

use crate::durable;
use bixi_api::agent::{
    AgentClient, AgentClientError, Credentials, JoinToken, Validity, connect_to_join,
};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};

/// The server's identity, as it lies in the agent's state, readable by root alone.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Identity {
    /// The server's id.
    pub server: String,
    /// The cloud: `HOST:PORT`.
    pub cloud: String,
    certificate_pem: String,
    key_pem: String,
    ca_pem: String,
    /// When the certificate is good; it has no end unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validity: Option<Validity>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("server", &self.server).finish_non_exhaustive()
    }
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The server has not joined.
    #[error("this server has joined no cloud: run `bixi-agent join TOKEN --state {}` first", .0.display())]
    NotJoined(PathBuf),
    /// It has joined before.
    #[error("this server is {server} of the cloud at {cloud} already: remove {} to let it join again", path.display())]
    Joined {
        /// The server's id.
        server: String,
        /// The cloud.
        cloud: String,
        /// Where that is written.
        path: PathBuf,
    },
    /// The file cannot be used.
    #[error("cannot use {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
    /// The cloud did not let it join.
    #[error("the cloud does not let this server join")]
    Cloud(#[from] AgentClientError),
    /// The cloud does not give a new certificate.
    #[error("the cloud gives no new certificate")]
    Renewal(#[source] AgentClientError),
    /// No key can be made.
    #[error("cannot make a key")]
    Key(#[from] rcgen::Error),
}

impl Identity {
    /// Reads the identity at `path`, in the state folder.
    ///
    /// # Errors
    /// It is not there, or damaged.
    pub fn read(path: &Path) -> Result<Self, IdentityError> {
        let file = |source| IdentityError::File { path: path.to_owned(), source };
        match std::fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let state = path.parent().unwrap_or(path);
                Err(IdentityError::NotJoined(state.to_owned()))
            }
            Err(error) => Err(file(error)),
            Ok(text) => serde_json::from_slice(&text).map_err(|e| file(e.into())),
        }
    }

    /// Joins the cloud of `token` under `name` and keeps the identity at `path`.
    ///
    /// # Errors
    /// The server has joined before, or cannot.
    pub async fn join(path: &Path, token: &JoinToken, name: &str) -> Result<Self, IdentityError> {
        let file = |source| IdentityError::File { path: path.to_owned(), source };
        match Self::read(path) {
            Ok(Self { server, cloud, .. }) => {
                return Err(IdentityError::Joined { server, cloud, path: path.to_owned() });
            }
            Err(IdentityError::NotJoined(_)) => {}
            Err(error) => return Err(error),
        }
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(file)?;
        }
        // Tried before the token is used up: it is good once.
        durable::write(&path.with_extension("try"), b"").map_err(file)?;
        durable::remove(&path.with_extension("try")).map_err(file)?;
        let (request, key_pem) = new_key()?;
        let answer = connect_to_join(token, name, &request).await?;
        let identity = Self {
            server: answer.server_id,
            cloud: token.cloud.clone(),
            certificate_pem: answer.certificate_pem,
            key_pem,
            ca_pem: answer.ca_pem,
            validity: answer.validity,
        };
        identity.write(path)?;
        Ok(identity)
    }

    /// The same server with a new key and certificate: kept at `path`, then shown by all copies of `client`.
    ///
    /// # Errors
    /// The cloud gives none, or it cannot be kept: the old one is used on.
    pub async fn renew(&self, path: &Path, client: &AgentClient) -> Result<Self, IdentityError> {
        let (request, key_pem) = new_key()?;
        let answer = client.renew(&request).await.map_err(IdentityError::Renewal)?;
        let next = Self {
            certificate_pem: answer.certificate_pem,
            key_pem,
            validity: Some(answer.validity),
            ..self.clone()
        };
        // One that cannot be used is not kept.
        next.client().map_err(IdentityError::Renewal)?;
        next.write(path)?;
        client.show(&next.credentials()).map_err(IdentityError::Renewal)?;
        Ok(next)
    }

    fn write(&self, path: &Path) -> Result<(), IdentityError> {
        let file = |source| IdentityError::File { path: path.to_owned(), source };
        let text = serde_json::to_vec_pretty(self).map_err(|e| file(e.into()))?;
        durable::write(path, &text).map_err(file)
    }

    /// A client that speaks for this server.
    ///
    /// # Errors
    /// The certificate cannot be used.
    pub fn client(&self) -> Result<AgentClient, AgentClientError> {
        AgentClient::new(&self.cloud, &self.credentials())
    }

    fn credentials(&self) -> Credentials {
        Credentials {
            certificate_pem: self.certificate_pem.clone(),
            key_pem: self.key_pem.clone(),
            ca_pem: self.ca_pem.clone(),
        }
    }
}

/// A new key in PEM, behind the request for its certificate.
fn new_key() -> Result<(String, String), rcgen::Error> {
    let key = rcgen::KeyPair::generate()?;
    let request = rcgen::CertificateParams::new(Vec::new())?.serialize_request(&key)?.pem()?;
    Ok((request, key.serialize_pem()))
}
