//! The states of this module's components as they travel. Numbers are never used again.

use crate::pci::MsixState;
use bixi_api::state::Payload;

/// Payload kind of a device with its transport.
pub(super) const TRANSPORT: &str = "virtio-pci";
/// Payload kind of the entropy device.
pub(super) const RNG: &str = "virtio-rng";
/// Payload kind of a vhost-user device.
pub(super) const VHOST_USER: &str = "vhost-user";

/// A virtio-pci function.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct TransportState {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) config: Vec<u8>,
    #[prost(message, optional, tag = "2")]
    pub(super) msix: Option<MsixState>,
    #[prost(message, optional, tag = "3")]
    pub(super) registers: Option<RegistersState>,
    /// The device's configuration space as the driver knows it, and its generation.
    #[prost(bytes = "vec", tag = "4")]
    pub(super) device_config: Vec<u8>,
    #[prost(uint32, tag = "5")]
    pub(super) generation: u32,
    #[prost(uint32, tag = "6")]
    pub(super) isr: u32,
    /// Whether the device had failed and waited for a reset.
    #[prost(bool, tag = "7")]
    pub(super) failed: bool,
    /// The device's own state.
    #[prost(message, optional, tag = "8")]
    pub(super) device: Option<Payload>,
}

/// Common configuration.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RegistersState {
    #[prost(uint32, tag = "1")]
    pub(super) device_select: u32,
    #[prost(uint32, tag = "2")]
    pub(super) driver_select: u32,
    #[prost(uint64, tag = "3")]
    pub(super) features: u64,
    #[prost(uint32, tag = "4")]
    pub(super) config_vector: u32,
    #[prost(uint32, tag = "5")]
    pub(super) status: u32,
    #[prost(uint32, tag = "6")]
    pub(super) queue_select: u32,
    #[prost(message, repeated, tag = "7")]
    pub(super) queues: Vec<QueueState>,
}

/// One queue's registers.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct QueueState {
    #[prost(uint32, tag = "1")]
    pub(super) size: u32,
    #[prost(uint32, tag = "2")]
    pub(super) vector: u32,
    #[prost(bool, tag = "3")]
    pub(super) enabled: bool,
    #[prost(uint64, tag = "4")]
    pub(super) desc: u64,
    #[prost(uint64, tag = "5")]
    pub(super) avail: u64,
    #[prost(uint64, tag = "6")]
    pub(super) used: u64,
}

/// Where a ring goes on.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RingState {
    #[prost(uint32, tag = "1")]
    pub(super) index: u32,
    /// The available index of the next chain.
    #[prost(uint32, tag = "2")]
    pub(super) base: u32,
    #[prost(bool, tag = "3")]
    pub(super) enabled: bool,
}

/// The entropy device at rest.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RngState {
    /// Absent while no driver has set it up.
    #[prost(message, optional, tag = "1")]
    pub(super) ring: Option<RingState>,
}

/// A vhost-user device at rest.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct VhostUserState {
    /// Every ring, a NIC's control queue too; empty while no driver has set the device up.
    #[prost(message, repeated, tag = "1")]
    pub(super) rings: Vec<RingState>,
}
