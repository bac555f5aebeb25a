//! Split virtqueues, the device's side (virtio 1.2, section 2.7).
//!
//! [`SplitQueue`] reads and writes a ring directly in shared memory. The cycle of a data path is
//!
//! ```text
//! take(max, &mut batch)      avail.idx read once, chains flattened into checked segments
//!   … for each chain: use chain.readable() and chain.writable() …
//! complete(head, written)    the used element is written, in any order of heads
//! publish() -> call?         used.idx written once; whether the driver wants a call (for several queues at once:
//!                            reveal() each, fence_before_calls(), wants_call() each)
//! signal()                   the call eventfd, if it does
//! ```
//!
//! Invariants: no byte of the ring is trusted. Every index is masked or compared, every descriptor is read once and
//! its address is translated and checked once, a chain has at most as many descriptors as the queue (an indirect
//! table at most [`MAX_INDIRECT`]), and whatever breaks these rules is a [`RingError`], after which the queue gives
//! nothing more and its session ends. Nothing is allocated and no lock is taken after `new`.
//!
//! With an in-flight record ([`InflightQueue`]) a process that dies at any instant leaves behind which heads it had
//! taken and not published; the queue that is built next from the same record hands these out again, oldest first,
//! before anything new.
//!
//! Callers: the card services' workers. The session ([`crate::vhost_user`]) decides when a queue exists.

mod batch;
mod error;
mod inflight;
mod layout;
mod notify;
mod queue;
mod state;
mod walk;

pub use batch::{Batch, Chain, Segments};
pub use error::RingError;
pub use inflight::{InflightMap, InflightQueue};
pub use layout::{MAX_INDIRECT, MAX_QUEUE_SIZE, QueueLayout};
pub use notify::{Notifiers, SharedFd};
pub use queue::{QueueSetup, SplitQueue, UsedLog, fence_before_calls};
pub use state::QueueState;

/// VIRTIO_RING_F_INDIRECT_DESC as a feature bit mask.
pub const FEATURE_INDIRECT: u64 = 1 << 28;
/// VIRTIO_RING_F_EVENT_IDX as a feature bit mask.
pub const FEATURE_EVENT_IDX: u64 = 1 << 29;
/// VIRTIO_F_VERSION_1 as a feature bit mask.
pub const FEATURE_VERSION_1: u64 = 1 << 32;
#[doc(hidden)]
pub mod fuzz;
#[cfg(test)]
pub(crate) mod model;
#[cfg(test)]
mod tests;
