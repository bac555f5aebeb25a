//! The task that owns the process's state.
//!
//! [`Driver::run`] selects the next event (an order of a handler, the result of a job, a timer, something on the card)
//! and applies it synchronously: `apply` never waits. What may wait for a disk is a job on a thread of its own, whose
//! result comes back as an order. Each disk has at most one thing going on (see [`Going`]); the attachments' decisions
//! are made by the pure machine in `attachment`, whose actions are done here.

use super::attachment::{Action, Attachment, Claim, Event, Stage};
use super::jobs::{self, Claimed};
use super::live::{Attached, Going, Live};
use super::policy::{Phase, Policy};
use super::records::{self, Record, Records};
use super::refusal;
use crate::disk::DiskId;
use crate::disk::create::{Progress, Source};
use crate::disk::meta::Meta;
use crate::disk::store::{Store, StoreError};
use crate::engine::config::Shape;
use crate::engine::media::{FileMedia, Media, ServedDisk, counters};
use crate::engine::service::{BlockService, Command};
use bixi_api::storage::{DiskAttach, DiskDescription, DiskLimits};
use bixi_offload::card::{Card, CardError, CardEvent, DeviceConfig, DeviceId, WorkerId};
use bixi_offload::control::{Listener, Refusal, SocketFile};
use bixi_offload::rate::Limiter;
use bixi_offload::vhost_user::Offer;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Orders that may wait for the driver; who sends more waits.
const INBOX: usize = 256;
/// The largest queue offered, in descriptors.
const QUEUE_SIZE: u16 = 1024;
/// How long an ending process waits for its devices' requests under way.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// Where an answer goes.
pub type Reply<T> = oneshot::Sender<Result<T, Refusal>>;

/// What reaches the driver beside the card's events.
#[derive(Debug)]
pub enum Order {
    /// What is going on with each disk.
    Look(Reply<HashMap<DiskId, Live>>),
    /// Make a disk.
    Create(DiskId, Source, Reply<DiskDescription>),
    /// Delete a disk, or end its creation.
    Delete(DiskId, Reply<()>),
    /// Serve a disk.
    Attach(DiskId, DiskAttach, Reply<DiskDescription>),
    /// Serve it no longer.
    Detach(DiskId, Reply<DiskDescription>),
    /// A job has made a disk.
    Created(DiskId, Result<Meta, StoreError>),
    /// A job has deleted one.
    Deleted(DiskId, Result<(), StoreError>),
    /// A job has claimed one.
    Claimed(DiskId, Box<Claimed>),
    /// The time that an attachment asked for has passed.
    Tick(DiskId),
    /// Let everything go and end.
    Stop,
}

/// How the driver is reached.
pub type Orders = mpsc::Sender<Order>;

/// The driver.
#[derive(Debug)]
pub struct Driver {
    card: Card<BlockService>,
    workers: Vec<WorkerId>,
    store: Store,
    records: Records,
    policy: Arc<Policy>,
    going: HashMap<DiskId, Going>,
    devices: HashMap<DeviceId, DiskId>,
    inbox: mpsc::Receiver<Order>,
    orders: Orders,
    /// Sockets of devices for measurements, which come and go with the process.
    bench: Vec<SocketFile>,
    /// Rotates the first worker, so that disks with one queue spread over all.
    next_worker: usize,
}

/// Why the process cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("worker {worker:?} has ended: {reason}")]
pub struct WorkerLost {
    worker: WorkerId,
    reason: String,
}

impl Driver {
    /// A driver for a card with these workers.
    pub fn new(
        card: Card<BlockService>,
        workers: Vec<WorkerId>,
        store: Store,
        records: Records,
    ) -> Self {
        let (orders, inbox) = mpsc::channel(INBOX);
        Self {
            card,
            workers,
            store,
            records,
            policy: Arc::default(),
            going: HashMap::new(),
            devices: HashMap::new(),
            inbox,
            orders,
            bench: Vec::new(),
            next_worker: 0,
        }
    }

    /// How it is reached.
    pub fn orders(&self) -> Orders {
        self.orders.clone()
    }

