//! The one task that owns the agent's state.
//!
//! It selects the next event (what the cloud desires, what came of an action, a process's end, a timer) and applies it
//! synchronously; what takes time runs in tasks that send an event when they are done. What is to be done is decided by the
//! machine of each instance ([`crate::instance`]).
//!
//! Invariants: one action of an instance at a time; an event of a task that was given up, or of a VMM that is not the
//! record's, changes nothing; nothing is stopped because the cloud is away.

mod moments;
mod report;
mod vmm;

use crate::cloud::{self, Heard, Numbered};
use crate::console::Streams;
use crate::durable;
use crate::executor::Executor;
use crate::instance::{Action, Event, Instance, Phase};
use crate::inventory::Fixed;
use crate::points;
use crate::process::Watched;
use crate::record::{Record, RecordError, Run};
use crate::supervisor::Change;
use bixi_api::agent::{DesiredState, Ending, LedgerEntry, ObservedCard, PhaseTime, Progress};
use bixi_api::error::ApiError;
use bixi_offload::failpoint;
use moments::Moments;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// How long the driver sleeps at most, and how old the inventory in a report gets.
const LONGEST_SLEEP: Duration = Duration::from_secs(10);
/// How long after a failure segments are told to the card again.
const SEGMENT_RETRY: Duration = Duration::from_secs(1);

/// What reaches the driver from its tasks.
#[derive(Debug)]
enum Told {
    /// What came of an action; the number tells tasks of one instance apart.
    Action { id: String, number: u64, events: Vec<Event> },
    /// A VMM has ended.
    Exited { id: String, run: Run, event: Event },
    /// A VMM's guest runs.
    Up { id: String, run: Run },
    /// It has sent its first packet.
    Spoke { id: String, run: Run },
    /// The card was told the segments, or was not.
    Segments(bool),
}

/// An instance, and what runs for it.
#[derive(Debug)]
struct Held {
    machine: Instance,
    task: Option<JoinHandle<()>>,
    number: u64,
    vmm: Option<Arc<Watched>>,
    progress: Option<Progress>,
    /// The end of its VMM, told while an action was under way.
    exit: Option<Event>,
    /// When its VMM was last permitted to begin.
    released: Option<Instant>,
    /// Ledger entries in the report that is on its way.
    in_report: (u64, u64),
    moments: Moments,
    /// Waits for the guest's first packet.
    listening: Option<JoinHandle<()>>,
}

/// A card process, as it is known.
#[derive(Debug)]
struct CardState {
    observed: ObservedCard,
    down_since: Option<Instant>,
}

/// The driver.
#[derive(Debug)]
pub struct Driver {
    executor: Arc<Executor>,
    fixed: Fixed,
    desired: DesiredState,
    refused: Option<ApiError>,
    instances: BTreeMap<String, Held>,
    /// Records that cannot be read: their instances are not touched.
    damaged: BTreeMap<String, ApiError>,
    cards: BTreeMap<&'static str, CardState>,
    streams: Streams,
    segments_due: Option<Instant>,
    telling_segments: bool,
    clock: Instant,
    reports: watch::Sender<Numbered>,
    report_number: u64,
    reported_at: Instant,
    told: mpsc::UnboundedSender<Told>,
    inbox: mpsc::UnboundedReceiver<Told>,
}

/// What else the driver listens to.
#[derive(Debug)]
pub struct Sources {
    /// The cloud.
    pub heard: mpsc::UnboundedReceiver<Heard>,
    /// The card processes.
    pub cards: mpsc::UnboundedReceiver<(&'static str, Change)>,
    /// How far long actions are.
    pub progress: mpsc::UnboundedReceiver<(String, Option<Progress>)>,
}

impl Driver {
    /// A driver that goes on where the last one ended. Must be called inside the runtime.
    ///
    /// # Errors
    /// The records cannot be looked at.
    pub fn new(
        executor: Arc<Executor>,
        fixed: Fixed,
        reports: watch::Sender<Numbered>,
    ) -> Result<Self, RecordError> {
        let (told, inbox) = mpsc::unbounded_channel();
        let card = |name: &str| CardState {
            observed: ObservedCard {
                name: name.to_owned(),
                pid: None,
                release: None,
                restarts: 0,
                error: None,
            },
            down_since: None,
        };
        let mut driver = Self {
            desired: DesiredState::default(),
            refused: None,
            instances: BTreeMap::new(),
            damaged: BTreeMap::new(),
            cards: ["network", "storage"].map(|name| (name, card(name))).into(),
            streams: Streams::default(),
            segments_due: None,
            telling_segments: false,
            clock: Instant::now(),
            report_number: 0,
            reported_at: Instant::now(),
            executor,
            fixed,
            reports,
            told,
            inbox,
        };
        for (id, record) in driver.executor.records.all()? {
            match record {
                Ok(record) => driver.recover(id, record),
                Err(error) => {
                    let message = format!("{}.", crate::executor::describe(&error));
                    let hint = "Restore it from a copy; until then the instance is not touched.";
                    tracing::error!(instance = id, %error, "a record cannot be read");
                    driver.damaged.insert(id, ApiError::new("RecordDamaged", message, hint));
                }
            }
        }
        driver.read_desired();
        Ok(driver)
    }

