//! The back end's state machine.
//!
//! ```text
//!            message                     all rings stopped           Done
//!   Ready ───────────► Work(Stopping) ───────────────────► Work(Asked) ───► Ready
//!     │                     │ (no mapping needed)                             ▲
//!     │                     └─────────────────────────────────────────────────┤
//!     └── message that needs nothing: answered at once ───────────────────────┘
//!   any ── Fault, Closed, an error that cannot be answered ──► Over
//! ```
//!
//! One request is under way at a time: [`Session::wants_message`] says when the next may be read. What a request
//! changes takes effect when its work is done, so that one that fails changes nothing. After every request, whatever
//! ring can run is started, and nothing else starts rings.
//!
//! Invariants: pure (no clock, no descriptor is touched, equal events give equal actions); every request that asks
//! for a reply gets exactly one; the memory, the log and the record are never replaced under a running ring of which
//! they are part; after [`Action::End`] nothing comes any more.

use super::codec::{
    Area, CodecError, Header, InflightArea, Reply, Request, VRING_LOG, VringState, protocol,
};
use super::types::{Action, Change, Event, Offer, RingSetup, SharedArea, SharedRegion};
use super::vring::{Kick, Run, Vring};
use super::{FEATURE_LOG_ALL, FEATURE_PROTOCOL_FEATURES, PROTOCOL_FEATURES};
use vhost::vhost_user::message::BackendReq;

/// The in-flight record as the front end gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record<F> {
    pub area: SharedArea<F>,
    pub queues: u16,
    pub queue_size: u16,
}

/// A message as it came; kept while its work is under way, so that a successor can begin it anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message<F> {
    pub header: Header,
    pub payload: Vec<u8>,
    pub fds: Vec<F>,
}

/// What is still to be done for a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Then<F> {
    /// Nothing: rings that can run do so again.
    Settle,
    /// Reply with the base of a ring.
    GiveBase(u16),
    /// Take this memory table.
    Memory(Vec<SharedRegion<F>>),
    /// Take this log.
    Log(SharedArea<F>),
    /// Take this in-flight record.
    Record(Record<F>),
    /// Send the record that is being made, for so many queues of so many descriptors.
    SendRecord(u16, u16),
    /// Back to how the device was when the front end connected.
    Reset,
    /// A restored session finds its feet: these are still to be asked, the last first.
    Restore(Vec<Action<F>>),
}

/// The request under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Work<F> {
    /// None if a restored session had none under way.
    pub message: Option<Message<F>>,
    /// Whether the shell was asked, and answers; else rings are being stopped.
    pub asked: bool,
    pub then: Then<F>,
}

/// What the handler of a request decides.
pub(super) enum Outcome<F> {
    /// It is done: acknowledge it if that is asked for.
    Done,
    /// It is done, and has this reply.
    Reply(Reply),
    /// It cannot be done; the session can go on if the front end waits for an acknowledgement.
    Refused(String),
    /// These rings must stop first.
    Stop(Vec<u16>, Then<F>),
    /// The shell must do this first.
    Ask(Action<F>, Then<F>),
}

/// One vhost-user session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session<F> {
    /// Virtio features that the front end acknowledged.
    pub(super) features: Option<u64>,
    pub(super) protocol: u64,
    pub(super) regions: Vec<SharedRegion<F>>,
    pub(super) next_region: u64,
    pub(super) vrings: Vec<Vring<F>>,
    pub(super) log: Option<SharedArea<F>>,
    /// Where the front end wants to hear of new entries in the log; kept, as the specification leaves its use open.
    pub(super) log_fd: Option<F>,
    pub(super) record: Option<Record<F>>,
    /// The channel for requests of the back end.
    pub(super) channel: Option<F>,
    pub(super) work: Option<Work<F>>,
    pub(super) suspended: bool,
    pub(super) over: bool,
}

