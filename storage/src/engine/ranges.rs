//! Which blocks of a disk are being changed: two requests that change the same block never run at once.
//!
//! A bitmap with one bit per 4 KiB block, folded over the disk (block `n` has bit `n` modulo [`BITS`]). Whoever
//! changes blocks holds their bits from before its I/O starts until its answer is published. That keeps three
//! promises, on all queues and workers of the disk:
//! - a read-modify-write of a block with larger sectors loses no neighbour's write;
//! - overlapping writes reach the medium one after the other, and the later one begins only when the former is not in
//!   the in-flight record any more. A successor that replays the record therefore never puts an old write over a newer
//!   one that was acknowledged;
//! - no write to a block begins while a discard of it runs.
//!
//! A discard or write-zeroes goes in pieces of at most [`PIECE`] bytes and holds one piece at a time, lest it stop all
//! writes to the disk. A write may thus be answered between two pieces of a discard that has yet to reach its blocks:
//! the guest had both under way at once and gave them no order.
//!
//! No lock is waited for: locking is a few atomic operations that succeed or change nothing, and who fails tries again
//! later. Nobody is overtaken forever: the [`Waiter`] that has waited longest has the turn, and whatever touches its
//! blocks is refused to all others. Invariant: who waits holds no blocks, so that the blocks of whoever has the turn
//! become free. Folding makes unrelated blocks collide now and then, which costs a short delay only.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Bytes that one bit stands for; no file system block or sector that we do direct I/O on is larger.
pub const BLOCK: u64 = 4096;

/// Bits in the map: the blocks of 256 MiB.
const BITS: u64 = 1 << 16;
const WORDS: usize = (BITS / 64) as usize;

/// Bytes that a discard or write-zeroes holds at a time, at most; it ends at a multiple of this. A quarter of the map,
/// so that writes to the rest go on.
pub const PIECE: u64 = 64 << 20;

/// The blocks of one disk that are being changed.
#[derive(Debug)]
pub struct RangeLocks {
    words: Box<[AtomicU64]>,
    /// Who has the turn, as [`claim`] packs it; 0 if nobody waits.
    turn: AtomicU64,
    /// The last number given to a waiter.
    tickets: AtomicU32,
}

/// Somebody's place among those that wait for blocks: a number, or none if it does not wait. Who got a number asks
/// again until it has its blocks; otherwise its turn would stop others forever.
#[derive(Debug, Clone, Copy, Default)]
pub struct Waiter(Option<std::num::NonZeroU32>);

/// A range of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    /// The first byte.
    pub start: u64,
    /// The byte behind the last one.
    pub end: u64,
}

impl Span {
    /// Bytes in it.
    pub fn len(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.end <= self.start
    }
}

impl Default for RangeLocks {
    fn default() -> Self {
        let words = (0..WORDS).map(|_| AtomicU64::new(0)).collect();
        Self { words, turn: AtomicU64::new(0), tickets: AtomicU32::new(0) }
    }
}

impl RangeLocks {
    /// Takes all blocks that `span` touches, or none. Who fails waits, and comes to have the turn.
    #[inline]
    pub fn lock_in_turn(&self, span: Span, waiter: &mut Waiter) -> bool {
        // Relaxed throughout: the turn decides who tries, never who holds a block.
        let turn = self.turn.load(Ordering::Relaxed);
        let other = turn != 0 && waiter.0.is_none_or(|own| own.get() != ticket_of(turn));
        if !(other && touches(turn, span)) && self.try_lock(span) {
            if let Some(own) = waiter.0.take() {
                let turn = claim(own.get(), span);
                let _ = self.turn.compare_exchange(turn, 0, Ordering::Relaxed, Ordering::Relaxed);
            }
            return true;
        }
        self.wait(span, waiter);
        false
    }

    /// Gives the waiter a number if it has none, and the turn if nobody older has it.
    #[cold]
    fn wait(&self, span: Span, waiter: &mut Waiter) {
        let own = *waiter.0.get_or_insert_with(|| {
            let last = self.tickets.fetch_add(1, Ordering::Relaxed);
            std::num::NonZeroU32::new(last.wrapping_add(1)).unwrap_or(std::num::NonZeroU32::MIN)
        });
        let _ = self.turn.try_update(Ordering::Relaxed, Ordering::Relaxed, |turn| {
            // Numbers wrap: the older of two is less than half the circle behind.
            let older = (own.get().wrapping_sub(ticket_of(turn)) as i32) < 0;
            (turn == 0 || older).then(|| claim(own.get(), span))
        });
    }

