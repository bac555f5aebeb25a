//! Rings that this process serves itself: entropy, and a NIC's control queue.
//!
//! [`ring_memory`] maps guest memory once more for [`bixi_offload::ring`], whose checked translation all rings share.
//! [`LocalRing`] is one queue with its two eventfds; a task of the driver's runtime waits on it and works it off.

use super::device::ActiveQueue;
use crate::memory::GuestRam;
use bixi_offload::memory::{GuestMemory, MappingOptions, MemoryError, RegionDescriptor};
use bixi_offload::ring::{Notifiers, QueueLayout, QueueSetup, RingError, SplitQueue};
use bixi_offload::sigbus::Watch;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use vmm_sys_util::eventfd::EventFd;

/// Guest memory cannot be mapped for rings.
#[derive(Debug, thiserror::Error)]
#[error("cannot map guest memory for rings")]
pub struct RingMemoryError(#[from] MemoryError);

/// Guest memory as ring code wants it.
///
/// # Errors
/// The kernel refuses the mapping.
pub fn ring_memory(ram: &GuestRam) -> Result<Arc<GuestMemory>, RingMemoryError> {
    let regions: Vec<_> = ram
        .regions()
        .iter()
        .map(|region| {
            let descriptor = RegionDescriptor {
                guest_addr: region.guest_address,
                size: region.size,
                user_addr: region.guest_address,
                mmap_offset: region.file_offset,
            };
            (descriptor, ram.fd())
        })
        .collect();
    let options = MappingOptions { require_sealed: true, watch: Watch::new() };
    Ok(GuestMemory::map(&regions, &options)?)
}

/// A queue's kick eventfd, to wait on.
#[derive(Debug)]
pub(super) struct Kick(AsyncFd<Event>);

#[derive(Debug)]
struct Event(Arc<EventFd>);

impl AsRawFd for Event {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Kick {
    /// Must be called inside the runtime; one eventfd is waited for once at a time.
    fn new(event: Arc<EventFd>) -> io::Result<Self> {
        // SAFETY: `Event` holds the eventfd, so the descriptor stays open and the same until the `AsyncFd` is dropped.
        let registered =
            unsafe { AsyncFd::register_with_interest(Event(event), Interest::READABLE) };
        Ok(Self(registered?))
    }

    /// Waits for the driver to kick, and takes the kick. Cancel-safe.
    pub(super) async fn taken(&self) -> io::Result<()> {
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|event| event.get_ref().0.read()) {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                Ok(Err(_)) | Err(_) => {}
            }
        }
    }
}

/// Why a ring cannot be served.
#[derive(Debug, thiserror::Error)]
pub(super) enum LocalRingError {
    #[error("the driver broke the ring")]
    Ring(#[from] RingError),
    #[error("a descriptor cannot be used")]
    Descriptor(#[from] io::Error),
}

/// A queue served by this process.
#[derive(Debug)]
pub(super) struct LocalRing {
    pub(super) queue: SplitQueue,
    pub(super) kick: Kick,
}

impl LocalRing {
    /// Begins at available index `base`. Must be called inside the runtime.
    pub(super) fn new(
        memory: &Arc<GuestMemory>,
        features: u64,
        active: &ActiveQueue,
        base: u16,
    ) -> Result<Self, LocalRingError> {
        let call = match &active.call {
            Some(call) => Some(Arc::new(call.as_fd().try_clone_to_owned()?)),
            None => None,
        };
        let setup = QueueSetup {
            layout: QueueLayout {
                size: active.size,
                descriptors: active.desc,
                available: active.avail,
                used: active.used,
            },
            features,
            base,
            notifiers: Notifiers { call, own: true, ..Notifiers::default() },
            inflight: None,
            log: None,
        };
        let queue = SplitQueue::new(Arc::clone(memory), setup)?;
        Ok(Self { queue, kick: Kick::new(Arc::clone(&active.kick))? })
    }

    /// Another interrupt for the queue, or none.
    pub(super) fn set_call(&mut self, call: Option<&crate::pci::msix::Call>) -> io::Result<()> {
        let call = match call {
            Some(call) => Some(Arc::new(call.as_fd().try_clone_to_owned()?)),
            None => None,
        };
        self.queue.set_call(call);
        Ok(())
    }
}
