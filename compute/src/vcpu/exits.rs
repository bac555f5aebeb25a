//! Exits to user space, counted by reason.
//!
//! Only the vCPU's own thread writes; the driver reads at any time. A plain load and store suffice, without a locked
//! instruction: there is one writer, and a reader may see a count that is one behind.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// Why a vCPU came back to user space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Exit {
    /// A port was read.
    IoIn,
    /// A port was written.
    IoOut,
    /// An address that is not memory was read.
    MmioRead,
    /// An address that is not memory was written.
    MmioWrite,
    /// `HLT`; rare, since KVM's LAPIC waits in the kernel.
    Halt,
    /// A signal, to pause or by accident.
    Interrupted,
    /// A triple fault.
    Shutdown,
    /// KVM cannot emulate or enter the guest.
    Failed,
    /// Anything else.
    Other,
}

/// Names as the control socket shows them, in the order of [`Exit`].
const NAMES: [&str; 9] = [
    "io-in",
    "io-out",
    "mmio-read",
    "mmio-write",
    "halt",
    "interrupted",
    "shutdown",
    "failed",
    "other",
];

/// One vCPU's counters, on cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct ExitCounters([AtomicU64; NAMES.len()]);

impl ExitCounters {
    /// Counts one exit. Only the vCPU's thread calls this.
    pub fn count(&self, exit: Exit) {
        let counter = &self.0[exit as usize];
        counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// The counters above zero, by name.
    #[must_use]
    pub fn snapshot(&self) -> BTreeMap<String, u64> {
        let counters = self.0.iter().map(|counter| counter.load(Ordering::Relaxed));
        let named = NAMES.iter().zip(counters).filter(|(_, count)| *count > 0);
        named.map(|(name, count)| ((*name).to_owned(), count)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_name() {
        let counters = ExitCounters::default();
        counters.count(Exit::IoIn);
        counters.count(Exit::Other);
        counters.count(Exit::Other);
        let expected = [("io-in".to_owned(), 1), ("other".to_owned(), 2)];
        assert_eq!(counters.snapshot(), expected.into());
    }
}
