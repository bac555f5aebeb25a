//! What a driver can do wrong with a ring.

/// Why a queue gives nothing more. Each is the driver's or the front end's fault, and ends the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// Not a power of two, or 0, or above [`super::MAX_QUEUE_SIZE`].
    #[error("a queue of {0} descriptors: it must be a power of two up to 32768")]
    Size(u16),
    /// A part of the ring is not aligned as virtio 1.2, section 2.7 demands.
    #[error("the {area} area at {addr:#x} is not aligned to {align} bytes")]
    Alignment {
        /// Which part.
        area: &'static str,
        /// Its guest address.
        addr: u64,
        /// What it must be a multiple of.
        align: u64,
    },
    /// A part of the ring is not inside one memory region.
    #[error("the {area} area at {addr:#x} is not inside the shared memory")]
    Area {
        /// Which part.
        area: &'static str,
        /// Its guest address.
        addr: u64,
    },
    /// avail.idx runs ahead of what the driver can have made available.
    #[error(
        "avail.idx is {available}, {ahead} ahead of the device, with {outstanding} of {size} taken"
    )]
    AvailableIndex {
        /// What the driver wrote.
        available: u16,
        /// How far it is ahead of what was taken.
        ahead: u16,
        /// Chains taken and not published.
        outstanding: u16,
        /// Descriptors of the queue.
        size: u16,
    },
    /// A descriptor index beyond its table.
    #[error("descriptor index {index} in a table of {size}")]
    DescriptorIndex {
        /// The index.
        index: u16,
        /// The table's size.
        size: u16,
    },
    /// A chain with more descriptors than its tables have: it loops.
    #[error("the chain at head {head} is a loop or too long")]
    ChainLength {
        /// The chain.
        head: u16,
    },
    /// A readable descriptor behind a writable one.
    #[error("the chain at head {head} has a readable descriptor behind a writable one")]
    Order {
        /// The chain.
        head: u16,
    },
    /// An indirect table inside an indirect table, with a next flag, or although not negotiated.
    #[error("the chain at head {head} has an indirect descriptor where none is allowed")]
    Indirect {
        /// The chain.
        head: u16,
    },
    /// An indirect table whose length is no whole number of descriptors, or 0, or too large.
    #[error("the chain at head {head} has an indirect table of {len} bytes")]
    IndirectLength {
        /// The chain.
        head: u16,
        /// The table's length in bytes.
        len: u32,
    },
    /// A buffer outside the shared memory.
    #[error("the chain at head {head} has {len} bytes at {addr:#x}, outside the shared memory")]
    Address {
        /// The chain.
        head: u16,
        /// The buffer's guest address.
        addr: u64,
        /// Its length in bytes.
        len: u32,
    },
    /// A chain of more than 4 GiB.
    #[error("the chain at head {head} has more than 4 GiB")]
    ChainBytes {
        /// The chain.
        head: u16,
    },
    /// The in-flight record does not fit this queue.
    #[error("the in-flight record is for {record} descriptors, the queue has {size}")]
    Record {
        /// Descriptors of the record.
        record: u16,
        /// Descriptors of the queue.
        size: u16,
    },
    /// The in-flight record is of a version that this release does not know.
    #[error("the in-flight record has version {0}, this release knows version 1")]
    RecordVersion(u16),
    /// A descriptor for notification that could block whoever uses it.
    #[error("the {0} descriptor is not an eventfd")]
    Notifier(&'static str),
    /// A state that no queue of this memory can have.
    #[error("the queue's state is not one that a queue can have")]
    State,
    /// The front end took shared memory away.
    #[error("the front end shrank its shared memory")]
    MemoryGone,
}
