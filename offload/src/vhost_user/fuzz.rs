//! Sessions under a front end that says anything at any time.
//!
//! [`World`] is a shell without a kernel: it does what a session asks, checks that it may be asked, and answers late.

use super::codec::{HEADER_LEN, Header, MAX_PAYLOAD, Reply, Request};
use super::{Action, Change, Event, Offer, RingSetup, Session, SessionState};
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// A descriptor of the simulation.
pub(super) type Token = Arc<u32>;

pub(super) fn offer() -> Offer {
    Offer {
        features: 0x1_3000_0000 | 0x8020,
        config: (0..60).collect(),
        config_writable: 32..33,
        queues: 3,
        max_queue_size: 256,
        inflight: true,
        mtu: true,
    }
}

/// A shell without a kernel.
#[derive(Debug)]
pub(super) struct World {
    pub offer: Offer,
    pub session: Session<Token>,
    pub running: BTreeMap<u16, RingSetup<Token>>,
    pub stopping: BTreeMap<u16, u16>,
    /// Whether a running ring logs, and where its used ring.
    pub logs: BTreeMap<u16, (bool, Option<u64>)>,
    pub asked: VecDeque<Action<Token>>,
    pub sent: Vec<(Vec<u8>, usize)>,
    pub ended: Option<String>,
    pub mapped: bool,
}

impl World {
    pub fn new() -> Self {
        let offer = offer();
        let session = Session::new(&offer);
        Self {
            offer,
            session,
            running: BTreeMap::new(),
            stopping: BTreeMap::new(),
            logs: BTreeMap::new(),
            asked: VecDeque::new(),
            sent: Vec::new(),
            ended: None,
            mapped: false,
        }
    }

    pub fn feed(&mut self, event: Event<Token>) {
        let actions = self.session.step(&self.offer, event);
        self.perform(actions);
    }

    /// Does what the session asks, and checks that it may ask.
    pub fn perform(&mut self, actions: Vec<Action<Token>>) {
        let count = actions.len();
        for (i, action) in actions.into_iter().enumerate() {
            assert!(self.ended.is_none(), "{action:?} after the end");
            match action {
                Action::Send(bytes, fds) => {
                    let head = bytes.first_chunk::<HEADER_LEN>().expect("a whole header");
                    let header = Header::parse(head).expect("a good header");
                    assert!(header.is_reply() && header.size as usize + HEADER_LEN == bytes.len());
                    self.sent.push((bytes, fds.len()));
                }
                Action::StartRing(setup) => {
                    assert!(self.mapped && setup.size > 0, "started too early: {setup:?}");
                    assert!(!self.stopping.contains_key(&setup.index));
                    self.logs.insert(setup.index, (false, None));
                    assert!(self.running.insert(setup.index, setup).is_none(), "started twice");
                }
                Action::StopRing(index) => {
                    let setup = self.running.remove(&index).expect("stopped without running");
                    self.stopping.insert(index, setup.base);
                    self.logs.remove(&index);
                }
                Action::ChangeRing(index, change) => {
                    let setup = self.running.get_mut(&index).expect("changed without running");
                    match change {
                        Change::Call(fd) => setup.call = fd,
                        Change::Error(fd) => setup.error = fd,
                        Change::Log { on, used } => drop(self.logs.insert(index, (on, used))),
                    }
                }
                Action::MapMemory(ref regions) => {
                    assert!(self.running.is_empty() && self.stopping.is_empty());
                    let ids: BTreeSet<u64> = regions.iter().map(|region| region.id).collect();
                    assert_eq!(ids.len(), regions.len(), "one id for two regions");
                    self.asked.push_back(action);
                }
                Action::MapInflight(_) => {
                    assert!(self.running.is_empty() && self.stopping.is_empty());
                    self.asked.push_back(action);
                }
                Action::MakeInflight { queues, queue_size } => {
                    assert!((1..=3).contains(&queues) && (1..=256).contains(&queue_size));
                    self.asked.push_back(action);
                }
                Action::MapLog(_) => self.asked.push_back(action),
                Action::End(reason) => {
                    assert_eq!(i + 1, count, "something came after the end");
                    self.ended = Some(reason);
                }
                Action::WriteConfig(at, bytes) => {
                    assert!(at >= 32 && at as usize + bytes.len() <= 33);
                }
                Action::Features(features) => assert_eq!(features & !self.offer.features, 0),
                Action::Mtu(_) | Action::SendRequest(..) => {}
            }
        }
        assert!(self.asked.len() <= 1, "one thing at a time: {:?}", self.asked);
    }

