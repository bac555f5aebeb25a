//! A bound on what a guest can make this process do: a token bucket, filled by time.

use std::time::Duration;
use tokio::time::Instant;

/// A token bucket. What a token is, is the owner's business.
#[derive(Debug)]
pub(super) struct Budget {
    rate: u64,
    burst: u64,
    tokens: u64,
    at: Instant,
}

impl Budget {
    /// A full budget of `burst` tokens, which gains `rate` (not 0) a second.
    pub(super) fn new(rate: u64, burst: u64, now: Instant) -> Self {
        Self { rate, burst, tokens: burst, at: now }
    }

    /// Takes `cost`, at most the burst, or says when there will be enough.
    pub(super) fn take(&mut self, cost: u64, now: Instant) -> Result<(), Instant> {
        let nanos = now.saturating_duration_since(self.at).as_nanos();
        let gained = u64::try_from(nanos * u128::from(self.rate) / 1_000_000_000);
        let tokens = self.tokens.saturating_add(gained.unwrap_or(u64::MAX)).min(self.burst);
        match tokens.checked_sub(cost) {
            Some(left) => {
                (self.tokens, self.at) = (left, now);
                Ok(())
            }
            None => {
                // Rounded up, so that it is enough then.
                let missing = cost.saturating_sub(self.tokens).saturating_mul(1_000_000_000);
                Err(self.at + Duration::from_nanos(missing.div_ceil(self.rate)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_the_rate() {
        const RATE: u64 = 1 << 20;
        const BURST: u64 = 256 << 10;
        let start = Instant::now();
        let mut budget = Budget::new(RATE, BURST, start);
        assert_eq!(budget.take(BURST, start), Ok(()));
        let later = budget.take(RATE / 4, start).unwrap_err();
        assert_eq!(later - start, Duration::from_millis(250));
        assert!(budget.take(RATE / 4, start + Duration::from_millis(249)).is_err());
        assert_eq!(budget.take(RATE / 4, start + Duration::from_millis(250)), Ok(()));
        let much_later = start + Duration::from_secs(60);
        assert_eq!(budget.take(BURST, much_later), Ok(()), "never more than a burst");
        assert!(budget.take(1, much_later).is_err());
    }
}
