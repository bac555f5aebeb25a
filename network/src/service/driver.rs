//! The task that owns the process's state.
//!
//! [`Driver::run`] selects the next event (an order of a handler, or something on the card) and applies it synchronously:
//! `apply` never waits for anything but tmpfs. Whether a change may be is decided by the pure [`Model`]; it is written
//! down, then done.
//!
//! Invariant: the switch is told about a port before its device can have queues, and is told that a port is gone only
//! after the card has taken them back.

use super::model::{Change, Deleted, Model, WantedMetadata, WantedPort, WantedSegment};
use super::policy::{Phase, Policy};
use super::ports::{Port, Reply, Socket, Then, offer};
use super::records::Records;
use super::refusal::{self, Failure};
use crate::engine::view::{PortIndex, SegmentView, View};
use crate::metadata::Metadata;
use crate::metadata::token::Key;
use crate::switch::counters::UnderlayCounters;
use crate::switch::{Command, Switch};
use crate::tables::lease::seconds_now;
use crate::tables::{Table, remove_dead};
use bixi_api::network::{
    MetadataDescription, NetworkDescription, PortAdd, PortDescription, PortMetadata, SegmentConfig,
    SegmentDescription,
};
use bixi_offload::card::{Card, CardEvent, DeviceConfig, DeviceId, WorkerId};
use bixi_offload::control::Refusal;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Orders that may wait for the driver; who sends more waits.
const INBOX: usize = 256;
/// The most ports of a process: what their index can say, and far more than one worker can serve.
const PORT_LIMIT: usize = 4096;
/// How long an ending process waits for its queues.
const STOP_DEADLINE: Duration = Duration::from_secs(2);

/// What reaches the driver beside the card's events.
#[derive(Debug)]
pub enum Order {
    /// How the process is.
    Describe(Reply<NetworkDescription>),
    /// All ports.
    Ports(Reply<Vec<PortDescription>>),
    /// One port.
    Port(String, Reply<PortDescription>),
    /// Serve a port.
    PutPort(String, PortAdd, Reply<PortDescription>),
    /// Serve it no longer.
    DeletePort(String, Reply<()>),
    /// The metadata of a port.
    Metadata(String, Reply<MetadataDescription>),
    /// Let the guest of a port read this of itself.
    PutMetadata(String, PortMetadata, Reply<MetadataDescription>),
    /// All segments.
    Segments(Reply<Vec<SegmentDescription>>),
    /// One segment.
    Segment(u32, Reply<SegmentDescription>),
    /// Know this of a segment.
    PutSegment(u32, SegmentConfig, Reply<SegmentDescription>),
    /// Know nothing of it any more.
    DeleteSegment(u32, Reply<()>),
    /// Let everything go and end.
    Stop,
}

/// How the driver is reached.
pub type Orders = mpsc::Sender<Order>;

/// The driver.
#[derive(Debug)]
pub struct Driver {
    card: Card<Switch>,
    worker: WorkerId,
    records: Records,
    model: Model,
    policy: Arc<Policy>,
    ports: BTreeMap<String, Port>,
    devices: HashMap<DeviceId, String>,
    /// What the switch knows.
    segments: HashMap<u32, Arc<SegmentView>>,
    /// The last epoch given to a segment's view.
    epoch: u32,
    underlay: Option<Arc<UnderlayCounters>>,
    /// What tokens of the metadata server are made with.
    token_key: Key,
    inbox: mpsc::Receiver<Order>,
    orders: Orders,
}

/// Why the process cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("worker {worker:?} has ended: {reason}")]
pub struct WorkerLost {
    worker: WorkerId,
    reason: String,
}

