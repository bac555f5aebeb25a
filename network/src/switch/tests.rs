//! The whole switch over real rings: frames in, frames out.

use super::rig::{MTU, Rig, address, mac};
use crate::address::{GATEWAY_MAC, Mac};
use crate::packet::offload::{Offload, Partial, Segmentation, feature};
use crate::packet::{Payload, checksum::transport_is_right, parse};
use bixi_offload::ring::{FEATURE_EVENT_IDX, FEATURE_INDIRECT};
use etherparse::PacketBuilder;
use proptest::prelude::*;

pub(super) const BASE: u64 = feature::VERSION_1 | FEATURE_EVENT_IDX | FEATURE_INDIRECT;
const SENDS: u64 = feature::CSUM | feature::HOST_TSO4 | feature::HOST_ECN | feature::HOST_TSO6;
const TAKES: u64 = feature::GUEST_CSUM | feature::GUEST_TSO4 | feature::GUEST_ECN;
pub(super) const ALL: u64 = BASE | SENDS | TAKES | feature::MRG_RXBUF;

pub(super) fn udp(from: u8, to: u8, port: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(mac(from).0, mac(to).0)
        .ipv4(address(from).octets(), address(to).octets(), 64)
        .udp(port, 9)
        .write(&mut frame, payload)
        .unwrap();
    frame
}

pub(super) fn tcp(from: u8, to: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(mac(from).0, mac(to).0)
        .ipv4(address(from).octets(), address(to).octets(), 64)
        .tcp(1000, 2000, 77, 4096)
        .ack(5)
        .write(&mut frame, payload)
        .unwrap();
    frame
}

/// Leaves the checksum of a TCP frame to the other side, as a guest's driver does.
pub(super) fn leave_checksum(frame: &mut [u8]) -> Offload {
    let Payload::Ipv4(ipv4) = parse(frame, frame.len()).unwrap().payload else { panic!() };
    let length = ipv4.total - u16::from(ipv4.header);
    let sum = crate::packet::checksum::Sum::default()
        .pseudo(ipv4.source, ipv4.destination, ipv4.protocol, length)
        .folded();
    frame[50..52].copy_from_slice(&sum.to_be_bytes());
    Offload { checksum: Some(Partial { start: 34, offset: 16 }), segmentation: None }
}

pub(super) fn counters(rig: &Rig, guest: usize) -> bixi_api::network::PortStatistics {
    rig.guests[guest].counters.read()
}

pub(super) fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 7 + i / 251) as u8).collect()
}

#[test]
fn a_frame_arrives_as_it_was_sent_between_any_headers() {
    for (from, to) in [(ALL, ALL), (0, ALL), (ALL, 0), (0, 0), (feature::MRG_RXBUF, BASE)] {
        let mut rig = Rig::with_guests(&[(from, 1), (to, 1)]);
        rig.guests[1].fill(0, 8, &[2048]);
        let frames = [udp(1, 2, 1, b"x"), udp(1, 2, 2, &pattern(1400)), udp(1, 2, 3, &pattern(90))];
        for frame in &frames {
            rig.guests[0].send(0, &[], frame, &[5, 20, 60]);
        }
        rig.run().unwrap();
        let got = rig.guests[1].receive(0);
        let header = Offload::NONE.write(1);
        let expected: Vec<_> = frames
            .iter()
            .map(|f| (header[..if to == 0 { 10 } else { 12 }].to_vec(), f.clone()))
            .collect();
        assert!(got == expected, "{from:#x} to {to:#x}");
        let bytes = frames.iter().map(|f| f.len() as u64).sum();
        let (sent, received) = (counters(&rig, 0), counters(&rig, 1));
        assert_eq!((sent.sent, sent.sent_bytes, sent.flows), (3, bytes, 3));
        assert_eq!((received.received, received.received_bytes), (3, bytes));
    }
}

