//! The runtime of a card process: sockets, sessions, mappings and queues, on one thread beside the service's driver.
//!
//! A [`Card`] is owned by the driver task. It listens on one socket per device, serves one front end on each, runs
//! the sessions' actions, and moves queues to [workers](crate::worker) and back. The driver adds and removes devices
//! and sends commands to its workers; nothing here blocks.
//!
//! ```text
//! loop { select! { event = card.next() => driver.apply(event, &mut card), request = api.recv() => … } }
//! ```

mod rings;
mod runtime;
mod shell;
mod wire;

pub use runtime::Card;

use crate::vhost_user::Offer;
use std::io;
use std::os::unix::net::UnixListener;

/// Names a device of a card; never used again in the same process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId(pub u64);

/// Names a worker of a card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerId(pub usize);

/// A device to serve.
#[derive(Debug)]
pub struct DeviceConfig {
    /// Where its front end connects ([`crate::control::Listener`] makes one).
    pub listener: UnixListener,
    /// What it offers.
    pub offer: Offer,
    /// Whether the front end's memory must be sealed against shrinking.
    pub require_sealed: bool,
    /// Which worker owns which queue: queue `i` goes to `workers[i % workers.len()]`.
    pub workers: Vec<WorkerId>,
    /// Whether rings stand still until [`Card::release`]: the handshake is answered at once.
    pub held: bool,
}

/// What happened on a card.
#[derive(Debug)]
pub enum CardEvent<R> {
    /// A front end connected.
    Connected(DeviceId),
    /// The driver acknowledged these virtio features.
    Features(DeviceId, u64),
    /// A queue was given to its worker; `recovered` chains of a dead process go first.
    Started {
        /// The device.
        device: DeviceId,
        /// The queue.
        index: u16,
        /// Chains found in the in-flight record.
        recovered: u16,
    },
    /// A queue came back from its worker.
    Stopped {
        /// The device.
        device: DeviceId,
        /// The queue.
        index: u16,
    },
    /// The driver wrote to the configuration space.
    ConfigWritten(DeviceId, u32, Vec<u8>),
    /// The front end told its MTU.
    Mtu(DeviceId, u64),
    /// The session is over and all its queues are back. `fault` is why, if this side ended it.
    Disconnected {
        /// The device.
        device: DeviceId,
        /// Why this side ended it.
        fault: Option<String>,
    },
    /// The device is gone: nothing of it is on any worker.
    Removed(DeviceId),
    /// What a worker's service told.
    Report(WorkerId, R),
    /// A worker's thread ended: the process cannot go on.
    WorkerLost(WorkerId, String),
}

/// Why a card refuses.
#[derive(Debug, thiserror::Error)]
pub enum CardError {
    /// The kernel refuses.
    #[error("cannot {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A worker that does not exist.
    #[error("no worker {0:?} on this card")]
    Worker(WorkerId),
    /// A device that does not exist (any more).
    #[error("no device {0:?} on this card")]
    Device(DeviceId),
    /// An offer that no front end can accept.
    #[error("the device's offer is not valid: {0}")]
    Offer(&'static str),
}

impl CardError {
    fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}

#[cfg(test)]
mod tests;
