//! A token bucket of one dimension.
//!
//! At time *t*, in nanoseconds since the bucket was made, `rate · t` tokens have come; they are computed from *t* itself,
//! so that no rounding adds up. The bucket's only state is the number of tokens that are gone: taken, or run over the rim
//! while the bucket was full. What is in it is `rate · t + burst - gone`. Tokens are counted in parts that come several in
//! a nanosecond, so that a bucket is not less full than the clock can say.
//!
//! Invariants: who goes when told to never makes more than `rate · t + burst` over any time *t* (plus what its largest
//! request has beyond a burst: such a request goes when the bucket is full, into debt); a bucket that is asked all the
//! time gives its whole rate. A clock that stands still, or jumps back, brings no token twice: there are none until it is
//! where it was.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The highest rate, in tokens a second: as bytes, 144 Gbit/s. What comes of it in a second fits 64 bits as billionths,
/// and the numbers last for thirty years of service.
pub const HIGHEST: u64 = 18_000_000_000;
/// A burst is what comes in a second divided by this.
const BURSTS_PER_SECOND: u64 = 10;
/// Nanoseconds in a second.
const SECOND: u64 = 1_000_000_000;

/// A rate that no bucket can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a rate of {0} a second: 1 to {HIGHEST} are possible")]
pub struct BadRate(pub u64);

/// Whether a request may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    Go,
    /// It may from this time on, in nanoseconds since the bucket was made.
    NotBefore(u64),
}

/// A token bucket.
#[derive(Debug)]
pub struct Bucket {
    /// Parts that come in a second.
    rate: NonZeroU64,
    /// A token has two to the power of this many parts.
    shift: u32,
    /// The most parts that may go at once.
    burst: u64,
    /// Parts that are gone. Changed by compare-and-swap: it guards no other memory, so that relaxed order is enough.
    gone: AtomicU64,
}

impl Bucket {
    /// A full bucket for `rate` tokens a second. Its burst is a tenth of that, and one token at least.
    ///
    /// # Errors
    /// The rate is zero or higher than [`HIGHEST`].
    pub fn new(rate: u64) -> Result<Self, BadRate> {
        // As many parts as the highest rate leaves room for.
        let shift = HIGHEST.checked_div(rate).and_then(u64::checked_ilog2).ok_or(BadRate(rate))?;
        let parts = NonZeroU64::new(rate << shift).ok_or(BadRate(rate))?;
        let burst = (rate / BURSTS_PER_SECOND).max(1) << shift;
        Ok(Self { rate: parts, shift, burst, gone: AtomicU64::new(0) })
    }

    /// The most tokens that may go at once.
    pub fn burst(&self) -> u64 {
        self.burst >> self.shift
    }

    /// Takes `tokens` in any case, and says from when on they may be used. Nothing costs nothing, and never waits.
    #[inline]
    pub fn ask(&self, now: u64, tokens: u64) -> Verdict {
        if tokens == 0 {
            return Verdict::Go;
        }
        let (come, parts) = (self.come(now), self.parts(tokens));
        let take = |gone: u64| Some(gone.max(come).saturating_add(parts));
        let before = self.gone.fetch_update(Relaxed, Relaxed, take).unwrap_or_default();
        let need = self.need(before, parts);
        if need <= come { Verdict::Go } else { Verdict::NotBefore(self.when(need)) }
    }

    /// Takes `tokens` if they may be used at once, and none if not.
    #[inline]
    pub fn try_take(&self, now: u64, tokens: u64) -> bool {
        let (come, parts) = (self.come(now), self.parts(tokens));
        let take = |gone: u64| {
            (self.need(gone, parts) <= come).then(|| gone.max(come).saturating_add(parts))
        };
        tokens == 0 || self.gone.fetch_update(Relaxed, Relaxed, take).is_ok()
    }

    /// Gives tokens back that were taken and may not be used yet.
    pub fn give_back(&self, tokens: u64) {
        let give = |gone: u64| Some(gone.saturating_sub(self.parts(tokens)));
        let _ = self.gone.fetch_update(Relaxed, Relaxed, give);
    }

    /// The parts of so many tokens; more than come in thirty years are no more than that.
    #[inline]
    fn parts(&self, tokens: u64) -> u64 {
        tokens.saturating_mul(1 << self.shift)
    }

    /// Whole parts that have come at `now`.
    #[inline]
    fn come(&self, now: u64) -> u64 {
        let rate = self.rate.get();
        // No product of the second one overflows: a rate has that limit.
        let (seconds, rest) = ((now / SECOND).saturating_mul(rate), now % SECOND * rate);
        seconds.saturating_add(rest / SECOND)
    }

    /// How many parts must have come for `parts` to be there when `gone` are gone; a full bucket is enough for any number.
    #[inline]
    fn need(&self, gone: u64, parts: u64) -> u64 {
        gone.saturating_sub(self.burst - parts.min(self.burst))
    }

    /// The first time at which `come` parts have come.
    fn when(&self, come: u64) -> u64 {
        let at = (u128::from(come) * u128::from(SECOND)).div_ceil(u128::from(self.rate.get()));
        u64::try_from(at).unwrap_or(u64::MAX)
    }
}
