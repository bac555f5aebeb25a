//! The loop of a worker thread.
//!
//! A turn: read the mailbox, poll each queue in use, let the service do the rest, send what it told. With nothing done
//! for the spin time and every queue armed or held, the thread sleeps in `epoll_wait` until a kick, an order, one of the
//! service's descriptors, its deadline or the end of the first hold.
//!
//! A kick eventfd is watched edge-triggered for as long as its queue is here and never read: each write wakes the
//! epoll, and what was written before the watch began shows as the first edge. So no kick is lost between the last
//! look at the ring and the sleep, at no system call per request.

use super::mailbox::{Mail, Order, QueueChange, Receiver};
use super::outbox::SERVICE;
use super::slots::{Entry, Slots, State};
use super::{
    Interest, Outbox, QueueFault, QueueKey, QueueSlot, Registry, WorkerConfig, WorkerService,
};
use crate::ring::SplitQueue;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// The epoll tag of the mailbox's bell. Slots count from 0.
const BELL: u64 = u64::MAX - 1;
/// A busy worker looks for kicks of its sleeping queues once in so many turns: a system call in each would cost more
/// than the turn.
const TURNS_PER_LOOK: u32 = 32;
/// Orders read in one turn at most, so that a flood of them does not starve the queues.
const ORDERS_PER_TURN: usize = 32;

/// What a worker tells the driver.
#[derive(Debug)]
pub(crate) enum Note<R> {
    /// A queue is back, nothing of it is in flight.
    Detached(QueueKey, Box<SplitQueue>),
    /// A queue cannot go on.
    Fault(QueueKey, QueueFault),
    /// The service told something.
    Report(R),
}

/// A worker's own state; lives on its thread.
pub(super) struct Loop<S: WorkerService, N> {
    service: S,
    mail: Receiver<S::Command>,
    notify: N,
    epoll: OwnedFd,
    slots: Slots,
    outbox: Outbox<S::Report>,
    spin: Duration,
    last_work: Instant,
    turns: u32,
}

