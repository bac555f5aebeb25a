//! A burst of frames: read, keyed, and each given its fate. The same for guests' frames and for those from the underlay.
//!
//! What a burst knows of its frames is kept in arrays of numbers, not in one structure per frame: a structure that is
//! written field by field and copied whole soon after waits for its own stores, and that costs more than a look-up.
//!
//! What comes for a port over its limit ends where its queue would be chosen.
//!
//! Invariant: a fate is decided on the head in the burst's own memory; after [`Burst::decide`] no frame is undecided, and
//! after [`Burst::choose_queues`] none is for a port without a queue.

use super::counters::Tally;
use super::frame::SPARE;
use super::ports::Ports;
use crate::engine::action::{Action, Answer, Reason};
use crate::engine::flow::{Candidates, FlowTable, Found};
use crate::engine::key::Key;
use crate::engine::policy::{self, Ingress, Packet};
use crate::engine::view::{PortIndex, SegmentView};
use crate::packet::offload::Offload;
use crate::packet::{ETHERNET, Frame, HEAD, parse};
use bixi_offload::rate::Cost;
use std::time::Instant;

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
    /// It has a key: its flow is to be looked up.
    Keyed,
    /// It has none: the layers are to be asked.
    Unkeyed,
    /// Nothing more is to be done.
    Gone,
    /// It goes to this port.
    Local(PortIndex),
    /// It goes into the receive queue of this number.
    Receive(u32),
    /// It goes to this end point of its segment.
    Tunnel(u32),
    /// The card answers.
    Answer(Answer),
    /// It is larger than the segment's MTU.
    TooBig,
}

/// The frames under way.
#[derive(Debug)]
pub struct Burst {
    places: [Place; BATCH],
    /// Bytes of each whole frame.
    lengths: [u32; BATCH],
    /// Bytes of it in its place.
    heads: [u16; BATCH],
    fates: [Fate; BATCH],
    keys: [Key; BATCH],
    hashes: [u64; BATCH],
    candidates: [Candidates; BATCH],
    /// What is left to do; of those whose bit in `plain` is not set.
    offloads: [Offload; BATCH],
    plain: u32,
    len: usize,
}

impl Burst {
    /// No frame.
    pub fn new() -> Box<Self> {
        Box::new(Self {
            places: [Place([0; PLACE]); BATCH],
            lengths: [0; BATCH],
            heads: [0; BATCH],
            fates: [Fate::Gone; BATCH],
            keys: [Key([0; 4]); BATCH],
            hashes: [0; BATCH],
            candidates: [Candidates::default(); BATCH],
            offloads: [Offload::NONE; BATCH],
            plain: 0,
            len: 0,
        })
    }

    /// Forgets all frames.
    #[inline]
    pub fn clear(&mut self) {
        (self.len, self.plain) = (0, 0);
    }

    /// How many frames there are.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// What becomes of frame `index`.
    #[inline]
    pub fn fate(&self, index: usize) -> Fate {
        self.fates[index]
    }

    /// Marks a frame as done.
    #[inline]
    pub fn done(&mut self, index: usize) {
        self.fates[index] = Fate::Gone;
    }

    /// The upper half of the hash of a frame's flow.
    #[inline]
    pub fn hash(&self, index: usize) -> u32 {
        (self.hashes[index] >> 32) as u32
    }

    /// What is left to do on a frame; none if nothing is.
    #[inline]
    pub fn offload(&self, index: usize) -> Option<Offload> {
        if self.plain >> index & 1 == 1 { None } else { Some(self.offloads[index]) }
    }

    /// Bytes of the whole frame.
    #[inline]
    pub fn length(&self, index: usize) -> usize {
        self.lengths[index] as usize
    }

    /// The head of a frame, with room for a virtio-net header before it.
    #[inline]
    pub fn head(&mut self, index: usize) -> &mut [u8] {
        let head = usize::from(self.heads[index]).min(HEAD);
        &mut self.places[index].0[..SPARE + head]
    }

    /// The headers of a frame, parsed anew: for what is done rarely.
    pub fn frame(&self, index: usize) -> Option<Frame> {
        let head = usize::from(self.heads[index]).min(HEAD);
        parse(&self.places[index].0[SPARE..SPARE + head], self.lengths[index] as usize).ok()
    }

    /// How many of the frames from `first` on have this fate.
    #[inline]
    pub fn count(&self, first: usize, fate: Fate) -> usize {
        self.fates[first..self.len].iter().filter(|other| **other == fate).count()
    }

    /// How many of the frames from `first` on have this fate, and their bytes.
    pub fn sum(&self, first: usize, fate: Fate) -> (u64, u64) {
        let fates = self.fates[first..self.len].iter().zip(&self.lengths[first..]);
        fates
            .filter(|(other, _)| **other == fate)
            .fold((0, 0), |(frames, bytes), (_, length)| (frames + 1, bytes + u64::from(*length)))
    }

    /// What frame `index` costs where packets and bytes are limited: as much as those that it will be cut into.
    pub fn cost(&self, index: usize) -> Cost {
        let length = u64::from(self.lengths[index]);
        let offload = self.offload(index).filter(|_| self.fates[index] != Fate::Gone);
        let Some(cut) = offload.and_then(|offload| offload.segmentation) else {
            return Cost { operations: 1, bytes: length };
        };
        let headers = u64::from(cut.headers);
        let payload = length.saturating_sub(headers);
        let segments = payload.div_ceil(u64::from(cut.size).max(1)).max(1);
        Cost { operations: segments, bytes: length + (segments - 1) * headers }
    }

