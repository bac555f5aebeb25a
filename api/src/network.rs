//! What is said to and by `bixi-network`.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /v1/network` | | [`NetworkDescription`] |
//! | `GET /v1/ports` | | `[`[`PortDescription`]`]` |
//! | `PUT /v1/ports/{id}` | [`PortAdd`] | [`PortDescription`] |
//! | `GET /v1/ports/{id}` | | [`PortDescription`] |
//! | `DELETE /v1/ports/{id}` | | `null` |
//! | `GET /v1/ports/{id}/metadata` | | [`MetadataDescription`] |
//! | `PUT /v1/ports/{id}/metadata` | [`PortMetadata`] | [`MetadataDescription`] |
//! | `GET /v1/segments` | | `[`[`SegmentDescription`]`]` |
//! | `GET /v1/segments/{vni}` | | [`SegmentDescription`] |
//! | `PUT /v1/segments/{vni}` | [`SegmentConfig`] | [`SegmentDescription`] |
//! | `DELETE /v1/segments/{vni}` | | `null` |

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// The process as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct NetworkDescription {
    /// The release of the process that answers.
    pub release: String,
    /// Its process id.
    pub pid: u32,
    /// Its tunnel end point, if it has an underlay.
    pub underlay: Option<SocketAddr>,
    /// Ports it serves.
    pub ports: usize,
    /// Segments it knows.
    pub segments: usize,
    /// Counters of the underlay, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub underlay_statistics: Option<UnderlayStatistics>,
}

/// Counters of the underlay since the process started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct UnderlayStatistics {
    /// Frames of guests that came from other servers and were given to a port.
    pub received: u64,
    /// Bytes of these frames.
    pub received_bytes: u64,
    /// Frames of guests that were sent to other servers.
    pub sent: u64,
    /// Bytes of these frames.
    pub sent_bytes: u64,
    /// Frames of guests that the network below did not take.
    pub send_failed: u64,
    /// Datagrams dropped because they are no VXLAN, or what they carry contradicts itself.
    pub malformed: u64,
    /// Frames dropped because their segment is not known here.
    pub unknown_segment: u64,
    /// Frames dropped because the server that sent them has no host of their segment.
    pub unknown_server: u64,
    /// Frames dropped because no port here has their destination.
    pub unknown_destination: u64,
    /// Frames dropped because they are no IPv4 for one host, or larger than their segment's MTU.
    pub not_carried: u64,
}

/// Serve a port on a vhost-user socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PortAdd {
    /// The placement's epoch. A lower one than the port has seen is refused; the same port again is no change.
    pub epoch: u64,
    /// Where the process listens.
    pub socket: PathBuf,
    /// The segment the port is in: its VXLAN network identifier.
    pub segment: u32,
    /// The port's hardware address; frames from any other source are dropped.
    pub mac: String,
    /// The port's addresses; packets from any other source are dropped. DHCP gives the first.
    pub ipv4: Vec<Ipv4Addr>,
    /// Pairs of receive and transmit queues offered, 1 to 32.
    #[serde(default = "default_pairs")]
    pub queue_pairs: u16,
    /// Whether the front end's memory must be sealed against shrinking; on for VMs, off for foreign front ends.
    #[serde(default = "yes")]
    pub require_sealed: bool,
    /// What it may carry at most; nothing is limited unless told. The same port with other limits changes them while it
    /// goes on.
    #[serde(default, skip_serializing_if = "PortLimits::is_none")]
    pub limits: PortLimits,
}

/// What a port may carry at most, each direction by itself; a tenth of what is given for a second may come at once. What
/// the guest sends over a limit waits, what comes for it is dropped. A large TCP packet counts as those it is cut into.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PortLimits {
    /// Packets a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packets_per_second: Option<u64>,
    /// Bits of Ethernet frames a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits_per_second: Option<u64>,
}

impl PortLimits {
    /// Nothing is limited.
    pub const NONE: Self = Self { packets_per_second: None, bits_per_second: None };

    /// Whether nothing is limited.
    pub fn is_none(&self) -> bool {
        *self == Self::NONE
    }
}

fn default_pairs() -> u16 {
    1
}

fn yes() -> bool {
    true
}

/// What the guest of a port finds at `http://100.100.100.200` and `http://169.254.169.254`. Each `PUT` replaces all of
/// it; it goes with the port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PortMetadata {
    /// Grows with every change; a lower one than the card has is refused.
    pub generation: u64,
    /// Whether a guest must get itself a token first.
    #[serde(default)]
    pub http_tokens: HttpTokens,
    /// The documents by path, without a leading `/`: `latest/meta-data/instance-id`. What is below `latest` is found
    /// below `2016-01-01` too.
    pub documents: BTreeMap<String, Document>,
}

/// Whether a guest needs a token to read its metadata.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HttpTokens {
    /// It may use one.
    #[default]
    Optional,
    /// It gets nothing without one.
    Required,
}

/// The content of a document.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Document {
    /// Text as it is.
    Text(String),
    /// Bytes in base64, with padding.
    Base64(String),
}

impl fmt::Debug for Document {
    /// User data has passwords in it, and requests are logged.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Text(content) | Self::Base64(content)) = self;
        write!(f, "Document({} bytes)", content.len())
    }
}

