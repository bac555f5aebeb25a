//! The card itself: who connects, which queue is whose, and what the driver is told.
//!
//! Tasks (one per listener, one per connection) and worker threads send into one inbox; [`Card::next`] takes from it
//! and applies synchronously, so that all state has one owner.

use super::shell::{Around, Connection, MEMORY_TAKEN, Shell};
use super::{CardError, CardEvent, DeviceConfig, DeviceId, WorkerId, wire};
use crate::vhost_user::{Event, Offer};
use crate::worker::{Handle, Note, Order, QueueKey, WorkerConfig, WorkerService};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;

/// How long a listener rests after the kernel refused it a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What reaches the card from its tasks and workers.
enum Inner<R> {
    /// A front end connected.
    Accepted(DeviceId, UnixStream),
    /// A front end said something, or its connection ended.
    Message(DeviceId, u64, io::Result<Option<wire::Message>>),
    /// A worker told something.
    Note(WorkerId, Note<R>),
    /// A worker's thread ended.
    WorkerEnded(WorkerId, String),
    /// Somewhere shared memory was taken away.
    MemoryTaken,
}

/// The workers of a card, and which queue of which device is whose.
pub(super) struct Workers<S: WorkerService> {
    handles: Vec<Handle<S::Command>>,
    owners: HashMap<DeviceId, Vec<WorkerId>>,
}

impl<S: WorkerService<Command: Send + 'static>> Workers<S> {
    /// Sends an order about a queue to its owner.
    pub(super) fn queue(&self, device: DeviceId, index: u16, order: Order<S::Command>) {
        if let Some(owners) = self.owners.get(&device) {
            let WorkerId(worker) = owners[usize::from(index) % owners.len()];
            self.handles[worker].send(order);
        }
    }
}

/// A device of the card.
struct Device {
    offer: Offer,
    require_sealed: bool,
    held: bool,
    /// Counts connections, so that a message of an ended one is not taken for one of the next.
    connection: u64,
    shell: Option<Shell>,
    /// Lets the listener accept one front end.
    gate: Arc<Notify>,
    listener: AbortHandle,
    removed: bool,
}

/// A card: devices, their sessions and their workers.
pub struct Card<S: WorkerService> {
    workers: Workers<S>,
    devices: HashMap<DeviceId, Device>,
    next_device: u64,
    events: VecDeque<CardEvent<S::Report>>,
    inbox: mpsc::UnboundedReceiver<Inner<S::Report>>,
    to_inbox: mpsc::UnboundedSender<Inner<S::Report>>,
    alarm: AbortHandle,
}

impl<S: WorkerService> std::fmt::Debug for Card<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Card")
            .field("devices", &self.devices.len())
            .field("workers", &self.workers.handles.len())
            .finish_non_exhaustive()
    }
}

