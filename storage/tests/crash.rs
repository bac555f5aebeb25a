//! The process dies under load and comes back: the guest sees a stall and nothing else.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test says what it found by failing"
)]

mod rig;

use bixi_offload::failpoint::Point;
use rig::guest::Guest;
use rig::{DISK, Random, Rig, until};
use std::path::Path;
use std::time::{Duration, Instant};

const BLOCKS: usize = 2048;
const SIZE: u64 = BLOCKS as u64 * 4096;

fn boot(rig: &mut Rig, depth: usize, seed: u64) -> Guest {
    rig.start();
    rig.create(DISK, SIZE);
    rig.attach(DISK, 1).unwrap();
    Guest::boot(&rig.socket(DISK), BLOCKS, 2, depth, seed)
}

fn killed_at_random(root: Option<&Path>, times: u32, seed: u64) {
    let mut rig = Rig::new(root);
    let mut guest = boot(&mut rig, 32, seed);
    let mut random = Random(seed);
    for _ in 0..times {
        guest.pump_for(300);
        let until = Instant::now() + Duration::from_micros(random.below(20_000));
        while Instant::now() < until {
            guest.pump();
        }
        rig.kill();
        rig.launch(None);
    }
    guest.pump_for(2000);
    guest.verify_all();
    assert!(guest.stall < Duration::from_secs(10), "stalled for {:?}", guest.stall);
    let disk = rig.show(DISK);
    let attachment = disk.attachment.unwrap();
    assert!(attachment.locked && attachment.connected, "{attachment:?}");
    assert_eq!(attachment.statistics.errors, 0);
    assert!(rig.log().contains("requests taken over"), "no death met a request in flight");
    println!("{} requests, longest stall {:?}", guest.completed, guest.stall);
}

#[test]
fn killed_at_random_times_no_request_fails_and_no_write_is_lost() {
    killed_at_random(None, 20, 1);
}

#[test]
fn the_same_on_a_disk_in_memory() {
    let root = tempfile::tempdir_in("/dev/shm").unwrap();
    killed_at_random(Some(root.path()), 20, 2);
}

/// Runs a guest against processes that die at `point`, each a little later than the one before.
fn killed_at(point: Point, root: Option<&Path>) {
    let mut rig = Rig::new(root);
    let mut guest = boot(&mut rig, 16, 7);
    guest.pump_for(200);
    rig.kill();
    for passes in [1, 2, 5, 23, 111] {
        rig.launch(Some(&format!("{}:{passes}", point.name())));
        until("the process dies at the point", || {
            guest.pump();
            rig.has_ended()
        });
    }
    rig.launch(None);
    guest.pump_for(500);
    guest.verify_all();
}

#[test]
fn killed_at_each_point_of_the_ring_nothing_is_lost_or_answered_twice() {
    for point in Point::RING {
        killed_at(point, None);
    }
}

#[test]
fn killed_at_each_point_of_the_engine_nothing_is_lost_or_answered_twice() {
    use bixi_storage::engine::points::{AFTER_COMPLETION, AFTER_PUBLISH, AFTER_SUBMIT};
    for point in [AFTER_SUBMIT, AFTER_COMPLETION, AFTER_PUBLISH] {
        killed_at(point, None);
    }
}

#[test]
fn ended_in_good_order_the_successor_goes_on() {
    let mut rig = Rig::new(None);
    let mut guest = boot(&mut rig, 32, 3);
    for _ in 0..5 {
        guest.pump_for(200);
        assert_eq!(rig.end(), Some(0));
        assert!(!rig.path("control").exists());
        rig.launch(None);
    }
    guest.pump_for(200);
    guest.verify_all();
}

#[test]
fn a_guest_sees_the_same_device_after_each_death() {
    let mut rig = Rig::new(None);
    let guest = boot(&mut rig, 1, 4);
    let seen = || guest.keeper.with(|client| client.probed().cloned()).unwrap().unwrap();
    let first = seen();
    assert_eq!(first.rings, 2);
    assert_eq!(u64::from_le_bytes(first.config[..8].try_into().unwrap()), SIZE / 512);
    for starts in 2..5 {
        rig.kill();
        rig.start();
        let back = guest.keeper.with(move |client| client.wait_starts(starts, rig::PATIENCE));
        back.unwrap().unwrap();
        assert_eq!(seen(), first);
    }
}