    /// Takes all blocks that `span` touches, or none, whoever has the turn. An empty span has no blocks and is always
    /// free.
    #[inline]
    fn try_lock(&self, span: Span) -> bool {
        for (taken, (word, mask)) in Masks::of(span).enumerate() {
            let before = self.words[word].fetch_or(mask, Ordering::Acquire);
            if before & mask != 0 {
                self.words[word].fetch_and(before | !mask, Ordering::Release);
                for (word, mask) in Masks::of(span).take(taken) {
                    self.words[word].fetch_and(!mask, Ordering::Release);
                }
                return false;
            }
        }
        true
    }

    /// Gives back what a successful [`RangeLocks::lock_in_turn`] of the same span took.
    #[inline]
    pub fn unlock(&self, span: Span) {
        for (word, mask) in Masks::of(span) {
            self.words[word].fetch_and(!mask, Ordering::Release);
        }
    }
}

/// A waiter's number and the bits of its span in one word: number, first bit, count of bits less one.
fn claim(ticket: u32, span: Span) -> u64 {
    let masks = Masks::of(span);
    u64::from(ticket) << 32 | masks.next << 16 | masks.left.saturating_sub(1)
}

fn ticket_of(claim: u64) -> u32 {
    (claim >> 32) as u32
}

/// Whether the bits of a claim and those of a span have one in common.
fn touches(claim: u64, span: Span) -> bool {
    let (first, last) = (claim >> 16 & 0xffff, claim & 0xffff);
    let bits = Masks::of(span);
    let behind = |from: u64, to: u64| to.wrapping_sub(from) % BITS;
    bits.left > 0 && (behind(first, bits.next) <= last || behind(bits.next, first) < bits.left)
}

/// The words and bits of a span, each word once.
struct Masks {
    next: u64,
    left: u64,
}

impl Masks {
    #[inline]
    fn of(span: Span) -> Self {
        if span.is_empty() {
            return Self { next: 0, left: 0 };
        }
        let first = span.start / BLOCK;
        let blocks = (span.end - 1) / BLOCK - first + 1;
        // A span of the whole map starts at a word's first bit, lest its first word come twice.
        match blocks < BITS - 63 {
            true => Self { next: first % BITS, left: blocks },
            false => Self { next: 0, left: BITS },
        }
    }
}

impl Iterator for Masks {
    type Item = (usize, u64);

