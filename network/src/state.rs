//! The state of the network's parts as it travels: into the state directory, to a new process, to another server.
//!
//! These types are apart from those that run: numbered fields, never reused. Whoever reads them treats them as
//! untrusted. Written and read by [`crate::service`], [`crate::tables`] and [`crate::engine`].

/// A port: what was asked for, or that it was deleted.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct PortState {
    /// The port's id.
    #[prost(string, tag = "1")]
    pub id: String,
    /// The highest epoch that it has seen.
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    /// Whether only the epoch is remembered, so that a lower one is still refused.
    #[prost(bool, tag = "3")]
    pub deleted: bool,
    /// Where the process listens.
    #[prost(bytes = "vec", tag = "4")]
    pub socket: Vec<u8>,
    /// The VXLAN network identifier of its segment.
    #[prost(uint32, tag = "5")]
    pub segment: u32,
    /// Its hardware address; first byte on the wire lowest.
    #[prost(uint64, tag = "6")]
    pub mac: u64,
    /// Its addresses, as numbers.
    #[prost(fixed32, repeated, tag = "7")]
    pub ipv4: Vec<u32>,
    /// Pairs of queues offered.
    #[prost(uint32, tag = "8")]
    pub queue_pairs: u32,
    /// Whether the front end's memory must be sealed against shrinking.
    #[prost(bool, tag = "9")]
    pub require_sealed: bool,
    /// When it was deleted, in seconds since 1970.
    #[prost(uint64, tag = "10")]
    pub deleted_at: u64,
    /// Packets a second, each direction, if they are limited.
    #[prost(uint64, optional, tag = "11")]
    pub packets_per_second: Option<u64>,
    /// Bits a second, each direction, if they are limited.
    #[prost(uint64, optional, tag = "12")]
    pub bits_per_second: Option<u64>,
}

/// What a port's guest reads of itself.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct MetadataState {
    /// The port's id.
    #[prost(string, tag = "1")]
    pub port: String,
    /// Grows with every change.
    #[prost(uint64, tag = "2")]
    pub generation: u64,
    /// Whether the guest needs a token.
    #[prost(bool, tag = "3")]
    pub tokens_required: bool,
    /// The documents.
    #[prost(message, repeated, tag = "4")]
    pub documents: Vec<DocumentState>,
}

/// A document of a port's metadata.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct DocumentState {
    /// Its path.
    #[prost(string, tag = "1")]
    pub path: String,
    /// Its content.
    #[prost(bytes = "vec", tag = "2")]
    pub bytes: Vec<u8>,
}

/// What the card knows about a segment.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SegmentState {
    /// The VXLAN network identifier.
    #[prost(uint32, tag = "1")]
    pub vni: u32,
    /// Grows with every change.
    #[prost(uint64, tag = "2")]
    pub generation: u64,
    /// The network address.
    #[prost(fixed32, tag = "3")]
    pub network: u32,
    /// Its prefix length in bits.
    #[prost(uint32, tag = "4")]
    pub prefix_len: u32,
    /// The gateway, if there is one.
    #[prost(fixed32, optional, tag = "5")]
    pub gateway: Option<u32>,
    /// DNS servers.
    #[prost(fixed32, repeated, tag = "6")]
    pub dns: Vec<u32>,
    /// The guests' MTU in bytes.
    #[prost(uint32, tag = "7")]
    pub mtu: u32,
    /// Addresses on other servers.
    #[prost(message, repeated, tag = "8")]
    pub peers: Vec<PeerState>,
    /// The names that the card answers DNS for, if it does.
    #[prost(message, optional, tag = "9")]
    pub names: Option<NamesState>,
}

/// The names of a segment's hosts.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct NamesState {
    /// Where the card answers.
    #[prost(fixed32, repeated, tag = "1")]
    pub servers: Vec<u32>,
    /// The domain of the names, if they have one.
    #[prost(string, optional, tag = "2")]
    pub domain: Option<String>,
    /// Each name with an address.
    #[prost(message, repeated, tag = "3")]
    pub hosts: Vec<NamedHostState>,
}

/// A name and an address of a host.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct NamedHostState {
    /// Its name, without the domain.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its address.
    #[prost(fixed32, tag = "2")]
    pub ipv4: u32,
}

/// One address of a segment on another server.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct PeerState {
    /// Its hardware address; first byte on the wire lowest.
    #[prost(uint64, tag = "1")]
    pub mac: u64,
    /// Its address.
    #[prost(fixed32, tag = "2")]
    pub ipv4: u32,
    /// Its server's tunnel end point, as text.
    #[prost(string, tag = "3")]
    pub endpoint: String,
}

/// The leases of a port.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct LeasesState {
    /// Each lease.
    #[prost(message, repeated, tag = "1")]
    pub leases: Vec<LeaseState>,
}

/// One lease.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct LeaseState {
    /// The address.
    #[prost(fixed32, tag = "1")]
    pub address: u32,
    /// The guest's hardware address; first byte on the wire lowest.
    #[prost(uint64, tag = "2")]
    pub mac: u64,
    /// When it was given, in seconds since 1970.
    #[prost(uint64, tag = "3")]
    pub given: u64,
    /// When it ends, in seconds since 1970.
    #[prost(uint64, tag = "4")]
    pub until: u64,
}

/// The flows of a port.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct FlowsState {
    /// Each flow.
    #[prost(message, repeated, tag = "1")]
    pub flows: Vec<FlowState>,
}

/// One flow. What is done with its packets is not part of it: the new place decides anew.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct FlowState {
    /// The key's four words.
    #[prost(fixed64, repeated, tag = "1")]
    pub key: Vec<u64>,
    /// Packets seen.
    #[prost(uint64, tag = "2")]
    pub packets: u64,
}
