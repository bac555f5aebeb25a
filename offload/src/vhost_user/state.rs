//! The state of a session as it travels.
//!
//! Descriptors travel beside the message; a field named `…_fd` is an index into their list plus one, and 0 is none.
//! What is read is untrusted: every number is compared before a session is made of it.

use super::codec::{Header, VringAddr};
use super::session::{Message, Record, Session, Then, Work, offered_features, offered_protocol};
use super::types::{Action, Offer, SharedArea, SharedRegion};
use super::vring::{Kick, Run, Vring};
use crate::memory::{MAX_REGIONS, RegionDescriptor};
use bixi_api::state::{Declared, Movable, Payload};

/// The payload's kind.
pub const KIND: &str = "vhost-user-session";
/// The newest layout that this release writes and reads.
pub const VERSION: u32 = 1;

/// A vhost-user session at rest.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SessionState {
    /// Virtio features that the front end acknowledged; absent until it has.
    #[prost(uint64, optional, tag = "1")]
    pub features: Option<u64>,
    /// Protocol features that it acknowledged.
    #[prost(uint64, tag = "2")]
    pub protocol_features: u64,
    /// The memory table.
    #[prost(message, repeated, tag = "3")]
    pub regions: Vec<RegionState>,
    /// The rings, in order.
    #[prost(message, repeated, tag = "4")]
    pub vrings: Vec<VringRecord>,
    /// The dirty log.
    #[prost(message, optional, tag = "5")]
    pub log: Option<AreaState>,
    /// Where new entries in the log are told.
    #[prost(uint32, tag = "6")]
    pub log_fd: u32,
    /// The in-flight record.
    #[prost(message, optional, tag = "7")]
    pub inflight: Option<InflightState>,
    /// The channel for requests of the back end.
    #[prost(uint32, tag = "8")]
    pub channel_fd: u32,
    /// A message whose work was under way, and begins anew.
    #[prost(message, optional, tag = "9")]
    pub message: Option<MessageState>,
}

/// A memory region of a session.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct RegionState {
    /// Guest address.
    #[prost(uint64, tag = "1")]
    pub guest_addr: u64,
    /// Size in bytes.
    #[prost(uint64, tag = "2")]
    pub size: u64,
    /// Address in the front end.
    #[prost(uint64, tag = "3")]
    pub user_addr: u64,
    /// Offset in its file, in bytes.
    #[prost(uint64, tag = "4")]
    pub mmap_offset: u64,
    /// Its file.
    #[prost(uint32, tag = "5")]
    pub fd: u32,
    /// How often the front end has added it; 0 is once.
    #[prost(uint32, tag = "6")]
    pub claims: u32,
}

/// A ring of a session.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct VringRecord {
    /// Descriptors; 0 until told.
    #[prost(uint32, tag = "1")]
    pub size: u32,
    /// Addresses in the front end; absent until told.
    #[prost(message, optional, tag = "2")]
    pub addr: Option<AddrState>,
    /// The next available entry to take.
    #[prost(uint32, tag = "3")]
    pub base: u32,
    /// Whether it is started.
    #[prost(bool, tag = "4")]
    pub started: bool,
    /// The kick eventfd of a started ring; 0 is polling.
    #[prost(uint32, tag = "5")]
    pub kick_fd: u32,
    /// The call eventfd.
    #[prost(uint32, tag = "6")]
    pub call_fd: u32,
    /// The error eventfd.
    #[prost(uint32, tag = "7")]
    pub error_fd: u32,
    /// What SET_VRING_ENABLE said last; absent until it has.
    #[prost(bool, optional, tag = "8")]
    pub enabled: Option<bool>,
}

/// Where a ring is.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct AddrState {
    /// VHOST_VRING_F_LOG in bit 0.
    #[prost(uint32, tag = "1")]
    pub flags: u32,
    /// The descriptor table.
    #[prost(uint64, tag = "2")]
    pub descriptors: u64,
    /// The used ring.
    #[prost(uint64, tag = "3")]
    pub used: u64,
    /// The available ring.
    #[prost(uint64, tag = "4")]
    pub available: u64,
    /// The used ring's address in the log.
    #[prost(uint64, tag = "5")]
    pub log: u64,
}

/// A part of a file.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct AreaState {
    /// The file.
    #[prost(uint32, tag = "1")]
    pub fd: u32,
    /// Where it begins, in bytes.
    #[prost(uint64, tag = "2")]
    pub offset: u64,
    /// Its size in bytes.
    #[prost(uint64, tag = "3")]
    pub size: u64,
}

/// The in-flight record.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct InflightState {
    /// Where it is.
    #[prost(message, optional, tag = "1")]
    pub area: Option<AreaState>,
    /// Queues it has room for.
    #[prost(uint32, tag = "2")]
    pub queues: u32,
    /// Descriptors of each.
    #[prost(uint32, tag = "3")]
    pub queue_size: u32,
}

