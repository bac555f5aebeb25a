//! The queue itself: the device's side of one split ring.
//!
//! ```text
//!            last_used     + completed      + outstanding    avail.idx
//!  ──────────────┼───────────────┼────────────────┼──────────────┼──
//!   published    │ used elements │ taken, not     │ not seen yet │
//!                │ written       │ answered       │              │
//! ```
//!
//! Invariants: `completed + outstanding` chains were taken since `last_used` was published, plus those in `recovered`
//! that wait to be taken again; together with what the driver makes available they are never more than the queue has
//! descriptors. A queue that met an error gives nothing more.

use super::batch::{Batch, Entry, Segment};
use super::layout::{Areas, WRITE};
use super::notify::{self, Notifiers, SharedFd};
use super::state;
use super::walk::{Stop, Walker, for_each_buffer};
use super::{
    FEATURE_EVENT_IDX, FEATURE_INDIRECT, InflightQueue, QueueLayout, QueueState, RingError,
};
use crate::failpoint::{self, Point};
use crate::memory::{DirtyLog, GuestMemory, Span, prefetch, prefetch_for_write};
use bixi_api::state::{Declared, Movable, Payload};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

/// What a queue is made of.
#[derive(Debug)]
pub struct QueueSetup {
    /// Where it is in guest memory.
    pub layout: QueueLayout,
    /// The virtio features that were negotiated; the queue looks at EVENT_IDX and INDIRECT_DESC.
    pub features: u64,
    /// The first entry of the available ring to take. Ignored when the in-flight record says better.
    pub base: u16,
    /// Its eventfds.
    pub notifiers: Notifiers,
    /// Its in-flight record, if the front end gave one.
    pub inflight: Option<InflightQueue>,
    /// Where writes are logged, while the front end migrates.
    pub log: Option<UsedLog>,
}

/// Where a queue logs what it writes.
#[derive(Debug, Clone)]
pub struct UsedLog {
    /// The bitmap.
    pub log: Arc<DirtyLog>,
    /// The guest address that stands for the used ring in the log, if writes of the ring are logged too
    /// (VHOST_VRING_F_LOG).
    pub used: Option<u64>,
}

/// The in-flight record and what is needed to write it.
#[derive(Debug)]
struct Record {
    queue: InflightQueue,
    /// Heads completed and not published; the shared record has them too, but what others can write is not followed.
    completed: Box<[u16]>,
    /// Heads of a dead process in the order in which they are handed out.
    recovered: Vec<u16>,
    /// How many of them were handed out.
    handed: usize,
}

impl Record {
    fn waiting(&self) -> usize {
        self.recovered.len() - self.handed
    }
}

/// The device's side of a split virtqueue.
#[derive(Debug)]
pub struct SplitQueue {
    areas: Areas,
    hit: Span,
    size: u16,
    last_available: u16,
    /// avail.idx as it was read last: the driver has made at least what lies before it available.
    seen_available: u16,
    last_used: u16,
    /// used.idx up to which the driver was called, or did not want to be.
    announced: u16,
    completed: u16,
    outstanding: u16,
    event_idx: bool,
    indirect: bool,
    /// The next publication calls whatever the driver says: what it was told before is not known.
    must_call: bool,
    error: Option<RingError>,
    record: Option<Box<Record>>,
    log: Option<Box<UsedLog>>,
    memory: Arc<GuestMemory>,
    notifiers: Notifiers,
    layout: QueueLayout,
    features: u64,
    recovered: u16,
}

impl QueueSetup {
    /// What a queue that was `state` is made of again, with its eventfds, record and log.
    ///
    /// # Errors
    /// A state that contradicts itself, or that has chains in flight and no record which names them.
    pub fn restore(
        state: &QueueState,
        notifiers: Notifiers,
        inflight: Option<InflightQueue>,
        log: Option<UsedLog>,
    ) -> Result<Self, RingError> {
        let word = |n: u32| u16::try_from(n).map_err(|_| RingError::State);
        if state.outstanding > 0 && inflight.is_none() {
            return Err(RingError::State);
        }
        let layout = QueueLayout {
            size: word(state.size)?,
            descriptors: state.descriptors,
            available: state.available,
            used: state.used,
        };
        let (base, features) = (word(state.last_available)?, state.features);
        Ok(Self { layout, features, base, notifiers, inflight, log })
    }
}