#[test]
fn no_descriptor_is_lost_on_small_rings_whatever_happens() {
    let mut rig = Rig::new(None);
    rig.add_guest(ALL, 1, 4);
    rig.add_guest(ALL, 1, 4);
    rig.tell(&[], MTU);
    let bad = [0u8; 20];
    for round in 0..300u16 {
        if round % 3 != 0 && rig.guests[1].pairs[0].receive.free() >= 2 {
            rig.guests[1].fill(0, 1, &[100, 30]);
        }
        let frame = udp(1, 2, 1000 + round, &pattern(usize::from(round % 200)));
        rig.guests[0].send(0, &[], if round % 7 == 0 { &bad } else { &frame }, &[]);
        rig.run().unwrap();
        rig.guests[0].pairs[0].transmit.take_all(|_| {}).unwrap();
        assert_eq!(rig.guests[0].pairs[0].transmit.in_flight(), 0, "round {round}");
        rig.guests[1].receive(0);
    }
    let (sent, received) = (counters(&rig, 0), counters(&rig, 1));
    assert_eq!(sent.sent, 300);
    assert_eq!(sent.spoofed, 43);
    assert_eq!(received.received + received.no_buffer, 257);
    assert!(received.no_buffer > 50 && received.received > 100);
}

#[test]
fn a_partial_checksum_is_handed_on_or_completed() {
    for takes in [true, false] {
        let to = BASE | if takes { feature::GUEST_CSUM } else { 0 };
        let mut rig = Rig::with_guests(&[(ALL, 1), (to, 1)]);
        rig.guests[1].fill(0, 1, &[2048]);
        let whole = tcp(1, 2, &pattern(777));
        let mut frame = whole.clone();
        let offload = leave_checksum(&mut frame);
        rig.guests[0].send(0, &offload.write(0), &frame, &[12, 66]);
        rig.run().unwrap();
        let got = rig.guests[1].receive(0);
        let expected =
            if takes { (offload.write(1), frame) } else { (Offload::NONE.write(1), whole) };
        assert!(got == [(expected.0.to_vec(), expected.1)]);
    }
}

#[test]
fn a_large_frame_is_merged_into_small_buffers_and_no_more_are_used_than_it_needs() {
    let mut rig = Rig::with_guests(&[(ALL, 1), (ALL, 1)]);
    rig.guests[1].fill(0, 60, &[1536]);
    let mut frame = tcp(1, 2, &pattern(60_000));
    let mut offload = leave_checksum(&mut frame);
    offload.segmentation = Some(Segmentation { size: 1448, headers: 54, ecn: true });
    rig.guests[0].send(0, &offload.write(0), &frame, &[12, 4000, 40_000]);
    rig.guests[0].send(0, &[], &udp(1, 2, 1, b"behind"), &[]);
    rig.run().unwrap();
    let got = rig.guests[1].receive(0);
    assert!(got[0] == (offload.write(40).to_vec(), frame));
    assert_eq!(got[1].1, udp(1, 2, 1, b"behind"));
    assert_eq!(rig.guests[1].pairs[0].receive.in_flight(), 60 - 41);
}

#[test]
fn a_large_frame_that_finds_too_few_buffers_is_dropped_whole() {
    let mut rig = Rig::with_guests(&[(ALL, 1), (ALL, 1)]);
    rig.guests[1].fill(0, 5, &[1536]);
    let mut frame = tcp(1, 2, &pattern(9000));
    let mut offload = leave_checksum(&mut frame);
    offload.segmentation = Some(Segmentation { size: 1400, headers: 54, ecn: false });
    rig.guests[0].send(0, &offload.write(0), &frame, &[]);
    rig.guests[0].send(0, &[], &udp(1, 2, 1, b"behind"), &[]);
    rig.run().unwrap();
    assert_eq!(rig.guests[1].receive(0).len(), 1);
    assert_eq!(counters(&rig, 1).no_buffer, 1);
    assert_eq!(rig.guests[1].pairs[0].receive.in_flight(), 4);
}

#[test]
fn segmentation_is_done_for_a_receiver_that_cannot() {
    for to in
        [BASE, BASE | feature::GUEST_CSUM, BASE | feature::MRG_RXBUF | TAKES & !feature::GUEST_ECN]
    {
        let mut rig = Rig::with_guests(&[(ALL, 1), (to, 1)]);
        rig.guests[1].fill(0, 100, &[1600]);
        let payload = pattern(30_000);
        let mut frame = tcp(1, 2, &payload);
        let mut offload = leave_checksum(&mut frame);
        offload.segmentation = Some(Segmentation { size: 1000, headers: 54, ecn: true });
        rig.guests[0].send(0, &offload.write(0), &frame, &[100]);
        rig.run().unwrap();
        let got = rig.guests[1].receive(0);
        assert_eq!(got.len(), 30);
        let mut together = Vec::new();
        for (header, segment) in got {
            assert_eq!(header, Offload::NONE.write(1));
            let Payload::Ipv4(ipv4) = parse(&segment, segment.len()).unwrap().payload else {
                panic!()
            };
            assert!(transport_is_right(&segment, &ipv4));
            together.extend_from_slice(&segment[54..]);
        }
        assert!(together == payload);
    }
}

