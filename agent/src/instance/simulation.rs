//! The life of an instance in a world of its own: virtual time, seeded faults, a crash of the agent at every step.
//!
//! The world keeps what survives the agent: the record on the disk, the VMM, what is attached. Each action of the machine
//! is done by the world in two halves, its effect and its answer, and the agent may die before, between and after.

use super::*;
use bixi_api::agent::{BootSource, ImageFile, InstanceLimits};
use std::collections::BTreeMap;

/// A small generator of numbers, the same for the same seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

pub fn desired(epoch: u64, boot: u64, power: Power) -> DesiredInstance {
    let image = ImageFile { id: "m".into(), size: 1, sha256: "0".repeat(64) };
    DesiredInstance {
        id: "i-1".into(),
        epoch,
        power,
        boot,
        stop: StopMode::Orderly { deadline_seconds: 30 },
        limits: InstanceLimits { vcpus: 1, memory: 1 << 20, ..InstanceLimits::default() },
        source: BootSource::Kernel { kernel: image, initrd: None, cmdline: String::new() },
        disks: Vec::new(),
        nics: Vec::new(),
        cidata: None,
        metadata: BTreeMap::new(),
    }
}

/// A VMM of the world.
#[derive(Debug, Clone, PartialEq)]
struct Vmm {
    run: Run,
    /// Whether it has had its permission.
    launched: bool,
    alive: bool,
    start: (u64, u64),
    button: bool,
}

/// What survives the agent.
#[derive(Debug, Default)]
struct World {
    now: u64,
    disk: Option<Record>,
    vmms: Vec<Vmm>,
    attached: bool,
    disks: bool,
    /// How often each pair of epoch and boot generation was permitted.
    released: BTreeMap<(u64, u64), u32>,
    highest: u64,
}

/// Where in an action the agent dies or something fails.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Done,
    Fails,
    DiesBefore,
    DiesAfter,
}

impl World {
    fn current(&mut self) -> Option<&mut Vmm> {
        self.vmms.iter_mut().rev().find(|vmm| vmm.alive)
    }

    /// The agent is gone: VMMs that wait for permission see that and end.
    fn agent_died(&mut self) {
        self.vmms.iter_mut().filter(|vmm| !vmm.launched).for_each(|vmm| vmm.alive = false);
    }

    fn recover(&mut self) -> Instance {
        self.agent_died();
        let Some(record) = self.disk.clone() else { return Instance::new(1) };
        let vmm = record.run.as_ref().and_then(|run| self.vmms.iter().find(|vmm| vmm.run == *run));
        let (alive, launched) = vmm.map_or((false, false), |vmm| (vmm.alive, vmm.launched));
        Instance::recover(record, alive, launched, Ending::Unseen)
    }

    /// Does the effect of an action and says what the agent learns.
    fn act(&mut self, action: &Action) -> Option<Event> {
        match action {
            Action::Accept(record) | Action::Note(record) => self.disk = Some((**record).clone()),
            Action::Fetch(_) => {}
            Action::Make(_) => self.disks = true,
            Action::Attach(desired) => {
                assert!(self.disks && desired.epoch >= self.highest, "a stale epoch is attached");
                self.highest = desired.epoch;
                self.attached = true;
            }
            Action::Detach(_) => {
                assert!(self.current().is_none(), "a running guest loses its disks");
                self.attached = false;
            }
            Action::Spawn(desired) => {
                assert!(self.attached);
                let pid = 100 + self.vmms.len() as i32;
                let run = Run { pid, start: 1, boot_id: "b".into() };
                self.vmms.push(Vmm {
                    run: run.clone(),
                    launched: false,
                    alive: true,
                    start: (desired.epoch, desired.boot),
                    button: false,
                });
                return Some(Event::Spawned(run));
            }
            Action::Release(record) => {
                self.disk = Some((**record).clone());
                let Some(vmm) = self.current() else { return Some(failure()) };
                assert_eq!(Some(&vmm.run), record.run.as_ref());
                vmm.launched = true;
                let start = vmm.start;
                *self.released.entry(start).or_default() += 1;
                let running = self.vmms.iter().filter(|vmm| vmm.alive && vmm.launched).count();
                assert_eq!(running, 1, "two run");
                assert!(start.0 >= self.highest, "a lower epoch runs");
            }
            Action::Press => {
                if let Some(vmm) = self.current() {
                    vmm.button = true;
                }
                return None;
            }
            Action::Kill => {
                if let Some(vmm) = self.current() {
                    vmm.alive = false;
                }
                return None;
            }
            Action::Close(record) => self.disk = Some((**record).clone()),
            Action::Remove { record, .. } => {
                assert!(!self.attached && self.current().is_none());
                self.disks = false;
                self.disk = Some((**record).clone());
            }
            Action::Forget => self.disk = None,
            Action::Abandon => return None,
        }
        Some(Event::Done)
    }
}

