//! Which requests have been seen: a signed request is answered once.
//!
//! A request is remembered by its key and nonce for as long as its timestamp is accepted. Memory is bounded per key:
//! where a key fills its share, the oldest are forgotten and the *floor* rises with them, so that what was forgotten
//! is refused for its timestamp. A replay is never accepted, and one key's flood shortens no other key's window. What
//! an earlier process had seen is below the floor too: nothing signed before this process began is accepted.

use std::collections::{BTreeSet, HashMap, HashSet};

/// How far a request's timestamp may be from the cloud's clock, in seconds.
pub const WINDOW: i64 = 15 * 60;
/// Requests remembered per key: at some 100 bytes each, 6 MiB for a key that floods.
const MAX_PER_KEY: usize = 1 << 16;

/// Why a request is not new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stale {
    /// This nonce was used before.
    Used,
    /// The timestamp is outside of the window, or below the key's floor.
    Timestamp,
}

/// What has been seen.
#[derive(Debug)]
pub struct Nonces {
    began: i64,
    capacity: usize,
    keys: HashMap<String, Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// Timestamps below it are refused.
    floor: i64,
    nonces: HashSet<[u8; 16]>,
    by_time: BTreeSet<(i64, [u8; 16])>,
}

impl Nonces {
    /// Nothing seen yet; `began` is when this process began, in seconds since 1970.
    pub fn new(began: i64) -> Self {
        Self { began, capacity: MAX_PER_KEY, keys: HashMap::new() }
    }

    /// Remembers a request whose signature was checked. `nonce` is a digest, so that every entry has one size.
    pub fn admit(
        &mut self,
        key: &str,
        nonce: [u8; 16],
        signed: i64,
        now: i64,
    ) -> Result<(), Stale> {
        if !in_window(signed, now) {
            return Err(Stale::Timestamp);
        }
        if !self.keys.contains_key(key) {
            let seen = Seen { floor: self.began, ..Seen::default() };
            self.keys.insert(key.to_owned(), seen);
        }
        match self.keys.get_mut(key) {
            Some(seen) => seen.admit(nonce, signed, now, self.capacity),
            None => Err(Stale::Timestamp),
        }
    }
}

/// Whether a timestamp is near enough to `now`.
pub fn in_window(signed: i64, now: i64) -> bool {
    signed.abs_diff(now) <= WINDOW.unsigned_abs()
}

impl Seen {
    fn admit(
        &mut self,
        nonce: [u8; 16],
        signed: i64,
        now: i64,
        capacity: usize,
    ) -> Result<(), Stale> {
        if signed < self.floor {
            return Err(Stale::Timestamp);
        }
        if self.nonces.contains(&nonce) {
            return Err(Stale::Used);
        }
        self.forget_below(now.saturating_sub(WINDOW));
        if self.by_time.len() >= capacity
            && let Some((oldest, _)) = self.by_time.first().copied()
        {
            self.forget_below(oldest.saturating_add(1));
            self.floor = self.floor.max(oldest.saturating_add(1));
            if signed < self.floor {
                return Err(Stale::Timestamp);
            }
        }
        self.nonces.insert(nonce);
        self.by_time.insert((signed, nonce));
        Ok(())
    }

    fn forget_below(&mut self, time: i64) {
        while let Some((signed, nonce)) = self.by_time.first().copied()
            && signed < time
        {
            self.by_time.remove(&(signed, nonce));
            self.nonces.remove(&nonce);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nonce(number: u32) -> [u8; 16] {
        let mut nonce = [0; 16];
        nonce[..4].copy_from_slice(&number.to_le_bytes());
        nonce
    }

    #[test]
    fn a_request_is_admitted_once_and_per_key() {
        let mut nonces = Nonces::new(0);
        assert_eq!(nonces.admit("a", nonce(1), 1000, 1000), Ok(()));
        assert_eq!(nonces.admit("a", nonce(1), 1000, 1000), Err(Stale::Used));
        assert_eq!(nonces.admit("a", nonce(1), 1001, 1001), Err(Stale::Used));
        assert_eq!(nonces.admit("b", nonce(1), 1000, 1000), Ok(()));
        assert_eq!(nonces.admit("a", nonce(2), 1000, 1000), Ok(()));
    }

    #[test]
    fn a_clock_that_is_off_is_refused() {
        let mut nonces = Nonces::new(0);
        let now = 10_000;
        assert_eq!(nonces.admit("a", nonce(1), now - WINDOW - 1, now), Err(Stale::Timestamp));
        assert_eq!(nonces.admit("a", nonce(1), now + WINDOW + 1, now), Err(Stale::Timestamp));
        assert_eq!(nonces.admit("a", nonce(1), now - WINDOW, now), Ok(()));
        assert_eq!(nonces.admit("a", nonce(2), now + WINDOW, now), Ok(()));
        assert_eq!(nonces.admit("a", nonce(3), i64::MIN, now), Err(Stale::Timestamp));
        assert_eq!(nonces.admit("a", nonce(3), i64::MAX, now), Err(Stale::Timestamp));
    }

    #[test]
    fn what_an_earlier_process_saw_is_refused() {
        let mut nonces = Nonces::new(1000);
        assert_eq!(nonces.admit("a", nonce(1), 999, 1000), Err(Stale::Timestamp));
        assert_eq!(nonces.admit("a", nonce(1), 1000, 1000), Ok(()));
    }

    #[test]
    fn a_flood_shortens_the_window_of_its_key_only() {
        let mut nonces = Nonces { capacity: 4, ..Nonces::new(0) };
        for number in 0..8 {
            let time = 1000 + i64::from(number);
            assert_eq!(nonces.admit("a", nonce(number), time, time), Ok(()));
        }
        assert_eq!(nonces.admit("a", nonce(0), 1000, 1010), Err(Stale::Timestamp));
        assert_eq!(nonces.admit("a", nonce(9), 1003, 1010), Err(Stale::Timestamp));
        assert_eq!(nonces.admit("b", nonce(9), 1003, 1010), Ok(()));
    }

    proptest! {
        #[test]
        fn no_replay_and_no_growth(
            requests in prop::collection::vec((0u32..40, 0i64..3000, 0i64..60), 1..400)
        ) {
            let mut nonces = Nonces { capacity: 16, ..Nonces::new(0) };
            let mut admitted = HashSet::new();
            let mut now = 0;
            for (number, signed, later) in requests {
                now += later;
                if nonces.admit("a", nonce(number), signed, now).is_ok() {
                    prop_assert!(admitted.insert((number, signed)), "replayed");
                }
                let seen = &nonces.keys.get("a");
                prop_assert!(seen.is_none_or(|seen| seen.nonces.len() <= 16));
                prop_assert!(seen.is_none_or(|seen| seen.nonces.len() == seen.by_time.len()));
            }
        }
    }
}