/// A message of the front end.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct MessageState {
    /// The request code.
    #[prost(uint32, tag = "1")]
    pub request: u32,
    /// The header's flags.
    #[prost(uint32, tag = "2")]
    pub flags: u32,
    /// The payload.
    #[prost(bytes = "vec", tag = "3")]
    pub payload: Vec<u8>,
    /// The descriptors that came with it.
    #[prost(uint32, repeated, tag = "4")]
    pub fds: Vec<u32>,
}

/// Why a session cannot be restored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// The state names a descriptor that is not there.
    #[error("the session's state names descriptor {0}, which did not come with it")]
    Descriptor(u32),
    /// The state contradicts itself or the device.
    #[error("the session's state is not one that a session of this device can have: {0}")]
    Invalid(&'static str),
}

impl<F: Clone> Session<F> {
    /// The state, and the descriptors it refers to. `None` while rings run (see [`super::Event::Suspend`]) or when the
    /// session is over.
    pub fn save(&self) -> Option<(SessionState, Vec<F>)> {
        if self.over || !self.vrings.iter().all(|ring| ring.run == Run::Stopped) {
            return None;
        }
        let mut fds = Fds(Vec::new());
        let state = SessionState {
            features: self.features,
            protocol_features: self.protocol,
            regions: self.regions.iter().map(|region| save_region(region, &mut fds)).collect(),
            vrings: self.vrings.iter().map(|ring| save_ring(ring, &mut fds)).collect(),
            log: self.log.as_ref().map(|area| save_area(area, &mut fds)),
            log_fd: fds.add(self.log_fd.as_ref()),
            inflight: self.record.as_ref().map(|record| InflightState {
                area: Some(save_area(&record.area, &mut fds)),
                queues: record.queues.into(),
                queue_size: record.queue_size.into(),
            }),
            channel_fd: fds.add(self.channel.as_ref()),
            message: self.work.as_ref().and_then(|work| work.message.as_ref()).map(|message| {
                MessageState {
                    request: message.header.request,
                    flags: message.header.flags,
                    payload: message.payload.clone(),
                    fds: message.fds.iter().map(|fd| fds.add(Some(fd))).collect(),
                }
            }),
        };
        Some((state, fds.0))
    }

    /// A session as it was, all its rings standing still, and the first that is to be done to have them run again.
    ///
    /// # Errors
    /// See [`RestoreError`].
    pub fn restore(
        offer: &Offer,
        state: &SessionState,
        fds: &[F],
    ) -> Result<(Self, Vec<Action<F>>), RestoreError> {
        let mut session = Self::new(offer);
        if state.features.is_some_and(|features| features & !offered_features(offer) != 0) {
            return Err(RestoreError::Invalid("it has features that are not offered"));
        }
        if state.protocol_features & !offered_protocol(offer) != 0 {
            return Err(RestoreError::Invalid("it has protocol features that are not offered"));
        }
        if state.vrings.len() != session.vrings.len() {
            return Err(RestoreError::Invalid("it has another number of queues"));
        }
        if state.regions.len() > MAX_REGIONS {
            return Err(RestoreError::Invalid("it has too many memory regions"));
        }
        session.features = state.features;
        session.protocol = state.protocol_features;
        for (id, region) in (0..).zip(&state.regions) {
            session.regions.push(restore_region(id, region, fds)?);
        }
        session.next_region = state.regions.len() as u64;
        for (index, (ring, from)) in session.vrings.iter_mut().zip(&state.vrings).enumerate() {
            *ring = restore_ring(offer, index as u32, from, fds)?;
        }
        session.log = state.log.as_ref().map(|area| restore_area(area, fds)).transpose()?;
        session.log_fd = find(fds, state.log_fd)?;
        session.channel = find(fds, state.channel_fd)?;
        session.record =
            state.inflight.as_ref().map(|from| restore_record(from, fds)).transpose()?;
        let message = state.message.as_ref().map(|from| restore_message(from, fds)).transpose()?;
        let actions = session.begin(message);
        Ok((session, actions))
    }

    /// Has the shell map everything again, memory first.
    fn begin(&mut self, message: Option<Message<F>>) -> Vec<Action<F>> {
        let mut asks = Vec::new();
        if let Some(record) = self.record.clone() {
            let Record { area, queues, queue_size } = record;
            asks.push(Action::MapInflight(Some((area, queues, queue_size))));
        }
        if let Some(area) = self.log.clone() {
            asks.push(Action::MapLog(Some(area)));
        }
        let first = Action::MapMemory(self.regions.clone());
        self.work = Some(Work { message, asked: true, then: Then::Restore(asks) });
        let mut actions = vec![first];
        if let Some(features) = self.features {
            let own = super::FEATURE_LOG_ALL | super::FEATURE_PROTOCOL_FEATURES;
            actions.insert(0, Action::Features(features & !own));
        }
        actions
    }
}

impl<F: Clone> Movable for Session<F> {
    fn declare(&self) -> Declared {
        match self.save() {
            Some((state, _)) => Declared::State(Payload::new(KIND, VERSION, &state)),
            None => Declared::NotMovable("its rings are running, or it is over".to_owned()),
        }
    }
}

/// Collects descriptors and numbers them from one.
struct Fds<F>(Vec<F>);

