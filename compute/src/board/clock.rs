//! The time that devices of the board tell, and when they want to be called.

use rustix::time::{ClockId, clock_gettime};
use std::fmt::Debug;

const NS_PER_S: u64 = 1_000_000_000;

/// A source of time. Devices take it as an argument so that their tests own it.
pub trait Clock: Send + Sync + Debug {
    /// Nanoseconds since some moment in the past; never goes back.
    fn monotonic_ns(&self) -> u64;
    /// Nanoseconds since 1970 in real time.
    fn realtime_ns(&self) -> u64;
}

/// The host's clocks.
#[derive(Debug, Clone, Copy)]
pub struct HostClock;

impl Clock for HostClock {
    fn monotonic_ns(&self) -> u64 {
        // Boot time: the guest's timers run on while the host is suspended, as its wall clock does.
        read(ClockId::Boottime)
    }

    fn realtime_ns(&self) -> u64 {
        read(ClockId::Realtime)
    }
}

fn read(id: ClockId) -> u64 {
    let time = clock_gettime(id);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds * NS_PER_S + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// A device with timers. The driver calls it at the time it names; what it names may change whenever it rings
/// [`Ring::Timers`](crate::doorbell::Ring::Timers).
pub trait Timed: Send + Sync {
    /// When the device next wants to be called, on the monotonic clock; `None` while no timer is armed.
    fn next_timer_ns(&self) -> Option<u64>;
    /// The time named has come, or nearly: raises what is due.
    fn on_timer(&self);
}

/// A clock that a test owns.
#[cfg(test)]
pub(crate) mod test {
    use super::{Clock, NS_PER_S};
    use std::sync::atomic::{AtomicU64, Ordering};

    #[derive(Debug, Default)]
    pub(crate) struct TestClock(AtomicU64);

    impl TestClock {
        pub(crate) fn at(realtime_s: u64) -> Self {
            Self(AtomicU64::new(realtime_s * NS_PER_S))
        }

        pub(crate) fn advance(&self, ns: u64) {
            self.0.fetch_add(ns, Ordering::Relaxed);
        }
    }

    impl Clock for TestClock {
        fn monotonic_ns(&self) -> u64 {
            self.0.load(Ordering::Relaxed)
        }

        fn realtime_ns(&self) -> u64 {
            self.0.load(Ordering::Relaxed)
        }
    }
}
