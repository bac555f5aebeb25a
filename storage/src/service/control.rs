//! What is said on the control socket (the table is in `bixi_api::storage`).
//!
//! Handlers check the words, ask the policy and enqueue; what the driver knows is put together here with what the
//! store says, on a thread that may wait for it.

use super::driver::{Order, Orders, Reply};
use super::live::Live;
use super::policy::Policy;
use super::refusal;
use crate::disk::DiskId;
use crate::disk::create::Source;
use crate::disk::store::{Store, StoreError};
use axum::Router;
use axum::extract::{Path, State};
use axum::routing::{get, put};
use bixi_api::storage::{DiskAttach, DiskCreate, DiskDescription, StorageDescription};
use bixi_offload::control::{Json, Refusal};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tokio::sync::oneshot;

/// What handlers need.
#[derive(Debug, Clone)]
pub struct Control {
    /// The driver.
    pub orders: Orders,
    /// Whether a change is allowed.
    pub policy: Arc<Policy>,
    /// The disks at rest.
    pub store: Store,
}

type Answer<T> = Result<Json<T>, Refusal>;

/// The control socket's router.
pub fn router(control: Control) -> Router {
    Router::new()
        .route("/v1/storage", get(describe))
        .route("/v1/disks", get(list).post(create))
        .route("/v1/disks/{id}", get(show).delete(delete))
        .route("/v1/disks/{id}/attachment", put(attach).delete(detach))
        .with_state(control)
}

impl Control {
    async fn ask<T>(&self, order: impl FnOnce(Reply<T>) -> Order) -> Result<T, Refusal> {
        let (reply, answer) = oneshot::channel();
        let ended = |_| Refusal::conflict("Stopping", "the process is ending.", "");
        self.orders.send(order(reply)).await.map_err(|_| ended(()))?;
        answer.await.map_err(|_| ended(()))?
    }

    /// Looks at the store on a thread that may wait for it.
    async fn look<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let store = self.store.clone();
        let looked = tokio::task::spawn_blocking(move || work(&store)).await;
        looked
            .map_err(|e| Refusal::failed("Internal", format!("looking at disks failed: {e}."), ""))
    }

    async fn all(&self) -> Result<Vec<DiskDescription>, Refusal> {
        let live = self.ask(Order::Look).await?;
        self.look(move |store| every_disk(store, live))
            .await?
            .map_err(|e| Refusal::failed("RootUnreadable", format!("the root directory: {e}."), ""))
    }
}

fn every_disk(store: &Store, live: HashMap<DiskId, Live>) -> std::io::Result<Vec<DiskDescription>> {
    let mut all: BTreeMap<DiskId, DiskDescription> = BTreeMap::new();
    for id in store.ids()? {
        if !matches!(live.get(&id), Some(Live::Attached(_)))
            && let Some(disk) = at_rest(store, &id)
        {
            all.insert(id, disk);
        }
    }
    for (id, live) in live {
        match live {
            Live::Idle => {}
            Live::Creating(creation) => {
                let creation = Some(creation);
                all.insert(id.clone(), DiskDescription { creation, ..nameless(&id) });
            }
            Live::Attached(disk) => drop(all.insert(id, *disk)),
        }
    }
    Ok(all.into_values().collect())
}

fn nameless(id: &DiskId) -> DiskDescription {
    let id = id.to_string();
    DiskDescription { id, size: 0, epoch: 0, attachment: None, creation: None, fault: None }
}

/// A disk as it lies there, if it does; a damaged one with the reason.
fn at_rest(store: &Store, id: &DiskId) -> Option<DiskDescription> {
    match store.meta(id) {
        Ok(meta) => Some(Live::idle(&meta)),
        Err(StoreError::NotFound(_)) => None,
        Err(error) => Some(DiskDescription { fault: Some(error.to_string()), ..nameless(id) }),
    }
}

fn parse(id: &str) -> Result<DiskId, Refusal> {
    id.parse().map_err(|e| refusal::of_id(&e))
}

async fn describe(State(control): State<Control>) -> Answer<StorageDescription> {
    let disks = control.all().await?;
    let attached = disks.iter().filter(|disk| disk.attachment.is_some()).count();
    Ok(Json(StorageDescription {
        release: bixi_api::RELEASE.to_owned(),
        pid: std::process::id(),
        disks: disks.len(),
        attached,
    }))
}

async fn list(State(control): State<Control>) -> Answer<Vec<DiskDescription>> {
    Ok(Json(control.all().await?))
}

async fn show(State(control): State<Control>, Path(id): Path<String>) -> Answer<DiskDescription> {
    let id = parse(&id)?;
    let disks = control.all().await?;
    let found = disks.into_iter().find(|disk| disk.id == id.as_str());
    found.map(Json).ok_or_else(|| refusal::of(&StoreError::NotFound(id)))
}

async fn create(
    State(control): State<Control>,
    Json(create): Json<DiskCreate>,
) -> Answer<DiskDescription> {
    control.policy.allow_change()?;
    let id = parse(&create.id)?;
    let source = match (create.image, create.size) {
        (Some(path), size) => Source::Image { path, size },
        (None, Some(size)) => Source::Zero { size },
        (None, None) => {
            let message = format!("disk {id}: neither a size nor an image is given.");
            return Err(Refusal::bad_request("BadSize", message, "Give at least one of them."));
        }
    };
    control.ask(|reply| Order::Create(id, source, reply)).await.map(Json)
}

async fn delete(State(control): State<Control>, Path(id): Path<String>) -> Answer<()> {
    control.policy.allow_change()?;
    let id = parse(&id)?;
    control.ask(|reply| Order::Delete(id, reply)).await.map(Json)
}

async fn attach(
    State(control): State<Control>,
    Path(id): Path<String>,
    Json(attach): Json<DiskAttach>,
) -> Answer<DiskDescription> {
    control.policy.allow_change()?;
    let id = parse(&id)?;
    control.ask(|reply| Order::Attach(id, attach, reply)).await.map(Json)
}

async fn detach(State(control): State<Control>, Path(id): Path<String>) -> Answer<DiskDescription> {
    control.policy.allow_change()?;
    let id = parse(&id)?;
    control.ask(|reply| Order::Detach(id, reply)).await.map(Json)
}
