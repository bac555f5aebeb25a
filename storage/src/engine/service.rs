//! Disks on one worker thread: takes requests from queues, has them done, answers them.
//!
//! Requests on a file go through the [`FileEngine`] and are answered when they are done; those on the measuring media
//! are answered at once. Invariants: the guest memory of a queue is held until its last request was answered; a queue
//! goes back only when nothing of it is under way. A request that its disk's limits hold back is not taken: it stays in
//! the ring, its queue is left alone until its time has come, and all of a dead or ended session is found there.

use super::config::FEATURE_FLUSH;
use super::file::{FileEngine, Finished, NotStarted, Ticket, Work};
use super::media::{Done, Media, MemoryMedia, ServedDisk};
use super::points::AFTER_PUBLISH;
use super::request::{self, Limits, Operation, STATUS_ERROR, STATUS_OK};
use super::slot::Task;
use bixi_api::state::{Declared, Movable};
use bixi_offload::card::DeviceId;
use bixi_offload::failpoint::hit;
use bixi_offload::memory::GuestMemory;
use bixi_offload::rate::{Limiter, QueueLimit};
use bixi_offload::ring::{Batch, SplitQueue};
use bixi_offload::worker::{
    Interest, Outbox, QueueFault, QueueKey, QueueSlot, Registry, WorkerService,
};
use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Instant;

/// The most requests taken from one queue in a row, so that its neighbours get their turn.
const BATCH: usize = 64;
/// The same of a queue whose disk is limited: what is taken and may not go is put back.
const LIMITED_BATCH: usize = 8;

/// What the driver tells a worker.
#[derive(Debug)]
pub enum Command {
    /// The device is this disk; before the device's first queue is attached.
    Serve(DeviceId, Arc<ServedDisk>),
    /// From now on a device, which is served, is limited like this, or not at all. All workers share the limiter.
    Limit(DeviceId, Option<Arc<Limiter>>),
    /// The device is gone; all its queues went back.
    Forget(DeviceId),
}

/// A device on this worker.
#[derive(Debug)]
struct Device {
    disk: Arc<ServedDisk>,
    file: Option<usize>,
    limiter: Option<Arc<Limiter>>,
}

/// A queue on this worker.
#[derive(Debug)]
struct Queue {
    ring: SplitQueue,
    memory: Arc<GuestMemory>,
    device: DeviceId,
    disk: Arc<ServedDisk>,
    file: usize,
    index: u16,
    limit: Option<QueueLimit>,
    limits: Limits,
    /// Whether an answered write is on the medium: for drivers that did not acknowledge FLUSH.
    durable: bool,
    under_way: usize,
    leaving: bool,
    /// Chains were completed and not yet published.
    unpublished: bool,
    done: Done,
}

/// How much of a batch was done.
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    /// Chains of its end that were left.
    left: usize,
    /// Until when the first of them must wait, if it must.
    until: Option<Instant>,
}

/// All disks on one worker.
#[derive(Debug)]
pub struct BlockService {
    engine: FileEngine,
    devices: HashMap<DeviceId, Device>,
    queues: Vec<Option<Queue>>,
    batch: Batch,
    /// Queues with something to publish, and slots to release after.
    touched: Vec<usize>,
    published: Vec<u16>,
}

impl BlockService {
    /// The service of this thread; the kernel's helper threads stay on the processors named.
    ///
    /// # Errors
    /// There is no io_uring.
    pub fn new(helpers: &[usize]) -> io::Result<Self> {
        let engine = FileEngine::new()?;
        engine.keep_waiters_on(helpers);
        Ok(Self {
            engine,
            devices: HashMap::new(),
            queues: Vec::new(),
            batch: Batch::new(BATCH),
            touched: Vec::with_capacity(64),
            published: Vec::with_capacity(super::file::SLOTS),
        })
    }

    /// Takes the answers of the file engine to their queues, publishes them, and lets go of their blocks; then starts
    /// what waited for these, until nothing more comes of it.
    fn answer(&mut self) -> usize {
        let mut count = 0;
        loop {
            while let Some(finished) = self.engine.next_finished() {
                count += 1;
                self.published.push(finished.slot);
                self.finish(&finished);
            }
            for queue in self.touched.drain(..) {
                if let Some(Some(queue)) = self.queues.get_mut(queue) {
                    queue.publish();
                }
            }
            if !self.published.is_empty() {
                hit(AFTER_PUBLISH);
            }
            for slot in self.published.drain(..) {
                self.engine.release(slot);
            }
            if !self.engine.must_poll() || self.engine.unpark() == 0 {
                return count;
            }
        }
    }

