//! Frames put into datagrams and sent.
//!
//! ```text
//! arena    │ vxlan frame │ vxlan frame │ vxlan frame │ vxlan frame │ …
//! message  └──── to A from sender 3, segments of n bytes ──┘ └ to B ┘
//! ```
//!
//! Frames of one size to one end point from one sender become one message, which the kernel cuts (UDP_SEGMENT): its way
//! through the network stack is paid once for all of them. A frame that is to be cut is cut here, to the guest's own
//! segment size, so that its segments, too, are one message.
//!
//! Invariants: every datagram holds one whole frame with complete checksums; order within a flow is kept, because a flow
//! has one sender; a message that fails is counted and dropped, never kept for later.

use super::socket::SENDERS;
use super::system::{SendBatch, SendMessage};
use crate::packet::offload::Offload;
use crate::packet::segment::Segments;
use crate::packet::vxlan;
use crate::switch::frame::{LONGEST, Outgoing, SPARE};
use std::io;
use std::net::{SocketAddr, UdpSocket};

/// The most segments in one message, by the oldest kernels that know UDP_SEGMENT.
const SEGMENT_LIMIT: usize = 64;
/// The most bytes in one message: a UDP datagram over IPv4.
const MESSAGE_BYTES: usize = 65_507;
/// The most messages before they are sent.
const MESSAGE_LIMIT: usize = super::system::BATCH;
/// The most bytes before they are sent: room for the longest frame beside those of a burst.
const ARENA: usize = 512 << 10;
/// Room that one datagram can take.
const RESERVE: usize = vxlan::HEADER + LONGEST;

/// Where a frame goes.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// The tunnel end point.
    pub to: SocketAddr,
    /// The frame's segment.
    pub vni: u32,
}

/// Datagrams of one size to one end point, one behind the other in the arena.
#[derive(Debug, Clone, Copy)]
struct Message {
    to: SocketAddr,
    sender: usize,
    start: usize,
    len: usize,
    /// Bytes of each datagram but the last.
    segment: usize,
    frames: usize,
    /// Whether another datagram may follow.
    open: bool,
}

/// What was sent.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sent {
    /// Frames.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames that the network below did not take.
    pub failed: u64,
}

/// Datagrams on their way out.
#[derive(Debug)]
pub struct Outbound {
    senders: Vec<UdpSocket>,
    arena: Vec<u8>,
    messages: Vec<Message>,
    sent: Sent,
    /// Whether the kernel cuts messages.
    cuts: bool,
    batch: Box<SendBatch>,
}

impl Outbound {
    /// Nothing to send yet; of `senders` there is at least one.
    pub fn new(senders: Vec<UdpSocket>) -> Self {
        Self {
            senders,
            arena: Vec::with_capacity(ARENA),
            messages: Vec::with_capacity(MESSAGE_LIMIT),
            sent: Sent::default(),
            cuts: true,
            batch: SendBatch::new(),
        }
    }

    /// Stages `frame` for `target`, whatever is left to do on it done. `hash` is its flow's; `staged` is room to work in.
    pub fn push(
        &mut self,
        target: Target,
        hash: u32,
        frame: &Outgoing<'_>,
        offload: &Offload,
        staged: &mut Vec<u8>,
    ) {
        self.make_room();
        let Some(cut) = offload.segmentation else {
            let start = self.begin(target.vni);
            let body = self.arena.len();
            self.arena.extend_from_slice(&frame.head[SPARE..]);
            frame.rest.append_to(&mut self.arena);
            offload.complete_checksum(&mut self.arena[body..]);
            return self.end(target.to, hash, start);
        };
        frame.stage(staged);
        let whole = &staged[SPARE..];
        let Some(mut segments) = Segments::new(whole, cut) else { return };
        while let Some(segment) = segments.next_segment() {
            self.make_room();
            let start = self.begin(target.vni);
            self.arena.extend_from_slice(segment.header);
            self.arena.extend_from_slice(&whole[segment.payload]);
            self.end(target.to, hash, start);
        }
    }

