//! The words between [`FrontSession`](super::FrontSession) and the shell that moves its bytes.
//!
//! The session never sees a descriptor: it names one ([`Descriptor`]) and the shell sends it. What the driver of the
//! device asked for ([`Activation`], [`Region`], [`LogArea`]) is checked when it is made, so that the session can
//! take it as it is.

use crate::vhost_user::codec::{Header, Request};
use std::time::Duration;

/// The most rings one device may have: 32 pairs of a NIC and its control queue, or 64 queues of a disk.
pub const RINGS_LIMIT: u16 = 128;
/// The most entries a split ring may have (virtio 1.2, 2.7).
pub const RING_SIZE_LIMIT: u16 = 32768;
/// The most bytes of configuration space a front end may read: what QEMU's back ends give at most.
pub const CONFIG_LIMIT: u32 = 256;
/// The most regions of guest memory a session tells its back end.
pub const REGIONS_LIMIT: usize = crate::memory::MAX_REGIONS;

/// What a front end is, fixed for its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrontConfig {
    /// Virtio feature bits that this front end can pass on to a driver; others of the back end are not shown.
    pub features: u64,
    /// Bytes of configuration space read from the back end, 0 to 256. Back ends of QEMU before 8.0 refuse
    /// more than 60 for a disk.
    pub config_len: u32,
    /// Rings the device must have at least; a back end with fewer is refused.
    pub rings: u16,
    /// Whether the device uses buffers in the order in which they were made available, as NICs do. The used index
    /// then says all about a ring whose back end died. Otherwise only an in-flight record does, and a back
    /// end that comes back without one is refused rather than guessed at.
    pub in_order: bool,
    /// Whether a channel for requests of the back end is offered: it tells changes of the configuration space.
    pub channel: bool,
    /// How long the back end may take for any answer before it counts as dead.
    pub answer_within: Duration,
}

impl Default for FrontConfig {
    fn default() -> Self {
        Self {
            features: 0,
            config_len: 0,
            rings: 1,
            in_order: false,
            channel: false,
            answer_within: Duration::from_secs(10),
        }
    }
}

/// One split ring of an [`Activation`]. Addresses are guest addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ring {
    /// The queue's index in the device.
    pub index: u16,
    /// Entries: a power of two.
    pub size: u16,
    /// The descriptor table, aligned to 16.
    pub desc: u64,
    /// The available ring, aligned to 2.
    pub avail: u64,
    /// The used ring, aligned to 4.
    pub used: u64,
    /// The available index at which the back end begins: 0 for a fresh ring.
    pub base: u16,
    /// Whether the back end shall process the ring at once (a NIC enables pairs of queues later).
    pub enabled: bool,
}

/// What a driver set up when it said DRIVER_OK.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Activation {
    features: u64,
    rings: Vec<Ring>,
}

/// Why an activation is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ActivationError {
    /// No ring, or too many.
    #[error("a device is activated with 1 to {RINGS_LIMIT} rings, not {0}")]
    RingCount(usize),
    /// A ring twice, or an index out of range.
    #[error("ring {0} is given twice or its index is not below {RINGS_LIMIT}")]
    RingIndex(u16),
    /// Not a power of two.
    #[error("ring {index} has {size} entries; a power of two up to {RING_SIZE_LIMIT} is needed")]
    RingSize {
        /// The ring.
        index: u16,
        /// Its size.
        size: u16,
    },
    /// A part of the ring at an address the specification forbids.
    #[error("ring {0} has a part that is not aligned or ends beyond the address space")]
    RingAddress(u16),
}

impl Activation {
    /// Checks what the driver set up: `features` it acknowledged, and its rings.
    ///
    /// # Errors
    /// What virtio 1.2, 2.7 forbids: see [`ActivationError`].
    pub fn new(features: u64, rings: Vec<Ring>) -> Result<Self, ActivationError> {
        if rings.is_empty() || rings.len() > usize::from(RINGS_LIMIT) {
            return Err(ActivationError::RingCount(rings.len()));
        }
        let mut seen = [false; RINGS_LIMIT as usize];
        for ring in &rings {
            match seen.get_mut(usize::from(ring.index)) {
                Some(seen) if !*seen => *seen = true,
                _ => return Err(ActivationError::RingIndex(ring.index)),
            }
            ring.check()?;
        }
        Ok(Self { features, rings })
    }

