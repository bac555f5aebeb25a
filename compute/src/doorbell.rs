//! How vCPU threads and devices tell the driver that something happened.
//!
//! Bits and one eventfd: ringing twice is ringing once, so a guest that powers off in a loop floods nobody. Devices
//! ring, the driver waits on [`Doorbell::event`] and takes what rang with [`Doorbell::take`].

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use vmm_sys_util::eventfd::EventFd;

/// What rang.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Ring {
    /// The guest asked for power-off.
    PowerOff = 1 << 0,
    /// The guest asked for a reset, or a vCPU triple-faulted.
    Reset = 1 << 1,
    /// A vCPU cannot go on; its thread's record says why.
    VcpuFailed = 1 << 2,
    /// A device's next timer has changed.
    Timers = 1 << 3,
}

/// The rings that end the guest's present run: a vCPU that notices one stands still until the driver has decided.
const ENDING: u32 = Ring::PowerOff as u32 | Ring::Reset as u32 | Ring::VcpuFailed as u32;

/// The driver's doorbell.
#[derive(Debug)]
pub struct Doorbell {
    rings: AtomicU32,
    event: EventFd,
}

impl Doorbell {
    /// A silent doorbell.
    ///
    /// # Errors
    /// The process is out of descriptors.
    pub fn new() -> io::Result<Self> {
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        Ok(Self { rings: AtomicU32::new(0), event })
    }

    /// Rings. Callable from any thread.
    pub fn ring(&self, ring: Ring) {
        let before = self.rings.fetch_or(ring as u32, Ordering::AcqRel);
        if before & ring as u32 == 0 {
            // A counter cannot be full after one increment per bit, and the driver drains it.
            let _ = self.event.write(1);
        }
    }

    /// Whether something rang that ends the guest's present run and the driver has not taken yet.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        self.rings.load(Ordering::Acquire) & ENDING != 0
    }

    /// Takes what rang since the last call.
    pub fn take(&self) -> Rings {
        // First the counter: a ring after this line signals again and is not lost.
        let _ = self.event.read();
        Rings(self.rings.swap(0, Ordering::AcqRel))
    }

    /// Readable while something has rung.
    #[must_use]
    pub fn event(&self) -> &EventFd {
        &self.event
    }
}

/// A set of rings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rings(u32);

impl Rings {
    /// Whether `ring` is among them.
    #[must_use]
    pub fn contains(self, ring: Ring) -> bool {
        self.0 & ring as u32 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ringing_twice_is_ringing_once_and_taking_silences() {
        let bell = Doorbell::new().unwrap();
        bell.ring(Ring::Timers);
        assert!(!bell.is_ending());
        bell.ring(Ring::Reset);
        bell.ring(Ring::Reset);
        assert!(bell.is_ending());
        let rings = bell.take();
        assert!(rings.contains(Ring::Reset) && rings.contains(Ring::Timers));
        assert!(!rings.contains(Ring::PowerOff));
        assert!(!bell.is_ending());
        assert_eq!(bell.take(), Rings(0));
    }
}
