//! Points of the disk engine at which a test can make the process die (see `bixi_offload::failpoint`).

use bixi_offload::failpoint::Point;

/// Operations were handed to the kernel.
pub const AFTER_SUBMIT: Point = Point::of_service("storage.after-submit", 64);
/// An operation has completed, its chain has not.
pub const AFTER_COMPLETION: Point = Point::of_service("storage.after-completion", 65);
/// The first half of a read-modify-write is done.
pub const AFTER_LOAD: Point = Point::of_service("storage.after-load", 66);
/// Chains are completed and shown to the driver, their blocks still held.
pub const AFTER_PUBLISH: Point = Point::of_service("storage.after-publish", 67);

/// All of them.
pub const ALL: [Point; 4] = [AFTER_SUBMIT, AFTER_COMPLETION, AFTER_LOAD, AFTER_PUBLISH];
