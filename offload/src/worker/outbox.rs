//! What a worker tells the driver.

use super::{QueueFault, QueueSlot};
use crate::ring::SplitQueue;

/// The epoll tag of a service's own descriptors.
pub(super) const SERVICE: u64 = u64::MAX;

/// Collects what a service tells during one turn of its worker.
#[derive(Debug)]
pub struct Outbox<R> {
    detached: Vec<(QueueSlot, SplitQueue)>,
    faults: Vec<(QueueSlot, QueueFault)>,
    reports: Vec<R>,
}

impl<R> Outbox<R> {
    /// The queue stands still and nothing of it is in flight: here it is back.
    pub fn detached(&mut self, slot: QueueSlot, queue: SplitQueue) {
        self.detached.push((slot, queue));
    }

    /// A queue cannot go on: found out outside of `poll_queue`.
    pub fn fault(&mut self, slot: QueueSlot, fault: QueueFault) {
        self.faults.push((slot, fault));
    }

    /// A message to the service's driver.
    pub fn report(&mut self, report: R) {
        self.reports.push(report);
    }
}
