//! One connection to a back end, from its first message to its loss: what was agreed, what the back end has been told
//! and which answers are still to come.
//!
//! ```text
//! hello ──► protocol ──► details ──► ready ──► recording ──► starting ──► running ──► stopping
//!   └───────────────────────────────►  │ ▲────────┘  └───────────▲            │            │
//!       (no protocol features)         └─┼──────────────────────┘            │            │
//!                                        └────────────────────────────────────┴────────────┘
//! ```
//!
//! Requests are sent in batches without waiting; the back end works them off in order, and so do its answers come.
//! A stage ends when no answer is outstanding. [`FrontSession`](super::FrontSession) owns the only conversation there is.

use super::types::{
    Action, Activation, Descriptor, Down, FrontConfig, Incoming, LogArea, Outgoing, Probe, Record,
    Region, Ring, flags,
};
use std::collections::VecDeque;
use vhost::vhost_user::message::{FrontendReq, VhostUserProtocolFeatures as Protocol};

/// `VHOST_USER_F_PROTOCOL_FEATURES`: the back end understands protocol features.
pub(super) const F_PROTOCOL: u64 = 1 << 30;
/// `VHOST_F_LOG_ALL`: the back end marks the pages it writes.
pub(super) const F_LOG_ALL: u64 = 1 << 26;
/// Regions a back end takes in SET_MEM_TABLE.
const TABLE_REGIONS: usize = 8;
/// `VHOST_VRING_F_LOG`: marks writes to the used ring, too.
const RING_F_LOG: u32 = 1;

/// Where a conversation is. See the module's diagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Hello,
    Protocol,
    Details,
    Ready,
    Recording,
    Starting,
    Running,
    Stopping,
}

impl Stage {
    pub fn can_become(self, next: Self) -> bool {
        use Stage::{Details, Hello, Protocol, Ready, Recording, Running, Starting, Stopping};
        matches!(
            (self, next),
            (Hello, Protocol)
                | (Protocol, Details)
                | (Hello | Details | Recording | Stopping, Ready)
                | (Ready, Recording)
                | (Ready | Recording, Starting)
                | (Starting, Running)
                | (Running, Stopping)
        )
    }

    /// Whether the back end may be at work on the rings.
    pub fn started(self) -> bool {
        matches!(self, Self::Starting | Self::Running | Self::Stopping)
    }
}

/// An answer to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    Features,
    ProtocolFeatures,
    QueueNum,
    MemSlots,
    Config,
    /// Zero for success, to a request with NEED_REPLY.
    Ack(FrontendReq),
    LogBase,
    Record,
    RingBase(u16),
    /// The features again: what was sent before has been worked off.
    Barrier,
}

impl Expected {
    fn request(self) -> FrontendReq {
        match self {
            Self::Features | Self::Barrier => FrontendReq::GET_FEATURES,
            Self::ProtocolFeatures => FrontendReq::GET_PROTOCOL_FEATURES,
            Self::QueueNum => FrontendReq::GET_QUEUE_NUM,
            Self::MemSlots => FrontendReq::GET_MAX_MEM_SLOTS,
            Self::Config => FrontendReq::GET_CONFIG,
            Self::Ack(request) => request,
            Self::LogBase => FrontendReq::SET_LOG_BASE,
            Self::Record => FrontendReq::GET_INFLIGHT_FD,
            Self::RingBase(_) => FrontendReq::GET_VRING_BASE,
        }
    }

    pub fn name(self) -> &'static str {
        name(self.request())
    }
}

