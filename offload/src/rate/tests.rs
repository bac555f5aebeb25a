//! Buckets and limiters in any order of requests: no stretch of time has more than it may, and the whole rate is reached.

use super::*;
use proptest::prelude::*;
use std::collections::VecDeque;

const SECOND: u64 = 1_000_000_000;

/// What may go in `span` nanoseconds: times are whole nanoseconds, so that one more may have begun.
fn allowed(rate: u64, burst: u64, span: u64) -> u128 {
    u128::from(rate) * (u128::from(span) + 1) / u128::from(SECOND) + u128::from(burst)
}

/// A queue: its requests, each with the time after the one before at which it comes, and its tokens.
type Requests = VecDeque<(u64, u64)>;

/// Queues that share a bucket, each of which asks for its next request when the one before has gone. Gives what went, in
/// the order of time: when, and how many tokens.
fn run(bucket: &Bucket, mut queues: Vec<Requests>) -> Vec<(u64, u64)> {
    let mut next: Vec<u64> = vec![0; queues.len()];
    let mut gone = Vec::new();
    loop {
        let first = (0..queues.len())
            .filter_map(|queue| Some((next[queue] + queues[queue].front()?.0, queue)))
            .min();
        let Some((now, queue)) = first else { break };
        let Some((_, tokens)) = queues[queue].pop_front() else { break };
        next[queue] = match bucket.ask(now, tokens) {
            Verdict::Go => now,
            Verdict::NotBefore(at) => {
                assert!(at > now, "told to wait for a time that has gone");
                at
            }
        };
        gone.push((next[queue], tokens));
    }
    gone.sort_unstable();
    gone
}

fn requests(gap: u64, tokens: u64) -> impl Strategy<Value = Requests> {
    // Many at once, and pauses that fill the bucket.
    let gap = prop_oneof![3 => Just(0), 3 => 0..gap, 1 => 0..gap * 100];
    prop::collection::vec((gap, 1..=tokens), 1..80).prop_map(VecDeque::from)
}

fn rates() -> impl Strategy<Value = u64> {
    prop_oneof![1..50u64, 1..100_000u64, Just(HIGHEST), 1..=HIGHEST]
}

proptest! {
    #[test]
    fn no_stretch_of_time_has_more_than_it_may(
        rate in rates(),
        queues in prop::collection::vec(requests(20_000_000, 40), 1..4),
        scale in 1..200u64,
    ) {
        let bucket = Bucket::new(rate).unwrap();
        let burst = bucket.burst();
        // Small and large requests, also larger than the burst.
        let scaled = |(gap, tokens): (u64, u64)| (gap, tokens * (1 + burst * scale / 2000));
        let queues: Vec<Requests> =
            queues.into_iter().map(|queue| queue.into_iter().map(scaled).collect()).collect();
        let largest = queues.iter().flatten().map(|(_, tokens)| *tokens).max().unwrap_or(0);
        let gone = run(&bucket, queues);
        for (first, (begin, _)) in gone.iter().enumerate() {
            let mut sum = 0u128;
            for (at, tokens) in &gone[first..] {
                sum += u128::from(*tokens);
                let most = allowed(rate, burst.max(largest), at - begin);
                prop_assert!(sum <= most, "{sum} in {} ns, of {most}", at - begin);
            }
        }
    }

    #[test]
    fn what_is_asked_all_the_time_gets_the_whole_rate(
        rate in rates(),
        tokens in 1..5000u64,
        queues in 1..4usize,
    ) {
        let bucket = Bucket::new(rate).unwrap();
        // From far below to far above a burst.
        let tokens = 1 + bucket.burst() * tokens / 1000;
        let count = 600 + 200 * bucket.burst() / tokens;
        let count = count.min(20_000) as usize;
        let one: Requests = std::iter::repeat_n((0, tokens), count / queues).collect();
        let gone = run(&bucket, vec![one; queues]);
        let span = gone.last().unwrap().0;
        let given = gone.len() as u128 * u128::from(tokens);
        let come = allowed(rate, bucket.burst(), span);
        prop_assert!(given * 100 >= come * 99, "{given} of {come}");
    }

    #[test]
    fn what_is_refused_takes_nothing_and_what_goes_is_within_the_rate(
        rate in rates(),
        asked in prop::collection::vec((0..50_000_000u64, 1..60u64), 1..200),
    ) {
        let bucket = Bucket::new(rate).unwrap();
        let (mut now, mut sum) = (0, 0u128);
        for (gap, tokens) in asked {
            now += gap;
            if bucket.try_take(now, tokens) {
                sum += u128::from(tokens);
                // A bucket that is full lets go what is larger than a burst.
                prop_assert!(sum <= allowed(rate, bucket.burst().max(60), now));
            } else {
                prop_assert!(!bucket.try_take(now, tokens));
                let Verdict::NotBefore(at) = bucket.ask(now, tokens) else { panic!("it may") };
                bucket.give_back(tokens);
                prop_assert!(!bucket.try_take(at - 1, tokens));
                prop_assert!(bucket.try_take(at, tokens));
                sum += u128::from(tokens);
                now = at;
            }
        }
    }

    #[test]
    fn a_clock_that_stands_still_or_jumps_back_brings_no_token_twice(
        rate in rates(),
        jumps in prop::collection::vec((any::<bool>(), 0..10 * SECOND, 1..5u64), 1..200),
    ) {
        let bucket = Bucket::new(rate).unwrap();
        let (mut now, mut latest, mut sum) = (0u64, 0u64, 0u128);
        for (back, by, tokens) in jumps {
            now = if back { now.saturating_sub(by) } else { now + by };
            latest = latest.max(now);
            if bucket.try_take(now, tokens) {
                sum += u128::from(tokens);
            }
            prop_assert!(sum <= allowed(rate, bucket.burst().max(5), latest));
        }
        // Where it was, and a burst later, it is as full as ever.
        prop_assert!(bucket.try_take(latest + 6 * SECOND, bucket.burst()));
    }
}

