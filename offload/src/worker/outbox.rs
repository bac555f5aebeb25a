//! What a worker tells the driver.

use super::{QueueFault, QueueSlot};
use crate::ring::SplitQueue;
use std::collections::VecDeque;

/// The epoll tag of a service's own descriptors.
pub(super) const SERVICE: u64 = u64::MAX;

/// Collects what a service tells during one turn of its worker.
#[derive(Debug)]
pub struct Outbox<R> {
    detached: Vec<(QueueSlot, SplitQueue)>,
    faults: Vec<(QueueSlot, QueueFault)>,
    reports: VecDeque<R>,
}

impl<R> Default for Outbox<R> {
    fn default() -> Self {
        Self { detached: Vec::new(), faults: Vec::new(), reports: VecDeque::new() }
    }
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
        self.reports.push_back(report);
    }

    pub(super) fn next_detached(&mut self) -> Option<(QueueSlot, SplitQueue)> {
        self.detached.pop()
    }

    pub(super) fn next_fault(&mut self) -> Option<(QueueSlot, QueueFault)> {
        self.faults.pop()
    }

    /// Reports leave in the order in which they were told.
    pub(super) fn next_report(&mut self) -> Option<R> {
        self.reports.pop_front()
    }
}
