//! What is around the session: connection, deadlines, a driver with its rings, and a back end that dies.

use super::super::*;
use super::card::Peer;
use super::model::{Offer, Shared, parse};
use crate::vhost_user::codec::Header;
use bixi_api::state::{Declared, Movable};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

pub struct World {
    pub session: FrontSession,
    pub offer: Offer,
    random: u64,
    back_end: Option<Peer>,
    /// Whether back ends are our own.
    card: bool,
    connecting: bool,
    to_back_end: VecDeque<Outgoing>,
    to_front_end: VecDeque<Incoming>,
    on_channel: VecDeque<Incoming>,
    link_deadline: bool,
    stop_deadline: bool,
    /// Messages delivered in both directions, and those after which the back end dies.
    delivered: usize,
    deaths: Vec<usize>,
    /// The driver's wishes.
    wanted: Option<Activation>,
    memory: Vec<Region>,
    log: Option<LogArea>,
    used: BTreeMap<u16, u16>,
    calls: BTreeMap<u16, u32>,
    /// The back end's record, as the shell holds it.
    held: Option<u64>,
    next_record: u64,
    stops_owed: usize,
    resumable: bool,
    paused: Option<Vec<(u16, Option<u16>)>>,
    memory_owed: bool,
    log_owed: bool,
    running: bool,
    downs: Vec<Down>,
    nudged: Vec<u16>,
}

fn config() -> FrontConfig {
    FrontConfig { features: !0, config_len: 8, rings: 2, channel: true, ..FrontConfig::default() }
}

impl World {
    pub fn new(seed: u64, offer: Offer) -> Self {
        Self::among(seed, offer, false)
    }

    /// A world whose back ends are our own if `card`, else models.
    pub fn among(seed: u64, offer: Offer, card: bool) -> Self {
        let mut world = Self {
            session: FrontSession::new(config()),
            offer,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            back_end: None,
            card,
            connecting: false,
            to_back_end: VecDeque::new(),
            to_front_end: VecDeque::new(),
            on_channel: VecDeque::new(),
            link_deadline: false,
            stop_deadline: false,
            delivered: 0,
            deaths: Vec::new(),
            wanted: None,
            memory: Vec::new(),
            log: None,
            used: BTreeMap::new(),
            calls: BTreeMap::new(),
            held: None,
            next_record: 1,
            stops_owed: 0,
            resumable: false,
            paused: None,
            memory_owed: false,
            log_owed: false,
            running: false,
            downs: Vec::new(),
            nudged: Vec::new(),
        };
        world.step(Event::Begin);
        world
    }

    /// Memory, a driver and a start, with deaths after these numbers of delivered messages.
    pub fn start_up(offer: &Offer, deaths: &[usize]) -> Self {
        Self::start_up_among(offer, deaths, false)
    }

    /// The same, with our own back ends or models.
    pub fn start_up_among(offer: &Offer, deaths: &[usize], card: bool) -> Self {
        let mut world = Self::among(7, offer.clone(), card);
        let mut total = 0;
        world.deaths = deaths
            .iter()
            .map(|count| {
                total += count;
                total
            })
            .collect();
        world.memory();
        world.activate();
        world.come_to_rest();
        world
    }

    /// A start, a stop with a loss on the way, and another start.
    pub fn stop_and_go(offer: &Offer, resumable: bool, loss: Option<usize>) -> Self {
        let mut world = Self::start_up(offer, &[]);
        world.progress();
        world.delivered = 0;
        world.deaths = loss.into_iter().collect();
        world.deactivate(resumable);
        while world.stops_owed > 0 {
            world.ordinary_event();
        }
        world.activate();
        world.come_to_rest();
        world
    }

    pub fn delivered(&self) -> usize {
        self.delivered
    }

    pub fn last_down(&self) -> Option<&Down> {
        self.downs.last()
    }

    fn chance(&mut self, of: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % of
    }

    fn step(&mut self, event: Event) {
        let mut actions = Vec::new();
        let names_record = match &event {
            Event::Message(message) if message.header.request == 31 => {
                Some(u64::from_ne_bytes(message.payload[..8].try_into().unwrap()))
            }
            _ => None,
        };
        self.session.step(event, &mut actions);
        for action in actions {
            self.act(action, names_record);
        }
    }