    fn finish(&mut self, finished: &Finished) {
        let ticket = &finished.ticket;
        let Some(Some(queue)) = self.queues.get_mut(ticket.queue) else { return };
        // SAFETY: the byte lies in the memory that the queue holds until its last request was answered.
        unsafe { ticket.status.write_volatile(finished.status) };
        queue.ring.complete(ticket.head, ticket.writable);
        queue.under_way -= 1;
        queue.count(finished.task, finished.status, finished.bytes);
        if !queue.unpublished {
            queue.unpublished = true;
            self.touched.push(ticket.queue);
        }
    }
}

impl BlockService {
    /// Limits a device anew. What waits for the old limits asks the new ones.
    fn limit(
        &mut self,
        device: DeviceId,
        limiter: Option<Arc<Limiter>>,
        outbox: &mut Outbox<Infallible>,
    ) {
        for (slot, queue) in self.queues.iter_mut().enumerate() {
            let Some(queue) = queue.as_mut().filter(|queue| queue.device == device) else {
                continue;
            };
            if let Some(limit) = &mut queue.limit {
                limit.give_back(Instant::now());
            }
            queue.limit = limiter.as_ref().map(QueueLimit::new);
            outbox.resume(QueueSlot(slot));
        }
        if let Some(device) = self.devices.get_mut(&device) {
            device.limiter = limiter;
        }
    }
}

impl Movable for BlockService {
    /// A worker has nothing of its own but requests under way, which cannot be adopted: they are waited for.
    fn declare(&self) -> Declared {
        match self.queues.iter().flatten().map(|queue| queue.under_way).sum::<usize>() {
            0 => Declared::Stateless,
            count => Declared::NotMovable(format!("{count} requests are under way")),
        }
    }
}

impl Queue {
    fn publish(&mut self) {
        self.unpublished = false;
        if self.ring.publish() {
            self.ring.signal();
        }
        let done = std::mem::take(&mut self.done);
        if let Some(counters) = self.disk.counters.get(usize::from(self.index)) {
            counters.add(&done);
        }
    }

    fn count(&mut self, task: Task, status: u8, bytes: u64) {
        if status != STATUS_OK {
            self.done.errors += 1;
            return;
        }
        match task {
            Task::Read => {
                self.done.reads += 1;
                self.done.read_bytes += bytes;
            }
            Task::Write => {
                self.done.writes += 1;
                self.done.write_bytes += bytes;
            }
            Task::Flush => self.done.flushes += 1,
            Task::Discard | Task::WriteZeroes => self.done.discards += 1,
        }
    }

    /// Until when a request must wait for the disk's limits, if it must.
    fn must_wait(&mut self, now: Instant, request: &request::Request<'_>) -> Option<Instant> {
        let limit = self.limit.as_mut()?;
        let waited = limit.is_waiting();
        let until = limit.ask(now, request.operation.cost())?;
        if !waited && let Some(counters) = self.disk.counters.get(usize::from(self.index)) {
            counters.add(&Done { limited: 1, ..Done::default() });
        }
        Some(until)
    }

    /// Answers a request whose status is known.
    #[inline]
    fn answer(&mut self, head: u16, request: &request::Request<'_>, status: u8) {
        request.status.write(&[status]);
        self.ring.complete(head, request.writable);
        self.unpublished = true;
    }

    /// Does a request on a measuring medium.
    #[inline]
    fn do_now(&mut self, memory: Option<&MemoryMedia>, operation: &Operation<'_>) -> u8 {
        let (task, bytes, good) = match operation {
            Operation::Read(offset, to) => {
                (Task::Read, to.len(), memory.is_none_or(|m| m.read(*offset, to)))
            }
            Operation::Write(offset, from) => {
                (Task::Write, from.len(), memory.is_none_or(|m| m.write(*offset, from)))
            }
            Operation::Flush => (Task::Flush, 0, true),
            Operation::Discard(ranges) | Operation::WriteZeroes(ranges) => {
                let zero = |memory: &MemoryMedia| {
                    let mut spans = (0..).map_while(|index| ranges.get(index));
                    spans.all(|(span, _)| memory.zero(span.start, span.len()))
                };
                (Task::Discard, 0, memory.is_none_or(zero))
            }
            other => return self.do_without_data(other),
        };
        let status = if good { STATUS_OK } else { STATUS_ERROR };
        self.count(task, status, bytes as u64);
        status
    }