impl Driver {
    /// A driver for a card with this worker.
    pub fn new(
        card: Card<Switch>,
        worker: WorkerId,
        records: Records,
        model: Model,
        underlay: Option<Arc<UnderlayCounters>>,
        token_key: Key,
    ) -> Self {
        let (orders, inbox) = mpsc::channel(INBOX);
        Self {
            card,
            worker,
            records,
            model,
            policy: Arc::default(),
            ports: BTreeMap::new(),
            devices: HashMap::new(),
            segments: HashMap::new(),
            epoch: 0,
            underlay,
            token_key,
            inbox,
            orders,
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

    /// Takes up what was promised before: first every socket listens, then tables are opened and ports served. A port that
    /// cannot be is kept, dark, with the reason.
    pub fn restore(&mut self) {
        let wanted: Vec<_> =
            self.model.ports.iter().map(|(id, w)| (id.clone(), w.clone())).collect();
        for (id, wanted) in &wanted {
            let Some(index) = self.free_index() else { break };
            let mut port = Port::new(wanted.clone(), index);
            match Socket::bind(&wanted.add.socket) {
                Ok(socket) => port.socket = Some(socket),
                Err(failure) => port.last_fault = Some(self.dark(id, &failure)),
            }
            self.ports.insert(id.clone(), port);
        }
        for (id, _) in &wanted {
            let Some(port) = self.ports.get_mut(id) else { continue };
            let Some(socket) = port.socket.take() else { continue };
            if let Err(failure) = self.serve(id, socket) {
                let reason = self.dark(id, &failure);
                if let Some(port) = self.ports.get_mut(id) {
                    port.last_fault = Some(reason);
                }
            }
        }
        let vnis: Vec<_> = self.model.segments.keys().copied().collect();
        for vni in vnis.into_iter().chain(wanted.iter().map(|(_, wanted)| wanted.add.segment)) {
            self.refresh(vni);
        }
        self.tell();
        let live = |id: &str, epoch| {
            self.ports.get(id).is_some_and(|port| port.wanted.add.epoch == epoch)
                || (id, epoch) == super::serve::UNDERLAY_TABLE
        };
        if let Err(error) = remove_dead(self.records.state(), live) {
            tracing::warn!(%error, "tables of former ports stay behind");
        }
    }

    fn dark(&self, id: &str, failure: &Failure) -> String {
        let reason = refusal::describe(failure);
        tracing::error!(
            port = id,
            reason,
            "a port cannot be served; put it again when that is mended"
        );
        reason
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
                tracing::warn!("queues do not come back; ending without them");
                Ok(())
            }
        }
    }

    /// Removes all devices, so that no burst is cut. What was promised stays written down.
    async fn let_go(&mut self) -> Result<(), WorkerLost> {
        for device in self.devices.keys() {
            self.card.remove_device(*device);
        }
        while !self.devices.is_empty() {
            match self.card.next().await {
                CardEvent::Removed(device) => drop(self.devices.remove(&device)),
                CardEvent::WorkerLost(worker, reason) => return Err(WorkerLost { worker, reason }),
                _ => {}
            }
        }
        Ok(())
    }

    fn apply(&mut self, order: Order) {
        // Whoever does not wait for the answer any more does not need it.
        match order {
            Order::Describe(reply) => drop(reply.send(Ok(self.describe()))),
            Order::Ports(reply) => {
                let ports = self.ports.iter().map(|(id, port)| self.describe_port(id, port));
                let _ = reply.send(Ok(ports.collect()));
            }
            Order::Port(id, reply) => {
                let port = self.ports.get(&id).map(|port| self.describe_port(&id, port));
                let _ = reply.send(port.ok_or_else(|| refusal::no_port(&id)));
            }
            Order::Metadata(id, reply) => {
                let metadata = self.model.metadata.get(&id).map(WantedMetadata::describe);
                let _ = reply.send(metadata.ok_or_else(|| refusal::no_metadata(&id)));
            }
            Order::PutMetadata(id, told, reply) => {
                let _ = reply.send(self.put_metadata(&id, &told));
            }
            Order::PutPort(id, add, reply) => self.put_port(id, add, reply),
            Order::DeletePort(id, reply) => self.delete_port(&id, reply),
            Order::Segments(reply) => {
                let segments = self.model.segments.iter().map(describe_segment);
                let _ = reply.send(Ok(segments.collect()));
            }
            Order::Segment(vni, reply) => {
                let segment = self.model.segments.get_key_value(&vni).map(describe_segment);
                let _ = reply.send(segment.ok_or_else(|| refusal::no_segment(vni)));
            }
            Order::PutSegment(vni, config, reply) => {
                let _ = reply.send(self.put_segment(vni, config));
            }
            Order::DeleteSegment(vni, reply) => drop(reply.send(self.delete_segment(vni))),
            Order::Stop => self.policy.enter(Phase::Stopping),
        }
    }

