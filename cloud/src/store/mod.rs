//! Where the cloud keeps what must outlive it: keys and values with revisions, changed by transactions, watched.
//!
//! The trait is shaped so that an embedded engine and a distributed one (etcd) answer alike; the conformance suite in
//! `conformance` is written against the trait alone. Invariants that every engine keeps:
//!
//! - **One revision counter.** Every transaction that changes something gets the next revision, whole: a reader sees
//!   all of it or nothing, and a watcher gets it as one [`Batch`].
//! - **Acknowledged is kept.** A transaction that was answered with [`Outcome::Committed`] is on the medium.
//! - **A watcher misses nothing**: it gets every change after the revision it named, in order, or is told
//!   [`StoreError::Compacted`] and must read the range anew.
//! - **An error says whether it happened.** All but [`StoreError::Unknown`] mean that nothing was changed.
//!
//! Heartbeats, statistics and progress never come here. Called by `service`, which keeps the model in memory and
//! follows the watch.

#[cfg(test)]
mod conformance;
mod embedded;
#[cfg(test)]
mod embedded_tests;
mod history;
mod writer;

pub use embedded::EmbeddedStore;

use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

/// Counts changes; 0 is before the first one.
pub type Revision = u64;

/// The most compares and operations, together, that one transaction may have.
pub const TXN_OPERATIONS: usize = 128;
/// The most bytes of keys and values that one transaction may have.
pub const TXN_BYTES: usize = 1 << 20;
/// The most bytes a key may have.
pub const KEY_BYTES: usize = 512;

/// What an asynchronous question to a store is answered with.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// Names a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Vec<u8>,
    /// The value.
    pub value: Vec<u8>,
    /// The revision that created it.
    pub created: Revision,
    /// The revision that last changed it.
    pub modified: Revision,
    /// The lease it ends with, if any.
    pub lease: Option<LeaseId>,
}

/// Part of a range, as it was at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Entries in the order of their keys.
    pub entries: Vec<Entry>,
    /// Whether there are more behind the last of them.
    pub more: bool,
    /// The store's revision when the page was read.
    pub revision: Revision,
}

/// A condition of a transaction: the key was last changed at this revision; 0 says that it does not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    /// The key.
    pub key: Vec<u8>,
    /// The revision of its last change, or 0.
    pub modified: Revision,
}

/// A change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Create or replace.
    Put {
        /// The key.
        key: Vec<u8>,
        /// Its new value.
        value: Vec<u8>,
        /// The lease it ends with, if any.
        lease: Option<LeaseId>,
    },
    /// Remove, if it is there.
    Delete {
        /// The key.
        key: Vec<u8>,
    },
}

impl Op {
    /// The key that changes.
    pub fn key(&self) -> &[u8] {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// Changes that happen together if all compares hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    /// What must hold.
    pub compares: Vec<Compare>,
    /// What is changed then, in this order.
    pub ops: Vec<Op>,
}

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is on the medium, at this revision. One without operations has the revision it was compared at.
    Committed(Revision),
    /// A compare did not hold at this revision; nothing was changed.
    Conflict(Revision),
}

/// One change, as a watcher sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: Vec<u8>,
    /// What it is now; `None` if it is gone.
    pub entry: Option<Entry>,
}

/// What one revision changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The revision.
    pub revision: Revision,
    /// The changes.
    pub changes: Vec<Change>,
}

/// Follows the changes under a prefix.
pub trait Watch: Send {
    /// The next revision that changed something under the prefix. Dropping the answer unawaited loses nothing.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] if the watcher fell too far behind; [`StoreError::Closed`] if the store ended.
    fn next(&mut self) -> Answer<'_, Batch>;
}

/// The store: see the module for what every engine keeps.
pub trait Store: Send + Sync {
    /// One key.
    fn get<'a>(&'a self, key: &'a [u8]) -> Answer<'a, Option<Entry>>;

