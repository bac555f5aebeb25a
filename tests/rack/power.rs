//! The life of a guest: reboot, power button, pause, reset, stop.

use crate::bed::Check;
use bixi_api::compute::VmState;
use bixi_lab::Rack;
use bixi_tests::{Guest, GuestPlan, Kernel, Lease, Pair, Result, check};
use std::time::Duration;

pub const CHECKS: &[Check] = &[
    Check { name: "the_guest_reboots_and_its_devices_work_again", slow: false, run: reboot },
    Check { name: "the_power_button_ends_it", slow: false, run: button },
    Check { name: "a_paused_guest_stands_still_and_goes_on", slow: false, run: pause },
    Check { name: "it_waits_for_start_and_obeys_reset_and_stop", slow: false, run: orders },
];

const LIMIT: Duration = Duration::from_secs(60);

fn reboot(rack: &Rack) -> Result<()> {
    let pair = Pair::start(rack, Lease::Handle)?;
    let plan = pair.plan(0, Kernel::BzImage);
    let mut guest = Guest::boot(&pair.halves[0].server, &plan, Lease::Handle)?;
    let work = "bixi-lab load /dev/vda --seconds 1 --seed";
    check!(guest.sh(&format!("{work} 1"), LIMIT)?.contains(r#""failures":[]"#), "first boot");
    let digest = guest.sh("bixi-lab load --digest /dev/vda", LIMIT)?;
    for round in 2..4 {
        guest.console.send(b"reboot -f\n")?;
        guest.login()?;
        let now = guest.sh("bixi-lab load --digest /dev/vda", LIMIT)?;
        check!(round > 2 || now == digest, "the disk changed over a reboot");
        let report = guest.sh(&format!("{work} {round}"), LIMIT)?;
        check!(report.contains(r#""failures":[]"#), "boot {round}: {report}");
        let address = guest.sh("cat /tmp/lease.eth0", LIMIT)?;
        check!(address.contains("ip="), "boot {round} has no lease");
    }
    check!(guest.describe()?.state == VmState::Running, "after two reboots");
    Ok(())
}

fn button(rack: &Rack) -> Result<()> {
    let plan = GuestPlan::new("guest-button", Kernel::Elf);
    let guest = Guest::boot(&rack.server(1), &plan, Lease::Handle)?;
    guest.order("power-button")?;
    let code = guest.wait_end(LIMIT)?;
    check!(code == Some(0), "the VMM ended with {code:?}");
    Ok(())
}

fn pause(rack: &Rack) -> Result<()> {
    let pair = Pair::start(rack, Lease::Handle)?;
    let plan = pair.plan(0, Kernel::BzImage).cpus(2);
    let server = &pair.halves[0].server;
    let mut guest = Guest::boot(server, &plan, Lease::Handle)?;
    guest.sh("bixi-lab load /dev/vda --seconds 12 >/tmp/load 2>&1 &", LIMIT)?;
    for _ in 0..3 {
        let paused = guest.order("pause")?;
        check!(paused.state == VmState::Paused, "{:?}", paused.state);
        let before = guest.statistics()?;
        let disk = pair.halves[0].card.describe_disk(&pair.halves[0].guest.disk)?;
        // Time passes in the server; the guest must not notice any of it.
        server.sh("sleep 1")?;
        let after = guest.statistics()?;
        let later = pair.halves[0].card.describe_disk(&pair.halves[0].guest.disk)?;
        check!(before.vcpus == after.vcpus, "a paused guest ran: {before:?}, {after:?}");
        let writes = |d: &bixi_api::storage::DiskDescription| {
            d.attachment.as_ref().map(|a| a.statistics.writes)
        };
        check!(writes(&disk) == writes(&later), "a paused guest's disk was written");
        let resumed = guest.order("resume")?;
        check!(resumed.state == VmState::Running, "{:?}", resumed.state);
        guest.sh("true", LIMIT)?;
    }
    let report = guest.sh("wait; cat /tmp/load", LIMIT)?;
    check!(report.contains(r#""failures":[]"#), "{report}");
    Ok(())
}

fn orders(rack: &Rack) -> Result<()> {
    let server = rack.server(1);
    let mut plan = GuestPlan::new("guest-orders", Kernel::BzImage).argument("bixi.no-network");
    plan.config.autostart = false;
    let mut guest = Guest::start(&server, &plan, Lease::Handle)?;
    guest.wait_state(VmState::Built)?;
    // What the state does not allow is refused, and changes nothing.
    for verb in ["pause", "resume"] {
        let refused = guest.order(verb);
        check!(refused.is_err(), "{verb} before start: {refused:?}");
    }
    check!(guest.order("start")?.state == VmState::Running, "after start");
    guest.login()?;
    guest.order("reset")?;
    guest.login()?;
    // What is asked for is so already: no change, no refusal.
    check!(guest.order("start")?.state == VmState::Running, "started twice");
    // A console that reconnects gets what it missed.
    guest.reconnect()?;
    guest.console.wait_for("bixi-guest: ready", LIMIT)?;
    let stopped = guest.order("stop")?;
    check!(stopped.state == VmState::Stopped, "{:?}", stopped.state);
    let code = guest.wait_end(LIMIT)?;
    check!(code == Some(0), "the VMM ended with {code:?}");
    Ok(())
}