    /// Whether a request is allowed now.
    pub fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.policy)
    }

    /// Takes up what was promised before: every socket listens when this returns; disks are claimed by jobs.
    pub fn restore(&mut self, records: Vec<Record>) {
        for Record { id, attach, shape } in records {
            tracing::info!(disk = %id, epoch = attach.epoch, "restoring an attachment");
            let attached = Attached::new(id.clone(), Attachment::restored(attach), Some(shape));
            self.going.insert(id.clone(), Going::Attached(Box::new(attached)));
            self.feed(&id, Event::Begin);
        }
    }

    /// Serves a disk that exists only for measurements.
    ///
    /// # Errors
    /// Its socket cannot be listened on.
    pub fn add_bench_disk(
        &mut self,
        shape: &Shape,
        disk: ServedDisk,
        listener: Listener,
    ) -> Result<(), CardError> {
        let failed = |source| CardError::System { what: "listen for front ends", source };
        let (listener, file) = listener.into_parts().map_err(failed)?;
        let config = self.device(shape, listener, false);
        let device = self.card.add_device(config)?;
        self.serve(device, &Arc::new(disk), None);
        self.bench.extend(file);
        Ok(())
    }

    /// Runs until the process is told to end.
    ///
    /// # Errors
    /// A worker was lost.
    pub async fn run(mut self) -> Result<(), WorkerLost> {
        while self.policy.phase() == Phase::Serving {
            tokio::select! {
                event = self.card.next() => self.card_event(event)?,
                Some(order) = self.inbox.recv() => self.apply(order),
            }
        }
        match tokio::time::timeout(STOP_DEADLINE, self.let_go()).await {
            Ok(ended) => ended,
            Err(_) => {
                tracing::warn!("requests under way do not end; leaving them to the successor");
                Ok(())
            }
        }
    }

    /// Removes all devices and gives their locks back. What was promised stays written down.
    async fn let_go(&mut self) -> Result<(), WorkerLost> {
        let mut left = self.devices.len();
        for device in self.devices.keys() {
            self.card.remove_device(*device);
        }
        while left > 0 {
            match self.card.next().await {
                CardEvent::Removed(device) => {
                    if let Some(id) = self.devices.remove(&device) {
                        self.release(&id);
                        left -= 1;
                    }
                }
                CardEvent::WorkerLost(worker, reason) => return Err(WorkerLost { worker, reason }),
                _ => {}
            }
        }
        Ok(())
    }

    fn apply(&mut self, order: Order) {
        match order {
            Order::Look(reply) => {
                let live = self.going.iter().map(|(id, going)| (id.clone(), going.live(id)));
                let _ = reply.send(Ok(live.collect()));
            }
            Order::Create(id, source, reply) => self.create(id, source, reply),
            Order::Delete(id, reply) => self.delete(id, reply),
            Order::Attach(id, attach, reply) => self.attach(id, attach, reply),
            Order::Detach(id, reply) => self.detach(id, reply),
            Order::Created(id, result) => self.created(&id, result),
            Order::Deleted(id, result) => {
                if let Some(Going::Deleting(reply)) = self.going.remove(&id) {
                    let _ = reply.send(result.map_err(|e| refusal::of(&e)));
                }
            }
            Order::Claimed(id, claimed) => self.claimed(&id, *claimed),
            Order::Tick(id) => self.feed(&id, Event::Tick),
            Order::Stop => self.policy.enter(Phase::Stopping),
        }
    }

    /// Runs a job on a thread of its own; its result comes back as an order.
    fn job(&self, work: impl FnOnce(&Store) -> Order + Send + 'static) {
        let (store, orders) = (self.store.clone(), self.orders.clone());
        tokio::task::spawn_blocking(move || {
            // Nobody listens any more only when the process ends.
            let _ = orders.blocking_send(work(&store));
        });
    }

    fn create(&mut self, id: DiskId, source: Source, reply: Reply<DiskDescription>) {
        if let Some(going) = self.going.get(&id) {
            let _ = reply.send(Err(refusal::busy(&id, going.word())));
            return;
        }
        let progress = Arc::new(Progress::default());
        let (progress, shared) = (Arc::clone(&progress), progress);
        let name = id.clone();
        self.job(move |store| {
            let made = store.create(&name, &source, &progress);
            Order::Created(name, made)
        });
        self.going.insert(id, Going::Creating { progress: shared, reply, enders: Vec::new() });
    }

    fn created(&mut self, id: &DiskId, result: Result<Meta, StoreError>) {
        let Some(Going::Creating { reply, enders, .. }) = self.going.remove(id) else { return };
        match &result {
            Ok(meta) => tracing::info!(disk = %id, size = meta.size, "disk made"),
            Err(error) => tracing::warn!(disk = %id, %error, "disk not made"),
        }
        for ender in enders {
            // It was too late to end it: then it is there, and can be deleted.
            let _ = ender.send(match &result {
                Ok(_) => Err(refusal::busy(id, "made, and was done just now")),
                Err(_) => Ok(()),
            });
        }
        let description = result.map(|meta| Live::idle(&meta)).map_err(|e| refusal::of(&e));
        let _ = reply.send(description);
    }

    fn delete(&mut self, id: DiskId, reply: Reply<()>) {
        match self.going.get_mut(&id) {
            None => {
                let name = id.clone();
                self.job(move |store| {
                    let deleted = store.delete(&name);
                    Order::Deleted(name, deleted)
                });
                self.going.insert(id, Going::Deleting(reply));
            }
            Some(Going::Creating { progress, enders, .. }) => {
                progress.cancel();
                enders.push(reply);
            }
            Some(Going::Attached(_)) => {
                let _ = reply.send(Err(Refusal::conflict(
                    "DiskInUse",
                    format!("disk {id} is attached."),
                    "Detach it first.",
                )));
            }
            Some(Going::Deleting(_)) => {
                let _ = reply.send(Err(refusal::busy(&id, "deleted")));
            }
        }
    }

    fn attach(&mut self, id: DiskId, attach: DiskAttach, reply: Reply<DiskDescription>) {
        if let Err((code, message)) = records::check(&attach) {
            let _ = reply.send(Err(Refusal::bad_request(code, message, "")));
            return;
        }
        match self.going.get_mut(&id) {
            None => {
                let mut attached = Attached::new(id.clone(), Attachment::asked(attach), None);
                attached.askers.push(reply);
                self.going.insert(id.clone(), Going::Attached(Box::new(attached)));
                self.feed(&id, Event::Begin);
            }
            Some(Going::Attached(attached)) if attached.changes_limits(&attach) => {
                let _ = reply.send(self.limit(&id, attach.limits));
            }
            Some(Going::Attached(attached)) => attached.again(&id, &attach, reply),
            Some(going) => {
                let _ = reply.send(Err(refusal::busy(&id, going.word())));
            }
        }
    }

    /// Changes the limits of an attached disk while it goes on.
    fn limit(&mut self, id: &DiskId, limits: DiskLimits) -> Result<DiskDescription, Refusal> {
        let Some(Going::Attached(attached)) = self.going.get_mut(id) else {
            return Err(refusal::busy(id, "changed"));
        };
        attached.set_limits(id, limits, &self.records)?;
        tracing::info!(disk = %id, ?limits, "limits changed");
        // Where it is not served yet, that begins with them.
        if let (Some(device), Some(_)) = (attached.device, &attached.served) {
            let limiter = attached.limiter();
            for worker in &self.workers {
                self.card.command(*worker, Command::Limit(device, limiter.clone()));
            }
        }
        Ok(attached.describe(id))
    }

    fn detach(&mut self, id: DiskId, reply: Reply<DiskDescription>) {
        match self.going.get_mut(&id) {
            Some(Going::Attached(attached)) => {
                if attached.machine.stage() == Stage::Checking {
                    let _ = reply.send(Err(refusal::busy(&id, "attached")));
                    return;
                }
                attached.detachers.push(reply);
                self.feed(&id, Event::Detach);
            }
            Some(going) => {
                let _ = reply.send(Err(refusal::busy(&id, going.word())));
            }
            None => {
                // Not attached already: say how it is, if it is.
                tokio::task::spawn_blocking({
                    let store = self.store.clone();
                    move || {
                        let meta = store.meta(&id).map_err(|e| refusal::of(&e));
                        let _ = reply.send(meta.map(|meta| Live::idle(&meta)));
                    }
                });
            }
        }
    }

    fn claimed(&mut self, id: &DiskId, claimed: Claimed) {
        let Some(Going::Attached(attached)) = self.going.get_mut(id) else { return };
        let mut claim = claimed.claim;
        attached.waiting = claimed.error.as_ref().map(ToString::to_string);
        if let (Some(promised), Some(found)) = (&attached.shape, &claimed.shape)
            && promised != found
        {
            claim = Claim::Failed;
            let error =
                format!("disk {id} is not what was attached: {promised:?} then, {found:?} now");
            attached.waiting = Some(error);
        }
        attached.shape = attached.shape.or(claimed.shape);
        attached.layer = claimed.layer.filter(|_| claim == Claim::Held);
        match claim {
            Claim::Stale => {
                let epoch = attached.machine.attach.epoch;
                tracing::error!(disk = %id, epoch, "a newer epoch has been seen; not served");
            }
            Claim::Failed if attached.askers.is_empty() => {
                let why = attached.waiting.as_deref().unwrap_or_default();
                tracing::warn!(disk = %id, why, "the disk cannot be used; trying again");
            }
            _ => {}
        }
        attached.refusal = claimed.error.as_ref().map(refusal::of);
        self.feed(id, Event::Claimed(claim));
    }

    /// Gives an attachment an event and does all that follows.
    fn feed(&mut self, id: &DiskId, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let Some(Going::Attached(attached)) = self.going.get_mut(id) else { return };
            for action in attached.machine.step(event) {
                events.extend(self.perform(id, action));
            }
        }
        if let Some(Going::Attached(attached)) = self.going.get(id)
            && attached.machine.stage() == Stage::Gone
        {
            self.going.remove(id);
        }
    }

    /// Does one action. Returns what the attachment is told at once, if anything.
    fn perform(&mut self, id: &DiskId, action: Action) -> Option<Event> {
        let Some(Going::Attached(attached)) = self.going.get_mut(id) else { return None };
        match action {
            Action::Claim { first } => {
                let (name, attach) = (id.clone(), attached.machine.attach.clone());
                self.job(move |store| {
                    let claimed = jobs::claim(store, &name, &attach, first);
                    Order::Claimed(name, Box::new(claimed))
                });
            }
            Action::Record => attached.record(id, &self.records),
            Action::Forget => {
                if let Err(error) = self.records.remove(id) {
                    tracing::error!(disk = %id, %error, "cannot forget an attachment");
                }
            }
            Action::Listen => return Some(Event::Listened(self.listen(id))),
            Action::Serve => self.run_rings(id),
            Action::Remove => match attached.device {
                Some(device) => self.card.remove_device(device),
                None => return Some(Event::Removed),
            },
            Action::Release => self.release(id),
            Action::After(time) => {
                let (name, orders) = (id.clone(), self.orders.clone());
                tokio::spawn(async move {
                    tokio::time::sleep(time).await;
                    let _ = orders.send(Order::Tick(name)).await;
                });
            }
            Action::Accept => attached.accept(id),
            Action::Refuse => attached.refuse(id),
            Action::Detached => attached.tell_detached(id),
        }
        None
    }

    fn listen(&mut self, id: &DiskId) -> bool {
        let Some(Going::Attached(attached)) = self.going.get_mut(id) else { return false };
        let Some(shape) = attached.shape.filter(|_| attached.refusal_at_record.is_none()) else {
            attached.refusal = attached.refusal_at_record.take();
            return false;
        };
        let socket = attached.machine.attach.socket.clone();
        let parts = Listener::bind_path(&socket)
            .map_err(|e| e.to_string())
            .and_then(|listener| listener.into_parts().map_err(|e| e.to_string()));
        let (listener, file) = match parts {
            Ok(parts) => parts,
            Err(message) => return self.cannot_listen(id, message),
        };
        let sealed = attached.machine.attach.require_sealed;
        let config = self.device(&shape, listener, sealed);
        match self.card.add_device(config) {
            Ok(device) => {
                self.devices.insert(device, id.clone());
                if let Some(Going::Attached(attached)) = self.going.get_mut(id) {
                    attached.device = Some(device);
                    attached.socket_file = file;
                }
                true
            }
            Err(error) => self.cannot_listen(id, error.to_string()),
        }
    }

    fn cannot_listen(&mut self, id: &DiskId, message: String) -> bool {
        tracing::warn!(disk = %id, message, "cannot listen for front ends");
        if let Some(Going::Attached(attached)) = self.going.get_mut(id) {
            attached.waiting = Some(message.clone());
            attached.refusal = Some(Refusal::conflict("SocketUnusable", message, ""));
        }
        false
    }

    fn device(
        &mut self,
        shape: &Shape,
        listener: std::os::unix::net::UnixListener,
        require_sealed: bool,
    ) -> DeviceConfig {
        let first = self.next_worker % self.workers.len().max(1);
        self.next_worker = self.next_worker.wrapping_add(usize::from(shape.queues));
        let mut workers = self.workers.clone();
        workers.rotate_left(first);
        let offer = Offer {
            features: shape.features(),
            config: shape.config(),
            config_writable: 0..0,
            queues: shape.queues,
            max_queue_size: QUEUE_SIZE,
            inflight: true,
            mtu: false,
        };
        DeviceConfig { listener, offer, require_sealed, workers, held: true }
    }

    /// Lets the rings of a claimed disk run.
    fn run_rings(&mut self, id: &DiskId) {
        let Some(Going::Attached(attached)) = self.going.get_mut(id) else { return };
        let (Some(device), Some(shape), Some(layer)) =
            (attached.device, attached.shape, attached.layer.take())
        else {
            tracing::error!(disk = %id, "told to serve what is not claimed");
            return;
        };
        let access = jobs::access_word(layer.abilities().access());
        tracing::info!(disk = %id, epoch = attached.machine.attach.epoch, access, "serving");
        let disk = Arc::new(ServedDisk {
            size: shape.size,
            serial: id.serial(),
            read_only: shape.read_only,
            media: Media::File(FileMedia::new(layer)),
            counters: counters(shape.queues),
        });
        attached.waiting = None;
        attached.served = Some(Arc::clone(&disk));
        let limiter = attached.limiter();
        self.serve(device, &disk, limiter);
    }

    fn serve(&mut self, device: DeviceId, disk: &Arc<ServedDisk>, limiter: Option<Arc<Limiter>>) {
        for worker in &self.workers {
            self.card.command(*worker, Command::Serve(device, Arc::clone(disk)));
            if limiter.is_some() {
                self.card.command(*worker, Command::Limit(device, limiter.clone()));
            }
        }
        self.card.release(device);
    }

    /// Gives the writer lock back. Nothing of the device is on any worker.
    fn release(&mut self, id: &DiskId) {
        let Some(Going::Attached(attached)) = self.going.get_mut(id) else { return };
        if let Some(device) = attached.device.take() {
            self.devices.remove(&device);
            for worker in &self.workers {
                self.card.command(*worker, Command::Forget(device));
            }
        }
        attached.socket_file = None;
        attached.layer = None;
        // Workers hold the file until they have read their orders, and the kernel may hold it even longer; the lock
        // need not wait for them, because no request is under way.
        if let Some(disk) = attached.served.take()
            && let Media::File(media) = &disk.media
            && let Err(error) = media.layer.unlock()
        {
            tracing::error!(disk = %id, %error, "cannot give the writer lock back");
        }
    }

    fn card_event(&mut self, event: CardEvent<std::convert::Infallible>) -> Result<(), WorkerLost> {
        let attached =
            |devices: &HashMap<DeviceId, DiskId>, device: &DeviceId| devices.get(device).cloned();
        match event {
            CardEvent::Removed(device) => {
                if let Some(id) = attached(&self.devices, &device) {
                    self.feed(&id, Event::Removed);
                }
            }
            CardEvent::WorkerLost(worker, reason) => return Err(WorkerLost { worker, reason }),
            CardEvent::Connected(device)
            | CardEvent::Disconnected { device, .. }
            | CardEvent::Started { device, .. } => {
                if let Some(id) = attached(&self.devices, &device)
                    && let Some(Going::Attached(attached)) = self.going.get_mut(&id)
                {
                    attached.session_event(&id, event);
                }
            }
            _ => {}
        }
        Ok(())
    }
}
