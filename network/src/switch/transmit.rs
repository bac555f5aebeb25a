//! A burst on its way: what a guest sent, or what came from the underlay, to wherever each frame goes.

use super::burst::{BATCH, Burst, Decider, Fate};
use super::copy;
use super::counters::{Refused, Tally};
use super::frame::{LONGEST, Outgoing, Rest, SPARE};
use super::ports::{Attached, Port, Ports};
use super::receive::{Received, Receiver};
use super::{Switch, Work, answers, metadata, software};
use crate::engine::action::{Answer, Reason};
use crate::engine::policy::Ingress;
use crate::engine::view::PortIndex;
use crate::packet::offload::{Offload, header_length};
use crate::underlay::{Batch as DatagramBatch, Target, Underlay};
use bixi_offload::memory::{GuestBytes, GuestMemory};
use bixi_offload::rate::QueueLimit;
use bixi_offload::ring::{Batch, Chain, RingError, fence_before_calls};
use bixi_offload::worker::{Outbox, QueueFault, QueueSlot};
use std::sync::Arc;
use std::time::Instant;

/// The most frames taken at once from a queue whose port is limited: what is taken and may not go is put back.
const LIMITED_BATCH: usize = 8;

/// Where the rests of a burst's frames are.
trait Rests {
    /// The rest of frame `index`, of whose bytes the burst has the first `head`.
    fn rest(&self, index: usize, head: usize) -> Rest<'_>;

    /// Copies that rest to `to`, which is as long, if it is in one piece. False if it is not.
    fn copy(&self, index: usize, head: usize, to: GuestBytes<'_>) -> bool;
}

/// Chains of a guest.
struct Chains<'a> {
    batch: &'a Batch,
    memory: &'a GuestMemory,
    header: usize,
}

impl Rests for Chains<'_> {
    #[inline]
    fn rest(&self, index: usize, head: usize) -> Rest<'_> {
        let chain = self.batch.chain(self.memory, index);
        let behind = chain.and_then(|chain| chain.readable().split_at(self.header + head));
        behind.map_or(Rest::NONE, |(_, rest)| Rest::Guest(rest))
    }

    #[inline(always)]
    fn copy(&self, index: usize, head: usize, to: GuestBytes<'_>) -> bool {
        let Some(chain) = self.batch.chain(self.memory, index) else { return false };
        let piece = chain.readable().first().slice(self.header + head, to.len());
        piece.is_some_and(|piece| to.copy_from(&piece) == to.len())
    }
}

impl Rests for DatagramBatch<'_> {
    #[inline]
    fn rest(&self, index: usize, head: usize) -> Rest<'_> {
        Rest::Ours(self.frame(index).get(head..).unwrap_or(&[]))
    }

    #[inline]
    fn copy(&self, index: usize, head: usize, to: GuestBytes<'_>) -> bool {
        self.frame(index).get(head..).is_some_and(|rest| to.write(0, rest))
    }
}

impl Switch {
    /// Moves what a guest's transmit queue has, one burst, and of it what its port's limit allows. Returns how many frames.
    pub(super) fn transmit(
        &mut self,
        slot: QueueSlot,
        outbox: &mut Outbox<()>,
    ) -> Result<usize, QueueFault> {
        let Self { ports, underlay, burst, sent, work } = self;
        let Some(Attached { queue, port, index, limit }) = ports.attached(slot) else {
            return Ok(0);
        };
        let (index, port) = (*index, *port);
        let most = if limit.is_some() { LIMITED_BATCH } else { BATCH };
        let taken = queue.take(most, sent).map_err(|error| QueueFault::Ring { index, error })?;
        if taken == 0 {
            return Ok(0);
        }
        let (memory, features) = (Arc::clone(queue.memory()), queue.features());
        let mut left = 0;
        if let Some(port) = port {
            let chains = Chains { batch: sent, memory: &memory, header: header_length(features) };
            let mut tally = Tally::default();
            match limit {
                None => read_chains(burst, &chains, features, &mut tally),
                Some(limit) => {
                    if let Some(until) = read_allowed(burst, &chains, features, &mut tally, limit) {
                        left = taken - burst.len();
                        outbox.hold(until);
                        ports.port(port).inspect(|port| port.counters.add_transmit_limited());
                    }
                }
            }
            forward_from_port(ports, underlay.as_mut(), burst, work, &chains, port, &mut tally);
        }
        if let Some(Attached { queue, .. }) = ports.attached(slot) {
            queue.give_back(sent, left);
            for chain in sent.chains(&memory) {
                queue.complete(chain.head(), 0);
            }
            queue.reveal();
            work.revealed.push(slot);
        }
        call_drivers(ports, work);
        Ok(taken - left)
    }

