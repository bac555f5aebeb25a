//! Disks with limits, in a real process: never faster than they may be, and nobody else the slower.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test says what it found by failing"
)]

mod rig;

use bixi_api::storage::{DiskAttach, DiskLimits};
use rig::guest::Guest;
use rig::{DISK, Rig, code};
use std::time::{Duration, Instant};

const OTHER: &str = "d-zyxwvutsrq9876543210";
const BLOCKS: usize = 512;
/// Requests in flight of a guest: two queues.
const DEPTH: usize = 8;
const IN_FLIGHT: u64 = 2 * DEPTH as u64;
/// A limit that takes a while, and its burst.
const IOPS: u64 = 200;
const BURST: u64 = 20;

fn iops(iops: u64) -> DiskLimits {
    DiskLimits { iops: Some(iops), ..DiskLimits::NONE }
}

/// A process with `workers` workers and disks in memory: a slow medium is not to be taken for a limit.
fn rig(workers: &str) -> (Rig, tempfile::TempDir) {
    let root = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut rig = Rig::new(Some(root.path()));
    rig.workers(workers);
    rig.start();
    for id in [DISK, OTHER] {
        rig.create(id, BLOCKS as u64 * 4096);
    }
    (rig, root)
}

fn attachment(rig: &Rig, epoch: u64, limits: DiskLimits) -> DiskAttach {
    DiskAttach { limits, ..rig.attachment(DISK, epoch) }
}

/// A guest whose requests all count.
fn boot(rig: &Rig, id: &str, seed: u64) -> Guest {
    let mut guest = Guest::boot(&rig.socket(id), BLOCKS, 2, DEPTH, seed);
    guest.flushes = false;
    guest
}

/// Asserts that a disk has not answered more than a full bucket and the time since allow.
fn within(answered: u64, began: Instant) {
    let most = BURST as f64 + IOPS as f64 * began.elapsed().as_secs_f64();
    assert!(answered as f64 <= most, "{answered} answered where {most} may be");
}

/// Seconds of processor time that a process has used.
fn processor_time(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|n| n.parse::<u64>().unwrap()).sum();
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

#[test]
fn a_limited_disk_is_held_back_and_its_neighbour_on_the_same_worker_is_not() {
    for workers in ["1", "2"] {
        let (rig, _root) = rig(workers);
        let began = Instant::now();
        rig.attach_as(DISK, &attachment(&rig, 1, iops(IOPS))).unwrap();
        rig.attach(OTHER, 1).unwrap();
        let (mut slow, mut fast) = (boot(&rig, DISK, 1), boot(&rig, OTHER, 2));
        while slow.completed < 100 {
            slow.pump();
            within(slow.completed, began);
            fast.pump();
        }
        let (one, other) = (slow.completed, fast.completed);
        assert!(other > 5 * one, "{one} of the limited disk, {other} of its neighbour");
        assert_eq!(rig.show(OTHER).attachment.unwrap().statistics.limited, 0);
        assert!(rig.show(DISK).attachment.unwrap().statistics.limited > 20);
        fast.verify_all();

        // Who waits for time to pass sleeps.
        let (used, from, count) = (processor_time(rig.pid()), Instant::now(), slow.completed);
        slow.pump_for(100);
        let (used, passed) = (processor_time(rig.pid()) - used, from.elapsed());
        within(slow.completed, began);
        assert!(used < passed.as_secs_f64() / 2.0, "{used} s of processor time in {passed:?}");
        println!("{workers} workers: {count} + 100 requests, {used} s of {passed:?} used");
        slow.verify_all();
        within(slow.completed, began);
    }
}