    /// Does what needs no medium.
    fn do_without_data(&mut self, operation: &Operation<'_>) -> u8 {
        match operation {
            Operation::GetId(room) => {
                room.write(&self.disk.serial);
                STATUS_OK
            }
            Operation::Refuse(status) => {
                self.done.errors += 1;
                *status
            }
            _ => STATUS_ERROR,
        }
    }
}

impl BlockService {
    /// Answers a batch at once, for the measuring media. Whether the disk is limited is asked once for all of it.
    #[inline]
    fn serve_now<const LIMITED: bool>(queue: &mut Queue, batch: &Batch) -> Progress {
        let (memory, disk) = (Arc::clone(&queue.memory), Arc::clone(&queue.disk));
        let medium = match &disk.media {
            Media::Memory(memory) => Some(memory),
            _ => None,
        };
        let now = if LIMITED { Some(Instant::now()) } else { None };
        for (index, chain) in batch.chains(&memory).enumerate() {
            let request = request::parse(&chain, &queue.limits);
            if let Some(until) = now.and_then(|now| queue.must_wait(now, &request)) {
                return Progress { left: batch.len() - index, until: Some(until) };
            }
            let status = queue.do_now(medium, &request.operation);
            queue.answer(chain.head(), &request, status);
        }
        Progress::default()
    }

    /// Starts the requests of a batch, as many as there is room for and the disk's limits allow.
    fn start<const LIMITED: bool>(
        engine: &mut FileEngine,
        slot: usize,
        queue: &mut Queue,
        batch: &Batch,
    ) -> Progress {
        let memory = Arc::clone(&queue.memory);
        let now = if LIMITED { Some(Instant::now()) } else { None };
        for (index, chain) in batch.chains(&memory).enumerate() {
            let request = request::parse(&chain, &queue.limits);
            if let Some(until) = now.and_then(|now| queue.must_wait(now, &request)) {
                return Progress { left: batch.len() - index, until: Some(until) };
            }
            let work = match request.operation {
                Operation::Read(offset, data) => Work::Move(Task::Read, offset, data),
                Operation::Write(offset, data) => Work::Move(Task::Write, offset, data),
                Operation::Flush => Work::Flush,
                Operation::Discard(ref ranges) => Work::Ranges(Task::Discard, ranges),
                Operation::WriteZeroes(ref ranges) => Work::Ranges(Task::WriteZeroes, ranges),
                ref other => {
                    let status = queue.do_without_data(other);
                    queue.answer(chain.head(), &request, status);
                    continue;
                }
            };
            let status = request.status.first().as_ptr();
            let ticket =
                Ticket { queue: slot, head: chain.head(), status, writable: request.writable };
            // SAFETY: the queue holds its memory until its last request was released.
            match unsafe { engine.start(ticket, queue.file, queue.durable, &work) } {
                Ok(()) => queue.under_way += 1,
                Err(NotStarted::Full) => {
                    if let (Some(now), Some(limit)) = (now, &mut queue.limit) {
                        limit.keep(now, request.operation.cost());
                    }
                    return Progress { left: batch.len() - index, until: None };
                }
                Err(NotStarted::TooManyPieces) => {
                    queue.done.errors += 1;
                    queue.answer(chain.head(), &request, STATUS_ERROR);
                }
            }
        }
        Progress::default()
    }
}

impl WorkerService for BlockService {
    type Command = Command;
    type Report = Infallible;

    fn start(&mut self, registry: &Registry<'_>) -> io::Result<()> {
        registry.add(self.engine.event())
    }

