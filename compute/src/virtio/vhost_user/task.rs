//! The task that carries out a device's orders and its session.
//!
//! Invariants: the session's rings are those of the driver's present life, or none; a reset is reported done only after
//! the session has said that the rings stand still; orders are carried out one after the other, and none while rings
//! are stopping.

use super::super::device::Activation;
use super::super::features::{NET_CTRL_VQ, NET_MQ};
use super::super::link::DeviceLink;
use super::super::mailbox::{Mailbox, Orders, Restored, RingBase};
use super::super::ring::{LocalRing, LocalRingError};
use super::contact::Character;
use super::control::ControlQueue;
use super::phase::{Active, Phase, Why};
use super::poller::Poller;
use super::share::GuestShare;
use crate::device::QuiesceError;
use crate::log_limit::LogLimit;
use crate::pci::msix::Call;
use bixi_offload::frontend::{Activation as Rings, Down, Notice, Probe, Ring, RingFds, Shell};
use bixi_offload::ring::SharedFd;
use std::collections::BTreeMap;
use std::future::pending;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// How long a back end may take to stop its rings before it is cut off.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// For a pause. A disk finishes or suspends what is in flight.
    pub(super) rest: Duration,
    /// For a reset. Longer: once the guest is told, it uses the memory for something else, and a back end that is
    /// merely slow must not write there any more.
    pub(super) reset: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { rest: Duration::from_secs(5), reset: Duration::from_secs(20) }
    }
}

/// How long a back end may take before the machine is reset: as long as it takes, since its memory is loaded anew then.
const WITHOUT_END: Duration = Duration::from_secs(365 * 24 * 3600);

/// How soon to try again when the kernel has no room to wait for a socket.
const STARVED: Duration = Duration::from_millis(100);

/// What others may know of the task.
#[derive(Debug, Default)]
pub(super) struct Position(Mutex<Facts>);

#[derive(Debug, Default)]
struct Facts {
    standing: Standing,
    connected: bool,
    reconnects: u64,
}

/// Where the rings are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum Standing {
    /// No driver.
    #[default]
    Idle,
    /// A driver; the rings run or may run.
    Busy,
    /// At rest, but what was in flight in a dead back end only its record knows.
    Unclear,
    /// At rest.
    Resting(Vec<RingBase>),
}

impl Position {
    fn lock(&self) -> MutexGuard<'_, Facts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn standing(&self) -> Standing {
        self.lock().standing.clone()
    }

    pub(super) fn back_end(&self) -> (bool, u64) {
        let facts = self.lock();
        (facts.connected, facts.reconnects)
    }

    pub(super) fn set_connected(&self, connected: bool) {
        self.lock().connected = connected;
    }

    fn stand(&self, standing: Standing) {
        self.lock().standing = standing;
    }
}

/// What a task is given.
pub(super) struct Parts {
    pub(super) id: String,
    /// The socket, in words.
    pub(super) place: String,
    /// Whether there is a way to connect again.
    pub(super) returns: bool,
    pub(super) patience: Patience,
    pub(super) shell: Shell,
    pub(super) poller: Poller,
    pub(super) share: GuestShare,
    pub(super) link: Arc<DeviceLink>,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) position: Arc<Position>,
    pub(super) character: Arc<dyn Character>,
    /// Of the features a driver takes, those that the back end is told.
    pub(super) passed_on: u64,
}

/// The task's state.
pub(super) struct Task {
    parts: Parts,
    orders: Orders,
    phase: Phase,
    /// Until when the control queue waits, if the driver has used up its budget.
    control_dry: Option<Instant>,
    log: LogLimit,
    running_log: LogLimit,
}

impl Task {
    pub(super) fn new(parts: Parts) -> Self {
        let (orders, phase) = (Orders::default(), Phase::Idle);
        let (log, running_log) = (LogLimit::default(), LogLimit::default());
        Self { parts, orders, phase, control_dry: None, log, running_log }
    }

