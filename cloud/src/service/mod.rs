//! The control plane as it runs: the view that follows the store, the changes of requests, the reconciler's loop.
//!
//! ```text
//!   handlers ── change(plan) ──► view ─► draft ──► store ── committed ──► wait until the view has it ──► answer
//!                  ▲               ▲                 │ conflict: plan again
//!                  └───────────────┼─────────────────┘
//!                                  └── follower ◄── watch
//!   reconciler: whenever the view changes, and now and then: plan, commit
//! ```
//!
//! Invariants: the view changes through the follower alone; whoever was answered finds what was done in the view. The
//! lock of the view is held for synchronous work only. Signs of life and progress are in `Live`, in memory only.

mod live;
mod tenants;

pub use live::{Heard, Live, Waiting};

use crate::model::{Draft, RecordError, View, ids};
use crate::plan::{Context, Refusal, desired, launch, observe, reconcile};
use crate::store::{Outcome, Revision, Store, StoreError};
use bixi_api::agent::{DesiredState, Report};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// How often the clock alone makes the reconciler plan.
const TICK: Duration = Duration::from_secs(1);
/// How long the reconciler waits after the store failed.
const PATIENCE: Duration = Duration::from_secs(1);
/// Entries of one page when the view is read.
const PAGE: usize = 1000;
/// How often a change is planned anew because the state moved under it.
const ATTEMPTS: usize = 100;

/// Where this cloud is, as tenants see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The region's id.
    pub region: String,
    /// The id of its zone.
    pub zone: String,
}

/// Why the control plane cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The store does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A record cannot be read.
    #[error("the state cannot be read: {0}")]
    Record(#[from] RecordError),
}

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError<E = Refusal> {
    /// The request is refused.
    #[error("{0}")]
    Refused(E),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Others changed the same things again and again.
    #[error("too many others change the same things: try again")]
    Contended,
}

/// The control plane.
pub struct Control {
    store: Arc<dyn Store>,
    view: RwLock<View>,
    revision: watch::Sender<Revision>,
    live: Mutex<Live>,
    /// Counts changes of what is wanted that are not in the view: consoles.
    wanted: watch::Sender<u64>,
    place: Place,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("place", &self.place).finish_non_exhaustive()
    }
}

