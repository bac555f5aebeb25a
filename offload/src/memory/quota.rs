//! How much of this process's address space foreign memory may take.
//!
//! A sealed memfd of many tebibytes costs its owner nothing, and the kernel gives a process a fixed number of mappings:
//! without a bound, one front end could leave no room for its neighbours, nor for the allocator. The bound is on all
//! sessions together; whoever comes too late is refused and told why.

use super::MemoryError;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The most bytes mapped at one time: three quarters of what x86-64 gives a process with four-level page tables.
pub const MAX_BYTES: u64 = 96 << 40;
/// The most mappings at one time: half of the kernel's default for a process (vm.max_map_count).
pub const MAX_MAPPINGS: u64 = 32_000;

static BYTES: AtomicU64 = AtomicU64::new(0);
static MAPPINGS: AtomicU64 = AtomicU64::new(0);

/// A share of the quota, given back when dropped.
#[derive(Debug)]
pub(super) struct Share {
    bytes: u64,
}

impl Share {
    /// Takes one mapping of `bytes`.
    pub fn take(bytes: u64) -> Result<Self, MemoryError> {
        let add = |sum: &AtomicU64, n: u64, most: u64| {
            let within = |now: u64| now.checked_add(n).filter(|next| *next <= most);
            sum.fetch_update(Relaxed, Relaxed, within).is_ok()
        };
        if !add(&MAPPINGS, 1, MAX_MAPPINGS) {
            return Err(MemoryError::Quota);
        }
        if !add(&BYTES, bytes, MAX_BYTES) {
            MAPPINGS.fetch_sub(1, Relaxed);
            return Err(MemoryError::Quota);
        }
        Ok(Self { bytes })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        BYTES.fetch_sub(self.bytes, Relaxed);
        MAPPINGS.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_much_is_refused_and_what_is_given_back_can_be_taken() {
        let most = Share::take(MAX_BYTES / 2).unwrap();
        assert!(matches!(Share::take(MAX_BYTES / 2 + 1), Err(MemoryError::Quota)));
        drop(most);
        drop(Share::take(MAX_BYTES / 2 + 1).unwrap());
    }
}