    fn act(&mut self, action: Action, names_record: Option<u64>) {
        match action {
            Action::Connect => {
                assert!(!self.connecting && self.back_end.is_none());
                self.connecting = true;
            }
            Action::Disconnect => self.cut(),
            Action::Send(message) => {
                assert!(self.back_end.is_some(), "a message without a connection");
                self.to_back_end.push_back(message);
            }
            Action::SendOnChannel(bytes) => assert_eq!(parse(&bytes).1, 0u64.to_ne_bytes()),
            Action::Arm(Timer::Link, _) => self.link_deadline = true,
            Action::Arm(Timer::Stop, _) => self.stop_deadline = true,
            Action::Disarm(Timer::Link) => self.link_deadline = false,
            Action::Disarm(Timer::Stop) => self.stop_deadline = false,
            Action::Probed(_) | Action::ConfigChanged(_) => {}
            Action::KeepRecord => self.held = Some(names_record.unwrap()),
            Action::DropRecord => assert!(self.held.take().is_some()),
            Action::Running => {
                self.running = true;
                self.check_back_end();
            }
            Action::Nudge { index } => self.nudged.push(index),
            Action::Stopped { bases } => self.stopped(bases),
            Action::MemoryInForce => {
                assert!(std::mem::take(&mut self.memory_owed));
                let told = self.back_end.as_ref().map(|model| &model.memory);
                assert!(told.is_none_or(|told| told.is_empty() || self.same_memory(told)));
            }
            Action::LogInForce => {
                assert!(std::mem::take(&mut self.log_owed));
            }
            Action::CallInForce { index } => {
                let told = self.back_end.as_ref().and_then(|model| model.rings.get(&index));
                let told = told.filter(|ring| ring.kicked).and_then(|ring| ring.call);
                assert!(told.is_none_or(|told| told == self.calls[&index]));
            }
            Action::Down(down) => {
                self.running = false;
                self.downs.push(down);
            }
        }
    }

    fn stopped(&mut self, bases: Vec<(u16, Option<u16>)>) {
        assert!(self.stops_owed > 0, "nobody asked");
        self.stops_owed -= 1;
        self.running = false;
        if let Some(model) = &self.back_end {
            assert!(model.rings.values().all(|ring| !ring.kicked), "a ring still runs");
        }
        for (index, base) in &bases {
            if let Some(base) = base {
                assert_eq!(*base, self.used[index]);
            }
        }
        if self.resumable && !bases.is_empty() {
            self.paused = Some(bases);
        }
    }

    fn same_memory(&self, told: &[Region]) -> bool {
        let sorted = |regions: &[Region]| {
            let mut regions = regions.to_vec();
            regions.sort_by_key(|region| region.guest_addr);
            regions
        };
        sorted(told) == sorted(&self.memory)
    }

    /// The back end is as the driver asked for.
    fn check_back_end(&self) {
        let model = self.back_end.as_ref().unwrap();
        let wanted = self.wanted.as_ref().unwrap();
        assert_eq!(model.features.unwrap() & !(1 << 30 | 1 << 26), wanted.features());
        if self.offer.has(12) {
            assert!(model.record.is_some());
            assert_eq!(model.record, self.held, "the record that is held goes along");
        }
        // Our own back end sets a ring up when it is to run; which that is may have changed since the start.
        let set_up = |ring: &&Ring| !model.is_card() || model.works(ring.index);
        for ring in wanted.rings().iter().filter(set_up) {
            let told = &model.rings[&ring.index];
            assert!(told.kicked && told.size == Some(ring.size));
            assert_eq!(told.addresses, Some([ring.desc, ring.avail, ring.used]));
        }
    }

