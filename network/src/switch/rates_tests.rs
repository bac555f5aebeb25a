//! Ports with limits. Time is the real one: what is asserted is that nothing is faster than it may be.

use super::rig::Rig;
use super::tests::{ALL, counters, leave_checksum, pattern, tcp, udp};
use crate::packet::offload::Segmentation;
use bixi_api::network::PortLimits;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(30);

fn packets(n: u64) -> PortLimits {
    PortLimits { packets_per_second: Some(n), ..PortLimits::NONE }
}

/// Runs the switch until guest 2 has received `count` frames.
fn receive(rig: &mut Rig, count: usize) -> Vec<Vec<u8>> {
    let (began, mut frames) = (Instant::now(), Vec::new());
    while frames.len() < count {
        rig.run().unwrap();
        frames.extend(rig.guests[1].receive(0).into_iter().map(|(_, frame)| frame));
        assert!(began.elapsed() < PATIENCE, "{} of {count} came", frames.len());
    }
    frames
}

#[test]
fn what_a_guest_sends_over_its_limit_waits_in_order_and_nothing_is_lost() {
    let mut rig = Rig::with_guests(&[(ALL, 2), (ALL, 1)]);
    rig.guests[1].fill(0, 128, &[2048]);
    let began = Instant::now();
    rig.limit(0, packets(100));
    // Two queues of one port share what it may.
    for n in 0..15u8 {
        rig.guests[0].send(0, &[], &udp(1, 2, 1, &[n]), &[]);
        rig.guests[0].send(1, &[], &udp(1, 2, 2, &[n]), &[]);
    }
    let mut frames = Vec::new();
    while frames.len() < 30 {
        frames.extend(receive(&mut rig, 1));
        let most = 10.0 + 100.0 * began.elapsed().as_secs_f64();
        assert!(frames.len() as f64 <= most, "{} of {most} frames", frames.len());
    }
    for port in [1, 2] {
        let of_port = frames.iter().filter(|frame| frame[35] == port).map(|frame| frame[42]);
        assert!(of_port.eq(0..15), "out of order");
    }
    let (sent, came) = (counters(&rig, 0), counters(&rig, 1));
    assert_eq!((sent.sent, came.received, sent.malformed), (30, 30, 0));
    assert!(sent.transmit_limited > 0);
    for pair in 0..2 {
        rig.guests[0].pairs[pair].transmit.take_all(|_| {}).unwrap();
        assert_eq!(rig.guests[0].pairs[pair].transmit.in_flight(), 0);
    }
}

#[test]
fn what_comes_for_a_guest_over_its_limit_is_dropped_and_counted() {
    let mut rig = Rig::with_guests(&[(ALL, 1), (ALL, 1), (ALL, 1)]);
    rig.guests[1].fill(0, 128, &[2048]);
    rig.guests[2].fill(0, 128, &[2048]);
    let began = Instant::now();
    rig.limit(1, packets(50));
    for n in 0..60u8 {
        rig.guests[0].send(0, &[], &udp(1, 2, 1, &[n]), &[]);
        rig.guests[0].send(0, &[], &udp(1, 3, 1, &[n]), &[]);
    }
    rig.run().unwrap();
    let most = 5.0 + 50.0 * began.elapsed().as_secs_f64();
    let seen = counters(&rig, 1);
    assert!(seen.received >= 5 && seen.received as f64 <= most, "{} of {most}", seen.received);
    assert_eq!(seen.received + seen.receive_limited, 60);
    assert_eq!(rig.guests[1].receive(0).len() as u64, seen.received);
    // The neighbour gets all, and the sender is not held back.
    assert_eq!((counters(&rig, 2).received, counters(&rig, 2).receive_limited), (60, 0));
    assert_eq!((counters(&rig, 0).sent, counters(&rig, 0).transmit_limited), (120, 0));
}

#[test]
fn a_large_packet_counts_as_those_it_is_cut_into() {
    let mut rig = Rig::with_guests(&[(ALL, 1), (ALL, 1)]);
    rig.guests[1].fill(0, 128, &[2048]);
    let mut frame = tcp(1, 2, &pattern(30_000));
    let mut offload = leave_checksum(&mut frame);
    offload.segmentation = Some(Segmentation { size: 1000, headers: 54, ecn: false });
    // By packets 30 are gone, of a burst of 10; by bits, 30 frames of 1054 bytes of a burst of 10,000 bytes.
    let bits = PortLimits { bits_per_second: Some(800_000), ..PortLimits::NONE };
    for (limits, seconds) in [(packets(100), 0.21), (bits, 0.2163)] {
        let began = Instant::now();
        rig.limit(0, limits);
        rig.guests[0].send(0, &offload.write(0), &frame, &[]);
        rig.guests[0].send(0, &[], &udp(1, 2, 1, &pattern(5)), &[]);
        let frames = receive(&mut rig, 2);
        assert!(frames[0] == frame && frames[1].len() == 47);
        assert!(began.elapsed().as_secs_f64() >= seconds, "{:?} for {seconds}", began.elapsed());
    }
    assert_eq!(counters(&rig, 0).sent, 4, "what waits is counted when it goes");
}

#[test]
fn what_waits_goes_when_the_limit_goes() {
    let mut rig = Rig::with_guests(&[(ALL, 1), (ALL, 1)]);
    rig.guests[1].fill(0, 64, &[2048]);
    // A byte a second: hours for each.
    rig.limit(0, PortLimits { bits_per_second: Some(8), ..PortLimits::NONE });
    for n in 0..20u8 {
        rig.guests[0].send(0, &[], &udp(1, 2, 1, &[n]), &[]);
    }
    receive(&mut rig, 1);
    rig.run().unwrap();
    assert!(rig.outbox.take_hold().is_some());
    assert!(rig.guests[1].receive(0).is_empty());
    rig.limit(0, PortLimits::NONE);
    let rest = receive(&mut rig, 19);
    assert!(rest.iter().map(|frame| frame[42]).eq(1..20));
}
