//! Guests on two servers reach each other, whatever happens to the processes that carry their packets.

use crate::bed::Check;
use bixi_lab::Rack;
use bixi_tests::{Failure, Guest, Lease, Pair, Result, check, wait_for};
use std::time::Duration;

pub const CHECKS: &[Check] = &[
    Check { name: "two_servers_reach_each_other_and_survive_kills", slow: false, run: pair },
    Check { name: "a_foreign_source_is_dropped", slow: false, run: spoof },
    Check { name: "tcp_survives_a_kill", slow: false, run: tcp },
];

const LIMIT: Duration = Duration::from_secs(90);

fn pair(rack: &Rack) -> Result<()> {
    let mut pair = Pair::start(rack, Lease::Handle)?;
    let mut guests = pair.boot()?;
    let addresses: Vec<_> = pair.halves.iter().map(|h| h.guest.address).collect();
    for (from, to) in [(0, 1), (1, 0)] {
        // Small packets, and the largest that fit the MTU without fragments.
        for size in [56, 1472] {
            guests[from].sh(&format!("ping -c 3 -W 5 -s {size} {}", addresses[to]), LIMIT)?;
        }
    }
    // The card answers for the gateway, though nothing is behind it yet.
    guests[0].sh("arping -c 2 -w 10 -I eth0 192.168.7.254", LIMIT)?;
    for half in 0..2 {
        let before = pair.halves[half].card.network.pid();
        pair.halves[half].card.network.kill()?;
        pair.halves[half].card.network.start()?;
        check!(pair.halves[half].card.network.pid() != before, "it is the same process");
        let ping = format!("ping -c 2 -W 5 {}", addresses[1]);
        wait_for("a ping after a kill", LIMIT, || {
            Ok(guests[0].console.run(&ping, LIMIT)?.1.eq(&0).then_some(()))
        })?;
    }
    for (guest, half) in guests.iter().zip(&pair.halves) {
        let description = guest.describe()?;
        let nic = description.devices.iter().find(|d| d.kind == "virtio-net");
        check!(nic.is_some_and(|d| d.connected && d.reconnects >= 1), "{description:?}");
        let port = half.card.describe_port(&half.guest.port)?;
        check!(port.connected && port.statistics.received > 0, "{port:?}");
    }
    Ok(())
}

fn spoof(rack: &Rack) -> Result<()> {
    let pair = Pair::start(rack, Lease::Handle)?;
    let mut guests = pair.boot()?;
    let other = pair.halves[1].guest.address;
    guests[0].sh(&format!("ping -c 1 -W 5 {other}"), LIMIT)?;
    let before = pair.halves[0].card.describe_port(&pair.halves[0].guest.port)?.statistics.spoofed;
    // Another address, then another hardware address: neither gets through.
    guests[0].sh("ip addr add 192.168.7.77/24 dev eth0", LIMIT)?;
    let (_, code) =
        guests[0].console.run(&format!("ping -c 2 -W 2 -I 192.168.7.77 {other}"), LIMIT)?;
    check!(code != 0, "a foreign address got through");
    let mac = "ip link set eth0 down; ip link set eth0 address 02:00:00:00:00:99; \
               ip link set eth0 up; ip addr add 192.168.7.1/24 dev eth0; true";
    guests[0].sh(mac, LIMIT)?;
    let (_, code) = guests[0].console.run(&format!("ping -c 2 -W 2 {other}"), LIMIT)?;
    check!(code != 0, "a foreign hardware address got through");
    let port = pair.halves[0].card.describe_port(&pair.halves[0].guest.port)?;
    check!(port.statistics.spoofed > before, "not counted: {port:?}");
    Ok(())
}

/// A transfer with checksum and segmentation offload in both guests goes on while both network processes are killed.
fn tcp(rack: &Rack) -> Result<()> {
    let mut pair = Pair::start(rack, Lease::Handle)?;
    let mut guests = pair.boot()?;
    let address = pair.halves[1].guest.address;
    const BYTES: &str = "16000000";
    let sum = transfer(&mut guests, &address.to_string(), BYTES, || {
        for half in &mut pair.halves {
            half.card.network.kill()?;
            half.card.network.start()?;
        }
        Ok(())
    })?;
    check!(sum.0 == sum.1, "sent {}, received {}", sum.0, sum.1);
    Ok(())
}

/// Sends pseudo-random bytes from the first guest to the second; both checksums.
fn transfer(
    guests: &mut [Guest],
    address: &str,
    bytes: &str,
    meanwhile: impl FnOnce() -> Result<()>,
) -> Result<(String, String)> {
    guests[1].sh("nc -l -p 5000 </dev/null | md5sum >/tmp/sum &", LIMIT)?;
    let make = format!("head -c {bytes} /dev/urandom >/tmp/data; md5sum </tmp/data");
    let sent = guests[0].sh(&make, LIMIT)?;
    guests[0].sh(&format!("nc -w 60 {address} 5000 </tmp/data >/tmp/nc 2>&1 &"), LIMIT)?;
    meanwhile()?;
    guests[0].sh("wait", Duration::from_secs(180))?;
    let received = guests[1].sh("wait; cat /tmp/sum", Duration::from_secs(120))?;
    if received.is_empty() {
        return Err(Failure::new("nothing was received"));
    }
    Ok((sent, received))
}
