//! Orders from the transport to a device's task: the newest of each kind, never a queue of them.
//!
//! Invariants: posting never blocks and takes bounded memory, however fast a guest sets up and resets; orders taken
//! together are carried out as *reset, then start or take over, then vectors, then rest, then go on*.

use super::Activation;
use super::state::RingState;
use crate::device::QuiesceError;
use crate::pci::msix::Call;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use tokio::sync::{Notify, oneshot};

/// Whoever waits for a device to come to rest.
pub(super) type Resting = oneshot::Sender<Result<(), QuiesceError>>;

/// Where a ring goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RingBase {
    pub(super) index: u16,
    /// The available index of the next chain.
    pub(super) base: u16,
    pub(super) enabled: bool,
}

/// A device as another instance left it.
#[derive(Debug)]
pub(super) struct Restored {
    pub(super) activation: Activation,
    pub(super) rings: Vec<RingBase>,
}

impl Restored {
    /// Rings from their saved states, if those can be.
    pub(super) fn rings(saved: &[RingState]) -> Option<Vec<RingBase>> {
        let ring = |ring: &RingState| {
            let (index, base) = (u16::try_from(ring.index).ok()?, u16::try_from(ring.base).ok()?);
            Some(RingBase { index, base, enabled: ring.enabled })
        };
        saved.iter().map(ring).collect()
    }
}

/// What a device's task shall do.
#[derive(Debug, Default)]
pub(super) struct Orders {
    /// Stop, forget, and report this number.
    pub(super) reset: Option<u64>,
    /// Begin with this.
    pub(super) start: Option<Activation>,
    /// Be as another instance was when it rested.
    pub(super) restored: Option<Restored>,
    /// Other interrupt vectors for queues.
    pub(super) calls: BTreeMap<u16, Option<Call>>,
    /// Come to rest.
    pub(super) rest: Vec<Resting>,
    /// Come to rest however long it takes, and cut nobody off.
    pub(super) rest_fully: bool,
    /// Go on.
    pub(super) resume: bool,
}

/// The box. One task takes from it.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    orders: Mutex<Orders>,
    posted: Notify,
}

impl Mailbox {
    fn post(&self, change: impl FnOnce(&mut Orders)) {
        change(&mut self.orders.lock().unwrap_or_else(PoisonError::into_inner));
        self.posted.notify_one();
    }

    pub(super) fn activate(&self, activation: Activation) {
        self.post(|orders| orders.start = Some(activation));
    }

    pub(super) fn reset(&self, number: u64) {
        self.post(|orders| {
            // What was to begin and never did is over.
            orders.start = None;
            orders.restored = None;
            orders.calls.clear();
            orders.reset = Some(number);
        });
    }

    pub(super) fn set_call(&self, queue: u16, call: Option<Call>) {
        self.post(|orders| drop(orders.calls.insert(queue, call)));
    }

    pub(super) fn rest(&self, fully: bool) -> oneshot::Receiver<Result<(), QuiesceError>> {
        let (sender, receiver) = oneshot::channel();
        self.post(|orders| {
            // To go on was the older order.
            orders.resume = false;
            orders.rest.push(sender);
            orders.rest_fully |= fully;
        });
        receiver
    }

    pub(super) fn restore(&self, restored: Restored) {
        self.post(|orders| orders.restored = Some(restored));
    }

    pub(super) fn resume(&self) {
        self.post(|orders| orders.resume = true);
    }

    /// Waits for orders and takes them all. Cancel-safe.
    pub(super) async fn take(&self) -> Orders {
        self.posted.notified().await;
        std::mem::take(&mut self.orders.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
