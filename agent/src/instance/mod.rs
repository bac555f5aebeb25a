//! One instance's life on this server, as a pure state machine: no clock, no thread, no file.
//!
//! [`Instance::plan`] looks at what is desired and what is known, and names the one thing to do next; the driver has it
//! done and tells the machine what came of it by [`Instance::apply`]. After a crash of the agent [`Instance::recover`]
//! begins from the record and from whether the VMM is still there.
//!
//! ```text
//!             Accept     Fetch       Make        Attach       Spawn       Release     (up)
//!  Stopped ───────────► Fetching ──► Making ──► Attaching ──► Spawning ─► Releasing ─► Booting ─► Running
//!   ▲ │ ▲    (a fault     │           │            │             │           │           │          │
//!   │ │ └──── leads back) ┴───────────┴────────────┴─────────────┴───────────┘           ▼          ▼
//!   │ │                                                                     ┌──────── Stopping ◄────┤
//!   │ │ Remove                                  Close                       ▼  (the VMM is gone)    │
//!   │ └─────► Deleting ──► Deleted      ┌────────────────────────────── Ended ◄─────────────────────┘
//!   └───────────────────────────────────┘
//! ```
//!
//! Invariants: a start is released only after the record of it is durable; each pair of epoch and boot generation is
//! released once; nothing that a lower epoch than the record's asks for is done; an instance that nobody desires is left
//! as it is.

#[cfg(test)]
mod simulation;

use crate::record::{Record, Run};
use bixi_api::agent::{
    DesiredInstance, Ending, InstanceState, LedgerEntry, PhaseTime, Power, StopMode,
};
use bixi_api::error::ApiError;

/// How long the first retry after a fault waits, in milliseconds; each further one waits twice as long.
const FIRST_RETRY: u64 = 500;
/// The longest wait before a retry, in milliseconds.
const LONGEST_RETRY: u64 = 30_000;

/// How long after an order to end at once the VMM is told again, in milliseconds.
const KILL_AGAIN: u64 = 5_000;

/// Where the instance is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// It does not run.
    Stopped,
    /// Its images come from the cloud.
    Fetching,
    /// Its disks are made.
    Making,
    /// Its disks and ports are attached.
    Attaching,
    /// Its VMM waits inside the jail for permission.
    Spawning,
    /// The start is written down, then permitted.
    Releasing,
    /// The VMM is not up yet.
    Booting,
    /// It runs.
    Running,
    /// It is being stopped.
    Stopping,
    /// Its VMM is gone; that is to be written down.
    Ended,
    /// What it has here is being removed.
    Deleting,
    /// Nothing of it is here.
    Deleted,
}

impl Phase {
    /// Whether the life of an instance may go from here to `next`.
    #[must_use]
    pub fn can_become(self, next: Self) -> bool {
        use Phase::{
            Attaching, Booting, Deleted, Deleting, Ended, Fetching, Making, Releasing, Running,
            Spawning, Stopped, Stopping,
        };
        matches!(
            (self, next),
            (Stopped, Fetching | Deleting)
                | (Fetching, Making)
                | (Making, Attaching)
                | (Attaching, Spawning)
                | (Spawning, Releasing)
                | (Releasing, Booting)
                | (Booting, Running)
                | (Booting | Running, Stopping)
                | (Releasing | Booting | Running | Stopping, Ended)
                | (
                    Fetching | Making | Attaching | Spawning | Releasing | Ended | Deleting,
                    Stopped
                )
                | (Deleting, Deleted)
        )
    }

    /// The same, as the cloud is told.
    #[must_use]
    pub fn state(self) -> InstanceState {
        match self {
            Self::Stopped => InstanceState::Stopped,
            Self::Fetching | Self::Making | Self::Attaching => InstanceState::Preparing,
            Self::Spawning | Self::Releasing | Self::Booting => InstanceState::Starting,
            Self::Running => InstanceState::Running,
            Self::Stopping | Self::Ended => InstanceState::Stopping,
            Self::Deleting => InstanceState::Deleting,
            Self::Deleted => InstanceState::Deleted,
        }
    }
}

