//! A session's state as it travels to a new process (hot upgrade) or host.
//!
//! A steady session whose connection travels along goes on in the middle of its conversation: the back end notices
//! nothing. In all other cases the state is that of a session without a back end, which connects and tells everything
//! anew. Both are right; the first is quicker.

use super::conversation::{Conversation, Stage};
use super::session::{Active, FrontSession, Link};
use super::types::{
    Activation, CONFIG_LIMIT, FrontConfig, LogArea, REGIONS_LIMIT, RINGS_LIMIT, Record, Region,
    Ring,
};
use bixi_api::state::{Declared, Movable, Payload, PayloadError};

/// The payload's kind.
pub const KIND: &str = "vhost-user-front";
/// The newest version of the payload's layout.
pub const VERSION: u32 = 1;

#[derive(Clone, PartialEq, prost::Message)]
struct FrontState {
    #[prost(message, optional, tag = "1")]
    active: Option<ActiveState>,
    #[prost(message, repeated, tag = "2")]
    memory: Vec<RegionState>,
    #[prost(message, optional, tag = "3")]
    log: Option<AreaState>,
    #[prost(message, optional, tag = "4")]
    record: Option<RecordState>,
    #[prost(bool, tag = "5")]
    unclear: bool,
    #[prost(uint64, tag = "6")]
    connections: u64,
    /// Only of a steady session.
    #[prost(message, optional, tag = "7")]
    conversation: Option<ConversationState>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ActiveState {
    #[prost(uint64, tag = "1")]
    features: u64,
    #[prost(message, repeated, tag = "2")]
    rings: Vec<RingState>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RingState {
    #[prost(uint32, tag = "1")]
    index: u32,
    #[prost(uint32, tag = "2")]
    size: u32,
    #[prost(uint64, tag = "3")]
    desc: u64,
    #[prost(uint64, tag = "4")]
    avail: u64,
    #[prost(uint64, tag = "5")]
    used: u64,
    #[prost(uint32, tag = "6")]
    base: u32,
    #[prost(bool, tag = "7")]
    enabled: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RegionState {
    #[prost(uint32, tag = "1")]
    slot: u32,
    #[prost(uint64, tag = "2")]
    guest_addr: u64,
    #[prost(uint64, tag = "3")]
    size: u64,
    #[prost(uint64, tag = "4")]
    mmap_offset: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AreaState {
    #[prost(uint64, tag = "1")]
    size: u64,
    #[prost(uint64, tag = "2")]
    offset: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RecordState {
    #[prost(uint64, tag = "1")]
    size: u64,
    #[prost(uint64, tag = "2")]
    offset: u64,
    #[prost(uint32, tag = "3")]
    queues: u32,
    #[prost(uint32, tag = "4")]
    ring_size: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ConversationState {
    #[prost(bool, tag = "1")]
    running: bool,
    #[prost(uint64, tag = "2")]
    offered: u64,
    #[prost(uint64, tag = "3")]
    protocol: u64,
    #[prost(uint64, tag = "4")]
    rings: u64,
    #[prost(uint64, tag = "5")]
    mem_slots: u64,
    #[prost(bytes = "vec", tag = "6")]
    config: Vec<u8>,
    /// Whether the back end knows the regions.
    #[prost(bool, tag = "7")]
    memory_told: bool,
}

/// Why a session could not be restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The payload cannot be read.
    #[error(transparent)]
    Payload(#[from] PayloadError),
    /// A field has a value that no session of this release writes.
    #[error("the state of a vhost-user front end has an impossible {0}: it is damaged")]
    Field(&'static str),
}

impl Movable for FrontSession {
    fn declare(&self) -> Declared {
        Declared::State(Payload::new(KIND, VERSION, &self.to_state()))
    }
}

impl FrontSession {
    fn to_state(&self) -> FrontState {
        let talk = match &self.link {
            Link::Up(talk) if self.is_steady() => Some(talk),
            _ => None,
        };
        FrontState {
            active: self.active.as_ref().map(|active| ActiveState::from(&active.activation)),
            memory: self.memory.iter().map(RegionState::from).collect(),
            log: self.log.map(|area| AreaState { size: area.size, offset: area.offset }),
            record: self.record.as_ref().map(RecordState::from),
            // Whoever restores without the connection finds the rings as a dead back end leaves them.
            unclear: self.unclear || self.may_have_run(),
            connections: self.connections,
            conversation: talk.map(|talk| ConversationState {
                running: talk.stage == Stage::Running,
                offered: talk.offered,
                protocol: talk.protocol,
                rings: talk.rings,
                mem_slots: talk.mem_slots,
                config: talk.config.clone(),
                memory_told: talk.memory.is_some(),
            }),
        }
    }

    fn may_have_run(&self) -> bool {
        matches!(&self.link, Link::Up(talk) if talk.stage.started())
    }

    /// Makes a session from its declared state. With `connected`, the connection (and the channel, if there is one) has
    /// come along and the state is that of a steady session, the session goes on where it was and the shell asks
    /// [`FrontSession::is_connected`]; otherwise it waits for [`Event::Begin`](super::Event::Begin).
    ///
    /// Call eventfds are usually fresh in a new process: the shell then sends
    /// [`Event::CallReplaced`](super::Event::CallReplaced) for each ring.
    ///
    /// # Errors
    /// A payload that does not decode or says what cannot be.
    pub fn restore(
        config: FrontConfig,
        payload: &Payload,
        connected: bool,
    ) -> Result<Self, RestoreError> {
        let state: FrontState = payload.read(KIND, VERSION)?;
        let mut session = Self::new(config);
        if state.memory.len() > REGIONS_LIMIT {
            return Err(RestoreError::Field("number of regions"));
        }
        session.memory = state.memory.iter().map(Region::from).collect();
        session.log = state.log.map(|area| LogArea { size: area.size, offset: area.offset });
        session.record = state.record.as_ref().map(Record::try_from).transpose()?;
        session.connections = state.connections;
        session.unclear = state.unclear;
        if let Some(active) = &state.active {
            session.generation = 1;
            session.active =
                Some(Active { generation: 1, activation: Activation::try_from(active)? });
        }
        if let Some(talk) = state.conversation.as_ref().filter(|_| connected) {
            session.resume(talk)?;
        }
        Ok(session)
    }

    /// Whether the descriptors that the state needs are there.
    pub(super) fn check_descriptors(
        &self,
        record: bool,
        log: bool,
        memory: impl Fn(u32) -> bool,
        ring: impl Fn(u16) -> bool,
    ) -> Result<(), RestoreError> {
        let rings = self.activation().map_or(&[][..], Activation::rings);
        let missing = [
            (self.record.is_some() && !record, "in-flight record: its descriptor is missing"),
            (self.log.is_some() && !log, "log: its descriptor is missing"),
            (!self.memory.iter().all(|region| memory(region.slot)), "region: its file is missing"),
            (!rings.iter().all(|told| ring(told.index)), "ring: its eventfds are missing"),
        ];
        match missing.iter().find(|(missing, _)| *missing) {
            Some((_, field)) => Err(RestoreError::Field(field)),
            None => Ok(()),
        }
    }

    /// Takes up a steady conversation.
    fn resume(&mut self, state: &ConversationState) -> Result<(), RestoreError> {
        if state.config.len() > CONFIG_LIMIT as usize {
            return Err(RestoreError::Field("configuration space"));
        }
        let mut talk = Conversation::blank(self.config.rings);
        talk.offered = state.offered;
        talk.protocol = state.protocol;
        talk.rings = state.rings;
        talk.mem_slots = state.mem_slots;
        talk.config.clone_from(&state.config);
        talk.memory = state.memory_told.then(|| self.memory.clone());
        talk.stage = Stage::Ready;
        if state.running {
            let active = self.active.as_ref().filter(|_| state.memory_told);
            let active = active.ok_or(RestoreError::Field("stage"))?;
            talk.stage = Stage::Running;
            talk.generation = active.generation;
            talk.log = self.log;
            let rings = active.activation.rings();
            talk.set_up = rings.iter().map(|ring| (ring.index, ring.enabled)).collect();
            self.unclear = false;
        }
        self.probe = Some(talk.probe(&self.config));
        self.link = Link::Up(Box::new(talk));
        Ok(())
    }
}

impl From<&Activation> for ActiveState {
    fn from(activation: &Activation) -> Self {
        Self {
            features: activation.features(),
            rings: activation.rings().iter().map(RingState::from).collect(),
        }
    }
}

impl TryFrom<&ActiveState> for Activation {
    type Error = RestoreError;

    fn try_from(state: &ActiveState) -> Result<Self, RestoreError> {
        if state.rings.len() > usize::from(RINGS_LIMIT) {
            return Err(RestoreError::Field("number of rings"));
        }
        let rings = state.rings.iter().map(Ring::try_from).collect::<Result<Vec<_>, _>>()?;
        Self::new(state.features, rings).map_err(|_| RestoreError::Field("ring"))
    }
}

impl From<&Ring> for RingState {
    fn from(ring: &Ring) -> Self {
        Self {
            index: ring.index.into(),
            size: ring.size.into(),
            desc: ring.desc,
            avail: ring.avail,
            used: ring.used,
            base: ring.base.into(),
            enabled: ring.enabled,
        }
    }
}

/// A 16-bit field, which protocol buffers do not have.
fn narrow(value: u32, field: &'static str) -> Result<u16, RestoreError> {
    u16::try_from(value).map_err(|_| RestoreError::Field(field))
}

impl TryFrom<&RingState> for Ring {
    type Error = RestoreError;

    fn try_from(state: &RingState) -> Result<Self, RestoreError> {
        Ok(Self {
            index: narrow(state.index, "ring index")?,
            size: narrow(state.size, "ring size")?,
            desc: state.desc,
            avail: state.avail,
            used: state.used,
            base: narrow(state.base, "ring base")?,
            enabled: state.enabled,
        })
    }
}

impl From<&Region> for RegionState {
    fn from(region: &Region) -> Self {
        Self {
            slot: region.slot,
            guest_addr: region.guest_addr,
            size: region.size,
            mmap_offset: region.mmap_offset,
        }
    }
}

impl From<&RegionState> for Region {
    fn from(state: &RegionState) -> Self {
        Self {
            slot: state.slot,
            guest_addr: state.guest_addr,
            size: state.size,
            mmap_offset: state.mmap_offset,
        }
    }
}

impl From<&Record> for RecordState {
    fn from(record: &Record) -> Self {
        Self {
            size: record.size,
            offset: record.offset,
            queues: record.queues.into(),
            ring_size: record.ring_size.into(),
        }
    }
}

impl TryFrom<&RecordState> for Record {
    type Error = RestoreError;

    fn try_from(state: &RecordState) -> Result<Self, RestoreError> {
        Ok(Self {
            size: state.size,
            offset: state.offset,
            queues: narrow(state.queues, "in-flight record")?,
            ring_size: narrow(state.ring_size, "in-flight record")?,
        })
    }
}
