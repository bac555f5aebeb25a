//! What the driver asks of every device of the board, beside what the guest asks of its registers.
//!
//! The driver holds all devices as `Arc<dyn Device>` and calls these methods from its own task only; vCPU threads call
//! the register side at the same time, unless a method says that the vCPUs stand still.

use bixi_api::compute::DeviceDescription;
use bixi_api::state::{Movable, Payload, PayloadError};
use std::future::{Future, ready};
use std::pin::Pin;

/// What [`Device::quiesce`] gives: done when the device has come to rest.
pub type Quiesce<'a> = Pin<Box<dyn Future<Output = Result<(), QuiesceError>> + Send + 'a>>;

/// A device of the board.
pub trait Device: Movable + Send + Sync {
    /// How the control socket describes it; `None` for the fixed parts of the board.
    fn describe(&self) -> Option<DeviceDescription>;

    /// Back to the state after power-on: registers, rings, interrupts. The vCPUs stand still.
    fn reset(&self);

    /// Takes over the state that another instance of this device declared. Called once, after the device was built
    /// from the same configuration and before a vCPU has run.
    ///
    /// # Errors
    /// The state is of another kind, too new, malformed or contradicts the configuration.
    fn restore(&self, state: &Payload) -> Result<(), RestoreError>;

    /// The vCPUs stand still: comes to rest, so that guest memory does not change any more and [`Movable::declare`] tells
    /// all. Bounded in time; after an error the device is as far as it came, and [`Device::resume`] brings it back.
    fn quiesce(&self) -> Quiesce<'_> {
        Box::pin(ready(Ok(())))
    }

    /// As [`Device::quiesce`], but it takes as long as it takes: for a reset of the machine, after which guest memory is
    /// used for something else. A device that cannot be sure that nobody writes there any more does not come to rest.
    fn quiesce_fully(&self) -> Quiesce<'_> {
        self.quiesce()
    }

    /// The vCPUs are about to run: for the first time, after a pause or after [`Device::restore`]. A device that may
    /// have missed a kick or an interrupt while they stood still makes up for it here, once.
    fn resume(&self) {}
}

/// Why a device does not come to rest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{device} does not come to rest: {what}")]
pub struct QuiesceError {
    /// The device.
    pub device: String,
    /// What stands in the way, and what to do about it.
    pub what: String,
}

/// Why a state cannot be taken over.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The payload cannot be read.
    #[error(transparent)]
    Payload(#[from] PayloadError),
    /// A value in it is impossible, or this host cannot take it.
    #[error("the state of {device} has {what}")]
    Value {
        /// The device.
        device: String,
        /// The value at fault.
        what: String,
    },
    /// The kernel refuses it.
    #[error("the state of {device} is refused by the kernel: {what}")]
    Kernel {
        /// The device.
        device: String,
        /// What was asked.
        what: String,
        /// What the kernel said.
        source: std::io::Error,
    },
}