impl<S: WorkerService + 'static> Card<S> {
    /// A card without workers or devices. Within a tokio runtime with its I/O driver on.
    ///
    /// # Errors
    /// The kernel refuses a descriptor.
    pub fn new() -> Result<Self, CardError> {
        let (to_inbox, inbox) = mpsc::unbounded_channel();
        let alarm = crate::sigbus::alarm().map_err(CardError::system("watch over memory"))?;
        let alarm = watch(alarm).map_err(CardError::system("watch over memory"))?;
        let tell = to_inbox.clone();
        let alarm = tokio::spawn(async move {
            while let Ok(mut ready) = alarm.readable().await {
                // The wait is edge-triggered and the alarm is never read: other cards of the process wait for it too.
                ready.clear_ready();
                if tell.send(Inner::MemoryTaken).is_err() {
                    return;
                }
            }
        })
        .abort_handle();
        Ok(Self {
            workers: Workers { handles: Vec::new(), owners: HashMap::new() },
            devices: HashMap::new(),
            next_device: 0,
            events: VecDeque::new(),
            inbox,
            to_inbox,
            alarm,
        })
    }

    /// Starts a worker thread; `make` runs on it.
    ///
    /// # Errors
    /// No thread, a core that does not exist, or what `make` returns.
    pub fn add_worker(
        &mut self,
        config: WorkerConfig,
        make: impl FnOnce() -> io::Result<S> + Send + 'static,
    ) -> Result<WorkerId, CardError> {
        let id = WorkerId(self.workers.handles.len());
        let (notes, end) = (self.to_inbox.clone(), self.to_inbox.clone());
        let handle = Handle::start::<S>(
            config,
            make,
            move |note| drop(notes.send(Inner::Note(id, note))),
            move |reason| drop(end.send(Inner::WorkerEnded(id, reason))),
        )
        .map_err(CardError::system("start a worker"))?;
        self.workers.handles.push(handle);
        Ok(id)
    }

    /// Tells a worker something. Commands and queues reach it in the order in which they were sent.
    pub fn command(&mut self, worker: WorkerId, command: S::Command) {
        if let Some(handle) = self.workers.handles.get(worker.0) {
            handle.send(Order::Command(command));
        }
    }

    /// Serves a device from now on.
    ///
    /// # Errors
    /// A worker that does not exist, an impossible offer, or the kernel refuses.
    pub fn add_device(&mut self, config: DeviceConfig) -> Result<DeviceId, CardError> {
        let DeviceConfig { listener, offer, require_sealed, workers, held } = config;
        check_offer(&offer)?;
        let exists = |worker: &&WorkerId| worker.0 >= self.workers.handles.len();
        if let Some(missing) = workers.iter().find(exists) {
            return Err(CardError::Worker(*missing));
        }
        if workers.is_empty() {
            return Err(CardError::Offer("it has no worker"));
        }
        let id = DeviceId(self.next_device);
        let gate = Arc::new(Notify::new());
        gate.notify_one();
        let listener = self.listen(id, listener, Arc::clone(&gate))?;
        self.next_device += 1;
        self.workers.owners.insert(id, workers);
        let device = Device {
            offer,
            require_sealed,
            held,
            connection: 0,
            shell: None,
            gate,
            listener,
            removed: false,
        };
        self.devices.insert(id, device);
        Ok(id)
    }

    fn listen(
        &self,
        id: DeviceId,
        listener: UnixListener,
        gate: Arc<Notify>,
    ) -> Result<AbortHandle, CardError> {
        let listener = listener
            .set_nonblocking(true)
            .and_then(|()| tokio::net::UnixListener::from_std(listener))
            .map_err(CardError::system("listen for front ends"))?;
        let inbox = self.to_inbox.clone();
        let accept = async move {
            loop {
                gate.notified().await;
                let stream = loop {
                    match listener.accept().await {
                        Ok((stream, _)) => break stream.into_std(),
                        Err(e) => {
                            // Out of descriptors, most likely: those of others may come free.
                            tracing::warn!(device = id.0, error = %e, "cannot accept a front end");
                            tokio::time::sleep(ACCEPT_PAUSE).await;
                        }
                    }
                };
                let Ok(stream) = stream else {
                    gate.notify_one();
                    continue;
                };
                if inbox.send(Inner::Accepted(id, stream)).is_err() {
                    return;
                }
            }
        };
        Ok(tokio::spawn(accept).abort_handle())
    }

    /// Lets the rings of a device run that was added `held`.
    pub fn release(&mut self, device: DeviceId) {
        if let Some(entry) = self.devices.get_mut(&device) {
            entry.held = false;
        }
        self.with_shell(device, Shell::release);
    }

    /// Changes what a device offers; a running session is told if its configuration space changed.
    pub fn set_offer(&mut self, device: DeviceId, offer: Offer) {
        let Some(entry) = self.devices.get_mut(&device) else { return };
        let changed = entry.offer.config != offer.config;
        entry.offer = offer;
        if changed {
            self.with_shell(device, |shell, around| shell.feed(Event::ConfigChanged, around));
        }
    }

    /// Ends a device: its session is closed, its queues come back, then [`CardEvent::Removed`] follows.
    pub fn remove_device(&mut self, device: DeviceId) {
        let Some(entry) = self.devices.get_mut(&device) else { return };
        entry.removed = true;
        entry.listener.abort();
        self.with_shell(device, |shell, around| shell.end(None, around));
        self.finish(device);
    }

    /// Waits for the next event. Cancel-safe.
    pub async fn next(&mut self) -> CardEvent<S::Report> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return event;
            }
            // The card holds a sender itself, so the channel never ends; were it so, there would be nothing to tell.
            match self.inbox.recv().await {
                Some(inner) => self.apply(inner),
                None => std::future::pending::<()>().await,
            }
        }
    }

    fn apply(&mut self, inner: Inner<S::Report>) {
        match inner {
            Inner::Accepted(device, stream) => self.accepted(device, stream),
            Inner::Message(device, connection, message) => {
                if self.devices.get(&device).is_some_and(|d| d.connection == connection) {
                    self.with_shell(device, |shell, around| shell.message(message, around));
                }
            }
            Inner::Note(_, Note::Detached(QueueKey { device, index }, queue)) => {
                self.with_shell(device, |shell, around| shell.detached(index, *queue, around));
            }
            Inner::Note(_, Note::Fault(QueueKey { device, index }, fault)) => {
                let fault = fault.to_string();
                self.with_shell(device, |shell, around| shell.fault(index, fault, around));
            }
            Inner::Note(worker, Note::Report(report)) => {
                self.events.push_back(CardEvent::Report(worker, report));
            }
            Inner::WorkerEnded(worker, reason) => {
                self.events.push_back(CardEvent::WorkerLost(worker, reason));
            }
            Inner::MemoryTaken => self.end_broken(),
        }
    }

    fn end_broken(&mut self) {
        let broken = |(id, device): (&DeviceId, &Device)| {
            device.shell.as_ref().is_some_and(Shell::is_broken).then_some(*id)
        };
        let broken: Vec<DeviceId> = self.devices.iter().filter_map(broken).collect();
        for device in broken {
            let reason = MEMORY_TAKEN.to_owned();
            self.with_shell(device, |shell, around| shell.feed(Event::Fault(reason), around));
        }
    }

    fn accepted(&mut self, id: DeviceId, stream: UnixStream) {
        let Some(device) = self.devices.get_mut(&id).filter(|d| !d.removed) else { return };
        device.connection += 1;
        match connect(id, device.connection, stream, self.to_inbox.clone()) {
            Ok(connection) => {
                let (offer, sealed) = (&device.offer, device.require_sealed);
                device.shell = Some(Shell::new(id, offer, device.held, sealed, connection));
                self.events.push_back(CardEvent::Connected(id));
            }
            Err(e) => {
                tracing::warn!(device = id.0, error = %e, "cannot serve a front end");
                device.gate.notify_one();
            }
        }
    }

    /// Does something with the session of a device, if it has one, and finishes it if it is over then.
    fn with_shell(&mut self, id: DeviceId, act: impl FnOnce(&mut Shell, &mut Around<'_, S>)) {
        let Some(device) = self.devices.get_mut(&id) else { return };
        if let Some(shell) = &mut device.shell {
            let (offer, workers) = (&device.offer, &self.workers);
            act(shell, &mut Around { offer, workers, events: &mut self.events });
        }
        self.finish(id);
    }

    fn finish(&mut self, id: DeviceId) {
        let Some(device) = self.devices.get_mut(&id) else { return };
        if let Some(fault) = device.shell.as_ref().and_then(Shell::over) {
            device.shell = None;
            self.events.push_back(CardEvent::Disconnected { device: id, fault });
            device.gate.notify_one();
        }
        if device.removed && device.shell.is_none() {
            self.devices.remove(&id);
            self.workers.owners.remove(&id);
            self.events.push_back(CardEvent::Removed(id));
        }
    }
}

