//! A burst of frames: read, parsed, and each given its fate. The same for guests' frames and for those from the underlay.
//!
//! Invariant: a fate is decided on the head in the burst's own memory; after [`Burst::decide`] no frame is undecided, and after
//! [`Burst::choose_queues`] none is for a port without a queue.

use super::counters::Tally;
use super::frame::SPARE;
use super::ports::Ports;
use crate::engine::action::{Action, Answer, Reason};
use crate::engine::flow::{FlowTable, Found};
use crate::engine::key::Key;
use crate::engine::policy::{self, Ingress, Packet};
use crate::engine::view::{PortIndex, SegmentView};
use crate::packet::offload::Offload;
use crate::packet::{ETHERNET, Frame, HEAD, Payload, parse};
use bixi_offload::worker::QueueSlot;

/// Frames in a burst: enough to pay for what is done once per burst, few enough for the nearest cache.
pub const BATCH: usize = 32;

/// Bytes of a head's place: header, head, and rounded up to whole lines.
const PLACE: usize = 192;
const _: () = assert!(SPARE + HEAD <= PLACE);

/// A frame's beginning, read once.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Place([u8; PLACE]);

/// What becomes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Its flow is to be looked up.
    Undecided,
    /// Nothing more is to be done.
    Gone,
    /// It goes to this port.
    Local(PortIndex),
    /// It goes into this receive queue.
    Receive(QueueSlot),
    /// It goes to this end point of its segment.
    Tunnel(u32),
    /// The card answers.
    Answer(Answer),
    /// It is larger than the segment's MTU.
    TooBig,
}

/// One frame of a burst.
#[derive(Debug, Clone, Copy)]
pub struct Item {
    /// Bytes of the whole frame.
    pub length: u32,
    /// Bytes of it in its place.
    head: u16,
    /// What becomes of it.
    pub fate: Fate,
    /// The upper half of its flow's hash.
    pub hash: u32,
    /// What is left to do on it.
    pub offload: Offload,
}

impl Item {
    const NONE: Self =
        Self { length: 0, head: 0, fate: Fate::Gone, hash: 0, offload: Offload::NONE };
}

/// The frames under way.
#[derive(Debug)]
pub struct Burst {
    places: [Place; BATCH],
    items: [Item; BATCH],
    frames: [Option<Frame>; BATCH],
    keys: [(Key, u64); BATCH],
    len: usize,
}

impl Burst {
    /// No frame.
    pub fn new() -> Box<Self> {
        Box::new(Self {
            places: [Place([0; PLACE]); BATCH],
            items: [Item::NONE; BATCH],
            frames: [None; BATCH],
            keys: [(Key([0; 4]), 0); BATCH],
            len: 0,
        })
    }

    /// Forgets all frames.
    #[inline]
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// How many frames there are.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    #[inline]
    pub fn item(&self, index: usize) -> Item {
        self.items[index]
    }

    /// Marks a frame as done.
    #[inline]
    pub fn done(&mut self, index: usize) {
        self.items[index].fate = Fate::Gone;
    }

    /// The head of a frame, with room for a virtio-net header before it.
    #[inline]
    pub fn head(&mut self, index: usize) -> &mut [u8] {
        let head = usize::from(self.items[index].head);
        &mut self.places[index].0[..SPARE + head]
    }

    /// The parsed headers of a frame.
    pub fn frame(&self, index: usize) -> Option<Frame> {
        self.frames[index]
    }

    /// How many of the frames from `first` on have this fate.
    #[inline]
    pub fn count(&self, first: usize, fate: Fate) -> usize {
        self.items[first..self.len].iter().filter(|item| item.fate == fate).count()
    }

    /// Adds a frame of `length` bytes whose header and head `read` puts where it is told, `header` bytes of header first;
    /// it says how many bytes there were. `features` are those that the sender negotiated.
    ///
    /// There is room for [`BATCH`] frames; more are not added.
    #[inline(always)]
    pub fn add(
        &mut self,
        length: usize,
        header: usize,
        features: u64,
        tally: &mut Tally,
        read: impl FnOnce(&mut [u8]) -> usize,
    ) {
        let index = self.len;
        if index >= BATCH {
            return;
        }
        self.len += 1;
        tally.frames += 1;
        tally.bytes += length as u64;
        let item = &mut self.items[index];
        *item = Item::NONE;
        let place = &mut self.places[index].0;
        let start = SPARE - header.min(SPARE);
        let got = read(&mut place[start..SPARE + HEAD.min(length)]).saturating_sub(header);
        let head = &place[SPARE..SPARE + got.min(HEAD)];
        item.length = length as u32;
        item.head = head.len() as u16;
        let Ok(frame) = parse(head, length) else {
            self.frames[index] = None;
            return tally.drop(Reason::Malformed);
        };
        self.frames[index] = Some(frame);
        if header != 0 && !Offload::is_plain(&place[start..]) {
            match Offload::read(&place[start..], features, &frame, length) {
                Ok(offload) => item.offload = offload,
                Err(_) => return tally.drop(Reason::Malformed),
            }
        }
        item.fate = Fate::Undecided;
    }

