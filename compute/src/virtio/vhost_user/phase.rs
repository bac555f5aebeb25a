//! Where a device's task is between a driver and a back end.
//!
//! ```text
//!  idle ──start──► active ──reset──► stopping ──stopped──► idle
//!                   ▲  └────rest───► stopping ──stopped──► resting
//!                   └───────────── resume ────────────────────┘
//! ```
//!
//! *Active* says nothing of the back end: it may be there or not. A reset of a resting device goes through *stopping* too.

use super::super::device::Activation;
use super::super::mailbox::{Resting, RingBase};
use super::control::ControlQueue;

/// The phase. See the module's diagram.
#[derive(Debug, Default)]
pub(super) enum Phase {
    #[default]
    Idle,
    Active(Active),
    Stopping {
        active: Active,
        why: Why,
    },
    Resting {
        active: Active,
        bases: Vec<RingBase>,
    },
}

impl Phase {
    /// Whether orders can be carried out now.
    pub(super) fn takes_orders(&self) -> bool {
        !matches!(self, Self::Stopping { .. })
    }

    /// Whether the phase may go from here to `next`.
    pub(super) fn can_become(&self, next: &Self) -> bool {
        matches!(
            (self, next),
            (Self::Idle | Self::Resting { .. }, Self::Active(_))
                | (Self::Idle, Self::Resting { .. })
                | (Self::Active(_) | Self::Resting { .. }, Self::Stopping { .. })
                | (Self::Stopping { .. }, Self::Idle | Self::Resting { .. })
        )
    }

    pub(super) fn active_mut(&mut self) -> Option<&mut Active> {
        match self {
            Self::Idle => None,
            Self::Active(active) | Self::Stopping { active, .. } | Self::Resting { active, .. } => {
                Some(active)
            }
        }
    }
}

/// Why rings stop.
#[derive(Debug)]
pub(super) enum Why {
    /// The driver has reset the device; its number.
    Reset(u64),
    /// The vCPUs stand still, and these wait for the device to come to rest.
    Rest {
        waiting: Vec<Resting>,
        /// Where the control queue goes on, if there is one.
        control: Option<RingBase>,
        /// Whether the back end was, or may have been, at work on the rings when the order came.
        started: bool,
        /// Whether such a back end was cut off because it did not stop in time.
        late: bool,
    },
}

/// What a driver has set up.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) activation: Activation,
    /// Rings of the back end, by index.
    pub(super) rings: Vec<u16>,
    /// The control queue's index, if the driver set one up.
    pub(super) control_index: Option<u16>,
    /// The control queue, while it is served.
    pub(super) control: Option<ControlQueue>,
    /// Pairs of rings that are enabled; of no meaning where queues are no pairs.
    pub(super) pairs: u16,
}

impl Active {
    /// Splits what the driver set up into rings of the back end and the control queue. `pairs` is how many pairs the
    /// device has, if it has pairs; `several` whether the driver has taken more than one, `control` whether it has
    /// taken the control queue.
    pub(super) fn new(
        activation: Activation,
        pairs: Option<u16>,
        several: bool,
        control: bool,
    ) -> Self {
        // virtio 1.2, 5.1.2: without several pairs the control queue comes third.
        let usable = match pairs {
            Some(pairs) => 2 * if several { pairs } else { 1 },
            None => u16::MAX,
        };
        let enabled = |index: u16| activation.queues.iter().any(|queue| queue.index == index);
        let control_index = Some(usable).filter(|index| control && enabled(*index));
        let rings = activation.queues.iter().map(|queue| queue.index);
        let rings = rings.filter(|index| *index < usable).collect();
        Self { activation, rings, control_index, control: None, pairs: 1 }
    }

    /// The driver's word on queue `index`.
    pub(super) fn queue(&self, index: u16) -> Option<&super::super::device::ActiveQueue> {
        self.activation.queues.iter().find(|queue| queue.index == index)
    }
}