/// The one thing to do next.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Write the record down: a definition is accepted.
    Accept(Box<Record>),
    /// Get the images that are not here yet.
    Fetch(Box<DesiredInstance>),
    /// Make the disks that are not here yet.
    Make(Box<DesiredInstance>),
    /// Attach disks and ports.
    Attach(Box<DesiredInstance>),
    /// Take disks and ports off the card.
    Detach(Box<DesiredInstance>),
    /// Put a VMM into its jail, waiting for permission.
    Spawn(Box<DesiredInstance>),
    /// Write the record down and permit the VMM to begin.
    Release(Box<Record>),
    /// Press the power button.
    Press,
    /// End the VMM at once.
    Kill,
    /// Write down how it ended.
    Close(Box<Record>),
    /// Write the record down: the ledger has changed.
    Note(Box<Record>),
    /// Remove what is here of it, these disks among it, and write that down.
    Remove {
        /// Whose disks.
        definitions: Vec<DesiredInstance>,
        /// What is true afterwards.
        record: Box<Record>,
    },
    /// Forget it.
    Forget,
    /// Give up the action that is under way.
    Abandon,
}

/// What has come to be.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The cloud desires this, or no longer anything.
    Desired(Option<Box<DesiredInstance>>),
    /// The action under way is done.
    Done,
    /// The VMM waits inside its jail.
    Spawned(Run),
    /// The action under way failed.
    Failed(ApiError),
    /// The VMM answers that its guest runs.
    Up,
    /// The VMM has ended; `launched` says whether it had had its permission.
    Exited {
        /// Whether it ran at all.
        launched: bool,
        /// How, if nobody here wanted it.
        ending: Ending,
    },
    /// The instance has felt a break.
    Disturbed(LedgerEntry),
    /// The ledger up to this entry has reached the cloud.
    Told(u64),
    /// A phase of the start took this long.
    Phase(PhaseTime),
}

/// What went wrong last.
#[derive(Debug, Clone, PartialEq)]
struct Fault {
    error: ApiError,
    tries: u32,
    retry_at: u64,
}

/// A stop on its way.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Stop {
    /// When the button was pressed.
    pressed_at: Option<u64>,
    /// When the VMM was last told to end at once.
    killed_at: Option<u64>,
}

/// An instance on this server.
#[derive(Debug, Clone, PartialEq)]
pub struct Instance {
    /// What is written down, or about to be.
    pub record: Record,
    phase: Phase,
    desired: Option<DesiredInstance>,
    /// Whether the card may have something of it.
    attached: bool,
    /// What is under way.
    under_way: Option<Action>,
    fault: Option<Fault>,
    stop: Stop,
    /// Whether the ledger has changed since the record was written.
    unsaved: bool,
}

impl Instance {
    /// One that this server has not seen, with its user's number.
    #[must_use]
    pub fn new(slot: u32) -> Self {
        Self {
            record: Record { slot, ..Record::default() },
            phase: Phase::Stopped,
            desired: None,
            attached: false,
            under_way: None,
            fault: None,
            stop: Stop::default(),
            unsaved: false,
        }
    }

    /// One that was written down. `alive` says whether the very VMM of the record is still there; if it is not, `ended` is
    /// what is to be said about it, and `launched` whether it ever ran.
    #[must_use]
    pub fn recover(record: Record, alive: bool, launched: bool, ended: Ending) -> Self {
        let mut this = Self { record, ..Self::new(0) };
        this.attached = this.record.definition.is_some() && !this.record.deleted;
        if this.record.deleted {
            this.phase = Phase::Deleted;
        } else if this.record.run.is_some() {
            this.phase = Phase::Booting;
            if !alive {
                this.exited(launched, ended);
            }
        }
        this
    }

