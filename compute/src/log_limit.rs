//! Logging that a guest can cause, bounded: at most one line per second and place.
//!
//! A place that logs on a guest's behalf owns a [`LogLimit`] and asks it first.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

const INTERVAL_MS: u64 = 1000;

/// Lets one line per second through and counts the rest.
#[derive(Debug)]
pub struct LogLimit {
    born: Instant,
    /// Milliseconds since `born` from which on the next line may pass.
    next: AtomicU64,
    suppressed: AtomicU64,
}

impl Default for LogLimit {
    fn default() -> Self {
        Self { born: Instant::now(), next: AtomicU64::new(0), suppressed: AtomicU64::new(0) }
    }
}

impl LogLimit {
    /// Whether a line may be logged now: if so, how many were suppressed since the last one.
    pub fn pass(&self) -> Option<u64> {
        self.pass_at(self.born.elapsed().as_millis() as u64)
    }

    fn pass_at(&self, now: u64) -> Option<u64> {
        let next = self.next.load(Ordering::Relaxed);
        let won = now >= next
            && self
                .next
                .compare_exchange(next, now + INTERVAL_MS, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if won {
            return Some(self.suppressed.swap(0, Ordering::Relaxed));
        }
        self.suppressed.fetch_add(1, Ordering::Relaxed);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_passes_per_second_and_the_rest_is_counted() {
        let limit = LogLimit::default();
        assert_eq!(limit.pass_at(5), Some(0));
        assert_eq!((limit.pass_at(6), limit.pass_at(1004)), (None, None));
        assert_eq!(limit.pass_at(1005), Some(2));
    }
}
