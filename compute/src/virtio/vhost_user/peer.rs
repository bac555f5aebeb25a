//! A card in this process for tests: a real [`Card`] whose service answers each request with its number plus one, and
//! can be told to keep requests to itself, so that it dies with them in flight.

use bixi_offload::card::{Card, DeviceConfig, DeviceId};
use bixi_offload::control::{Listener, SocketFile};
use bixi_offload::ring::{Batch, SplitQueue};
use bixi_offload::vhost_user::Offer;
use bixi_offload::worker::{
    Interest, Outbox, QueueFault, QueueKey, QueueSlot, WorkerConfig, WorkerService,
};
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

/// What the test and all cards of it share.
#[derive(Debug, Default)]
pub(super) struct Script {
    /// Take requests and do not answer.
    pub(super) keep: AtomicBool,
    /// Hang.
    pub(super) frozen: AtomicBool,
    /// Hanging.
    pub(super) hangs: AtomicBool,
    /// Requests taken, by queue.
    taken: [AtomicU64; 8],
    /// Requests taken over from a dead card.
    pub(super) recovered: AtomicU64,
}

impl Script {
    pub(super) fn taken(&self, queue: usize) -> u64 {
        self.taken[queue].load(Ordering::SeqCst)
    }

    pub(super) fn keep(&self, keep: bool) {
        self.keep.store(keep, Ordering::SeqCst);
    }
}

struct Service {
    script: Arc<Script>,
    queues: HashMap<QueueSlot, (QueueKey, SplitQueue)>,
    batch: Batch,
}

impl WorkerService for Service {
    type Command = ();
    type Report = ();

    fn attach(&mut self, slot: QueueSlot, key: QueueKey, queue: SplitQueue) -> Interest {
        self.script.recovered.fetch_add(queue.recovered().into(), Ordering::SeqCst);
        self.queues.insert(slot, (key, queue));
        Interest::Polled
    }

    fn queue(&mut self, slot: QueueSlot) -> Option<&mut SplitQueue> {
        self.queues.get_mut(&slot).map(|(_, queue)| queue)
    }

    fn detach(&mut self, slot: QueueSlot, outbox: &mut Outbox<()>) {
        // What it keeps it does not finish: as a process that dies.
        if let Some((_, queue)) = self.queues.remove(&slot) {
            outbox.detached(slot, queue);
        }
    }

    fn command(&mut self, (): (), _: &mut Outbox<()>) {}

    fn poll_queue(&mut self, slot: QueueSlot, _: &mut Outbox<()>) -> Result<usize, QueueFault> {
        while self.script.frozen.load(Ordering::SeqCst) {
            self.script.hangs.store(true, Ordering::SeqCst);
            std::thread::sleep(Duration::from_micros(200));
        }
        let Some((key, queue)) = self.queues.get_mut(&slot) else { return Ok(0) };
        let index = key.index;
        let fault = |error| QueueFault::Ring { index, error };
        let taken = queue.take(4, &mut self.batch).map_err(fault)?;
        self.script.taken[usize::from(index)].fetch_add(taken as u64, Ordering::SeqCst);
        if self.script.keep.load(Ordering::SeqCst) {
            return Ok(taken);
        }
        let memory = Arc::clone(queue.memory());
        for chain in self.batch.chains(&memory) {
            let number = chain.readable().read_array::<8>().map_or(0, u64::from_le_bytes);
            let written = chain.writable().write(&(number + 1).to_le_bytes());
            queue.complete(chain.head(), written as u32);
        }
        if queue.publish() {
            queue.signal();
        }
        Ok(taken)
    }

    fn poll(&mut self, _: &mut Outbox<()>) -> usize {
        0
    }
}

enum Order {
    Offer(Offer),
}

/// A card with one device; dropped, it dies.
pub(super) struct Peer {
    orders: Option<tokio::sync::mpsc::UnboundedSender<Order>>,
    thread: Option<JoinHandle<()>>,
    file: Option<SocketFile>,
}

impl Peer {
    /// Serves `offer` at `socket`.
    pub(super) fn start(socket: &Path, offer: Offer, script: &Arc<Script>) -> Self {
        let (listener, file) = Listener::bind_path(socket).unwrap().into_parts().unwrap();
        let (orders, mut inbox) = tokio::sync::mpsc::unbounded_channel::<Order>();
        let (tell, ready) = mpsc::channel();
        let script = Arc::clone(script);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let mut card = Card::new().unwrap();
                let spin = Duration::from_micros(20);
                let config = WorkerConfig { name: "peer".to_owned(), core: None, spin };
                let batch = Batch::new(4);
                let service = move || Ok(Service { script, queues: HashMap::new(), batch });
                let worker = card.add_worker(config, service).unwrap();
                let device = DeviceConfig {
                    listener,
                    offer,
                    require_sealed: true,
                    workers: vec![worker],
                    held: false,
                };
                let device: DeviceId = card.add_device(device).unwrap();
                tell.send(()).unwrap();
                loop {
                    tokio::select! {
                        event = card.next() => drop(event),
                        order = inbox.recv() => match order {
                            Some(Order::Offer(offer)) => card.set_offer(device, offer),
                            None => return,
                        },
                    }
                }
            });
        });
        ready.recv().unwrap();
        Self { orders: Some(orders), thread: Some(thread), file }
    }

    /// Offers something else from now on.
    pub(super) fn offer(&self, offer: Offer) {
        assert!(self.orders.as_ref().unwrap().send(Order::Offer(offer)).is_ok());
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // A dead process leaves its socket file behind.
        std::mem::forget(self.file.take());
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
