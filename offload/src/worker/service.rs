//! What a card service does on a worker thread.

use super::Outbox;
use crate::card::DeviceId;
use crate::ring::SplitQueue;
use std::os::fd::BorrowedFd;
use std::time::Instant;

/// A queue of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct QueueKey {
    /// The device.
    pub device: DeviceId,
    /// The queue's index in it.
    pub index: u16,
}

/// A queue's place on its worker: a small number, dense, used again only after the queue has left. Services index a
/// `Vec` by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueueSlot(pub usize);

/// Whether the worker looks at a queue by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// [`WorkerService::poll_queue`] is called while it is in use, and its kicks wake the worker.
    Polled,
    /// The service takes from it when it has something for it (receive queues); kicks stay off.
    Passive,
}

/// Why a queue cannot go on; its session ends with this reason.
#[derive(Debug, thiserror::Error)]
pub enum QueueFault {
    /// The driver broke the ring.
    #[error("queue {index}: {error}")]
    Ring {
        /// The queue's index.
        index: u16,
        /// What it did.
        error: crate::ring::RingError,
    },
    /// The driver broke the device's own protocol.
    #[error("queue {index}: {reason}")]
    Protocol {
        /// The queue's index.
        index: u16,
        /// What it did.
        reason: String,
    },
}

/// Where a service names descriptors that wake its worker.
#[derive(Debug)]
pub struct Registry<'a> {
    pub(super) epoll: BorrowedFd<'a>,
}

impl Registry<'_> {
    /// Readable `fd` wakes the worker, which then calls [`WorkerService::poll`]. Level-triggered: the service reads
    /// it empty.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn add(&self, fd: BorrowedFd<'_>) -> std::io::Result<()> {
        use rustix::event::epoll::{self, EventData, EventFlags};
        epoll::add(self.epoll, fd, EventData::new_u64(super::outbox::SERVICE), EventFlags::IN)?;
        Ok(())
    }

    /// `fd` wakes the worker no longer.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn remove(&self, fd: BorrowedFd<'_>) -> std::io::Result<()> {
        rustix::event::epoll::delete(self.epoll, fd)?;
        Ok(())
    }
}

/// A card service on one worker thread. Made and used there only; all methods return without blocking.
pub trait WorkerService {
    /// What the driver tells it: immutable snapshots of configuration.
    type Command: Send + 'static;
    /// What it tells the driver.
    type Report: Send + 'static;

    /// Called once before anything else: register descriptors that wake the worker.
    ///
    /// # Errors
    /// The worker does not start.
    fn start(&mut self, _registry: &Registry<'_>) -> std::io::Result<()> {
        Ok(())
    }

    /// Takes a queue over. Commands about its device came before.
    fn attach(&mut self, slot: QueueSlot, key: QueueKey, queue: SplitQueue) -> Interest;

    /// The queue in `slot`, while the service has it. The worker arms it and changes its eventfds and log here.
    fn queue(&mut self, slot: QueueSlot) -> Option<&mut SplitQueue>;

    /// Lets go of a queue: take nothing more from it, complete and publish what is in flight, then give it back by
    /// [`Outbox::detached`], now or in a later call. The device's commands stay valid until then.
    fn detach(&mut self, slot: QueueSlot, outbox: &mut Outbox<Self::Report>);

    /// A message of the driver.
    fn command(&mut self, command: Self::Command, outbox: &mut Outbox<Self::Report>);

    /// Moves what `slot` has, a bounded amount. Returns how much was done; 0 lets the queue fall idle.
    ///
    /// # Errors
    /// The queue is not polled any more; the driver ends its session and detaches it.
    fn poll_queue(
        &mut self,
        slot: QueueSlot,
        outbox: &mut Outbox<Self::Report>,
    ) -> Result<usize, QueueFault>;

    /// Everything else, once per turn: completions, sockets, timers. Returns how much was done.
    fn poll(&mut self, outbox: &mut Outbox<Self::Report>) -> usize;

    /// Whether something is under way whose end no registered descriptor announces, so that the worker must not sleep.
    fn must_poll(&self) -> bool {
        false
    }

    /// Called before the worker sleeps: arm what the service polls by itself. True means that there is work now.
    fn arm(&mut self) -> bool {
        false
    }

    /// When [`WorkerService::poll`] must be called at the latest.
    fn deadline(&self) -> Option<Instant> {
        None
    }
}
