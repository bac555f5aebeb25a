//! What the transport asks of a device behind it.

use super::DeviceLink;
use crate::device::{Quiesce, RestoreError};
use crate::pci::msix::Call;
use bixi_api::state::{Movable, Payload};
use std::sync::Arc;
use vmm_sys_util::eventfd::EventFd;

/// What a kind of device is to a guest.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// The virtio device id: 1 net, 2 block, 4 entropy.
    pub id: u16,
    /// Its name to an operator: `virtio-blk`.
    pub name: &'static str,
    /// Its PCI class code.
    pub class: u32,
}

/// One queue that the driver has set up and enabled. The ring lies whole in guest memory and is aligned.
#[derive(Debug, Clone)]
pub struct ActiveQueue {
    /// Its number.
    pub index: u16,
    /// Its entries, a power of two.
    pub size: u16,
    /// Guest address of the descriptor table.
    pub desc: u64,
    /// Guest address of the available ring.
    pub avail: u64,
    /// Guest address of the used ring.
    pub used: u64,
    /// Signalled by the driver.
    pub kick: Arc<EventFd>,
    /// Raises the queue's interrupt; none if the driver polls.
    pub call: Option<Call>,
}

/// What a driver set up when it said DRIVER_OK.
#[derive(Debug, Clone)]
pub struct Activation {
    /// The features it acknowledged.
    pub features: u64,
    /// The queues it enabled; those that it left alone are not there.
    pub queues: Vec<ActiveQueue>,
    /// Which life of the device this is; see [`DeviceLink::fail`].
    pub life: u64,
}

/// A device behind the transport.
///
/// vCPU threads call it under the transport's lock: every method but the futures returns at once.
pub trait VirtioDevice: Movable + Send + Sync {
    /// What it is.
    fn kind(&self) -> &'static Kind;
    /// The features it offers, [`VERSION_1`](super::features::VERSION_1) included. Never changes.
    fn features(&self) -> u64;
    /// Whether a driver may go on with these of them.
    fn accepts(&self, _features: u64) -> bool {
        true
    }
    /// The most entries of each of its queues. Never changes.
    fn queue_sizes(&self) -> Vec<u16>;
    /// What it shares with the transport.
    fn link(&self) -> &Arc<DeviceLink>;
    /// The driver is ready: begin.
    fn activate(&self, activation: Activation);
    /// The driver has reset the device: stop, forget, and tell [`DeviceLink::reset_done`] with this number.
    fn reset(&self, number: u64);
    /// The driver has given a running queue another interrupt vector, or none.
    fn set_call(&self, queue: u16, call: Option<Call>);
    /// Whether the back end is there, and how often it has come back.
    fn back_end(&self) -> (bool, u64) {
        (true, 0)
    }
    /// Comes to rest: when the future is done, guest memory does not change any more and [`Movable::declare`] tells all.
    fn quiesce(&self) -> Quiesce<'_>;
    /// As [`VirtioDevice::quiesce`], for as long as it takes. See [`crate::device::Device::quiesce_fully`].
    fn quiesce_fully(&self) -> Quiesce<'_> {
        self.quiesce()
    }
    /// Goes on after [`VirtioDevice::quiesce`] or [`VirtioDevice::restore`], or just looks at every queue once and
    /// raises every interrupt once: something may have been missed while the vCPUs stood still.
    fn resume(&self);
    /// Takes what [`Movable::declare`] gave, with what the driver had set up if it had. Begins with
    /// [`VirtioDevice::resume`].
    ///
    /// # Errors
    /// The state is of another kind or cannot be.
    fn restore(&self, state: &Payload, active: Option<Activation>) -> Result<(), RestoreError>;
}
