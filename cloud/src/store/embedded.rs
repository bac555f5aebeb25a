//! The embedded engine: one redb file, one writer thread that commits in groups, readers beside it.
//!
//! ```text
//!   txn, grant, revoke ──queue──► writer thread: many transactions, one commit, one fsync
//!                                      │ then
//!                                      ├──► history ──► watchers
//!                                      └──► the answers
//! ```
//!
//! Invariants: no type of redb leaves this module and `writer`; a reader holds the database only while it reads, so
//! that the writer can close and open it after the medium failed. A database that could not be opened again is tried
//! anew at each request: when space returns, the store goes on.

use super::history::{Follower, History};
use super::writer::{self, Request};
use super::{Answer, Entry, LeaseId, Outcome, Page, Revision, Store, StoreError, Txn, Watch};
use redb::{Database, ReadableDatabase, TableDefinition};
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::oneshot;

/// Keys, with values as [`encode`] writes them.
pub(super) const ENTRIES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("entries");
/// Counters: [`REVISION`], [`LAYOUT`] and the last lease's number.
pub(super) const COUNTERS: TableDefinition<'_, &str, u64> = TableDefinition::new("counters");
/// Leases: their time to live in milliseconds.
pub(super) const LEASES: TableDefinition<'_, u64, u64> = TableDefinition::new("leases");
/// Which keys end with which lease.
pub(super) const LEASED: TableDefinition<'_, (u64, &[u8]), ()> = TableDefinition::new("leased");

pub(super) const REVISION: &str = "revision";
pub(super) const LAST_LEASE: &str = "last-lease";
/// The version of what the tables mean; a newer one is refused.
const LAYOUT: &str = "layout";
const LAYOUT_VERSION: u64 = 1;

/// Memory for pages of the file: the model is in memory beside it, so that little is read twice.
const CACHE_BYTES: usize = 8 << 20;
/// Bytes before the value: created, modified, lease.
const HEADER: usize = 24;

/// What the writer and the readers share.
#[derive(Debug)]
pub(super) struct Shared {
    path: PathBuf,
    database: RwLock<Option<Database>>,
    pub(super) history: Arc<History>,
}

/// A store in one file. It is closed when it is dropped.
#[derive(Debug)]
pub struct EmbeddedStore {
    shared: Arc<Shared>,
    requests: Option<mpsc::Sender<Request>>,
    writer: Option<JoinHandle<()>>,
}

impl EmbeddedStore {
    /// Opens the store in the file `path`, which is made if there is none.
    ///
    /// # Errors
    /// The file is in use, damaged, of a newer release, or cannot be written.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let (database, revision) = open_database(path)?;
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            database: RwLock::new(Some(database)),
            history: Arc::new(History::new(revision)),
        });
        let (requests, queue) = mpsc::channel();
        let writer = writer::Writer::new(shared.clone(), queue)?;
        let writer = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || writer.run())
            .map_err(|e| StoreError::Io { path: path.to_owned(), reason: e.to_string() })?;
        Ok(Self { shared, requests: Some(requests), writer: Some(writer) })
    }

    fn ask<T: Send + 'static>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Request,
    ) -> Answer<'_, T> {
        let (answer, answered) = oneshot::channel();
        let sent = self.requests.as_ref().map(|requests| requests.send(request(answer)));
        Box::pin(async move {
            match sent {
                Some(Ok(())) => answered.await.unwrap_or(Err(StoreError::Closed)),
                _ => Err(StoreError::Closed),
            }
        })
    }

    fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Database) -> Result<T, redb::Error> + Send + 'static,
    ) -> Answer<'_, T> {
        let shared = self.shared.clone();
        Box::pin(async move {
            tokio::task::spawn_blocking(move || shared.with(read))
                .await
                .unwrap_or(Err(StoreError::Closed))
        })
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

impl Store for EmbeddedStore {
    fn get<'a>(&'a self, key: &'a [u8]) -> Answer<'a, Option<Entry>> {
        let key = key.to_vec();
        self.read(move |database| {
            let entries = database.begin_read()?.open_table(ENTRIES)?;
            Ok(entries.get(key.as_slice())?.and_then(|value| decode(&key, value.value())))
        })
    }

    fn range<'a>(
        &'a self,
        prefix: &'a [u8],
        after: Option<&'a [u8]>,
        limit: usize,
    ) -> Answer<'a, Page> {
        let (prefix, after) = (prefix.to_vec(), after.map(<[u8]>::to_vec));
        self.read(move |database| page(database, &prefix, after.as_deref(), limit))
    }

    fn txn(&self, txn: Txn) -> Answer<'_, Outcome> {
        match txn.check() {
            Ok(()) => self.ask(|answer| Request::Txn { txn, answer }),
            Err(error) => Box::pin(async { Err(error) }),
        }
    }

    fn watch<'a>(&'a self, prefix: &'a [u8], after: Revision) -> Answer<'a, Box<dyn Watch>> {
        Box::pin(async move {
            let follower = Follower::new(&self.shared.history, prefix, after)?;
            Ok(Box::new(follower) as Box<dyn Watch>)
        })
    }

    fn grant(&self, ttl: Duration) -> Answer<'_, LeaseId> {
        self.ask(|answer| Request::Grant { ttl, answer })
    }

    fn keep_alive(&self, lease: LeaseId) -> Answer<'_, ()> {
        self.ask(|answer| Request::KeepAlive { lease, answer })
    }

    fn revoke(&self, lease: LeaseId) -> Answer<'_, ()> {
        self.ask(|answer| Request::Revoke { lease, answer })
    }
}

