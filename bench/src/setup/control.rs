//! A control socket, asked and waited for.

use crate::BenchError;
use bixi_api::client::ControlClient;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::Path;
use tokio::runtime::{Builder, Runtime};

/// A client with a small runtime of its own.
#[derive(Debug)]
pub struct Control {
    client: ControlClient,
    runtime: Runtime,
}

impl Control {
    /// A client of the control socket at `socket`.
    ///
    /// # Errors
    /// There is no runtime to be had.
    pub fn new(socket: &Path) -> Result<Self, BenchError> {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(BenchError::system("start a runtime"))?;
        Ok(Self { client: ControlClient::new(socket), runtime })
    }

    /// `GET path`.
    ///
    /// # Errors
    /// The process does not answer, or refuses.
    pub fn get<A: DeserializeOwned>(&self, path: &str) -> Result<A, BenchError> {
        Ok(self.runtime.block_on(self.client.get(path))?)
    }

    /// `PUT path` with a body.
    ///
    /// # Errors
    /// The process does not answer, or refuses.
    pub fn put<A: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<A, BenchError> {
        Ok(self.runtime.block_on(self.client.put(path, body))?)
    }
}