    fn describe(&self) -> NetworkDescription {
        NetworkDescription {
            release: bixi_api::RELEASE.to_owned(),
            pid: std::process::id(),
            underlay: self.model.own,
            ports: self.model.ports.len(),
            segments: self.model.segments.len(),
            underlay_statistics: self.underlay.as_ref().map(|counters| counters.read()),
        }
    }

    fn put_port(&mut self, id: String, add: PortAdd, reply: Reply<PortDescription>) {
        let checked = self.model.check_port(&id, &add).map_err(refusal::of);
        let (change, mac) = match checked {
            Ok(checked) => checked,
            Err(refused) => return drop(reply.send(Err(refused))),
        };
        if self.ports.get(&id).is_some_and(|port| port.then.is_some()) {
            return drop(reply.send(Err(Refusal::conflict(
                "PortIsLeaving",
                format!("port {id} is being taken down."),
                "Ask again in a moment.",
            ))));
        }
        let wanted = WantedPort { add, mac };
        let dark = self.ports.get(&id).is_some_and(|port| port.device.is_none());
        match change {
            Change::None if !dark => {
                let described = self.ports.get(&id).map(|port| self.describe_port(&id, port));
                let _ = reply.send(described.ok_or_else(|| refusal::no_port(&id)));
            }
            Change::Replace if !dark => self.replace_port(&id, wanted, reply),
            Change::Limit if !dark => drop(reply.send(self.limit_port(&id, wanted))),
            _ => {
                let made = self.make_port(&id, wanted).map_err(|failure| refusal::failed(&failure));
                let _ = reply.send(made);
            }
        }
    }

    /// Changes the limits of a port while it goes on.
    fn limit_port(&mut self, id: &str, wanted: WantedPort) -> Result<PortDescription, Refusal> {
        let written = self.records.put_port(id, &wanted);
        written.map_err(|error| refusal::failed(&error.into()))?;
        let Some(port) = self.ports.get_mut(id) else { return Err(refusal::no_port(id)) };
        port.wanted = wanted.clone();
        tracing::info!(port = id, limits = ?wanted.add.limits, "limits changed");
        self.card.command(self.worker, Command::Rates(port.index, port.rates()));
        self.model.ports.insert(id.to_owned(), wanted);
        let port = self.ports.get(id).map(|port| self.describe_port(id, port));
        port.ok_or_else(|| refusal::no_port(id))
    }

    /// Serves a port that is not served now.
    fn make_port(&mut self, id: &str, wanted: WantedPort) -> Result<PortDescription, Failure> {
        let socket = Socket::bind(&wanted.add.socket)?;
        self.make_port_on(id, wanted, socket)
    }

    fn make_port_on(
        &mut self,
        id: &str,
        wanted: WantedPort,
        socket: Socket,
    ) -> Result<PortDescription, Failure> {
        let before = self.ports.remove(id);
        let index = match &before {
            Some(dark) => dark.index,
            None => self.free_index().ok_or(Failure::TooMany(self.ports.len()))?,
        };
        let (epoch, segment) = (wanted.add.epoch, wanted.add.segment);
        self.ports.insert(id.to_owned(), Port::new(wanted.clone(), index));
        let made = self.serve(id, socket).and_then(|()| Ok(self.records.put_port(id, &wanted)?));
        if let Err(failure) = made {
            self.undo(id, epoch, before);
            return Err(failure);
        }
        let former = self.model.ports.insert(id.to_owned(), wanted);
        self.model.deleted.remove(id);
        for vni in former.map(|former| former.add.segment).into_iter().chain([segment]) {
            self.refresh(vni);
        }
        self.tell();
        tracing::info!(port = id, epoch, segment, "port served");
        let port = self.ports.get(id).map(|port| self.describe_port(id, port));
        port.ok_or(Failure::TooMany(0))
    }