    /// Forgets the frame that was added last.
    pub fn pop(&mut self) {
        self.len = self.len.saturating_sub(1);
        self.plain &= !(1 << self.len);
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
        let place = &mut self.places[index].0;
        let start = SPARE - header.min(SPARE);
        let got = read(&mut place[start..SPARE + HEAD.min(length)]).saturating_sub(header);
        let head = got.min(HEAD);
        self.lengths[index] = length as u32;
        self.heads[index] = head as u16;
        let plain = header == 0 || Offload::is_plain(&place[start..]);
        self.plain |= u32::from(plain) << index;
        match Key::of_ordinary(&place[SPARE..SPARE + head], length) {
            Some(key) if plain => {
                self.keys[index] = key;
                self.fates[index] = Fate::Keyed;
            }
            _ => self.add_rare(index, start, features, tally),
        }
    }

    /// Reads the headers of a frame that is not the ordinary one.
    #[cold]
    fn add_rare(&mut self, index: usize, start: usize, features: u64, tally: &mut Tally) {
        self.fates[index] = Fate::Gone;
        let Some(frame) = self.frame(index) else { return tally.drop(Reason::Malformed) };
        if self.offload(index).is_some() {
            let header = &self.places[index].0[start..];
            match Offload::read(header, features, &frame, self.lengths[index] as usize) {
                Ok(offload) => self.offloads[index] = offload,
                Err(_) => return tally.drop(Reason::Malformed),
            }
        }
        self.fates[index] = match Key::of(&frame) {
            Some(key) => {
                self.keys[index] = key;
                Fate::Keyed
            }
            None => Fate::Unkeyed,
        };
    }

    /// Decides the fate of every frame. First all flows are asked for, then looked at: the processor fetches them at once.
    #[inline]
    pub fn decide(&mut self, by: &mut Decider<'_>, vni: u32, tally: &mut Tally) {
        for index in 0..self.len.min(BATCH) {
            if self.fates[index] == Fate::Keyed {
                let key = self.keys[index].in_segment(vni);
                let hash = by.flows.hash(&key);
                (self.keys[index], self.hashes[index]) = (key, hash);
                self.candidates[index] = by.flows.look(hash);
            }
        }
        for index in 0..self.len.min(BATCH) {
            let action = match self.fates[index] {
                Fate::Keyed => {
                    let (key, hash) = (&self.keys[index], self.hashes[index]);
                    let candidates = self.candidates[index];
                    match by.flows.find(key, hash, candidates, by.segment.epoch, by.now) {
                        Found::Hit(action) => action,
                        found => self.first_packet(index, by, found, tally),
                    }
                }
                Fate::Unkeyed => self.first_packet(index, by, Found::Miss, tally),
                _ => continue,
            };
            self.fates[index] = match action {
                Action::Drop(reason) => {
                    tally.drop(reason);
                    Fate::Gone
                }
                Action::Answer(answer) => Fate::Answer(answer),
                _ if self.is_too_big(index, by.segment.mtu) => Fate::TooBig,
                Action::Tunnel(endpoint) => Fate::Tunnel(endpoint),
                Action::Local(port) => Fate::Local(port),
            };
        }
    }

    /// Asks the layers, and remembers what they say.
    #[cold]
    fn first_packet(
        &mut self,
        index: usize,
        by: &mut Decider<'_>,
        found: Found,
        tally: &mut Tally,
    ) -> Action {
        let Some(frame) = self.frame(index) else { return Action::Drop(Reason::Malformed) };
        let packet = Packet { ingress: by.ingress, segment: by.segment, frame: &frame };
        let action = policy::decide(&packet);
        if self.fates[index] == Fate::Keyed {
            let (key, hash) = (&self.keys[index], self.hashes[index]);
            tally.evicted += u64::from(by.remember(key, hash, found, action));
        }
        action
    }

    /// Whether a packet exceeds the segment's MTU: whole, or each of the segments that it is to be cut into.
    #[inline]
    fn is_too_big(&self, index: usize, mtu: u16) -> bool {
        let cut = self.offload(index).and_then(|offload| offload.segmentation);
        let carried = match cut {
            None => self.lengths[index] as usize,
            Some(cut) => usize::from(cut.headers) + usize::from(cut.size),
        };
        carried > ETHERNET + usize::from(mtu)
    }

    /// Chooses the receive queue of every frame for a port of this process. A port without any loses the frame, and so does
    /// one whose limit is reached.
    #[inline]
    pub fn choose_queues(&mut self, ports: &Ports) {
        let mut now = None;
        for index in 0..self.len.min(BATCH) {
            let Fate::Local(to) = self.fates[index] else { continue };
            let Some(port) = ports.port(to) else {
                self.fates[index] = Fate::Gone;
                continue;
            };
            if let Some(limiter) = &port.receive_limit {
                let now = *now.get_or_insert_with(Instant::now);
                if !limiter.try_take(now, self.cost(index)) {
                    port.counters.add_receive_limited();
                    self.fates[index] = Fate::Gone;
                    continue;
                }
            }
            self.fates[index] = match port.receive_queue((self.hashes[index] >> 32) as u32) {
                Some(slot) => Fate::Receive(slot.0 as u32),
                None => {
                    port.counters.add_received(0, 0, 1);
                    Fate::Gone
                }
            };
        }
    }
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
    /// Remembers what was decided about a flow that was not found, or whose decision was of another epoch; returns whether
    /// another flow had to go.
    fn remember(&mut self, key: &Key, hash: u64, found: Found, action: Action) -> bool {
        let (epoch, now) = (self.segment.epoch, self.now);
        match found {
            Found::Hit(_) => false,
            Found::Miss => self.flows.insert(key, hash, action, epoch, now),
            Found::Stale(flow) => {
                self.flows.decide(flow, action, epoch, now);
                false
            }
        }
    }
}
