//! The storage process dies under load and comes back: a stall, never an error, and nothing acknowledged is lost.

use crate::bed::Check;
use bixi_api::compute::DeviceDescription;
use bixi_lab::{Rack, load::Report};
use bixi_tests::{Failure, Guest, Kernel, Lease, Pair, Result, check, wait_for};
use std::time::{Duration, Instant};

pub const CHECKS: &[Check] = &[
    Check { name: "killed_at_random_under_load", slow: false, run: killed_at_random },
    Check { name: "killed_at_each_named_point", slow: false, run: killed_at_each_point },
    Check { name: "absent_for_more_than_a_minute", slow: true, run: absent },
    Check { name: "survives_the_guest_and_the_epoch_fences", slow: false, run: epochs },
];

const LIMIT: Duration = Duration::from_secs(120);

/// Where a storage process can be told to die, by the names of its fail points.
const POINTS: &[&str] = &[
    "ring.after-take",
    "ring.before-used",
    "ring.after-used-before-idx",
    "ring.after-idx-before-inflight-clear",
    "ring.after-clear",
    "storage.after-submit",
    "storage.after-completion",
    "storage.after-publish",
];

fn start_load(guest: &mut Guest, seconds: u64) -> Result<()> {
    let work = format!("bixi-lab load /dev/vda --seconds {seconds} --threads 8 >/tmp/load 2>&1 &");
    guest.sh(&work, LIMIT).map(drop)
}

fn finish_load(guest: &mut Guest) -> Result<Report> {
    let text = guest.sh("wait; cat /tmp/load", LIMIT)?;
    let line = text.lines().last().unwrap_or_default();
    let report: Report = serde_json::from_str(line)
        .map_err(|e| Failure::new(format!("the load said {text:?}: {e}")))?;
    check!(report.failures.is_empty(), "{:?}", report.failures);
    check!(report.writes > 0, "nothing was written");
    let read = guest.sh("bixi-lab load --digest /dev/vda", LIMIT)?;
    check!(read == report.digest.to_string(), "written {}, read {read}", report.digest);
    let dmesg = guest.sh("dmesg | grep -iE 'I/O error|hung task|blocked for' || true", LIMIT)?;
    check!(dmesg.is_empty(), "the guest saw an error: {dmesg}");
    Ok(report)
}

fn killed_at_random(rack: &Rack) -> Result<()> {
    let mut pair = Pair::start(rack, Lease::Handle)?;
    let plan = pair.plan(0, Kernel::BzImage).cpus(2);
    let mut guest = Guest::boot(&pair.halves[0].server, &plan, Lease::Handle)?;
    start_load(&mut guest, 25)?;
    let end = Instant::now() + Duration::from_secs(20);
    let mut kills = 0_u64;
    while Instant::now() < end {
        // Any instant is as good as another; these differ.
        std::thread::sleep(Duration::from_millis(200 + (kills * 379) % 900));
        pair.halves[0].card.storage.kill()?;
        pair.halves[0].card.storage.start()?;
        kills += 1;
        // A kill before the front end is back would test less than this one.
        wait_for("the front end's return", LIMIT, || {
            let devices = guest.describe()?.devices;
            let back = |d: &DeviceDescription| d.kind == "virtio-blk" && d.reconnects >= kills;
            Ok(devices.iter().any(|d| back(d) && d.connected).then_some(()))
        })?;
    }
    check!(kills > 3, "only {kills} kills: the test is too weak");
    finish_load(&mut guest)?;
    let description = guest.describe()?;
    let disk = description.devices.iter().find(|d| d.kind == "virtio-blk");
    check!(disk.is_some_and(|d| d.connected && d.reconnects >= kills), "{description:?}");
    Ok(())
}

fn killed_at_each_point(rack: &Rack) -> Result<()> {
    let mut pair = Pair::start(rack, Lease::Handle)?;
    let plan = pair.plan(0, Kernel::Elf).cpus(2);
    let mut guest = Guest::boot(&pair.halves[0].server, &plan, Lease::Handle)?;
    let storage = &mut pair.halves[0].card.storage;
    for (number, point) in POINTS.iter().enumerate() {
        // At the very first descriptor, and in the middle of the work.
        let armed = format!("{point}:{}", if number % 2 == 0 { 1 } else { 40 });
        storage.kill()?;
        storage.start_with(&[("BIXI_FAILPOINT", &armed)])?;
        start_load(&mut guest, 2)?;
        let ended = storage
            .wait_end(Duration::from_secs(60))
            .map_err(|e| Failure::new(format!("{armed} never fired: {e}")))?;
        check!(ended.signal == Some(9), "{armed}: {ended:?}: {}", storage.logged());
        storage.start()?;
        finish_load(&mut guest).map_err(|e| Failure::new(format!("{armed}: {e}")))?;
    }
    Ok(())
}

fn absent(rack: &Rack) -> Result<()> {
    let mut pair = Pair::start(rack, Lease::Handle)?;
    let plan = pair.plan(0, Kernel::BzImage);
    let mut guest = Guest::boot(&pair.halves[0].server, &plan, Lease::Handle)?;
    start_load(&mut guest, 5)?;
    std::thread::sleep(Duration::from_secs(1));
    pair.halves[0].card.storage.kill()?;
    pair.halves[0].card.network.kill()?;
    std::thread::sleep(Duration::from_secs(75));
    // The guest lives on, but for its disk and network.
    guest.sh("true", LIMIT)?;
    pair.halves[0].card.storage.start()?;
    pair.halves[0].card.network.start()?;
    let report = finish_load(&mut guest)?;
    check!(report.longest_ms > 70_000, "the stall took {} ms", report.longest_ms);
    Ok(())
}

/// A disk's contents outlive the guest, and a lower epoch is refused.
fn epochs(rack: &Rack) -> Result<()> {
    let mut pair = Pair::start(rack, Lease::Handle)?;
    let plan = pair.plan(0, Kernel::BzImage);
    let server = pair.halves[0].server.clone();
    let id = pair.halves[0].guest.disk.clone();
    let mut guest = Guest::boot(&server, &plan, Lease::Handle)?;
    start_load(&mut guest, 2)?;
    let report = finish_load(&mut guest)?;
    guest.order("stop")?;
    guest.wait_end(LIMIT)?;

    let card = &mut pair.halves[0].card;
    card.detach(&id)?;
    card.attach(&id, 5)?;
    check!(card.describe_disk(&id)?.epoch == 5, "the epoch is not kept");
    card.detach(&id)?;
    let lower = card.attach(&id, 4);
    check!(
        matches!(&lower, Err(Failure::Control(e)) if e.to_string().contains("epoch")),
        "{lower:?}"
    );
    card.storage.kill()?;
    card.storage.start()?;
    check!(card.describe_disk(&id)?.epoch == 5, "the epoch did not survive a kill");
    check!(card.attach(&id, 4).is_err(), "a lower epoch is accepted after a kill");
    card.attach(&id, 5)?;

    let mut guest = Guest::boot(&server, &plan, Lease::Handle)?;
    let read = guest.sh("bixi-lab load --digest /dev/vda", LIMIT)?;
    check!(read == report.digest.to_string(), "another guest reads {read}, not {}", report.digest);
    Ok(())
}
