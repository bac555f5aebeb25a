//! Consoles that somebody waits for: the VMM's console socket and a stream to the cloud, tied together.

use crate::executor::describe;
use bixi_api::agent::{AgentClient, WantedStream};
use std::collections::BTreeSet;
use std::path::PathBuf;
use tokio::io::copy_bidirectional;
use tokio::net::UnixStream;

/// The streams that were wanted and have been opened: each is, once.
#[derive(Debug, Default)]
pub struct Streams {
    opened: BTreeSet<String>,
}

impl Streams {
    /// Opens those of `wanted` that are new; `socket` says where an instance's console is.
    pub fn want(
        &mut self,
        wanted: &[WantedStream],
        client: &AgentClient,
        socket: impl Fn(&str) -> PathBuf,
    ) {
        self.opened.retain(|id| wanted.iter().any(|stream| stream.id == *id));
        for stream in wanted {
            if self.opened.insert(stream.id.clone()) {
                let (client, socket) = (client.clone(), socket(&stream.instance));
                let WantedStream { id, instance } = stream.clone();
                tokio::spawn(async move {
                    if let Err(reason) = carry(&client, &id, socket).await {
                        tracing::info!(instance, stream = id, reason, "a console has ended");
                    }
                });
            }
        }
    }
}

async fn carry(client: &AgentClient, id: &str, socket: PathBuf) -> Result<(), String> {
    // The cloud's side first: whoever waits there learns of a console that is not there by its end.
    let mut cloud = client.stream(id).await.map_err(|e| describe(&e))?;
    let mut console = UnixStream::connect(socket).await.map_err(|e| e.to_string())?;
    copy_bidirectional(&mut cloud, &mut console).await.map(drop).map_err(|e| e.to_string())
}
