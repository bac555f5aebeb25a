//! Every schedule of one hand-over, with a crash, a cut and a record out of reach anywhere: never both, never neither.
//!
//! A world is what both sides are, what is on its way between them and what their shells have not finished. From each world every
//! thing that can happen next is tried, each world once.

use super::source::{self, Phase, Source, Why};
use super::target::{self, Target};
use super::{Message, Verdict};
use std::collections::{HashSet, VecDeque};

/// Who may run, as the record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Decision {
    Open,
    Claimed,
    Kept,
}

/// What one side's shell is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Work {
    Stop,
    TakeBack,
    Build,
    Restore,
    Claim,
}

/// One process.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Side<S> {
    state: S,
    alive: bool,
    /// Whether its vCPUs run.
    runs: bool,
    work: Option<Work>,
    /// Whether time may run out for it.
    timer: bool,
    /// What is on its way to it.
    inbox: VecDeque<Message>,
    /// Whether it is still to learn that the other is gone.
    hangs_up: bool,
}

impl<S> Side<S> {
    fn new(state: S, runs: bool) -> Self {
        let inbox = VecDeque::new();
        Self { state, alive: true, runs, work: None, timer: false, inbox, hangs_up: false }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    source: Side<Source>,
    target: Side<Target>,
    decision: Decision,
    connected: bool,
    /// Faults that may still happen.
    crashes: u8,
    cuts: u8,
    silences: u8,
    failures: u8,
}

/// How a piece of work ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Well,
    /// It fails; for a question to the record: it does not get there.
    Badly,
    /// The record has decided, and its answer is lost.
    Unheard,
}

/// What happens next.
#[derive(Debug, Clone, Copy)]
enum Step {
    Begin,
    Cancel,
    SourceHears,
    TargetHears,
    SourceLearnsGone,
    TargetLearnsGone,
    SourceWorks(End),
    TargetWorks(End),
    SourceTimer,
    TargetTimer,
    SourceDies,
    TargetDies,
    Cut,
}

const STEPS: [Step; 17] = [
    Step::Begin,
    Step::Cancel,
    Step::SourceHears,
    Step::TargetHears,
    Step::SourceLearnsGone,
    Step::TargetLearnsGone,
    Step::SourceWorks(End::Well),
    Step::SourceWorks(End::Badly),
    Step::SourceWorks(End::Unheard),
    Step::TargetWorks(End::Well),
    Step::TargetWorks(End::Badly),
    Step::TargetWorks(End::Unheard),
    Step::SourceTimer,
    Step::TargetTimer,
    Step::SourceDies,
    Step::TargetDies,
    Step::Cut,
];

impl World {
    fn new(crashes: u8, cuts: u8, silences: u8, failures: u8) -> Self {
        let mut target = Side::new(Target::Waiting, false);
        target.timer = true;
        Self {
            source: Side::new(Source::Running, true),
            target,
            decision: Decision::Open,
            connected: true,
            crashes,
            cuts,
            silences,
            failures,
        }
    }

    /// The world after this, if it can happen.
    fn after(&self, step: Step) -> Option<Self> {
        let mut next = self.clone();
        next.happen(step).then_some(next)
    }