    /// Moves what the underlay's sockets have. Returns how many frames.
    pub(super) fn receive_from_underlay(&mut self) -> usize {
        let Self { ports, underlay: Some(underlay), burst, work, .. } = self else { return 0 };
        if !underlay.is_due() {
            return 0;
        }
        let Underlay { inbound, flows, counters, .. } = underlay;
        let (mut tally, mut refused) = (Tally::default(), Refused::default());
        let mut given = (0, 0);
        let mut datagrams = inbound.receive();
        while let Some((segment, batch)) = datagrams.next_batch(&ports.view, &mut refused) {
            burst.clear();
            for index in 0..batch.len() {
                let frame = batch.frame(index);
                burst.add(frame.len(), 0, 0, &mut tally, |to| {
                    let n = to.len().min(frame.len());
                    to[..n].copy_from_slice(&frame[..n]);
                    n
                });
            }
            let ingress = Ingress::Overlay;
            let mut by = Decider { ingress, segment: &segment, flows, now: work.now };
            burst.decide(&mut by, segment.vni, &mut tally);
            burst.choose_queues(ports);
            for index in 0..burst.len() {
                match burst.fate(index) {
                    Fate::Receive(slot) => {
                        let (frames, bytes) = burst.sum(index, Fate::Receive(slot));
                        given = (given.0 + frames, given.1 + bytes);
                        let slot = QueueSlot(slot as usize);
                        give_all(ports, burst, work, &batch, index, slot);
                    }
                    Fate::TooBig => tally.drop(Reason::TooBig),
                    _ => {}
                }
            }
            call_drivers(ports, work);
        }
        counters.add_received(given, &tally, &refused);
        tally.frames as usize
    }
}

/// Calls the drivers that want it, of the queues to which something was revealed: one fence for all of them.
#[inline]
pub(super) fn call_drivers(ports: &mut Ports, work: &mut Work) {
    fence_before_calls();
    for slot in work.revealed.drain(..) {
        if let Some(Attached { queue, .. }) = ports.attached(slot)
            && queue.wants_call()
        {
            queue.signal();
        }
    }
}

/// Reads the heads of all chains.
#[inline]
fn read_chains(burst: &mut Burst, chains: &Chains<'_>, features: u64, tally: &mut Tally) {
    burst.clear();
    for chain in chains.batch.chains(chains.memory) {
        read_chain(burst, &chain, chains.header, features, tally);
    }
}

/// Reads the head of a chain.
#[inline(always)]
fn read_chain(
    burst: &mut Burst,
    chain: &Chain<'_>,
    header: usize,
    features: u64,
    tally: &mut Tally,
) {
    let readable = chain.readable();
    // One that is shorter than its header, or longer than any packet, is as malformed as an empty one.
    let length = readable.len().saturating_sub(header);
    let length = if length > LONGEST { 0 } else { length };
    burst.add(length, header, features, tally, |to| {
        let piece = readable.first();
        if piece.len() >= to.len() && copy::read(&piece, 0, to) {
            to.len()
        } else {
            readable.read(to)
        }
    });
}

/// Reads the heads of the chains that may go now, and says until when the next one must wait, if there is one. What a frame
/// costs is known from the reading of it that is also sent.
fn read_allowed(
    burst: &mut Burst,
    chains: &Chains<'_>,
    features: u64,
    tally: &mut Tally,
    limit: &mut QueueLimit,
) -> Option<Instant> {
    burst.clear();
    let now = Instant::now();
    for chain in chains.batch.chains(chains.memory) {
        let before = *tally;
        read_chain(burst, &chain, chains.header, features, tally);
        let cost = burst.cost(burst.len().saturating_sub(1));
        if let Some(until) = limit.ask(now, cost) {
            burst.pop();
            *tally = before;
            return Some(until);
        }
    }
    None
}

/// Sends the frames of a guest to wherever they go.
#[inline]
fn forward_from_port(
    ports: &mut Ports,
    mut underlay: Option<&mut Underlay>,
    burst: &mut Burst,
    work: &mut Work,
    chains: &Chains<'_>,
    from: PortIndex,
    tally: &mut Tally,
) {
    let Some(Port { view, segment, flows, .. }) = ports.port_mut(from) else { return };
    let mut by = Decider { ingress: Ingress::Port(view), segment, flows, now: work.now };
    burst.decide(&mut by, 0, tally);
    burst.choose_queues(ports);
    for index in 0..burst.len() {
        match burst.fate(index) {
            Fate::Gone | Fate::Keyed | Fate::Unkeyed | Fate::Local(_) => {}
            Fate::Receive(slot) => {
                give_all(ports, burst, work, chains, index, QueueSlot(slot as usize));
            }
            Fate::Tunnel(endpoint) => {
                let target = ports.port(from).and_then(|port| {
                    Some(Target { to: port.segment.endpoint(endpoint)?, vni: port.segment.vni })
                });
                match (&mut underlay, target) {
                    (Some(underlay), Some(target)) => {
                        tunnel(underlay, target, burst, work, chains, index);
                    }
                    _ => tally.drop(Reason::Underlay),
                }
            }
            Fate::Answer(_) | Fate::TooBig => {
                answer(ports, burst, work, chains, from, index, tally)
            }
        }
    }
    if let Some(underlay) = underlay {
        let failed = underlay.flush();
        tally.dropped[Reason::Underlay as usize] += failed;
    }
    if let Some(port) = ports.port(from) {
        port.counters.add_sent(tally, port.flows.len());
    }
}