impl<F: Clone> Session<F> {
    /// A session that has heard nothing yet.
    pub fn new(offer: &Offer) -> Self {
        Self {
            features: None,
            protocol: 0,
            regions: Vec::new(),
            next_region: 0,
            vrings: (0..offer.queues).map(|_| Vring::default()).collect(),
            log: None,
            log_fd: None,
            record: None,
            channel: None,
            work: None,
            suspended: false,
            over: false,
        }
    }

    /// Whether the next message may be read from the socket.
    pub fn wants_message(&self) -> bool {
        self.work.is_none() && !self.suspended && !self.over
    }

    /// Whether nothing runs any more after [`Event::Suspend`], so that the session can be saved.
    pub fn is_suspended(&self) -> bool {
        let asked = self.work.as_ref().is_some_and(|work| work.asked);
        self.suspended && !asked && self.vrings.iter().all(|ring| ring.run == Run::Stopped)
    }

    /// The one transition function. An event that does not fit the state changes nothing.
    pub fn step(&mut self, offer: &Offer, event: Event<F>) -> Vec<Action<F>> {
        let mut actions = Vec::new();
        if self.over {
            return actions;
        }
        match event {
            Event::Message { header, payload, fds } if self.wants_message() => {
                self.message(offer, Message { header, payload, fds }, &mut actions);
            }
            Event::Message { .. } => {
                self.end("a message came while another was under way".to_owned(), &mut actions);
            }
            Event::RingStopped { index, base } => self.ring_stopped(index, base, &mut actions),
            Event::Done(result) => self.done(offer, result, &mut actions),
            Event::InflightMade(result) => self.record_made(result, &mut actions),
            Event::Fault(reason) => self.end(reason, &mut actions),
            Event::Closed => {
                self.end("the front end closed the connection".to_owned(), &mut actions);
            }
            Event::ConfigChanged => self.tell_config(&mut actions),
            Event::Suspend => {
                self.suspended = true;
                self.stop(&self.running(), &mut actions);
            }
            Event::Resume => {
                self.suspended = false;
                self.go_on(&mut actions);
            }
        }
        if !self.over {
            self.start_rings(&mut actions);
        }
        actions
    }

    fn message(&mut self, offer: &Offer, message: Message<F>, actions: &mut Vec<Action<F>>) {
        let header = message.header;
        let request = match Request::decode(&header, &message.payload) {
            Ok(request) => request,
            Err(error @ CodecError::Unexpected(_)) => return self.end(error.to_string(), actions),
            Err(error) => return self.refuse(&header, error.to_string(), actions),
        };
        match self.handle(offer, request, &message.fds, actions) {
            Outcome::Done => self.acknowledge(&header, actions),
            Outcome::Reply(reply) => {
                actions.push(Action::Send(reply.encode(header.request), Vec::new()));
            }
            Outcome::Refused(reason) => self.refuse(&header, reason, actions),
            Outcome::Stop(rings, then) => {
                self.work = Some(Work { message: Some(message), asked: false, then });
                self.stop(&rings, actions);
                self.go_on(actions);
            }
            Outcome::Ask(action, then) => {
                self.work = Some(Work { message: Some(message), asked: true, then });
                actions.push(action);
            }
        }
    }

    /// Goes on with the request under way if all rings that it stops stand still.
    fn go_on(&mut self, actions: &mut Vec<Action<F>>) {
        if self.suspended || self.vrings.iter().any(|ring| ring.run == Run::Stopping) {
            return;
        }
        let Some(mut work) = self.work.take_if(|work| !work.asked) else { return };
        let ask = match &mut work.then {
            Then::Memory(regions) => Some(Action::MapMemory(regions.clone())),
            Then::Restore(asks) => asks.pop(),
            Then::Reset => {
                self.vrings.iter_mut().for_each(Vring::reset);
                self.record = None;
                Some(Action::MapInflight(None))
            }
            Then::GiveBase(index) => {
                let num = self.vrings.get(usize::from(*index)).map_or(0, |ring| ring.base.into());
                let state = VringState { index: (*index).into(), num };
                self.reply(&work, &Reply::VringState(state), Vec::new(), actions);
                None
            }
            _ => {
                self.acknowledge_work(&work, actions);
                None
            }
        };
        if let Some(ask) = ask {
            work.asked = true;
            self.work = Some(work);
            actions.push(ask);
        }
    }