    fn attach(&mut self, slot: QueueSlot, key: QueueKey, ring: SplitQueue) -> Interest {
        let slot = slot.0;
        while self.queues.len() <= slot {
            self.queues.push(None);
        }
        self.touched.reserve(self.queues.len());
        self.engine.add_queue(slot);
        let (disk, file, limit) = match self.devices.get(&key.device) {
            Some(Device { disk, file, limiter }) => {
                let limit = limiter.as_ref().map(QueueLimit::new);
                (Arc::clone(disk), file.unwrap_or(usize::MAX), limit)
            }
            None => {
                tracing::error!(?key, "a queue of a disk that this worker was not told of");
                (Arc::new(ServedDisk::nothing()), usize::MAX, None)
            }
        };
        let limits =
            Limits { size: disk.size, read_only: disk.read_only, features: ring.features() };
        let durable = ring.features() & FEATURE_FLUSH == 0;
        self.queues[slot] = Some(Queue {
            memory: Arc::clone(ring.memory()),
            ring,
            device: key.device,
            disk,
            file,
            index: key.index,
            limit,
            limits,
            durable,
            under_way: 0,
            leaving: false,
            unpublished: false,
            done: Done::default(),
        });
        Interest::Polled
    }

    fn queue(&mut self, slot: QueueSlot) -> Option<&mut SplitQueue> {
        self.queues.get_mut(slot.0)?.as_mut().map(|queue| &mut queue.ring)
    }

    fn detach(&mut self, slot: QueueSlot, outbox: &mut Outbox<Infallible>) {
        let Some(entry) = self.queues.get_mut(slot.0) else { return };
        if let Some(queue) = entry {
            queue.leaving = true;
            if let Some(limit) = &mut queue.limit {
                limit.give_back(Instant::now());
            }
            if queue.under_way == 0
                && let Some(queue) = entry.take()
            {
                outbox.detached(slot, queue.ring);
            }
        }
    }

    fn command(&mut self, command: Command, outbox: &mut Outbox<Infallible>) {
        match command {
            Command::Serve(device, disk) => {
                let file = self.engine.open(&disk);
                self.devices.insert(device, Device { disk, file, limiter: None });
            }
            Command::Limit(device, limiter) => self.limit(device, limiter, outbox),
            Command::Forget(device) => {
                if let Some(file) = self.devices.remove(&device).and_then(|device| device.file) {
                    self.engine.close(file);
                }
            }
        }
    }

    fn poll_queue(
        &mut self,
        slot: QueueSlot,
        outbox: &mut Outbox<Infallible>,
    ) -> Result<usize, QueueFault> {
        let Some(Some(queue)) = self.queues.get_mut(slot.0) else { return Ok(0) };
        if queue.leaving {
            return Ok(0);
        }
        let in_file = matches!(queue.disk.media, Media::File(_));
        let most = if queue.limit.is_some() { LIMITED_BATCH } else { BATCH };
        let room = if in_file { self.engine.room().min(most) } else { most };
        let taken = queue
            .ring
            .take(room, &mut self.batch)
            .map_err(|error| QueueFault::Ring { index: queue.index, error })?;
        if taken == 0 {
            return Ok(0);
        }
        // The guest wrote the headers on another core: ask for all of them before the first is needed.
        for chain in self.batch.chains(&queue.memory) {
            chain.readable().first().prefetch();
        }
        let Progress { left, until } = match (in_file, queue.limit.is_some()) {
            (true, false) => Self::start::<false>(&mut self.engine, slot.0, queue, &self.batch),
            (true, true) => Self::start::<true>(&mut self.engine, slot.0, queue, &self.batch),
            (false, false) => Self::serve_now::<false>(queue, &self.batch),
            (false, true) => Self::serve_now::<true>(queue, &self.batch),
        };
        if left > 0 {
            queue.ring.give_back(&mut self.batch, left);
        }
        if let Some(until) = until {
            outbox.hold(until);
        }
        if queue.unpublished {
            queue.publish();
        }
        Ok(taken - left)
    }

    fn poll(&mut self, outbox: &mut Outbox<Infallible>) -> usize {
        let count = self.engine.turn() + self.answer();
        if count > 0 {
            for (slot, entry) in self.queues.iter_mut().enumerate() {
                if let Some(queue) = entry.take_if(|queue| queue.leaving && queue.under_way == 0) {
                    outbox.detached(QueueSlot(slot), queue.ring);
                }
            }
        }
        count
    }

    fn must_poll(&self) -> bool {
        self.engine.must_poll()
    }

    fn arm(&mut self) -> bool {
        self.engine.arm()
    }
}

#[cfg(test)]
#[path = "service_tests.rs"]
mod tests;