    /// The revision that is worked on.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.desired.revision
    }

    /// Takes up an instance that was written down, with its VMM if that is still there.
    fn recover(&mut self, id: String, record: Record) {
        let (vmm, launched, ending) = vmm::find(&self.executor, &id, record.run.as_ref());
        let alive = vmm.is_some();
        if let Some(run) = &record.run {
            tracing::info!(instance = id, pid = run.pid, alive, launched, "found an instance");
        }
        let machine = Instance::recover(record, alive, launched, ending);
        self.hold(id.clone(), machine);
        if let Some(vmm) = vmm {
            self.watch(&id, vmm);
        }
    }

    fn hold(&mut self, id: String, machine: Instance) {
        let held = Held {
            machine,
            task: None,
            number: 0,
            vmm: None,
            progress: None,
            exit: None,
            released: None,
            in_report: (0, 0),
            moments: Moments::default(),
            listening: None,
        };
        self.instances.insert(id, held);
    }

    /// What was desired last holds until the cloud says something else.
    fn read_desired(&mut self) {
        let path = self.executor.places.desired();
        let Ok(text) = std::fs::read(&path) else { return };
        match serde_json::from_slice::<DesiredState>(&text) {
            Ok(desired) => self.desire(desired),
            Err(error) => {
                tracing::warn!(%error, "the desired state last seen is not understood; waiting for the cloud");
            }
        }
    }

    /// Runs until `end` completes. VMMs and card processes go on.
    pub async fn run(mut self, mut sources: Sources, end: impl Future<Output = ()>) {
        tokio::pin!(end);
        loop {
            self.plan_all();
            self.report();
            let sleep = tokio::time::sleep(self.sleep());
            tokio::select! {
                () = &mut end => return,
                Some(told) = self.inbox.recv() => self.apply(told),
                Some(heard) = sources.heard.recv() => self.hear(heard),
                Some((name, change)) = sources.cards.recv() => self.card(name, change),
                Some((id, progress)) = sources.progress.recv() => {
                    if let Some(held) = self.instances.get_mut(&id) {
                        held.progress = progress;
                    }
                }
                () = sleep => {}
            }
        }
    }

    fn now(&self) -> u64 {
        millis(self.clock.elapsed())
    }

    fn sleep(&self) -> Duration {
        let now = self.now();
        let waking = self.instances.values().filter_map(|held| held.machine.wake_at());
        // What is due and waits for an event has been planned already.
        let waking = waking.filter(|at| *at > now).map(|at| Duration::from_millis(at - now));
        let up = self.cards.get("network").is_some_and(|card| card.observed.pid.is_some());
        let segments = self
            .segments_due
            .filter(|_| up && !self.telling_segments)
            .map(|at| at.saturating_duration_since(Instant::now()));
        waking.chain(segments).min().unwrap_or(LONGEST_SLEEP).min(LONGEST_SLEEP)
    }

    fn hear(&mut self, heard: Heard) {
        match heard {
            Heard::Desired(desired) => {
                self.refused = None;
                let path = self.executor.places.desired();
                let kept = serde_json::to_vec(&*desired).map_err(std::io::Error::other);
                if let Err(error) = kept.and_then(|text| durable::write(&path, &text)) {
                    // Records say what runs; without this an agent that starts again waits for the cloud.
                    tracing::warn!(%error, "cannot keep the desired state");
                }
                self.desire(*desired);
            }
            Heard::Refused(error) => {
                tracing::error!(%error, "what the cloud desires is not done");
                self.refused = Some(error);
            }
            Heard::Reported(number) => self.reported(number),
        }
    }

    fn desire(&mut self, desired: DesiredState) {
        tracing::debug!(revision = desired.revision, "desired");
        let now = self.now();
        for wanted in &desired.instances {
            if self.damaged.contains_key(&wanted.id) {
                continue;
            }
            if !good_id(&wanted.id) {
                let message = format!("`{}` cannot be an instance's id.", wanted.id);
                self.refused = Some(ApiError::new("BadId", message, "Look after the cloud."));
                continue;
            }
            if !self.instances.contains_key(&wanted.id) {
                let machine = Instance::new(self.free_slot());
                self.hold(wanted.id.clone(), machine);
            }
        }
        for (id, held) in &mut self.instances {
            let wanted = desired.instances.iter().find(|wanted| wanted.id == *id);
            held.machine.apply(Event::Desired(wanted.cloned().map(Box::new)), now);
        }
        if desired.segments != self.desired.segments {
            self.segments_due = Some(Instant::now());
        }
        let places = self.executor.places.clone();
        self.streams.want(&desired.streams, &self.executor.cloud, |id| places.vm(id).console());
        self.desired = desired;
    }