    fn describe_port(&self, id: &str, port: &Port) -> PortDescription {
        let metadata = self.model.metadata.get(id).map(|metadata| metadata.generation);
        PortDescription { metadata, ..port.describe(id) }
    }

    /// What the guest of a port reads of itself, as its worker needs it.
    fn metadata(&self, id: &str) -> Option<Arc<Metadata>> {
        let WantedMetadata { tokens_required, documents, .. } = self.model.metadata.get(id)?;
        let (documents, key) = (documents.clone(), self.token_key.clone());
        let (port, tokens_required) = (id.to_owned(), *tokens_required);
        Some(Arc::new(Metadata { port, documents, tokens_required, key }))
    }

    fn put_metadata(
        &mut self,
        id: &str,
        told: &PortMetadata,
    ) -> Result<MetadataDescription, Refusal> {
        let port = self.ports.get(id).filter(|port| !matches!(port.then, Some(Then::Gone)));
        let index = port.map(|port| port.index).ok_or_else(|| refusal::no_port(id))?;
        let (change, wanted) = self.model.check_metadata(id, told).map_err(refusal::of)?;
        let described = wanted.describe();
        if change != Change::None {
            let written = self.records.put_metadata(id, &wanted);
            written.map_err(|error| refusal::failed(&error.into()))?;
            self.model.metadata.insert(id.to_owned(), wanted);
            if let Some(metadata) = self.metadata(id) {
                self.card.command(self.worker, Command::Metadata(index, metadata));
            }
            tracing::info!(port = id, generation = told.generation, "metadata known");
        }
        Ok(described)
    }

    /// Takes back what was made of a port that could not be made whole.
    fn undo(&mut self, id: &str, epoch: u64, before: Option<Port>) {
        let Some(port) = self.ports.remove(id) else { return };
        match port.device {
            // Its device exists already: it goes as any other does.
            Some(device) => {
                self.card.remove_device(device);
                self.ports.insert(id.to_owned(), Port { then: Some(Then::Gone), ..port });
            }
            None => {
                self.remove_tables(id, epoch);
                self.ports.extend(before.map(|before| (id.to_owned(), before)));
            }
        }
    }

    /// Opens a port's tables, adds its device and tells the switch.
    fn serve(&mut self, id: &str, socket: Socket) -> Result<(), Failure> {
        let metadata = self.metadata(id);
        let Some(port) = self.ports.get_mut(id) else { return Ok(()) };
        let mut new = port.open_tables(id, self.records.state())?;
        new.metadata = metadata;
        let mtu = self.model.mtu(port.wanted.add.segment);
        let config = DeviceConfig {
            listener: socket.share()?,
            offer: offer(&port.wanted.add, port.wanted.mac, mtu),
            require_sealed: port.wanted.add.require_sealed,
            workers: vec![self.worker],
            held: false,
        };
        let device = self.card.add_device(config)?;
        new.device = device;
        port.device = Some(device);
        port.socket = Some(socket);
        port.last_fault = None;
        self.card.command(self.worker, Command::AddPort(Box::new(new)));
        self.devices.insert(device, id.to_owned());
        Ok(())
    }

    /// Lets a port go and serves it anew, for another placement.
    fn replace_port(&mut self, id: &str, wanted: WantedPort, reply: Reply<PortDescription>) {
        let Some(port) = self.ports.get_mut(id) else { return };
        // A socket that stays the same is kept: nothing can take it meanwhile.
        let socket = match port.socket.take() {
            Some(socket) if port.wanted.add.socket == wanted.add.socket => Ok(socket),
            former => Socket::bind(&wanted.add.socket).inspect_err(|_| port.socket = former),
        };
        match socket {
            Ok(socket) => {
                port.then = Some(Then::Again(Box::new((wanted, socket, reply))));
                self.leave(id);
            }
            Err(failure) => drop(reply.send(Err(refusal::failed(&failure)))),
        }
    }

