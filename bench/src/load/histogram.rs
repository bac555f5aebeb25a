//! Latencies, counted in buckets that are 1/64 of their size wide.

/// Buckets per power of two.
const SUB: u64 = 64;
const SUB_BITS: u32 = 6;

/// Counts of values.
#[derive(Debug, Clone)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; (64 - SUB_BITS as usize + 1) * SUB as usize], total: 0 }
    }
}

fn bucket(value: u64) -> usize {
    if value < SUB {
        return value as usize;
    }
    let shift = 63 - value.leading_zeros() - SUB_BITS;
    ((u64::from(shift) + 1) * SUB + (value >> shift) - SUB) as usize
}

/// The middle of a bucket.
fn middle(bucket: usize) -> u64 {
    let (power, sub) = (bucket as u64 / SUB, bucket as u64 % SUB);
    if power == 0 {
        return sub;
    }
    let shift = power - 1;
    ((SUB + sub) << shift) + ((1 << shift) >> 1)
}

impl Histogram {
    /// Counts a value.
    #[inline]
    pub fn record(&mut self, value: u64) {
        self.counts[bucket(value)] += 1;
        self.total += 1;
    }

    /// Values counted.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.counts.fill(0);
        self.total = 0;
    }

    /// The value below which the share `quantile` (0 to 1) of all lies; 0 without values.
    #[must_use]
    pub fn quantile(&self, quantile: f64) -> u64 {
        let rank = ((self.total as f64 * quantile).ceil() as u64).max(1);
        let mut seen = 0;
        for (at, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank && *count > 0 {
                return middle(at);
            }
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_a_bucket_of_the_truth() {
        let mut histogram = Histogram::default();
        (0..100_000u64).for_each(|value| histogram.record(value * 3));
        for (quantile, truth) in [(0.5, 150_000.0), (0.99, 297_000.0), (0.999, 299_700.0)] {
            let got = histogram.quantile(quantile) as f64;
            assert!((got - truth).abs() / truth < 0.02, "{quantile}: {got}");
        }
        histogram.record(u64::MAX);
        assert_eq!(histogram.total(), 100_001);
    }
}
