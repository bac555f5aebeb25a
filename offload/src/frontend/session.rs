//! The front end's side of a vhost-user session, as a pure state machine that outlives its back end.
//!
//! ```text
//!              Begin, Deadline            Connected                 answers
//!   waiting ──────────────────► connecting ────────► conversation ◄────────┐
//!      ▲                            │                   │      └───────────┘
//!      └────────────────────────────┴───────────────────┘
//!        ConnectFailed, Disconnected, Deadline, a broken or refused answer
//! ```
//!
//! The session keeps what the device shall be (*desired*: the activation, regions of memory, the log) apart from what
//! the back end at hand has been told (*conversation*). Whenever no answer is outstanding it compares the two
//! and sends what is missing. So events may come in any order and at any time, and a back end that died is
//! replaced by telling everything to the next one; there is no second path for reconnecting.
//!
//! Invariants:
//! - A back end is never told to start rings with fewer features, rings, regions or without the in-flight record that the
//!   requests in flight rely on; it is refused, and the next connection tried, for as long as it takes.
//! - [`Action::Running`] comes only when the back end has worked off every message of the start. [`Action::Stopped`] comes exactly once for
//!   each [`Event::Deactivate`].
//! - Nothing the back end sends makes a step fail: what no back end may send ends the connection.
//!
//! RESET_DEVICE and SET_STATUS are not used: GET_VRING_BASE on each ring stops a device as well, and all back ends know it.

use super::conversation::{Answer, Conversation, Stage};
use super::types::{
    Action, Activation, Down, Event, FrontConfig, Incoming, LogArea, Probe, Record, Region, Timer,
};
use crate::vhost_user::FEATURE_LOG_ALL;
use crate::vhost_user::codec::{Reply, protocol};
use std::time::Duration;
use vhost::vhost_user::message::BackendReq;

/// The pause before the first try to reconnect, and the longest one. A card process is back within milliseconds.
const PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(100));

/// The state of a front end's session. See the module's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrontSession {
    pub(super) config: FrontConfig,
    pub(super) link: Link,
    pub(super) active: Option<Active>,
    pub(super) stopping: Option<Stop>,
    pub(super) memory: Vec<Region>,
    pub(super) log: Option<LogArea>,
    pub(super) record: Option<Record>,
    /// Whether a back end died while it may have been at work on the rings, and none has taken over since.
    pub(super) unclear: bool,
    pub(super) probe: Option<Probe>,
    /// Failed tries since a back end was last accepted.
    pub(super) tries: u32,
    pub(super) connections: u64,
    pub(super) generation: u64,
    /// Notifications that are due as soon as no answer is outstanding.
    pub(super) owed: Owed,
}

/// The connection to the back end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Link {
    /// Not yet begun, or waiting for the deadline of the next try.
    Waiting,
    Connecting,
    Up(Box<Conversation>),
}

/// What the driver set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Active {
    pub generation: u64,
    pub activation: Activation,
}

/// Orders to stop that are not done yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stop {
    pub resumable: bool,
    /// For each order the rings, and where they go on if no back end ever ran them.
    pub orders: Vec<Vec<(u16, u16)>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Owed {
    pub memory: bool,
    pub log: bool,
    pub calls: Vec<u16>,
}

impl FrontSession {
    /// A session that begins with [`Event::Begin`].
    #[must_use]
    pub fn new(config: FrontConfig) -> Self {
        Self {
            config,
            link: Link::Waiting,
            active: None,
            stopping: None,
            memory: Vec::new(),
            log: None,
            record: None,
            unclear: false,
            probe: None,
            tries: 0,
            connections: 0,
            generation: 0,
            owed: Owed::default(),
        }
    }