impl Shared {
    /// Uses the database, if it is open.
    pub(super) fn with<T>(
        &self,
        what: impl FnOnce(&Database) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let closed = || self.failed("it could not be opened again after a failure");
        what(database.as_ref().ok_or_else(closed)?).map_err(|e| self.error(&e))
    }

    /// Whether the database is open.
    pub(super) fn is_open(&self) -> bool {
        self.database.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Closes the database and opens it anew: what the last commit left half done is put right by that. Gives the
    /// revision that is on the medium.
    pub(super) fn reopen(&self) -> Result<Revision, StoreError> {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        *database = None;
        let (fresh, revision) = open_database(&self.path)?;
        *database = Some(fresh);
        Ok(revision)
    }

    fn failed(&self, reason: &str) -> StoreError {
        StoreError::Io { path: self.path.clone(), reason: reason.to_owned() }
    }

    fn error(&self, error: &redb::Error) -> StoreError {
        store_error(&self.path, error)
    }

    /// The same failure where it is not known whether the change was kept.
    pub(super) fn unknown(&self, error: &StoreError) -> StoreError {
        StoreError::Unknown { path: self.path.clone(), reason: error.to_string() }
    }
}

fn store_error(path: &Path, error: &redb::Error) -> StoreError {
    let path = path.to_owned();
    let full = |e: &io::Error| {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        matches!(e.kind(), FileTooLarge | QuotaExceeded | StorageFull)
    };
    match error {
        redb::Error::Io(e) if full(e) => StoreError::Full { path },
        redb::Error::DatabaseAlreadyOpen => StoreError::InUse { path },
        redb::Error::Corrupted(_) | redb::Error::UpgradeRequired(_) => {
            StoreError::Unusable { path, reason: error.to_string() }
        }
        redb::Error::Io(e) if e.kind() == io::ErrorKind::InvalidData => {
            StoreError::Unusable { path, reason: e.to_string() }
        }
        other => StoreError::Io { path, reason: other.to_string() },
    }
}

fn open_database(path: &Path) -> Result<(Database, Revision), StoreError> {
    let fail = |error: redb::Error| store_error(path, &error);
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    let database = builder.create(path).map_err(|e| fail(e.into()))?;
    let (layout, revision) = prepare(&database).map_err(fail)?;
    if layout > LAYOUT_VERSION {
        return Err(StoreError::Unusable {
            path: path.to_owned(),
            reason: format!(
                "its layout has version {layout}, this release reads up to {LAYOUT_VERSION}: use a newer release"
            ),
        });
    }
    Ok((database, revision))
}

/// Makes the tables in a new file; gives the layout's version and the revision.
fn prepare(database: &Database) -> Result<(u64, Revision), redb::Error> {
    if let Ok(counters) = database.begin_read()?.open_table(COUNTERS) {
        let number = |name| Ok(counters.get(name)?.map(|value| value.value()));
        let layout: Result<Option<u64>, redb::Error> = number(LAYOUT);
        if let Some(layout) = layout? {
            return Ok((layout, number(REVISION)?.unwrap_or(0)));
        }
    }
    let write = database.begin_write()?;
    write.open_table(ENTRIES)?;
    write.open_table(LEASES)?;
    write.open_table(LEASED)?;
    write.open_table(COUNTERS)?.insert(LAYOUT, LAYOUT_VERSION)?;
    write.commit()?;
    Ok((LAYOUT_VERSION, 0))
}

fn page(
    database: &Database,
    prefix: &[u8],
    after: Option<&[u8]>,
    limit: usize,
) -> Result<Page, redb::Error> {
    let read = database.begin_read()?;
    let revision = read.open_table(COUNTERS)?.get(REVISION)?.map_or(0, |value| value.value());
    let table = read.open_table(ENTRIES)?;
    let first = match after {
        Some(after) if after >= prefix => Bound::Excluded(after),
        _ => Bound::Included(prefix),
    };
    let mut page = Page { entries: Vec::new(), more: false, revision };
    for found in table.range::<&[u8]>((first, Bound::Unbounded))? {
        let (key, value) = found?;
        if !key.value().starts_with(prefix) {
            break;
        }
        if page.entries.len() == limit {
            page.more = true;
            break;
        }
        page.entries.extend(decode(key.value(), value.value()));
    }
    Ok(page)
}

/// An entry's value as the file has it.
pub(super) fn encode(entry: &Entry) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + entry.value.len());
    for number in [entry.created, entry.modified, entry.lease.map_or(0, |lease| lease.0)] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    bytes.extend_from_slice(&entry.value);
    bytes
}

/// Reads it back; bytes too short for the header are nobody's value.
pub(super) fn decode(key: &[u8], bytes: &[u8]) -> Option<Entry> {
    let (header, value) = bytes.split_first_chunk::<HEADER>()?;
    let number = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&header[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    let lease = Some(number(16)).filter(|lease| *lease != 0).map(LeaseId);
    let (created, modified) = (number(0), number(8));
    Some(Entry { key: key.to_vec(), value: value.to_vec(), created, modified, lease })
}
