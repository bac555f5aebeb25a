//! The word in memory that both processes of one host share, and that decides who runs.
//!
//! ```text
//!  OPEN(e) ──claim──► CLAIMED(e)      the target runs, in the next generation
//!     └────take back──► KEPT(e)       the source runs on
//! ```
//!
//! A record serves one hand-over: the next one has the next epoch and a word of its own.

use super::Verdict;
use std::sync::atomic::{AtomicU64, Ordering};

const OPEN: u64 = 0;
const CLAIMED: u64 = 1;
const KEPT: u64 = 2;
const STATES: u64 = 2;

/// The highest epoch that a word can name.
pub const LARGEST_EPOCH: u64 = u64::MAX >> STATES;

/// A side's view of the word.
#[derive(Debug)]
pub struct Record<'a> {
    word: &'a AtomicU64,
    epoch: u64,
}

impl<'a> Record<'a> {
    /// The record of the hand-over with this epoch in `word`, which its source has opened; nothing if the epoch is larger than
    /// [`LARGEST_EPOCH`].
    #[must_use]
    pub fn new(word: &'a AtomicU64, epoch: u64) -> Option<Self> {
        (epoch <= LARGEST_EPOCH).then_some(Self { word, epoch })
    }

    const fn value(&self, state: u64) -> u64 {
        self.epoch << STATES | state
    }

    /// Makes the word ready for a decision. The source does, before anybody else sees the word.
    pub fn open(&self) {
        self.word.store(self.value(OPEN), Ordering::SeqCst);
    }

    /// The target asks for the right to run.
    #[must_use]
    pub fn claim(&self) -> Verdict {
        self.decide(CLAIMED)
    }

    /// The source asks for it.
    #[must_use]
    pub fn take_back(&self) -> Verdict {
        self.decide(KEPT)
    }

    fn decide(&self, state: u64) -> Verdict {
        let (open, mine) = (self.value(OPEN), self.value(state));
        // What the winner does next must not be seen before its win, nor what the loser did after it.
        match self.word.compare_exchange(open, mine, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => Verdict::Won,
            // Whoever asks again, not having been told, gets the same answer.
            Err(found) if found == mine => Verdict::Won,
            Err(_) => Verdict::Lost,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_side_wins_and_hears_the_same_again() {
        let word = AtomicU64::new(u64::MAX);
        let record = Record::new(&word, 7).unwrap();
        record.open();
        assert_eq!(record.claim(), Verdict::Won);
        assert_eq!(record.take_back(), Verdict::Lost);
        assert_eq!(record.claim(), Verdict::Won);
        record.open();
        assert_eq!((record.take_back(), record.claim()), (Verdict::Won, Verdict::Lost));
        assert!(Record::new(&word, LARGEST_EPOCH).is_some());
        assert!(Record::new(&word, LARGEST_EPOCH + 1).is_none());
    }

    #[test]
    fn an_earlier_or_later_hand_over_decides_nothing() {
        let word = AtomicU64::new(0);
        let (old, now) = (Record::new(&word, 6).unwrap(), Record::new(&word, 7).unwrap());
        now.open();
        assert_eq!((old.claim(), old.take_back()), (Verdict::Lost, Verdict::Lost));
        assert_eq!(now.claim(), Verdict::Won);
    }

    #[test]
    fn of_two_threads_exactly_one_wins() {
        let word = AtomicU64::new(0);
        for epoch in 0..2000 {
            let record = Record::new(&word, epoch).unwrap();
            record.open();
            let (claimed, taken) = std::thread::scope(|scope| {
                let target = scope.spawn(|| record.claim());
                (record.take_back(), target.join().unwrap())
            });
            assert_ne!(claimed, taken);
        }
    }
}
