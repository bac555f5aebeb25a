//! Worker threads: each owns queues outright and moves their data.
//!
//! A worker runs the same loop for every card service; what is done with a queue is a [`WorkerService`]. A queue in
//! use is polled with kicks off; one that had nothing for the spin time is armed and waits for its kick eventfd; when
//! all are armed, the worker sleeps in `epoll_wait`. A queue that is held, because of its rate limit, is left alone until
//! its time has come. The driver reaches a worker only through its mailbox.
//!
//! Invariants: no lock and no allocation while queues move data; a queue belongs to one worker at a time, and comes
//! back to the driver only after the service has let go of it; a fault of one queue stops that queue and is reported,
//! the worker goes on.

mod config;
mod handle;
mod mailbox;
mod outbox;
mod service;
mod slots;
mod thread;

pub use config::WorkerConfig;
pub(crate) use handle::Handle;
pub(crate) use mailbox::{Order, QueueChange};
pub use outbox::Outbox;
pub use service::{Interest, QueueFault, QueueKey, QueueSlot, Registry, WorkerService};
pub(crate) use thread::Note;
