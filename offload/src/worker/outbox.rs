//! What a worker tells the driver.

use super::{QueueFault, QueueSlot};
use crate::ring::SplitQueue;
use std::collections::VecDeque;
use std::time::Instant;

/// The epoll tag of a service's own descriptors.
pub(super) const SERVICE: u64 = u64::MAX;

/// Collects what a service tells during one turn of its worker.
#[derive(Debug)]
pub struct Outbox<R> {
    detached: Vec<(QueueSlot, SplitQueue)>,
    faults: Vec<(QueueSlot, QueueFault)>,
    reports: VecDeque<R>,
    hold: Option<Instant>,
    resumed: Vec<QueueSlot>,
}

impl<R> Default for Outbox<R> {
    fn default() -> Self {
        Self {
            detached: Vec::new(),
            faults: Vec::new(),
            reports: VecDeque::new(),
            hold: None,
            resumed: Vec::new(),
        }
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

    /// The queue that is being polled is not to be polled again before this time. Its worker may sleep meanwhile, and
    /// serves others.
    pub fn hold(&mut self, until: Instant) {
        self.hold = Some(until);
    }

    /// A queue that was held is to be polled again, whatever time it is.
    pub fn resume(&mut self, slot: QueueSlot) {
        self.resumed.push(slot);
    }

    /// Until when the queue that was polled last is held, if it is; told once.
    pub fn take_hold(&mut self) -> Option<Instant> {
        self.hold.take()
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

    pub(super) fn next_resumed(&mut self) -> Option<QueueSlot> {
        self.resumed.pop()
    }

    /// Reports leave in the order in which they were told.
    pub(super) fn next_report(&mut self) -> Option<R> {
        self.reports.pop_front()
    }
}