#[test]
fn a_burst_goes_at_once_and_then_one_at_a_time() {
    let bucket = Bucket::new(30).unwrap();
    assert_eq!(bucket.burst(), 3);
    let verdicts: Vec<Verdict> = (0..6).map(|_| bucket.ask(0, 1)).collect();
    let later = [33_333_334, 66_666_667, 100_000_000].map(Verdict::NotBefore);
    assert_eq!(verdicts, [&[Verdict::Go; 3][..], &later].concat());
    // Full again, whenever that is, it has a whole burst.
    let full = Bucket::new(30).unwrap();
    assert!((0..3).all(|_| full.try_take(7 * SECOND + 12_345_678, 1)));
    assert!(!full.try_take(7 * SECOND + 12_345_678, 1));
    // What is given back is there for the next.
    bucket.give_back(1);
    assert_eq!(bucket.ask(0, 1), later[2]);
}

#[test]
fn a_request_larger_than_the_burst_goes_when_the_bucket_is_full_and_is_paid_for_after() {
    let bucket = Bucket::new(1000).unwrap();
    assert_eq!(bucket.ask(5, 5_000), Verdict::Go);
    assert_eq!(bucket.ask(5, 1), Verdict::NotBefore(4_901_000_005));
    let idle = 60 * SECOND;
    assert_eq!(bucket.ask(idle, 100), Verdict::Go);
    assert_eq!(bucket.ask(idle, 5_000), Verdict::NotBefore(idle + SECOND / 10));
}

#[test]
fn a_small_request_does_not_overtake_a_large_one() {
    let bucket = Bucket::new(1_000_000).unwrap();
    assert_eq!(bucket.ask(0, 100_000), Verdict::Go);
    let Verdict::NotBefore(large) = bucket.ask(0, 50_000) else { panic!("it is empty") };
    assert_eq!(large, 50_000_000);
    assert_eq!(bucket.ask(0, 1), Verdict::NotBefore(50_001_000));
}

#[test]
fn the_ends_of_time_and_numbers_do_no_harm() {
    for rate in [1, 7, HIGHEST] {
        let bucket = Bucket::new(rate).unwrap();
        for now in [0, u64::MAX, 1, u64::MAX / 2] {
            let _ = (bucket.ask(now, u64::MAX), bucket.try_take(now, u64::MAX), bucket.ask(now, 0));
            bucket.give_back(u64::MAX);
        }
    }
    assert_eq!(Bucket::new(0).unwrap_err(), BadRate(0));
    assert_eq!(Bucket::new(HIGHEST + 1).unwrap_err(), BadRate(HIGHEST + 1));
}

#[test]
fn threads_that_share_a_bucket_get_no_more_than_it_has() {
    let bucket = Bucket::new(100_000).unwrap();
    let go = |_| (0..50_000u64).filter(|now| bucket.try_take(*now, 1)).count();
    let taken: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|thread| scope.spawn(move || go(thread))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(taken, 10_000 + 4, "the burst, and what came in 50 µs");
}

#[test]
fn a_limiter_asks_both_buckets_and_what_one_refuses_the_other_keeps() {
    assert!(Limiter::new(None, None).unwrap().is_none());
    assert!(Limiter::new(Some(0), None).is_err() && Limiter::new(None, Some(0)).is_err());
    let limiter = Limiter::new(Some(100), Some(100_000)).unwrap().unwrap();
    let now = limiter.began;
    let cost = |operations, bytes| Cost { operations, bytes };
    assert!(limiter.try_take(now, cost(1, 10_000)));
    for _ in 0..20 {
        assert!(!limiter.try_take(now, cost(1, 1)), "no byte is left");
    }
    assert!(limiter.try_take(now, cost(9, 0)), "and no operation was lost");
    assert!(!limiter.try_take(now, cost(1, 0)));
    // The later of both; on the grid.
    assert_eq!(limiter.ask(now, cost(1, 100)), Some(now + Duration::from_millis(10)));
    assert_eq!(limiter.ask(now, cost(0, 4_910)), Some(now + Duration::from_micros(50_100)));
    assert_eq!(limiter.ask(now, cost(0, 0)), None);
    limiter.give_back(cost(1, 5_010));
    assert!(limiter.try_take(now + Duration::from_millis(10), cost(1, 1_000)));
}
