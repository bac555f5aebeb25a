//! The state of a session as it travels. Descriptors travel beside it; a field named `…_fd` is an index into their
//! list plus one, 0 is none.

/// A vhost-user session at rest.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SessionState {
    /// Virtio features that the front end acknowledged.
    #[prost(uint64, optional, tag = "1")]
    pub features: Option<u64>,
    /// Protocol features that it acknowledged.
    #[prost(uint64, tag = "2")]
    pub protocol_features: u64,
    /// The memory table.
    #[prost(message, repeated, tag = "3")]
    pub regions: Vec<RegionState>,
    /// The rings, in order.
    #[prost(message, repeated, tag = "4")]
    pub vrings: Vec<VringStateRecord>,
}

/// A memory region of a session.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct RegionState {
    /// Guest address.
    #[prost(uint64, tag = "1")]
    pub guest_addr: u64,
}

/// A ring of a session.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct VringStateRecord {
    /// Descriptors.
    #[prost(uint32, tag = "1")]
    pub size: u32,
}
