//! The shell of one session: it does what the pure [`Session`] asks for, and tells it what came of it.
//!
//! Invariants: actions are done in order, each before the next; what an action brings about goes back into the session
//! before anything new from the socket; a session that is over gives up its socket only after all its queues are
//! back, so that nobody touches the front end's memory once it sees the connection closed.

use super::rings::{Held, Ring};
use super::runtime::Workers;
use super::wire;
use super::{CardEvent, DeviceId};
use crate::memory::{DirtyLog, GuestMemory, Mapping, MappingOptions};
use crate::ring::{InflightMap, Notifiers, QueueLayout, QueueSetup, SharedFd, SplitQueue, UsedLog};
use crate::sigbus::Watch;
use crate::vhost_user::{
    Action, Change, Event, Offer, RingSetup, Session, SharedArea, SharedRegion,
};
use crate::worker::{Order, QueueChange, QueueKey, WorkerService};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

/// Why a session ends whose [`Watch`] broke.
pub(super) const MEMORY_TAKEN: &str = "the front end took away memory that it had shared";

/// A session and all that it has here.
pub(super) struct Shell {
    key: DeviceId,
    session: Session<SharedFd>,
    socket: Arc<AsyncFd<UnixStream>>,
    reader: tokio::task::AbortHandle,
    /// Lets the reader read one message.
    grant: mpsc::Sender<()>,
    granted: bool,
    options: MappingOptions,
    held: bool,
    mappings: HashMap<u64, Arc<Mapping>>,
    memory: Option<Arc<GuestMemory>>,
    log: Option<Arc<DirtyLog>>,
    inflight: Option<Arc<InflightMap>>,
    rings: Vec<Ring>,
    /// What could not be done for the front end last; it was told no, but not why.
    refused: Option<String>,
    /// The session is over; why, if this side ended it.
    ending: Option<Option<String>>,
}

/// A connection that was accepted.
pub(super) struct Connection {
    pub socket: Arc<AsyncFd<UnixStream>>,
    pub reader: tokio::task::AbortHandle,
    pub grant: mpsc::Sender<()>,
}

/// What a shell needs of the card around it.
pub(super) struct Around<'a, S: WorkerService> {
    pub offer: &'a Offer,
    pub workers: &'a Workers<S>,
    pub events: &'a mut VecDeque<CardEvent<S::Report>>,
}

impl Shell {
    pub fn new(key: DeviceId, offer: &Offer, held: bool, sealed: bool, to: Connection) -> Self {
        let mut shell = Self {
            key,
            session: Session::new(offer),
            socket: to.socket,
            reader: to.reader,
            grant: to.grant,
            granted: false,
            options: MappingOptions { require_sealed: sealed, watch: Watch::new() },
            held,
            mappings: HashMap::new(),
            memory: None,
            log: None,
            inflight: None,
            rings: std::iter::repeat_with(Ring::default).take(offer.queues.into()).collect(),
            refused: None,
            ending: None,
        };
        shell.let_read();
        shell
    }

    /// Whether memory of this session was taken away.
    pub fn is_broken(&self) -> bool {
        self.ending.is_none() && self.options.watch.is_broken()
    }

    /// Whether the session is over and all its queues are back; then why, if this side ended it.
    pub fn over(&self) -> Option<Option<String>> {
        let rest = |ring: &Ring| matches!(ring, Ring::Stopped);
        self.ending.clone().filter(|_| self.rings.iter().all(rest))
    }

    /// A message came, or the connection ended.
    pub fn message<S: WorkerService>(
        &mut self,
        message: io::Result<Option<wire::Message>>,
        around: &mut Around<'_, S>,
    ) {
        self.granted = false;
        let event = match message {
            Ok(Some(wire::Message { header, payload, fds })) => {
                Event::Message { header, payload, fds }
            }
            Ok(None) => Event::Closed,
            Err(e) if e.kind() == io::ErrorKind::Other => Event::Fault(e.to_string()),
            Err(_) => Event::Closed,
        };
        self.feed(event, around);
    }

    /// Gives the session an event and does all that follows from it.
    pub fn feed<S: WorkerService>(&mut self, event: Event<SharedFd>, around: &mut Around<'_, S>) {
        let mut waiting = VecDeque::from([event]);
        while let Some(event) = waiting.pop_front() {
            if self.ending.is_some() {
                return;
            }
            let closed = matches!(event, Event::Closed);
            match &event {
                Event::Done(Err(reason)) | Event::InflightMade(Err(reason)) => {
                    self.refused = Some(reason.clone());
                }
                _ => {}
            }
            for action in self.session.step(around.offer, event) {
                match action {
                    Action::End(_) if closed => self.end(self.refused.clone(), around),
                    Action::End(reason) => self.end(Some(reason), around),
                    action => waiting.extend(self.perform(action, around)),
                }
            }
        }
        self.let_read();
    }

    fn let_read(&mut self) {
        if !self.granted && self.ending.is_none() && self.session.wants_message() {
            self.granted = self.grant.try_send(()).is_ok();
        }
    }

