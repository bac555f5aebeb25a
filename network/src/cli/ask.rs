//! Asking a running process, and how its answers are written.

use super::{Failure, show};
use bixi_api::client::ControlClient;
use bixi_api::network::NetworkDescription;
use clap::ValueEnum;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// No body of a request in a file is larger, in bytes.
const FILE_LIMIT: u64 = 16 << 20;
/// How long a request waits that waits for queues to come back.
const DEADLINE: Duration = Duration::from_secs(60);

/// Whom to ask, and how the answer is written.
#[derive(Debug, clap::Args)]
pub struct Whom {
    /// Control socket of the process.
    #[arg(long, global = true, value_name = "SOCKET", default_value = "/run/bixi/network.sock")]
    control: PathBuf,
    /// How the answer is written.
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// How an answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

impl Whom {
    pub(super) fn client(&self) -> ControlClient {
        ControlClient::new(&self.control).with_deadline(DEADLINE)
    }

    /// Writes an answer: as JSON, or as `table` says.
    pub(super) fn write<T: Serialize>(
        &self,
        answer: &T,
        table: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        if self.output == Output::Table {
            return Ok(write!(out, "{}", table(answer))?);
        }
        serde_json::to_writer_pretty(&mut out, answer).map_err(std::io::Error::from)?;
        Ok(writeln!(out)?)
    }
}

/// Runs a request to its end.
pub(super) fn block_on(ask: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(ask)
}

/// `bixi-network status`.
pub(super) async fn status(whom: &Whom) -> Result<(), Failure> {
    let network: NetworkDescription = whom.client().get("/v1/network").await?;
    whom.write(&network, show::status)
}

/// An id as part of a path: whatever is no letter, digit, `-` or `_` is escaped, for the process to refuse it by its name.
pub(super) fn escape(id: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    id.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

/// Reads a request's body from a file, or from standard input if the file is `-`.
pub(super) fn read_json<T: DeserializeOwned>(file: &Path) -> Result<T, Failure> {
    let mut text = String::new();
    let shown = file.display();
    let failed = |e: std::io::Error| Failure::usage(format!("cannot read {shown}: {e}"));
    if file.as_os_str() == "-" {
        std::io::stdin().take(FILE_LIMIT).read_to_string(&mut text).map_err(failed)?;
    } else {
        let file = std::fs::File::open(file).map_err(failed)?;
        file.take(FILE_LIMIT).read_to_string(&mut text).map_err(failed)?;
    }
    serde_json::from_str(&text).map_err(|e| Failure::usage(format!("{shown}: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_cannot_become_another_path() {
        assert_eq!(escape("eni-0_1"), "eni-0_1");
        assert_eq!(escape("../x?y"), "%2E%2E%2Fx%3Fy");
    }
}