    /// Where it is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// What went wrong last, while it keeps the instance from being as desired.
    #[must_use]
    pub fn error(&self) -> Option<ApiError> {
        match (&self.fault, &self.desired) {
            (Some(fault), _) => Some(fault.error.clone()),
            (None, Some(desired)) if self.is_stale(desired) => Some(ApiError::new(
                "StaleEpoch",
                format!(
                    "epoch {} is lower than {}, which this server has accepted.",
                    desired.epoch, self.record.epoch
                ),
                "Place the instance with a higher epoch.",
            )),
            _ => None,
        }
    }

    /// The boot generation that was started last, within the epoch.
    #[must_use]
    pub fn boot(&self) -> u64 {
        if self.record.started.0 == self.record.epoch { self.record.started.1 } else { 0 }
    }

    /// Tries again at once what has failed: its cause may be gone.
    pub fn hurry(&mut self) {
        if let Some(fault) = &mut self.fault {
            fault.retry_at = 0;
        }
    }

    /// Whether an action is under way.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.under_way.is_some()
    }

    /// When to plan again, if nothing happens before.
    #[must_use]
    pub fn wake_at(&self) -> Option<u64> {
        let retry = self.fault.as_ref().map(|fault| fault.retry_at);
        let stop = match (self.phase, &self.desired) {
            (Phase::Stopping, Some(desired)) => Some(self.kill_at(desired)),
            _ => None,
        };
        match (retry, stop) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    fn is_stale(&self, desired: &DesiredInstance) -> bool {
        desired.epoch < self.record.epoch
    }

    /// Whether a start is desired that has not been made.
    fn wants_start(&self, desired: &DesiredInstance) -> bool {
        desired.power == Power::Running
            && !self.is_stale(desired)
            && (desired.epoch, desired.boot) > self.record.started
    }

    /// The one thing to do next at `now` (milliseconds, from any beginning); `None` while there is nothing, or something
    /// is under way. The driver must begin what it is given.
    pub fn plan(&mut self, now: u64) -> Option<Action> {
        let action = self.next(now)?;
        match &action {
            Action::Abandon => {
                self.under_way = None;
                self.become_phase(Phase::Stopped);
            }
            Action::Press => {
                self.become_phase(Phase::Stopping);
                self.stop.pressed_at = Some(now);
            }
            Action::Kill => {
                if self.phase != Phase::Stopping {
                    self.become_phase(Phase::Stopping);
                }
                self.stop.killed_at = Some(now);
            }
            Action::Attach(_) => self.attached = true,
            Action::Note(_) => self.unsaved = false,
            Action::Remove { .. } => self.become_phase(Phase::Deleting),
            Action::Fetch(_) => self.become_phase(Phase::Fetching),
            _ => {}
        }
        if !matches!(action, Action::Press | Action::Kill | Action::Abandon) {
            self.under_way = Some(action.clone());
        }
        Some(action)
    }

    fn next(&self, now: u64) -> Option<Action> {
        let desired = self.desired.as_ref();
        if let Some(action) = &self.under_way {
            let long = matches!(action, Action::Fetch(_) | Action::Make(_));
            let wanted = desired.is_some_and(|desired| self.is_accepted(desired));
            return (long && !wanted).then_some(Action::Abandon);
        }
        if self.fault.as_ref().is_some_and(|fault| now < fault.retry_at)
            && !matches!(self.phase, Phase::Booting | Phase::Running | Phase::Stopping)
        {
            return None;
        }
        if self.unsaved && matches!(self.phase, Phase::Running | Phase::Stopped) {
            return Some(Action::Note(Box::new(self.record.clone())));
        }
        match self.phase {
            Phase::Stopped => self.next_stopped(desired?),
            Phase::Fetching | Phase::Making | Phase::Attaching | Phase::Spawning => {
                match desired.filter(|desired| self.is_accepted(desired)) {
                    None => Some(Action::Abandon),
                    Some(desired) => Some(self.next_start(desired.clone())),
                }
            }
            Phase::Releasing => Some(Action::Release(Box::new(self.record.clone()))),
            Phase::Booting | Phase::Running | Phase::Stopping => self.next_stop(desired?, now),
            Phase::Ended => {
                Some(Action::Close(Box::new(Record { run: None, ..self.record.clone() })))
            }
            Phase::Deleting => None,
            Phase::Deleted => desired.is_none().then_some(Action::Forget),
        }
    }

    /// Whether this very definition was accepted, and a start of it is still wanted.
    fn is_accepted(&self, desired: &DesiredInstance) -> bool {
        self.wants_start(desired) && self.record.definition.as_ref() == Some(desired)
    }

    fn next_stopped(&self, desired: &DesiredInstance) -> Option<Action> {
        if self.is_stale(desired) {
            return None;
        }
        // A start that was cut off is begun anew from where nothing is attached.
        if let (true, Some(old)) = (self.attached, &self.record.definition) {
            return Some(Action::Detach(Box::new(old.clone())));
        }
        if desired.power == Power::Deleted {
            let definitions = self.record.definition.iter().chain([desired]).cloned().collect();
            let epoch = desired.epoch;
            let record = Record { deleted: true, run: None, epoch, ..self.record.clone() };
            return Some(Action::Remove { definitions, record: Box::new(record) });
        }
        if self.record.definition.as_ref() != Some(desired) {
            let definition = Some(desired.clone());
            let record = Record { definition, epoch: desired.epoch, ..self.record.clone() };
            return Some(Action::Accept(Box::new(record)));
        }
        self.wants_start(desired).then(|| Action::Fetch(Box::new(desired.clone())))
    }

    fn next_start(&self, desired: DesiredInstance) -> Action {
        let desired = Box::new(desired);
        match self.phase {
            Phase::Making => Action::Make(desired),
            Phase::Attaching => Action::Attach(desired),
            Phase::Spawning => Action::Spawn(desired),
            _ => Action::Fetch(desired),
        }
    }

    fn next_stop(&self, desired: &DesiredInstance, now: u64) -> Option<Action> {
        let stays = self.is_stale(desired)
            || (desired.power == Power::Running
                && (desired.epoch, desired.boot) <= self.record.started);
        if self.phase != Phase::Stopping {
            return match (stays, self.phase, desired.stop) {
                (true, ..) => None,
                (false, Phase::Running, StopMode::Orderly { .. }) => Some(Action::Press),
                (false, ..) => Some(Action::Kill),
            };
        }
        (now >= self.kill_at(desired)).then_some(Action::Kill)
    }

    /// When a VMM that is being stopped is to be ended: at the deadline, and again if that had no effect.
    fn kill_at(&self, desired: &DesiredInstance) -> u64 {
        match (self.stop.killed_at, self.stop.pressed_at) {
            (Some(at), _) => at.saturating_add(KILL_AGAIN),
            (None, Some(at)) => at.saturating_add(deadline(desired.stop)),
            (None, None) => 0,
        }
    }

    /// Takes in what has come to be at `now`.
    pub fn apply(&mut self, event: Event, now: u64) {
        match event {
            Event::Desired(desired) => {
                let desired = desired.map(|desired| *desired);
                if self.desired != desired {
                    self.desired = desired;
                    // What could not be done may be possible as it is desired now.
                    self.fault = None;
                }
            }
            Event::Done => self.done(),
            Event::Spawned(run) => self.spawned(run),
            Event::Failed(error) => self.failed(error, now),
            Event::Up => {
                if self.phase == Phase::Booting {
                    self.fault = None;
                    self.become_phase(Phase::Running);
                }
            }
            Event::Exited { launched, ending } => self.exited(launched, ending),
            Event::Disturbed(entry) => {
                self.record.ledger_sequence += 1;
                let sequence = self.record.ledger_sequence;
                self.record.ledger.push(LedgerEntry { sequence, ..entry });
                self.unsaved = true;
            }
            Event::Told(sequence) => {
                self.record.ledger.retain(|entry| entry.sequence > sequence);
                self.unsaved = true;
            }
            Event::Phase(time) => self.record.phases.push(time),
        }
    }

    fn done(&mut self) {
        let Some(action) = self.under_way.take() else { return };
        let mut fault = self.fault.take();
        match action {
            Action::Accept(record) => {
                self.record.definition = record.definition;
                self.record.epoch = record.epoch;
            }
            Action::Fetch(_) => {
                self.record.phases.clear();
                self.become_phase(Phase::Making);
            }
            Action::Make(_) => self.become_phase(Phase::Attaching),
            Action::Attach(_) => self.become_phase(Phase::Spawning),
            Action::Detach(_) => self.attached = false,
            Action::Release(_) => {
                self.stop = Stop::default();
                // Unless it has ended already.
                if self.phase == Phase::Releasing {
                    self.become_phase(Phase::Booting);
                }
            }
            Action::Close(record) => {
                self.record.run = record.run;
                self.become_phase(Phase::Stopped);
            }
            Action::Remove { record, .. } => {
                self.record = *record;
                self.attached = false;
                self.become_phase(Phase::Deleted);
            }
            _ => {}
        }
        // Within a start a fault is forgotten when the whole start has succeeded, so that retries get rarer.
        if let Some(fault) = &mut fault
            && matches!(
                self.phase,
                Phase::Making | Phase::Attaching | Phase::Spawning | Phase::Releasing
            )
        {
            fault.retry_at = 0;
            self.fault = Some(fault.clone());
        }
    }

    fn spawned(&mut self, run: Run) {
        let Some(Action::Spawn(desired)) = self.under_way.take() else { return };
        self.record.run = Some(run);
        self.record.started = (desired.epoch, desired.boot);
        self.record.ended = None;
        self.become_phase(Phase::Releasing);
    }

    fn failed(&mut self, error: ApiError, now: u64) {
        let tries = self.fault.as_ref().map_or(0, |fault| fault.tries);
        let wait = FIRST_RETRY.saturating_mul(1 << tries.min(16)).min(LONGEST_RETRY);
        self.fault = Some(Fault { error, tries: tries + 1, retry_at: now.saturating_add(wait) });
        match self.under_way.take() {
            // It was never permitted, so this start may be made again.
            Some(Action::Release(_)) => self.never_ran(),
            Some(Action::Note(_)) => self.unsaved = true,
            Some(Action::Close(_) | Action::Accept(_) | Action::Detach(_) | Action::Forget) => {}
            _ => {
                if self.phase.can_become(Phase::Stopped) && self.phase != Phase::Ended {
                    self.become_phase(Phase::Stopped);
                }
            }
        }
    }

    fn exited(&mut self, launched: bool, ending: Ending) {
        if !launched {
            // The driver learns the end of a release from its failure too; whichever comes first is taken.
            if matches!(self.phase, Phase::Releasing | Phase::Booting | Phase::Stopping) {
                self.under_way = None;
                self.never_ran();
            }
            return;
        }
        if !self.phase.can_become(Phase::Ended) {
            return;
        }
        self.under_way = None;
        let wanted = self.phase == Phase::Stopping;
        self.record.ended = Some(match ending {
            Ending::ServerRestarted => ending,
            _ if wanted => Ending::Stopped { forced: self.stop.killed_at.is_some() },
            _ => ending,
        });
        self.stop = Stop::default();
        self.become_phase(Phase::Ended);
    }

    /// The VMM of the record was never permitted to run: as if it had not been made.
    fn never_ran(&mut self) {
        self.record.run = None;
        let (epoch, boot) = self.record.started;
        self.record.started = (epoch, boot.saturating_sub(1));
        self.stop = Stop::default();
        // Not a step of its life, but the taking back of some.
        self.phase = Phase::Stopped;
    }

    fn become_phase(&mut self, next: Phase) {
        if self.phase != next && !self.phase.can_become(next) {
            tracing::error!(now = ?self.phase, ?next, "an instance took a step that its life does not have");
        }
        self.phase = next;
    }
}

/// How long after the button the power goes, in milliseconds.
fn deadline(stop: StopMode) -> u64 {
    match stop {
        StopMode::Orderly { deadline_seconds } => u64::from(deadline_seconds) * 1000,
        StopMode::Forced => 0,
    }
}
