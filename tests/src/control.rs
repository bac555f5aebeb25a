//! A control socket inside a server, asked with the product's own client.

use crate::error::Result;
use bixi_api::client::{ClientError, ControlClient};
use bixi_lab::{Forward, Server};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::Path;
use std::time::Duration;

/// An emulated server under load may take its time.
const LIMIT: Duration = Duration::from_secs(30);

/// A control socket of a server.
#[derive(Debug)]
pub struct Control {
    client: ControlClient,
    runtime: tokio::runtime::Runtime,
    _forward: Forward,
}

impl Control {
    /// The control socket at `path` in a server; nobody needs to listen there yet.
    ///
    /// # Errors
    /// When the socket cannot be brought to this machine.
    pub fn new(server: &Server, path: &Path) -> Result<Self> {
        let forward = server.forward(path)?;
        let client = ControlClient::new(forward.path()).with_deadline(LIMIT);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { client, runtime, _forward: forward })
    }

    /// `GET path`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn get<A: DeserializeOwned>(&self, path: &str) -> Result<A, ClientError> {
        self.runtime.block_on(self.client.get(path))
    }

    /// `PUT path`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn put<A: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<A, ClientError> {
        self.runtime.block_on(self.client.put(path, body))
    }

    /// `POST path`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn post<A: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<A, ClientError> {
        self.runtime.block_on(self.client.post(path, body))
    }

    /// `DELETE path`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn delete<A: DeserializeOwned>(&self, path: &str) -> Result<A, ClientError> {
        self.runtime.block_on(self.client.delete(path))
    }
}