#[test]
fn a_flow_stays_in_one_queue_and_flows_use_all() {
    let mut rig = Rig::with_guests(&[(ALL, 2), (ALL, 4)]);
    for pair in 0..4 {
        rig.guests[1].fill(pair, 128, &[1600]);
    }
    for flow in 0..40 {
        for n in 0..3u8 {
            rig.guests[0].send(usize::from(flow % 2), &[], &udp(1, 2, flow, &[n]), &[]);
        }
        rig.run().unwrap();
    }
    let mut flows = 0;
    for pair in 0..4 {
        let got = rig.guests[1].receive(pair);
        assert!(!got.is_empty(), "queue {pair} is not used");
        for packets in got.chunks(3) {
            let order: Vec<_> = packets.iter().map(|(_, f)| (f[34..36].to_vec(), f[42])).collect();
            let port = &order[0].0;
            assert_eq!(order, [0, 1, 2].map(|n| (port.clone(), n)));
            flows += 1;
        }
    }
    assert_eq!(flows, 40);
    // A driver that uses one pair only has its other queues stopped: all flows come to the first.
    for pair in 1..4 {
        rig.detach_receive(1, pair);
    }
    for flow in 0..40 {
        rig.guests[0].send(0, &[], &udp(1, 2, flow, b"x"), &[]);
        rig.run().unwrap();
    }
    assert_eq!(rig.guests[1].receive(0).len(), 40);
}

#[test]
fn arp_and_dhcp_are_answered_and_nobody_else_hears_them() {
    let mut rig = Rig::with_guests(&[(ALL, 1), (ALL, 1)]);
    for guest in 0..2 {
        rig.guests[guest].fill(0, 16, &[1600]);
    }
    let arp = |target: u8| {
        let ask = [0, 1, 8, 0, 6, 4, 0, 1];
        let sender = [&mac(1).0[..], &address(1).octets()].concat();
        let wanted = [&[0; 6][..], &address(target).octets()].concat();
        [&[0xff; 6], &mac(1).0[..], &[8, 6], &ask, &sender, &wanted].concat()
    };
    for target in [2, 254, 99, 1] {
        rig.guests[0].send(0, &[], &arp(target), &[]);
    }
    let mut service = arp(2);
    service[38..42].copy_from_slice(&[100, 64, 0, 1]);
    rig.guests[0].send(0, &[], &service, &[]);
    rig.run().unwrap();
    let got = rig.guests[0].receive(0);
    let owners: Vec<_> = got.iter().map(|(_, f)| Mac::read(&f[22..])).collect();
    assert_eq!(owners, [mac(2), GATEWAY_MAC, GATEWAY_MAC]);

    let mut message = vec![0u8; 244];
    message[..4].copy_from_slice(&[1, 1, 6, 0]);
    message[28..34].copy_from_slice(&mac(1).0);
    message[236..].copy_from_slice(&[0x63, 0x82, 0x53, 0x63, 53, 1, 3, 255]);
    message.splice(243..243, [50, 4, 10, 0, 0, 1]);
    let mut ask = Vec::new();
    PacketBuilder::ethernet2(mac(1).0, [0xff; 6])
        .ipv4([0; 4], [255; 4], 64)
        .udp(68, 67)
        .write(&mut ask, &message)
        .unwrap();
    rig.guests[0].send(0, &[], &ask, &[12, 54, 200]);
    rig.run().unwrap();
    let got = rig.guests[0].receive(0);
    assert_eq!(got.len(), 1);
    assert_eq!(&got[0].1[58..62], &address(1).octets(), "your address");
    let leases = rig.guests[0].leases.list();
    assert_eq!((leases.len(), leases[0].address, leases[0].mac), (1, address(1), mac(1)));

    assert!(rig.guests[1].receive(0).is_empty());
    let sent = counters(&rig, 0);
    assert_eq!((sent.answered, sent.unknown_destination, sent.multicast), (4, 1, 1));
}