/// How the vhost-user specification spells a request.
fn name(request: FrontendReq) -> &'static str {
    match request {
        FrontendReq::GET_FEATURES => "GET_FEATURES",
        FrontendReq::SET_FEATURES => "SET_FEATURES",
        FrontendReq::GET_PROTOCOL_FEATURES => "GET_PROTOCOL_FEATURES",
        FrontendReq::GET_QUEUE_NUM => "GET_QUEUE_NUM",
        FrontendReq::GET_MAX_MEM_SLOTS => "GET_MAX_MEM_SLOTS",
        FrontendReq::GET_CONFIG => "GET_CONFIG",
        FrontendReq::SET_LOG_BASE => "SET_LOG_BASE",
        FrontendReq::GET_INFLIGHT_FD => "GET_INFLIGHT_FD",
        FrontendReq::SET_INFLIGHT_FD => "SET_INFLIGHT_FD",
        FrontendReq::GET_VRING_BASE => "GET_VRING_BASE",
        FrontendReq::SET_VRING_NUM => "SET_VRING_NUM",
        FrontendReq::SET_VRING_ADDR => "SET_VRING_ADDR",
        FrontendReq::SET_VRING_KICK => "SET_VRING_KICK",
        FrontendReq::SET_VRING_CALL => "SET_VRING_CALL",
        FrontendReq::SET_VRING_ENABLE => "SET_VRING_ENABLE",
        FrontendReq::SET_MEM_TABLE => "SET_MEM_TABLE",
        FrontendReq::ADD_MEM_REG => "ADD_MEM_REG",
        FrontendReq::REM_MEM_REG => "REM_MEM_REG",
        _ => "a request",
    }
}

/// What an answer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// Nothing but that it came.
    Done,
    /// The configuration space.
    Config(Vec<u8>),
    /// The in-flight record came with its descriptor.
    Record(Record),
    /// A ring stands still at this available index.
    Base(u16, u16),
}

/// The state of one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Conversation {
    pub stage: Stage,
    pub expected: VecDeque<Expected>,
    /// Virtio features offered, bit 30 included.
    pub offered: u64,
    /// Protocol features in force.
    pub protocol: u64,
    /// Rings the back end has.
    pub rings: u64,
    /// Regions it takes one by one.
    pub mem_slots: u64,
    /// The configuration space.
    pub config: Vec<u8>,
    /// Regions it has been told, if any.
    pub memory: Option<Vec<Region>>,
    /// Where it logs.
    pub log: Option<LogArea>,
    /// Rings set up, and whether each is enabled.
    pub set_up: Vec<(u16, bool)>,
    /// Rings that have stopped, and where.
    pub stopped: Vec<(u16, u16)>,
    /// Which activation is set up.
    pub generation: u64,
    /// Rings whose call eventfd the back end must be told anew.
    pub calls: Vec<u16>,
    /// Rings to nudge once all answers are here.
    pub nudges: Vec<u16>,
    /// Whether the configuration space must be read again.
    pub reread: bool,
    /// Whether the newest request sent expects no answer, so that nothing yet says that it was worked off.
    unanswered: bool,
}

impl Conversation {
    /// Begins to talk.
    pub fn begin(rings: u16, out: &mut Vec<Action>) -> Self {
        let mut this = Self::blank(rings);
        this.ask(Outgoing::request(FrontendReq::GET_FEATURES, Vec::new()), Expected::Features, out);
        this
    }

    /// A conversation nothing has been said in, with a back end that has `rings` rings unless it says otherwise:
    /// before the protocol feature MQ there was no way to ask.
    pub fn blank(rings: u16) -> Self {
        Self {
            stage: Stage::Hello,
            expected: VecDeque::new(),
            offered: 0,
            protocol: 0,
            rings: u64::from(rings),
            mem_slots: 0,
            config: Vec::new(),
            memory: None,
            log: None,
            set_up: Vec::new(),
            stopped: Vec::new(),
            generation: 0,
            calls: Vec::new(),
            nudges: Vec::new(),
            reread: false,
            unanswered: false,
        }
    }

    pub fn become_stage(&mut self, next: Stage) {
        debug_assert!(self.stage.can_become(next), "{:?} cannot become {next:?}", self.stage);
        self.stage = next;
    }

    pub fn has(&self, feature: Protocol) -> bool {
        self.protocol & feature.bits() != 0
    }

    /// What the driver is shown of the back end.
    pub fn probe(&self, config: &FrontConfig) -> Probe {
        Probe {
            features: self.offered & config.features & !F_PROTOCOL & !F_LOG_ALL,
            protocol: self.protocol,
            rings: u16::try_from(self.rings).unwrap_or(u16::MAX),
            config: self.config.clone(),
        }
    }

    fn send(&mut self, message: Outgoing, out: &mut Vec<Action>) {
        self.unanswered = true;
        out.push(Action::Send(message));
    }

