//! The way from the driver to a worker: orders in a channel, and an eventfd that wakes whoever sleeps.
//!
//! Invariants: orders arrive in the order in which they were sent; the eventfd is written after the order is in the
//! channel, so that a worker that wakes finds it. Sending never blocks.

use super::QueueKey;
use crate::ring::{SharedFd, SplitQueue, UsedLog};
use rustix::event::{EventfdFlags, eventfd};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc;

/// What the driver orders.
#[derive(Debug)]
pub(crate) enum Order<C> {
    /// Own this queue.
    Attach(QueueKey, Box<SplitQueue>),
    /// Give this queue back when nothing of it is in flight.
    Detach(QueueKey),
    /// Change something of a queue that goes on.
    Change(QueueKey, QueueChange),
    /// A message for the service.
    Command(C),
}

/// A change of a queue that goes on.
#[derive(Debug)]
pub(crate) enum QueueChange {
    /// Another call eventfd.
    Call(Option<SharedFd>),
    /// Another error eventfd.
    Error(Option<SharedFd>),
    /// Another dirty log, or none.
    Log(Option<UsedLog>),
}

/// The driver's end. The worker ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Sender<C> {
    orders: Option<mpsc::Sender<Order<C>>>,
    bell: Arc<OwnedFd>,
}

/// The worker's end.
#[derive(Debug)]
pub(crate) struct Receiver<C> {
    orders: mpsc::Receiver<Order<C>>,
    bell: Arc<OwnedFd>,
}

/// What a worker finds in its mailbox.
#[derive(Debug)]
pub(crate) enum Mail<C> {
    /// The next order.
    Order(Order<C>),
    /// Nothing now.
    Empty,
    /// Nothing any more: the driver has gone.
    Closed,
}

pub(crate) fn mailbox<C>() -> std::io::Result<(Sender<C>, Receiver<C>)> {
    let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    let (sender, receiver) = mpsc::channel();
    Ok((
        Sender { orders: Some(sender), bell: Arc::clone(&bell) },
        Receiver { orders: receiver, bell },
    ))
}

impl<C> Sender<C> {
    /// Sends an order; false if the worker has ended.
    pub fn send(&self, order: Order<C>) -> bool {
        let sent = self.orders.as_ref().is_some_and(|orders| orders.send(order).is_ok());
        self.ring();
        sent
    }

    fn ring(&self) {
        // A full counter means that the bell rings already.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }
}

impl<C> Drop for Sender<C> {
    fn drop(&mut self) {
        self.orders = None;
        self.ring();
    }
}

impl<C> Receiver<C> {
    /// The next order, without waiting.
    #[inline]
    pub fn next(&self) -> Mail<C> {
        match self.orders.try_recv() {
            Ok(order) => Mail::Order(order),
            Err(mpsc::TryRecvError::Empty) => Mail::Empty,
            Err(mpsc::TryRecvError::Disconnected) => Mail::Closed,
        }
    }

    /// What to wait on.
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Silences the bell; orders are looked for afterwards.
    pub fn silence(&self) {
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
    }
}