/// Gives all frames of the burst that are for one receive queue to it, beginning with frame `first`.
#[inline]
fn give_all(
    ports: &mut Ports,
    burst: &mut Burst,
    work: &mut Work,
    rests: &impl Rests,
    first: usize,
    slot: QueueSlot,
) {
    let fate = burst.fate(first);
    let mut more = burst.count(first, fate);
    let Some(Attached { queue, .. }) = ports.attached(slot) else { return };
    let mut to = Receiver::new(queue, &mut work.buffers);
    for index in first..burst.len() {
        if burst.fate(index) != fate {
            continue;
        }
        more -= 1;
        let (offload, length) = (burst.offload(index), burst.length(index));
        let head = burst.head(index);
        let behind = length.saturating_sub(head.len() - SPARE);
        let copy = |to: GuestBytes<'_>| rests.copy(index, head.len() - SPARE, to);
        if offload.is_some() || !to.give_simple(head, behind, more, copy) {
            let rest = rests.rest(index, head.len() - SPARE);
            let offload = offload.unwrap_or(Offload::NONE);
            let frame = Outgoing { head, rest };
            software::give(&mut to, frame, &offload, more, &mut work.staged);
        }
        burst.done(index);
    }
    let finished = to.finish();
    received(ports, work, slot, finished);
}

/// Counts what a guest received, and notes what its driver did wrong.
#[inline]
pub(super) fn received(
    ports: &mut Ports,
    work: &mut Work,
    slot: QueueSlot,
    (received, result): (Received, Result<(), RingError>),
) {
    work.revealed.push(slot);
    let Some(Attached { port, index, .. }) = ports.attached(slot) else { return };
    let (port, index) = (*port, *index);
    if let Some(port) = port.and_then(|port| ports.port(port)) {
        port.counters.add_received(received.frames, received.bytes, received.no_buffer);
    }
    if let Err(error) = result {
        ports.stop(slot);
        work.faults.push((slot, QueueFault::Ring { index, error }));
    }
}

/// Stages a frame for another server.
fn tunnel(
    underlay: &mut Underlay,
    target: Target,
    burst: &mut Burst,
    work: &mut Work,
    chains: &Chains<'_>,
    index: usize,
) {
    let (hash, offload) = (burst.hash(index), burst.offload(index).unwrap_or(Offload::NONE));
    let head = burst.head(index);
    let rest = chains.rest(index, head.len() - SPARE);
    underlay.push(target, hash, &Outgoing { head, rest }, &offload, &mut work.staged);
}

/// Lets the card answer a frame, back to the port that sent it.
#[cold]
fn answer(
    ports: &mut Ports,
    burst: &mut Burst,
    work: &mut Work,
    chains: &Chains<'_>,
    from: PortIndex,
    index: usize,
    tally: &mut Tally,
) {
    let (fate, parsed) = (burst.fate(index), burst.frame(index));
    let (Some(port), Some(parsed)) = (ports.port_mut(from), parsed) else { return };
    if matches!(fate, Fate::Answer(Answer::Dns | Answer::Metadata)) && !port.limit.allows(work.now)
    {
        return tally.drop(Reason::Limited);
    }
    let head = burst.head(index);
    let rest = chains.rest(index, head.len() - SPARE);
    Outgoing { head, rest }.stage(&mut work.staged);
    if fate == Fate::Answer(Answer::Metadata) {
        return metadata::ask(ports, work, from, &parsed, tally);
    }
    let Some(port) = ports.port(from) else { return };
    let Work { staged, answer, .. } = work;
    let frame = &staged[SPARE..];
    let answered = match fate {
        Fate::Answer(what) => answers::answer(port, what, frame, &parsed, answer, tally),
        _ => {
            tally.drop(Reason::TooBig);
            answers::too_big(port, frame, &parsed, answer)
        }
    };
    let Some(slot) = port.receive_queue(0).filter(|_| answered) else { return };
    let Some(Attached { queue, .. }) = ports.attached(slot) else { return };
    let mut to = Receiver::new(queue, &mut work.buffers);
    to.give(Outgoing { head: &mut work.answer, rest: Rest::NONE }, &Offload::NONE, 0);
    let finished = to.finish();
    received(ports, work, slot, finished);
}