    fn ring_stopped(&mut self, index: u16, base: u16, actions: &mut Vec<Action<F>>) {
        let Some(ring) = self.vrings.get_mut(usize::from(index)) else { return };
        if ring.advance(Run::Stopped) {
            ring.base = base;
            self.go_on(actions);
        }
    }

    /// The shell has done, or failed to do, what it was asked.
    fn done(&mut self, offer: &Offer, result: Result<(), String>, actions: &mut Vec<Action<F>>) {
        let Some(mut work) = self.work.take_if(|work| work.asked) else { return };
        if let Err(reason) = result {
            return match (&work.message, &work.then) {
                (Some(message), Then::Memory(_)) => {
                    let header = message.header;
                    self.refuse(&header, reason, actions);
                }
                // Without its log or its record a front end would trust what is not there.
                _ => self.end(reason, actions),
            };
        }
        match work.then {
            Then::Memory(ref mut regions) => self.regions = std::mem::take(regions),
            Then::Record(ref record) => self.record = Some(record.clone()),
            Then::Log(ref area) => {
                self.log = Some(area.clone());
                self.change_logs(actions);
                // The one request that is always answered, whether asked for or not.
                return self.reply(&work, &Reply::U64(0), Vec::new(), actions);
            }
            Then::Restore(ref mut asks) => {
                if let Some(ask) = asks.pop() {
                    self.work = Some(work);
                    return actions.push(ask);
                }
                // Whatever was under way begins anew.
                if let Some(message) = work.message {
                    self.message(offer, message, actions);
                }
                return;
            }
            _ => {}
        }
        self.acknowledge_work(&work, actions);
    }

    fn record_made(&mut self, result: Result<(F, u64), String>, actions: &mut Vec<Action<F>>) {
        let made =
            self.work.take_if(|work| work.asked && matches!(work.then, Then::SendRecord(..)));
        let Some(work) = made else { return };
        let Then::SendRecord(queues, queue_size) = work.then else { return };
        let (fds, size) = match result {
            Ok((fd, size)) => (vec![fd], size),
            // A size of 0 and no descriptor: the front end goes on without a record, or gives up.
            Err(_) => (Vec::new(), 0),
        };
        let record = InflightArea { area: Area { size, offset: 0 }, queues, queue_size };
        self.reply(&work, &Reply::Inflight(record), fds, actions);
    }

    fn tell_config(&self, actions: &mut Vec<Action<F>>) {
        let wanted = protocol::BACKEND_REQ | protocol::CONFIG;
        if self.protocol & wanted == wanted
            && let Some(channel) = &self.channel
        {
            let request = u32::from(BackendReq::CONFIG_CHANGE_MSG);
            let header = Header { request, flags: 1, size: 0 };
            actions.push(Action::SendRequest(channel.clone(), header.to_bytes().to_vec()));
        }
    }

    fn end(&mut self, reason: String, actions: &mut Vec<Action<F>>) {
        self.over = true;
        self.work = None;
        actions.push(Action::End(reason));
    }

    /// A request that cannot be done. Only a front end that waits for the acknowledgement learns of it; any other
    /// would go on as if it had been done.
    fn refuse(&mut self, header: &Header, reason: String, actions: &mut Vec<Action<F>>) {
        if self.wants_acknowledgement(header) {
            actions.push(Action::Send(Reply::U64(1).encode(header.request), Vec::new()));
        } else {
            self.end(reason, actions);
        }
    }

    fn wants_acknowledgement(&self, header: &Header) -> bool {
        header.needs_reply() && self.protocol & protocol::REPLY_ACK != 0
    }

