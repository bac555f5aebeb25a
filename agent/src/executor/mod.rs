//! Does what the machine of an instance plans.
//!
//! Each action can be done again after it was cut off anywhere: what is there already is taken as it is. Nothing here
//! decides; whatever goes wrong becomes an error that tells the operator what to do. Called by the driver, one action of
//! an instance at a time, in a task that may be dropped at any point.

mod cards;
mod disks;
mod fault;
mod images;
mod launch;

pub(crate) use launch::log_end;

pub use fault::{Fault, describe};

use crate::instance::{Action, Event};
use crate::jail::cgroup::Groups;
use crate::places::Places;
use crate::points;
use crate::process::Identity;
use crate::record::{Record, Records};
use bixi_api::agent::{AgentClient, DesiredSegment, PhaseTime, Progress};
use bixi_api::client::ControlClient;
use bixi_offload::failpoint;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::process::ChildStdin;
use tokio::sync::mpsc;

/// What all actions need.
#[derive(Debug)]
pub struct Executor {
    /// Where things are.
    pub places: Places,
    /// What is written down.
    pub records: Records,
    /// The cloud, for images.
    pub cloud: AgentClient,
    /// Control groups, if this server has them.
    pub groups: Option<Groups>,
    /// The user of the first VMM; the others follow.
    pub first_user: u32,
    /// The server's boot.
    pub boot_id: String,
    /// How far long actions are, by instance.
    pub progress: mpsc::UnboundedSender<(String, Option<Progress>)>,
    /// VMMs that wait for permission: closing the pipe refuses it.
    waiting: Mutex<HashMap<String, (Identity, ChildStdin)>>,
    /// Images come one after the other, so that no two tasks write the same one.
    fetching: tokio::sync::Mutex<()>,
}

impl Executor {
    /// An executor; `progress` hears how far long actions are.
    #[must_use]
    pub fn new(
        places: Places,
        records: Records,
        cloud: AgentClient,
        groups: Option<Groups>,
        first_user: u32,
        boot_id: String,
        progress: mpsc::UnboundedSender<(String, Option<Progress>)>,
    ) -> Self {
        let (waiting, fetching) = (Mutex::default(), tokio::sync::Mutex::default());
        Self { places, records, cloud, groups, first_user, boot_id, progress, waiting, fetching }
    }

    /// Does `action` for the instance `id`, whose VMM's user is number `slot`; `segments` are those that are desired.
    pub async fn act(
        self: &Arc<Self>,
        id: &str,
        slot: u32,
        action: &Action,
        segments: &[DesiredSegment],
    ) -> Vec<Event> {
        let start = Instant::now();
        failpoint::hit(points::BEFORE_ACTION);
        let (phase, done) = match action {
            Action::Accept(record) | Action::Note(record) | Action::Close(record) => {
                (None, self.write(id, record))
            }
            Action::Fetch(desired) => (Some("images"), self.fetch(id, desired).await),
            Action::Make(desired) => (Some("disks"), self.make(id, desired).await),
            Action::Attach(desired) => {
                (Some("network"), self.attach(id, slot, desired, segments).await)
            }
            Action::Detach(desired) => (None, self.detach(desired).await),
            Action::Spawn(desired) => match self.spawn(id, slot, desired).await {
                Ok(run) => return vec![Event::Spawned(run)],
                Err(fault) => (None, Err(fault)),
            },
            Action::Release(record) => (None, self.release(id, record).await),
            Action::Remove { definitions, record } => {
                (None, self.remove(id, definitions, record).await)
            }
            Action::Forget => (None, self.records.remove(id).map_err(Fault::from)),
            // These are no actions of an instance that waits for them: the driver does them itself.
            Action::Press | Action::Kill | Action::Abandon => return Vec::new(),
        };
        failpoint::hit(points::AFTER_ACTION);
        let _ = self.progress.send((id.to_owned(), None));
        match done {
            Err(fault) => vec![Event::Failed(fault.into())],
            Ok(()) => {
                let milliseconds = start.elapsed().as_millis().try_into().unwrap_or(u64::MAX);
                let time = phase
                    .map(|phase| Event::Phase(PhaseTime { phase: phase.to_owned(), milliseconds }));
                std::iter::once(Event::Done).chain(time).collect()
            }
        }
    }

    /// Without a point where the task could be dropped in between: a write is over before another one begins.
    fn write(&self, id: &str, record: &Record) -> Result<(), Fault> {
        Ok(self.records.write(id, record)?)
    }

    fn storage(&self) -> ControlClient {
        failpoint::hit(points::BEFORE_CARD);
        ControlClient::new(self.places.card_control("storage"))
    }

    fn network(&self) -> ControlClient {
        failpoint::hit(points::BEFORE_CARD);
        ControlClient::new(self.places.card_control("network"))
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, HashMap<String, (Identity, ChildStdin)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, id: &str, what: &str, done: u64, total: u64) {
        let progress = Progress { what: what.to_owned(), done, total };
        // The driver may be ending.
        let _ = self.progress.send((id.to_owned(), Some(progress)));
    }
}