fn failure() -> Event {
    Event::Failed(ApiError::new("Test", "it failed.", ""))
}

/// One run: an agent and its world.
struct Trial {
    world: World,
    agent: Instance,
    desired: Option<DesiredInstance>,
    /// Actions begun so far.
    actions: u64,
    /// The VMM whose end the agent has not been told.
    watched: Option<Run>,
}

impl Trial {
    fn new() -> Self {
        let world = World::default();
        Self { world, agent: Instance::new(1), desired: None, actions: 0, watched: None }
    }

    fn want(&mut self, desired: Option<DesiredInstance>) {
        self.desired = desired;
        self.tell();
    }

    fn tell(&mut self) {
        let desired = self.desired.clone().map(Box::new);
        self.agent.apply(Event::Desired(desired), self.world.now);
    }

    fn crash(&mut self) {
        self.agent = self.world.recover();
        self.watched = self.agent.record.run.clone();
        self.tell();
    }

    /// One action, or one thing that the world does by itself. `false` if nothing is to be done.
    fn turn(&mut self, mut fate: impl FnMut(u64) -> Fate) -> bool {
        if self.notice_end() {
            return true;
        }
        // What is forgotten is let go of.
        let forgotten = self.agent.phase() == Phase::Deleted && self.world.disk.is_none();
        if forgotten && self.desired.is_none() {
            return false;
        }
        if let Some(action) = self.agent.plan(self.world.now) {
            self.actions += 1;
            let fate = fate(self.actions);
            let event = match fate {
                Fate::DiesBefore | Fate::Fails => None,
                Fate::Done | Fate::DiesAfter => self.world.act(&action),
            };
            match (fate, event) {
                (Fate::DiesBefore | Fate::DiesAfter, _) => self.crash(),
                (Fate::Fails, _) if self.agent.is_busy() => {
                    // A release that fails closes the VMM's pipe.
                    self.world.agent_died();
                    self.agent.apply(failure(), self.world.now);
                }
                (_, Some(event)) => {
                    if let Event::Spawned(run) = &event {
                        self.watched = Some(run.clone());
                    }
                    if matches!(action, Action::Abandon) {
                        self.world.agent_died();
                    }
                    self.agent.apply(event, self.world.now);
                }
                (_, None) => {}
            }
            return true;
        }
        if self.agent.phase() == Phase::Booting && self.world.current().is_some() {
            self.agent.apply(Event::Up, self.world.now);
            return true;
        }
        if self.world.current().is_some_and(|vmm| std::mem::take(&mut vmm.button)) {
            self.world.current().unwrap().alive = false;
            return true;
        }
        match self.agent.wake_at().filter(|at| *at > self.world.now) {
            Some(at) => {
                self.world.now = at;
                true
            }
            None => false,
        }
    }

    /// The watcher of the process tells of its end.
    fn notice_end(&mut self) -> bool {
        let Some(run) = &self.watched else { return false };
        let vmm = self.world.vmms.iter().find(|vmm| vmm.run == *run).unwrap().clone();
        if vmm.alive {
            return false;
        }
        self.watched = None;
        let event = Event::Exited { launched: vmm.launched, ending: Ending::PoweredOff };
        self.agent.apply(event, self.world.now);
        true
    }

    fn settle(&mut self, mut fate: impl FnMut(u64) -> Fate) {
        let mut turns = 0;
        while self.turn(&mut fate) {
            turns += 1;
            assert!(turns < 10_000, "it never settles: {:?}", self.agent);
        }
        for (start, times) in &self.world.released {
            assert_eq!(*times, 1, "{start:?} was started again");
        }
    }

    fn assert_running(&mut self, start: (u64, u64)) {
        assert_eq!(self.agent.phase(), Phase::Running, "{:?}", self.agent);
        assert_eq!(self.world.current().map(|vmm| (vmm.launched, vmm.start)), Some((true, start)));
    }

    fn assert_stopped(&mut self) {
        assert_eq!(self.agent.phase(), Phase::Stopped, "{:?}", self.agent);
        assert!(self.world.current().is_none() && !self.world.attached);
    }
}

