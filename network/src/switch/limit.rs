//! How often a guest may ask the card's own servers: what it asks for costs the card more than a frame costs the guest,
//! and the time is that of all ports.
//!
//! Invariant: over any time, at most [`BURST`] and [`PER_TICK`] for each tick.

/// Packets that may come at once.
const BURST: u32 = 512;
/// Packets for each sixty-fourth of a second: 1,024 a second, which is what the great clouds allow.
const PER_TICK: u32 = 16;

/// What a port has left.
#[derive(Debug)]
pub struct Limit {
    left: u32,
    /// The tick up to which it was filled.
    filled: u32,
}

impl Limit {
    /// A whole burst.
    pub fn new(now: u32) -> Self {
        Self { left: BURST, filled: now }
    }

    /// Whether one more may come, in tick `now`; counts it if so.
    pub fn allows(&mut self, now: u32) -> bool {
        let gone = now.wrapping_sub(self.filled).min(BURST);
        self.filled = now;
        self.left = (self.left + gone * PER_TICK).min(BURST);
        let allowed = self.left > 0;
        self.left -= u32::from(allowed);
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let mut limit = Limit::new(u32::MAX);
        let count = |limit: &mut Limit, now| (0..2000).filter(|_| limit.allows(now)).count();
        assert_eq!(count(&mut limit, u32::MAX), 512);
        // Time goes around.
        assert_eq!(count(&mut limit, 0), 16);
        assert_eq!(count(&mut limit, 64), 512);
        assert_eq!(count(&mut limit, 66), 32);
    }
}