    fn delete_port(&mut self, id: &str, reply: Reply<()>) {
        let Some(port) = self.ports.get_mut(id) else {
            return drop(reply.send(Err(refusal::no_port(id))));
        };
        if port.then.is_some() {
            // It is leaving already; whoever wanted it served anew comes too late.
            if let Some(Then::Again(again)) = port.then.replace(Then::Gone) {
                let (_, _, late) = *again;
                let gone = Refusal::conflict("Deleted", format!("port {id} was deleted."), "");
                let _ = late.send(Err(gone));
            }
            return port.waiting.push(reply);
        }
        let deleted = Deleted { epoch: port.wanted.add.epoch, at: seconds_now() };
        if let Err(error) = self.records.put_deleted(id, deleted) {
            return drop(reply.send(Err(refusal::failed(&error.into()))));
        }
        port.waiting.push(reply);
        port.then = Some(Then::Gone);
        self.leave(id);
    }

    /// Begins to take a port down: nobody sends to it any more, its session ends, its queues come back.
    fn leave(&mut self, id: &str) {
        let Some(port) = self.ports.get_mut(id) else { return };
        let segment = port.wanted.add.segment;
        match port.device {
            Some(device) => self.card.remove_device(device),
            None => return self.left(id),
        }
        self.refresh(segment);
        self.tell();
    }

    /// The card has let go of a port.
    fn left(&mut self, id: &str) {
        let Some(port) = self.ports.remove(id) else { return };
        self.card.command(self.worker, Command::RemovePort(port.index));
        let Port { wanted: former, waiting, then, socket, .. } = port;
        drop(socket);
        self.remove_tables(id, former.add.epoch);
        if let Some(Then::Again(again)) = then {
            let (wanted, socket, reply) = *again;
            let made = self.make_port_on(id, wanted, socket);
            if made.is_err() {
                self.forget(id, former.add.epoch);
            }
            let _ = reply.send(made.map_err(|failure| refusal::failed(&failure)));
        } else {
            self.forget(id, former.add.epoch);
        }
        self.refresh(former.add.segment);
        self.tell();
        for reply in waiting {
            let _ = reply.send(Ok(()));
        }
    }

    /// Remembers only the epoch of a port.
    fn forget(&mut self, id: &str, epoch: u64) {
        self.model.ports.remove(id);
        self.model.metadata.remove(id);
        if let Err(error) = self.records.forget_metadata(id) {
            tracing::warn!(port = id, %error, "the metadata of a deleted port stays written down");
        }
        let deleted = Deleted { epoch, at: seconds_now() };
        if let Err(error) = self.records.put_deleted(id, deleted) {
            tracing::error!(port = id, %error, "a deleted port stays written down");
        }
        for old in self.model.remember_deleted(id, deleted) {
            if let Err(error) = self.records.forget_port(&old) {
                tracing::warn!(port = old, %error, "a port's epoch stays written down");
            }
        }
        tracing::info!(port = id, epoch, "port gone");
    }

