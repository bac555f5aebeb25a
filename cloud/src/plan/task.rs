//! Tasks as step machines: what was seen of an instance in, what is desired of it out.
//!
//! ```text
//!               ask the server              its report shows the effect
//!   accepted ───────────────────► waiting ─────────────────────────────► done
//!      │ cancelled                   │  │ the report shows that it cannot be, or the deadline of
//!      ▼                             │  │ a stop, a reboot or a deletion passed
//!  cancelled                         │  └─────────────────────────────────────────────► failed
//!      ▲                             │ a run or a start: cancelled, or its deadline passed     ▲
//!      │    seen stopped             ▼                                                         │
//!      └───────────────────────── undoing ─────────────────────────────────────────────────────┘
//! ```
//!
//! Invariants: a task is done only when its effect was seen. What a stop or a deletion has asked for stays asked for
//! after its deadline: the reconciler brings it to its end when the server is heard again. The epoch and the boot
//! generation in a report decide whether it speaks of what this task asked for.

use crate::model::{Failure, Instance, Observed, Power, Severity, Status, Step, Task, TaskKind};

/// How long an undone start may take to be seen stopped, in milliseconds, before the task ends without it.
const UNDO_PATIENCE: u64 = 120_000;

/// How a task goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advance {
    /// The task afterwards.
    pub task: Task,
    /// The instance afterwards.
    pub instance: Afterwards,
    /// What is told about it: a kind, how much it matters, a sentence.
    pub told: Option<(&'static str, Severity, String)>,
}

/// What becomes of the instance's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Afterwards {
    /// It is replaced.
    Put(Box<Instance>),
    /// It is removed, with what goes with it.
    Remove,
    /// There is none.
    Missing,
}

/// How long a task of this kind may take, in milliseconds.
pub fn patience(kind: TaskKind) -> u64 {
    match kind {
        TaskKind::Run | TaskKind::Start => 600_000,
        TaskKind::Stop | TaskKind::Reboot | TaskKind::Delete => 300_000,
    }
}

/// One step, if there is one now. `server_exists` is false if the operator has removed the instance's server.
pub fn step(
    task: &Task,
    instance: Option<&Instance>,
    server_exists: bool,
    now: u64,
) -> Option<Advance> {
    let Some(instance) = instance else {
        return Some(missing(task, now));
    };
    let machine = Machine { task, instance, now };
    match task.step {
        Step::Accepted if task.cancel => Some(machine.end(Step::Cancelled, None)),
        Step::Accepted => Some(machine.ask()),
        Step::Waiting if !server_exists && task.kind == TaskKind::Delete => Some(machine.gone()),
        Step::Waiting => machine.wait(),
        Step::Undoing => machine.undo(),
        Step::Done | Step::Failed | Step::Cancelled => None,
    }
}

/// The instance is gone: a deletion is done, anything else has failed.
fn missing(task: &Task, now: u64) -> Advance {
    let mut task = task.clone();
    task.updated = now;
    if task.kind == TaskKind::Delete && task.step == Step::Waiting {
        task.step = Step::Done;
    } else {
        task.step = Step::Failed;
        let message = format!("instance {} is gone.", task.instance);
        task.failure = Some(Failure { code: "InstanceGone".to_owned(), message });
    }
    Advance { task, instance: Afterwards::Missing, told: None }
}

/// Whether a report shows the instance at the end of a run.
pub fn is_down(observed: &Observed) -> bool {
    matches!(observed.state.as_str(), "stopped" | "deleted")
}

/// The report, if it speaks of the placement there is.
pub fn current(instance: &Instance) -> Option<&Observed> {
    instance.observed.as_ref().filter(|observed| observed.epoch == instance.placement.epoch)
}

struct Machine<'a> {
    task: &'a Task,
    instance: &'a Instance,
    now: u64,
}

