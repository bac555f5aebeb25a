//! Rate limits: how many operations and bytes a second a disk or a port may have.
//!
//! [`Bucket`] is the arithmetic of one dimension, pure: the time is given to it. [`Limiter`] holds one for operations and
//! one for bytes, and reads an [`Instant`] as the buckets' time. What is not limited has no limiter at all, so that its
//! path has one branch more and nothing else.
//!
//! A limiter is shared by all queues of what it limits, also where they live on different workers: a bucket is one
//! number that is changed by compare-and-swap, so that no worker waits for another. Who is told to wait **has its tokens
//! already**: [`Limiter::ask`] takes them in the order in which it is asked and says from when on they may be used. So
//! nobody can be overtaken for ever, neither a large request by many small ones nor a queue by one that is looked at
//! first, and who waited need not ask again.
//!
//! Called by the workers of both card services; a queue that must wait is put to rest by
//! [`Outbox::hold`](crate::worker::Outbox::hold), and its next request remembered in a [`QueueLimit`].

mod bucket;
mod queue;

#[cfg(test)]
mod tests;

pub use bucket::{BadRate, Bucket, HIGHEST, Verdict};
pub use queue::QueueLimit;

use std::time::{Duration, Instant};

/// The grid on which waiting queues wake, in nanoseconds: many that wait on one worker wake it once. Far shorter than a
/// burst is long, so that it costs nobody any rate.
const TICK: u64 = 100_000;

/// What a request costs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// Operations or packets.
    pub operations: u64,
    /// Bytes.
    pub bytes: u64,
}

/// The limits of one disk, or of one direction of a port.
#[derive(Debug)]
pub struct Limiter {
    operations: Option<Bucket>,
    bytes: Option<Bucket>,
    began: Instant,
}

impl Limiter {
    /// A limiter with full buckets, for so many operations and bytes a second; `None` if neither is limited.
    ///
    /// # Errors
    /// A rate that no bucket can have.
    pub fn new(operations: Option<u64>, bytes: Option<u64>) -> Result<Option<Self>, BadRate> {
        let (operations, bytes) =
            (operations.map(Bucket::new).transpose()?, bytes.map(Bucket::new).transpose()?);
        if operations.is_none() && bytes.is_none() {
            return Ok(None);
        }
        Ok(Some(Self { operations, bytes, began: Instant::now() }))
    }

    /// Takes the tokens of a request, and says from when on it may go; `None` if that is at once. Who is told to wait asks
    /// no more for this request: it goes when the time has come.
    #[inline]
    pub fn ask(&self, now: Instant, cost: Cost) -> Option<Instant> {
        let at = self.time(now);
        let ask = |bucket: &Option<Bucket>, tokens| match bucket {
            Some(bucket) => bucket.ask(at, tokens),
            None => Verdict::Go,
        };
        match (ask(&self.operations, cost.operations), ask(&self.bytes, cost.bytes)) {
            (Verdict::Go, Verdict::Go) => None,
            (Verdict::NotBefore(one), Verdict::NotBefore(other)) => self.instant(one.max(other)),
            (Verdict::NotBefore(at), _) | (_, Verdict::NotBefore(at)) => self.instant(at),
        }
    }

    /// Takes the tokens of what may go at once, and nothing if it may not. For what is dropped rather than held back.
    #[inline]
    pub fn try_take(&self, now: Instant, cost: Cost) -> bool {
        let at = self.time(now);
        let take = |bucket: &Option<Bucket>, tokens| {
            bucket.as_ref().is_none_or(|bucket| bucket.try_take(at, tokens))
        };
        if !take(&self.operations, cost.operations) {
            return false;
        }
        let both = take(&self.bytes, cost.bytes);
        if !both && let Some(bucket) = &self.operations {
            bucket.give_back(cost.operations);
        }
        both
    }

    /// Gives the tokens of a request back that will not go, and may not go yet at `now`.
    ///
    /// Only for those: when its time has come, others may have counted on it.
    pub fn give_back(&self, cost: Cost) {
        if let Some(bucket) = &self.operations {
            bucket.give_back(cost.operations);
        }
        if let Some(bucket) = &self.bytes {
            bucket.give_back(cost.bytes);
        }
    }

    fn time(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.began).as_nanos()).unwrap_or(u64::MAX)
    }

    /// The tick at or after this time.
    fn instant(&self, at: u64) -> Option<Instant> {
        let tick = at.checked_next_multiple_of(TICK).unwrap_or(at);
        // A time that the clock cannot say does not come.
        let far = Duration::from_secs(365 * 24 * 3600);
        self.began
            .checked_add(Duration::from_nanos(tick))
            .or_else(|| Instant::now().checked_add(far))
    }
}
