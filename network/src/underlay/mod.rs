//! The underlay: what carries encapsulated frames between servers. A port kind of its own, beside guests' ports.
//!
//! Encapsulation ([`crate::packet::vxlan`]) is apart from what carries it: here UDP sockets ([`socket`]); raw Ethernet
//! with outer headers written by the engine can come beside it. [`outbound`] puts frames into datagrams and sends them in
//! few system calls, [`inbound`] receives them in one.
//!
//! RFC 7348 wants the source port to come from a hash of the inner flow, so that the network below spreads flows over its
//! paths. A UDP socket has one source port, a raw socket would need more rights and could not leave segmentation and
//! checksums to the kernel: so there are a few sending sockets ([`socket::SENDERS`]), and a flow's hash chooses one. All
//! datagrams arrive at one socket.
//!
//! Invariants: an end point never fragments, nor lets the kernel do it (RFC 7348, 4.3); a frame is taken from another
//! server only if it is of a segment that has hosts there. The worker owns all of it.

pub mod inbound;
pub mod outbound;
pub mod socket;
pub mod system;

use crate::engine::flow::FlowTable;
use crate::packet::offload::Offload;
use crate::switch::counters::UnderlayCounters;
use crate::switch::frame::Outgoing;
use inbound::Inbound;
use outbound::Outbound;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

pub use inbound::Batch;
pub use outbound::Target;
pub use socket::{Sockets, UnderlayError};

/// Turns of the worker between two looks at sockets that had nothing: a look is a system call.
const QUIET_TURNS: u32 = 8;

/// The underlay as its worker has it.
#[derive(Debug)]
pub struct Underlay {
    /// What comes.
    pub inbound: Inbound,
    outbound: Outbound,
    /// The flows of what comes.
    pub flows: FlowTable,
    /// The counters, which the driver reads.
    pub counters: Arc<UnderlayCounters>,
    turns: u32,
}

impl Underlay {
    /// An underlay on these sockets. On the worker's thread.
    pub fn new(sockets: Sockets, flows: FlowTable, counters: Arc<UnderlayCounters>) -> Self {
        let Sockets { own: _, listener, senders } = sockets;
        Self {
            inbound: Inbound::new(listener),
            outbound: Outbound::new(senders),
            flows,
            counters,
            turns: 0,
        }
    }

    /// What wakes the worker.
    pub fn wakes(&self) -> BorrowedFd<'_> {
        self.inbound.socket().as_fd()
    }

    /// Whether it is time to look at the sockets.
    #[inline]
    pub fn is_due(&mut self) -> bool {
        self.turns = self.turns.wrapping_add(1);
        self.inbound.had_some() || self.turns.is_multiple_of(QUIET_TURNS)
    }

    /// Looks at the sockets at the next turn: the worker is about to sleep, or was woken.
    pub fn look_soon(&mut self) {
        self.turns = QUIET_TURNS - 1;
    }

    /// Stages a frame for another server; see [`Outbound::push`].
    pub fn push(
        &mut self,
        target: Target,
        hash: u32,
        frame: &Outgoing<'_>,
        offload: &Offload,
        staged: &mut Vec<u8>,
    ) {
        self.outbound.push(target, hash, frame, offload, staged);
    }

    /// Sends what is staged; returns how many frames the network below did not take since the last time.
    #[inline]
    pub fn flush(&mut self) -> u64 {
        let sent = self.outbound.flush();
        self.counters.add_sent(sent.frames, sent.bytes, sent.failed);
        sent.failed
    }
}

/// A tunnel end point's address from text.
///
/// # Errors
/// An address that no datagram can go to.
pub fn check_endpoint(endpoint: SocketAddr) -> Result<(), &'static str> {
    let ip = endpoint.ip();
    if endpoint.port() == 0 {
        return Err("has no port");
    }
    if ip.is_unspecified() || ip.is_multicast() {
        return Err("is no address of one server");
    }
    Ok(())
}