    /// Answers one thing that the session waits for, `good` or not. False if it waits for nothing.
    pub fn answer(&mut self, good: bool) -> bool {
        if let Some(action) = self.asked.pop_front() {
            let result = if good { Ok(()) } else { Err("not today".to_owned()) };
            let event = match action {
                Action::MakeInflight { .. } => {
                    Event::InflightMade(result.map(|()| (Arc::new(7), 4096)))
                }
                Action::MapMemory(regions) => {
                    if good {
                        self.mapped = !regions.is_empty();
                    }
                    Event::Done(result)
                }
                _ => Event::Done(result),
            };
            self.feed(event);
            return true;
        }
        if let Some((index, base)) = self.stopping.pop_first() {
            self.feed(Event::RingStopped { index, base });
            return true;
        }
        false
    }

    /// Answers everything; then the session waits for a message, is suspended or over.
    pub fn settle(&mut self) {
        while self.answer(true) {}
    }

    /// Has a successor take over, as a new process would: only bytes and descriptors go over.
    pub fn hand_over(&mut self) {
        self.feed(Event::Suspend);
        self.settle();
        if self.ended.is_some() {
            return;
        }
        assert!(self.session.is_suspended(), "{:?}", self.session);
        let (state, fds) = self.session.save().expect("a suspended session can be saved");
        let bytes = state.encode_to_vec();
        let state = SessionState::decode(bytes.as_slice()).expect("what was encoded decodes");
        let (next, actions) =
            Session::restore(&self.offer, &state, &fds).expect("what was saved can be restored");
        self.session = next;
        self.mapped = false;
        self.perform(actions);
    }
}

/// Interprets `data` as what a front end, a slow shell and a failing kernel do.
pub fn session(data: &[u8]) {
    let mut world = World::new();
    let mut data = data;
    while let [op, code, flags, size, rest @ ..] = data {
        let (payload, rest) = rest.split_at(usize::from(*size).min(rest.len()));
        data = rest;
        match op % 16 {
            0..=9 if world.session.wants_message() => {
                let header = Header {
                    request: u32::from(*code) % 48,
                    flags: 1 | u32::from(*flags) & 0xc,
                    size: payload.len() as u32,
                };
                let fds = (0..op / 16 % 9).map(|i| Arc::new(i.into())).collect();
                world.feed(Event::Message { header, payload: payload.to_vec(), fds });
            }
            10 => world.feed(Event::ConfigChanged),
            11 => world.hand_over(),
            12 => {
                world.feed(Event::Suspend);
                world.answer(*flags & 1 == 0);
                world.feed(Event::Resume);
            }
            13 => world.feed(Event::RingStopped { index: u16::from(*code) % 4, base: 9 }),
            // An answer that nobody waits for changes nothing.
            14 if world.asked.is_empty() => world.feed(Event::Done(Ok(()))),
            _ => drop(world.answer(*flags & 7 != 7)),
        }
        if world.ended.is_some() {
            break;
        }
    }
    world.settle();
    let waits = world.session.wants_message() || world.ended.is_some();
    assert!(waits, "nobody answers, and it waits: {:?}", world.session);
}

/// Any bytes as header and payload, of requests and of replies; what decodes encodes to the same meaning.
pub fn codec(data: &[u8]) {
    let Some((head, payload)) = data.split_first_chunk::<HEADER_LEN>() else { return };
    let Ok(header) = Header::parse(head) else { return };
    assert!(header.size as usize <= MAX_PAYLOAD);
    if let Ok(request) = Request::decode(&header, payload) {
        let again = request.encode(header.needs_reply());
        let (head, payload) = again.split_first_chunk::<HEADER_LEN>().expect("a header");
        let header = Header::parse(head).expect("what was encoded parses");
        assert_eq!(Request::decode(&header, payload).as_ref(), Ok(&request));
        if let Ok(reply) = Reply::decode(request.code(), &Header { flags: 5, ..header }, payload) {
            let _ = reply.encode(header.request);
        }
    }
}

/// Any bytes as the state of a session; what can be restored runs, and can be saved again.
pub fn session_state(data: &[u8]) {
    let Ok(state) = SessionState::decode(data) else { return };
    let fds: Vec<Token> = (0..4).map(Arc::new).collect();
    let mut world = World::new();
    if let Ok((session, actions)) = Session::restore(&world.offer, &state, &fds) {
        world.session = session;
        world.perform(actions);
        world.settle();
        world.hand_over();
        world.settle();
    }
}
