//! virtio devices and their PCI transport (virtio 1.2).
//!
//! ```text
//!  guest's driver ── registers in a BAR ──► transport ── orders ──► device (rng, blk, net)
//!        │                                     │                       │
//!        └── notify address ── ioeventfd ── kick eventfd ──────────────┤ in this process, or
//!            interrupt ◄────── irqfd ────── call eventfd ◄─────────────┘ in a card over vhost-user
//! ```
//!
//! [`VirtioPci`] is the transport: registers, queues' addresses, interrupt vectors. Behind it is a [`VirtioDevice`]. vCPU
//! threads only ever touch the transport; a device gets *orders* through a mailbox that holds the newest of each
//! kind, and a task of the driver's runtime carries them out. So no vCPU waits for a back end, whatever state that is in,
//! and a guest that resets and sets up in a loop fills no queue.
//!
//! Invariants: no register access panics or blocks; a ring is handed to a device only if it lies whole in guest memory;
//! a device that is reset reports status 0 only when nothing touches its rings any more.

#[doc(hidden)]
pub mod fuzz;
pub mod rng;
pub mod vhost_user;

mod budget;
mod device;
mod features;
mod layout;
mod link;
mod mailbox;
mod registers;
mod ring;
mod state;
mod transport;

#[cfg(test)]
mod driver;
#[cfg(test)]
mod tests;

pub use device::{Activation, ActiveQueue, Kind, VirtioDevice};
pub use link::DeviceLink;
pub use ring::{RingMemoryError, ring_memory};
pub use transport::{BuildError, Host, KvmHost, VirtioPci};
