//! How far a task is, from what its instance's server told last: nothing of it is stored.
//!
//! | a start | percent |
//! |---|---|
//! | asked of the server | 5 |
//! | accepted there | 10 |
//! | images there | 50, and up to it as their bytes come |
//! | disks made | 70, and up to it as their bytes are written |
//! | disks and ports at the card | 80 |
//! | its VMM permitted to begin | 90 |
//! | its guest runs | 99; 100 is the task's end |

use crate::model::{Instance, Step, Task, TaskKind};
use bixi_api::agent::{InstanceState, ObservedInstance, Progress};

/// In percent; less than 100 until the task has ended.
pub fn percent(task: &Task, instance: Option<&Instance>, seen: Option<&ObservedInstance>) -> u8 {
    match task.step {
        Step::Accepted => 0,
        Step::Done | Step::Failed | Step::Cancelled => 100,
        // What was done is taken back: whoever shows it never goes back.
        Step::Undoing => 5,
        Step::Waiting => {
            let epoch = instance.map(|instance| instance.placement.epoch);
            let seen = seen.filter(|seen| Some(seen.epoch) == epoch);
            let boot = instance.map_or(0, |instance| instance.desired.boot);
            seen.map_or(5, |seen| match task.kind {
                TaskKind::Run | TaskKind::Start | TaskKind::Reboot => start(seen, boot),
                TaskKind::Stop => stop(seen.state),
                TaskKind::Delete => delete(seen.state),
            })
        }
    }
}

fn start(seen: &ObservedInstance, boot: u64) -> u8 {
    let last = seen.moments.last().map_or("", |moment| moment.what.as_str());
    match seen.state {
        InstanceState::Preparing => match last {
            "images" => within(50, 70, "disk", seen.progress.as_ref()),
            "disks" => 70,
            "network" => 80,
            _ => within(10, 50, "image", seen.progress.as_ref()),
        },
        InstanceState::Starting if last == "released" => 90,
        InstanceState::Starting => 80,
        InstanceState::Running if seen.boot >= boot => 99,
        // The start before, or the end of it.
        _ => 5,
    }
}

fn stop(state: InstanceState) -> u8 {
    match state {
        InstanceState::Stopping => 50,
        InstanceState::Stopped | InstanceState::Deleting | InstanceState::Deleted => 99,
        _ => 5,
    }
}

fn delete(state: InstanceState) -> u8 {
    match state {
        InstanceState::Stopping => 30,
        InstanceState::Stopped => 50,
        InstanceState::Deleting => 70,
        InstanceState::Deleted => 99,
        _ => 5,
    }
}

/// From `low` to `high`, as far as `what` is.
fn within(low: u8, high: u8, what: &str, progress: Option<&Progress>) -> u8 {
    let Some(progress) = progress.filter(|progress| progress.what == what) else { return low };
    let done = u128::from(progress.done.min(progress.total));
    let more = done * u128::from(high - low) / u128::from(progress.total.max(1));
    low + u8::try_from(more).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::power::new_task;
    use bixi_api::agent::Moment;

    fn seen(state: InstanceState, moments: &[&str], progress: Option<(&str, u64)>) -> u8 {
        let moment = |what: &&str| Moment { what: (*what).to_owned(), at: 1 };
        let progress = progress.map(|(what, done)| Progress { what: what.into(), done, total: 8 });
        let mut seen = crate::plan::simulation::observed("i-1", state);
        seen.moments = moments.iter().map(moment).collect();
        seen.progress = progress;
        start(&seen, 1)
    }

    #[test]
    fn a_start_gets_on_step_by_step() {
        use InstanceState::{Preparing, Running, Starting, Stopped};
        let all = ["accepted", "images", "disks", "network", "released", "running"];
        let steps = [
            seen(Stopped, &[], None),
            seen(Preparing, &all[..1], None),
            seen(Preparing, &all[..1], Some(("image", 3))),
            seen(Preparing, &all[..1], Some(("image", 8))),
            seen(Preparing, &all[..2], Some(("disk", 4))),
            seen(Preparing, &all[..3], None),
            seen(Preparing, &all[..4], None),
            seen(Starting, &all[..5], None),
            seen(Running, &all, None),
        ];
        assert_eq!(steps, [5, 10, 25, 50, 60, 70, 80, 90, 99]);
        // An agent that tells no moments, and one that tells nonsense.
        assert_eq!(seen(Preparing, &[], Some(("image", u64::MAX))), 50);
        assert_eq!((seen(Preparing, &[], None), seen(Starting, &[], None)), (10, 80));
    }

    #[test]
    fn a_report_of_another_epoch_says_nothing() {
        let task = new_task("task-1".into(), "t-1", "i-1", TaskKind::Stop, false, 1);
        let waiting = Task { step: Step::Waiting, ..task.clone() };
        use InstanceState::{Deleted, Deleting, Running, Stopped, Stopping};
        let gone = crate::plan::simulation::observed("i-1", Stopped);
        assert_eq!(percent(&task, None, Some(&gone)), 0);
        assert_eq!(percent(&waiting, None, Some(&gone)), 5);
        assert_eq!(percent(&Task { step: Step::Failed, ..task }, None, Some(&gone)), 100);
        assert_eq!([Running, Stopping, Stopped].map(stop), [5, 50, 99]);
        let all = [Running, Stopping, Stopped, Deleting, Deleted];
        assert_eq!(all.map(delete), [5, 30, 50, 70, 99]);
    }
}