    /// At most `limit` keys that begin with `prefix`, from behind the key `after` on.
    fn range<'a>(
        &'a self,
        prefix: &'a [u8],
        after: Option<&'a [u8]>,
        limit: usize,
    ) -> Answer<'a, Page>;

    /// Changes keys, if all compares hold.
    fn txn(&self, txn: Txn) -> Answer<'_, Outcome>;

    /// Follows the changes under `prefix` with revisions above `after`.
    fn watch<'a>(&'a self, prefix: &'a [u8], after: Revision) -> Answer<'a, Box<dyn Watch>>;

    /// A new lease. Keys put with it are deleted when it was not kept alive for `ttl`.
    fn grant(&self, ttl: Duration) -> Answer<'_, LeaseId>;

    /// Begins the lease's time anew.
    fn keep_alive(&self, lease: LeaseId) -> Answer<'_, ()>;

    /// Ends the lease now, and deletes its keys.
    fn revoke(&self, lease: LeaseId) -> Answer<'_, ()>;
}

/// Why a store does not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The transaction is larger than any engine takes.
    #[error(
        "a transaction of {operations} operations and {bytes} bytes is too large: at most {TXN_OPERATIONS} and {TXN_BYTES} are possible"
    )]
    TooLarge {
        /// Its compares and operations.
        operations: usize,
        /// Its bytes.
        bytes: usize,
    },
    /// A key is empty or too long, or one is changed twice in a transaction.
    #[error("{0}")]
    Key(String),
    /// The history was cut behind the revision that was asked for.
    #[error(
        "changes up to revision {oldest} are no longer held: read the range and watch from there"
    )]
    Compacted {
        /// The revision behind which changes are held.
        oldest: Revision,
    },
    /// There is no such lease: it ended.
    #[error("lease {} has ended: take a new one", .0.0)]
    NoLease(LeaseId),
    /// The medium is full.
    #[error(
        "no space is left for the state in {}: make room there; the cloud goes on by itself", path.display()
    )]
    Full {
        /// The state's file.
        path: PathBuf,
    },
    /// Another process uses the state.
    #[error("{} is in use by another process: stop it, or choose another state directory", path.display())]
    InUse {
        /// The state's file.
        path: PathBuf,
    },
    /// The file is not a state of this release.
    #[error("{} cannot be used: {reason}", path.display())]
    Unusable {
        /// The state's file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The medium failed; nothing was changed.
    #[error("the state in {} cannot be written: {reason}", path.display())]
    Io {
        /// The state's file.
        path: PathBuf,
        /// What the kernel said.
        reason: String,
    },
    /// The medium failed, and whether the change happened is not known: read before you try again.
    #[error("the state in {} failed, and whether the change was kept is not known: {reason}", path.display())]
    Unknown {
        /// The state's file.
        path: PathBuf,
        /// What the kernel said.
        reason: String,
    },
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

impl Txn {
    /// Whether every engine would take it.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] or [`StoreError::Key`].
    pub fn check(&self) -> Result<(), StoreError> {
        let operations = self.compares.len() + self.ops.len();
        let compared: usize = self.compares.iter().map(|compare| compare.key.len()).sum();
        let changed: usize = self.ops.iter().map(size).sum();
        let bytes = compared + changed;
        if operations > TXN_OPERATIONS || bytes > TXN_BYTES {
            return Err(StoreError::TooLarge { operations, bytes });
        }
        let compared = self.compares.iter().map(|compare| compare.key.as_slice());
        if compared
            .chain(self.ops.iter().map(Op::key))
            .any(|key| !(1..=KEY_BYTES).contains(&key.len()))
        {
            return Err(StoreError::Key(format!("a key has 1 to {KEY_BYTES} bytes")));
        }
        let mut keys: Vec<&[u8]> = self.ops.iter().map(Op::key).collect();
        keys.sort_unstable();
        if keys.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(StoreError::Key("a transaction changes a key twice".to_owned()));
        }
        Ok(())
    }
}

fn size(op: &Op) -> usize {
    match op {
        Op::Put { key, value, .. } => key.len() + value.len(),
        Op::Delete { key } => key.len(),
    }
}