    fn free_slot(&self) -> u32 {
        let taken = |slot| self.instances.values().any(|held| held.machine.record.slot == slot);
        (1..).find(|slot| !taken(*slot)).unwrap_or(u32::MAX)
    }

    fn apply(&mut self, told: Told) {
        let now = self.now();
        match told {
            Told::Action { id, number, events } => {
                let Some(held) = self.instances.get_mut(&id) else { return };
                if held.number != number {
                    return;
                }
                held.task = None;
                for event in events {
                    if let Event::Failed(error) = &event {
                        tracing::warn!(instance = id, %error, "cannot go on");
                    }
                    held.machine.apply(event, now);
                }
                if let Some(exit) = held.exit.take() {
                    held.machine.apply(exit, now);
                }
                self.after(&id);
            }
            Told::Exited { id, run, event } => {
                let Some(held) = self.instances.get_mut(&id) else { return };
                if held.machine.record.run.as_ref() == Some(&run) {
                    held.vmm = None;
                    held.listening.take().inspect(JoinHandle::abort);
                    tracing::info!(instance = id, pid = run.pid, ?event, "a VMM has ended");
                    // What is under way is short, and its outcome comes first.
                    match &held.task {
                        Some(_) => held.exit = Some(event),
                        None => held.machine.apply(event, now),
                    }
                }
            }
            Told::Up { id, run } => {
                let Some(held) = self.instances.get_mut(&id) else { return };
                if held.machine.record.run.as_ref() == Some(&run) {
                    held.machine.apply(Event::Up, now);
                    if let Some(released) = held.released.take() {
                        let milliseconds = millis(released.elapsed());
                        let phase = "vmm".to_owned();
                        held.machine.apply(Event::Phase(PhaseTime { phase, milliseconds }), now);
                        self.listen(&id, run.clone());
                    }
                    tracing::info!(instance = id, pid = run.pid, "an instance runs");
                }
            }
            Told::Spoke { id, run } => {
                let Some(held) = self.instances.get_mut(&id) else { return };
                if held.machine.record.run.as_ref() == Some(&run) {
                    held.moments.look(held.machine.phase());
                    held.moments.spoke();
                }
            }
            Told::Segments(done) => {
                self.telling_segments = false;
                if !done {
                    self.segments_due = Some(Instant::now() + SEGMENT_RETRY);
                }
            }
        }
    }

    /// What a finished action leads to beside the machine: a new VMM is watched, a forgotten instance is let go.
    fn after(&mut self, id: &str) {
        let Some(held) = self.instances.get(id) else { return };
        let (phase, run) = (held.machine.phase(), held.machine.record.run.clone());
        if phase == Phase::Releasing && held.vmm.is_none() {
            match run.map(|run| vmm::watch(&run)) {
                Some(Some(vmm)) => self.watch(id, vmm),
                // It has ended while it waited.
                _ => {
                    let ending = Ending::Unseen;
                    let now = self.now();
                    if let Some(held) = self.instances.get_mut(id) {
                        held.machine.apply(Event::Exited { launched: false, ending }, now);
                    }
                }
            }
        }
        if phase == Phase::Deleted && self.is_forgotten(id) {
            self.instances.remove(id);
        }
    }

    fn is_forgotten(&self, id: &str) -> bool {
        let known = self.desired.instances.iter().any(|wanted| wanted.id == id);
        let record = self.executor.places.records().join(id);
        !known && !record.exists()
    }

    /// Watches a VMM until it ends, and until its guest runs.
    fn watch(&mut self, id: &str, vmm: Arc<Watched>) {
        let Some(held) = self.instances.get_mut(id) else { return };
        let Some(run) = held.machine.record.run.clone() else { return };
        held.vmm = Some(Arc::clone(&vmm));
        vmm::follow(&self.executor, id, run, vmm, self.told.clone());
    }

    /// Waits for the first packet of a guest that has begun, for as long as its VMM is there.
    fn listen(&mut self, id: &str, run: Run) {
        let Some(held) = self.instances.get_mut(id) else { return };
        let Some(desired) = held.machine.record.definition.clone() else { return };
        let (executor, told, name) = (Arc::clone(&self.executor), self.told.clone(), id.to_owned());
        held.listening = Some(tokio::spawn(async move {
            if moments::first_packet(&executor, &desired).await {
                let _ = told.send(Told::Spoke { id: name, run });
            }
        }));
    }

