//! A back end that keeps what it is told, and insists on being told in order.

use super::super::{Descriptor, Incoming, LogArea, Outgoing, Region};
use crate::memory::RegionDescriptor;
use crate::vhost_user::codec::{Area, Config, HEADER_LEN, Header, InflightArea};
use crate::vhost_user::codec::{Reply, Request as R, VringState};
use std::collections::BTreeMap;

/// What a back end offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    pub features: u64,
    pub protocol: u64,
    pub rings: u64,
    pub config: Vec<u8>,
}

const PROTOCOL_BIT: u64 = 1 << 30;
const LOG_ALL: u64 = 1 << 26;

impl Offer {
    pub fn full() -> Self {
        let protocol = [0, 1, 3, 5, 9, 12, 15].iter().fold(0, |bits, bit| bits | 1 << bit);
        let features = 1 << 32 | PROTOCOL_BIT | LOG_ALL | 1 << 29 | 1 << 28 | 1 << 9;
        Self { features, protocol, rings: 4, config: (0..8).collect() }
    }

    /// Offers that matter: everything, no answers, no memory slots (DPDK), neither.
    pub fn all() -> Vec<Self> {
        let full = Self::full();
        let less = |bits: u64| Self { protocol: full.protocol & !bits, ..full.clone() };
        vec![less(0), less(1 << 3), less(1 << 15), less(1 << 3 | 1 << 15)]
    }

    pub fn of_seed(seed: u64) -> Self {
        let all = Self::all();
        all[seed as usize % all.len()].clone()
    }

    pub fn has(&self, bit: u32) -> bool {
        self.protocol & 1 << bit != 0
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelRing {
    pub size: Option<u16>,
    pub base: Option<u16>,
    pub addresses: Option<[u64; 3]>,
    pub logged: bool,
    pub call: Option<u32>,
    pub kicked: bool,
    pub enabled: bool,
}

#[derive(Debug, Clone, Default)]
pub struct Model {
    pub features: Option<u64>,
    pub protocol: u64,
    pub owned: bool,
    pub memory: Vec<Region>,
    pub log: Option<LogArea>,
    pub record: Option<u64>,
    pub rings: BTreeMap<u16, ModelRing>,
    pub channel: bool,
}

/// What the world gives the model besides the message itself.
pub struct Shared<'a> {
    pub offer: &'a Offer,
    /// Used index of each ring, as in guest memory.
    pub used: &'a BTreeMap<u16, u16>,
    /// How often each call eventfd has been replaced.
    pub calls: &'a BTreeMap<u16, u32>,
    /// Names a fresh in-flight record.
    pub next_record: u64,
}

/// Cuts bytes into header and payload.
pub fn parse(bytes: &[u8]) -> (Header, Vec<u8>) {
    let header = Header::parse(bytes[..HEADER_LEN].try_into().unwrap()).unwrap();
    assert_eq!(header.size as usize, bytes.len() - HEADER_LEN);
    (header, bytes[HEADER_LEN..].to_vec())
}

pub fn region(told: &RegionDescriptor, slot: u32) -> Region {
    assert_eq!(told.guest_addr, told.user_addr, "a user address is the guest address");
    let RegionDescriptor { guest_addr, size, mmap_offset, .. } = *told;
    Region { slot, guest_addr, size, mmap_offset }
}

impl Model {
    /// Handles a message and answers, if an answer is due.
    pub fn handle(&mut self, message: &Outgoing, shared: &Shared<'_>) -> Option<Incoming> {
        let (header, payload) = parse(&message.encode());
        let request = R::decode(&header, &payload).unwrap();
        let need_reply = header.needs_reply();
        assert!(!need_reply || self.protocol & 1 << 3 != 0, "REPLY_ACK was not agreed on");
        let reply = match &request {
            R::GetFeatures => Some(Reply::U64(shared.offer.features)),
            R::GetProtocolFeatures => Some(Reply::U64(shared.offer.protocol)),
            R::GetQueueNum => Some(Reply::U64(shared.offer.rings)),
            R::GetMaxMemSlots => Some(Reply::U64(32)),
            R::GetConfig(asked) => {
                assert_eq!(asked.bytes.len(), shared.offer.config.len());
                Some(Reply::Config(Config { bytes: shared.offer.config.clone(), ..*asked }))
            }
            R::GetInflightFd(asked) => {
                let area = Area { size: shared.next_record, offset: 0 };
                Some(Reply::Inflight(InflightArea { area, ..*asked }))
            }
            R::GetVringBase(VringState { index, .. }) => {
                let ring = self.rings.get_mut(&(*index as u16)).unwrap();
                assert!(std::mem::take(&mut ring.kicked), "only a started ring can be stopped");
                let num = shared.used[&(*index as u16)].into();
                Some(Reply::VringState(VringState { index: *index, num }))
            }
            R::SetLogBase(area) => {
                self.log = Some(LogArea { size: area.size, offset: area.offset });
                assert_eq!(message.descriptors, [Descriptor::Log]);
                Some(Reply::U64(7))
            }
            _ => {
                self.set(&request, message, shared);
                need_reply.then_some(Reply::U64(0))
            }
        };
        let (header, payload) = parse(&reply?.encode(header.request));
        let descriptors = usize::from(matches!(request, R::GetInflightFd(_)));
        Some(Incoming { header, payload, descriptors })
    }

