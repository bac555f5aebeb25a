//! The entropy device (virtio 1.2, section 5.4): the host's random bytes, at a bounded rate.
//!
//! Served by a task of the driver's runtime that sleeps on the queue's eventfd. A [budget](Budget) bounds what a guest can make the
//! host do: [`RATE`] bytes a second, and each request counts as [`LEAST_COST`] at least.
//!
//! Invariants: a request is answered with at least one byte if it has room for one; a broken ring makes the device need
//! a reset and nothing else.

use super::budget::Budget;
use super::device::{Activation, Kind, VirtioDevice};
use super::features::{RING_EVENT_IDX, RING_INDIRECT_DESC, VERSION_1};
use super::link::DeviceLink;
use super::mailbox::{Mailbox, Orders, Restored};
use super::ring::{LocalRing, LocalRingError};
use super::state::{RNG, RingState, RngState};
use crate::device::{Quiesce, QuiesceError, RestoreError};
use crate::log_limit::LogLimit;
use crate::pci::msix::Call;
use bixi_api::state::{Declared, Movable, Payload};
use bixi_offload::memory::GuestMemory;
use bixi_offload::ring::{Batch, Segments};
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

/// Bytes a second that a guest gets in the long run.
pub const RATE: u64 = 1 << 20;
/// Bytes that a guest gets at once after a pause.
pub const BURST: u64 = 256 << 10;
/// What the smallest request costs, in bytes: the host's work for it is not in its bytes.
pub const LEAST_COST: u64 = 1 << 10;
/// The most bytes for one request; a driver asks again for more.
const MOST: usize = 64 << 10;
/// Entries of the queue.
const QUEUE_SIZE: u16 = 64;
/// Chains worked off between two looks at the mailbox.
const BATCH: usize = 16;

const KIND: Kind = Kind { id: 4, name: "virtio-rng", class: 0x00_ff_00 };

/// The entropy device.
#[derive(Debug)]
pub struct Rng {
    link: Arc<DeviceLink>,
    mailbox: Arc<Mailbox>,
    position: Arc<Position>,
    task: JoinHandle<()>,
}

/// Where the task stands, for whoever asks while it does.
#[derive(Debug, Default)]
struct Position(Mutex<Standing>);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Standing {
    /// No driver.
    #[default]
    Idle,
    /// Serving the ring.
    Serving,
    /// At rest; the ring goes on at this available index.
    Resting(u16),
}

impl Position {
    fn lock(&self) -> MutexGuard<'_, Standing> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Rng {
    /// The device, served by a task of the runtime this is called in.
    #[must_use]
    pub fn new(memory: Arc<GuestMemory>) -> Arc<Self> {
        let (link, mailbox, position) = (Arc::default(), Arc::default(), Arc::default());
        let task = Task {
            memory,
            link: Arc::clone(&link),
            mailbox: Arc::clone(&mailbox),
            position: Arc::clone(&position),
            active: None,
            ring: None,
            budget: Budget::new(RATE, BURST, Instant::now()),
            batch: Batch::new(BATCH),
            log: LogLimit::default(),
        };
        let task = tokio::spawn(task.run());
        Arc::new(Self { link, mailbox, position, task })
    }
}

impl Drop for Rng {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Movable for Rng {
    fn declare(&self) -> Declared {
        let ring = match *self.position.lock() {
            Standing::Idle => None,
            Standing::Resting(base) => {
                Some(RingState { index: 0, base: base.into(), enabled: true })
            }
            Standing::Serving => {
                return Declared::NotMovable("it serves its ring: pause the VM first".to_owned());
            }
        };
        Declared::State(Payload::new(RNG, 1, &RngState { ring }))
    }
}

impl VirtioDevice for Rng {
    fn kind(&self) -> &'static Kind {
        &KIND
    }