impl<S: WorkerService> Drop for Card<S> {
    fn drop(&mut self) {
        self.alarm.abort();
        for device in self.devices.values() {
            device.listener.abort();
        }
    }
}

/// Makes a connection of an accepted socket: a task reads a message for each grant.
fn connect<R: Send + 'static>(
    id: DeviceId,
    connection: u64,
    stream: UnixStream,
    inbox: mpsc::UnboundedSender<Inner<R>>,
) -> io::Result<Connection> {
    stream.set_nonblocking(true)?;
    let socket = Arc::new(watch(stream)?);
    let (grant, mut granted) = mpsc::channel(1);
    let from = Arc::clone(&socket);
    let reader = tokio::spawn(async move {
        while granted.recv().await.is_some() {
            let message = wire::read_message(&from).await;
            let more = matches!(message, Ok(Some(_)));
            if inbox.send(Inner::Message(id, connection, message)).is_err() || !more {
                return;
            }
        }
    });
    Ok(Connection { socket, reader: reader.abort_handle(), grant })
}

fn check_offer(offer: &Offer) -> Result<(), CardError> {
    let size = offer.max_queue_size;
    if offer.queues == 0 || offer.queues > 256 {
        return Err(CardError::Offer("a device has 1 to 256 queues"));
    }
    if !size.is_power_of_two() || size > crate::ring::MAX_QUEUE_SIZE {
        return Err(CardError::Offer("a queue's size is a power of two up to 32768"));
    }
    if offer.config.len() > crate::vhost_user::codec::MAX_CONFIG {
        return Err(CardError::Offer("its configuration space is too large for one message"));
    }
    Ok(())
}

/// Waits for `fd` on the runtime.
fn watch<T: AsFd + AsRawFd>(fd: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: the types that come here (a stream, a borrowed eventfd) name one open descriptor, always the same, for as
    // long as they live; `AsFd` is their promise. Nobody takes the descriptor out of them.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE).map_err(io::Error::from) }
}