/// Milliseconds since 1970.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl Control {
    /// Reads the state.
    ///
    /// # Errors
    /// The store does not answer, or a record cannot be read.
    pub async fn load(store: Arc<dyn Store>, place: Place) -> Result<Arc<Self>, ControlError> {
        let view = read(store.as_ref()).await?;
        Ok(Arc::new(Self {
            store,
            revision: watch::Sender::new(view.revision),
            view: RwLock::new(view),
            live: Mutex::new(Live::default()),
            wanted: watch::Sender::new(0),
            place,
        }))
    }

    /// Follows the store and reconciles; ends only with an error.
    ///
    /// # Errors
    /// A record cannot be read: this release must not go on.
    pub async fn run(&self) -> Result<(), ControlError> {
        tokio::select! {
            ended = self.follow() => ended,
            () = self.reconcile() => Ok(()),
        }
    }

    /// The view as of now; not to be held across an await.
    pub fn view(&self) -> RwLockReadGuard<'_, View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known and not kept.
    pub fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where this cloud is.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Sees every revision of the view.
    pub fn revisions(&self) -> watch::Receiver<Revision> {
        self.revision.subscribe()
    }

    /// Plans with the newest view and commits, again whenever the state moved meanwhile.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub async fn change<T, E>(
        &self,
        mut plan: impl FnMut(&View, &BTreeSet<String>, &mut Context<'_>) -> Result<(Draft, T), E>,
    ) -> Result<T, ChangeError<E>> {
        let mut attempts = 0;
        while attempts < ATTEMPTS {
            self.launch().await?;
            let alive = self.live().alive();
            let (draft, value) = {
                let view = self.view();
                if !view.launches.is_empty() {
                    continue;
                }
                let mut context = Context { now: now(), ids: &mut ids::Kernel };
                plan(&view, &alive, &mut context).map_err(ChangeError::Refused)?
            };
            if draft.is_empty() || self.commit(draft).await? {
                // It is decided: should the rest fail now, the reconciler makes it.
                if let Err(error) = self.launch().await {
                    tracing::error!(%error, "a launch waits for the store");
                }
                return Ok(value);
            }
            attempts += 1;
        }
        Err(ChangeError::Contended)
    }

    /// Brings every launch to its end.
    async fn launch(&self) -> Result<(), StoreError> {
        loop {
            let step = launch::carry_on(&self.view());
            match step {
                Some(draft) => self.commit(draft).await?,
                None => return Ok(()),
            };
        }
    }

    /// Commits a draft; false if it conflicts. Either way the view has what there is now.
    async fn commit(&self, draft: Draft) -> Result<bool, StoreError> {
        let (done, revision) = match self.store.txn(draft.into_txn()).await? {
            Outcome::Committed(revision) => (true, revision),
            Outcome::Conflict(revision) => (false, revision),
        };
        let mut seen = self.revision.subscribe();
        seen.wait_for(|seen| *seen >= revision).await.map_err(|_| StoreError::Closed)?;
        Ok(done)
    }

    /// What a server told.
    ///
    /// # Errors
    /// The store failed, or others change the same things: the server tells it again.
    pub async fn report(&self, server: &str, report: Report) -> Result<(), ChangeError> {
        for _ in 0..ATTEMPTS {
            let drafts = {
                let mut context = Context { now: now(), ids: &mut ids::Kernel };
                observe::observe(&self.view(), server, &report, &mut context)
            };
            let mut whole = true;
            for draft in drafts {
                whole &= self.commit(draft).await?;
            }
            if whole {
                let view = self.view();
                let mut live = self.live();
                live.hear(server, report);
                live.forget(&view.active);
                return Ok(());
            }
        }
        Err(ChangeError::Contended)
    }

    /// What a server is to do.
    pub fn desired(&self, server: &str) -> DesiredState {
        let streams = self.live().wanted_streams(server);
        desired::desired(&self.view(), server, &self.place.region, streams)
    }

    /// What the server is to do, once it is other than `after`; `None` if it is not within `wait`.
    pub async fn desired_after(
        &self,
        server: &str,
        after: u64,
        wait: Duration,
    ) -> Option<DesiredState> {
        let (mut revisions, mut wanted) = (self.revision.subscribe(), self.wanted.subscribe());
        let moved = async {
            loop {
                revisions.mark_unchanged();
                wanted.mark_unchanged();
                let desired = self.desired(server);
                if desired.revision != after {
                    return Some(desired);
                }
                let changed = tokio::select! {
                    changed = revisions.changed() => changed,
                    changed = wanted.changed() => changed,
                };
                if changed.is_err() {
                    return None;
                }
            }
        };
        tokio::time::timeout(wait, moved).await.unwrap_or(None)
    }

    /// Lets servers look again at what is wanted of them beside the view.
    pub fn wake(&self) {
        self.wanted.send_modify(|count| *count = count.wrapping_add(1));
    }

    async fn follow(&self) -> Result<(), ControlError> {
        loop {
            let after = self.view().revision;
            let mut watch = match self.store.watch(b"", after).await {
                Ok(watch) => watch,
                Err(StoreError::Compacted { .. }) => {
                    let view = read(self.store.as_ref()).await?;
                    self.show(|old| *old = view);
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            loop {
                let batch = match watch.next().await {
                    Ok(batch) => batch,
                    Err(StoreError::Compacted { .. }) => break,
                    Err(error) => return Err(error.into()),
                };
                let mut applied = Ok(());
                self.show(|view| {
                    applied = batch.changes.iter().try_for_each(|change| view.apply(change));
                    view.revision = batch.revision;
                });
                applied?;
            }
        }
    }

    fn show(&self, change: impl FnOnce(&mut View)) {
        let mut view = self.view.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut view);
        let revision = view.revision;
        drop(view);
        self.revision.send_replace(revision);
    }

    async fn reconcile(&self) {
        let mut revisions = self.revision.subscribe();
        loop {
            revisions.mark_unchanged();
            let plan = {
                let mut context = Context { now: now(), ids: &mut ids::Kernel };
                reconcile::plan(&self.view(), &mut context)
            };
            let mut failed = false;
            for draft in plan {
                if let Err(error) = self.commit(draft).await {
                    tracing::error!(%error, "a plan was not carried out");
                    failed = true;
                    break;
                }
            }
            if failed {
                tokio::time::sleep(PATIENCE).await;
            } else {
                // A tick without a change is as good: deadlines pass by the clock alone.
                let _ = tokio::time::timeout(TICK, revisions.changed()).await;
            }
        }
    }
}

/// Reads all records. Pages may be of different revisions: what changed between them comes again with the watch.
async fn read(store: &dyn Store) -> Result<View, ControlError> {
    let mut view = View::default();
    let mut after: Option<Vec<u8>> = None;
    loop {
        let page = store.range(b"", after.as_deref(), PAGE).await?;
        if after.is_none() {
            view.revision = page.revision;
        }
        for entry in &page.entries {
            view.load(entry)?;
        }
        match page.entries.last() {
            Some(last) if page.more => after = Some(last.key.clone()),
            _ => return Ok(view),
        }
    }
}