impl Machine<'_> {
    fn advance(&self, step: Step, change: impl FnOnce(&mut Instance)) -> Advance {
        let mut task = self.task.clone();
        debug_assert!(task.step.can_become(step), "{:?} to {step:?}", task.step);
        task.step = step;
        task.updated = self.now;
        let mut instance = self.instance.clone();
        change(&mut instance);
        if step.is_final() {
            instance.task = None;
        }
        Advance { task, instance: Afterwards::Put(Box::new(instance)), told: None }
    }

    fn end(&self, step: Step, failure: Option<Failure>) -> Advance {
        let mut advance = self.advance(step, |_| {});
        let failed = failure.or_else(|| advance.task.failure.clone());
        if let Some(failure) = &failed {
            advance.told =
                Some((failed_kind(self.task.kind), Severity::Error, failure.message.clone()));
        }
        advance.task.failure = failed;
        advance
    }

    fn ask(&self) -> Advance {
        let forced = self.task.force;
        self.advance(Step::Waiting, |instance| match self.task.kind {
            TaskKind::Run | TaskKind::Start => {
                instance.desired.power = Power::Running;
                instance.desired.boot += 1;
                instance.desired.forced = false;
                instance.status = Status::Starting;
            }
            TaskKind::Stop => {
                instance.desired.power = Power::Stopped;
                instance.desired.forced = forced;
                instance.status = Status::Stopping;
            }
            TaskKind::Reboot => {
                instance.desired.boot += 1;
                instance.desired.forced = forced;
                instance.status = Status::Starting;
            }
            TaskKind::Delete => {
                instance.desired.power = Power::Deleted;
                instance.desired.forced = true;
                if instance.status != Status::Stopped {
                    instance.status = Status::Stopping;
                }
            }
        })
    }

    fn wait(&self) -> Option<Advance> {
        let seen = current(self.instance);
        match self.task.kind {
            TaskKind::Run | TaskKind::Start | TaskKind::Reboot => {
                let booted = seen.filter(|seen| seen.boot >= self.instance.desired.boot);
                match booted {
                    Some(seen) if seen.state == "running" => return Some(self.runs()),
                    Some(seen) if is_down(seen) => return Some(self.ended(seen)),
                    _ => {}
                }
            }
            TaskKind::Stop => {
                if seen.is_some_and(is_down) {
                    let mut done = self.advance(Step::Done, |i| i.status = Status::Stopped);
                    done.told =
                        Some(("InstanceStopped", Severity::Info, "It was stopped.".to_owned()));
                    return Some(done);
                }
            }
            TaskKind::Delete => {
                if seen.is_some_and(|seen| seen.state == "deleted") {
                    return Some(self.gone());
                }
            }
        }
        let starts = matches!(self.task.kind, TaskKind::Run | TaskKind::Start);
        let late = self.now >= self.task.deadline;
        if starts && (late || self.task.cancel) {
            return Some(self.take_back(late));
        }
        late.then(|| self.end(Step::Failed, Some(self.late())))
    }

    fn runs(&self) -> Advance {
        let mut done = self.advance(Step::Done, |instance| {
            instance.status = Status::Running;
            instance.started = self.now;
        });
        let (kind, message) = match self.task.kind {
            TaskKind::Reboot => ("InstanceRebooted", "It started anew."),
            _ => ("InstanceStarted", "It runs."),
        };
        done.told = Some((kind, Severity::Info, message.to_owned()));
        done
    }

    /// It was started and ended at once.
    fn ended(&self, seen: &Observed) -> Advance {
        let failure = seen.error.clone().unwrap_or_else(|| {
            let how = seen.ended.as_deref().unwrap_or("its guest powered off");
            let message =
                format!("It was started and has ended: {how}. Look at its console's output.");
            Failure { code: "EndedAtOnce".to_owned(), message }
        });
        let mut failed = self.end(Step::Failed, Some(failure));
        if let Afterwards::Put(instance) = &mut failed.instance {
            instance.status = Status::Stopped;
            instance.desired.power = Power::Stopped;
        }
        failed
    }

    fn take_back(&self, late: bool) -> Advance {
        let mut undoing = self.advance(Step::Undoing, |instance| {
            instance.desired.power = Power::Stopped;
            instance.desired.forced = true;
            instance.status = Status::Stopping;
        });
        if late {
            undoing.task.failure = Some(self.late());
        }
        undoing
    }

    fn undo(&self) -> Option<Advance> {
        let over = self.now >= self.task.updated.saturating_add(UNDO_PATIENCE);
        let stopped = current(self.instance).is_some_and(is_down);
        if !stopped && !over {
            return None;
        }
        let step = if self.task.failure.is_some() { Step::Failed } else { Step::Cancelled };
        let mut end = self.end(step, None);
        if let Afterwards::Put(instance) = &mut end.instance
            && stopped
        {
            instance.status = Status::Stopped;
        }
        Some(end)
    }

    fn gone(&self) -> Advance {
        let mut done = self.advance(Step::Done, |_| {});
        done.instance = Afterwards::Remove;
        done.told = Some(("InstanceDeleted", Severity::Info, "It was deleted.".to_owned()));
        done
    }

    fn late(&self) -> Failure {
        let observed = current(self.instance);
        let why = match observed.and_then(|observed| observed.error.as_ref()) {
            Some(error) => format!("its server says: {}", error.message),
            None => match observed {
                Some(observed) => format!("its server last told that it is {}", observed.state),
                None => "its server has told nothing of it: is its agent running?".to_owned(),
            },
        };
        let message = format!("The deadline has passed; {why}");
        Failure { code: "Deadline".to_owned(), message }
    }
}

fn failed_kind(kind: TaskKind) -> &'static str {
    match kind {
        TaskKind::Run | TaskKind::Start => "InstanceStartFailed",
        TaskKind::Stop => "InstanceStopFailed",
        TaskKind::Reboot => "InstanceRebootFailed",
        TaskKind::Delete => "InstanceDeleteFailed",
    }
}
