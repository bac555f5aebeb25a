//! What goes into a session and what comes out of it. `F` is a descriptor: a shared `OwnedFd` in production, a number
//! in a simulation.

use super::codec::{Header, VringAddr};
use crate::memory::RegionDescriptor;

/// What a device offers to a front end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Virtio features, without those of vhost-user itself (PROTOCOL_FEATURES and LOG_ALL are added).
    pub features: u64,
    /// The configuration space.
    pub config: Vec<u8>,
    /// Which bytes of it the driver may write.
    pub config_writable: std::ops::Range<u32>,
    /// Queues.
    pub queues: u16,
    /// The largest queue in descriptors; a power of two.
    pub max_queue_size: u16,
    /// Whether the device wants an in-flight record.
    pub inflight: bool,
    /// Whether the front end may tell its MTU (network devices).
    pub mtu: bool,
}

/// A region and the descriptor that backs it. The id is unique within the session: the same id is the same mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedRegion<F> {
    /// Names the mapping.
    pub id: u64,
    /// Where it is.
    pub region: RegionDescriptor,
    /// Its file.
    pub fd: F,
    /// How often the front end has added it, and not removed it: QEMU before 8.0 adds each region once for every pair
    /// of queues of a NIC.
    pub claims: u32,
}

/// A part of a file to map: the log or the in-flight record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedArea<F> {
    /// Its file.
    pub fd: F,
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its size in bytes.
    pub size: u64,
}

/// All that is needed to build a queue. Addresses are the front end's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RingSetup<F> {
    /// The queue's index.
    pub index: u16,
    /// Descriptors.
    pub size: u16,
    /// Addresses, and whether the used ring is logged.
    pub addr: VringAddr,
    /// The next available entry to take.
    pub base: u16,
    /// Acknowledged virtio features.
    pub features: u64,
    /// Kick eventfd; none means polling.
    pub kick: Option<F>,
    /// Call eventfd.
    pub call: Option<F>,
    /// Error eventfd.
    pub error: Option<F>,
}

/// A change of a running ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change<F> {
    /// Another call eventfd.
    Call(Option<F>),
    /// Another error eventfd.
    Error(Option<F>),
    /// Whether writes are logged, and the guest address of the used ring in the log if that is logged too. The log is
    /// the one that was mapped last.
    Log {
        /// Whether buffers are logged.
        on: bool,
        /// The used ring's address in the log.
        used: Option<u64>,
    },
}

/// What happens to a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<F> {
    /// A whole message came. Only given while [`super::Session::wants_message`].
    Message {
        /// Its header.
        header: Header,
        /// Its payload, as long as the header says.
        payload: Vec<u8>,
        /// The descriptors that came with it.
        fds: Vec<F>,
    },
    /// A ring that was told to stop stands still; the next available entry to take.
    RingStopped {
        /// The queue.
        index: u16,
        /// The next available entry.
        base: u16,
    },
    /// The last action that has an outcome was done, or could not be.
    Done(Result<(), String>),
    /// [`Action::MakeInflight`] was done: the record's file and size, or why not.
    InflightMade(Result<(F, u64), String>),
    /// A queue or the memory broke: why.
    Fault(String),
    /// The front end closed the connection.
    Closed,
    /// The device's configuration space changed.
    ConfigChanged,
    /// Stop all rings and take no message, so that the session can be saved.
    Suspend,
    /// Go on after all: the rings run again.
    Resume,
}

/// What the shell does for a session, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action<F> {
    /// Send these bytes and descriptors to the front end.
    Send(Vec<u8>, Vec<F>),
    /// Make this the memory. Answered by [`Event::Done`].
    MapMemory(Vec<SharedRegion<F>>),
    /// Map the dirty log, or forget it. Answered by [`Event::Done`].
    MapLog(Option<SharedArea<F>>),
    /// Make an in-flight record. Answered by [`Event::InflightMade`].
    MakeInflight {
        /// Queues.
        queues: u16,
        /// Descriptors of each.
        queue_size: u16,
    },
    /// Map the in-flight record, for so many queues of so many descriptors, or forget it. Answered by [`Event::Done`].
    MapInflight(Option<(SharedArea<F>, u16, u16)>),
    /// Start a ring. The worker looks at its available ring at once, whatever was kicked before.
    StartRing(RingSetup<F>),
    /// Stop a ring. Answered by [`Event::RingStopped`] when it stands still.
    StopRing(u16),
    /// Change a running ring.
    ChangeRing(u16, Change<F>),
    /// The features that the driver acknowledged.
    Features(u64),
    /// The driver wrote these bytes at this offset of the configuration space.
    WriteConfig(u32, Vec<u8>),
    /// The front end told its MTU.
    Mtu(u64),
    /// Send these bytes on the channel for requests of the back end.
    SendRequest(F, Vec<u8>),
    /// The session is over; the reason is for the operator. All its rings stop, and the connection is closed. Always
    /// the last of its step.
    End(String),
}
