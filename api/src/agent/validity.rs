//! How long a certificate is good, and when the next one is asked for.

use serde::{Deserialize, Serialize};

/// When a certificate is good, in milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Validity {
    /// From when.
    pub from: u64,
    /// Until when.
    pub until: u64,
}

impl Validity {
    /// When the next certificate is asked for: when a third of the life is left, or up to a twelfth of the life later,
    /// as `dice` says, so that servers that joined together do not come together.
    #[must_use]
    pub fn renew_at(&self, dice: u16) -> u64 {
        let life = u128::from(self.until.saturating_sub(self.from));
        let before = life / 3 - life * u128::from(dice) / 12 / u128::from(u16::MAX);
        self.until.saturating_sub(u64::try_from(before).unwrap_or(u64::MAX))
    }

    /// How long to wait after a renewal that failed, in milliseconds: some tries before the end, an hour at most.
    #[must_use]
    pub fn retry_after(&self, now: u64) -> u64 {
        (self.until.saturating_sub(now) / 20).clamp(1_000, 3_600_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_in_the_last_third_of_its_life() {
        let validity = Validity { from: 1_000, until: 13_000 };
        assert_eq!((validity.renew_at(0), validity.renew_at(u16::MAX)), (9_000, 10_000));
        for dice in (0..=u16::MAX).step_by(997) {
            assert!((9_000..=10_000).contains(&validity.renew_at(dice)));
        }
        // Nonsense is renewed at once, and nothing overflows.
        assert_eq!(Validity { from: 9, until: 3 }.renew_at(7), 3);
        let for_ever = Validity { from: 0, until: u64::MAX };
        assert!(for_ever.renew_at(u16::MAX) > for_ever.renew_at(0));
        assert_eq!((validity.retry_after(12_999), for_ever.retry_after(0)), (1_000, 3_600_000));
    }
}