    fn ask(&mut self, message: Outgoing, expected: Expected, out: &mut Vec<Action>) {
        self.expected.push_back(expected);
        self.send(message, out);
        self.unanswered = false;
    }

    /// Sends a request that must succeed: with an answer where the back end gives one.
    fn insist(&mut self, mut message: Outgoing, request: FrontendReq, out: &mut Vec<Action>) {
        if self.has(Protocol::REPLY_ACK) {
            message.flags |= flags::NEED_REPLY;
            self.ask(message, Expected::Ack(request), out);
        } else {
            self.send(message, out);
        }
    }

    /// Makes sure that an answer will tell when all that was sent has been worked off.
    pub fn barrier(&mut self, out: &mut Vec<Action>) {
        if self.unanswered {
            let message = Outgoing::request(FrontendReq::GET_FEATURES, Vec::new());
            self.ask(message, Expected::Barrier, out);
        }
    }

    /// Takes the answer that came.
    ///
    /// # Errors
    /// The back end broke the protocol or refused.
    pub fn answer(&mut self, message: &Incoming, config: &FrontConfig) -> Result<Answer, Down> {
        let expected = self.expected.pop_front().ok_or(Down::Protocol("an answer nobody asked for"))?;
        if message.flags & flags::VERSION_MASK != flags::VERSION {
            return Err(Down::Protocol("a message of another version"));
        }
        if message.flags & flags::REPLY == 0 || message.request != u32::from(expected.request()) {
            return Err(Down::Protocol("not the answer that was asked for"));
        }
        if message.descriptors > usize::from(expected == Expected::Record) {
            return Err(Down::Protocol("a descriptor that nobody asked for"));
        }
        match expected {
            Expected::Features => self.offered = number(message)?,
            Expected::ProtocolFeatures => self.agree(number(message)?, config),
            Expected::QueueNum => self.rings = number(message)?,
            Expected::MemSlots => self.mem_slots = number(message)?,
            Expected::Config => return config_space(message, config).map(Answer::Config),
            Expected::Ack(request) if number(message)? != 0 => {
                return Err(Down::Refused(name(request)));
            }
            // The offer of a running back end is not read again: only the answer counts.
            Expected::Ack(_) | Expected::Barrier => _ = number(message)?,
            // Some back ends answer with a number, some with nothing.
            Expected::LogBase if matches!(message.payload.len(), 0 | 8) => {}
            Expected::LogBase => return Err(Down::Protocol("a wrong answer to SET_LOG_BASE")),
            Expected::Record => return record(message).map(Answer::Record),
            Expected::RingBase(index) => return ring_base(message, index),
        }
        Ok(Answer::Done)
    }

    /// Cuts the protocol features offered to those this side uses.
    fn agree(&mut self, offered: u64, config: &FrontConfig) {
        let mut ours = Protocol::MQ
            | Protocol::LOG_SHMFD
            | Protocol::REPLY_ACK
            | Protocol::INFLIGHT_SHMFD
            | Protocol::CONFIGURE_MEM_SLOTS;
        ours.set(Protocol::CONFIG, config.config_len > 0);
        ours.set(Protocol::BACKEND_REQ, config.channel);
        self.protocol = offered & ours.bits();
    }

    /// Sends what follows the features: the protocol's, or nothing if the back end knows none.
    pub fn after_hello(&mut self, out: &mut Vec<Action>) {
        if self.offered & F_PROTOCOL == 0 {
            self.send(Outgoing::request(FrontendReq::SET_OWNER, Vec::new()), out);
            self.become_stage(Stage::Ready);
            return;
        }
        self.become_stage(Stage::Protocol);
        let message = Outgoing::request(FrontendReq::GET_PROTOCOL_FEATURES, Vec::new());
        self.ask(message, Expected::ProtocolFeatures, out);
    }

