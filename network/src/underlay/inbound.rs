//! Datagrams received and unwrapped.
//!
//! Invariant: a frame is handed on only if its segment is known here and has hosts on the server that sent it; what is
//! refused is counted. One datagram is looked at after the other in the order in which they came.

use super::system::{RECEIVED, ReceiveBatch};
use crate::engine::view::{SegmentView, View};
use crate::packet::vxlan;
use crate::switch::BATCH;
use crate::switch::counters::Refused;
use std::net::UdpSocket;
use std::sync::Arc;

/// Where datagrams arrive.
#[derive(Debug)]
pub struct Inbound {
    socket: UdpSocket,
    received: Box<ReceiveBatch>,
    had_some: bool,
}

impl Inbound {
    /// Receives from `socket`.
    pub fn new(socket: UdpSocket) -> Self {
        Self { socket, received: ReceiveBatch::new(), had_some: false }
    }

    /// The socket.
    pub fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    /// Whether there was something the last time.
    pub fn had_some(&self) -> bool {
        self.had_some
    }

    /// Receives what is there: one system call.
    pub fn receive(&mut self) -> Datagrams<'_> {
        let messages = self.received.receive(&self.socket);
        self.had_some = messages > 0;
        debug_assert!(messages <= RECEIVED);
        Datagrams { received: &self.received, message: 0, offset: 0 }
    }
}

/// Datagrams that were received and not yet looked at.
#[derive(Debug)]
pub struct Datagrams<'a> {
    received: &'a ReceiveBatch,
    message: usize,
    offset: usize,
}

/// Frames of one segment.
#[derive(Debug)]
pub struct Batch<'a> {
    frames: [&'a [u8]; BATCH],
    len: usize,
}

impl<'a> Batch<'a> {
    /// How many frames there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Frame number `index`; empty past the end.
    pub fn frame(&self, index: usize) -> &'a [u8] {
        self.frames[..self.len].get(index).copied().unwrap_or(&[])
    }
}

/// One datagram that is not refused.
struct Unwrapped<'a> {
    vni: u32,
    frame: &'a [u8],
}

impl<'a> Datagrams<'a> {
    /// The next frames, all of one segment that `view` knows.
    pub fn next_batch(
        &mut self,
        view: &View,
        refused: &mut Refused,
    ) -> Option<(Arc<SegmentView>, Batch<'a>)> {
        let mut batch = Batch { frames: [&[]; BATCH], len: 0 };
        let mut segment: Option<&Arc<SegmentView>> = None;
        while batch.len < BATCH {
            let before = (self.message, self.offset);
            let Some(unwrapped) = self.next_datagram(view, refused) else { break };
            if segment.is_some_and(|segment| segment.vni != unwrapped.vni) {
                // It begins the next batch.
                (self.message, self.offset) = before;
                break;
            }
            segment = view.segments.get(&unwrapped.vni);
            batch.frames[batch.len] = unwrapped.frame;
            batch.len += 1;
        }
        Some((Arc::clone(segment?), batch))
    }

    /// The next datagram that is not refused.
    fn next_datagram(&mut self, view: &View, refused: &mut Refused) -> Option<Unwrapped<'a>> {
        loop {
            let message = self.received.message(self.message)?;
            let rest = message.bytes.get(self.offset..).unwrap_or(&[]);
            if rest.is_empty() {
                // An empty datagram, or one that did not fit, is no VXLAN.
                refused.malformed += u64::from(self.offset == 0);
                (self.message, self.offset) = (self.message + 1, 0);
                continue;
            }
            let datagram = &rest[..message.segment.min(rest.len())];
            self.offset += datagram.len();
            if self.offset >= message.bytes.len() {
                (self.message, self.offset) = (self.message + 1, 0);
            }
            let Some((vni, frame)) = vxlan::decapsulate(datagram) else {
                refused.malformed += 1;
                continue;
            };
            match view.segments.get(&vni) {
                None => refused.unknown_segment += 1,
                Some(segment) if !message.from.is_some_and(|ip| segment.has_server(ip)) => {
                    refused.unknown_server += 1;
                }
                Some(_) => return Some(Unwrapped { vni, frame }),
            }
        }
    }
}