    fn set(&mut self, request: &R, message: &Outgoing, shared: &Shared<'_>) {
        match request {
            R::SetOwner => self.owned = true,
            R::SetProtocolFeatures(protocol) => {
                self.protocol = *protocol;
                assert_eq!(protocol & !shared.offer.protocol, 0);
            }
            R::SetBackendReqFd => {
                assert_eq!(message.descriptors, [Descriptor::Channel]);
                self.channel = true;
            }
            R::SetFeatures(features) => {
                assert_eq!(features & !shared.offer.features, 0);
                assert!(self.owned && features & PROTOCOL_BIT != 0);
                assert!(features & LOG_ALL == 0 || self.log.is_some(), "log without a base");
                self.features = Some(*features);
            }
            R::SetInflightFd(record) => {
                assert_eq!(message.descriptors, [Descriptor::Record]);
                assert!(self.rings.values().all(|ring| !ring.kicked));
                self.record = Some(record.area.size);
            }
            R::SetMemTable(_) | R::AddMemReg(_) | R::RemMemReg(_) => {
                self.set_memory(request, message, shared.offer);
            }
            _ => self.set_ring(request, message, shared),
        }
    }

    fn set_memory(&mut self, request: &R, message: &Outgoing, offer: &Offer) {
        let slots = message.descriptors.iter().map(|descriptor| match descriptor {
            Descriptor::Memory(slot) => *slot,
            other => panic!("{other:?} with {request:?}"),
        });
        match request {
            R::SetMemTable(regions) => {
                assert!(!offer.has(15) && regions.len() == message.descriptors.len());
                self.memory =
                    regions.iter().zip(slots).map(|(told, slot)| region(told, slot)).collect();
            }
            R::AddMemReg(told) => {
                let slots: Vec<_> = slots.collect();
                assert_eq!(slots.len(), 1);
                assert!(self.memory.iter().all(|known| known.guest_addr != told.guest_addr));
                self.memory.push(region(told, slots[0]));
            }
            R::RemMemReg(told) => {
                let (before, gone) = (self.memory.len(), region(told, 0));
                self.memory.retain(|known| Region { slot: 0, ..*known } != gone);
                assert_eq!(self.memory.len() + 1, before, "an unknown region is removed");
            }
            other => panic!("{other:?}"),
        }
    }

    fn set_ring(&mut self, request: &R, message: &Outgoing, shared: &Shared<'_>) {
        let index = match request {
            R::SetVringKick(told) | R::SetVringCall(told) => {
                assert!(told.has_fd && message.descriptors.len() == 1);
                u16::from(told.index)
            }
            R::SetVringNum(told) | R::SetVringBase(told) | R::SetVringEnable(told) => {
                told.index as u16
            }
            R::SetVringAddr(told) => told.index as u16,
            other => panic!("the session never sends {other:?}"),
        };
        let ready = !self.memory.is_empty() && self.features.is_some();
        let recorded = self.record.is_some() || !shared.offer.has(12);
        let ring = self.rings.entry(index).or_default();
        match request {
            R::SetVringCall(_) => {
                assert_eq!(message.descriptors, [Descriptor::Call(index)]);
                ring.call = Some(shared.calls.get(&index).copied().unwrap_or(0));
            }
            R::SetVringEnable(told) => ring.enabled = told.num != 0,
            R::SetVringAddr(told) => {
                let addresses = [told.descriptors, told.available, told.used];
                assert!(
                    !ring.kicked || ring.addresses == Some(addresses),
                    "a running ring is moved"
                );
                ring.logged = told.flags & 1 != 0;
                ring.addresses = Some(addresses);
            }
            _ if ring.kicked => panic!("{request:?} to a running ring"),
            R::SetVringNum(told) => ring.size = Some(told.num as u16),
            R::SetVringBase(told) => {
                ring.base = Some(told.num as u16);
                assert_eq!(
                    told.num,
                    u32::from(shared.used[&index]),
                    "a ring goes on where it stood"
                );
            }
            _ => {
                assert_eq!(message.descriptors, [Descriptor::Kick(index)]);
                assert!(ring.size.is_some() && ring.base.is_some() && ring.addresses.is_some());
                assert!(ring.call.is_some() && ready, "started too early");
                assert!(recorded, "started without the record");
                ring.kicked = true;
            }
        }
    }

    /// Whether the ring may be worked on.
    pub fn works(&self, index: u16) -> bool {
        self.rings.get(&index).is_some_and(|ring| ring.kicked && ring.enabled)
    }
}
