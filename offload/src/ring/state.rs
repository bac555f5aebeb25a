//! The state of a queue as it travels.

/// The payload's kind.
pub const KIND: &str = "split-queue";
/// The newest layout that this release writes and reads.
pub const VERSION: u32 = 1;

/// A queue at rest: all that its successor needs beside the memory, the eventfds and the in-flight record.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct QueueState {
    /// Descriptors.
    #[prost(uint32, tag = "1")]
    pub size: u32,
    /// Guest address of the descriptor table.
    #[prost(uint64, tag = "2")]
    pub descriptors: u64,
    /// Guest address of the available ring.
    #[prost(uint64, tag = "3")]
    pub available: u64,
    /// Guest address of the used ring.
    #[prost(uint64, tag = "4")]
    pub used: u64,
    /// The next entry of the available ring to take.
    #[prost(uint32, tag = "5")]
    pub last_available: u32,
    /// used.idx as last published.
    #[prost(uint32, tag = "6")]
    pub last_used: u32,
    /// Chains taken and not published: 0, unless an in-flight record names them.
    #[prost(uint32, tag = "7")]
    pub outstanding: u32,
    /// The virtio features that were negotiated.
    #[prost(uint64, tag = "8")]
    pub features: u64,
}
