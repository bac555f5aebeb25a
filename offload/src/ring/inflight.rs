//! The in-flight record: which heads a process has taken and not yet published, in memory that outlives it.

use crate::memory::{MappingOptions, MemoryError};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

/// The mapped record of all queues of one device.
#[derive(Debug)]
pub struct InflightMap {}

/// The record of one queue.
#[derive(Debug, Clone)]
pub struct InflightQueue {}

impl InflightMap {
    /// Bytes of the record of one queue of `size` descriptors, padded to 64.
    pub fn queue_bytes(size: u16) -> u64 {
        (16 + u64::from(size) * 16).next_multiple_of(64)
    }

    /// Makes a fresh record, all zeroes, for `queues` queues of `size` descriptors: a sealed memfd and its size.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn create(_queues: u16, _size: u16) -> Result<(OwnedFd, u64), MemoryError> {
        unimplemented!()
    }

    /// Maps the record that came with SET_INFLIGHT_FD.
    ///
    /// # Errors
    /// A record too small for its queues, or one that cannot be mapped.
    pub fn map(
        _fd: BorrowedFd<'_>,
        _offset: u64,
        _bytes: u64,
        _queues: u16,
        _size: u16,
        _options: &MappingOptions,
    ) -> Result<Arc<Self>, MemoryError> {
        unimplemented!()
    }

    /// The record of queue `index`, if the map has it.
    pub fn queue(self: &Arc<Self>, _index: u16) -> Option<InflightQueue> {
        unimplemented!()
    }
}
