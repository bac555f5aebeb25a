//! The last changes, in memory, for watchers: a bounded ring of batches.
//!
//! Invariant: every change with a revision above `floor` is held. A watcher that names an older revision is told
//! `Compacted`; it never skips. The ring is empty after a start, so that `floor` is then the store's revision.

use super::{Answer, Batch, Change, Revision, StoreError, Watch};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// The most batches that are held.
const BATCHES: usize = 8192;
/// The most bytes of keys and values that are held.
const BYTES: usize = 32 << 20;

/// The ring, shared between the writer and the watchers.
#[derive(Debug)]
pub(super) struct History {
    ring: Mutex<Ring>,
    newest: watch::Sender<Revision>,
}

#[derive(Debug)]
struct Ring {
    floor: Revision,
    bytes: usize,
    batches: VecDeque<Arc<Batch>>,
}

impl History {
    pub(super) fn new(revision: Revision) -> Self {
        let ring = Ring { floor: revision, bytes: 0, batches: VecDeque::new() };
        Self { ring: Mutex::new(ring), newest: watch::Sender::new(revision) }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest revision that was committed.
    pub(super) fn newest(&self) -> Revision {
        *self.newest.borrow()
    }

    /// Adds what was committed, in order.
    pub(super) fn push(&self, batches: Vec<Batch>) {
        let Some(newest) = batches.last().map(|batch| batch.revision) else { return };
        let mut ring = self.ring();
        for batch in batches {
            ring.bytes += weight(&batch);
            ring.batches.push_back(Arc::new(batch));
        }
        while ring.batches.len() > BATCHES || ring.bytes > BYTES {
            let Some(oldest) = ring.batches.pop_front() else { break };
            ring.bytes -= weight(&oldest);
            ring.floor = oldest.revision;
        }
        drop(ring);
        self.newest.send_replace(newest);
    }

    /// The first batch after `after`, if there is one.
    fn after(&self, after: Revision) -> Result<Option<Arc<Batch>>, StoreError> {
        let ring = self.ring();
        if after < ring.floor {
            return Err(StoreError::Compacted { oldest: ring.floor });
        }
        let index = ring.batches.partition_point(|batch| batch.revision <= after);
        Ok(ring.batches.get(index).cloned())
    }
}

fn weight(batch: &Batch) -> usize {
    let change = |change: &Change| {
        change.key.len() + change.entry.as_ref().map_or(0, |entry| entry.value.len()) + 128
    };
    batch.changes.iter().map(change).sum()
}

/// A watcher's place in the ring.
#[derive(Debug)]
pub(super) struct Follower {
    history: Arc<History>,
    prefix: Vec<u8>,
    after: Revision,
}

impl Follower {
    /// Follows from behind `after` on.
    pub(super) fn new(
        history: &Arc<History>,
        prefix: &[u8],
        after: Revision,
    ) -> Result<Self, StoreError> {
        history.after(after)?;
        Ok(Self { history: history.clone(), prefix: prefix.to_vec(), after })
    }

    /// The next batch that is there already and has something under the prefix.
    fn take(&mut self) -> Result<Option<Batch>, StoreError> {
        while let Some(batch) = self.history.after(self.after)? {
            self.after = batch.revision;
            let under = |change: &&Change| change.key.starts_with(&self.prefix);
            let changes: Vec<Change> = batch.changes.iter().filter(under).cloned().collect();
            if !changes.is_empty() {
                return Ok(Some(Batch { revision: batch.revision, changes }));
            }
        }
        Ok(None)
    }
}

impl Watch for Follower {
    fn next(&mut self) -> Answer<'_, Batch> {
        Box::pin(async move {
            let mut newest = self.history.newest.subscribe();
            loop {
                newest.mark_unchanged();
                if let Some(batch) = self.take()? {
                    return Ok(batch);
                }
                newest.changed().await.map_err(|_| StoreError::Closed)?;
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(revision: Revision) -> Batch {
        let change = Change { key: revision.to_string().into_bytes(), entry: None };
        Batch { revision, changes: vec![change] }
    }

    #[tokio::test]
    async fn whoever_falls_behind_the_ring_is_told() {
        let history = Arc::new(History::new(10));
        let mut slow = Follower::new(&history, b"", 10).unwrap();
        assert!(matches!(
            Follower::new(&history, b"", 9),
            Err(StoreError::Compacted { oldest: 10 })
        ));
        history.push(vec![batch(11)]);
        assert_eq!(slow.next().await.unwrap().revision, 11);
        history.push((12..12 + BATCHES as u64).map(batch).collect());
        let mut kept = Follower::new(&history, b"", 11).unwrap();
        history.push(vec![batch(12 + BATCHES as u64)]);
        assert!(matches!(slow.next().await, Err(StoreError::Compacted { oldest: 12 })));
        assert!(matches!(kept.next().await, Err(StoreError::Compacted { .. })));
        assert!(Follower::new(&history, b"", 12).is_ok());
    }
}
