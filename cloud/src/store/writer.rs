//! The writer thread of the embedded store: it takes what waits, applies it in one go and commits once for all.
//!
//! ```text
//!   wait ─► gather ─► apply each: compares against the transactions before it in the group
//!    ▲                  │
//!    │                commit ── failed ──► close, open anew: is the group's revision on the medium?
//!    │                  │                    │ yes        │ no                     │ cannot tell
//!    └── answer ◄── publish ◄────────────────┘            └─► everybody: why       └─► everybody: Unknown
//! ```
//!
//! Invariants: a revision is published to watchers, and a transaction answered, only after its commit; a conflict
//! fails its transaction and no other. A lease's time begins anew when the store is opened, since nobody could keep it
//! alive while it was closed.

use super::embedded::{COUNTERS, ENTRIES, LAST_LEASE, LEASED, LEASES, REVISION, Shared};
use super::embedded::{decode, encode};
use super::{Batch, Change, Entry, LeaseId, Op, Outcome, Revision, StoreError, Txn};
use redb::{ReadableDatabase, ReadableTable, Table, WriteTransaction};
use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// The most requests that share a commit.
const GROUP: usize = 256;

type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// What the writer is asked for.
#[derive(Debug)]
pub(super) enum Request {
    Txn { txn: Txn, answer: Reply<Outcome> },
    Grant { ttl: Duration, answer: Reply<LeaseId> },
    KeepAlive { lease: LeaseId, answer: Reply<()> },
    Revoke { lease: LeaseId, answer: Reply<()> },
}

/// A lease that runs.
#[derive(Debug, Clone, Copy)]
struct Lease {
    ttl: Duration,
    ends: Instant,
}

/// The thread's state.
#[derive(Debug)]
pub(super) struct Writer {
    shared: Arc<Shared>,
    requests: mpsc::Receiver<Request>,
    leases: BTreeMap<LeaseId, Lease>,
}

/// What a request will be answered with when the group is committed.
enum Ready {
    Txn(Reply<Outcome>, Result<Outcome, StoreError>),
    Grant(Reply<LeaseId>, LeaseId, Duration),
    Revoked(Reply<()>, LeaseId),
    Expired(LeaseId),
}

/// The group's tables and what it did so far.
struct Group<'t> {
    entries: Table<'t, &'static [u8], &'static [u8]>,
    counters: Table<'t, &'static str, u64>,
    leases: Table<'t, u64, u64>,
    leased: Table<'t, (u64, &'static [u8]), ()>,
    revision: Revision,
    batches: Vec<Batch>,
}

impl Writer {
    pub(super) fn new(
        shared: Arc<Shared>,
        requests: mpsc::Receiver<Request>,
    ) -> Result<Self, StoreError> {
        let now = Instant::now();
        let leases = shared.with(|database| {
            let table = database.begin_read()?.open_table(LEASES)?;
            let mut leases = BTreeMap::new();
            for lease in table.iter()? {
                let (id, ttl) = lease?;
                let ttl = Duration::from_millis(ttl.value());
                leases.insert(LeaseId(id.value()), Lease { ttl, ends: now + ttl });
            }
            Ok(leases)
        })?;
        Ok(Self { shared, requests, leases })
    }

    /// Serves until the store is dropped.
    pub(super) fn run(mut self) {
        loop {
            let next = self.leases.values().map(|lease| lease.ends).min();
            let first = match next {
                Some(ends) => {
                    let patience = ends.saturating_duration_since(Instant::now());
                    match self.requests.recv_timeout(patience) {
                        Ok(request) => Some(request),
                        Err(mpsc::RecvTimeoutError::Timeout) => None,
                        Err(mpsc::RecvTimeoutError::Disconnected) => return,
                    }
                }
                None => match self.requests.recv() {
                    Ok(request) => Some(request),
                    Err(mpsc::RecvError) => return,
                },
            };
            let mut group: Vec<Request> = first.into_iter().collect();
            group.extend(self.requests.try_iter().take(GROUP - group.len()));
            self.serve(group);
        }
    }

    fn serve(&mut self, group: Vec<Request>) {
        let group = self.keep_alive(group);
        let now = Instant::now();
        let over = |lease: &&LeaseId| self.leases[*lease].ends <= now;
        let expired: Vec<LeaseId> = self.leases.keys().filter(over).copied().collect();
        if group.is_empty() && expired.is_empty() {
            return;
        }
        let mut waiting = Vec::new();
        match self.commit(group, &expired, &mut waiting) {
            Ok(batches) => {
                self.shared.history.push(batches);
                waiting.into_iter().for_each(|ready| self.answer(ready, now));
            }
            Err(error) => {
                tracing::error!(%error, "the state cannot be written");
                waiting.into_iter().for_each(|ready| refuse(ready, &error));
                // A lease whose end could not be written is tried again after a while, not at once.
                for lease in expired {
                    if let Some(lease) = self.leases.get_mut(&lease) {
                        lease.ends = now + Duration::from_secs(1);
                    }
                }
            }
        }
    }

