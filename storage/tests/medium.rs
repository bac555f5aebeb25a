//! File systems that are full, have large sectors, or do not answer. Need root, loop devices and ext4's tools; without
//! them they say so and are skipped.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test says what it found by failing"
)]

mod rig;

use rig::guest::Guest;
use rig::mount::{Frozen, Mount};
use rig::plain::Plain;
use rig::{DISK, Random, Rig, until};
use std::fs;
use std::time::{Duration, Instant};

/// Gives the mount, or says why the test is skipped and leaves it.
macro_rules! mount {
    ($mount:expr) => {
        match $mount {
            Ok(mount) => mount,
            Err(why) => {
                println!("SKIPPED: {why}");
                return;
            }
        }
    };
}

fn full(mount: &Mount) {
    let mut rig = Rig::new(Some(&mount.path().join("disks")));
    rig.start();
    rig.create(DISK, 64 << 20);
    rig.attach(DISK, 1).unwrap();
    let filler = mount.path().join("filler");
    fs::write(&filler, vec![1; 4 << 20]).unwrap();
    let mut guest = Plain::connect(&rig.socket(DISK));
    let text = |at: u64| vec![at as u8 | 1; 64 << 10];
    let mut written = 0;
    while guest.write(written * 128, &text(written)) == 0 {
        written += 1;
        assert!(written < 1024, "the file system never fills");
    }
    assert!(written > 16);
    // Errors, and nothing else: what was written is there, zeroes are refused or written, the session lives.
    let _ = guest.flush();
    for at in 0..written {
        assert!(guest.read(at * 128, 64 << 10) == (0, text(at)), "{at}");
    }
    assert_eq!(guest.write(written * 128, &text(written)), 1);
    assert!(rig.show(DISK).attachment.unwrap().statistics.errors >= 2);

    fs::remove_file(&filler).unwrap();
    until("space is there again", || guest.write(written * 128, &text(written)) == 0);
    assert_eq!(guest.flush(), 0);
    assert!(guest.read(written * 128, 64 << 10) == (0, text(written)));
    // A discard gives space back.
    assert_eq!(guest.range(11, 0, (written * 128) as u32), 0);
    assert_eq!(guest.flush(), 0);
    until("the space of the discard is there", || fs::write(&filler, vec![1; 3 << 20]).is_ok());
    assert!(guest.read(written * 128, 64 << 10) == (0, text(written)));
}

#[test]
fn a_full_file_system_is_an_error_and_works_again_when_it_is_not_full() {
    full(&mount!(Mount::ext4(24 << 20, 512)));
}

#[test]
fn a_full_memory_is_an_error_and_works_again_when_it_is_not_full() {
    full(&mount!(Mount::tmpfs(16 << 20)));
}

#[test]
fn a_device_with_4_kib_sectors_serves_512_byte_requests() {
    let mount = mount!(Mount::ext4(64 << 20, 4096));
    let mut rig = Rig::new(Some(&mount.path().join("disks")));
    rig.start();
    rig.create(DISK, 8 << 20);
    rig.attach(DISK, 1).unwrap();
    let log = rig.log();
    assert!(log.contains("access=\"direct\""), "{log}");
    let mut guest = Plain::connect(&rig.socket(DISK));
    let mut model = vec![0u8; 8 << 20];
    let mut random = Random(3);
    for round in 0..400u64 {
        let sector = random.below(2000);
        let sectors = 1 + random.below(24);
        let range = (sector * 512) as usize..((sector + sectors) * 512) as usize;
        match random.below(5) {
            0 => {
                assert_eq!(guest.range(13, sector, sectors as u32), 0);
                model[range].fill(0);
            }
            1 | 2 => {
                let text: Vec<u8> = range.clone().map(|at| (at as u64 ^ round) as u8).collect();
                assert_eq!(guest.write(sector, &text), 0);
                model[range].copy_from_slice(&text);
            }
            _ => {
                let (status, bytes) = guest.read(sector, range.len());
                assert!(status == 0 && bytes == model[range], "sector {sector}");
            }
        }
    }
    assert_eq!(guest.flush(), 0);
}

#[test]
fn killed_under_load_a_device_with_4_kib_sectors_loses_nothing() {
    let mount = mount!(Mount::ext4(64 << 20, 4096));
    let mut rig = Rig::new(Some(&mount.path().join("disks")));
    rig.start();
    rig.create(DISK, 2 << 20);
    rig.attach(DISK, 1).unwrap();
    let mut guest = Guest::boot(&rig.socket(DISK), 512, 2, 16, 21);
    for _ in 0..6 {
        guest.pump_for(200);
        rig.kill();
        rig.launch(None);
    }
    guest.pump_for(500);
    guest.verify_all();
}

/// A guest whose requests in flight all wait for the medium.
fn stuck(guest: &mut Guest) {
    let mut quiet = Instant::now();
    while quiet.elapsed() < Duration::from_millis(300) {
        if guest.pump() > 0 {
            quiet = Instant::now();
        }
    }
}

/// A process with a disk on this file system, and its guest.
fn started(root: &Mount) -> (Rig, Guest) {
    let mut rig = Rig::new(Some(&root.path().join("disks")));
    rig.start();
    rig.create(DISK, 8 << 20);
    rig.attach(DISK, 1).unwrap();
    let mut guest = Guest::boot(&rig.socket(DISK), 2048, 2, 16, 5);
    (guest.holes, guest.flushes) = (false, false);
    guest.pump_for(500);
    (rig, guest)
}

/// The lock is not to be had, however often one looks.
fn not_locked(rig: &Rig) {
    let until = Instant::now() + Duration::from_millis(500);
    while Instant::now() < until {
        let attachment = rig.show(DISK).attachment.unwrap();
        assert!(!attachment.locked, "the lock was taken from under the dead one's writes");
    }
}

/// What the writer lock is for: a successor that replays must not begin while a write of the dead process can still
/// reach the medium. Here the file system holds such writes back for as long as the test likes; the kernel cannot even
/// end the dead process, since its helper threads wait inside the file system.
#[test]
fn a_successor_waits_until_the_dead_ones_writes_have_ended() {
    let mount = mount!(Mount::ext4(96 << 20, 512));
    let (mut rig, mut guest) = started(&mount);
    let frozen = mount!(Frozen::freeze(&mount.path()));
    stuck(&mut guest);
    let mut dead = rig.kill_only();
    rig.start();
    not_locked(&rig);
    assert!(dead.try_wait().unwrap().is_none(), "the dead one had nothing under way");

    drop(frozen);
    dead.wait().unwrap();
    until("the lock is held", || rig.show(DISK).attachment.unwrap().locked);
    guest.pump_for(500);
    guest.verify_all();
    assert!(rig.show(DISK).attachment.unwrap().statistics.replayed > 0);
}