    /// Ends the session: its rings come back, then it is [over](Shell::over).
    pub fn end<S: WorkerService>(&mut self, fault: Option<String>, around: &mut Around<'_, S>) {
        if self.ending.is_some() {
            return;
        }
        self.ending = Some(fault);
        self.reader.abort();
        for index in 0..self.rings.len() {
            self.stop_ring(index as u16, around);
        }
    }

    /// A queue came back.
    pub fn detached<S: WorkerService>(
        &mut self,
        index: u16,
        queue: SplitQueue,
        around: &mut Around<'_, S>,
    ) {
        let Some(ring) = self.rings.get_mut(usize::from(index)) else { return };
        if !ring.advance(Ring::Stopped) {
            return;
        }
        around.events.push_back(CardEvent::Stopped { device: self.key, index });
        let base = queue.state().last_available as u16;
        drop(queue);
        self.feed(Event::RingStopped { index, base }, around);
    }

    /// A queue broke on its worker.
    pub fn fault<S: WorkerService>(
        &mut self,
        index: u16,
        reason: String,
        around: &mut Around<'_, S>,
    ) {
        if matches!(self.rings.get(usize::from(index)), Some(Ring::Running)) {
            // A ring that reads as zeroes since its memory went looks broken in its own way: tell the cause.
            let cause = if self.is_broken() { MEMORY_TAKEN.to_owned() } else { reason };
            self.feed(Event::Fault(cause), around);
        }
    }

    /// The device is held back no longer: rings that were told to start do so.
    pub fn release<S: WorkerService>(&mut self, around: &mut Around<'_, S>) {
        self.held = false;
        for index in 0..self.rings.len() {
            if !matches!(self.rings[index], Ring::Held(_)) {
                continue;
            }
            let Ring::Held(held) = std::mem::take(&mut self.rings[index]) else { continue };
            let started = self.start_ring(held.setup, around);
            if let (None, Some((on, used))) = (&started, held.log) {
                self.change_ring(index as u16, Change::Log { on, used }, around);
            }
            if let Some(event) = started {
                self.feed(event, around);
            }
        }
    }

    /// Does one action. Returns what the session is told about it, if anything.
    fn perform<S: WorkerService>(
        &mut self,
        action: Action<SharedFd>,
        around: &mut Around<'_, S>,
    ) -> Option<Event<SharedFd>> {
        match action {
            Action::Send(bytes, fds) => {
                let sent = wire::send(self.socket.get_ref().as_fd(), &bytes, &fds);
                sent.err().map(|e| match e.kind() {
                    // It left without waiting for the rest of its answers.
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Event::Closed,
                    _ => Event::Fault(format!("cannot answer the front end: {e}")),
                })
            }
            Action::SendRequest(channel, bytes) => {
                if let Err(e) = wire::send(channel.as_fd(), &bytes, &[]) {
                    tracing::debug!(device = self.key.0, error = %e, "back-end request not sent");
                }
                None
            }
            Action::MapMemory(regions) => Some(Event::Done(self.map_memory(&regions))),
            Action::MapLog(area) => Some(Event::Done(self.map_log(area))),
            Action::MakeInflight { queues, queue_size } => Some(Event::InflightMade(
                InflightMap::create(queues, queue_size)
                    .map(|(fd, size)| (Arc::new(fd), size))
                    .map_err(|e| e.to_string()),
            )),
            Action::MapInflight(area) => Some(Event::Done(self.map_inflight(area))),
            Action::StartRing(setup) => self.start_ring(setup, around),
            Action::StopRing(index) => self.stop_ring(index, around),
            Action::ChangeRing(index, change) => {
                self.change_ring(index, change, around);
                None
            }
            Action::Features(features) => {
                around.events.push_back(CardEvent::Features(self.key, features));
                None
            }
            Action::WriteConfig(at, bytes) => {
                around.events.push_back(CardEvent::ConfigWritten(self.key, at, bytes));
                None
            }
            Action::Mtu(mtu) => {
                around.events.push_back(CardEvent::Mtu(self.key, mtu));
                None
            }
            Action::End(reason) => {
                self.end(Some(reason), around);
                None
            }
        }
    }

    fn map_memory(&mut self, regions: &[SharedRegion<SharedFd>]) -> Result<(), String> {
        let mut mapped = HashMap::new();
        let mut table = Vec::new();
        for shared in regions {
            let mapping = match self.mappings.get(&shared.id) {
                Some(mapping) => Arc::clone(mapping),
                None => {
                    let fd = shared.fd.as_fd();
                    let fresh = GuestMemory::map_region(&shared.region, fd, &self.options);
                    Arc::new(fresh.map_err(|e| e.to_string())?)
                }
            };
            mapped.insert(shared.id, Arc::clone(&mapping));
            table.push((shared.region, mapping));
        }
        let memory = GuestMemory::from_mappings(table, Arc::clone(&self.options.watch));
        self.memory = Some(memory.map_err(|e| e.to_string())?);
        self.mappings = mapped;
        Ok(())
    }

