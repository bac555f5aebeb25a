//! Feature bits this crate names, as masks (virtio 1.2, chapters 5 and 6).

/// Chains may continue in an indirect table.
pub const RING_INDIRECT_DESC: u64 = 1 << 28;
/// Notifications are suppressed by index.
pub const RING_EVENT_IDX: u64 = 1 << 29;
/// The device follows virtio 1.0 or later.
pub const VERSION_1: u64 = 1 << 32;

/// Block: the most bytes of a segment.
pub const BLK_SIZE_MAX: u64 = 1 << 1;
/// Block: the most segments of a request.
pub const BLK_SEG_MAX: u64 = 1 << 2;
/// Block: a legacy geometry.
pub const BLK_GEOMETRY: u64 = 1 << 4;
/// Block: no writes.
pub const BLK_RO: u64 = 1 << 5;
/// Block: the size of a block.
pub const BLK_BLK_SIZE: u64 = 1 << 6;
/// Block: a write cache that can be flushed.
pub const BLK_FLUSH: u64 = 1 << 9;
/// Block: optimal sizes and alignment.
pub const BLK_TOPOLOGY: u64 = 1 << 10;
/// Block: several queues.
pub const BLK_MQ: u64 = 1 << 12;
/// Block: discard.
pub const BLK_DISCARD: u64 = 1 << 13;
/// Block: write-zeroes.
pub const BLK_WRITE_ZEROES: u64 = 1 << 14;

/// Net: the device completes checksums.
pub const NET_CSUM: u64 = 1 << 0;
/// Net: the driver takes packets without a checksum.
pub const NET_GUEST_CSUM: u64 = 1 << 1;
/// Net: the MTU is in the configuration space.
pub const NET_MTU: u64 = 1 << 3;
/// Net: the hardware address is in the configuration space.
pub const NET_MAC: u64 = 1 << 5;
/// Net: the driver takes large TCP/IPv4 segments.
pub const NET_GUEST_TSO4: u64 = 1 << 7;
/// Net: the driver takes large TCP/IPv6 segments.
pub const NET_GUEST_TSO6: u64 = 1 << 8;
/// Net: the driver takes segments with ECN.
pub const NET_GUEST_ECN: u64 = 1 << 9;
/// Net: the driver takes large UDP datagrams to be fragmented.
pub const NET_GUEST_UFO: u64 = 1 << 10;
/// Net: the device cuts TCP/IPv4 segments.
pub const NET_HOST_TSO4: u64 = 1 << 11;
/// Net: the device cuts TCP/IPv6 segments.
pub const NET_HOST_TSO6: u64 = 1 << 12;
/// Net: the device cuts segments with ECN.
pub const NET_HOST_ECN: u64 = 1 << 13;
/// Net: the device fragments UDP datagrams.
pub const NET_HOST_UFO: u64 = 1 << 14;
/// Net: a packet may take several receive buffers.
pub const NET_MRG_RXBUF: u64 = 1 << 15;
/// Net: the link's state is in the configuration space.
pub const NET_STATUS: u64 = 1 << 16;
/// Net: there is a control queue.
pub const NET_CTRL_VQ: u64 = 1 << 17;
/// Net: several pairs of queues, chosen over the control queue.
pub const NET_MQ: u64 = 1 << 22;
/// Net: the driver takes large UDP/IPv4 segments.
pub const NET_GUEST_USO4: u64 = 1 << 54;
/// Net: the driver takes large UDP/IPv6 segments.
pub const NET_GUEST_USO6: u64 = 1 << 55;
/// Net: the device cuts UDP segments.
pub const NET_HOST_USO: u64 = 1 << 56;