#[test]
fn a_limit_outlives_the_process() {
    let (mut rig, _root) = rig("2");
    rig.attach_as(DISK, &attachment(&rig, 1, iops(IOPS))).unwrap();
    let mut guest = boot(&rig, DISK, 3);
    guest.pump_for(60);
    for _ in 0..3 {
        rig.kill();
        // Each process begins with a full bucket; what the last one has answered may be seen only now.
        let (began, before) = (Instant::now(), guest.completed + IN_FLIGHT);
        rig.start();
        assert_eq!(rig.show(DISK).attachment.unwrap().attach.limits, iops(IOPS));
        for _ in 0..80 {
            guest.pump_for(1);
            within(guest.completed.saturating_sub(before), began);
        }
    }
    // Ended in good order while requests are held back: they are the successor's.
    assert_eq!(rig.end(), Some(0));
    rig.start();
    guest.pump_for(40);
    rig.attach_as(DISK, &attachment(&rig, 1, DiskLimits::NONE)).unwrap();
    guest.verify_all();
    assert_eq!(rig.show(DISK).attachment.unwrap().statistics.errors, 0);
}

#[test]
fn a_limit_changes_under_a_disk_in_use() {
    let (mut rig, _root) = rig("2");
    // A byte a second: whatever waits, waits for hours.
    let still = DiskLimits { bytes_per_second: Some(1), ..DiskLimits::NONE };
    rig.attach_as(DISK, &attachment(&rig, 1, still)).unwrap();
    let mut guest = boot(&rig, DISK, 4);
    guest.pump_for(1);
    let changed = rig.attach_as(DISK, &attachment(&rig, 1, iops(1_000_000))).unwrap();
    assert_eq!(changed.attachment.unwrap().attach.limits, iops(1_000_000));
    guest.pump_for(500);
    // What was changed is what is written down.
    rig.kill();
    rig.start();
    assert_eq!(rig.show(DISK).attachment.unwrap().attach.limits, iops(1_000_000));
    guest.pump_for(500);

    // Whoever waits for a limit holds up no end: its requests stay in the ring, and the next one has them.
    rig.attach_as(DISK, &attachment(&rig, 1, still)).unwrap();
    let stuck = guest.completed + IN_FLIGHT + 1;
    let until = Instant::now() + Duration::from_millis(200);
    while Instant::now() < until {
        guest.pump();
    }
    assert!(guest.completed <= stuck, "{} of {stuck}", guest.completed);
    rig.detach(DISK).unwrap();
    rig.attach_as(DISK, &attachment(&rig, 2, DiskLimits::NONE)).unwrap();
    guest.pump_for(500);
    guest.verify_all();
    assert_eq!(rig.show(DISK).attachment.unwrap().statistics.errors, 0);
}

#[test]
fn limits_are_given_and_shown_by_the_command_line() {
    let (rig, _root) = rig("1");
    let (control, socket) = (rig.path("control"), rig.socket(DISK));
    let (control, socket) = (control.to_str().unwrap(), socket.to_str().unwrap());
    let attach = |more: &[&str]| {
        let line = ["disk", "attach", DISK, "--epoch", "1", "--socket", socket];
        rig.run(&[&line[..], &["--control", control], more].concat())
    };
    let (status, _, said) = attach(&["--iops", "0"]);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("1 to") && said.contains("left out"), "{said}");
    let wrong = attachment(&rig, 1, iops(0));
    assert_eq!(code(rig.attach_as(DISK, &wrong)), "BadLimit");
    for (more, shown) in [
        (&["--iops", "300", "--bytes-per-second", "10M"][..], "limits        300 IOPS, 10 MiB/s\n"),
        (&["--iops", "20"], "limits        20 IOPS\n"),
        (&[], "limits        none\n"),
    ] {
        let (status, _, said) = attach(more);
        assert_eq!(status, Some(0), "{said}");
        let (_, output, _) = rig.run(&["disk", "show", DISK, "--control", control]);
        assert!(output.contains(shown), "{output}");
    }
    // Anything else still needs a detach.
    let other = DiskAttach { queues: 1, ..attachment(&rig, 1, iops(20)) };
    assert_eq!(code(rig.attach_as(DISK, &other)), "DiskInUse");
}