    fn acknowledge(&self, header: &Header, actions: &mut Vec<Action<F>>) {
        if self.wants_acknowledgement(header) {
            actions.push(Action::Send(Reply::U64(0).encode(header.request), Vec::new()));
        }
    }

    fn acknowledge_work(&self, work: &Work<F>, actions: &mut Vec<Action<F>>) {
        if let Some(message) = &work.message {
            self.acknowledge(&message.header, actions);
        }
    }

    fn reply(&self, work: &Work<F>, reply: &Reply, fds: Vec<F>, actions: &mut Vec<Action<F>>) {
        if let Some(message) = &work.message {
            actions.push(Action::Send(reply.encode(message.header.request), fds));
        }
    }

    pub(super) fn running(&self) -> Vec<u16> {
        (0u16..).zip(&self.vrings).filter(|(_, r)| r.run == Run::Running).map(|(i, _)| i).collect()
    }

    fn stop(&mut self, rings: &[u16], actions: &mut Vec<Action<F>>) {
        for index in rings {
            if self.vrings[usize::from(*index)].advance(Run::Stopping) {
                actions.push(Action::StopRing(*index));
            }
        }
    }

    /// Starts whatever ring can run. No ring starts while a request waits for rings to stop.
    fn start_rings(&mut self, actions: &mut Vec<Action<F>>) {
        let Some(features) = self.features else { return };
        if self.work.is_some() || self.suspended || self.regions.is_empty() {
            return;
        }
        // Without the protocol features a front end has no way to enable a ring.
        let enabled = features & FEATURE_PROTOCOL_FEATURES == 0;
        for index in 0..self.vrings.len() as u16 {
            let ring = &mut self.vrings[usize::from(index)];
            let kick = match &ring.kick {
                Kick::Unset => continue,
                Kick::Polled => None,
                Kick::Fd(fd) => Some(fd.clone()),
            };
            let (true, Some(addr)) = (ring.enabled.unwrap_or(enabled) && ring.size > 0, ring.addr)
            else {
                continue;
            };
            if !ring.advance(Run::Running) {
                continue;
            }
            actions.push(Action::StartRing(RingSetup {
                index,
                size: ring.size,
                addr,
                base: ring.base,
                features: features & !(FEATURE_LOG_ALL | FEATURE_PROTOCOL_FEATURES),
                kick,
                call: ring.call.clone(),
                error: ring.error.clone(),
            }));
            if self.logs() {
                let change = self.log_change(index);
                actions.push(Action::ChangeRing(index, change));
            }
        }
    }

    /// Whether writes are logged.
    pub(super) fn logs(&self) -> bool {
        self.log.is_some() && self.features.is_some_and(|f| f & FEATURE_LOG_ALL != 0)
    }

    pub(super) fn log_change(&self, index: u16) -> Change<F> {
        let addr = self.vrings[usize::from(index)].addr;
        let used = addr.filter(|addr| addr.flags & VRING_LOG != 0).map(|addr| addr.log);
        let on = self.logs();
        Change::Log { on, used: used.filter(|_| on) }
    }

    /// Tells all running rings whether and where to log.
    pub(super) fn change_logs(&self, actions: &mut Vec<Action<F>>) {
        for index in self.running() {
            actions.push(Action::ChangeRing(index, self.log_change(index)));
        }
    }
}

/// The protocol features that a device offers.
pub(super) fn offered_protocol(offer: &Offer) -> u64 {
    let mut bits = PROTOCOL_FEATURES;
    if !offer.config.is_empty() {
        bits |= protocol::CONFIG;
    }
    if offer.inflight {
        bits |= protocol::INFLIGHT_SHMFD;
    }
    if offer.mtu {
        bits |= protocol::MTU;
    }
    bits
}

/// The virtio features that a device offers, with those of vhost-user itself.
pub(super) fn offered_features(offer: &Offer) -> u64 {
    offer.features | FEATURE_PROTOCOL_FEATURES | FEATURE_LOG_ALL
}
