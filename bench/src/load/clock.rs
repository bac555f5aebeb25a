//! A clock that costs a few nanoseconds: the processor's counter where there is one.
//!
//! Invariant: ticks only mean something as differences, turned into nanoseconds by the scale that [`Clock::new`] measured.

use std::time::{Duration, Instant};

/// A clock in ticks.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// Nanoseconds of one tick.
    scale: f64,
}

impl Clock {
    /// Measures how long a tick is; takes 20 ms.
    #[must_use]
    pub fn new() -> Self {
        let (start, first) = (Instant::now(), now());
        while start.elapsed() < Duration::from_millis(20) {}
        let (elapsed, last) = (start.elapsed(), now());
        let ticks = last.wrapping_sub(first).max(1);
        Self { scale: elapsed.as_nanos() as f64 / ticks as f64 }
    }

    /// Nanoseconds of so many ticks.
    #[must_use]
    pub fn nanoseconds(&self, ticks: u64) -> u64 {
        (ticks as f64 * self.scale) as u64
    }

    /// Ticks of so many seconds.
    #[must_use]
    pub fn ticks(&self, seconds: f64) -> u64 {
        (seconds * 1e9 / self.scale) as u64
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

/// The ticks now.
#[inline(always)]
#[must_use]
pub fn now() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 processor has the counter; reading it has no effect on memory.
    unsafe {
        std::arch::x86_64::_rdtsc()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        use std::sync::OnceLock;
        static START: OnceLock<Instant> = OnceLock::new();
        START.get_or_init(Instant::now).elapsed().as_nanos() as u64
    }
}
