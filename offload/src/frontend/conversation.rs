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
    Region, Ring,
};
use crate::memory::RegionDescriptor;
use crate::vhost_user::codec::{
    Area, Config, InflightArea, Reply, Request, VRING_LOG, VringAddr, VringFd, VringState, protocol,
};
use crate::vhost_user::{FEATURE_LOG_ALL, FEATURE_PROTOCOL_FEATURES};
use std::collections::VecDeque;
use vhost::vhost_user::message::FrontendReq;

/// Regions a back end takes in SET_MEM_TABLE.
const TABLE_REGIONS: usize = 8;

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
        this.ask(Request::GetFeatures, &[], Expected::Features, out);
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

    /// Whether a protocol feature is in force.
    pub fn has(&self, feature: u64) -> bool {
        self.protocol & feature != 0
    }

    /// What the driver is shown of the back end.
    pub fn probe(&self, config: &FrontConfig) -> Probe {
        Probe {
            features: self.offered
                & config.features
                & !FEATURE_PROTOCOL_FEATURES
                & !FEATURE_LOG_ALL,
            protocol: self.protocol,
            rings: u16::try_from(self.rings).unwrap_or(u16::MAX),
            config: self.config.clone(),
        }
    }

    fn send(&mut self, request: Request, descriptors: &[Descriptor], out: &mut Vec<Action>) {
        self.unanswered = true;
        let descriptors = descriptors.to_vec();
        out.push(Action::Send(Outgoing { request, need_reply: false, descriptors }));
    }

    fn ask(
        &mut self,
        request: Request,
        descriptors: &[Descriptor],
        expected: Expected,
        out: &mut Vec<Action>,
    ) {
        self.expected.push_back(expected);
        self.send(request, descriptors, out);
        self.unanswered = false;
    }

    /// Sends a request that must succeed: with an acknowledgement where the back end gives one.
    fn insist(&mut self, request: Request, descriptors: &[Descriptor], out: &mut Vec<Action>) {
        if !self.has(protocol::REPLY_ACK) {
            return self.send(request, descriptors, out);
        }
        self.expected.push_back(Expected::Ack(request.code()));
        self.unanswered = false;
        let descriptors = descriptors.to_vec();
        out.push(Action::Send(Outgoing { request, need_reply: true, descriptors }));
    }

    /// Makes sure that an answer will tell when all that was sent has been worked off.
    pub fn barrier(&mut self, out: &mut Vec<Action>) {
        if self.unanswered {
            self.ask(Request::GetFeatures, &[], Expected::Barrier, out);
        }
    }

    /// Takes the answer that came.
    ///
    /// # Errors
    /// The back end broke the protocol or refused.
    pub fn answer(&mut self, message: &Incoming, config: &FrontConfig) -> Result<Answer, Down> {
        let expected =
            self.expected.pop_front().ok_or(Down::Protocol("an answer nobody asked for"))?;
        if message.descriptors > usize::from(expected == Expected::Record) {
            return Err(Down::Protocol("a descriptor that nobody asked for"));
        }
        let reply = Reply::decode(expected.request(), &message.header, &message.payload)
            .map_err(|_| Down::Protocol("not the answer that was asked for"))?;
        match (expected, reply) {
            (Expected::Features, Reply::U64(offered)) => self.offered = offered,
            (Expected::ProtocolFeatures, Reply::U64(offered)) => self.agree(offered, config),
            (Expected::QueueNum, Reply::U64(rings)) => self.rings = rings,
            (Expected::MemSlots, Reply::U64(slots)) => self.mem_slots = slots,
            (Expected::Ack(request), Reply::U64(1..)) => return Err(Down::Refused(name(request))),
            // The offer of a running back end is not read again: only the answer counts. And some back ends answer
            // SET_LOG_BASE with a number that has no meaning.
            (Expected::Ack(_) | Expected::Barrier | Expected::LogBase, Reply::U64(_)) => {}
            (Expected::Config, Reply::Config(read)) => return config_space(read, config),
            (Expected::Record, Reply::Inflight(area)) => return record(&area, message.descriptors),
            (Expected::RingBase(index), Reply::VringState(state)) => {
                return ring_base(state, index);
            }
            _ => return Err(Down::Protocol("an answer of another kind")),
        }
        Ok(Answer::Done)
    }

    /// Cuts the protocol features offered to those this side uses.
    fn agree(&mut self, offered: u64, config: &FrontConfig) {
        let mut ours = protocol::MQ
            | protocol::LOG_SHMFD
            | protocol::REPLY_ACK
            | protocol::INFLIGHT_SHMFD
            | protocol::CONFIGURE_MEM_SLOTS;
        if config.config_len > 0 {
            ours |= protocol::CONFIG;
        }
        if config.channel {
            ours |= protocol::BACKEND_REQ;
        }
        self.protocol = offered & ours;
    }

    /// Sends what follows the features: the protocol's, or nothing if the back end knows none.
    pub fn after_hello(&mut self, out: &mut Vec<Action>) {
        if self.offered & FEATURE_PROTOCOL_FEATURES == 0 {
            self.send(Request::SetOwner, &[], out);
            self.become_stage(Stage::Ready);
            return;
        }
        self.become_stage(Stage::Protocol);
        self.ask(Request::GetProtocolFeatures, &[], Expected::ProtocolFeatures, out);
    }

    /// Sets the protocol features and asks all that can be asked before a driver is there.
    pub fn after_protocol(&mut self, config: &FrontConfig, out: &mut Vec<Action>) {
        self.become_stage(Stage::Details);
        self.send(Request::SetProtocolFeatures(self.protocol), &[], out);
        self.send(Request::SetOwner, &[], out);
        if self.has(protocol::BACKEND_REQ) {
            self.send(Request::SetBackendReqFd, &[Descriptor::Channel], out);
        }
        if self.has(protocol::MQ) {
            self.ask(Request::GetQueueNum, &[], Expected::QueueNum, out);
        }
        if self.has(protocol::CONFIGURE_MEM_SLOTS) {
            self.ask(Request::GetMaxMemSlots, &[], Expected::MemSlots, out);
        }
        if self.has(protocol::CONFIG) {
            self.ask_config(config, out);
        }
        self.barrier(out);
    }

    /// Asks for the configuration space.
    pub fn ask_config(&mut self, config: &FrontConfig, out: &mut Vec<Action>) {
        let bytes = vec![0; config.config_len as usize];
        let request = Request::GetConfig(Config { offset: 0, flags: 0, bytes });
        self.ask(request, &[], Expected::Config, out);
    }

    /// Sends the features in force: what the driver acknowledged and what the two sides need between them.
    fn tell_features(&mut self, acknowledged: u64, out: &mut Vec<Action>) {
        let mut features = acknowledged | (self.offered & FEATURE_PROTOCOL_FEATURES);
        if self.log.is_some() {
            features |= FEATURE_LOG_ALL;
        }
        self.insist(Request::SetFeatures(features), &[], out);
    }

    /// Asks the back end for a new in-flight record.
    pub fn ask_record(&mut self, activation: &Activation, out: &mut Vec<Action>) {
        self.become_stage(Stage::Recording);
        // The record's layout depends on the features (split or packed rings).
        self.tell_features(activation.features(), out);
        let (queues, queue_size) = activation.record_shape();
        let area = Area { size: 0, offset: 0 };
        let request = Request::GetInflightFd(InflightArea { area, queues, queue_size });
        self.ask(request, &[], Expected::Record, out);
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
        self.tell_features(activation.features(), out);
        self.tell_memory(memory, out);
        for ring in activation.rings() {
            // Early, since back ends on DPDK know a ring only by what was said of it, and read the record per known ring.
            self.tell_call(ring.index, out);
        }
        if let Some(record) = record {
            let request = Request::SetInflightFd(InflightArea {
                area: Area { size: record.size, offset: record.offset },
                queues: record.queues,
                queue_size: record.ring_size,
            });
            self.insist(request, &[Descriptor::Record], out);
        }
        for ring in activation.rings() {
            self.start_ring(ring, out);
        }
        self.barrier(out);
    }

    fn start_ring(&mut self, ring: &Ring, out: &mut Vec<Action>) {
        let state = |num: u16| VringState { index: ring.index.into(), num: num.into() };
        self.send(Request::SetVringNum(state(ring.size)), &[], out);
        self.send(Request::SetVringBase(state(ring.base)), &[], out);
        self.tell_addresses(ring, out);
        if !ring.enabled {
            // A ring is disabled before its kick starts it, enabled after: it never runs when it should not.
            self.tell_enabled(ring.index, false, out);
        }
        let kick = VringFd { index: ring.index as u8, has_fd: true };
        self.send(Request::SetVringKick(kick), &[Descriptor::Kick(ring.index)], out);
        if ring.enabled {
            self.tell_enabled(ring.index, true, out);
            self.nudges.push(ring.index);
        }
        self.set_up.push((ring.index, ring.enabled));
    }

    fn tell_addresses(&mut self, ring: &Ring, out: &mut Vec<Action>) {
        let request = Request::SetVringAddr(VringAddr {
            index: ring.index.into(),
            flags: if self.log.is_some() { VRING_LOG } else { 0 },
            descriptors: ring.desc,
            used: ring.used,
            available: ring.avail,
            // Where writes of the used ring are logged: its guest address.
            log: ring.used,
        });
        self.insist(request, &[], out);
    }

    /// Enables or disables a ring. Without protocol features a ring is enabled by its kick.
    pub fn tell_enabled(&mut self, index: u16, enabled: bool, out: &mut Vec<Action>) {
        if self.offered & FEATURE_PROTOCOL_FEATURES != 0 {
            let state = VringState { index: index.into(), num: enabled.into() };
            self.insist(Request::SetVringEnable(state), &[], out);
        }
    }

    /// Gives a ring's call eventfd.
    pub fn tell_call(&mut self, index: u16, out: &mut Vec<Action>) {
        // An activation has no index that does not fit: RINGS_LIMIT.
        let call = VringFd { index: index as u8, has_fd: true };
        self.insist(Request::SetVringCall(call), &[Descriptor::Call(index)], out);
    }

    /// Whether the back end takes so many regions.
    pub fn check_regions(&self, needs: usize) -> Result<(), Down> {
        let takes = if self.has(protocol::CONFIGURE_MEM_SLOTS) {
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
        if !self.has(protocol::CONFIGURE_MEM_SLOTS) {
            let table = memory.iter().map(Region::describe).collect();
            let files: Vec<_> =
                memory.iter().map(|region| Descriptor::Memory(region.slot)).collect();
            return self.insist(Request::SetMemTable(table), &files, out);
        }
        for region in old.iter().filter(|region| !memory.contains(region)) {
            self.insist(Request::RemMemReg(region.describe()), &[], out);
        }
        for region in memory.iter().filter(|region| !old.contains(region)) {
            let file = Descriptor::Memory(region.slot);
            self.insist(Request::AddMemReg(region.describe()), &[file], out);
        }
    }

    fn set_log_base(&mut self, log: Option<LogArea>, out: &mut Vec<Action>) {
        if let Some(area) = log.filter(|area| self.log != Some(*area)) {
            let area = Area { size: area.size, offset: area.offset };
            self.ask(Request::SetLogBase(area), &[Descriptor::Log], Expected::LogBase, out);
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
        self.tell_features(activation.features(), out);
        for ring in activation.rings() {
            self.tell_addresses(ring, out);
        }
    }

    /// Asks every ring to stop.
    pub fn stop(&mut self, out: &mut Vec<Action>) {
        self.become_stage(Stage::Stopping);
        self.nudges.clear();
        for (index, _) in self.set_up.clone() {
            let request = Request::GetVringBase(VringState { index: index.into(), num: 0 });
            self.ask(request, &[], Expected::RingBase(index), out);
        }
    }
}

impl Region {
    /// As the back end is told. The user address is the guest address, so that nothing at the other side points into
    /// this process.
    fn describe(&self) -> RegionDescriptor {
        RegionDescriptor {
            guest_addr: self.guest_addr,
            size: self.size,
            user_addr: self.guest_addr,
            mmap_offset: self.mmap_offset,
        }
    }
}

fn config_space(read: Config, config: &FrontConfig) -> Result<Answer, Down> {
    let mut bytes = read.bytes;
    // A back end that fails answers without bytes.
    if bytes.is_empty() {
        return Err(Down::Refused("GET_CONFIG"));
    }
    if bytes.len() > config.config_len as usize {
        return Err(Down::Protocol("more configuration space than was asked for"));
    }
    // An older back end may know fewer fields; the features say which ones count.
    bytes.resize(config.config_len as usize, 0);
    Ok(Answer::Config(bytes))
}

fn record(area: &InflightArea, descriptors: usize) -> Result<Answer, Down> {
    let Area { size, offset } = area.area;
    if size == 0 || descriptors == 0 {
        return Err(Down::Refused("GET_INFLIGHT_FD"));
    }
    if offset.checked_add(size).is_none() {
        return Err(Down::Protocol("an in-flight record beyond the end of all files"));
    }
    Ok(Answer::Record(Record { size, offset, queues: area.queues, ring_size: area.queue_size }))
}

fn ring_base(state: VringState, index: u16) -> Result<Answer, Down> {
    if state.index != u32::from(index) {
        return Err(Down::Protocol("the base of another ring"));
    }
    let base =
        u16::try_from(state.num).map_err(|_| Down::Protocol("a base that no split ring has"))?;
    Ok(Answer::Base(index, base))
}
