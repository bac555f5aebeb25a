//! Guests on two servers reach each other, whatever happens to the processes that carry their packets.

use crate::bed::Check;
use bixi_lab::{Rack, stream::Report};
use bixi_tests::{Failure, Lease, Pair, Result, check, wait_for};
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

/// A stream, with the guests' offloads, goes on while both network processes are killed: no byte lost or changed.
fn tcp(rack: &Rack) -> Result<()> {
    let mut pair = Pair::start(rack, Lease::Handle)?;
    let mut guests = pair.boot()?;
    let address = pair.halves[1].guest.address;
    guests[1].sh("bixi-lab receive 5000 >/tmp/received 2>&1 &", LIMIT)?;
    guests[1].sh("until netstat -ltn | grep -q :5000; do :; done", LIMIT)?;
    let send = format!("bixi-lab send {address}:5000 --seconds 10 >/tmp/sent 2>&1 &");
    guests[0].sh(&send, LIMIT)?;
    for half in &mut pair.halves {
        half.card.network.kill()?;
        half.card.network.start()?;
    }
    let mut report = |guest: usize, file: &str| -> Result<Report> {
        let text = guests[guest].sh(&format!("wait; cat {file}"), Duration::from_secs(180))?;
        serde_json::from_str(&text).map_err(|e| Failure::new(format!("{file} says {text:?}: {e}")))
    };
    let (sent, received) = (report(0, "/tmp/sent")?, report(1, "/tmp/received")?);
    check!(received.wrong_at.is_none(), "{sent:?}, {received:?}");
    check!(sent.bytes == received.bytes && sent.bytes > 1 << 20, "{sent:?}, {received:?}");
    Ok(())
}