    fn features(&self) -> u64 {
        VERSION_1 | RING_INDIRECT_DESC | RING_EVENT_IDX
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn link(&self) -> &Arc<DeviceLink> {
        &self.link
    }

    fn activate(&self, activation: Activation) {
        self.mailbox.activate(activation);
    }

    fn reset(&self, number: u64) {
        self.mailbox.reset(number);
    }

    fn set_call(&self, queue: u16, call: Option<Call>) {
        self.mailbox.set_call(queue, call);
    }

    fn quiesce(&self) -> Quiesce<'_> {
        let rested = self.mailbox.rest(false);
        Box::pin(async {
            let lost = |_| QuiesceError { device: KIND.name.into(), what: "its task ended".into() };
            rested.await.map_err(lost)?
        })
    }

    fn resume(&self) {
        self.mailbox.resume();
    }

    fn restore(&self, state: &Payload, active: Option<Activation>) -> Result<(), RestoreError> {
        let state: RngState = state.read(RNG, 1)?;
        let wrong =
            |what: &str| RestoreError::Value { device: KIND.name.into(), what: what.into() };
        match (state.ring, active) {
            (None, None) => Ok(()),
            (Some(ring), Some(activation)) => {
                let rings = Restored::rings(&[ring]).ok_or_else(|| wrong("an impossible ring"))?;
                self.mailbox.restore(Restored { activation, rings });
                Ok(())
            }
            _ => Err(wrong("a ring without a driver, or a driver without a ring")),
        }
    }
}

struct Task {
    memory: Arc<GuestMemory>,
    link: Arc<DeviceLink>,
    mailbox: Arc<Mailbox>,
    position: Arc<Position>,
    active: Option<Activation>,
    /// The ring, while it is served.
    ring: Option<LocalRing>,
    budget: Budget,
    batch: Batch,
    log: LogLimit,
}

impl Task {
    async fn run(mut self) {
        // Until when the guest has used up what it gets, if it has.
        let mut dry_until = None;
        loop {
            let kick = self.ring.as_ref().map(|ring| &ring.kick).filter(|_| dry_until.is_none());
            let kicked = async {
                match kick {
                    Some(kick) => kick.taken().await,
                    None => pending().await,
                }
            };
            let refill = async {
                match dry_until {
                    Some(until) => sleep_until(until).await,
                    None => pending().await,
                }
            };
            let mailbox = Arc::clone(&self.mailbox);
            tokio::select! {
                orders = mailbox.take() => self.obey(orders),
                kicked = kicked => if let Err(error) = kicked {
                    self.give_up(&error.into());
                },
                () = refill => {}
            }
            dry_until = self.serve();
        }
    }

    fn obey(&mut self, orders: Orders) {
        if let Some(number) = orders.reset {
            self.ring = None;
            self.active = None;
            *self.position.lock() = Standing::Idle;
            self.link.reset_done(number);
        }
        if let Some(activation) = orders.start {
            self.begin(activation, 0);
        }
        if let Some(restored) = orders.restored {
            let base = restored.rings.first().map_or(0, |ring| ring.base);
            self.active = Some(restored.activation);
            *self.position.lock() = Standing::Resting(base);
        }
        for call in orders.calls.into_values() {
            self.set_call(call);
        }
        for rested in orders.rest {
            self.rest();
            // Whoever asked may have gone.
            let _ = rested.send(Ok(()));
        }
        if orders.resume {
            self.resume();
        }
    }

    fn begin(&mut self, activation: Activation, base: u16) {
        // Dropped first: one eventfd cannot be waited for twice.
        self.ring = None;
        let ring = activation
            .queues
            .first()
            .map(|queue| LocalRing::new(&self.memory, activation.features, queue, base));
        self.active = Some(activation);
        *self.position.lock() = Standing::Serving;
        match ring {
            Some(Ok(ring)) => self.ring = Some(ring),
            Some(Err(error)) => self.give_up(&error),
            None => {}
        }
    }

    fn set_call(&mut self, call: Option<Call>) {
        let done = self.ring.as_mut().map_or(Ok(()), |ring| ring.set_call(call.as_ref()));
        if let Some(queue) = self.active.as_mut().and_then(|active| active.queues.first_mut()) {
            queue.call = call;
        }
        if let Err(error) = done {
            self.give_up(&error.into());
        }
    }

