//! Points of the disk engine at which a test can make the process die (see `bixi_offload::failpoint`).

/// Operations were handed to the kernel.
pub const AFTER_SUBMIT: &str = "storage.after-submit";
/// An operation has completed, its chain has not.
pub const AFTER_COMPLETION: &str = "storage.after-completion";
/// The first half of a read-modify-write is done.
pub const AFTER_LOAD: &str = "storage.after-load";
/// Chains are completed and shown to the driver, their blocks still held.
pub const AFTER_PUBLISH: &str = "storage.after-publish";

/// Passes a point.
#[inline(always)]
pub fn hit(_point: &'static str) {}