    fn plan_all(&mut self) {
        let now = self.now();
        let ids: Vec<_> = self.instances.keys().cloned().collect();
        for id in ids {
            self.look(&id);
            // Without a wait for anything, an instance may have several things to do.
            while let Some(action) =
                self.instances.get_mut(&id).and_then(|held| held.machine.plan(now))
            {
                self.begin(&id, action);
            }
            self.look(&id);
        }
        let due = self.segments_due.is_some_and(|at| at <= Instant::now());
        let up = self.cards.get("network").is_some_and(|card| card.observed.pid.is_some());
        if due && up && !self.telling_segments {
            self.segments_due = None;
            self.telling_segments = true;
            let (executor, told) = (Arc::clone(&self.executor), self.told.clone());
            let segments = self.desired.segments.clone();
            tokio::spawn(async move {
                let synced = executor.sync_segments(&segments).await;
                if let Err(error) = &synced {
                    tracing::warn!(?error, "the network process does not take the segments");
                }
                let _ = told.send(Told::Segments(synced.is_ok()));
            });
        }
    }

    fn look(&mut self, id: &str) {
        if let Some(held) = self.instances.get_mut(id) {
            held.moments.look(held.machine.phase());
        }
    }

    fn begin(&mut self, id: &str, action: Action) {
        let Some(held) = self.instances.get_mut(id) else { return };
        match action {
            Action::Abandon => {
                held.give_up_task();
                held.progress = None;
                self.executor.refuse(id);
            }
            Action::Kill => {
                failpoint::hit(points::BEFORE_STOP);
                vmm::kill(id, held.vmm.as_deref());
            }
            Action::Press => {
                failpoint::hit(points::BEFORE_STOP);
                vmm::press(&self.executor, id);
            }
            action => {
                held.number += 1;
                if matches!(action, Action::Release(_)) {
                    held.released = Some(Instant::now());
                }
                let number = held.number;
                let (executor, told) = (Arc::clone(&self.executor), self.told.clone());
                let (id, slot) = (id.to_owned(), held.machine.record.slot);
                let segments = self.desired.segments.clone();
                held.task = Some(tokio::spawn(async move {
                    let events = executor.act(&id, slot, &action, &segments).await;
                    let _ = told.send(Told::Action { id, number, events });
                }));
            }
        }
    }

    fn card(&mut self, name: &'static str, change: Change) {
        let Some(card) = self.cards.get_mut(name) else { return };
        match change {
            Change::Up { pid, release, started } => {
                card.observed.pid = Some(pid);
                card.observed.release = Some(release);
                card.observed.error = None;
                let down_since = card.down_since.take();
                if let (true, Some(since)) = (started, down_since) {
                    card.observed.restarts += 1;
                    self.disturbed(name, since.elapsed());
                }
                // What failed for want of it need not wait any longer.
                self.instances.values_mut().for_each(|held| held.machine.hurry());
                if name == "network" {
                    self.segments_due = Some(Instant::now());
                }
            }
            Change::Down(error) => {
                // One that has not been up yet breaks nothing.
                if card.observed.pid.take().is_some() {
                    card.down_since = Some(Instant::now());
                }
                card.observed.error = Some(error);
            }
        }
    }

    /// Every running instance has felt a card's death.
    fn disturbed(&mut self, card: &str, length: Duration) {
        let now = self.now();
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let entry = LedgerEntry {
            sequence: 0,
            at: millis(wall.saturating_sub(length)),
            cause: format!("{card}-restart"),
            milliseconds: millis(length),
        };
        for held in self.instances.values_mut() {
            if held.machine.phase() == Phase::Running {
                held.machine.apply(Event::Disturbed(entry.clone()), now);
            }
        }
    }
}

impl Held {
    /// Whatever the task under way says from here on changes nothing.
    fn give_up_task(&mut self) {
        self.number += 1;
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Whether an id is one, and so a safe file name: it becomes one.
fn good_id(id: &str) -> bool {
    let good = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'_';
    (1..=64).contains(&id.len()) && id.bytes().all(good)
}

/// Starts the two conversations with the cloud.
pub fn converse(
    executor: &Executor,
    server: String,
    revision: u64,
    reports: watch::Receiver<Numbered>,
) -> mpsc::UnboundedReceiver<Heard> {
    let (said, heard) = mpsc::unbounded_channel();
    tokio::spawn(cloud::listen(executor.cloud.clone(), server, revision, said.clone()));
    tokio::spawn(cloud::report(executor.cloud.clone(), reports, said));
    heard
}
