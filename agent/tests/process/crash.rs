//! The agent dies at every step of run, stop and delete, and starts again: the end is clean, and there was one VMM at most.

use crate::guest::ECHO;
use crate::rig::{DISK, Rig};
use bixi_api::agent::{DesiredInstance, InstanceState, Power, StopMode};
use std::time::{Duration, Instant};

/// Run, stop, delete, with an agent that dies at the `count`th pass of `point`. `false` if it did not.
fn life(point: &str, count: u32) -> bool {
    let Some(mut rig) = Rig::new() else { return false };
    let failpoint = format!("{point}:{count}");
    rig.start(Some(&failpoint));
    let mut wanted = rig.instance(ECHO);
    wanted.stop = StopMode::Forced;
    let mut died = 0;
    reach(&mut rig, &wanted, InstanceState::Running, &mut died);
    assert_eq!(rig.vmms().len(), 1, "{failpoint}");
    wanted.power = Power::Stopped;
    reach(&mut rig, &wanted, InstanceState::Stopped, &mut died);
    assert_eq!(rig.vmms().len(), 0, "{failpoint}");
    wanted.power = Power::Deleted;
    reach(&mut rig, &wanted, InstanceState::Deleted, &mut died);
    assert!(!rig.path("disks").join(DISK).exists() && !rig.path("run/vm/i-1").exists());
    assert_eq!(rig.processes("bixi-storage").len(), 1);
    assert_eq!(rig.processes("bixi-network").len(), 1);
    died > 0
}

/// Desires, and starts the agent again when it has died, until the instance is so.
fn reach(rig: &mut Rig, wanted: &DesiredInstance, state: InstanceState, died: &mut u32) {
    rig.desire(wanted);
    let revision = rig.cloud.revision();
    let deadline = Instant::now() + crate::cloud::DEADLINE;
    loop {
        if rig.has_died() {
            *died += 1;
            rig.cloud.forget_report();
            rig.start(None);
        }
        assert!(rig.vmms().len() <= 1, "two VMMs");
        let report = rig.cloud.report().filter(|report| report.applied == revision);
        let found =
            report.and_then(|report| report.instances.into_iter().find(|found| found.id == "i-1"));
        if found.is_some_and(|found| found.state == state) {
            return;
        }
        assert!(Instant::now() < deadline, "never {state:?}: {:#?}", rig.cloud.report());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Every point at which the agent can die, and how often a life passes it at least.
const POINTS: [(&str, u32); 7] = [
    ("agent.before-action", 9),
    ("agent.after-action", 8),
    ("agent.before-card", 10),
    ("agent.after-spawn", 1),
    ("agent.before-permission", 1),
    ("agent.after-permission", 1),
    ("agent.before-stop", 1),
];

fn every_pass_of(points: &[(&str, u32)]) {
    if crate::rig::programs().is_none() {
        return;
    }
    for (point, at_least) in points {
        let passes = (1..).take_while(|count| life(point, *count)).count() as u32;
        assert!(passes >= *at_least, "{point} was passed {passes} times");
    }
}

#[test]
fn no_point_is_left_out() {
    let all: Vec<&str> = bixi_agent::points::ALL.iter().map(|point| point.name()).collect();
    assert_eq!(all, POINTS.map(|(point, _)| point));
}

#[test]
fn before_every_action() {
    every_pass_of(&POINTS[..1]);
}

#[test]
fn after_every_action() {
    every_pass_of(&POINTS[1..2]);
}

#[test]
fn before_every_request_to_a_card() {
    every_pass_of(&POINTS[2..3]);
}

#[test]
fn within_a_start_and_before_a_stop() {
    every_pass_of(&POINTS[3..]);
}