    /// The feature bits the driver acknowledged.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.features
    }

    /// The rings, each index once.
    #[must_use]
    pub fn rings(&self) -> &[Ring] {
        &self.rings
    }

    pub(super) fn ring_mut(&mut self, index: u16) -> Option<&mut Ring> {
        self.rings.iter_mut().find(|ring| ring.index == index)
    }

    /// Queues and entries that an in-flight record for this activation must cover.
    pub(super) fn record_shape(&self) -> (u16, u16) {
        let queues = self.rings.iter().map(|ring| ring.index + 1).max().unwrap_or(0);
        (queues, self.rings.iter().map(|ring| ring.size).max().unwrap_or(0))
    }
}

impl Ring {
    fn check(&self) -> Result<(), ActivationError> {
        if !self.size.is_power_of_two() || self.size > RING_SIZE_LIMIT {
            return Err(ActivationError::RingSize { index: self.index, size: self.size });
        }
        let size = u64::from(self.size);
        let parts = [
            (self.desc, 16, size * 16),
            (self.avail, 2, size * 2 + 6),
            (self.used, 4, size * 8 + 6),
        ];
        for (address, align, len) in parts {
            if address % align != 0 || address.checked_add(len).is_none() {
                return Err(ActivationError::RingAddress(self.index));
            }
        }
        Ok(())
    }
}

/// A region of guest memory, backed by a descriptor that the shell holds under the name `slot`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// The shell's name for the region; the same slot is always the same memory.
    pub slot: u32,
    /// Its guest address.
    pub guest_addr: u64,
    /// Its size in bytes.
    pub size: u64,
    /// Where it begins in its descriptor.
    pub mmap_offset: u64,
}

/// Where the back end marks the pages it writes: one bit per 4 KiB of guest address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogArea {
    /// Size in bytes.
    pub size: u64,
    /// Where it begins in its descriptor.
    pub offset: u64,
}

/// A back end's in-flight record, whose descriptor the shell holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Size in bytes.
    pub size: u64,
    /// Where it begins in its descriptor.
    pub offset: u64,
    /// Queues it covers.
    pub queues: u16,
    /// Entries of each.
    pub ring_size: u16,
}

/// What a back end offers, cut to what the front end can pass on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Probe {
    /// Virtio feature bits for the driver.
    pub features: u64,
    /// Protocol feature bits in force between the two sides.
    pub protocol: u64,
    /// Rings the back end has.
    pub rings: u16,
    /// The configuration space as the back end gave it; empty if it gives none.
    pub config: Vec<u8>,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The shell begins, or the session was restored without its connection.
    Begin,
    /// The connection stands. With it the used index of each ring of the activation in force, read now: where
    /// the back end before this one died, the new one goes on from there.
    Connected {
        /// `(ring, used index)`.
        used: Vec<(u16, u16)>,
    },
    /// Nobody listens yet.
    ConnectFailed,
    /// The connection is gone, or its bytes make no message.
    Disconnected,
    /// A whole message came.
    Message(Incoming),
    /// A whole message came on the back end's channel.
    ChannelMessage(Incoming),
    /// A deadline passed that an [`Action::Arm`] had set.
    Deadline(Timer),
    /// The driver is ready. Ends a former activation first, if it was not.
    Activate(Activation),
    /// The driver is done, or the device is paused: stop the rings, and answer with [`Action::Stopped`].
    Deactivate {
        /// Whether the device will go on from here (pause, hand-over). Otherwise it was reset, and requests in
        /// flight are forgotten.
        resumable: bool,
        /// How long the back end may take to stop before the connection is cut.
        within: Duration,
    },
    /// The driver wants a ring processed or not, at run time.
    EnableRing {
        /// The ring.
        index: u16,
        /// Whether to process it.
        enabled: bool,
    },
    /// The shell has another call eventfd for a ring.
    CallReplaced {
        /// The ring.
        index: u16,
    },
    /// All regions of guest memory, as they shall be from now on.
    Memory(Vec<Region>),
    /// Where to log written pages from now on, if anywhere.
    Log(Option<LogArea>),
}