impl<F: Clone> Fds<F> {
    fn add(&mut self, fd: Option<&F>) -> u32 {
        let Some(fd) = fd else { return 0 };
        self.0.push(fd.clone());
        self.0.len() as u32
    }
}

fn find<F: Clone>(fds: &[F], number: u32) -> Result<Option<F>, RestoreError> {
    let Some(index) = number.checked_sub(1) else { return Ok(None) };
    fds.get(index as usize).cloned().map(Some).ok_or(RestoreError::Descriptor(index))
}

fn must_find<F: Clone>(fds: &[F], number: u32) -> Result<F, RestoreError> {
    find(fds, number)?.ok_or(RestoreError::Invalid("a file is missing"))
}

fn save_region<F: Clone>(shared: &SharedRegion<F>, fds: &mut Fds<F>) -> RegionState {
    let RegionDescriptor { guest_addr, size, user_addr, mmap_offset } = shared.region;
    let (fd, claims) = (fds.add(Some(&shared.fd)), shared.claims);
    RegionState { guest_addr, size, user_addr, mmap_offset, fd, claims }
}

fn restore_region<F: Clone>(
    id: u64,
    from: &RegionState,
    fds: &[F],
) -> Result<SharedRegion<F>, RestoreError> {
    let region = RegionDescriptor {
        guest_addr: from.guest_addr,
        size: from.size,
        user_addr: from.user_addr,
        mmap_offset: from.mmap_offset,
    };
    Ok(SharedRegion { id, region, fd: must_find(fds, from.fd)?, claims: from.claims.max(1) })
}

fn save_area<F: Clone>(area: &SharedArea<F>, fds: &mut Fds<F>) -> AreaState {
    AreaState { fd: fds.add(Some(&area.fd)), offset: area.offset, size: area.size }
}

fn restore_area<F: Clone>(from: &AreaState, fds: &[F]) -> Result<SharedArea<F>, RestoreError> {
    Ok(SharedArea { fd: must_find(fds, from.fd)?, offset: from.offset, size: from.size })
}

fn restore_record<F: Clone>(from: &InflightState, fds: &[F]) -> Result<Record<F>, RestoreError> {
    let area =
        from.area.as_ref().ok_or(RestoreError::Invalid("an in-flight record without a file"))?;
    let number = |n: u32| {
        u16::try_from(n).map_err(|_| RestoreError::Invalid("an impossible in-flight record"))
    };
    Ok(Record {
        area: restore_area(area, fds)?,
        queues: number(from.queues)?,
        queue_size: number(from.queue_size)?,
    })
}

fn save_ring<F: Clone>(ring: &Vring<F>, fds: &mut Fds<F>) -> VringRecord {
    let kick = match &ring.kick {
        Kick::Fd(fd) => Some(fd),
        Kick::Polled | Kick::Unset => None,
    };
    VringRecord {
        size: ring.size.into(),
        addr: ring.addr.map(|addr| AddrState {
            flags: addr.flags,
            descriptors: addr.descriptors,
            used: addr.used,
            available: addr.available,
            log: addr.log,
        }),
        base: ring.base.into(),
        started: !matches!(ring.kick, Kick::Unset),
        kick_fd: fds.add(kick),
        call_fd: fds.add(ring.call.as_ref()),
        error_fd: fds.add(ring.error.as_ref()),
        enabled: ring.enabled,
    }
}

fn restore_ring<F: Clone>(
    offer: &Offer,
    index: u32,
    from: &VringRecord,
    fds: &[F],
) -> Result<Vring<F>, RestoreError> {
    let size = u16::try_from(from.size)
        .ok()
        .filter(|n| *n == 0 || n.is_power_of_two() && *n <= offer.max_queue_size)
        .ok_or(RestoreError::Invalid("a queue of an impossible size"))?;
    let base = u16::try_from(from.base).map_err(|_| RestoreError::Invalid("an impossible base"))?;
    let kick = match (from.started, find(fds, from.kick_fd)?) {
        (false, _) => Kick::Unset,
        (true, None) => Kick::Polled,
        (true, Some(fd)) => Kick::Fd(fd),
    };
    Ok(Vring {
        size,
        addr: from.addr.as_ref().map(|addr| VringAddr {
            index,
            flags: addr.flags,
            descriptors: addr.descriptors,
            used: addr.used,
            available: addr.available,
            log: addr.log,
        }),
        base,
        kick,
        call: find(fds, from.call_fd)?,
        error: find(fds, from.error_fd)?,
        enabled: from.enabled,
        run: Run::Stopped,
    })
}

fn restore_message<F: Clone>(from: &MessageState, fds: &[F]) -> Result<Message<F>, RestoreError> {
    let size = u32::try_from(from.payload.len())
        .ok()
        .filter(|n| *n as usize <= super::codec::MAX_PAYLOAD)
        .ok_or(RestoreError::Invalid("a message that is too long"))?;
    Ok(Message {
        header: Header { request: from.request, flags: from.flags, size },
        payload: from.payload.clone(),
        fds: from.fds.iter().map(|number| must_find(fds, *number)).collect::<Result<_, _>>()?,
    })
}