    fn happen(&mut self, step: Step) -> bool {
        let (source, target) = (&mut self.source, &mut self.target);
        match step {
            Step::Begin => {
                let begins = source.alive && source.state == Source::Running && self.connected;
                // One hand-over for each world.
                let first = target.state == Target::Waiting && target.inbox.is_empty();
                begins && first && self.source_takes(source::Event::Begin)
            }
            Step::Cancel => {
                let under_way =
                    matches!(source.state, Source::Preparing | Source::Stopping | Source::Sent);
                source.alive && under_way && self.source_takes(source::Event::Cancel)
            }
            Step::SourceHears => match source.inbox.pop_front() {
                Some(message) if source.alive => self.source_takes(source::Event::Said(message)),
                _ => false,
            },
            Step::TargetHears => match target.inbox.pop_front() {
                Some(message) if target.alive => self.target_takes(target::Event::Said(message)),
                _ => false,
            },
            Step::SourceLearnsGone => {
                let learns = source.alive && source.hangs_up && source.inbox.is_empty();
                source.hangs_up = source.hangs_up && !learns;
                learns && self.source_takes(source::Event::Gone)
            }
            Step::TargetLearnsGone => {
                let learns = target.alive && target.hangs_up && target.inbox.is_empty();
                target.hangs_up = target.hangs_up && !learns;
                learns && self.target_takes(target::Event::Gone)
            }
            Step::SourceWorks(end) => self.source_works(end),
            Step::TargetWorks(end) => self.target_works(end),
            Step::SourceTimer => {
                let rings = source.alive && source.timer;
                source.timer = false;
                rings && self.source_takes(source::Event::Deadline)
            }
            Step::TargetTimer => {
                let rings = target.alive && target.timer;
                target.timer = false;
                rings && self.target_takes(target::Event::Deadline)
            }
            Step::SourceDies => {
                let dies = source.alive && self.crashes > 0;
                (source.alive, source.runs, source.work) = (!dies, source.runs && !dies, None);
                target.hangs_up |= dies && self.connected;
                self.spend(dies, |world| &mut world.crashes)
            }
            Step::TargetDies => {
                let dies = target.alive && self.crashes > 0;
                (target.alive, target.runs, target.work) = (!dies, target.runs && !dies, None);
                source.hangs_up |= dies && self.connected;
                self.spend(dies, |world| &mut world.crashes)
            }
            Step::Cut => {
                let cut = self.connected && self.cuts > 0;
                if cut {
                    // What is on its way is lost.
                    (source.hangs_up, target.hangs_up, self.connected) = (true, true, false);
                    source.inbox.clear();
                    target.inbox.clear();
                }
                self.spend(cut, |world| &mut world.cuts)
            }
        }
    }

    fn spend(&mut self, happened: bool, of: impl Fn(&mut Self) -> &mut u8) -> bool {
        if happened {
            *of(self) -= 1;
        }
        happened
    }

    /// What the record answers, if this can happen.
    fn decide(&mut self, mine: Decision, end: End) -> Option<Verdict> {
        let silent = end != End::Well;
        if silent && !self.spend(self.silences > 0, |world| &mut world.silences) {
            return None;
        }
        if self.decision == Decision::Open && end != End::Badly {
            self.decision = mine;
        }
        let verdict = if self.decision == mine { Verdict::Won } else { Verdict::Lost };
        Some(if silent { Verdict::Unknown } else { verdict })
    }

    /// Whether work that no record decides can end so.
    fn can_end(&mut self, end: End) -> bool {
        match end {
            End::Well => true,
            End::Badly => self.spend(self.failures > 0, |world| &mut world.failures),
            End::Unheard => false,
        }
    }

    fn source_works(&mut self, end: End) -> bool {
        let Some(work) = self.source.work else { return false };
        let event = if work == Work::TakeBack {
            let Some(verdict) = self.decide(Decision::Kept, end) else { return false };
            source::Event::Decided(verdict)
        } else {
            if !self.can_end(end) {
                return false;
            }
            self.source.runs = false;
            source::Event::Stopped(end == End::Well)
        };
        self.source.work = None;
        self.source_takes(event)
    }

    fn target_works(&mut self, end: End) -> bool {
        let Some(work) = self.target.work else { return false };
        let event = if work == Work::Claim {
            let Some(verdict) = self.decide(Decision::Claimed, end) else { return false };
            target::Event::Decided(verdict)
        } else {
            if !self.can_end(end) {
                return false;
            }
            match work {
                Work::Build => target::Event::Built(end == End::Well),
                _ => target::Event::Restored(end == End::Well),
            }
        };
        self.target.work = None;
        self.target_takes(event)
    }

    fn source_takes(&mut self, event: source::Event) -> bool {
        let (next, actions) = self.source.state.step(event);
        assert!(self.source.state.can_become(next), "{:?} to {next:?}", self.source.state);
        self.source.state = next;
        for action in actions {
            match action {
                source::Action::Send(message) if self.connected && self.target.alive => {
                    self.target.inbox.push_back(message);
                }
                source::Action::Send(_) => {}
                source::Action::Arm(_) => self.source.timer = true,
                source::Action::Stop => self.source.work = Some(Work::Stop),
                // A stop that is still under way is undone.
                source::Action::TakeBack => self.source.work = Some(Work::TakeBack),
                source::Action::Resume => self.source.runs = true,
                source::Action::Release => assert!(!self.source.runs, "released while it runs"),
                source::Action::Ended(_) => self.source.timer = false,
            }
        }
        true
    }