    /// Everything, once no event is left.
    fn check_at_rest(&self) {
        assert_eq!(self.stops_owed, 0);
        assert!(!self.memory_owed && !self.log_owed);
        let model = self.back_end.as_ref().unwrap();
        assert_eq!(self.session.is_running(), self.wanted.is_some() && !self.memory.is_empty());
        if !self.session.is_running() {
            assert!(model.rings.values().all(|ring| !ring.kicked));
            return;
        }
        assert!(self.running);
        self.check_back_end();
        assert!(self.same_memory(&model.memory));
        assert!(model.is_card() || (model.features.unwrap() & 1 << 26 != 0) == self.log.is_some());
        assert!(self.log.is_none() || model.log == self.log);
        let mut wanted = self.wanted.as_ref().unwrap().rings().iter();
        assert!(wanted.all(|ring| {
            assert!(!model.is_card() || model.works(ring.index) == ring.enabled);
            if model.is_card() && !ring.enabled {
                return true;
            }
            let told = &model.rings[&ring.index];
            let call = self.calls.get(&ring.index).copied().unwrap_or(0);
            assert!(!ring.enabled || self.nudged.contains(&ring.index));
            told.enabled == ring.enabled
                && told.call == Some(call)
                && told.logged == self.log.is_some()
        }));
    }

    fn cut(&mut self) {
        self.back_end = None;
        self.to_back_end.clear();
        self.to_front_end.clear();
        self.on_channel.clear();
    }

    pub fn kill(&mut self) {
        if self.back_end.is_none() {
            return;
        }
        // What was answered before the death still arrives, or not.
        while self.chance(2) == 0 && self.back_end.is_some() && !self.to_front_end.is_empty() {
            let message = self.to_front_end.pop_front().unwrap();
            self.step(Event::Message(message));
        }
        if self.back_end.is_some() {
            self.cut();
            self.step(Event::Disconnected);
        }
    }

    pub fn connect(&mut self) {
        if !std::mem::take(&mut self.connecting) {
            return;
        }
        if self.chance(4) == 0 {
            return self.step(Event::ConnectFailed);
        }
        self.back_end = Some(Peer::new(&self.offer, self.card));
        let used = self.used.iter().map(|(index, used)| (*index, *used)).collect();
        self.step(Event::Connected { used });
    }

    fn deliver(&mut self) {
        let to_front = !self.to_front_end.is_empty();
        if to_front && (self.to_back_end.is_empty() || self.chance(2) == 0) {
            let message = self.to_front_end.pop_front().unwrap();
            self.step(Event::Message(message));
        } else if let Some(message) = self.to_back_end.pop_front() {
            self.next_record += 1;
            let shared = Shared {
                offer: &self.offer,
                used: &self.used,
                calls: &self.calls,
                next_record: self.next_record,
            };
            let answers = self.back_end.as_mut().unwrap().handle(&message, &shared);
            self.to_front_end.extend(answers);
        } else {
            return;
        }
        self.delivered += 1;
        if self.deaths.first().is_some_and(|death| *death <= self.delivered) {
            self.deaths.remove(0);
            self.kill();
        }
    }

    pub fn deadline(&mut self, timer: Timer) {
        let armed = match timer {
            Timer::Link => &mut self.link_deadline,
            Timer::Stop => &mut self.stop_deadline,
        };
        if std::mem::take(armed) {
            self.step(Event::Deadline(timer));
        }
    }

    /// The back end uses some buffers of rings that it may work on.
    fn progress(&mut self) {
        for index in 0..4 {
            let steps = self.chance(3) as u16;
            if self.back_end.as_ref().is_some_and(|model| model.works(index)) {
                let used = self.used.get_mut(&index).unwrap();
                *used = used.wrapping_add(steps * 20_000);
            }
        }
    }

    pub fn config_change(&mut self) {
        if self.back_end.as_ref().is_some_and(|model| model.channel) {
            let header = Header { request: 2, flags: 9, size: 0 };
            let message = Incoming { header, payload: Vec::new(), descriptors: 0 };
            self.step(Event::ChannelMessage(message));
        }
    }

    /// One event of an undisturbed world.
    pub fn ordinary_event(&mut self) {
        match self.chance(4) {
            0 if self.connecting => self.connect(),
            0 if self.back_end.is_none() => self.deadline(Timer::Link),
            1 => self.progress(),
            _ => self.deliver(),
        }
    }