    pub(super) async fn run(mut self) {
        loop {
            let starved = self.parts.poller.watch(self.parts.shell.sources()).is_err();
            let due = [
                self.parts.shell.deadline().map(Instant::from),
                self.control_dry,
                starved.then(|| Instant::now() + STARVED),
            ];
            let due = due.into_iter().flatten().min();
            let control = match &self.phase {
                Phase::Active(active) if self.control_dry.is_none() => active.control.as_ref(),
                _ => None,
            };
            let kick = control.map(|control| &control.ring.kick);
            let kicked = async {
                match kick {
                    Some(kick) => kick.taken().await,
                    None => pending().await,
                }
            };
            let timer = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => pending().await,
                }
            };
            // Orders first: a reset must not wait behind a busy back end. The runtime's budget keeps any of them from
            // starving other devices.
            tokio::select! {
                biased;
                orders = self.parts.mailbox.take(), if self.phase.takes_orders() => self.orders = orders,
                () = timer => {}
                _ = kicked => {}
                // An error of epoll itself: its sockets are looked at all the same.
                _ = self.parts.poller.ready() => {}
            }
            self.parts.shell.turn();
            while self.hear() | self.obey() {}
            self.serve_control();
            let connected = self.parts.shell.session().is_connected();
            self.parts.position.set_connected(connected);
        }
    }

    fn enter(&mut self, phase: Phase) {
        debug_assert!(self.phase.can_become(&phase), "{:?} to {phase:?}", self.phase);
        self.phase = phase;
    }

    /// Takes what the session tells. Returns whether it told anything.
    fn hear(&mut self) -> bool {
        let mut heard = false;
        while let Some(notice) = self.parts.shell.next_notice() {
            heard = true;
            match notice {
                Notice::Probed(probe) => self.probed(&probe),
                Notice::ConfigChanged(config) => self.show(&config),
                Notice::Running => self.running(),
                Notice::Stopped { bases } => self.stopped(&bases),
                Notice::Down(down) => self.down(&down),
                Notice::MemoryInForce | Notice::LogInForce | Notice::CallInForce { .. } => {}
            }
        }
        heard
    }

    fn probed(&mut self, probe: &Probe) {
        self.parts.position.lock().reconnects += 1;
        self.show(&probe.config);
    }

    fn running(&self) {
        // A guest brings this about as often as it sets the device up.
        if let Some(suppressed) = self.running_log.pass() {
            tracing::info!(device = %self.parts.id, suppressed, "the back end is at work");
        }
    }

    /// The back end told its configuration space.
    fn show(&mut self, told: &[u8]) {
        if let Some(config) = self.parts.character.update(&self.parts.link.config(), told) {
            self.parts.link.set_config(&config);
        }
    }

    fn down(&mut self, down: &Down) {
        if let Phase::Stopping { why: Why::Rest { late, started, .. }, .. } = &mut self.phase {
            *late |= *started && matches!(down, Down::Late(_));
        }
        // A guest that breaks its rings ends the session each time a back end takes them up.
        let Some(suppressed) = self.log.pass() else { return };
        let (device, socket) = (&self.parts.id, &self.parts.place);
        if self.parts.returns {
            tracing::warn!(%device, %socket, reason = %down, suppressed, "the back end is gone; connecting again");
        } else {
            tracing::error!(%device, %socket, reason = %down, "the back end is gone for good: a connected stream cannot be connected again");
        }
    }

    /// Carries out the next order, if there is one and it can be. Returns whether it did.
    fn obey(&mut self) -> bool {
        if !self.phase.takes_orders() {
            return false;
        }
        if let Some(number) = self.orders.reset.take() {
            self.reset(number);
        } else if let Some(activation) = self.orders.start.take() {
            let rings = self.fresh_rings(&activation);
            self.begin(activation, &rings);
        } else if let Some(restored) = self.orders.restored.take() {
            self.take_over(restored);
        } else if let Some((queue, call)) = self.orders.calls.pop_first() {
            self.set_call(queue, call);
        } else if !self.orders.rest.is_empty() {
            self.rest();
        } else if std::mem::take(&mut self.orders.resume) {
            self.resume();
        } else {
            return false;
        }
        true
    }

    fn reset(&mut self, number: u64) {
        match std::mem::take(&mut self.phase) {
            Phase::Active(mut active) | Phase::Resting { mut active, .. } => {
                active.control = None;
                self.control_dry = None;
                self.phase = Phase::Stopping { active, why: Why::Reset(number) };
                self.parts.shell.deactivate(false, self.parts.patience.reset);
            }
            other => {
                self.phase = other;
                self.parts.link.reset_done(number);
            }
        }
    }

    fn rest(&mut self) {
        let waiting = std::mem::take(&mut self.orders.rest);
        let fully = std::mem::take(&mut self.orders.rest_fully);
        match std::mem::take(&mut self.phase) {
            Phase::Active(mut active) => {
                let control = active.control.take().and_then(|control| {
                    let base = control.ring.queue.state().last_available as u16;
                    active.control_index.map(|index| RingBase { index, base, enabled: true })
                });
                self.control_dry = None;
                let started = self.parts.shell.session().has_started();
                let why = Why::Rest { waiting, control, started, late: false };
                self.phase = Phase::Stopping { active, why };
                let within = if fully { WITHOUT_END } else { self.parts.patience.rest };
                self.parts.shell.deactivate(true, within);
            }
            other => {
                self.phase = other;
                // Whoever asked may have gone.
                waiting.into_iter().for_each(|waiting| drop(waiting.send(Ok(()))));
            }
        }
    }

    fn stopped(&mut self, bases: &[(u16, Option<u16>)]) {
        let (active, why) = match std::mem::take(&mut self.phase) {
            Phase::Stopping { active, why } => (active, why),
            other => return self.phase = other,
        };
        match why {
            Why::Reset(number) => {
                self.parts.position.stand(Standing::Idle);
                self.parts.link.reset_done(number);
            }
            Why::Rest { waiting, control, late, .. } => {
                let mut unclear = false;
                let mut rings = Vec::with_capacity(bases.len() + 1);
                for (index, base) in bases {
                    unclear |= base.is_none() && self.parts.character.pairs().is_none();
                    let used =
                        active.queue(*index).map(|queue| self.parts.share.used_index(queue.used));
                    let base = base.or(used).unwrap_or(0);
                    rings.push(RingBase {
                        index: *index,
                        base,
                        enabled: self.is_on(&active, *index),
                    });
                }
                rings.extend(control);
                let standing =
                    if unclear { Standing::Unclear } else { Standing::Resting(rings.clone()) };
                self.parts.position.stand(standing);
                self.phase = Phase::Resting { active, bases: rings };
                let outcome = if late { Err(self.was_late()) } else { Ok(()) };
                // Whoever asked may have gone.
                waiting.into_iter().for_each(|waiting| drop(waiting.send(outcome.clone())));
            }
        }
    }

    fn was_late(&self) -> QuiesceError {
        let what = format!(
            "its back end at {} did not stop its rings in time and was cut off: look after that process",
            self.parts.place
        );
        QuiesceError { device: self.parts.id.clone(), what }
    }

    fn resume(&mut self) {
        match std::mem::take(&mut self.phase) {
            Phase::Resting { active, bases } => self.begin(active.activation, &bases),
            other => self.phase = other,
        }
        // Something may have been missed while the vCPUs stood still, or been on its way between two processes.
        if let Phase::Active(active) = &self.phase {
            for queue in &active.activation.queues {
                // A full counter is readable all the same.
                let _ = queue.kick.write(1);
                queue.call.iter().for_each(Call::signal);
            }
        }
    }

    fn take_over(&mut self, restored: Restored) {
        let Restored { activation, rings } = restored;
        let active = self.split(activation);
        self.parts.position.stand(Standing::Resting(rings.clone()));
        self.enter(Phase::Resting { active, bases: rings });
    }

    fn split(&self, activation: Activation) -> Active {
        let features = activation.features;
        let (several, control) = (features & NET_MQ != 0, features & NET_CTRL_VQ != 0);
        let pairs = self.parts.character.pairs();
        // The same bits mean other things to other kinds of device.
        Active::new(activation, pairs, several && pairs.is_some(), control && pairs.is_some())
    }

    /// Whether ring `index` is to be processed.
    fn is_on(&self, active: &Active, index: u16) -> bool {
        self.parts.character.pairs().is_none() || index / 2 < active.pairs
    }

    /// Every ring at its beginning; of an interface's pairs the first is on.
    fn fresh_rings(&self, activation: &Activation) -> Vec<RingBase> {
        let paired = self.parts.character.pairs().is_some();
        let ring = |index: u16| RingBase { index, base: 0, enabled: !paired || index < 2 };
        activation.queues.iter().map(|queue| ring(queue.index)).collect()
    }

    /// Begins with what the driver set up, each ring at its base.
    fn begin(&mut self, activation: Activation, bases: &[RingBase]) {
        let life = activation.life;
        let active = self.split(activation);
        self.parts.position.stand(Standing::Busy);
        let begun = self.try_begin(active, bases);
        if let Err(error) = begun {
            if let Some(suppressed) = self.log.pass() {
                tracing::error!(device = %self.parts.id, %error, suppressed, "cannot begin; the guest's driver is told to reset");
            }
            self.parts.link.fail(life);
        }
    }

    fn try_begin(&mut self, mut active: Active, bases: &[RingBase]) -> Result<(), LocalRingError> {
        let base_of = |index: u16| bases.iter().find(|ring| ring.index == index).copied();
        let mut rings = Vec::with_capacity(active.rings.len());
        let mut fds = BTreeMap::new();
        active.pairs = 1;
        // Of the driver's earlier life: its deadline must not wake this one.
        self.control_dry = None;
        let mut outcome = Ok(());
        for index in &active.rings {
            let (Some(queue), Some(ring)) = (active.queue(*index), base_of(*index)) else {
                continue;
            };
            let call = queue.call.as_ref();
            match ring_fds(&queue.kick, call) {
                Ok(ring_fds) => drop(fds.insert(*index, ring_fds)),
                Err(error) => outcome = Err(error.into()),
            }
            rings.push(Ring {
                index: *index,
                size: queue.size,
                desc: queue.desc,
                avail: queue.avail,
                used: queue.used,
                base: ring.base,
                enabled: ring.enabled,
            });
            if ring.enabled {
                active.pairs = active.pairs.max(index / 2 + 1);
            }
        }
        if let Some(queue) = active.control_index.and_then(|index| active.queue(index)) {
            let base = base_of(queue.index).map_or(0, |ring| ring.base);
            let features = active.activation.features;
            let ring = LocalRing::new(self.parts.share.rings(), features, queue, base);
            let most =
                if features & NET_MQ != 0 { self.parts.character.pairs().unwrap_or(1) } else { 1 };
            match ring {
                Ok(ring) => active.control = Some(ControlQueue::new(ring, most)),
                Err(error) => outcome = Err(error),
            }
        }
        let features = active.activation.features & self.parts.passed_on;
        self.enter(Phase::Active(active));
        outcome?;
        // A driver without a queue has nothing for a back end to do.
        if let Ok(rings) = Rings::new(features, rings) {
            self.parts.shell.activate(rings, fds);
        }
        Ok(())
    }

    fn set_call(&mut self, index: u16, call: Option<Call>) {
        let at_work = matches!(self.phase, Phase::Active(_));
        let Some(active) = self.phase.active_mut() else { return };
        let changed = match &mut active.control {
            Some(control) if active.control_index == Some(index) => {
                control.ring.set_call(call.as_ref())
            }
            _ if at_work => {
                call_fd(call.as_ref()).map(|call| self.parts.shell.replace_call(index, call))
            }
            _ => Ok(()),
        };
        let life = active.activation.life;
        if let Some(queue) = active.activation.queues.iter_mut().find(|q| q.index == index) {
            queue.call = call;
        }
        if let Err(error) = changed {
            if let Some(suppressed) = self.log.pass() {
                tracing::error!(device = %self.parts.id, %error, suppressed, "cannot change an interrupt; the guest's driver is told to reset");
            }
            self.parts.link.fail(life);
        }
    }

    fn serve_control(&mut self) {
        let Phase::Active(active) = &mut self.phase else { return };
        let Active { control: slot, rings, pairs: in_use, activation, .. } = active;
        let Some(control) = slot else { return };
        let shell = &mut self.parts.shell;
        let served = control.serve(self.parts.share.rings(), |pairs| {
            *in_use = pairs;
            rings.iter().for_each(|index| shell.enable_ring(*index, index / 2 < pairs));
        });
        match served {
            Ok(dry) => self.control_dry = dry,
            Err(error) => {
                *slot = None;
                self.control_dry = None;
                if let Some(suppressed) = self.log.pass() {
                    tracing::warn!(device = %self.parts.id, %error, suppressed, "the control queue is broken; the device needs a reset");
                }
                self.parts.link.fail(activation.life);
            }
        }
    }
}

/// A ring's eventfds, as a session wants them.
fn ring_fds(kick: &impl std::os::fd::AsRawFd, call: Option<&Call>) -> io::Result<RingFds> {
    // SAFETY: the eventfd is borrowed for this call only, and open as long as `kick`.
    let kick = unsafe { std::os::fd::BorrowedFd::borrow_raw(kick.as_raw_fd()) };
    Ok(RingFds { kick: Arc::new(kick.try_clone_to_owned()?), call: call_fd(call)? })
}

/// The eventfd of an interrupt; one that nobody listens to for a driver that polls.
fn call_fd(call: Option<&Call>) -> io::Result<SharedFd> {
    use rustix::event::{EventfdFlags, eventfd};
    let fd = match call {
        Some(call) => call.as_fd().try_clone_to_owned()?,
        None => eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
    };
    Ok(Arc::new(fd))
}