    fn remove_tables(&self, id: &str, epoch: u64) {
        for table in Table::ALL {
            let path = table.path(self.records.state(), id, epoch);
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), error = %e, "a table stays behind");
                }
                _ => {}
            }
        }
    }

    fn put_segment(
        &mut self,
        vni: u32,
        config: SegmentConfig,
    ) -> Result<SegmentDescription, Refusal> {
        let (change, parts) = self.model.check_segment(vni, &config).map_err(refusal::of)?;
        if change != Change::None {
            let written = self.records.put_segment(vni, &config);
            written.map_err(|error| refusal::failed(&error.into()))?;
            let (generation, hosts) = (config.generation, parts.peers.len());
            self.model.segments.insert(vni, WantedSegment { config: config.clone(), parts });
            self.segment_changed(vni);
            tracing::info!(segment = vni, generation, hosts, "segment known");
        }
        Ok(SegmentDescription { vni, config })
    }

    fn delete_segment(&mut self, vni: u32) -> Result<(), Refusal> {
        if !self.model.segments.contains_key(&vni) {
            return Err(refusal::no_segment(vni));
        }
        self.model.check_segment_end(vni).map_err(refusal::of)?;
        self.records.forget_segment(vni).map_err(|error| refusal::failed(&error.into()))?;
        self.model.segments.remove(&vni);
        self.segment_changed(vni);
        tracing::info!(segment = vni, "segment forgotten");
        Ok(())
    }

    fn segment_changed(&mut self, vni: u32) {
        self.refresh(vni);
        self.tell();
        let mtu = self.model.mtu(vni);
        for port in self.ports.values().filter(|port| port.wanted.add.segment == vni) {
            let WantedPort { add, mac } = &port.wanted;
            if let Some(device) = port.device.filter(|_| port.then.is_none()) {
                self.card.set_offer(device, offer(add, *mac, mtu));
            }
        }
    }

    /// Makes a segment's view anew. Ports that are leaving are not in it.
    fn refresh(&mut self, vni: u32) {
        let here = |port: &&Port| {
            port.wanted.add.segment == vni && port.then.is_none() && port.device.is_some()
        };
        let ports: Vec<_> = self.ports.values().filter(here).map(Port::view).collect();
        if ports.is_empty() && !self.model.segments.contains_key(&vni) {
            self.segments.remove(&vni);
            return;
        }
        // Zero is no epoch, and the last one stands for a segment that nobody knows.
        self.epoch = if self.epoch >= u32::MAX - 1 { 1 } else { self.epoch + 1 };
        let view = self.model.view(vni, self.epoch, ports.iter());
        self.segments.insert(vni, Arc::new(view));
    }

    /// Tells the switch what there is now.
    fn tell(&mut self) {
        let view = View { segments: self.segments.clone() };
        self.card.command(self.worker, Command::View(Arc::new(view)));
    }

    /// The lowest index that no port has.
    fn free_index(&self) -> Option<PortIndex> {
        let used: std::collections::BTreeSet<_> = self.ports.values().map(|p| p.index.0).collect();
        (0..PORT_LIMIT as u16).find(|index| !used.contains(index)).map(PortIndex)
    }

    fn card_event(&mut self, event: CardEvent<()>) -> Result<(), WorkerLost> {
        match event {
            CardEvent::Connected(device) => self.session(device, true, None),
            CardEvent::Disconnected { device, fault } => self.session(device, false, fault),
            CardEvent::Removed(device) => {
                if let Some(id) = self.devices.remove(&device) {
                    self.left(&id);
                }
            }
            CardEvent::WorkerLost(worker, reason) => return Err(WorkerLost { worker, reason }),
            CardEvent::Started { device, index, .. } => {
                tracing::debug!(?device, index, "ring started");
            }
            CardEvent::Stopped { device, index } => tracing::debug!(?device, index, "ring stopped"),
            CardEvent::Features(device, features) => {
                tracing::debug!(?device, features = format!("{features:#x}"), "features accepted");
            }
            // The segment's MTU holds, whatever the front end thinks its own is; nothing of the space is writable.
            CardEvent::Mtu(..) | CardEvent::ConfigWritten(..) | CardEvent::Report(..) => {}
        }
        Ok(())
    }

    /// A front end came or went.
    fn session(&mut self, device: DeviceId, connected: bool, fault: Option<String>) {
        let Some(id) = self.devices.get(&device) else { return };
        let Some(port) = self.ports.get_mut(id) else { return };
        port.connected = connected;
        let kept_back = port.hush.allows(Instant::now());
        if let Some(fault) = fault {
            if let Some(kept_back) = kept_back {
                tracing::warn!(port = id, fault, kept_back, "session ended by this side");
            }
            port.last_fault = Some(fault);
        } else if let Some(kept_back) = kept_back {
            let what = if connected { "front end connected" } else { "front end left" };
            tracing::info!(port = id, kept_back, "{what}");
        }
    }
}

fn describe_segment((vni, segment): (&u32, &WantedSegment)) -> SegmentDescription {
    SegmentDescription { vni: *vni, config: segment.config.clone() }
}