/// Run, reboot, stop, move here again, delete, with one fate for the `n`th action. `false` if there is no such action.
fn life(n: u64, with: Fate) -> bool {
    let fate = |action| if action == n { with } else { Fate::Done };
    let mut run = Trial::new();
    run.want(Some(desired(1, 1, Power::Running)));
    run.settle(fate);
    run.assert_running((1, 1));
    run.want(Some(desired(1, 2, Power::Running)));
    run.settle(fate);
    run.assert_running((1, 2));
    run.want(Some(desired(1, 2, Power::Stopped)));
    run.settle(fate);
    run.assert_stopped();
    // What was started once is not started again.
    run.want(Some(desired(1, 2, Power::Running)));
    run.settle(fate);
    run.assert_stopped();
    run.want(Some(desired(3, 1, Power::Running)));
    run.settle(fate);
    run.assert_running((3, 1));
    // A lower epoch changes nothing, and neither does silence.
    run.want(Some(desired(2, 9, Power::Deleted)));
    run.settle(fate);
    run.assert_running((3, 1));
    assert_eq!(run.agent.error().unwrap().code, "StaleEpoch");
    run.want(None);
    run.settle(fate);
    run.assert_running((3, 1));
    run.want(Some(desired(3, 1, Power::Deleted)));
    run.settle(fate);
    assert_eq!(run.agent.phase(), Phase::Deleted);
    assert!(run.world.current().is_none() && !run.world.attached && !run.world.disks);
    run.want(None);
    run.settle(fate);
    assert_eq!(run.world.disk, None);
    run.actions >= n
}

#[test]
fn a_life_with_a_fault_or_a_death_at_every_step_ends_the_same() {
    for with in [Fate::Done, Fate::Fails, Fate::DiesBefore, Fate::DiesAfter] {
        let steps = (1..).take_while(|n| life(*n, with)).count();
        assert!(steps > 20, "{steps} steps under {with:?}");
    }
}

#[test]
fn no_order_of_wishes_faults_and_deaths_starts_anything_twice() {
    for seed in 1..=20_000 {
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed) | 1);
        let mut run = Trial::new();
        let (mut epoch, mut boot) = (1_u64, 1);
        for _ in 0..dice.roll(40) + 5 {
            match dice.roll(12) {
                0 => epoch += 1,
                1 => boot += 1,
                2 => run.crash(),
                3 => {
                    let stale = desired(epoch.saturating_sub(1), boot + 5, Power::Running);
                    run.want(Some(stale));
                }
                4 => {
                    if let Some(vmm) = run.world.current() {
                        // The guest powers off, or its VMM dies; one that waits cannot.
                        vmm.alive = !vmm.launched;
                    }
                }
                5 => run.world.now += 1000 * dice.roll(60),
                6 => run.want(Some(desired(epoch, boot, Power::Stopped))),
                7 => run.want(None),
                _ => run.want(Some(desired(epoch, boot, Power::Running))),
            }
            for _ in 0..dice.roll(8) {
                let fate = match dice.roll(20) {
                    0 => Fate::Fails,
                    1 => Fate::DiesBefore,
                    2 => Fate::DiesAfter,
                    _ => Fate::Done,
                };
                run.turn(|_| fate);
            }
        }
        run.want(Some(desired(epoch + 1, 1, Power::Running)));
        run.settle(|_| Fate::Done);
        run.assert_running((epoch + 1, 1));
        run.want(Some(desired(epoch + 1, 1, Power::Deleted)));
        run.settle(|_| Fate::Done);
        assert_eq!(run.agent.phase(), Phase::Deleted, "seed {seed}");
    }
}

#[test]
fn a_guest_that_hears_no_button_loses_its_power_at_the_deadline() {
    let mut run = Trial::new();
    run.want(Some(desired(1, 1, Power::Running)));
    run.settle(|_| Fate::Done);
    run.want(Some(desired(1, 1, Power::Stopped)));
    assert!(matches!(run.agent.plan(5_000), Some(Action::Press)));
    assert_eq!((run.agent.plan(34_999), run.agent.wake_at()), (None, Some(35_000)));
    assert_eq!(run.agent.plan(35_000), Some(Action::Kill));
    assert_eq!((run.agent.plan(36_000), run.agent.plan(40_000)), (None, Some(Action::Kill)));
    run.agent.apply(Event::Exited { launched: true, ending: Ending::PoweredOff }, 36_000);
    assert_eq!(run.agent.record.ended, Some(Ending::Stopped { forced: true }));
    // One that is wanted gone at once is not asked.
    let mut run = Trial::new();
    run.want(Some(desired(1, 1, Power::Running)));
    run.settle(|_| Fate::Done);
    let stop = StopMode::Forced;
    run.want(Some(DesiredInstance { stop, ..desired(1, 1, Power::Stopped) }));
    assert_eq!(run.agent.plan(0), Some(Action::Kill));
}
