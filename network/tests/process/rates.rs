//! Ports with limits: what is sent over them comes later, what is received over them is dropped and counted.

use crate::guest::{Guest, Shape, udp};
use crate::server::{Server, refused, wait_for};
use bixi_api::network::{PortAdd, PortDescription, PortLimits};
use std::time::Instant;

fn packets(n: u64) -> PortLimits {
    PortLimits { packets_per_second: Some(n), ..PortLimits::NONE }
}

/// Limits port number `n`, new or in use.
fn limit(server: &Server, n: u8, limits: PortLimits) -> PortAdd {
    let add = PortAdd { limits, ..server.port(n, 1) };
    let put = server.put::<PortDescription>(&format!("/v1/ports/p{n}"), &add).unwrap();
    assert_eq!(put.port, add);
    add
}

/// Sends 60 frames from `a` to `b` through a port that may send 100 a second and 10 at once, and sees all of them come, none
/// too soon. `full` is when the bucket was last known to be full.
fn come_late(a: &mut Guest, b: &mut Guest, full: Instant) {
    for n in 0..60 {
        a.send_plain(&udp(1, 2, 1000, &[n]));
    }
    for n in 0..60u8 {
        assert_eq!(b.receive(0).1[42], n, "lost or out of order");
        let most = 10.0 + 100.0 * full.elapsed().as_secs_f64();
        assert!(f64::from(n) + 1.0 <= most, "frame {n} where {most} may be");
    }
    a.drain(0);
}

#[test]
fn what_is_sent_over_the_limit_comes_late_but_all_of_it_also_from_a_successor() {
    let mut server = Server::start(&[]);
    let full = Instant::now();
    let limited = limit(&server, 1, packets(100));
    let open = server.add_port(2, 1);
    let mut a = Guest::connect(&limited.socket, &Shape::default());
    let mut b = Guest::connect(&open, &Shape::default());
    come_late(&mut a, &mut b, full);
    assert!(server.statistics(1).transmit_limited > 0);

    server.kill();
    let full = Instant::now();
    server.restart();
    assert_eq!(server.describe(1).port, limited);
    a.wait_starts(2);
    b.wait_starts(2);
    come_late(&mut a, &mut b, full);
    assert_eq!((server.statistics(1).sent, server.statistics(2).received), (60, 60));

    // The other direction is limited by itself, and drops.
    let full = Instant::now() - std::time::Duration::from_secs(1);
    for _ in 0..150 {
        b.send_plain(&udp(2, 1, 1000, b"x"));
    }
    b.drain(0);
    let seen = wait_for("all to be counted", || {
        let seen = server.statistics(1);
        (seen.received + seen.receive_limited == 150).then_some(seen)
    });
    let most = 10.0 + 100.0 * full.elapsed().as_secs_f64();
    assert!(seen.receive_limited > 0 && seen.received >= 10, "{seen:?}");
    assert!(seen.received as f64 <= most, "{} of {most}", seen.received);
    assert_eq!(seen.no_buffer, 0);
}

#[test]
fn limits_change_under_a_port_in_use() {
    let mut server = Server::start(&[]);
    // A byte a second: hours for each frame.
    let still = PortLimits { bits_per_second: Some(8), ..PortLimits::NONE };
    let limited = limit(&server, 1, still);
    let open = server.add_port(2, 1);
    let mut a = Guest::connect(&limited.socket, &Shape::default());
    let mut b = Guest::connect(&open, &Shape::default());
    for n in 0..40 {
        a.send_plain(&udp(1, 2, 1000, &[n]));
    }
    assert_eq!(b.receive(0).1[42], 0);
    wait_for("the rest to wait", || (server.statistics(1).transmit_limited > 0).then_some(()));
    let changed = limit(&server, 1, packets(1_000_000));
    for n in 1..40 {
        assert_eq!(b.receive(0).1[42], n);
    }
    assert_eq!(a.starts(), 1, "in the same session");
    server.kill();
    server.restart();
    assert_eq!(server.describe(1).port, changed);
}

#[test]
fn limits_are_given_and_shown_by_the_command_line() {
    let server = Server::start(&[]);
    let socket = server.path("p1.sock");
    let add = |more: &[&str]| {
        let line = ["port", "add", "p1", "--epoch", "1", "--segment", "7", "--allow-unsealed"];
        let rest = ["--mac", "02:00:00:00:00:01", "--ipv4", "10.0.0.1", "--socket"];
        let path = [socket.to_str().unwrap()];
        server.command(&[&line[..], &rest, &path, more].concat())
    };
    let said = add(&["--packets-per-second", "0"]);
    let text = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(!said.status.success() && text.contains("left out"), "{text}");
    let wrong = PortAdd { limits: packets(0), ..server.port(1, 1) };
    assert_eq!(refused(server.put::<PortDescription>("/v1/ports/p1", &wrong)).code, "BadLimit");
    for (more, shown) in [
        (
            &["--packets-per-second", "300000", "--bits-per-second", "1000000000"][..],
            "300000 packets/s,1000000000 bit/s\n",
        ),
        (&["--packets-per-second", "20"], " 20 packets/s\n"),
        (&[], " -\n"),
    ] {
        assert!(add(more).status.success());
        let output = server.command(&["port", "show", "p1"]).stdout;
        let output = String::from_utf8_lossy(&output).into_owned();
        let line = output.split_inclusive('\n').find(|line| line.starts_with("limits ")).unwrap();
        assert!(line.ends_with(shown), "{line}");
    }
}
