//! The queues of one worker, and where each is in its life.
//!
//! ```text
//!            ┌──────────────► Passive ──────────┐
//! (attach) ──┤                                  ├──► Leaving ──► (free)
//!            └──► Polled ◄─┬► Armed ──────────┤
//!                    │      └► Held  ───────────┤
//!                    └──────────┴──► Broken ────┘
//! ```

use super::{QueueKey, QueueSlot};
use std::time::Instant;

/// Where a queue is in its life on a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Polled in every turn; the driver is asked not to kick. The time is that of its last work.
    Polled(Instant),
    /// Asleep until its kick.
    Armed,
    /// Left alone until this time, whatever its driver makes available; kicks stay off.
    Held(Instant),
    /// The service looks at it when it has something for it.
    Passive,
    /// At fault: not looked at until the driver takes it back.
    Broken,
    /// The service was told to let go of it.
    Leaving,
}

impl State {
    /// Whether a queue may go from here to `next`.
    pub fn can_become(self, next: Self) -> bool {
        use State::{Armed, Broken, Held, Leaving, Passive, Polled};
        match (self, next) {
            (Leaving, _) => false,
            (_, Leaving) => true,
            (Polled(_), Polled(_) | Armed | Held(_)) | (Armed | Held(_), Polled(_)) => true,
            (Polled(_) | Armed | Held(_) | Passive, Broken) => true,
            _ => false,
        }
    }
}

/// One queue of a worker.
#[derive(Debug)]
pub(super) struct Entry {
    pub key: QueueKey,
    pub state: State,
}

/// The queues of a worker by slot.
#[derive(Debug, Default)]
pub(super) struct Slots {
    entries: Vec<Option<Entry>>,
}

impl Slots {
    /// The lowest free slot.
    pub fn vacant(&self) -> QueueSlot {
        QueueSlot(self.entries.iter().position(Option::is_none).unwrap_or(self.entries.len()))
    }

    /// Puts a queue into a vacant slot.
    pub fn put(&mut self, slot: QueueSlot, entry: Entry) {
        if slot.0 >= self.entries.len() {
            self.entries.resize_with(slot.0 + 1, || None);
        }
        self.entries[slot.0] = Some(entry);
    }

    /// Frees a slot.
    pub fn free(&mut self, slot: QueueSlot) -> Option<Entry> {
        self.entries.get_mut(slot.0)?.take()
    }

    pub fn get(&self, slot: QueueSlot) -> Option<&Entry> {
        self.entries.get(slot.0)?.as_ref()
    }

    /// Moves a queue on, if its life allows it.
    pub fn change(&mut self, slot: QueueSlot, next: State) -> bool {
        match self.entries.get_mut(slot.0).and_then(Option::as_mut) {
            Some(entry) if entry.state.can_become(next) => {
                entry.state = next;
                true
            }
            _ => false,
        }
    }

    /// The slot of a queue.
    pub fn find(&self, key: QueueKey) -> Option<QueueSlot> {
        self.entries.iter().position(|e| e.as_ref().is_some_and(|e| e.key == key)).map(QueueSlot)
    }

    /// One more than the highest slot ever used.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether a queue is polled.
    pub fn any_polled(&self) -> bool {
        self.entries.iter().flatten().any(|e| matches!(e.state, State::Polled(_)))
    }

    /// The first time at which a held queue is to be looked at, if there is one.
    pub fn first_held(&self) -> Option<Instant> {
        let held = self.entries.iter().flatten().filter_map(|e| match e.state {
            State::Held(until) => Some(until),
            _ => None,
        });
        held.min()
    }

    /// Whether a queue waits for its kick.
    pub fn any_armed(&self) -> bool {
        self.entries.iter().flatten().any(|e| e.state == State::Armed)
    }
}