    fn map_log(&mut self, area: Option<SharedArea<SharedFd>>) -> Result<(), String> {
        // A log that shrinks is contained like guest memory; that it be sealed is not asked of any front end.
        let options = MappingOptions { require_sealed: false, ..self.options.clone() };
        self.log = match area {
            None => None,
            Some(SharedArea { fd, offset, size }) => {
                let log = DirtyLog::map(fd.as_fd(), offset, size, &options);
                Some(Arc::new(log.map_err(|e| e.to_string())?))
            }
        };
        Ok(())
    }

    fn map_inflight(
        &mut self,
        area: Option<(SharedArea<SharedFd>, u16, u16)>,
    ) -> Result<(), String> {
        // Our own memfd comes back through the front end's hands: contained, but a foreign one may be unsealed.
        let options = MappingOptions { require_sealed: false, ..self.options.clone() };
        self.inflight = match area {
            None => None,
            Some((SharedArea { fd, offset, size }, queues, queue_size)) => Some(
                InflightMap::map(fd.as_fd(), offset, size, queues, queue_size, &options)
                    .map_err(|e| e.to_string())?,
            ),
        };
        Ok(())
    }

    fn start_ring<S: WorkerService>(
        &mut self,
        setup: RingSetup<SharedFd>,
        around: &mut Around<'_, S>,
    ) -> Option<Event<SharedFd>> {
        let index = setup.index;
        let ring = self.rings.get_mut(usize::from(index))?;
        if self.held {
            ring.advance(Ring::Held(Box::new(Held { setup, log: None })));
            return None;
        }
        match self.build_queue(setup) {
            Ok(queue) => {
                let recovered = queue.recovered();
                let device = self.key;
                self.rings[usize::from(index)].advance(Ring::Running);
                // What was refused before did not keep the front end from going on.
                self.refused = None;
                let key = QueueKey { device, index };
                around.workers.queue(device, index, Order::Attach(key, Box::new(queue)));
                around.events.push_back(CardEvent::Started { device, index, recovered });
                None
            }
            Err(reason) => Some(Event::Fault(reason)),
        }
    }

    fn build_queue(&self, setup: RingSetup<SharedFd>) -> Result<SplitQueue, String> {
        let index = setup.index;
        let memory = self.memory.as_ref().ok_or("a ring started without memory")?;
        let guest = |what: &str, addr: u64| {
            memory.user_to_guest(addr).ok_or_else(|| {
                format!("queue {index}: its {what} at {addr:#x} is in no shared region")
            })
        };
        let layout = QueueLayout {
            size: setup.size,
            descriptors: guest("descriptor table", setup.addr.descriptors)?,
            available: guest("available ring", setup.addr.available)?,
            used: guest("used ring", setup.addr.used)?,
        };
        let inflight = match &self.inflight {
            None => None,
            Some(map) => Some(
                map.queue(index)
                    .ok_or_else(|| format!("queue {index}: the in-flight record has no room"))?,
            ),
        };
        let queue = QueueSetup {
            layout,
            features: setup.features,
            base: setup.base,
            notifiers: Notifiers {
                kick: setup.kick,
                call: setup.call,
                error: setup.error,
                own: false,
            },
            inflight,
            log: None,
        };
        SplitQueue::new(Arc::clone(memory), queue).map_err(|e| format!("queue {index}: {e}"))
    }

    fn stop_ring<S: WorkerService>(
        &mut self,
        index: u16,
        around: &mut Around<'_, S>,
    ) -> Option<Event<SharedFd>> {
        let ring = self.rings.get_mut(usize::from(index))?;
        match ring {
            Ring::Held(held) => {
                let base = held.setup.base;
                ring.advance(Ring::Stopped);
                Some(Event::RingStopped { index, base })
            }
            Ring::Running => {
                ring.advance(Ring::Stopping);
                let key = QueueKey { device: self.key, index };
                around.workers.queue(self.key, index, Order::Detach(key));
                None
            }
            Ring::Stopping | Ring::Stopped => None,
        }
    }

    fn change_ring<S: WorkerService>(
        &mut self,
        index: u16,
        change: Change<SharedFd>,
        around: &mut Around<'_, S>,
    ) {
        match self.rings.get_mut(usize::from(index)) {
            Some(Ring::Held(held)) => held.change(change),
            Some(Ring::Running) => {
                let change = match change {
                    Change::Call(fd) => QueueChange::Call(fd),
                    Change::Error(fd) => QueueChange::Error(fd),
                    Change::Log { on: false, .. } => QueueChange::Log(None),
                    Change::Log { on: true, used } => QueueChange::Log(
                        self.log.as_ref().map(|log| UsedLog { log: Arc::clone(log), used }),
                    ),
                };
                let key = QueueKey { device: self.key, index };
                around.workers.queue(self.key, index, Order::Change(key, change));
            }
            _ => {}
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        self.reader.abort();
    }
}