    /// One event of any kind.
    pub fn random_event(&mut self) {
        match self.chance(100) {
            0 => self.kill(),
            1 => self.deadline(Timer::Link),
            2 => self.deadline(Timer::Stop),
            3..8 => self.activate(),
            8 => self.deactivate(false),
            9 => self.deactivate(true),
            10 => self.memory(),
            11 => self.toggle_log(),
            12..14 => self.enable(),
            14 => self.replace_call(),
            15 => self.config_change(),
            _ => self.ordinary_event(),
        }
    }

    pub fn come_to_rest(&mut self) {
        let mut left = 20_000;
        loop {
            let quiet = self.back_end.is_some()
                && self.to_back_end.is_empty()
                && self.to_front_end.is_empty();
            if quiet {
                break;
            }
            self.ordinary_event();
            left -= 1;
            assert!(left > 0, "no rest: {:?}", self.downs.last());
        }
        self.check_at_rest();
    }

    pub fn activate(&mut self) {
        if self.wanted.is_some() || self.stops_owed > 0 {
            return;
        }
        let paused = self.paused.take();
        let rings = 1 + self.chance(3) as u16;
        let ring = |index: u16, base: u16, enabled: bool| Ring {
            index,
            size: 64,
            desc: 0x10_0000 + u64::from(index) * 0x10000,
            avail: 0x10_4000 + u64::from(index) * 0x10000,
            used: 0x10_8000 + u64::from(index) * 0x10000,
            base,
            enabled,
        };
        let rings: Vec<_> = match paused {
            // Where the back end could not say, the ring's used index does.
            Some(bases) => bases
                .iter()
                .map(|(index, base)| ring(*index, base.unwrap_or(self.used[index]), true))
                .collect(),
            None => {
                self.used = (0..rings).map(|index| (index, 0)).collect();
                (0..rings).map(|index| ring(index, 0, index != 1)).collect()
            }
        };
        let activation = Activation::new(1 << 32 | 1 << 9, rings).unwrap();
        self.wanted = Some(activation.clone());
        self.step(Event::Activate(activation));
    }

    pub fn deactivate(&mut self, resumable: bool) {
        if self.wanted.take().is_none() && self.stops_owed > 2 {
            return;
        }
        self.resumable = if self.stops_owed > 0 { self.resumable && resumable } else { resumable };
        self.paused = self.paused.take().filter(|_| resumable);
        self.stops_owed += 1;
        self.step(Event::Deactivate { resumable, within: Duration::from_secs(1) });
    }

    pub fn memory(&mut self) {
        let high = self.chance(4) as u32;
        let region = |slot: u32| Region {
            slot,
            guest_addr: u64::from(slot) << 30,
            size: 1 << 30,
            mmap_offset: 0x1000 * u64::from(slot),
        };
        self.memory = (0..=high).filter(|slot| *slot != 2).map(region).collect();
        self.memory_owed = true;
        self.step(Event::Memory(self.memory.clone()));
    }

    fn toggle_log(&mut self) {
        self.log = match self.log {
            None => Some(LogArea { size: 4096, offset: 0 }),
            Some(_) => None,
        };
        self.log_owed = true;
        self.step(Event::Log(self.log));
    }

    fn enable(&mut self) {
        let index = self.chance(3) as u16;
        let enabled = self.chance(2) == 0;
        if let Some(wanted) = &self.wanted {
            let mut rings = wanted.rings().to_vec();
            for ring in rings.iter_mut().filter(|ring| ring.index == index) {
                ring.enabled = enabled;
            }
            self.wanted = Some(Activation::new(wanted.features(), rings).unwrap());
        }
        self.step(Event::EnableRing { index, enabled });
    }

    fn replace_call(&mut self) {
        let index = self.chance(3) as u16;
        *self.calls.entry(index).or_default() += 1;
        self.step(Event::CallReplaced { index });
    }

    /// The session goes to another process: with its connection if it is steady, without otherwise.
    pub fn hand_over(&mut self) {
        if self.stops_owed > 0 || self.memory_owed || self.log_owed {
            return;
        }
        let Declared::State(payload) = self.session.declare() else { unreachable!() };
        let steady = self.session.is_steady();
        self.session = FrontSession::restore(config(), &payload, steady).unwrap();
        assert_eq!(self.session.is_connected(), steady);
        if !steady {
            self.cut();
            self.connecting = false;
            self.running = false;
            self.step(Event::Begin);
        }
    }
}