    /// Sets the protocol features and asks all that can be asked before a driver is there.
    pub fn after_protocol(&mut self, config: &FrontConfig, out: &mut Vec<Action>) {
        self.become_stage(Stage::Details);
        self.send(Outgoing::number(FrontendReq::SET_PROTOCOL_FEATURES, self.protocol), out);
        self.send(Outgoing::request(FrontendReq::SET_OWNER, Vec::new()), out);
        if self.has(Protocol::BACKEND_REQ) {
            let message = Outgoing::request(FrontendReq::SET_BACKEND_REQ_FD, Vec::new());
            self.send(message.with(Descriptor::Channel), out);
        }
        if self.has(Protocol::MQ) {
            let message = Outgoing::request(FrontendReq::GET_QUEUE_NUM, Vec::new());
            self.ask(message, Expected::QueueNum, out);
        }
        if self.has(Protocol::CONFIGURE_MEM_SLOTS) {
            let message = Outgoing::request(FrontendReq::GET_MAX_MEM_SLOTS, Vec::new());
            self.ask(message, Expected::MemSlots, out);
        }
        if self.has(Protocol::CONFIG) {
            self.ask_config(config, out);
        }
        self.barrier(out);
    }

    /// Asks for the configuration space.
    pub fn ask_config(&mut self, config: &FrontConfig, out: &mut Vec<Action>) {
        let mut payload = Vec::with_capacity(12 + config.config_len as usize);
        for word in [0, config.config_len, 0] {
            payload.extend_from_slice(&word.to_ne_bytes());
        }
        payload.resize(payload.len() + config.config_len as usize, 0);
        self.ask(Outgoing::request(FrontendReq::GET_CONFIG, payload), Expected::Config, out);
    }

    /// Sends the features in force: what the driver acknowledged and what the two sides need between them.
    fn features(&mut self, acknowledged: u64, out: &mut Vec<Action>) {
        let mut features = acknowledged | (self.offered & F_PROTOCOL);
        if self.log.is_some() {
            features |= F_LOG_ALL;
        }
        let message = Outgoing::number(FrontendReq::SET_FEATURES, features);
        self.insist(message, FrontendReq::SET_FEATURES, out);
    }

    /// Asks the back end for a new in-flight record.
    pub fn ask_record(&mut self, activation: &Activation, out: &mut Vec<Action>) {
        self.become_stage(Stage::Recording);
        // The record's layout depends on the features (split or packed rings).
        self.features(activation.features(), out);
        let (queues, ring_size) = activation.record_shape();
        let message = record_message(
            FrontendReq::GET_INFLIGHT_FD,
            &Record { size: 0, offset: 0, queues, ring_size },
        );
        self.ask(message, Expected::Record, out);
    }

    /// Sets up everything and starts the rings.
    pub fn start(
        &mut self,
        activation: &Activation,
        memory: &[Region],
        log: Option<LogArea>,
        record: Option<&Record>,
        out: &mut Vec<Action>,
    ) {
        self.become_stage(Stage::Starting);
        self.calls.clear();
        self.stopped.clear();
        self.set_up.clear();
        self.set_log_base(log, out);
        self.features(activation.features(), out);
        self.tell_memory(memory, out);
        for ring in activation.rings() {
            // Early, since back ends on DPDK know a ring only by what was said of it, and read the record per known ring.
            self.tell_call(ring.index, out);
        }
        if let Some(record) = record {
            let message = record_message(FrontendReq::SET_INFLIGHT_FD, record);
            let message = message.with(Descriptor::Record);
            self.insist(message, FrontendReq::SET_INFLIGHT_FD, out);
        }
        for ring in activation.rings() {
            self.start_ring(ring, out);
        }
        self.barrier(out);
    }

    fn start_ring(&mut self, ring: &Ring, out: &mut Vec<Action>) {
        let state = Outgoing::ring_state;
        let size = state(FrontendReq::SET_VRING_NUM, ring.index, u32::from(ring.size));
        self.send(size, out);
        self.send(state(FrontendReq::SET_VRING_BASE, ring.index, u32::from(ring.base)), out);
        self.tell_addresses(ring, out);
        if !ring.enabled {
            // A ring is disabled before its kick starts it, enabled after: it never runs when it should not.
            self.tell_enabled(ring.index, false, out);
        }
        let message = Outgoing::number(FrontendReq::SET_VRING_KICK, u64::from(ring.index));
        self.send(message.with(Descriptor::Kick(ring.index)), out);
        if ring.enabled {
            self.tell_enabled(ring.index, true, out);
            self.nudges.push(ring.index);
        }
        self.set_up.push((ring.index, ring.enabled));
    }