    fn rest(&mut self) {
        let mut standing = self.position.lock();
        if *standing == Standing::Serving {
            let ring = self.ring.take();
            // A ring that had broken goes on nowhere; the device needs a reset before and after.
            let base = ring.map_or(0, |ring| ring.queue.state().last_available as u16);
            *standing = Standing::Resting(base);
        }
    }

    fn resume(&mut self) {
        let standing = *self.position.lock();
        if let (Standing::Resting(base), Some(activation)) = (standing, self.active.take()) {
            self.begin(activation, base);
        }
        if let Some(ring) = &self.ring {
            ring.queue.signal();
        }
    }

    /// Works off what is there, within the budget. Returns when there will be more of it, if it has run out.
    fn serve(&mut self) -> Option<Instant> {
        let ring = self.ring.as_mut()?;
        let served = serve(ring, &self.memory, &mut self.batch, &mut self.budget);
        match served {
            Ok(dry_until) => dry_until,
            Err(error) => {
                self.give_up(&error);
                None
            }
        }
    }

    fn give_up(&mut self, error: &LocalRingError) {
        self.ring = None;
        if let Some(suppressed) = self.log.pass() {
            tracing::warn!(%error, suppressed, "the entropy device needs a reset by the guest");
        }
        if let Some(active) = &self.active {
            self.link.fail(active.life);
        }
    }
}

fn serve(
    ring: &mut LocalRing,
    memory: &GuestMemory,
    batch: &mut Batch,
    budget: &mut Budget,
) -> Result<Option<Instant>, LocalRingError> {
    let mut dry = None;
    loop {
        let taken = ring.queue.take(BATCH, batch)?;
        let mut done = 0;
        for chain in batch.chains(memory) {
            let room = chain.writable().len().min(MOST);
            dry = budget.take((room as u64).max(LEAST_COST), Instant::now()).err();
            if dry.is_some() {
                break;
            }
            ring.queue.complete(chain.head(), fill(&chain.writable(), room));
            done += 1;
        }
        ring.queue.give_back(batch, taken - done);
        if ring.queue.publish() {
            ring.queue.signal();
        }
        // Dry, the ring is looked at when there is more; a kick meanwhile changes nothing.
        if dry.is_some() || taken == 0 && !ring.queue.kicks_on() {
            return Ok(dry);
        }
    }
}

/// Fills the first `room` bytes of `segments`; returns how many it did.
fn fill(segments: &Segments<'_>, room: usize) -> u32 {
    let mut chunk = [0; 4096];
    let mut at = 0;
    while at < room {
        let wanted = chunk.len().min(room - at);
        // SAFETY: the kernel writes at most `wanted` bytes, which `chunk` has.
        let got = unsafe { libc::getrandom(chunk.as_mut_ptr().cast(), wanted, 0) };
        let Ok(got) = usize::try_from(got) else {
            if std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted {
                continue;
            }
            break;
        };
        let Some(part) = segments.slice(at, got) else { break };
        part.write(&chunk[..got]);
        at += got;
    }
    at as u32
}

#[cfg(test)]
mod tests {
    use super::super::driver::{Driver, arena, until};
    use super::super::fuzz::Around;
    use super::super::registers::NEEDS_RESET;
    use super::super::transport::VirtioPci;
    use super::*;
    use crate::device::Device;
    use crate::pci::i440fx_1;
    use bixi_offload::frontend::{Buffer, DriverQueue, GuestArena};
    use std::collections::HashSet;

    const ALL: u64 = VERSION_1 | RING_INDIRECT_DESC | RING_EVENT_IDX;

    fn driver(arena: &GuestArena) -> Driver {
        let device = Rng::new(Arc::clone(arena.memory()));
        let host = Arc::new(Around::default());
        let dyn_host = Arc::clone(&host) as _;
        let function = VirtioPci::new("rng", i440fx_1::RNG, device, dyn_host).unwrap();
        Driver { function, host }
    }

    fn bytes(arena: &GuestArena, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        assert!(arena.memory().get(at, len as u64).unwrap().read(0, &mut bytes));
        bytes
    }

