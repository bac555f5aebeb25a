//! A queue before the limits of its disk or port: which request goes now, and until when the next one waits.

use super::{Cost, Limiter};
use std::sync::Arc;
use std::time::Instant;

/// A queue's part in the limits that it shares. Lives with the queue, on its worker.
#[derive(Debug)]
pub struct QueueLimit {
    limiter: Arc<Limiter>,
    /// The next request has its tokens, and may go from this time on.
    waiting: Option<(Cost, Instant)>,
}

impl QueueLimit {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waited_has_paid_and_what_takes_its_place_has_not() {
        let limiter = Arc::new(Limiter::new(Some(10), Some(1000)).unwrap().unwrap());
        let mut limit = QueueLimit::new(&limiter);
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
