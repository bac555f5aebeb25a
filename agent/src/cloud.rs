//! The conversation with the cloud: two loops that never end and never stop anything because nobody answers.

use crate::executor::describe;
use bixi_api::agent::{AgentClient, AgentClientError, DesiredState, Report};
use bixi_api::error::ApiError;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

/// How long the cloud may keep a question open.
const WAIT: Duration = Duration::from_secs(30);
/// How long the first wait after a failure is, and the longest.
const WAITS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// What the cloud says.
#[derive(Debug)]
pub enum Heard {
    /// This is desired.
    Desired(Box<DesiredState>),
    /// Something that this release does not understand, or that is meant for another server.
    Refused(ApiError),
    /// The report with this number has arrived.
    Reported(u64),
}

/// A report on its way, with a number.
pub type Numbered = Option<(u64, Report)>;

/// Asks for the desired state, from `revision` on.
pub async fn listen(
    client: AgentClient,
    server: String,
    mut revision: u64,
    heard: mpsc::UnboundedSender<Heard>,
) {
    let mut wait = WAITS.0;
    loop {
        let said = match client.desired(revision, WAIT).await {
            Ok(None) => {
                wait = WAITS.0;
                continue;
            }
            Ok(Some(desired)) if desired.server == server => {
                revision = desired.revision;
                wait = WAITS.0;
                Some(Heard::Desired(Box::new(desired)))
            }
            Ok(Some(desired)) => {
                let message = format!("it is meant for server {}.", desired.server);
                Some(Heard::Refused(ApiError::new("WrongServer", message, "Look after the cloud.")))
            }
            Err(AgentClientError::Answer { text, .. }) => {
                let hint = "Give this server the cloud's release.";
                let message = format!("the desired state is not understood: {text}.");
                Some(Heard::Refused(ApiError::new("NotUnderstood", message, hint)))
            }
            Err(error) => {
                tracing::debug!(error = describe(&error), "the cloud says nothing");
                None
            }
        };
        let understood = matches!(said, Some(Heard::Desired(_)));
        if let Some(said) = said
            && heard.send(said).is_err()
        {
            return;
        }
        if !understood {
            sleep(wait).await;
            wait = (wait * 2).min(WAITS.1);
        }
    }
}

/// Sends the newest report whenever there is one.
pub async fn report(
    client: AgentClient,
    mut reports: watch::Receiver<Numbered>,
    heard: mpsc::UnboundedSender<Heard>,
) {
    let mut wait = WAITS.0;
    let mut away = false;
    loop {
        let newest = reports.borrow_and_update().clone();
        let sent = match newest {
            None => Ok(()),
            Some((number, report)) => {
                let sent = client.report(&report).await;
                if sent.is_ok() && heard.send(Heard::Reported(number)).is_err() {
                    return;
                }
                sent
            }
        };
        match sent {
            Ok(()) => {
                if std::mem::take(&mut away) {
                    tracing::info!("the cloud is back");
                }
                wait = WAITS.0;
                if reports.changed().await.is_err() {
                    return;
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut away, true) {
                    let error = describe(&error);
                    tracing::warn!(error, "the cloud is away; instances go on as they are");
                }
                sleep(wait).await;
                wait = (wait * 2).min(WAITS.1);
            }
        }
    }
}