    #[tokio::test]
    async fn a_guest_gets_random_bytes_into_buffers_of_any_shape() {
        let mut arena = arena();
        let driver = driver(&arena);
        assert_eq!(driver.offered(), ALL);
        for features in [VERSION_1, ALL] {
            let mut queue = DriverQueue::new(&mut arena, 0, 64, features).unwrap();
            driver.drive(features, &[&queue]).await;
            let at = arena.allocate(4096, 16).unwrap();
            let mut seen = HashSet::new();
            for _ in 0..100 {
                let buffers = [
                    Buffer::readable(at, 100),
                    Buffer::writable(at, 1),
                    Buffer::writable(at + 1, 63),
                ];
                assert_eq!(driver.ask(&mut queue, &buffers).await, 64);
                assert!(seen.insert(bytes(&arena, at, 64)), "the same bytes twice");
            }
            assert_eq!(driver.ask(&mut queue, &[Buffer::readable(at, 8)]).await, 0);
        }
    }

    #[tokio::test]
    async fn a_guest_gets_no_more_than_the_rate() {
        let mut arena = arena();
        let driver = driver(&arena);
        let mut queue = DriverQueue::new(&mut arena, 0, 64, ALL).unwrap();
        driver.drive(ALL, &[&queue]).await;
        let at = arena.allocate(1 << 20, 16).unwrap();
        let begin = Instant::now();
        let mut got = 0;
        while got < BURST + RATE / 8 {
            got += u64::from(driver.ask(&mut queue, &[Buffer::writable(at, 1 << 20)]).await);
        }
        assert!(begin.elapsed() >= std::time::Duration::from_millis(120), "{:?}", begin.elapsed());
    }

    #[tokio::test]
    async fn a_broken_ring_needs_a_reset_and_then_all_is_well() {
        let mut arena = arena();
        let driver = driver(&arena);
        let at = arena.allocate(64, 16).unwrap();
        for _ in 0..3 {
            let mut queue = DriverQueue::new(&mut arena, 0, 64, ALL).unwrap();
            driver.drive(ALL, &[&queue]).await;
            assert_eq!(driver.ask(&mut queue, &[Buffer::writable(at, 64)]).await, 64);
            queue.write_avail_idx(30_000);
            driver.write(0x2000, 2, 0);
            until("a reset asked for", || driver.status() & NEEDS_RESET != 0).await;
        }
    }

    #[tokio::test]
    async fn at_rest_it_gives_its_state_and_another_goes_on_from_there() {
        let mut arena = arena();
        let mut driver = driver(&arena);
        let mut queue = DriverQueue::new(&mut arena, 0, 64, ALL).unwrap();
        let at = arena.allocate(64, 16).unwrap();
        driver.drive(ALL, &[&queue]).await;
        for round in 0..3 {
            assert_eq!(driver.ask(&mut queue, &[Buffer::writable(at, 64)]).await, 64);
            assert!(matches!(driver.function.declare(), Declared::NotMovable(_)), "{round}");
            driver.function.quiesce().await.unwrap();
            let Declared::State(payload) = driver.function.declare() else { panic!("at rest") };
            queue.add(&[Buffer::writable(at, 32)]).unwrap();
            driver.submit(&mut queue);
            let next = self::driver(&arena);
            next.function.restore(&payload).unwrap();
            assert_eq!(queue.in_flight(), 1, "nobody serves a resting device");
            next.function.resume();
            until("an interrupt", || next.raised(1)).await;
            driver = next;
            until("the answer", || queue.take().unwrap().is_some_and(|used| used.len == 32)).await;
        }
        driver.function.quiesce().await.unwrap();
        driver.function.resume();
        assert_eq!(driver.ask(&mut queue, &[Buffer::writable(at, 64)]).await, 64);
        Device::reset(&*driver.function);
        driver.function.quiesce().await.unwrap();
        let Declared::State(payload) = driver.function.declare() else { panic!("idle") };
        self::driver(&arena).function.restore(&payload).unwrap();
    }
}