impl Movable for SplitQueue {
    fn declare(&self) -> Declared {
        let state = self.state();
        if state.outstanding > 0 && self.record.is_none() {
            let n = state.outstanding;
            return Declared::NotMovable(format!("{n} requests are in flight without a record"));
        }
        Declared::State(Payload::new(state::KIND, state::VERSION, &state))
    }
}

impl SplitQueue {
    /// Checks the ring's areas and, with an in-flight record, finds out what the process before had in flight. Kicks
    /// are on, and the driver is called once: whoever had the ring before may have died between answering and calling.
    ///
    /// # Errors
    /// See [`RingError`].
    pub fn new(memory: Arc<GuestMemory>, setup: QueueSetup) -> Result<Self, RingError> {
        let QueueSetup { layout, features, base, notifiers, inflight, log } = setup;
        notifiers.check()?;
        let event_idx = features & FEATURE_EVENT_IDX != 0;
        let areas = Areas::new(&memory, &layout, event_idx)?;
        let last_used = areas.used_idx();
        let mut last_available = base;
        let mut recovered = 0;
        let record = match inflight {
            None => None,
            Some(mut queue) => {
                let first_time = queue.is_fresh();
                let heads = queue.attach(layout.size, last_used)?;
                recovered = heads.len() as u16;
                if !first_time {
                    // Whatever base the front end guessed: the dead process took these heads, and nothing else.
                    last_available = last_used.wrapping_add(recovered);
                }
                let completed = vec![0; usize::from(layout.size)].into();
                Some(Box::new(Record { queue, completed, recovered: heads, handed: 0 }))
            }
        };
        let mut queue = Self {
            areas,
            hit: Span::NONE,
            size: layout.size,
            last_available,
            seen_available: last_available,
            last_used,
            announced: last_used,
            completed: 0,
            outstanding: 0,
            event_idx,
            indirect: features & FEATURE_INDIRECT != 0,
            must_call: true,
            error: None,
            record,
            log: log.map(Box::new),
            memory,
            notifiers,
            layout,
            features,
            recovered,
        };
        // Whatever the device before left there.
        queue.areas.suppress_kicks(false);
        queue.log_used(0, 2);
        let _ = queue.kicks_on();
        queue.signal();
        Ok(queue)
    }

    /// The memory that the queue's chains are in.
    #[inline]
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Its eventfds.
    pub fn notifiers(&self) -> &Notifiers {
        &self.notifiers
    }

    /// The virtio features that were negotiated.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Descriptors of the ring.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// How many chains of a dead process the in-flight record named when the queue was made.
    pub fn recovered(&self) -> u16 {
        self.recovered
    }

    /// Takes up to `max` chains, as many as the driver has made available and the batch has room for; returns how
    /// many. First, and by themselves, come those that a dead process had in flight, oldest first.
    ///
    /// # Errors
    /// The driver broke a rule, or memory was taken away: end the session. The queue stays unusable.
    #[inline]
    pub fn take(&mut self, max: usize, batch: &mut Batch) -> Result<usize, RingError> {
        batch.taken = 0;
        batch.recovered = false;
        batch.memory = Arc::as_ptr(&self.memory);
        if self.error.is_some() || self.memory.is_broken() {
            return Err(self.fail(RingError::MemoryGone));
        }
        let max = max.min(batch.entries.len());
        let waiting = self.record.as_ref().is_some_and(|record| record.waiting() > 0);
        let taken =
            if waiting { self.take_recovered(max, batch) } else { self.take_available(max, batch) };
        taken.map_err(|error| {
            // Good chains before the bad one were not marked in flight, and are not given out.
            batch.taken = 0;
            self.fail(error)
        })
    }

    /// Remembers the first error, and gives it.
    #[cold]
    fn fail(&mut self, error: RingError) -> RingError {
        *self.error.get_or_insert(error)
    }