/// What the shell shall do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Try to connect, once; answer with [`Event::Connected`] or [`Event::ConnectFailed`].
    Connect,
    /// Close the connection and the channel; no [`Event::Disconnected`] follows.
    Disconnect,
    /// Send this message with its descriptors.
    Send(Outgoing),
    /// Send these bytes on the back end's channel.
    SendOnChannel(Vec<u8>),
    /// Send [`Event::Deadline`] after this time; replaces a deadline of the same timer.
    Arm(Timer, Duration),
    /// Forget the deadline.
    Disarm(Timer),
    /// The back end has been asked what it is. Comes with each connection; a changed configuration space is a
    /// configuration change for the driver.
    Probed(Probe),
    /// The configuration space changed at run time.
    ConfigChanged(Vec<u8>),
    /// Keep the descriptor that came with the message just handled: it is the in-flight record.
    KeepRecord,
    /// Drop the in-flight record's descriptor.
    DropRecord,
    /// Every ring is set up and as enabled as asked for.
    Running,
    /// Write the ring's kick *and* call eventfd once: a notification may have died with a back end.
    Nudge {
        /// The ring.
        index: u16,
    },
    /// The rings stand still: for each the available index at which to go on, or `None` if the back end could
    /// not say; it is the ring's used index then.
    Stopped {
        /// `(ring, base)`.
        bases: Vec<(u16, Option<u16>)>,
    },
    /// No back end uses regions any more that a former [`Event::Memory`] had and the last one has not. Comes once for
    /// the last of several [`Event::Memory`] that came in between.
    MemoryInForce,
    /// The back end logs (or has ceased to log) as the last [`Event::Log`] said. Without a back end nothing is
    /// written, so it comes at once.
    LogInForce,
    /// No back end uses former call eventfds of this ring any more.
    CallInForce {
        /// The ring.
        index: u16,
    },
    /// The back end is lost, or was refused; connecting begins anew by itself.
    Down(Down),
}

/// Why a back end was left.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Down {
    /// It closed the connection.
    #[error("the back end closed the connection")]
    Closed,
    /// It took too long.
    #[error("the back end did not answer {0} in time")]
    Late(&'static str),
    /// It offers less than the driver relies on.
    #[error(
        "the back end lacks virtio features {missing:#x} that the driver has acknowledged; start the release that offered them"
    )]
    Features {
        /// The bits it lacks.
        missing: u64,
    },
    /// It has too few rings.
    #[error("the back end has {has} rings, the device needs {needs}")]
    Rings {
        /// Rings it has.
        has: u64,
        /// Rings the device needs.
        needs: u16,
    },
    /// It takes too few memory regions.
    #[error("the back end takes {takes} memory regions, the guest has {needs}")]
    Regions {
        /// Regions it takes.
        takes: u64,
        /// Regions there are.
        needs: usize,
    },
    /// Requests were in flight in a back end that died, and this one cannot say what became of them.
    #[error(
        "the back end has no in-flight record, and requests were in flight when the last one died; reset the device in the guest"
    )]
    NoRecord,
    /// All memory was taken from a device whose rings lie in it.
    #[error("the guest's memory was taken away while the device was set up")]
    NoMemory,
    /// It cannot log written pages.
    #[error("the back end cannot log the pages it writes")]
    NoLog,
    /// It answered with an error.
    #[error("the back end refused {0}")]
    Refused(&'static str),
    /// It sent what no back end sends.
    #[error("the back end broke the protocol: {0}")]
    Protocol(&'static str),
}

/// A deadline of the session. There is one of each at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timer {
    /// For the next try to connect, or the next answer.
    Link,
    /// For the rings to stop.
    Stop,
}

/// A descriptor that goes with a message, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Descriptor {
    /// The memory of the region with this slot.
    Memory(u32),
    /// The kick eventfd of this ring.
    Kick(u16),
    /// The call eventfd of this ring.
    Call(u16),
    /// The in-flight record.
    Record,
    /// The dirty log.
    Log,
    /// One end of a fresh stream socket pair whose other end the shell reads: the back end's channel.
    Channel,
}

/// A message to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// The request.
    pub request: Request,
    /// Whether it asks for an acknowledgement.
    pub need_reply: bool,
    /// Descriptors that go with it, in this order.
    pub descriptors: Vec<Descriptor>,
}

impl Outgoing {
    /// Header and payload, as they go over the socket.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        self.request.encode(self.need_reply)
    }
}

/// A message that came, and how many descriptors came with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incoming {
    /// Its header.
    pub header: Header,
    /// Its payload, as long as the header says.
    pub payload: Vec<u8>,
    /// Descriptors that came with it; the shell holds them until the step is done.
    pub descriptors: usize,
}