#[test]
fn names_are_answered_at_the_card_s_own_address_and_to_whoever_asks_as_himself() {
    let mut rig = Rig::with_guests(&[(ALL, 1), (ALL, 1)]);
    for guest in 0..2 {
        rig.guests[guest].fill(0, 16, &[1600]);
    }
    let server = [100, 64, 0, 1];
    let question = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03one\0\0\x01\0\x01";
    let ask = |from: u8, to: Mac, server: [u8; 4], question: &[u8]| {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(mac(1).0, to.0)
            .ipv4(address(from).octets(), server, 64)
            .udp(4000, 53)
            .write(&mut frame, question)
            .unwrap();
        frame
    };
    for frame in [
        ask(1, GATEWAY_MAC, server, question),
        // In another's name; to another station; to an address where nobody answers; no question.
        ask(2, GATEWAY_MAC, server, question),
        ask(1, mac(2), server, question),
        ask(1, GATEWAY_MAC, [100, 64, 0, 2], question),
        ask(1, GATEWAY_MAC, server, &[0x80; 20]),
    ] {
        rig.guests[0].send(0, &[], &frame, &[]);
    }
    rig.run().unwrap();
    let got = rig.guests[0].receive(0);
    assert_eq!(got.len(), 1);
    let frame = &got[0].1;
    let Payload::Ipv4(ipv4) = parse(frame, frame.len()).unwrap().payload else { panic!() };
    assert!(transport_is_right(frame, &ipv4));
    assert_eq!((ipv4.source, ipv4.destination), (server.into(), address(1)));
    assert_eq!(ipv4.ports, [53, 4000]);
    assert_eq!((Mac::read(frame), Mac::read(&frame[6..])), (mac(1), GATEWAY_MAC));
    assert_eq!(&frame[42..44], &question[..2]);
    assert_eq!(frame[frame.len() - 4..], address(1).octets());
    assert!(rig.guests[1].receive(0).is_empty());
    let sent = counters(&rig, 0);
    assert_eq!((sent.answered, sent.spoofed), (1, 1));
    assert_eq!((sent.unknown_destination, sent.malformed), (2, 1));
}

/// A TCP segment of guest `n` to the metadata server.
fn to_metadata(n: u8, sequence: u32, acknowledged: Option<u32>, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    let tcp = PacketBuilder::ethernet2(mac(n).0, GATEWAY_MAC.0)
        .ipv4(address(1).octets(), [100, 100, 100, 200], 64)
        .tcp(40_000, 80, sequence, 4096);
    match acknowledged {
        None => tcp.syn().write(&mut frame, payload).unwrap(),
        Some(number) => tcp.ack(number).psh().write(&mut frame, payload).unwrap(),
    }
    frame
}

#[test]
fn each_port_reads_its_own_metadata_whatever_its_address_is() {
    let mut rig = Rig::new(None);
    for (port, text) in [("eni-1", "mine"), ("eni-2", "yours")] {
        rig.with_metadata(port, text);
        let guest = rig.add_guest_at(ALL, 1, 256, address(1));
        rig.guests[guest].fill(0, 32, &[1600]);
    }
    rig.add_guest_at(ALL, 1, 256, address(1));
    rig.guests[2].fill(0, 32, &[1600]);
    rig.tell(&[], MTU);
    for (guest, text) in [(0, Some("mine")), (1, Some("yours")), (2, None)] {
        let n = guest as u8 + 1;
        rig.guests[guest].send(0, &[], &to_metadata(n, 5, None, b""), &[]);
        rig.run().unwrap();
        let got = rig.guests[guest].receive(0);
        let Some(text) = text else {
            assert!(got.is_empty(), "somebody answers a port without metadata");
            assert_eq!(counters(&rig, guest).unknown_destination, 1);
            continue;
        };
        let [(_, hello)] = &got[..] else { panic!("{got:?}") };
        let Payload::Ipv4(ipv4) = parse(hello, hello.len()).unwrap().payload else { panic!() };
        assert!(transport_is_right(hello, &ipv4));
        assert_eq!((ipv4.source.octets(), ipv4.destination), ([100, 100, 100, 200], address(1)));
        assert_eq!((Mac::read(hello), Mac::read(&hello[6..])), (mac(n), GATEWAY_MAC));
        let theirs = u32::from_be_bytes(hello[38..42].try_into().unwrap());
        let get = b"GET /latest/user-data HTTP/1.0\r\n\r\n";
        // Its checksum left to the other side, as a guest's driver does.
        let mut frame = to_metadata(n, 6, Some(theirs.wrapping_add(1)), get);
        let offload = leave_checksum(&mut frame);
        rig.guests[guest].send(0, &offload.write(0), &frame, &[]);
        rig.run().unwrap();
        let all: Vec<u8> =
            rig.guests[guest].receive(0).into_iter().flat_map(|(_, frame)| frame).collect();
        assert!(String::from_utf8_lossy(&all).contains(text), "{}", String::from_utf8_lossy(&all));
        assert_eq!(counters(&rig, guest).answered, 2);
    }
    // Only its own frames reach a port, and its own name is all that it may use.
    assert!(rig.guests[0].receive(0).is_empty());
    let mut spoofed = to_metadata(2, 5, None, b"");
    spoofed[6..12].copy_from_slice(&mac(1).0);
    rig.guests[1].send(0, &[], &spoofed, &[]);
    rig.run().unwrap();
    assert!(rig.guests.iter_mut().all(|guest| guest.receive(0).is_empty()));
    assert_eq!(counters(&rig, 1).spoofed, 1);
}