    #[inline(always)]
    fn take_available(&mut self, max: usize, batch: &mut Batch) -> Result<usize, RingError> {
        let ahead = self.available_ahead(max)?;
        if ahead == 0 {
            return Ok(0);
        }
        let count = usize::from(ahead).min(max);
        for i in 0..count {
            let head = self.areas.available_head(self.last_available.wrapping_add(i as u16));
            if head >= self.size {
                return Err(RingError::DescriptorIndex { index: head, size: self.size });
            }
            prefetch(self.areas.descriptor_at(head));
            batch.entries[i].head = head;
        }
        let taken = self.flatten(count, batch)?;
        if let Some(record) = &mut self.record {
            for entry in &batch.entries[..taken] {
                record.queue.take(entry.head);
            }
        }
        self.prefetch_used(taken as u16);
        self.last_available = self.last_available.wrapping_add(taken as u16);
        self.outstanding += taken as u16;
        failpoint::hit(Point::AFTER_TAKE);
        Ok(taken)
    }

    /// How many chains there are to take. The driver is asked only when it is not known already that there are `max`: it
    /// writes avail.idx all the time, and each look takes the line away from it.
    #[inline(always)]
    fn available_ahead(&mut self, max: usize) -> Result<u16, RingError> {
        let ahead = self.seen_available.wrapping_sub(self.last_available);
        if usize::from(ahead) >= max {
            return Ok(ahead);
        }
        let available = self.areas.available_idx();
        let ahead = available.wrapping_sub(self.last_available);
        // To the driver, what is not published is still taken.
        let taken = self.outstanding + self.completed;
        if ahead > self.size - taken {
            let (outstanding, size) = (taken, self.size);
            return Err(RingError::AvailableIndex { available, ahead, outstanding, size });
        }
        self.seen_available = available;
        Ok(ahead)
    }

    /// Has the lines of the next `n` used elements on their way: the driver has read them a ring's length ago, and a store
    /// that must take a line away from it first holds up all stores behind it.
    #[inline(always)]
    fn prefetch_used(&self, n: u16) {
        let first = self.last_used.wrapping_add(self.completed);
        for i in (0..n).step_by(USED_PER_LINE) {
            prefetch_for_write(self.areas.used_at(first.wrapping_add(i)));
        }
    }

    #[cold]
    fn take_recovered(&mut self, max: usize, batch: &mut Batch) -> Result<usize, RingError> {
        let Some(record) = &self.record else { return Ok(0) };
        let heads = &record.recovered[record.handed..];
        let count = heads.len().min(max);
        for (entry, head) in batch.entries.iter_mut().zip(&heads[..count]) {
            entry.head = *head;
        }
        let taken = self.flatten(count, batch)?;
        batch.recovered = true;
        if let Some(record) = &mut self.record {
            record.handed += taken;
        }
        self.outstanding += taken as u16;
        failpoint::hit(Point::AFTER_TAKE);
        Ok(taken)
    }

    /// Walks the chains whose heads are in the batch, as many as there is room for.
    #[inline(always)]
    fn flatten(&mut self, count: usize, batch: &mut Batch) -> Result<usize, RingError> {
        let mut walker = Walker {
            areas: self.areas,
            size: self.size,
            memory: &self.memory,
            hit: &mut self.hit,
            indirect: self.indirect,
        };
        let Batch { entries, segments, taken, .. } = batch;
        let mut first = 0;
        for (i, entry) in entries[..count].iter_mut().enumerate() {
            let used = match walker.walk(entry, &mut segments[first..], first) {
                Ok(used) => used,
                // The rest waits for the next batch, where it comes first and fits, if it can fit at all.
                Err(Stop::Full) if i > 0 => break,
                Err(Stop::Full) => return Err(RingError::ChainLength { head: entry.head }),
                Err(Stop::Broken(error)) => return Err(error),
            };
            prefetch_chain(entry, &segments[first..first + used]);
            first += used;
            *taken = i + 1;
        }
        Ok(*taken)
    }

    /// Gives back the last `n` chains of `batch`, the queue's latest, of which none was completed: they leave the
    /// batch, and the next `take` gives them again.
    pub fn give_back(&mut self, batch: &mut Batch, n: usize) {
        if !std::ptr::eq(batch.memory, Arc::as_ptr(&self.memory)) {
            return;
        }
        let n = n.min(batch.taken).min(usize::from(self.outstanding));
        batch.taken -= n;
        self.outstanding -= n as u16;
        if !batch.recovered {
            self.last_available = self.last_available.wrapping_sub(n as u16);
        }
        if let Some(record) = &mut self.record {
            if batch.recovered {
                record.handed -= n.min(record.handed);
            } else {
                // The last first: whoever reads the record after a crash in between must find taken heads to be a
                // prefix of what is available.
                for entry in batch.entries[batch.taken..batch.taken + n].iter().rev() {
                    record.queue.clear(entry.head);
                }
            }
        }
    }

