//! Keeps the agent's certificate good: asks for the next one while the present one is, and lets it be used from the next
//! connection on.
//!
//! Invariants: the new identity is on the disk before it is used, so that an agent that dies anywhere has one that the
//! cloud takes; the cloud takes the old one until the new one was shown.

use crate::executor::describe;
use crate::identity::Identity;
use bixi_api::agent::AgentClient;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::sleep;

/// How long the longest sleep is: the clock may be set meanwhile.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);

/// Renews for ever. Ends at once if the certificate has no end.
pub async fn keep(path: PathBuf, mut identity: Identity, client: AgentClient) {
    while let Some(validity) = identity.validity {
        let now = now();
        let due = validity.renew_at(dice(&identity.server, validity.until));
        let wait = if now >= validity.until {
            tracing::error!(
                "the certificate of this server has ended, and the cloud takes it no more: make a token by \
                 `bixi server token`, remove {} and join again by `bixi-agent join TOKEN`; instances go on",
                path.display()
            );
            LONGEST_SLEEP
        } else if now < due {
            Duration::from_millis(due - now)
        } else {
            match identity.renew(&path, &client).await {
                Ok(next) => {
                    tracing::info!(server = next.server, "this server has a new certificate");
                    identity = next;
                    continue;
                }
                Err(error) => {
                    let error = describe(&error);
                    tracing::warn!(error, "the certificate of this server is not renewed yet");
                    Duration::from_millis(validity.retry_after(now))
                }
            }
        };
        sleep(wait.min(LONGEST_SLEEP)).await;
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A number that differs between servers and between certificates.
fn dice(server: &str, until: u64) -> u16 {
    let mix = |sum: u64, byte: u8| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let sum = server.bytes().chain(until.to_le_bytes()).fold(0xcbf2_9ce4_8422_2325, mix);
    (sum >> 48) as u16
}

#[cfg(test)]
mod tests {
    use super::dice;

    #[test]
    fn servers_do_not_come_together() {
        let mut all: Vec<u16> = (0..64).map(|n| dice(&format!("s-{n}"), 1) / 8192).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 8, "64 servers leave an eighth of the time empty");
    }
}