    fn tell_addresses(&mut self, ring: &Ring, out: &mut Vec<Action>) {
        let mut payload = Vec::with_capacity(40);
        payload.extend_from_slice(&u32::from(ring.index).to_ne_bytes());
        let flags = if self.log.is_some() { RING_F_LOG } else { 0 };
        payload.extend_from_slice(&flags.to_ne_bytes());
        // The guest address of the used ring is where its writes are logged.
        for address in [ring.desc, ring.used, ring.avail, ring.used] {
            payload.extend_from_slice(&address.to_ne_bytes());
        }
        let message = Outgoing::request(FrontendReq::SET_VRING_ADDR, payload);
        self.insist(message, FrontendReq::SET_VRING_ADDR, out);
    }

    /// Enables or disables a ring. Without protocol features a ring is enabled by its kick.
    pub fn tell_enabled(&mut self, index: u16, enabled: bool, out: &mut Vec<Action>) {
        if self.offered & F_PROTOCOL == 0 {
            return;
        }
        let request = FrontendReq::SET_VRING_ENABLE;
        self.insist(Outgoing::ring_state(request, index, u32::from(enabled)), request, out);
    }

    /// Gives a ring's call eventfd.
    pub fn tell_call(&mut self, index: u16, out: &mut Vec<Action>) {
        let message = Outgoing::number(FrontendReq::SET_VRING_CALL, u64::from(index));
        self.insist(message.with(Descriptor::Call(index)), FrontendReq::SET_VRING_CALL, out);
    }

    /// Whether the back end takes so many regions.
    pub fn check_regions(&self, needs: usize) -> Result<(), Down> {
        let takes = if self.has(Protocol::CONFIGURE_MEM_SLOTS) {
            self.mem_slots
        } else {
            TABLE_REGIONS as u64
        };
        if needs as u64 > takes { Err(Down::Regions { takes, needs }) } else { Ok(()) }
    }

    /// Brings the regions that the back end knows to these: one by one where it can, else as a whole.
    pub fn tell_memory(&mut self, memory: &[Region], out: &mut Vec<Action>) {
        if self.memory.as_deref() == Some(memory) {
            return;
        }
        let old = self.memory.replace(memory.to_vec()).unwrap_or_default();
        if !self.has(Protocol::CONFIGURE_MEM_SLOTS) {
            self.tell_table(memory, out);
            return;
        }
        for region in old.iter().filter(|region| !memory.contains(region)) {
            self.tell_region(FrontendReq::REM_MEM_REG, region, out);
        }
        for region in memory.iter().filter(|region| !old.contains(region)) {
            self.tell_region(FrontendReq::ADD_MEM_REG, region, out);
        }
    }

    fn tell_table(&mut self, memory: &[Region], out: &mut Vec<Action>) {
        let mut payload = Vec::with_capacity(8 + 32 * memory.len());
        payload.extend_from_slice(&(memory.len() as u64).to_ne_bytes());
        for region in memory {
            region.write(&mut payload);
        }
        let mut message = Outgoing::request(FrontendReq::SET_MEM_TABLE, payload);
        message.descriptors.extend(memory.iter().map(|region| Descriptor::Memory(region.slot)));
        self.insist(message, FrontendReq::SET_MEM_TABLE, out);
    }

    fn tell_region(&mut self, request: FrontendReq, region: &Region, out: &mut Vec<Action>) {
        let mut payload = vec![0; 8];
        region.write(&mut payload);
        let mut message = Outgoing::request(request, payload);
        if request == FrontendReq::ADD_MEM_REG {
            message = message.with(Descriptor::Memory(region.slot));
        }
        self.insist(message, request, out);
    }

    fn set_log_base(&mut self, log: Option<LogArea>, out: &mut Vec<Action>) {
        if let Some(area) = log.filter(|area| self.log != Some(*area)) {
            let payload = [area.size.to_ne_bytes(), area.offset.to_ne_bytes()].concat();
            let message = Outgoing::request(FrontendReq::SET_LOG_BASE, payload);
            self.ask(message.with(Descriptor::Log), Expected::LogBase, out);
        }
        self.log = log;
    }

