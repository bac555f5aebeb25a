//! Keeps a guest from filling the log.
//!
//! Invariant: at most one line per interval for each thing that has one of these; what was kept back is counted and told
//! with the next line.

use std::time::{Duration, Instant};

/// Between two lines.
const INTERVAL: Duration = Duration::from_secs(1);

/// Whether a line may be written now.
#[derive(Debug, Default)]
pub struct Hush {
    last: Option<Instant>,
    kept_back: u64,
}

impl Hush {
    /// How many lines were kept back since the last one, if one may be written at `now`.
    pub fn allows(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now.saturating_duration_since(last) < INTERVAL) {
            self.kept_back += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.kept_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_per_interval_tells_of_the_others() {
        let mut hush = Hush::default();
        let start = Instant::now();
        assert_eq!(hush.allows(start), Some(0));
        assert_eq!(hush.allows(start), None);
        assert_eq!(hush.allows(start + INTERVAL / 2), None);
        assert_eq!(hush.allows(start + INTERVAL), Some(2));
    }
}