    fn target_takes(&mut self, event: target::Event) -> bool {
        let (next, actions) = self.target.state.step(event);
        assert!(self.target.state.can_become(next), "{:?} to {next:?}", self.target.state);
        self.target.state = next;
        for action in actions {
            match action {
                target::Action::Send(message) if self.connected && self.source.alive => {
                    self.source.inbox.push_back(message);
                }
                target::Action::Send(_) => {}
                target::Action::Build => self.target.work = Some(Work::Build),
                target::Action::Restore => self.target.work = Some(Work::Restore),
                target::Action::Claim => self.target.work = Some(Work::Claim),
                target::Action::Again => self.target.timer = true,
                target::Action::Run => self.target.runs = true,
                target::Action::End => self.target.work = None,
            }
        }
        true
    }

    /// What must be true of every world.
    fn check(&self) {
        assert!(!(self.source.runs && self.target.runs), "both run: {self:?}");
        if self.target.runs {
            assert_eq!(self.decision, Decision::Claimed, "it runs unasked: {self:?}");
        }
    }

    /// What must be true of a world in which nothing can happen any more.
    fn check_last(&self) {
        let runs = u8::from(self.source.runs) + u8::from(self.target.runs);
        if self.source.alive && self.target.alive {
            assert_eq!(runs, 1, "none runs for ever: {self:?}");
        }
        if self.source.alive && self.decision != Decision::Claimed {
            assert!(self.source.runs, "the target's death took the source with it: {self:?}");
        }
        if self.target.alive && self.decision == Decision::Claimed {
            assert!(self.target.runs, "it has won and does not run: {self:?}");
        }
    }
}

/// Looks at every world that can come of this one; how many there are.
fn search(first: World) -> usize {
    let mut seen = HashSet::from([first.clone()]);
    let mut open = vec![first];
    while let Some(world) = open.pop() {
        world.check();
        // Faults need not happen, and neither must a wish: a world that only they can change is a last one.
        let mut lasts = true;
        for step in STEPS {
            let Some(next) = world.after(step) else { continue };
            let by_itself = match step {
                Step::Begin | Step::Cancel | Step::Cut => false,
                Step::SourceDies | Step::TargetDies => false,
                Step::SourceWorks(end) | Step::TargetWorks(end) => end == End::Well,
                _ => true,
            };
            lasts &= !by_itself;
            if seen.insert(next.clone()) {
                open.push(next);
            }
        }
        if lasts {
            world.check_last();
        }
    }
    seen.len()
}

#[test]
fn never_both_and_never_neither_whatever_fails_and_when() {
    let worlds = search(World::new(2, 1, 2, 1));
    assert!(worlds > 1000, "only {worlds} were looked at");
}

#[test]
fn without_faults_the_target_runs() {
    let (mut world, mut turns) = (World::new(0, 0, 0, 0), 0);
    assert!(world.happen(Step::Begin));
    loop {
        let quick = [
            Step::SourceHears,
            Step::TargetHears,
            Step::SourceWorks(End::Well),
            Step::TargetWorks(End::Well),
        ];
        let Some(next) = quick.into_iter().find_map(|step| world.after(step)) else { break };
        world = next;
        turns += 1;
        assert!(turns < 100);
    }
    assert!(world.target.runs && world.source.state == Source::Released, "{world:?}");
}

#[test]
fn what_a_hostile_other_side_says_lets_nobody_run_unasked() {
    let messages = [
        Message::Offer,
        Message::State,
        Message::Abort,
        Message::Prepared,
        Message::Refused,
        Message::Running,
    ];
    for message in messages {
        for state in [Source::Running, Source::Preparing, Source::Stopping, Source::Sent] {
            let (_, actions) = state.step(source::Event::Said(message));
            assert!(!actions.contains(&source::Action::Release), "{state:?} {message:?}");
            assert!(!actions.contains(&source::Action::Resume), "{state:?} {message:?}");
        }
        let over = Target::Over.step(target::Event::Said(message));
        assert_eq!(over, (Target::Over, vec![]));
    }
    let (state, actions) = Source::Sent.step(source::Event::Said(Message::Running));
    assert_eq!(state, Source::TakingBack { why: Why::Told, stopped: true });
    assert_eq!(actions, [source::Action::TakeBack]);
    let (_, actions) = state.step(source::Event::Decided(Verdict::Unknown));
    assert_eq!(actions, [source::Action::Arm(Phase::Again)]);
}