    /// Makes the key of frame `index`, and asks the processor for its flow.
    #[inline(always)]
    pub fn look_ahead(&mut self, index: usize, flows: &FlowTable, vni: u32) {
        let Some(frame @ Frame { payload: Payload::Ipv4(ipv4), .. }) = &self.frames[index] else {
            return;
        };
        let key = Key::new(frame, ipv4, vni);
        let hash = flows.hash(&key);
        flows.prefetch(hash);
        self.keys[index] = (key, hash);
        self.items[index].hash = (hash >> 32) as u32;
    }

    /// Decides the fate of frame `index`, if it has none yet.
    #[inline(always)]
    pub fn decide(&mut self, index: usize, by: &mut Decider<'_>, tally: &mut Tally) {
        let (Some(frame), item) = (&self.frames[index], &mut self.items[index]) else { return };
        if item.fate != Fate::Undecided {
            return;
        }
        let packet = Packet { ingress: by.ingress, segment: by.segment, frame };
        let (key, hash) = &self.keys[index];
        let action = match frame.payload {
            Payload::Ipv4(_) => by.action(&packet, key, *hash, tally),
            _ => policy::decide(&packet),
        };
        item.fate = match action {
            Action::Drop(reason) => {
                tally.drop(reason);
                Fate::Gone
            }
            Action::Answer(answer) => Fate::Answer(answer),
            _ if is_too_big(item, by.segment.mtu) => Fate::TooBig,
            Action::Tunnel(endpoint) => Fate::Tunnel(endpoint),
            Action::Local(port) => Fate::Local(port),
        };
    }

    /// Chooses the receive queue of every frame for a port of this process. A port without any loses the frame.
    #[inline]
    pub fn choose_queues(&mut self, ports: &Ports) {
        for item in &mut self.items[..self.len] {
            let Fate::Local(index) = item.fate else { continue };
            let Some(port) = ports.port(index) else {
                item.fate = Fate::Gone;
                continue;
            };
            item.fate = port.receive_queue(item.hash).map_or(Fate::Gone, Fate::Receive);
            if item.fate == Fate::Gone {
                port.counters.add_received(0, 0, 1);
            }
        }
    }
}

/// Whether a packet exceeds the segment's MTU: whole, or each of the segments that it is to be cut into.
#[inline]
fn is_too_big(item: &Item, mtu: u16) -> bool {
    let carried = match item.offload.segmentation {
        None => item.length as usize,
        Some(cut) => usize::from(cut.headers) + usize::from(cut.size),
    };
    carried > ETHERNET + usize::from(mtu)
}

/// Whoever decides about the frames of one burst, all from one place and in one segment.
#[derive(Debug)]
pub struct Decider<'a> {
    /// Where they came from.
    pub ingress: Ingress<'a>,
    /// Their segment.
    pub segment: &'a SegmentView,
    /// The flows of that place.
    pub flows: &'a mut FlowTable,
    /// The time in ticks.
    pub now: u32,
}

impl Decider<'_> {
    /// What the flow cache says, or the layers where it says nothing.
    #[inline(always)]
    fn action(&mut self, packet: &Packet<'_>, key: &Key, hash: u64, tally: &mut Tally) -> Action {
        let epoch = self.segment.epoch;
        match self.flows.find(key, hash, epoch, self.now) {
            Found::Hit(action) => action,
            Found::Stale(flow) => {
                let action = policy::decide(packet);
                self.flows.decide(flow, action, epoch, self.now);
                action
            }
            Found::Miss => self.first_packet(packet, key, hash, tally),
        }
    }

    #[cold]
    fn first_packet(
        &mut self,
        packet: &Packet<'_>,
        key: &Key,
        hash: u64,
        tally: &mut Tally,
    ) -> Action {
        let action = policy::decide(packet);
        let evicted = self.flows.insert(key, hash, action, self.segment.epoch, self.now);
        tally.evicted += u64::from(evicted);
        action
    }
}