impl<S: WorkerService, N: FnMut(Note<S::Report>)> Loop<S, N> {
    pub fn new(
        config: &WorkerConfig,
        mut service: S,
        mail: Receiver<S::Command>,
        notify: N,
    ) -> std::io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, mail.bell(), EventData::new_u64(BELL), EventFlags::IN)?;
        service.start(&Registry { epoll: epoll.as_fd() })?;
        let outbox = Outbox::default();
        let (spin, last_work) = (config.spin, Instant::now());
        let slots = Slots::default();
        Ok(Self { service, mail, notify, epoll, slots, outbox, spin, last_work, turns: 0 })
    }

    /// Runs until the driver drops the mailbox. Queues that are still here go with the service.
    pub fn run(mut self) -> std::io::Result<()> {
        while self.read_mail() {
            let mut done = self.poll_queues();
            done += self.service.poll(&mut self.outbox);
            self.send_outbox();
            if done > 0 {
                self.last_work = Instant::now();
                self.look_for_kicks()?;
            } else if self.may_sleep() {
                self.sleep()?;
            } else {
                self.look_for_kicks()?;
                std::hint::spin_loop();
            }
        }
        Ok(())
    }

    fn read_mail(&mut self) -> bool {
        for _ in 0..ORDERS_PER_TURN {
            match self.mail.next() {
                Mail::Order(order) => self.apply(order),
                Mail::Empty => return true,
                Mail::Closed => return false,
            }
        }
        true
    }

    fn apply(&mut self, order: Order<S::Command>) {
        // Whatever it is, it may be the beginning of work: stay awake for a while.
        self.last_work = Instant::now();
        match order {
            Order::Attach(key, queue) => self.attach(key, *queue),
            Order::Detach(key) => {
                if let Some(slot) = self.slots.find(key)
                    && self.slots.change(slot, State::Leaving)
                {
                    self.service.detach(slot, &mut self.outbox);
                    self.send_outbox();
                }
            }
            Order::Change(key, change) => {
                let slot = self.slots.find(key);
                if let Some(queue) = slot.and_then(|slot| self.service.queue(slot)) {
                    match change {
                        QueueChange::Call(fd) => queue.set_call(fd),
                        QueueChange::Error(fd) => queue.set_error(fd),
                        QueueChange::Log(log) => queue.set_log(log),
                    }
                }
            }
            Order::Command(command) => {
                self.service.command(command, &mut self.outbox);
                self.send_outbox();
            }
        }
    }

    fn attach(&mut self, key: QueueKey, mut queue: SplitQueue) {
        queue.kicks_off();
        let kick = queue.notifiers().kick.clone();
        let slot = self.slots.vacant();
        let state = match self.service.attach(slot, key, queue) {
            Interest::Passive => State::Passive,
            Interest::Polled => State::Polled(self.last_work),
        };
        self.slots.put(slot, Entry { key, state });
        if state == State::Passive {
            return;
        }
        if let Some(kick) = kick {
            let tag = EventData::new_u64(slot.0 as u64);
            if let Err(e) = epoll::add(&self.epoll, &kick, tag, EventFlags::IN | EventFlags::ET) {
                let reason = format!("its kick descriptor cannot be waited on: {e}");
                self.fault(slot, QueueFault::Protocol { index: key.index, reason });
            }
        }
    }

    fn poll_queues(&mut self) -> usize {
        let mut done = 0;
        let mut now = None;
        for index in 0..self.slots.len() {
            let slot = QueueSlot(index);
            let since = match self.slots.get(slot).map(|entry| entry.state) {
                Some(State::Polled(since)) => since,
                Some(State::Held(until)) => {
                    let now = *now.get_or_insert_with(Instant::now);
                    if now < until {
                        continue;
                    }
                    self.slots.change(slot, State::Polled(now));
                    now
                }
                _ => continue,
            };
            let polled = self.service.poll_queue(slot, &mut self.outbox);
            if let Some(until) = self.outbox.take_hold() {
                done += polled.as_ref().copied().unwrap_or_default();
                self.slots.change(slot, State::Held(until));
                if polled.is_ok() {
                    continue;
                }
            }
            match polled {
                Ok(0) => self.rest(slot, since),
                Ok(n) => {
                    done += n;
                    self.slots.change(slot, State::Polled(self.last_work));
                }
                Err(fault) => self.fault(slot, fault),
            }
        }
        done
    }

    /// Arms a queue that had nothing for the spin time.
    fn rest(&mut self, slot: QueueSlot, since: Instant) {
        // `since` is the time of a turn and not of a request: good enough, and one clock read less on the busy path.
        let now = Instant::now();
        if now.duration_since(since) < self.spin {
            return;
        }
        let Some(queue) = self.service.queue(slot) else { return };
        if queue.notifiers().kick.is_none() {
            return;
        }
        if queue.kicks_on() {
            queue.kicks_off();
            self.slots.change(slot, State::Polled(now));
        } else {
            self.slots.change(slot, State::Armed);
        }
    }

    fn fault(&mut self, slot: QueueSlot, fault: QueueFault) {
        if self.slots.change(slot, State::Broken)
            && let Some(entry) = self.slots.get(slot)
        {
            let key = entry.key;
            (self.notify)(Note::Fault(key, fault));
        }
    }

    fn send_outbox(&mut self) {
        while let Some(report) = self.outbox.next_report() {
            (self.notify)(Note::Report(report));
        }
        while let Some((slot, fault)) = self.outbox.next_fault() {
            self.fault(slot, fault);
        }
        while let Some(slot) = self.outbox.next_resumed() {
            if self.slots.get(slot).is_some_and(|entry| matches!(entry.state, State::Held(_))) {
                self.slots.change(slot, State::Polled(Instant::now()));
            }
        }
        while let Some((slot, queue)) = self.outbox.next_detached() {
            if let Some(kick) = &queue.notifiers().kick {
                // Passive queues were never added.
                let _ = epoll::delete(&self.epoll, kick);
            }
            if let Some(entry) = self.slots.free(slot) {
                (self.notify)(Note::Detached(entry.key, Box::new(queue)));
            }
        }
    }

    fn may_sleep(&self) -> bool {
        !self.slots.any_polled()
            && !self.service.must_poll()
            && self.last_work.elapsed() >= self.spin
    }

    fn sleep(&mut self) -> std::io::Result<()> {
        if self.service.arm() {
            self.last_work = Instant::now();
            return Ok(());
        }
        let deadline = self.service.deadline().into_iter().chain(self.slots.first_held()).min();
        self.wait(deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())))
    }

    /// Looks for kicks of sleeping queues now and then while others are busy.
    fn look_for_kicks(&mut self) -> std::io::Result<()> {
        self.turns = self.turns.wrapping_add(1);
        if self.turns.is_multiple_of(TURNS_PER_LOOK) && self.slots.any_armed() {
            return self.wait(Some(Duration::ZERO));
        }
        Ok(())
    }

    fn wait(&mut self, timeout: Option<Duration>) -> std::io::Result<()> {
        let timeout = timeout.map(|d| Timespec {
            tv_sec: d.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: d.subsec_nanos().into(),
        });
        let mut room = [MaybeUninit::<epoll::Event>::uninit(); 64];
        let events = match epoll::wait(&self.epoll, &mut room, timeout.as_ref()) {
            Ok((events, _)) => events,
            Err(rustix::io::Errno::INTR) => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        let now = Instant::now();
        for event in events {
            match event.data.u64() {
                BELL => self.mail.silence(),
                SERVICE => {}
                slot => {
                    let slot = QueueSlot(slot as usize);
                    if self.slots.get(slot).is_some_and(|entry| entry.state == State::Armed)
                        && let Some(queue) = self.service.queue(slot)
                    {
                        queue.kicks_off();
                        self.slots.change(slot, State::Polled(now));
                    }
                }
            }
        }
        Ok(())
    }
}