    /// Sends what is staged if the longest datagram would not fit behind it. No datagram is under way.
    fn make_room(&mut self) {
        if self.arena.len() + RESERVE > ARENA {
            self.send();
            self.arena.clear();
        }
    }

    /// Begins a datagram; returns where.
    fn begin(&mut self, vni: u32) -> usize {
        let start = self.arena.len();
        self.arena.extend_from_slice(&vxlan::header(vni));
        start
    }

    /// Ends the datagram that began at `start`: adds it to the last message if it fits there, else to a new one.
    fn end(&mut self, to: SocketAddr, hash: u32, start: usize) {
        let sender = ((u64::from(hash) * self.senders.len() as u64) >> 32) as usize;
        let len = self.arena.len() - start;
        if let Some(last) = self.messages.last_mut() {
            let fits = last.open
                && (last.to, last.sender) == (to, sender)
                && len <= last.segment
                && last.frames < SEGMENT_LIMIT
                && last.len + len <= MESSAGE_BYTES;
            if fits {
                last.len += len;
                last.frames += 1;
                // Only the last datagram of a message may be shorter.
                last.open = len == last.segment;
                return;
            }
        }
        if self.messages.len() == MESSAGE_LIMIT {
            self.send();
        }
        let message = Message { to, sender, start, len, segment: len, frames: 1, open: self.cuts };
        self.messages.push(message);
    }

    /// Sends all that is staged; returns what was sent since the last time.
    #[inline]
    pub fn flush(&mut self) -> Sent {
        if !self.messages.is_empty() {
            self.send();
            self.arena.clear();
        }
        std::mem::take(&mut self.sent)
    }

    /// Sends all messages: one system call for each sender, and one more for each message that fails. Their bytes stay in
    /// the arena, behind which a datagram may be under way.
    fn send(&mut self) {
        let used = self.messages.iter().fold(0u32, |used, message| used | 1 << message.sender);
        for sender in (0..self.senders.len().min(SENDERS)).filter(|n| used & 1 << n != 0) {
            self.send_from(sender);
        }
        self.messages.clear();
    }

    fn send_from(&mut self, sender: usize) {
        let Self { senders, arena, messages, sent, cuts, batch } = self;
        let socket = &senders[sender];
        batch.clear();
        let own = || messages.iter().filter(|message| message.sender == sender);
        for message in own() {
            let segment = (message.frames > 1).then_some(message.segment as u16);
            let bytes = message.start..message.start + message.len;
            batch.add(&SendMessage { to: message.to, bytes, segment });
        }
        let mut first = 0;
        while first < batch.count() {
            match batch.send(socket, arena, first) {
                Ok(done) => {
                    own().skip(first).take(done).for_each(|message| count(sent, message));
                    first += done;
                }
                Err(error) => {
                    let Some(failed) = own().nth(first) else { return };
                    // A device that cannot complete checksums takes one datagram at a time.
                    if error.raw_os_error() == Some(libc::EIO) {
                        *cuts = false;
                    }
                    let bytes = &arena[failed.start..failed.start + failed.len];
                    retry(socket, failed, bytes, &error, sent);
                    first += 1;
                }
            }
        }
    }
}

fn count(sent: &mut Sent, message: &Message) {
    sent.frames += message.frames as u64;
    sent.bytes += (message.len - message.frames * vxlan::HEADER) as u64;
}

/// Sends the datagrams of a message that failed one by one, where that can help.
#[cold]
fn retry(socket: &UdpSocket, message: &Message, bytes: &[u8], error: &io::Error, sent: &mut Sent) {
    let helps = matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE));
    for datagram in bytes.chunks(message.segment.max(1)) {
        if message.frames > 1 && helps && socket.send_to(datagram, message.to).is_ok() {
            sent.frames += 1;
            sent.bytes += (datagram.len() - vxlan::HEADER) as u64;
        } else {
            sent.failed += 1;
        }
    }
}
