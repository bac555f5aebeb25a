//! Where the three areas of a split ring are, and the only place that touches them.

/// The largest queue that virtio allows, in descriptors.
pub const MAX_QUEUE_SIZE: u16 = 32768;
/// The most descriptors that one indirect table may have, whatever the queue's size.
pub const MAX_INDIRECT: u16 = 1024;

/// The guest addresses of a split ring (virtio 1.2, section 2.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLayout {
    /// Descriptors; a power of two.
    pub size: u16,
    /// The descriptor table, 16 bytes each, aligned to 16.
    pub descriptors: u64,
    /// The available ring (driver area), aligned to 2.
    pub available: u64,
    /// The used ring (device area), aligned to 4.
    pub used: u64,
}
