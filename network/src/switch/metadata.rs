//! A guest's packets to its metadata server and back, and the server's time-outs.
//!
//! Invariants: a port's stack sees the frames of that port only, and answers into that port only; a port without
//! connections has none.

use super::counters::Tally;
use super::frame::{Outgoing, Rest, SPARE};
use super::ports::{Attached, Ports};
use super::receive::Receiver;
use super::transmit::received;
use super::{Switch, Work};
use crate::address::GATEWAY_MAC;
use crate::answer::push_ethernet;
use crate::engine::action::Reason;
use crate::engine::view::PortIndex;
use crate::metadata::stack::{Now, Stack};
use crate::packet::offload::Offload;
use crate::packet::{self, ETHERNET, Frame, Payload};
use crate::tables::lease::seconds_now;
use std::time::Instant;

fn now() -> Now {
    Now { instant: Instant::now(), seconds: seconds_now() }
}

/// Gives the frame that is staged to the port's metadata server, and the guest what that has to say.
pub fn ask(ports: &mut Ports, work: &mut Work, from: PortIndex, parsed: &Frame, tally: &mut Tally) {
    let now = now();
    match take(ports, work, from, parsed, now) {
        Ok(()) => tally.answered += 1,
        Err(reason) => tally.drop(reason),
    }
    give(ports, work, from, now);
}

fn take(
    ports: &mut Ports,
    work: &Work,
    from: PortIndex,
    parsed: &Frame,
    now: Now,
) -> Result<(), Reason> {
    let Payload::Ipv4(ipv4) = &parsed.payload else { return Err(Reason::Malformed) };
    let packet = work.staged.get(SPARE + ETHERNET..).unwrap_or_default();
    let packet = packet.get(..usize::from(ipv4.total)).ok_or(Reason::Malformed)?;
    let port = ports.port_mut(from).ok_or(Reason::UnknownDestination)?;
    let metadata = port.metadata.as_ref().ok_or(Reason::UnknownDestination)?;
    let stack = port.stack.get_or_insert_with(|| Box::new(Stack::new(now)));
    stack.take(packet, metadata, now);
    Ok(())
}

/// Gives the guest what its metadata server has to say, and notes when to look again.
fn give(ports: &mut Ports, work: &mut Work, to: PortIndex, now: Now) {
    let Some(port) = ports.port_mut(to) else { return };
    let Some(mut stack) = port.stack.take() else { return };
    let (mac, slot) = (port.view.mac, port.receive_queue(0));
    if let Some(slot) = slot
        && let Some(Attached { queue, .. }) = ports.attached(slot)
    {
        let mut receiver = Receiver::new(queue, &mut work.buffers);
        while let Some(packet) = stack.next_packet() {
            work.answer.clear();
            work.answer.resize(SPARE, 0);
            push_ethernet(&mut work.answer, mac, GATEWAY_MAC, packet::IPV4);
            work.answer.extend_from_slice(&packet);
            let frame = Outgoing { head: &mut work.answer, rest: Rest::NONE };
            receiver.give(frame, &Offload::NONE, 0);
        }
        let finished = receiver.finish();
        received(ports, work, slot, finished);
    }
    // Without a queue they are lost, as on any wire without a listener.
    while stack.next_packet().is_some() {}
    let deadline = stack.deadline(now);
    if let Some(port) = ports.port_mut(to) {
        port.stack = deadline.map(|_| stack);
    }
    ports.set_timer(to, deadline);
}

impl Switch {
    /// Lets the metadata servers whose time has come take a turn. Returns how many did.
    pub(super) fn turn_metadata(&mut self) -> usize {
        let Self { ports, work, .. } = self;
        let Some(first) = ports.next_timer() else { return 0 };
        let now = now();
        if now.instant < first {
            return 0;
        }
        let due = ports.due_timers(now.instant);
        for index in &due {
            if let Some(port) = ports.port_mut(*index)
                && let (Some(stack), Some(metadata)) = (&mut port.stack, &port.metadata)
            {
                stack.turn(metadata, now);
            }
            give(ports, work, *index, now);
        }
        due.len()
    }
}
