//! Frames between two ports of one process.

use crate::guest::{
    EVENT_IDX, FULL, Guest, MRG_RXBUF, PLAIN, Shape, VERSION_1, large_tcp, pattern, udp,
};
use crate::server::{Server, segment, wait_for};
use bixi_api::network::SegmentDescription;

fn two(shape: &Shape, other: &Shape) -> (Server, Guest, Guest) {
    let server = Server::start(&[]);
    let sockets = [(1, shape), (2, other)].map(|(n, shape)| server.add_port(n, shape.pairs));
    let a = Guest::connect(&sockets[0], shape);
    let b = Guest::connect(&sockets[1], other);
    (server, a, b)
}

#[test]
fn frames_go_both_ways_and_each_is_counted() {
    let (server, mut a, mut b) = two(&Shape::default(), &Shape::default());
    for n in 0..300u16 {
        let there = udp(1, 2, 1000 + n, &pattern(usize::from(n) * 4));
        a.send_plain(&there);
        assert!(b.receive(0).1 == there);
        let back = udp(2, 1, 1000 + n, &pattern(60));
        b.send_plain(&back);
        assert!(a.receive(0).1 == back);
    }
    a.drain(0);
    b.drain(0);
    let (first, second) = (server.statistics(1), server.statistics(2));
    assert_eq!((first.sent, first.received), (300, 300));
    assert_eq!((second.sent, second.received), (300, 300));
    assert_eq!(first.sent_bytes, second.received_bytes);
    assert_eq!(first.flows, 300);
    assert!(server.describe(1).connected);
}

#[test]
fn drivers_on_small_rings_that_wait_or_poll_lose_nothing_they_have_room_for() {
    for (features, polls) in [(PLAIN, false), (VERSION_1, false), (PLAIN, true), (VERSION_1, true)]
    {
        let shape = Shape { features, queue_size: 4, buffers: 4, ..Shape::default() };
        let (server, mut a, mut b) = two(&shape, &shape);
        if polls {
            b.pairs[0].receive.calls_off();
            a.pairs[0].transmit.calls_off();
        }
        for n in 0..500u16 {
            let frame = udp(1, 2, 1000, &n.to_be_bytes());
            a.send_plain(&frame);
            let got = if polls { wait_for("a frame", || b.try_receive(0)) } else { b.receive(0) };
            assert!(got.1 == frame);
        }
        a.drain(0);
        assert_eq!(server.statistics(2).no_buffer, 0);
    }
}

#[test]
fn large_frames_are_merged_or_cut_as_the_receiver_can() {
    let payload = pattern(50_000);
    let (header, frame) = large_tcp(1, 2, &payload, 1396);
    let (_server, mut a, mut b) = two(&Shape::default(), &Shape::default());
    a.send(0, &header, &frame);
    let (got_header, got) = b.receive(0);
    assert!(got == frame);
    assert_eq!(got_header[..10], header[..10]);
    assert_eq!(u16::from_le_bytes([got_header[10], got_header[11]]), 32);

    let simple = Shape { features: PLAIN, ..Shape::default() };
    let (_server, mut a, mut b) = two(&Shape::default(), &simple);
    a.send(0, &header, &frame);
    let mut together = Vec::new();
    while together.len() < payload.len() {
        let (header, segment) = b.receive(0);
        assert_eq!(header, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        let checked = etherparse::PacketHeaders::from_ethernet_slice(&segment).unwrap();
        let (
            Some(etherparse::NetHeaders::Ipv4(ip, _)),
            Some(etherparse::TransportHeader::Tcp(tcp)),
        ) = (checked.net, checked.transport)
        else {
            panic!("no TCP over IPv4")
        };
        assert_eq!(ip.calc_header_checksum(), ip.header_checksum);
        assert_eq!(tcp.calc_checksum_ipv4(&ip, &segment[54..]).unwrap(), tcp.checksum);
        together.extend_from_slice(&segment[54..]);
    }
    assert!(together == payload);
}

#[test]
fn flows_are_spread_over_the_pairs_that_the_driver_uses() {
    let shape = Shape { features: FULL & !EVENT_IDX, pairs: 4, ..Shape::default() };
    let (server, mut a, mut b) = two(&Shape::default(), &shape);
    let mut seen = [0; 4];
    for flow in 0..64 {
        a.send_plain(&udp(1, 2, 2000 + flow, b"x"));
        let pair = wait_for("a frame", || (0..4).find(|pair| b.try_receive(*pair).is_some()));
        seen[pair] += 1;
    }
    assert!(seen.iter().all(|n| *n > 3), "{seen:?}");
    // The driver goes down to two pairs: nothing comes to the others any more, nothing is lost.
    for index in [4, 5, 6, 7] {
        let told =
            b.keeper.with(move |client| client.enable_ring(index, false, crate::server::PATIENCE));
        told.unwrap().unwrap();
    }
    let before = server.statistics(2);
    for flow in 0..64 {
        a.send_plain(&udp(1, 2, 2000 + flow, b"x"));
        let pair = wait_for("a frame", || (0..4).find(|pair| b.try_receive(*pair).is_some()));
        assert!(pair < 2);
    }
    let after = server.statistics(2);
    assert_eq!((after.received - before.received, after.no_buffer), (64, 0));
    // Each of its pairs can send.
    for pair in [0, 1] {
        b.send(pair, &[0; 12], &udp(2, 1, 1, &[pair as u8]));
        assert_eq!(a.receive(0).1[42], pair as u8);
    }
}

#[test]
fn a_change_of_the_segment_is_announced_and_acts_at_once() {
    let (server, mut a, mut b) = two(&Shape::default(), &Shape::default());
    let frame = udp(1, 2, 1, &pattern(1400));
    a.send_plain(&frame);
    assert!(b.receive(0).1 == frame);
    let config = bixi_api::network::SegmentConfig { mtu: 1300, ..segment() };
    server.put::<SegmentDescription>("/v1/segments/7", &config).unwrap();
    let mut told = frame.clone();
    told[20] |= 0x40;
    a.send_plain(&told);
    let answer = a.receive(0).1;
    assert_eq!((answer[23], &answer[34..36], &answer[40..42]), (1, &[3, 4][..], &[5, 20][..]));
    wait_for("the counter", || (server.statistics(1).too_big == 1).then_some(()));
    assert!(b.try_receive(0).is_none());
}

#[test]
fn a_guest_without_merging_gets_one_buffer_per_frame() {
    let shape = Shape { features: FULL & !MRG_RXBUF, ..Shape::default() };
    let (server, mut a, mut b) = two(&Shape::default(), &shape);
    let (header, frame) = large_tcp(1, 2, &pattern(5000), 1396);
    a.send(0, &header, &frame);
    a.send_plain(&udp(1, 2, 1, b"small"));
    let (_, got) = b.receive(0);
    assert!(got == udp(1, 2, 1, b"small"), "the large frame does not fit a buffer");
    assert_eq!(server.statistics(2).no_buffer, 1);
}