    /// Answers what needs no commit; gives the rest.
    fn keep_alive(&mut self, group: Vec<Request>) -> Vec<Request> {
        let now = Instant::now();
        let mut rest = Vec::with_capacity(group.len());
        for request in group {
            match request {
                Request::KeepAlive { lease, answer } => {
                    let kept = match self.leases.get_mut(&lease) {
                        Some(running) if running.ends > now => {
                            running.ends = now + running.ttl;
                            Ok(())
                        }
                        _ => Err(StoreError::NoLease(lease)),
                    };
                    let _ = answer.send(kept);
                }
                other => rest.push(other),
            }
        }
        rest
    }

    /// Applies and commits a group. After a failure the medium is asked whether it has the group.
    fn commit(
        &mut self,
        group: Vec<Request>,
        expired: &[LeaseId],
        waiting: &mut Vec<Ready>,
    ) -> Result<Vec<Batch>, StoreError> {
        if !self.shared.is_open() {
            let opened = self.shared.reopen();
            if let Err(error) = opened {
                waiting.extend(group.into_iter().filter_map(unready));
                return Err(error);
            }
        }
        let before = self.shared.history.newest();
        let mut batches = Vec::new();
        let mut group = Some(group);
        let done = self.shared.with(|database| {
            let write = database.begin_write()?;
            batches = apply(&write, group.take().unwrap_or_default(), expired, waiting)?;
            write.commit()?;
            Ok(())
        });
        waiting.extend(group.into_iter().flatten().filter_map(unready));
        let Err(error) = done else { return Ok(batches) };
        let newest = batches.last().map(|batch| batch.revision);
        match self.shared.reopen() {
            Ok(revision) if newest == Some(revision) => Ok(batches),
            Ok(revision) if revision == before => Err(error),
            Ok(_) | Err(_) if newest.is_none() => Err(error),
            Ok(_) | Err(_) => Err(self.shared.unknown(&error)),
        }
    }

    fn answer(&mut self, ready: Ready, now: Instant) {
        match ready {
            Ready::Txn(answer, outcome) => {
                let _ = answer.send(outcome);
            }
            Ready::Grant(answer, lease, ttl) => {
                self.leases.insert(lease, Lease { ttl, ends: now + ttl });
                let _ = answer.send(Ok(lease));
            }
            Ready::Revoked(answer, lease) => {
                let known = self.leases.remove(&lease);
                let _ = answer.send(known.map(|_| ()).ok_or(StoreError::NoLease(lease)));
            }
            Ready::Expired(lease) => {
                self.leases.remove(&lease);
            }
        }
    }
}

/// A request that was not applied, so that it can be refused.
fn unready(request: Request) -> Option<Ready> {
    match request {
        Request::Txn { answer, .. } => Some(Ready::Txn(answer, Err(StoreError::Closed))),
        Request::Grant { ttl, answer } => Some(Ready::Grant(answer, LeaseId(0), ttl)),
        Request::Revoke { lease, answer } => Some(Ready::Revoked(answer, lease)),
        Request::KeepAlive { .. } => None,
    }
}

fn refuse(ready: Ready, error: &StoreError) {
    match ready {
        Ready::Txn(answer, Ok(Outcome::Conflict(revision))) => {
            let _ = answer.send(Ok(Outcome::Conflict(revision)));
        }
        Ready::Txn(answer, _) => {
            let _ = answer.send(Err(error.clone()));
        }
        Ready::Grant(answer, ..) => {
            let _ = answer.send(Err(error.clone()));
        }
        Ready::Revoked(answer, _) => {
            let _ = answer.send(Err(error.clone()));
        }
        Ready::Expired(_) => {}
    }
}

