//! A stock Linux boots, and finds the devices it was given.

use crate::bed::Check;
use bixi_api::compute::VmState;
use bixi_lab::Rack;
use bixi_tests::{Guest, GuestPlan, Kernel, Lease, Pair, Result, check};
use std::time::Duration;

pub const CHECKS: &[Check] = &[
    Check { name: "bzimage_with_disk_and_port", slow: false, run: bzimage },
    Check { name: "pvh_elf_with_two_vcpus", slow: false, run: pvh },
    Check { name: "many_devices", slow: false, run: many_devices },
];

const LIMIT: Duration = Duration::from_secs(60);

fn bzimage(rack: &Rack) -> Result<()> {
    let pair = Pair::start(rack, Lease::Handle)?;
    let half = &pair.halves[0];
    let plan = pair.plan(0, Kernel::BzImage);
    let mut guest = Guest::boot(&half.server, &plan, Lease::Handle)?;

    let description = guest.describe()?;
    check!(description.state == VmState::Running, "{description:?}");
    for kind in ["virtio-blk", "virtio-net", "virtio-rng"] {
        let device = description.devices.iter().find(|d| d.kind == kind);
        check!(device.is_some_and(|d| d.connected && d.driver_ok), "{kind}: {description:?}");
    }

    let release = guest.sh("uname -r", LIMIT)?;
    check!(release.ends_with("-cloud-amd64"), "{release}");
    check!(guest.sh("nproc", LIMIT)? == "1", "vCPUs");
    let sectors = guest.sh("cat /sys/block/vda/size", LIMIT)?;
    check!(sectors == ((64_u64 << 20) / 512).to_string(), "the disk has {sectors} sectors");
    let serial = guest.sh("cat /sys/block/vda/serial", LIMIT)?;
    check!(serial == half.guest.disk[2..], "the disk's serial is {serial}");
    let mac = guest.sh("cat /sys/class/net/eth0/address", LIMIT)?;
    check!(mac == half.guest.mac, "{mac}");
    let lease = guest.sh("cat /tmp/lease.eth0", LIMIT)?;
    for line in [format!("ip={}", half.guest.address), "mask=24".into(), "mtu=1500".into()] {
        check!(lease.lines().any(|l| l == line), "no {line} in the lease:\n{lease}");
    }
    let random = guest.sh("cat /sys/class/misc/hw_random/rng_current", LIMIT)?;
    check!(random.starts_with("virtio_rng"), "{random}");
    guest.sh("dd if=/dev/hwrng of=/tmp/random bs=64 count=4", LIMIT)?;
    let clock =
        guest.sh("cat /sys/devices/system/clocksource/clocksource0/current_clocksource", LIMIT)?;
    check!(["kvm-clock", "tsc"].contains(&clock.as_str()), "{clock}");
    // The kernel's own levels: emergency to error.
    let problems = guest.sh("dmesg -r | grep '^<[0-3]>' || true", LIMIT)?;
    check!(problems.is_empty(), "the guest's kernel complains: {problems}");

    let statistics = guest.statistics()?;
    check!(statistics.vcpus.len() == 1 && statistics.uptime_ns > 0, "{statistics:?}");
    check!(statistics.vcpus[0].exits.values().sum::<u64>() > 0, "{statistics:?}");
    check!(statistics.guest_resident_bytes > 16 << 20, "{statistics:?}");

    guest.console.send(b"poweroff -f\n")?;
    let code = guest.wait_end(LIMIT)?;
    check!(code == Some(0), "the VMM ended with {code:?}: {}", guest.logged());
    let left = half.server.sh(&format!("ls /run/bixi/vm/{}", guest.id()))?;
    check!(!left.contains(".sock"), "sockets are left: {left}");
    Ok(())
}

fn pvh(rack: &Rack) -> Result<()> {
    let pair = Pair::start(rack, Lease::Handle)?;
    let plan = pair.plan(0, Kernel::Elf).cpus(2);
    let mut guest = Guest::boot(&pair.halves[0].server, &plan, Lease::Handle)?;
    check!(guest.sh("nproc", LIMIT)? == "2", "vCPUs");
    let queues = guest.sh("ls /sys/block/vda/mq | wc -l", LIMIT)?;
    check!(queues.trim() == "2", "the disk has {queues} queues");
    let report = guest.sh("bixi-lab load /dev/vda --seconds 3", LIMIT)?;
    check!(report.contains(r#""failures":[]"#), "{report}");
    // Both vCPUs work at once, each with its own timer.
    guest.sh("for c in 0 1; do taskset -c $c sleep 1 & done; wait", LIMIT)?;
    let interrupts = guest.sh("grep -c virtio /proc/interrupts", LIMIT)?;
    check!(interrupts.trim().parse().unwrap_or(0) >= 4, "MSI-X vectors: {interrupts}");
    Ok(())
}

/// Seventeen disks and eight interfaces, in the order of the configuration, behind bridges.
fn many_devices(rack: &Rack) -> Result<()> {
    let server = rack.server(1);
    let card = bixi_tests::Card::start(&server, Lease::Handle)?;
    card.segment(bixi_tests::SEGMENT, &Pair::segment(&server))?;
    let mut plan = GuestPlan::new("guest-many", Kernel::BzImage);
    for number in 1..=17 {
        let id = bixi_tests::disk_id(100 + number);
        plan = plan.disk(&id, &card.disk(&id, u64::from(number) << 20)?);
    }
    for number in 1..=8_u8 {
        let mac = format!("02:00:00:00:01:{number:02x}");
        let address = std::net::Ipv4Addr::new(192, 168, 7, 100 + number);
        let id = format!("eni-many-{number}");
        plan = plan.nic(&id, &card.port(&id, bixi_tests::SEGMENT, &mac, address)?, &mac);
    }
    let mut guest = Guest::boot(&server, &plan, Lease::Handle)?;
    // A driver takes its devices in bus order, which is the configuration's order.
    let sizes = guest.sh("cat /sys/block/vd?/size", LIMIT)?;
    let expected: Vec<String> = (1..=17_u64).map(|n| (n << 11).to_string()).collect();
    check!(sizes.split_whitespace().eq(expected.iter().map(String::as_str)), "{sizes}");
    let macs = guest.sh("cat /sys/class/net/eth?/address", LIMIT)?;
    let expected: Vec<String> = (1..=8).map(|n| format!("02:00:00:00:01:{n:02x}")).collect();
    check!(macs.split_whitespace().eq(expected.iter().map(String::as_str)), "{macs}");
    let addresses = guest.sh("ip -o addr | grep -c 'inet 192.168.7.10'", LIMIT)?;
    check!(addresses.trim() == "8", "{addresses} interfaces have their address");
    let report = guest.sh("bixi-lab load /dev/vdq --seconds 2", LIMIT)?;
    check!(report.contains(r#""failures":[]"#), "{report}");
    Ok(())
}
