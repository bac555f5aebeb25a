//! Processes that attach, die and come back, in virtual time, with every order of events that a seed gives.

use super::*;
use std::collections::VecDeque;

/// The disk and its lock, as the kernel and the medium have them.
#[derive(Debug, Default)]
struct World {
    /// Which incarnation of a process holds the lock.
    lock: Option<usize>,
    /// Incarnations that have died; the lock of one lingers until its I/O has ended.
    dead: Vec<usize>,
    epoch: u64,
    serving: Option<(usize, u64)>,
    served: u64,
    incarnations: usize,
}

#[derive(Debug)]
struct Process {
    incarnation: usize,
    machine: Option<Attachment>,
    record: Option<DiskAttach>,
    todo: VecDeque<Event>,
    /// Whether a claim's result is due, and whether it is a first one.
    job: Option<bool>,
    tick: bool,
    device: bool,
    accepted: bool,
}

fn attach(epoch: u64) -> DiskAttach {
    let socket = "/s".into();
    DiskAttach {
        epoch,
        socket,
        queues: 1,
        read_only: false,
        require_sealed: true,
        limits: bixi_api::storage::DiskLimits::NONE,
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }
}

impl Process {
    fn new(world: &mut World) -> Self {
        world.incarnations += 1;
        Self {
            incarnation: world.incarnations,
            machine: None,
            record: None,
            todo: VecDeque::new(),
            job: None,
            tick: false,
            device: false,
            accepted: false,
        }
    }

    /// What the claiming job does; at once, at a moment of the scheduler's choice.
    fn claim(&self, first: bool, world: &mut World) -> Claim {
        let epoch = self.machine.as_ref().unwrap().attach.epoch;
        if first && epoch < world.epoch {
            return Claim::Stale;
        }
        match world.lock {
            Some(holder) if holder != self.incarnation => {
                if first && !world.dead.contains(&holder) {
                    return Claim::Failed;
                }
                if first {
                    world.epoch = world.epoch.max(epoch);
                }
                Claim::Busy
            }
            _ if epoch < world.epoch => Claim::Stale,
            _ => {
                world.lock = Some(self.incarnation);
                world.epoch = epoch;
                Claim::Held
            }
        }
    }

    fn feed(&mut self, event: Event, world: &mut World, random: &mut Random) {
        let Some(machine) = &mut self.machine else { return };
        let actions = machine.step(event);
        let epoch = machine.attach.epoch;
        let attach = machine.attach.clone();
        let gone = machine.stage() == Stage::Gone;
        for action in actions {
            match action {
                Action::Claim { first } => {
                    assert!(self.job.is_none(), "two claims at once");
                    self.job = Some(first);
                }
                Action::Record => self.record = Some(attach.clone()),
                Action::Forget => self.record = None,
                Action::Listen => {
                    let good = random.below(4) > 0;
                    self.device |= good;
                    self.todo.push_back(Event::Listened(good));
                }
                Action::Serve => {
                    assert_eq!(world.lock, Some(self.incarnation), "served without the lock");
                    assert!(self.device, "served without a device");
                    assert!(world.serving.is_none(), "two serve one disk");
                    assert!(epoch >= world.served, "an older epoch serves after a newer one");
                    assert_eq!(
                        epoch, world.epoch,
                        "served with an epoch that is not on the medium"
                    );
                    world.serving = Some((self.incarnation, epoch));
                    world.served = epoch;
                }
                Action::Remove => {
                    self.device = false;
                    self.todo.push_back(Event::Removed);
                }
                Action::Release => {
                    if world.serving.is_some_and(|(who, _)| who == self.incarnation) {
                        assert!(!self.device, "the lock is released under a running device");
                        world.serving = None;
                    }
                    if world.lock == Some(self.incarnation) {
                        world.lock = None;
                    }
                }
                Action::After(_) => self.tick = true,
                Action::Accept => self.accepted = true,
                Action::Refuse => assert!(gone && !self.accepted),
                Action::Detached => {}
            }
        }
        if gone {
            assert!(world.lock != Some(self.incarnation), "gone, and still holds the lock");
            self.machine = None;
            self.accepted = false;
        }
    }

    fn die(&mut self, world: &mut World) {
        world.dead.push(self.incarnation);
        if world.serving.is_some_and(|(who, _)| who == self.incarnation) {
            world.serving = None;
        }
        let record = self.record.take();
        *self = Self::new(world);
        self.record = record;
        if let Some(attach) = self.record.clone() {
            self.machine = Some(Attachment::restored(attach));
            self.todo.push_back(Event::Begin);
        }
    }

    fn turn(&mut self, world: &mut World, random: &mut Random) {
        match random.below(12) {
            0 if self.machine.is_none() => {
                let epoch = world.epoch.saturating_sub(1) + random.below(4);
                self.machine = Some(Attachment::asked(attach(epoch)));
                self.todo.push_back(Event::Begin);
            }
            1 if random.below(8) == 0 => self.die(world),
            2 if random.below(4) == 0 && self.accepted => {
                self.todo.push_back(Event::Detach);
            }
            3 => world.lock = world.lock.filter(|holder| !world.dead.contains(holder)),
            4..=6 if self.job.is_some() => {
                if let Some(first) = self.job.take() {
                    let claim = self.claim(first, world);
                    self.feed(Event::Claimed(claim), world, random);
                }
            }
            7 if self.tick => {
                self.tick = false;
                self.feed(Event::Tick, world, random);
            }
            _ => {
                if let Some(event) = self.todo.pop_front() {
                    self.feed(event, world, random);
                }
            }
        }
    }
}

#[test]
fn no_schedule_serves_a_disk_twice_or_with_a_stale_epoch() {
    let mut served = 0;
    for seed in 0..3000 {
        let mut random = Random(seed);
        let mut world = World::default();
        let mut processes: Vec<Process> = (0..3).map(|_| Process::new(&mut world)).collect();
        for _ in 0..400 {
            let who = random.below(3) as usize;
            processes[who].turn(&mut world, &mut random);
        }
        served += world.served;
    }
    assert!(served > 1000, "the simulation hardly serves: {served}");
}

#[test]
fn a_restored_attachment_serves_once_the_dead_let_go() {
    let mut it = Attachment::restored(attach(3));
    assert_eq!(it.step(Event::Begin), [Action::Listen, Action::Claim { first: false }]);
    assert_eq!(it.step(Event::Listened(true)), []);
    let Action::After(first) = it.step(Event::Claimed(Claim::Busy))[0] else { panic!() };
    assert!(first <= Duration::from_millis(10));
    assert_eq!(it.step(Event::Tick), [Action::Claim { first: false }]);
    assert_eq!(it.step(Event::Tick), [], "one claim at a time");
    assert_eq!(it.step(Event::Claimed(Claim::Held)), [Action::Serve]);
    assert_eq!(it.stage(), Stage::Serving);
}

#[test]
fn a_disk_that_fails_is_tried_again_for_ever_and_a_stale_one_never() {
    let mut it = Attachment::restored(attach(3));
    it.step(Event::Begin);
    it.step(Event::Listened(true));
    for _ in 0..100 {
        assert_eq!(it.step(Event::Claimed(Claim::Failed)), [Action::After(RETRY_FAULT)]);
        it.step(Event::Tick);
    }
    assert_eq!(it.step(Event::Claimed(Claim::Stale)), [Action::Remove]);
    let end = [Action::Forget, Action::Release, Action::Detached, Action::Release];
    assert_eq!(it.step(Event::Removed), end);
    assert_eq!(it.stage(), Stage::Gone);
}