#[test]
fn a_guest_that_asks_without_end_is_limited_and_its_neighbour_is_not() {
    let mut rig = Rig::new(None);
    rig.with_metadata("eni-1", "mine");
    for _ in 0..2 {
        let guest = rig.add_guest(ALL, 1, 256);
        rig.guests[guest].fill(0, 200, &[1600]);
    }
    rig.tell(&[], MTU);
    for n in 0..3000 {
        rig.guests[0].send(0, &[], &to_metadata(1, n, None, b""), &[]);
        rig.run().unwrap();
        rig.guests[0].receive(0);
    }
    let seen = counters(&rig, 0);
    assert!(seen.limited > 1000 && seen.answered >= 512, "{seen:?}");
    rig.guests[0].send(0, &[], &udp(1, 2, 9, b"still there"), &[]);
    rig.run().unwrap();
    assert_eq!(rig.guests[1].receive(0).len(), 1);
}

#[test]
fn every_drop_is_counted_by_its_reason() {
    let mut rig = Rig::with_guests(&[(ALL, 1), (ALL, 1)]);
    rig.guests[1].fill(0, 4, &[1600]);
    let ethernet = |to: Mac, kind: [u8; 2]| [&to.0[..], &mac(1).0, &kind, &[0x60; 60]].concat();
    let arp_of_another = {
        let sender = [&mac(1).0[..], &address(9).octets(), &[0; 6], &address(2).octets()].concat();
        [&[0xff; 6], &mac(1).0[..], &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &sender].concat()
    };
    let too_long = udp(1, 2, 1, &pattern(1473));
    for frame in [
        udp(9, 2, 1, b"x"),
        arp_of_another,
        udp(1, 9, 1, b"x"),
        udp(1, 2, 1, b"x")[..30].to_vec(),
        ethernet(Mac::BROADCAST, [0x08, 0x00]),
        ethernet(Mac::BROADCAST, [0x88, 0xcc]),
        ethernet(mac(2), [0x86, 0xdd]),
        ethernet(mac(2), [0x81, 0x00]),
        too_long,
    ] {
        rig.guests[0].send(0, &[], &frame, &[]);
    }
    rig.guests[0].send(0, &[1, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0], &udp(1, 2, 1, b"x"), &[]);
    rig.run().unwrap();
    assert!(rig.guests[1].receive(0).is_empty());
    let sent = counters(&rig, 0);
    assert_eq!(sent.sent, 10);
    assert_eq!((sent.spoofed, sent.unknown_destination), (2, 1));
    assert_eq!(
        (sent.malformed, sent.multicast),
        (3, 1),
        "a broadcast with a bad header is malformed"
    );
    assert_eq!((sent.ipv6, sent.other_protocol, sent.too_big), (1, 1, 1));
}

#[test]
fn a_packet_that_is_too_big_and_may_not_be_cut_is_answered_with_the_mtu() {
    let mut rig = Rig::with_guests(&[(ALL, 1), (ALL, 1)]);
    rig.tell(&[], 1400);
    for guest in 0..2 {
        rig.guests[guest].fill(0, 4, &[1600]);
    }
    let mut frame = udp(1, 2, 1, &pattern(1400));
    frame[20] |= 0x40;
    rig.guests[0].send(0, &[], &frame, &[]);
    rig.run().unwrap();
    let got = rig.guests[0].receive(0);
    assert_eq!(&got[0].1[34..42], &[3, 4, got[0].1[36], got[0].1[37], 0, 0, 5, 0x78]);
    assert!(rig.guests[1].receive(0).is_empty());
    // One byte less in each segment, and a frame of segments passes.
    for (size, passes) in [(1361, false), (1360, true)] {
        let mut frame = tcp(1, 2, &pattern(5000));
        let mut offload = leave_checksum(&mut frame);
        offload.segmentation = Some(Segmentation { size, headers: 54, ecn: false });
        rig.guests[0].send(0, &offload.write(0), &frame, &[]);
        rig.guests[1].fill(0, 4, &[1600]);
        rig.run().unwrap();
        assert_eq!(!rig.guests[1].receive(0).is_empty(), passes, "{size}");
    }
}