    /// Takes what happened; puts what the shell shall do behind `out`'s content.
    pub fn step(&mut self, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::Begin => self.connect(out),
            Event::Connected { used } => self.connected(&used, out),
            Event::ConnectFailed => self.connect_failed(out),
            Event::Disconnected => self.lose(Down::Closed, false, out),
            Event::Message(message) => self.message(&message, out),
            Event::ChannelMessage(message) => self.channel_message(&message, out),
            Event::Deadline(timer) => self.deadline(timer, out),
            Event::Activate(activation) => self.activate(activation, out),
            Event::Deactivate { resumable, within } => self.deactivate(resumable, within, out),
            Event::EnableRing { index, enabled } => self.enable_ring(index, enabled),
            Event::CallReplaced { index } => self.call_replaced(index),
            Event::Memory(memory) => {
                self.memory = memory;
                self.owed.memory = true;
            }
            Event::Log(log) => {
                self.log = log;
                self.owed.log = true;
            }
        }
        if let Err(down) = self.advance(out) {
            self.lose(down, true, out);
        }
        self.settle(out);
    }

    /// Whether a back end is connected.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        matches!(self.link, Link::Up(_))
    }

    /// Whether a back end is at work on the rings of the present activation.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.conversation().is_some_and(|talk| {
            talk.stage == Stage::Running
                && self.active.as_ref().is_some_and(|active| active.generation == talk.generation)
        })
    }

    /// Whether a back end is, or may be, at work on rings.
    #[must_use]
    pub fn has_started(&self) -> bool {
        self.conversation().is_some_and(|talk| talk.stage.started())
    }

    /// How often a back end has connected.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.connections
    }

    /// From now on a back end with fewer rings is refused: for a device that takes as many as its first back end has.
    pub fn require_rings(&mut self, rings: u16) {
        self.config.rings = rings;
    }

    /// The next tries to connect come as slowly as they ever do: for a back end that answers well and is of no use.
    pub fn slow_down(&mut self) {
        self.tries = u32::MAX;
    }

    /// What the driver set up, if it did.
    #[must_use]
    pub fn activation(&self) -> Option<&Activation> {
        self.active.as_ref().map(|active| &active.activation)
    }

    /// What the newest back end said of itself.
    #[must_use]
    pub fn probe(&self) -> Option<&Probe> {
        self.probe.as_ref()
    }

    /// Whether the session is between two batches: nothing outstanding, nothing half-way.
    #[must_use]
    pub fn is_steady(&self) -> bool {
        self.stopping.is_none()
            && self.conversation().is_some_and(|talk| {
                talk.expected.is_empty() && matches!(talk.stage, Stage::Ready | Stage::Running)
            })
    }

    fn conversation(&self) -> Option<&Conversation> {
        match &self.link {
            Link::Up(talk) => Some(talk),
            Link::Waiting | Link::Connecting => None,
        }
    }

    fn connect(&mut self, out: &mut Vec<Action>) {
        if self.link == Link::Waiting {
            self.link = Link::Connecting;
            out.push(Action::Connect);
        }
    }

    fn connected(&mut self, used: &[(u16, u16)], out: &mut Vec<Action>) {
        if self.link != Link::Connecting {
            return;
        }
        if let Some(active) = self.active.as_mut().filter(|_| self.unclear) {
            for (index, used) in used {
                if let Some(ring) = active.activation.ring_mut(*index) {
                    ring.base = *used;
                }
            }
        }
        self.connections += 1;
        self.link = Link::Up(Box::new(Conversation::begin(self.config.rings, out)));
        out.push(Action::Arm(Timer::Link, self.config.answer_within));
    }

    fn connect_failed(&mut self, out: &mut Vec<Action>) {
        if self.link == Link::Connecting {
            self.link = Link::Waiting;
            self.pause(out);
        }
    }

    /// Arms the next try: soon after the first failure, then more and more patiently.
    fn pause(&mut self, out: &mut Vec<Action>) {
        let pause = PAUSE.0.saturating_mul(1 << self.tries.min(16)).min(PAUSE.1);
        self.tries = self.tries.saturating_add(1);
        out.push(Action::Arm(Timer::Link, pause));
    }

    /// The back end at hand is lost; `cut` if it was this side that had enough.
    fn lose(&mut self, down: Down, cut: bool, out: &mut Vec<Action>) {
        let Link::Up(talk) = &self.link else { return };
        self.unclear |= talk.stage.started();
        self.link = Link::Waiting;
        if cut {
            out.push(Action::Disconnect);
        }
        out.push(Action::Down(down));
        self.finish_stop(&[], out);
        self.pause(out);
    }

    fn deadline(&mut self, timer: Timer, out: &mut Vec<Action>) {
        match (timer, &self.link) {
            (Timer::Link, Link::Waiting) => self.connect(out),
            (Timer::Link, Link::Up(talk)) => {
                // While rings stop, the order's own deadline counts.
                if let Some(expected) =
                    talk.expected.front().filter(|_| talk.stage != Stage::Stopping)
                {
                    self.lose(Down::Late(expected.name()), true, out);
                }
            }
            (Timer::Stop, Link::Up(_)) if self.stopping.is_some() => {
                self.lose(Down::Late("GET_VRING_BASE"), true, out);
            }
            (Timer::Link, Link::Connecting) | (Timer::Stop, _) => {}
        }
    }

    fn message(&mut self, message: &Incoming, out: &mut Vec<Action>) {
        let Link::Up(talk) = &mut self.link else { return };
        match talk.answer(message, &self.config) {
            Err(down) => return self.lose(down, true, out),
            Ok(Answer::Done) => {}
            Ok(Answer::Config(config)) => {
                talk.config = config;
                if let Some(probe) = self.probe.as_mut().filter(|_| talk.stage != Stage::Details)
                    && probe.config != talk.config
                {
                    probe.config.clone_from(&talk.config);
                    out.push(Action::ConfigChanged(talk.config.clone()));
                }
            }
            Ok(Answer::Record(record)) => {
                let shape = self.active.as_ref().map(|active| active.activation.record_shape());
                // An activation may have come and gone meanwhile: a record of another shape is of no use.
                if shape == Some((record.queues, record.ring_size)) {
                    self.record = Some(record);
                    out.push(Action::KeepRecord);
                } else if shape.is_some() && talk.generation == self.generation {
                    let down = Down::Protocol("an in-flight record of another shape");
                    return self.lose(down, true, out);
                }
            }
            Ok(Answer::Base(index, base)) => talk.stopped.push((index, base)),
        }
        let patience = match talk.expected.is_empty() || talk.stage == Stage::Stopping {
            true => Action::Disarm(Timer::Link),
            false => Action::Arm(Timer::Link, self.config.answer_within),
        };
        out.push(patience);
    }

    fn channel_message(&mut self, message: &Incoming, out: &mut Vec<Action>) {
        let Link::Up(talk) = &mut self.link else { return };
        if message.header.is_reply() {
            let down = Down::Protocol("no request on the back end's channel");
            return self.lose(down, true, out);
        }
        let request = message.header.request;
        let known = request == u32::from(BackendReq::CONFIG_CHANGE_MSG);
        talk.reread |= known && talk.has(protocol::CONFIG);
        if message.header.needs_reply() {
            let reply = Reply::U64(u64::from(!known));
            out.push(Action::SendOnChannel(reply.encode(request)));
        }
    }

    fn activate(&mut self, activation: Activation, out: &mut Vec<Action>) {
        if self.active.is_some() {
            self.deactivate(false, self.config.answer_within, out);
        }
        self.generation += 1;
        self.active = Some(Active { generation: self.generation, activation });
    }

    fn deactivate(&mut self, resumable: bool, within: Duration, out: &mut Vec<Action>) {
        let bases = match self.active.take() {
            Some(active) => {
                active.activation.rings().iter().map(|ring| (ring.index, ring.base)).collect()
            }
            None => Vec::new(),
        };
        if let Some(stopping) = &mut self.stopping {
            // A further order before the first is done. Each gets its answer, and none before the rings stand still.
            stopping.resumable &= resumable;
            stopping.orders.push(bases);
            return;
        }
        self.stopping = Some(Stop { resumable, orders: vec![bases] });
        out.push(Action::Arm(Timer::Stop, within));
    }

    fn enable_ring(&mut self, index: u16, enabled: bool) {
        let ring = self.active.as_mut().and_then(|active| active.activation.ring_mut(index));
        if let Some(ring) = ring {
            ring.enabled = enabled;
        }
    }

    fn call_replaced(&mut self, index: u16) {
        if !self.owed.calls.contains(&index) {
            self.owed.calls.push(index);
        }
        if let Link::Up(talk) = &mut self.link
            && talk.stage.started()
            && talk.set_up.iter().any(|(ring, _)| *ring == index)
            && !talk.calls.contains(&index)
        {
            talk.calls.push(index);
        }
    }

    /// Brings the back end a batch further, as long as no answer is outstanding.
    fn advance(&mut self, out: &mut Vec<Action>) -> Result<(), Down> {
        loop {
            let Link::Up(talk) = &mut self.link else {
                self.finish_stop(&[], out);
                return Ok(());
            };
            if !talk.expected.is_empty() {
                return Ok(());
            }
            match talk.stage {
                Stage::Hello => self.said_hello(out)?,
                Stage::Protocol => talk.after_protocol(&self.config, out),
                Stage::Details => self.said_details(out)?,
                Stage::Ready => self.ready(out)?,
                Stage::Recording => self.recorded(out)?,
                Stage::Starting => self.started(out),
                Stage::Running => self.running(out)?,
                Stage::Stopping => self.stopped(out),
            }
            let Link::Up(talk) = &self.link else { continue };
            if !talk.expected.is_empty() {
                let patience = match talk.stage {
                    Stage::Stopping => Action::Disarm(Timer::Link),
                    _ => Action::Arm(Timer::Link, self.config.answer_within),
                };
                out.push(patience);
                return Ok(());
            }
            if matches!(talk.stage, Stage::Ready | Stage::Running) && !self.has_work() {
                return Ok(());
            }
        }
    }

    /// Whether a session between two batches has something to tell.
    fn has_work(&self) -> bool {
        let Link::Up(talk) = &self.link else { return false };
        let wanted = self.active.as_ref();
        if talk.reread || self.stopping.is_some() {
            return true;
        }
        if talk.memory.as_ref().is_some_and(|memory| *memory != self.memory) {
            return true;
        }
        match talk.stage {
            Stage::Ready => wanted.is_some() && !self.memory.is_empty(),
            Stage::Running => {
                !talk.calls.is_empty()
                    || !talk.nudges.is_empty()
                    || talk.log != self.log
                    || wanted.is_none_or(|active| {
                        active.generation != talk.generation
                            || talk.set_up.iter().any(|(index, enabled)| {
                                enabled_in(&active.activation, *index) != Some(*enabled)
                            })
                    })
            }
            _ => false,
        }
    }

    fn said_hello(&mut self, out: &mut Vec<Action>) -> Result<(), Down> {
        let Link::Up(talk) = &mut self.link else { return Ok(()) };
        // Refused before the driver's view of the device is touched.
        if let Some(active) = &self.active {
            check_features(talk, &active.activation)?;
        }
        talk.after_hello(out);
        if talk.stage == Stage::Ready { self.accept(out) } else { Ok(()) }
    }

    fn said_details(&mut self, out: &mut Vec<Action>) -> Result<(), Down> {
        let Link::Up(talk) = &mut self.link else { return Ok(()) };
        talk.become_stage(Stage::Ready);
        self.accept(out)
    }

    /// The back end has told all about itself.
    fn accept(&mut self, out: &mut Vec<Action>) -> Result<(), Down> {
        let Link::Up(talk) = &mut self.link else { return Ok(()) };
        if talk.rings < u64::from(self.config.rings) {
            return Err(Down::Rings { has: talk.rings, needs: self.config.rings });
        }
        let probe = talk.probe(&self.config);
        self.probe = Some(probe.clone());
        if self.active.is_none() {
            self.tries = 0;
        }
        out.push(Action::Probed(probe));
        Ok(())
    }

    fn ready(&mut self, out: &mut Vec<Action>) -> Result<(), Down> {
        // Nothing runs on this back end: an order to stop is done.
        self.finish_stop(&[], out);
        let Link::Up(talk) = &mut self.link else { return Ok(()) };
        if std::mem::take(&mut talk.reread) {
            talk.ask_config(&self.config, out);
        }
        if talk.memory.is_some() && talk.memory.as_ref() != Some(&self.memory) {
            // Only what went away matters before a start; but a table cannot be emptied.
            if self.memory.is_empty() && !talk.has(protocol::CONFIGURE_MEM_SLOTS) {
                return Err(Down::NoMemory);
            }
            talk.check_regions(self.memory.len())?;
            talk.tell_memory(&self.memory, out);
            talk.barrier(out);
        }
        let Some(active) = self.active.as_ref().filter(|_| !self.memory.is_empty()) else {
            return Ok(());
        };
        if !talk.expected.is_empty() {
            return Ok(());
        }
        check_features(talk, &active.activation)?;
        let (rings, ring_size) = active.activation.record_shape();
        if u64::from(rings) > talk.rings {
            return Err(Down::Rings { has: talk.rings, needs: rings });
        }
        talk.check_regions(self.memory.len())?;
        talk.generation = active.generation;
        let records = talk.has(protocol::INFLIGHT_SHMFD);
        let fits =
            |record: &Record| records && (record.queues, record.ring_size) == (rings, ring_size);
        if self.record.as_ref().is_some_and(fits) {
            return self.start(out);
        }
        if self.unclear && !self.config.in_order {
            return Err(Down::NoRecord);
        }
        if self.record.take().is_some() {
            out.push(Action::DropRecord);
        }
        if records {
            talk.ask_record(&active.activation, out);
            return Ok(());
        }
        self.start(out)
    }

    fn recorded(&mut self, out: &mut Vec<Action>) -> Result<(), Down> {
        let Link::Up(talk) = &mut self.link else { return Ok(()) };
        let same = self.active.as_ref().is_some_and(|active| active.generation == talk.generation);
        if !same || self.record.is_none() || self.memory.is_empty() {
            talk.become_stage(Stage::Ready);
            return Ok(());
        }
        talk.check_regions(self.memory.len())?;
        self.start(out)
    }

    fn start(&mut self, out: &mut Vec<Action>) -> Result<(), Down> {
        let (Link::Up(talk), Some(active)) = (&mut self.link, &self.active) else { return Ok(()) };
        check_log(talk, self.log)?;
        talk.start(&active.activation, &self.memory, self.log, self.record.as_ref(), out);
        Ok(())
    }

    fn started(&mut self, out: &mut Vec<Action>) {
        let Link::Up(talk) = &mut self.link else { return };
        talk.become_stage(Stage::Running);
        self.unclear = false;
        self.tries = 0;
        if self.active.as_ref().is_some_and(|active| active.generation == talk.generation) {
            out.push(Action::Running);
        }
        out.extend(talk.nudges.drain(..).map(|index| Action::Nudge { index }));
    }

    fn running(&mut self, out: &mut Vec<Action>) -> Result<(), Down> {
        let Link::Up(talk) = &mut self.link else { return Ok(()) };
        out.extend(talk.nudges.drain(..).map(|index| Action::Nudge { index }));
        let wanted = self.active.as_ref().filter(|active| active.generation == talk.generation);
        let Some(active) = wanted else {
            talk.stop(out);
            return Ok(());
        };
        if talk.memory.as_ref() != Some(&self.memory) {
            if self.memory.is_empty() {
                return Err(Down::NoMemory);
            }
            talk.check_regions(self.memory.len())?;
            talk.tell_memory(&self.memory, out);
        }
        if talk.log != self.log {
            check_log(talk, self.log)?;
            talk.tell_log(self.log, &active.activation, out);
        }
        for index in std::mem::take(&mut talk.calls) {
            talk.tell_call(index, out);
        }
        for at in 0..talk.set_up.len() {
            let (index, told) = talk.set_up[at];
            let wanted = enabled_in(&active.activation, index).unwrap_or(told);
            if wanted != told {
                talk.set_up[at].1 = wanted;
                talk.tell_enabled(index, wanted, out);
                if wanted {
                    talk.nudges.push(index);
                }
            }
        }
        if std::mem::take(&mut talk.reread) {
            talk.ask_config(&self.config, out);
        }
        talk.barrier(out);
        Ok(())
    }

    fn stopped(&mut self, out: &mut Vec<Action>) {
        let Link::Up(talk) = &mut self.link else { return };
        talk.become_stage(Stage::Ready);
        talk.set_up.clear();
        talk.calls.clear();
        let bases = std::mem::take(&mut talk.stopped);
        self.finish_stop(&bases, out);
    }

    /// Answers an order to stop: with `bases` as a back end gave them, or with what else is known.
    fn finish_stop(&mut self, bases: &[(u16, u16)], out: &mut Vec<Action>) {
        let Some(stop) = self.stopping.take() else { return };
        let base_of = |index: u16, never_run: u16| {
            let told = bases.iter().find(|(ring, _)| *ring == index).map(|(_, base)| *base);
            told.or((!self.unclear).then_some(never_run))
        };
        out.push(Action::Disarm(Timer::Stop));
        for order in &stop.orders {
            let bases = order.iter().map(|(index, base)| (*index, base_of(*index, *base)));
            out.push(Action::Stopped { bases: bases.collect() });
        }
        if !stop.resumable {
            self.unclear = false;
            if self.record.take().is_some() {
                out.push(Action::DropRecord);
            }
        }
    }

    /// Tells what has come into force, once no answer is outstanding.
    fn settle(&mut self, out: &mut Vec<Action>) {
        let talk = self.conversation();
        if talk.is_some_and(|talk| !talk.expected.is_empty()) {
            return;
        }
        let memory = talk.and_then(|talk| talk.memory.as_ref());
        let memory_in_force = memory.is_none_or(|memory| *memory == self.memory);
        let log_in_force = talk.is_none_or(|talk| !talk.stage.started() || talk.log == self.log);
        if memory_in_force && std::mem::take(&mut self.owed.memory) {
            out.push(Action::MemoryInForce);
        }
        if log_in_force && std::mem::take(&mut self.owed.log) {
            out.push(Action::LogInForce);
        }
        out.extend(self.owed.calls.drain(..).map(|index| Action::CallInForce { index }));
    }
}

fn enabled_in(activation: &Activation, index: u16) -> Option<bool> {
    activation.rings().iter().find(|ring| ring.index == index).map(|ring| ring.enabled)
}

fn check_features(talk: &Conversation, activation: &Activation) -> Result<(), Down> {
    let missing = activation.features() & !talk.offered;
    if missing == 0 { Ok(()) } else { Err(Down::Features { missing }) }
}

fn check_log(talk: &Conversation, log: Option<LogArea>) -> Result<(), Down> {
    let can = talk.has(protocol::LOG_SHMFD) && talk.offered & FEATURE_LOG_ALL != 0;
    if log.is_none() || can { Ok(()) } else { Err(Down::NoLog) }
}
