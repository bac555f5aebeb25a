//! Counters of ports and of the underlay: written by the one worker that owns them, read by the driver.
//!
//! Invariants: a counter has one writer, so that adding is a load and a store and no locked instruction; a worker adds
//! up a batch in ordinary memory ([`Tally`]) and writes it once. A reader may see the counters of a batch half written:
//! each is right by itself.

use crate::engine::action::Reason;
use bixi_api::network::{PortStatistics, UnderlayStatistics};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Adds `n` to a counter that nobody else writes.
#[inline]
fn add(counter: &AtomicU64, n: u64) {
    if n != 0 {
        counter.store(counter.load(Relaxed).wrapping_add(n), Relaxed);
    }
}

/// What a batch of frames that came in led to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    /// Frames that came.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Requests answered by the card.
    pub answered: u64,
    /// Frames dropped, by reason.
    pub dropped: [u64; Reason::COUNT],
    /// Flows that had to leave the cache.
    pub evicted: u64,
}

impl Tally {
    /// Counts a frame that is dropped.
    #[inline]
    pub fn drop(&mut self, reason: Reason) {
        self.dropped[reason as usize] += 1;
    }
}

/// The counters of a port.
#[derive(Debug, Default)]
pub struct PortCounters {
    received: AtomicU64,
    received_bytes: AtomicU64,
    no_buffer: AtomicU64,
    sent: AtomicU64,
    sent_bytes: AtomicU64,
    answered: AtomicU64,
    dropped: [AtomicU64; Reason::COUNT],
    receive_limited: AtomicU64,
    transmit_limited: AtomicU64,
    evicted: AtomicU64,
    flows: AtomicU64,
    torn: AtomicU64,
}

impl PortCounters {
    /// Writes what a batch of the guest's frames led to, and how many flows there are now.
    pub fn add_sent(&self, tally: &Tally, flows: usize) {
        add(&self.sent, tally.frames);
        add(&self.sent_bytes, tally.bytes);
        add(&self.answered, tally.answered);
        for (counter, n) in self.dropped.iter().zip(tally.dropped) {
            add(counter, n);
        }
        add(&self.evicted, tally.evicted);
        self.flows.store(flows as u64, Relaxed);
    }

    /// Writes what the guest received, and what it had no buffer for.
    pub fn add_received(&self, frames: u64, bytes: u64, no_buffer: u64) {
        add(&self.received, frames);
        add(&self.received_bytes, bytes);
        add(&self.no_buffer, no_buffer);
    }

    /// Counts a packet for the guest that was one too many.
    pub fn add_receive_limited(&self) {
        add(&self.receive_limited, 1);
    }

    /// Counts that the guest's packets must wait.
    pub fn add_transmit_limited(&self) {
        add(&self.transmit_limited, 1);
    }

    /// Writes how many torn records were found when the port's tables were opened, before a worker has them.
    pub fn set_torn(&self, torn: u64) {
        self.torn.store(torn, Relaxed);
    }

    /// Writes how many flows were found when the port's tables were opened, before a worker has them.
    pub fn set_flows(&self, flows: usize) {
        self.flows.store(flows as u64, Relaxed);
    }

    /// All of them.
    pub fn read(&self) -> PortStatistics {
        let dropped = |reason: Reason| self.dropped[reason as usize].load(Relaxed);
        PortStatistics {
            received: self.received.load(Relaxed),
            received_bytes: self.received_bytes.load(Relaxed),
            sent: self.sent.load(Relaxed),
            sent_bytes: self.sent_bytes.load(Relaxed),
            no_buffer: self.no_buffer.load(Relaxed),
            spoofed: dropped(Reason::Spoofed),
            unknown_destination: dropped(Reason::UnknownDestination),
            malformed: dropped(Reason::Malformed),
            answered: self.answered.load(Relaxed),
            multicast: dropped(Reason::Multicast),
            ipv6: dropped(Reason::Ipv6),
            other_protocol: dropped(Reason::OtherProtocol),
            too_big: dropped(Reason::TooBig),
            underlay_failed: dropped(Reason::Underlay),
            limited: dropped(Reason::Limited),
            receive_limited: self.receive_limited.load(Relaxed),
            transmit_limited: self.transmit_limited.load(Relaxed),
            flows: self.flows.load(Relaxed),
            evicted_flows: self.evicted.load(Relaxed),
            torn_records: self.torn.load(Relaxed),
        }
    }
}

/// The counters of the underlay.
#[derive(Debug, Default)]
pub struct UnderlayCounters {
    received: AtomicU64,
    received_bytes: AtomicU64,
    sent: AtomicU64,
    sent_bytes: AtomicU64,
    send_failed: AtomicU64,
    malformed: AtomicU64,
    unknown_segment: AtomicU64,
    unknown_server: AtomicU64,
    unknown_destination: AtomicU64,
    not_carried: AtomicU64,
}

/// What a batch of datagrams that came in led to, beside [`Tally`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Refused {
    /// Datagrams that are no VXLAN.
    pub malformed: u64,
    /// Frames of segments that are not known here.
    pub unknown_segment: u64,
    /// Frames of servers that have no host of their segment.
    pub unknown_server: u64,
}

impl UnderlayCounters {
    /// Writes what a batch of frames from other servers led to; `given` are the frames that ports were given and their
    /// bytes.
    pub fn add_received(&self, given: (u64, u64), tally: &Tally, refused: &Refused) {
        let dropped = |reason: Reason| tally.dropped[reason as usize];
        add(&self.received, given.0);
        add(&self.received_bytes, given.1);
        add(&self.malformed, refused.malformed + dropped(Reason::Malformed));
        add(&self.unknown_segment, refused.unknown_segment);
        add(&self.unknown_server, refused.unknown_server);
        add(&self.unknown_destination, dropped(Reason::UnknownDestination));
        let not_carried = [Reason::Multicast, Reason::Ipv6, Reason::OtherProtocol, Reason::TooBig];
        add(&self.not_carried, not_carried.map(dropped).iter().sum());
    }

    /// Writes what was sent to other servers, and what the network below did not take.
    pub fn add_sent(&self, frames: u64, bytes: u64, failed: u64) {
        add(&self.sent, frames);
        add(&self.sent_bytes, bytes);
        add(&self.send_failed, failed);
    }

    /// All of them.
    pub fn read(&self) -> UnderlayStatistics {
        UnderlayStatistics {
            received: self.received.load(Relaxed),
            received_bytes: self.received_bytes.load(Relaxed),
            sent: self.sent.load(Relaxed),
            sent_bytes: self.sent_bytes.load(Relaxed),
            send_failed: self.send_failed.load(Relaxed),
            malformed: self.malformed.load(Relaxed),
            unknown_segment: self.unknown_segment.load(Relaxed),
            unknown_server: self.unknown_server.load(Relaxed),
            unknown_destination: self.unknown_destination.load(Relaxed),
            not_carried: self.not_carried.load(Relaxed),
        }
    }
}