/// The metadata of a port as it is now, without what is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MetadataDescription {
    /// What is in force.
    pub generation: u64,
    /// Whether a guest must get itself a token first.
    pub http_tokens: HttpTokens,
    /// How many documents there are.
    pub documents: usize,
    /// Their bytes.
    pub bytes: usize,
}

/// A port as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PortDescription {
    /// The port's id.
    pub id: String,
    /// What was asked for.
    pub port: PortAdd,
    /// Whether a front end is connected.
    pub connected: bool,
    /// Why the last session was ended by this side, if it was.
    pub last_fault: Option<String>,
    /// When the guest's DHCP lease ends, in seconds since 1970, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_until: Option<u64>,
    /// The generation of its metadata, if it has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<u64>,
    /// Counters since the process started.
    pub statistics: PortStatistics,
}

/// Counters of a port since the process started. *Received* is what the guest received.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PortStatistics {
    /// Packets the guest received.
    pub received: u64,
    /// Bytes the guest received.
    pub received_bytes: u64,
    /// Packets the guest sent.
    pub sent: u64,
    /// Bytes the guest sent.
    pub sent_bytes: u64,
    /// Packets for the guest dropped because it had no buffer.
    pub no_buffer: u64,
    /// Packets of the guest dropped because their source is not the port's.
    pub spoofed: u64,
    /// Packets of the guest dropped because nobody owns their destination.
    pub unknown_destination: u64,
    /// Packets of the guest dropped because they are malformed.
    pub malformed: u64,
    /// ARP, DHCP and DNS requests answered by the card, and packets taken for the metadata server.
    pub answered: u64,
    /// Packets of the guest dropped because they are for many: nothing is flooded.
    #[serde(default)]
    pub multicast: u64,
    /// Packets of the guest dropped because they are IPv6, which this release does not carry.
    #[serde(default)]
    pub ipv6: u64,
    /// Packets of the guest dropped because they are neither IPv4, ARP nor IPv6.
    #[serde(default)]
    pub other_protocol: u64,
    /// Packets of the guest dropped because they are larger than the segment's MTU.
    #[serde(default)]
    pub too_big: u64,
    /// Packets of the guest dropped because the network between servers did not take them.
    #[serde(default)]
    pub underlay_failed: u64,
    /// Packets of the guest dropped because it asked the card's DNS or metadata server too often.
    #[serde(default)]
    pub limited: u64,
    /// Packets for the guest dropped because of the port's limits.
    #[serde(default)]
    pub receive_limited: u64,
    /// How often the guest's packets waited because of the port's limits.
    #[serde(default)]
    pub transmit_limited: u64,
    /// Flows in the port's cache now.
    #[serde(default)]
    pub flows: u64,
    /// Flows that had to leave the full cache.
    #[serde(default)]
    pub evicted_flows: u64,
    /// Records of flows and leases that a killed process left half written, and that were dropped.
    #[serde(default)]
    pub torn_records: u64,
}

/// What the card knows about a segment. Each `PUT` replaces all of it at once, or nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SegmentConfig {
    /// Grows with every change; a lower one than the card has is refused.
    pub generation: u64,
    /// The segment's network address.
    pub network: Ipv4Addr,
    /// Its prefix length in bits.
    pub prefix_len: u8,
    /// The gateway that DHCP announces and the card answers ARP for; none unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Ipv4Addr>,
    /// DNS servers that DHCP announces; if there are none, those of `names`.
    #[serde(default)]
    pub dns: Vec<Ipv4Addr>,
    /// The guests' MTU in bytes, announced by DHCP and enforced.
    pub mtu: u16,
    /// The segment's addresses on other servers.
    #[serde(default)]
    pub peers: Vec<Peer>,
    /// The names that the card answers DNS for; unless told, it answers no DNS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub names: Option<SegmentNames>,
}

/// The names of a segment's hosts, for which the card is the DNS server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SegmentNames {
    /// The addresses at which the card answers. Unless told, the two that instances of Alibaba Cloud find their DNS
    /// servers at: no VPC can have them for itself, so they are the same in every segment.
    #[serde(default = "name_servers")]
    pub servers: Vec<Ipv4Addr>,
    /// The domain of the names, which DHCP announces as search domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Each name with an address. A name with several addresses is given several times.
    #[serde(default)]
    pub hosts: Vec<NamedHost>,
}

/// The addresses at which instances of Alibaba Cloud find their DNS servers.
pub fn name_servers() -> Vec<Ipv4Addr> {
    vec![Ipv4Addr::new(100, 100, 2, 136), Ipv4Addr::new(100, 100, 2, 138)]
}

/// A name and an address of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct NamedHost {
    /// Its name, without the domain.
    pub name: String,
    /// Its address.
    pub ipv4: Ipv4Addr,
}

/// One address of a segment that lives on another server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Peer {
    /// Its hardware address.
    pub mac: String,
    /// Its address.
    pub ipv4: Ipv4Addr,
    /// The tunnel end point of its server.
    pub endpoint: SocketAddr,
}

/// A segment as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SegmentDescription {
    /// The VXLAN network identifier.
    pub vni: u32,
    /// What is in force.
    pub config: SegmentConfig,
}