    #[inline]
    fn next(&mut self) -> Option<(usize, u64)> {
        if self.left == 0 {
            return None;
        }
        let bit = self.next % 64;
        let count = self.left.min(64 - bit);
        let mask = if count == 64 { u64::MAX } else { ((1 << count) - 1) << bit };
        let word = (self.next / 64) as usize;
        self.next = (self.next + count) % BITS;
        self.left -= count;
        Some((word, mask))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::atomic::AtomicBool;

    fn span(start: u64, end: u64) -> Span {
        Span { start, end }
    }

    #[test]
    fn blocks_are_taken_once_and_given_back() {
        let locks = RangeLocks::default();
        assert!(locks.try_lock(span(4096, 8192)));
        assert!(!locks.try_lock(span(8191, 8192)), "another sector of the same block");
        assert!(!locks.try_lock(span(0, 4097)));
        assert!(locks.try_lock(span(0, 4096)), "what failed before gave back what it had");
        assert!(locks.try_lock(span(8192, 1 << 20)));
        assert!(locks.try_lock(span(5, 5)), "nothing is always free");
        locks.unlock(span(4096, 8192));
        assert!(locks.try_lock(span(4608, 5120)));
    }

    #[test]
    fn a_span_longer_than_the_map_takes_all_of_it() {
        let locks = RangeLocks::default();
        for (start, end) in [(0, 1 << 40), (4096 * 63, 4096 * 63 + BITS * BLOCK), (7, BITS * BLOCK)]
        {
            assert!(locks.try_lock(span(start, end)));
            for at in [0, 4096 * 62, 1 << 30, (1 << 50) - 1] {
                assert!(!locks.try_lock(span(at, at + 1)));
            }
            locks.unlock(span(start, end));
            assert!(locks.words.iter().all(|word| word.load(Ordering::Relaxed) == 0));
        }
    }

    proptest! {
        #[test]
        fn the_map_is_what_a_set_of_blocks_would_be(
            spans in prop::collection::vec((0..BITS * BLOCK * 2, 0..200u64 * BLOCK), 1..40)
        ) {
            let locks = RangeLocks::default();
            let mut held: Vec<(Span, std::collections::HashSet<u64>)> = Vec::new();
            for (start, len) in spans {
                let span = span(start, start + len);
                let blocks: std::collections::HashSet<u64> = match len {
                    0 => Default::default(),
                    _ => (start / BLOCK..=(start + len - 1) / BLOCK).map(|b| b % BITS).collect(),
                };
                let free = held.iter().all(|(_, other)| other.is_disjoint(&blocks));
                prop_assert_eq!(locks.try_lock(span), free);
                if free {
                    held.push((span, blocks));
                } else if held.len() > 3 {
                    locks.unlock(held.swap_remove(0).0);
                }
            }
            for (span, _) in held {
                locks.unlock(span);
            }
            prop_assert!(locks.words.iter().all(|word| word.load(Ordering::Relaxed) == 0));
        }
    }

    #[test]
    fn the_oldest_waiter_is_not_overtaken() {
        let locks = RangeLocks::default();
        let (mut none, mut large, mut small) = Default::default();
        let (a, b) = (span(0, 4096), span(8192, 12288));
        assert!(locks.lock_in_turn(a, &mut none) && locks.lock_in_turn(b, &mut none));
        let all = span(0, PIECE);
        assert!(!locks.lock_in_turn(all, &mut large));
        assert!(!locks.lock_in_turn(b, &mut small), "held");
        locks.unlock(b);
        assert!(!locks.lock_in_turn(b, &mut small), "somebody older waits for it");
        assert!(locks.lock_in_turn(span(PIECE, PIECE + 1), &mut none), "of no interest to it");
        locks.unlock(a);
        assert!(!locks.lock_in_turn(b, &mut small));
        assert!(locks.lock_in_turn(all, &mut large));
        assert!(!locks.lock_in_turn(b, &mut small));
        // The younger one has the turn now, and loses it to one that is older.
        assert!(!locks.lock_in_turn(all, &mut Waiter(std::num::NonZeroU32::new(1))));
        locks.unlock(all);
        assert!(!locks.lock_in_turn(b, &mut small));
        assert!(locks.lock_in_turn(all, &mut Waiter(std::num::NonZeroU32::new(1))));
        locks.unlock(all);
        assert!(locks.lock_in_turn(b, &mut small));
        assert_eq!(locks.turn.load(Ordering::Relaxed), 0);
    }

    proptest! {
        #[test]
        fn a_claim_touches_what_has_a_block_in_common(
            one in (0..BITS * BLOCK * 2, 1..BITS * BLOCK + 9999),
            other in (0..BITS * BLOCK * 2, 0..BITS * BLOCK + 9999),
        ) {
            let (one, other) = (span(one.0, one.0 + one.1), span(other.0, other.0 + other.1));
            let locks = RangeLocks::default();
            prop_assert!(locks.try_lock(one));
            prop_assert_eq!(touches(claim(1, one), other), !locks.try_lock(other));
        }
    }

    #[test]
    fn two_threads_never_hold_one_block() {
        let locks = RangeLocks::default();
        let inside: Vec<AtomicBool> = (0..8).map(|_| AtomicBool::new(false)).collect();
        std::thread::scope(|scope| {
            for seed in 0..2u64 {
                let (locks, inside) = (&locks, &inside);
                scope.spawn(move || {
                    let mut random = seed + 1;
                    for _ in 0..200_000 {
                        random = random.wrapping_mul(6364136223846793005).wrapping_add(1);
                        let first = (random >> 33) % 8;
                        let last = first + (random >> 40) % (8 - first);
                        let span = span(first * BLOCK, (last + 1) * BLOCK);
                        if !locks.try_lock(span) {
                            continue;
                        }
                        for block in first..=last {
                            let taken = inside[block as usize].swap(true, Ordering::Relaxed);
                            assert!(!taken);
                        }
                        for block in first..=last {
                            inside[block as usize].store(false, Ordering::Relaxed);
                        }
                        locks.unlock(span);
                    }
                });
            }
        });
    }
}