    /// Answers the chain `head`: the device wrote `written` bytes into it. The driver sees it after `publish`.
    ///
    /// A head that was not taken is ignored.
    #[inline]
    pub fn complete(&mut self, head: u16, written: u32) {
        debug_assert!(self.outstanding > 0 && head < self.size, "completed more than was taken");
        if self.outstanding == 0 || head >= self.size {
            return;
        }
        failpoint::hit(Point::BEFORE_USED);
        let index = self.last_used.wrapping_add(self.completed);
        self.areas.set_used(index, head, written);
        if let Some(record) = &mut self.record {
            record.queue.complete(head);
            record.completed[usize::from(self.completed)] = head;
        }
        if self.log.is_some() {
            self.log_chain(head, index);
        }
        self.completed += 1;
        self.outstanding -= 1;
    }

    /// Shows all completed chains to the driver at once. Returns whether it wants a call: then `signal`.
    #[inline]
    #[must_use]
    pub fn publish(&mut self) -> bool {
        if self.completed == 0 {
            return false;
        }
        self.reveal();
        fence_before_calls();
        self.wants_call()
    }

    /// The first half of `publish`, for several queues at once: shows all completed chains. The second is one
    /// [`fence_before_calls`] for all of them, and [`Self::wants_call`] for each.
    #[inline]
    pub fn reveal(&mut self) {
        if self.completed == 0 {
            return;
        }
        failpoint::hit(Point::AFTER_USED_BEFORE_IDX);
        let now = self.last_used.wrapping_add(self.completed);
        self.areas.set_used_idx(now);
        if let Some(record) = &mut self.record {
            failpoint::hit(Point::AFTER_IDX_BEFORE_CLEAR);
            for head in &record.completed[..usize::from(self.completed)] {
                record.queue.clear(*head);
            }
            failpoint::hit(Point::AFTER_CLEAR);
            record.queue.finish(now);
        }
        if self.log.is_some() {
            self.log_used(2, 2);
        }
        self.last_used = now;
        self.completed = 0;
    }

    /// Whether the driver wants a call for what was revealed since this was asked last: then `signal`.
    #[inline]
    #[must_use]
    pub fn wants_call(&mut self) -> bool {
        let (before, now) = (self.announced, self.last_used);
        if before == now {
            return false;
        }
        self.announced = now;
        let wanted = if self.event_idx {
            passes(self.areas.used_event(), before, now)
        } else {
            !self.areas.calls_suppressed()
        };
        wanted | std::mem::take(&mut self.must_call)
    }

    /// Calls the driver. One system call; a call that cannot be delivered is the front end's loss.
    #[inline]
    pub fn signal(&self) {
        notify::signal(self.notifiers.call.as_ref());
    }

    /// Tells the front end that the ring is broken (SET_VRING_ERR).
    pub fn signal_error(&self) {
        notify::signal(self.notifiers.error.as_ref());
    }

    /// Chains taken and not yet completed.
    #[inline]
    pub fn outstanding(&self) -> u16 {
        self.outstanding
    }

    /// Whether `take` would give something, or an error. One look at avail.idx.
    #[inline]
    pub fn has_work(&self) -> bool {
        self.areas.available_idx() != self.last_available
            || self.record.as_ref().is_some_and(|record| record.waiting() > 0)
    }

    /// Asks the driver not to kick: the queue is polled from now on.
    pub fn kicks_off(&mut self) {
        // With EVENT_IDX there is nothing to write: the event stays behind avail.idx.
        if !self.event_idx {
            self.areas.suppress_kicks(true);
            self.log_used(0, 2);
        }
    }

    /// Asks the driver to kick, and looks once more: true means that something came meanwhile, so poll again.
    #[must_use]
    pub fn kicks_on(&mut self) -> bool {
        if self.event_idx {
            self.areas.set_available_event(self.last_available);
            self.log_used(self.areas.available_event_offset(), 2);
        } else {
            self.areas.suppress_kicks(false);
            self.log_used(0, 2);
        }
        // The driver publishes avail.idx and looks then whether to kick; we ask and look then at avail.idx.
        fence(Ordering::SeqCst);
        self.has_work()
    }

