//! A queue before its disk's limits: which request goes now, and until when the next one waits.
//!
//! Invariant: what a request costs is known from the one reading of it that is also carried out, so that a guest which
//! changes it meanwhile gets nothing for less. Called by the service, on the worker that has the queue.

use super::request::Operation;
use bixi_offload::rate::{Cost, Limiter};
use std::sync::Arc;
use std::time::Instant;

/// A queue's part in its disk's limits.
#[derive(Debug)]
pub struct Limit {
    limiter: Arc<Limiter>,
    /// The next request has its tokens, and may go from this time on.
    waiting: Option<(Cost, Instant)>,
}

impl Limit {
    /// The part of a queue of which nothing waits.
    pub fn new(limiter: &Arc<Limiter>) -> Self {
        Self { limiter: Arc::clone(limiter), waiting: None }
    }

    /// Until when a request must wait, if it must. A request that waited has paid; the guest may have put another in its
    /// place, which then pays too.
    pub fn ask(&mut self, now: Instant, cost: Cost) -> Option<Instant> {
        match self.waiting.take() {
            Some((paid, until)) if paid == cost => {
                self.waiting = Some((paid, until)).filter(|(_, until)| now < *until);
            }
            _ => self.waiting = self.limiter.ask(now, cost).map(|until| (cost, until)),
        }
        self.waiting.map(|(_, until)| until)
    }

    /// Whether a request waits.
    pub fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// A request that was let go could not be started: it goes, without paying again, as soon as it can.
    pub fn keep(&mut self, now: Instant, cost: Cost) {
        self.waiting = Some((cost, now));
    }

    /// The queue goes away, or its limits change: what waits gives its tokens back, if nobody can have counted on them.
    pub fn give_back(&mut self, now: Instant) {
        if let Some((cost, until)) = self.waiting.take()
            && now < until
        {
            self.limiter.give_back(cost);
        }
    }
}

/// What a request costs its disk. As in the clouds whose limits these are, a flush moves nothing and is free.
pub fn cost(operation: &Operation<'_>) -> Cost {
    match operation {
        Operation::Read(_, data) | Operation::Write(_, data) => {
            Cost { operations: 1, bytes: data.len() as u64 }
        }
        Operation::Discard(_) | Operation::WriteZeroes(_) => Cost { operations: 1, bytes: 0 },
        Operation::Flush | Operation::GetId(_) | Operation::Refuse(_) => Cost::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waited_has_paid_and_what_takes_its_place_has_not() {
        let limiter = Arc::new(Limiter::new(Some(10), Some(1000)).unwrap().unwrap());
        let mut limit = Limit::new(&limiter);
        let now = Instant::now();
        let cost = |bytes| Cost { operations: 1, bytes };
        assert_eq!(limit.ask(now, cost(100)), None);
        let until = limit.ask(now, cost(100)).unwrap();
        assert!(limit.is_waiting() && until > now);
        assert_eq!(limit.ask(now, cost(100)), Some(until), "it does not pay twice");
        assert_eq!(limit.ask(until, cost(100)), None);
        // It could not be started, and is asked about again.
        limit.keep(until, cost(100));
        assert_eq!(limit.ask(until, cost(100)), None);

        let small = limit.ask(until, cost(1)).unwrap();
        let large = limit.ask(small, cost(1000)).unwrap();
        assert!(large > small, "another request pays for itself");
        limit.give_back(small);
        assert!(!limit.is_waiting());
        let again = limit.ask(small, cost(1000)).unwrap();
        assert_eq!(again, large, "what had not gone was given back");
    }
}