    /// Begins or ends logging while the rings run.
    pub fn tell_log(
        &mut self,
        log: Option<LogArea>,
        activation: &Activation,
        out: &mut Vec<Action>,
    ) {
        self.set_log_base(log, out);
        self.features(activation.features(), out);
        for ring in activation.rings() {
            self.tell_addresses(ring, out);
        }
    }

    /// Asks every ring to stop.
    pub fn stop(&mut self, out: &mut Vec<Action>) {
        self.become_stage(Stage::Stopping);
        self.nudges.clear();
        for (index, _) in self.set_up.clone() {
            let message = Outgoing::ring_state(FrontendReq::GET_VRING_BASE, index, 0);
            self.ask(message, Expected::RingBase(index), out);
        }
    }
}

impl Region {
    /// As in SET_MEM_TABLE. The user address is the guest address, so that nothing at the other side points into this process.
    fn write(&self, payload: &mut Vec<u8>) {
        for field in [self.guest_addr, self.size, self.guest_addr, self.mmap_offset] {
            payload.extend_from_slice(&field.to_ne_bytes());
        }
    }
}

fn record_message(request: FrontendReq, record: &Record) -> Outgoing {
    // As large as in QEMU: the C structure ends with four bytes of padding.
    let mut payload = Vec::with_capacity(24);
    payload.extend_from_slice(&record.size.to_ne_bytes());
    payload.extend_from_slice(&record.offset.to_ne_bytes());
    payload.extend_from_slice(&record.queues.to_ne_bytes());
    payload.extend_from_slice(&record.ring_size.to_ne_bytes());
    payload.resize(24, 0);
    Outgoing::request(request, payload)
}

fn number(message: &Incoming) -> Result<u64, Down> {
    let bytes = message.payload.as_slice().try_into();
    bytes.map(u64::from_ne_bytes).map_err(|_| Down::Protocol("an answer that is no number"))
}

/// The `N` bytes of a payload at `at`.
fn field<const N: usize>(payload: &[u8], at: usize) -> Result<[u8; N], Down> {
    let bytes = payload.get(at..at + N).and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or(Down::Protocol("a short answer"))
}

fn config_space(message: &Incoming, config: &FrontConfig) -> Result<Vec<u8>, Down> {
    // A back end that fails answers with an empty payload.
    let Some(bytes) = message.payload.get(12..).filter(|bytes| !bytes.is_empty()) else {
        return Err(Down::Refused("GET_CONFIG"));
    };
    if bytes.len() > config.config_len as usize {
        return Err(Down::Protocol("more configuration space than was asked for"));
    }
    // An older back end may know fewer fields; the features say which ones count.
    let mut bytes = bytes.to_vec();
    bytes.resize(config.config_len as usize, 0);
    Ok(bytes)
}

fn record(message: &Incoming) -> Result<Record, Down> {
    let payload = &message.payload;
    let record = Record {
        size: u64::from_ne_bytes(field(payload, 0)?),
        offset: u64::from_ne_bytes(field(payload, 8)?),
        queues: u16::from_ne_bytes(field(payload, 16)?),
        ring_size: u16::from_ne_bytes(field(payload, 18)?),
    };
    if record.size == 0 || message.descriptors == 0 {
        return Err(Down::Refused("GET_INFLIGHT_FD"));
    }
    if payload.len() > 24 || record.offset.checked_add(record.size).is_none() {
        return Err(Down::Protocol("an in-flight record that cannot be"));
    }
    Ok(record)
}

fn ring_base(message: &Incoming, index: u16) -> Result<Answer, Down> {
    let got = u32::from_ne_bytes(field(&message.payload, 0)?);
    let base = u32::from_ne_bytes(field(&message.payload, 4)?);
    if got != u32::from(index) || message.payload.len() != 8 {
        return Err(Down::Protocol("the base of another ring"));
    }
    let base = u16::try_from(base).map_err(|_| Down::Protocol("a base that no split ring has"))?;
    Ok(Answer::Base(index, base))
}
