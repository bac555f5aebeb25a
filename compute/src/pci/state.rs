//! The states of this module's components as they travel. Numbers are never used again.

/// Payload kind of the root.
pub(super) const ROOT: &str = "pci-root";

/// The root with its bridges and the chipset; devices have states of their own.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RootState {
    /// The latch of configuration mechanism #1.
    #[prost(uint32, tag = "1")]
    pub(super) address: u32,
    /// Bridges and chipset functions, all of the root bus.
    #[prost(message, repeated, tag = "2")]
    pub(super) functions: Vec<FunctionState>,
}

/// One function that is only its configuration space.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct FunctionState {
    /// Slot and function on the root bus as configuration cycles carry them.
    #[prost(uint32, tag = "1")]
    pub(super) devfn: u32,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) config: Vec<u8>,
}

/// MSI-X of one function; enable and function mask are in its configuration space.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MsixState {
    /// One per vector, in order.
    #[prost(message, repeated, tag = "1")]
    pub entries: Vec<MsixEntryState>,
}

/// One entry of an MSI-X table.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MsixEntryState {
    /// Message address.
    #[prost(uint64, tag = "1")]
    pub address: u64,
    /// Message data.
    #[prost(uint32, tag = "2")]
    pub data: u32,
    /// Vector control; bit 0 masks.
    #[prost(uint32, tag = "3")]
    pub control: u32,
    /// Whether a signal waited for the vector to be unmasked.
    #[prost(bool, tag = "4")]
    pub pending: bool,
}