#[test]
fn a_change_of_the_segment_acts_on_the_next_packet() {
    let mut rig = Rig::with_guests(&[(ALL, 1), (ALL, 1)]);
    rig.guests[1].fill(0, 8, &[1600]);
    let frame = udp(1, 2, 1, &pattern(1400));
    rig.guests[0].send(0, &[], &frame, &[]);
    rig.run().unwrap();
    rig.tell(&[], 1200);
    rig.guests[0].send(0, &[], &frame, &[]);
    rig.run().unwrap();
    assert_eq!(rig.guests[1].receive(0).len(), 1);
    assert_eq!(counters(&rig, 0).too_big, 1);
}

#[test]
fn a_driver_that_breaks_its_ring_stops_its_own_queue_only() {
    let mut rig = Rig::with_guests(&[(ALL, 1), (ALL, 1), (ALL, 1)]);
    for guest in 0..3 {
        rig.guests[guest].fill(0, 8, &[1600]);
    }
    // The receiver's: the sender and the third go on.
    rig.guests[1].pairs[0].receive.push_raw(0xffff);
    rig.guests[1].pairs[0].receive.submit();
    for round in 0..20 {
        rig.guests[0].send(0, &[], &udp(1, 2, round, b"x"), &[]);
        rig.guests[0].send(0, &[], &udp(1, 3, round, b"x"), &[]);
        rig.run().unwrap();
        if round % 8 == 7 {
            rig.guests[2].receive(0);
            rig.guests[2].fill(0, 8, &[1600]);
        }
    }
    assert_eq!(counters(&rig, 2).received, 20);
    let broken = counters(&rig, 1);
    assert_eq!(broken.received + broken.no_buffer, 20);
    // The sender's.
    rig.guests[0].pairs[0].transmit.write_avail_idx(0x7777);
    assert!(rig.run().is_err());
}

#[test]
fn a_driver_is_called_once_for_a_burst_and_not_at_all_if_it_does_not_want_to() {
    for features in [ALL, ALL & !FEATURE_EVENT_IDX] {
        let mut rig = Rig::with_guests(&[(features, 1), (features, 1)]);
        rig.guests[1].fill(0, 100, &[1600]);
        let burst = |rig: &mut Rig| {
            for n in 0..20 {
                rig.guests[0].send(0, &[], &udp(1, 2, n, b"x"), &[]);
            }
            rig.run().unwrap();
        };
        burst(&mut rig);
        assert!(rig.guests[1].pairs[0].receive.drain_call(), "no call");
        rig.guests[1].receive(0);
        rig.guests[1].pairs[0].receive.calls_off();
        burst(&mut rig);
        assert!(!rig.guests[1].pairs[0].receive.drain_call(), "a call that was not wanted");
        rig.guests[1].receive(0);
        assert!(!rig.guests[1].pairs[0].receive.calls_on());
        burst(&mut rig);
        assert!(
            rig.guests[1].pairs[0].receive.drain_call(),
            "no call after they were wanted again"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_header_and_any_bytes_are_survived(
        header: [u8; 12],
        damage in prop::collection::vec((0usize..70, any::<u8>()), 0..6),
        length in 0usize..3000,
        takes: bool,
        cut in 1usize..200,
    ) {
        let to = BASE | if takes { TAKES | feature::MRG_RXBUF } else { 0 };
        let mut rig = Rig::with_guests(&[(ALL, 1), (to, 1)]);
        for guest in 0..2 {
            rig.guests[guest].fill(0, 32, &[700, 900]);
        }
        let mut frame = tcp(1, 2, &pattern(length));
        for (at, value) in damage {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        rig.guests[0].send(0, &header, &frame, &[cut.min(frame.len())]);
        rig.run().unwrap();
        rig.guests[0].receive(0);
        for (header, frame) in rig.guests[1].receive(0) {
            prop_assert!(takes || header[..2] == [0, 0], "left work to one who cannot");
            prop_assert!(frame[6..12] == mac(1).0 && frame[26..30] == address(1).octets());
        }
        prop_assert_eq!(counters(&rig, 0).sent, 1);
    }
}
