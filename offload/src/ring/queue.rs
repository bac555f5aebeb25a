//! The queue itself.

use super::{Batch, InflightQueue, Notifiers, QueueLayout, QueueState, RingError};
use crate::memory::{DirtyLog, GuestMemory};
use crate::ring::notify::SharedFd;
use std::sync::Arc;

/// What a queue is made of.
#[derive(Debug)]
pub struct QueueSetup {
    /// Where it is in guest memory.
    pub layout: QueueLayout,
    /// The virtio features that were negotiated; the queue looks at EVENT_IDX and INDIRECT_DESC.
    pub features: u64,
    /// The first entry of the available ring to take. Ignored when the in-flight record says better.
    pub base: u16,
    /// Its eventfds.
    pub notifiers: Notifiers,
    /// Its in-flight record, if the front end gave one.
    pub inflight: Option<InflightQueue>,
    /// Where writes are logged, while the front end migrates.
    pub log: Option<UsedLog>,
}

/// Where a queue logs what it writes.
#[derive(Debug, Clone)]
pub struct UsedLog {
    /// The bitmap.
    pub log: Arc<DirtyLog>,
    /// The guest address that stands for the used ring in the log, if writes of the ring are logged too
    /// (VHOST_VRING_F_LOG).
    pub used: Option<u64>,
}

/// The device's side of a split virtqueue.
#[derive(Debug)]
pub struct SplitQueue {
    memory: Arc<GuestMemory>,
    notifiers: Notifiers,
}

impl SplitQueue {
    /// Checks the ring's areas and, with an in-flight record, finds out what the process before had in flight.
    ///
    /// # Errors
    /// See [`RingError`].
    pub fn new(_memory: Arc<GuestMemory>, _setup: QueueSetup) -> Result<Self, RingError> {
        unimplemented!()
    }

    /// The memory that the queue's chains are in.
    #[inline]
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Its eventfds.
    pub fn notifiers(&self) -> &Notifiers {
        &self.notifiers
    }

    /// The virtio features that were negotiated.
    pub fn features(&self) -> u64 {
        unimplemented!()
    }

    /// Descriptors of the ring.
    pub fn size(&self) -> u16 {
        unimplemented!()
    }

    /// Takes up to `max` chains, as many as the driver has made available and the batch has room for; returns how
    /// many. First come those that a dead process had in flight, oldest first.
    ///
    /// # Errors
    /// The driver broke a rule, or memory was taken away: end the session. The queue stays unusable.
    #[inline]
    pub fn take(&mut self, _max: usize, _batch: &mut Batch) -> Result<usize, RingError> {
        unimplemented!()
    }

    /// Gives back the last `n` chains of the last `take`, of which none was completed: the next `take` gives them
    /// again. At most as many as that `take` gave.
    pub fn give_back(&mut self, _n: usize) {
        unimplemented!()
    }

    /// Answers the chain `head`: the device wrote `written` bytes into it. The driver sees it after `publish`.
    #[inline]
    pub fn complete(&mut self, _head: u16, _written: u32) {
        unimplemented!()
    }

    /// Shows all completed chains to the driver at once. Returns whether it wants a call: then `signal`.
    #[inline]
    #[must_use]
    pub fn publish(&mut self) -> bool {
        unimplemented!()
    }

    /// Calls the driver. One system call; a call that cannot be delivered is none of our business.
    pub fn signal(&self) {
        unimplemented!()
    }

    /// Tells the front end that the ring is broken (SET_VRING_ERR).
    pub fn signal_error(&self) {
        unimplemented!()
    }

    /// Chains taken and not yet completed.
    pub fn outstanding(&self) -> u16 {
        unimplemented!()
    }

    /// Whether the driver has made something available, or something is left of a dead process. One look at
    /// avail.idx.
    #[inline]
    pub fn has_work(&self) -> bool {
        unimplemented!()
    }

    /// Asks the driver not to kick: the queue is polled from now on.
    pub fn kicks_off(&mut self) {
        unimplemented!()
    }

    /// Asks the driver to kick, and looks once more: true means that something came meanwhile, so poll again.
    #[must_use]
    pub fn kicks_on(&mut self) -> bool {
        unimplemented!()
    }

    /// Empties the kick eventfd.
    pub fn drain_kick(&self) {
        unimplemented!()
    }

    /// Another call eventfd (SET_VRING_CALL on a running ring). It is signalled once, lest a call be lost between.
    pub fn set_call(&mut self, _call: Option<SharedFd>) {
        unimplemented!()
    }

    /// Another error eventfd.
    pub fn set_error(&mut self, _error: Option<SharedFd>) {
        unimplemented!()
    }

    /// Turns the dirty log on or off.
    pub fn set_log(&mut self, _log: Option<UsedLog>) {
        unimplemented!()
    }

    /// The state, for the session (GET_VRING_BASE) and for hand-over.
    pub fn state(&self) -> QueueState {
        unimplemented!()
    }
}