    /// Another call eventfd (SET_VRING_CALL on a running ring). It is signalled once, lest a call be lost between.
    /// One that could block is not taken, and the next `take` says so.
    pub fn set_call(&mut self, call: Option<SharedFd>) {
        self.notifiers.call = self.checked("call", call);
        self.signal();
    }

    /// Another error eventfd, under the same condition.
    pub fn set_error(&mut self, error: Option<SharedFd>) {
        self.notifiers.error = self.checked("error", error);
    }

    fn checked(&mut self, name: &'static str, fd: Option<SharedFd>) -> Option<SharedFd> {
        match notify::check(name, fd.as_ref()) {
            Ok(()) => fd,
            Err(error) => {
                self.fail(error);
                None
            }
        }
    }

    /// Turns the dirty log on or off.
    pub fn set_log(&mut self, log: Option<UsedLog>) {
        self.log = log.map(Box::new);
    }

    /// The state, for the session (GET_VRING_BASE) and for hand-over. What was completed counts as outstanding until
    /// it is published.
    pub fn state(&self) -> QueueState {
        let waiting = self.record.as_ref().map_or(0, |record| record.waiting());
        QueueState {
            size: self.size.into(),
            descriptors: self.layout.descriptors,
            available: self.layout.available,
            used: self.layout.used,
            last_available: self.last_available.into(),
            last_used: self.last_used.into(),
            outstanding: u32::from(self.outstanding) + u32::from(self.completed) + waiting as u32,
            features: self.features,
        }
    }

    /// Logs what the device may have written into the chain `head`, and its used element.
    ///
    /// The chain is walked again, because nothing is kept of it while it is in flight. All its writable bytes are
    /// logged: a device may write more than it reports, and a page too many costs a copy and no more.
    #[cold]
    fn log_chain(&self, head: u16, index: u16) {
        let Some(log) = &self.log else { return };
        let mut left = u32::MAX;
        let first = self.areas.descriptor(head);
        // A chain that does not walk any more was changed by the driver; what it loses by that is its own.
        let _ = for_each_buffer::<RingError>(
            self.areas,
            self.size,
            &self.memory,
            self.indirect,
            head,
            first,
            |buffer| {
                if buffer.flags & WRITE != 0 {
                    left = left.checked_sub(buffer.len).ok_or(RingError::ChainBytes { head })?;
                    log.log.mark(buffer.addr, buffer.len.into());
                }
                Ok(())
            },
        );
        self.log_used(self.areas.used_offset(index), 8);
    }

    /// Logs `len` bytes at `offset` of the used area.
    #[inline]
    fn log_used(&self, offset: usize, len: u64) {
        if let Some(log) = &self.log
            && let Some(used) = log.used
        {
            log.log.mark(used.wrapping_add(offset as u64), len);
        }
    }
}

/// Bytes of a processor's line.
const LINE: usize = 64;
/// Used elements in one.
const USED_PER_LINE: usize = 8;

/// Must stand between [`SplitQueue::reveal`] and [`SplitQueue::wants_call`].
///
/// used.idx must be visible before we read whether the driver wants a call: it asks for one and looks at used.idx in the
/// opposite order, and one of the two must see the other.
#[inline(always)]
pub fn fence_before_calls() {
    fence(Ordering::SeqCst);
}

/// Has the lines on their way that are touched first: by the time that a batch is taken, they are here.
#[inline(always)]
fn prefetch_chain(entry: &Entry, segments: &[Segment]) {
    let [first, .., last] = segments else {
        let [only] = segments else { return };
        if entry.readable > 0 {
            prefetch(only.start);
        } else {
            // A small packet with its header.
            prefetch_for_write(only.start);
            prefetch_for_write(only.start.wrapping_add(LINE));
        }
        return;
    };
    if entry.readable > 0 {
        prefetch(first.start);
    } else {
        prefetch_for_write(first.start);
    }
    // Where a status byte is, if there is one.
    if entry.writable > 0 {
        prefetch_for_write(last.start);
    }
}

/// Whether the driver's event lies among the entries that went from `before` to `now` (virtio 1.2, 2.7.7.2).
#[inline(always)]
fn passes(event: u16, before: u16, now: u16) -> bool {
    now.wrapping_sub(event).wrapping_sub(1) < now.wrapping_sub(before)
}