/// Applies a whole group within one redb transaction. What `waiting` gets is true once that is committed.
fn apply(
    write: &WriteTransaction,
    group: Vec<Request>,
    expired: &[LeaseId],
    waiting: &mut Vec<Ready>,
) -> Result<Vec<Batch>, redb::Error> {
    let counters = write.open_table(COUNTERS)?;
    let revision = counters.get(REVISION)?.map_or(0, |value| value.value());
    let mut tables = Group {
        entries: write.open_table(ENTRIES)?,
        leases: write.open_table(LEASES)?,
        leased: write.open_table(LEASED)?,
        counters,
        revision,
        batches: Vec::new(),
    };
    // Whoever waits is in `waiting` before anything can fail: nobody is left without an answer.
    let first = waiting.len();
    let mut work = Vec::with_capacity(group.len());
    for request in group {
        match request {
            Request::Txn { txn, answer } => {
                work.push(Work::Txn(txn));
                waiting.push(Ready::Txn(answer, Err(StoreError::Closed)));
            }
            Request::Grant { ttl, answer } => {
                work.push(Work::Grant(ttl));
                waiting.push(Ready::Grant(answer, LeaseId(0), ttl));
            }
            Request::Revoke { lease, answer } => {
                work.push(Work::End(lease));
                waiting.push(Ready::Revoked(answer, lease));
            }
            Request::KeepAlive { .. } => {}
        }
    }
    for lease in expired {
        work.push(Work::End(*lease));
        waiting.push(Ready::Expired(*lease));
    }
    for (work, ready) in work.into_iter().zip(&mut waiting[first..]) {
        match (work, ready) {
            (Work::Txn(txn), Ready::Txn(_, outcome)) => *outcome = tables.txn(&txn)?,
            (Work::Grant(ttl), Ready::Grant(_, lease, _)) => *lease = tables.grant(ttl)?,
            (Work::End(lease), _) => tables.end(lease)?,
            _ => {}
        }
    }
    tables.counters.insert(REVISION, tables.revision)?;
    Ok(tables.batches)
}

/// What a request does to the tables.
enum Work {
    Txn(Txn),
    Grant(Duration),
    End(LeaseId),
}

impl Group<'_> {
    fn entry(&self, key: &[u8]) -> Result<Option<Entry>, redb::Error> {
        Ok(self.entries.get(key)?.and_then(|value| decode(key, value.value())))
    }

    fn txn(&mut self, txn: &Txn) -> Result<Result<Outcome, StoreError>, redb::Error> {
        for compare in &txn.compares {
            let modified = self.entry(&compare.key)?.map_or(0, |entry| entry.modified);
            if modified != compare.modified {
                return Ok(Ok(Outcome::Conflict(self.revision)));
            }
        }
        for op in &txn.ops {
            if let Op::Put { lease: Some(lease), .. } = op
                && self.leases.get(lease.0)?.is_none()
            {
                return Ok(Err(StoreError::NoLease(*lease)));
            }
        }
        if !txn.ops.is_empty() {
            self.change(&txn.ops)?;
        }
        Ok(Ok(Outcome::Committed(self.revision)))
    }

    fn change(&mut self, ops: &[Op]) -> Result<(), redb::Error> {
        let revision = self.revision + 1;
        let mut changes = Vec::with_capacity(ops.len());
        for op in ops {
            let key = op.key();
            let old = self.entry(key)?;
            if let Some(lease) = old.as_ref().and_then(|entry| entry.lease) {
                self.leased.remove((lease.0, key))?;
            }
            match op {
                Op::Put { key, value, lease } => {
                    let created = old.map_or(revision, |entry| entry.created);
                    let (key, value, lease) = (key.clone(), value.clone(), *lease);
                    let entry = Entry { key, value, created, modified: revision, lease };
                    self.entries.insert(entry.key.as_slice(), encode(&entry).as_slice())?;
                    if let Some(lease) = lease {
                        self.leased.insert((lease.0, entry.key.as_slice()), ())?;
                    }
                    changes.push(Change { key: entry.key.clone(), entry: Some(entry) });
                }
                Op::Delete { key } if old.is_some() => {
                    self.entries.remove(key.as_slice())?;
                    changes.push(Change { key: key.clone(), entry: None });
                }
                Op::Delete { .. } => {}
            }
        }
        if !changes.is_empty() {
            self.revision = revision;
            self.batches.push(Batch { revision, changes });
        }
        Ok(())
    }

    fn grant(&mut self, ttl: Duration) -> Result<LeaseId, redb::Error> {
        let last = self.counters.get(LAST_LEASE)?.map_or(0, |value| value.value());
        let lease = last + 1;
        self.counters.insert(LAST_LEASE, lease)?;
        let milliseconds = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        self.leases.insert(lease, milliseconds)?;
        Ok(LeaseId(lease))
    }

    fn end(&mut self, lease: LeaseId) -> Result<(), redb::Error> {
        self.leases.remove(lease.0)?;
        let mut ops = Vec::new();
        for found in self.leased.range((lease.0, [].as_slice())..)? {
            let (found, ()) = found.map(|(key, _)| (key, ()))?;
            let (owner, key) = found.value();
            if owner != lease.0 {
                break;
            }
            ops.push(Op::Delete { key: key.to_vec() });
        }
        if !ops.is_empty() {
            self.change(&ops)?;
        }
        Ok(())
    }
}
