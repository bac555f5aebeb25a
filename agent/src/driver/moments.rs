//! When the steps of an instance's last start were seen, in memory only: an agent that starts again knows none.

use super::millis;
use crate::executor::Executor;
use crate::instance::Phase;
use bixi_api::agent::{DesiredInstance, Moment};
use bixi_api::client::ControlClient;
use bixi_api::network::{PortDescription, PortStatistics};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::time::sleep;

/// How often a card is asked for a guest's first packet, at first and later.
const OFTEN: Duration = Duration::from_millis(25);
const SELDOM: Duration = Duration::from_millis(200);
/// How long it is asked often, and how long at all: some guests send nothing.
const AT_FIRST: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(300);

/// The steps of one start; as many as there are kinds.
#[derive(Debug, Default)]
pub(super) struct Moments {
    seen: Vec<Moment>,
    phase: Option<Phase>,
}

impl Moments {
    /// What has been seen, in order.
    pub fn seen(&self) -> &[Moment] {
        &self.seen
    }

    /// Looks at where the instance is; called after whatever may have moved it.
    pub fn look(&mut self, phase: Phase) {
        let Some(before) = self.phase.replace(phase) else { return };
        if before == phase {
            return;
        }
        match (before, phase) {
            (_, Phase::Fetching) => {
                self.seen.clear();
                self.note("accepted");
            }
            (Phase::Fetching, Phase::Making) => self.note("images"),
            (Phase::Making, Phase::Attaching) => self.note("disks"),
            (Phase::Attaching, Phase::Spawning) => self.note("network"),
            (Phase::Releasing, Phase::Booting) => self.note("released"),
            (Phase::Booting, Phase::Running) => self.note("running"),
            _ => {}
        }
    }

    /// The guest has sent something.
    pub fn spoke(&mut self) {
        if self.seen.last().is_some_and(|last| last.what == "running") {
            self.note("first-packet");
        }
    }

    fn note(&mut self, what: &str) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.seen.push(Moment { what: what.to_owned(), at: millis(since) });
    }
}

/// Waits until the guest has sent a packet on any of its interfaces; `false` if it has not for long.
pub(super) async fn first_packet(executor: &Executor, desired: &DesiredInstance) -> bool {
    let client = ControlClient::new(executor.places.card_control("network"));
    let start = Instant::now();
    while start.elapsed() < PATIENCE && !desired.nics.is_empty() {
        for nic in &desired.nics {
            let path = format!("/v1/ports/{}", nic.id);
            let port = client.get::<PortDescription>(&path).await;
            if port.is_ok_and(|port| has_sent(&port.statistics)) {
                return true;
            }
        }
        sleep(if start.elapsed() < AT_FIRST { OFTEN } else { SELDOM }).await;
    }
    false
}

/// Whatever became of the packet.
fn has_sent(port: &PortStatistics) -> bool {
    let dropped = port.spoofed + port.unknown_destination + port.malformed + port.multicast;
    port.sent + port.answered + dropped + port.other_protocol > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_is_told_step_by_step_and_the_next_one_anew() {
        let mut moments = Moments::default();
        let start = [
            Phase::Stopped,
            Phase::Fetching,
            Phase::Making,
            Phase::Attaching,
            Phase::Spawning,
            Phase::Releasing,
            Phase::Booting,
            Phase::Running,
        ];
        let names = |moments: &Moments| {
            moments.seen().iter().map(|moment| moment.what.clone()).collect::<Vec<_>>()
        };
        for phase in start {
            moments.look(phase);
            moments.look(phase);
        }
        moments.spoke();
        moments.spoke();
        let all = ["accepted", "images", "disks", "network", "released", "running", "first-packet"];
        assert_eq!(names(&moments), all);
        assert!(moments.seen().is_sorted_by_key(|moment| moment.at));
        for phase in [Phase::Stopping, Phase::Ended, Phase::Stopped, Phase::Fetching] {
            moments.look(phase);
        }
        assert_eq!(names(&moments), ["accepted"]);
        // One that runs when the agent comes tells nothing: its steps were not seen.
        let mut found = Moments::default();
        found.look(Phase::Booting);
        found.look(Phase::Booting);
        found.spoke();
        assert!(names(&found).is_empty());
    }
}
