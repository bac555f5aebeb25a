//! Every parser and state machine of untrusted bytes, as a function of bytes: for fuzzers, and for the test below.
//!
//! Each function takes anything and must return; what it finds to be inconsistent it says by a panic, which is a finding.

use crate::address::Mac;
use crate::answer::{arp, dhcp, dns, icmp};
use crate::engine::flow::FlowTable;
use crate::engine::key::Key;
use crate::engine::names::Names;
use crate::engine::policy::{Ingress, Packet, decide};
use crate::engine::view::{Network, PortIndex, PortView, SegmentView};
use crate::metadata::documents::Documents;
use crate::metadata::stack::{LONGEST, Now, Stack};
use crate::metadata::token::Key as TokenKey;
use crate::metadata::{Metadata, http};
use crate::packet::offload::Offload;
use crate::packet::segment::Segments;
use crate::packet::{HEAD, Payload, checksum, parse, vxlan};
use crate::service::records;
use crate::tables::lease::Leases;
use std::net::Ipv4Addr;

const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

fn port() -> PortView {
    let mac = Mac([2, 0, 0, 0, 0, 1]);
    PortView { index: PortIndex(0), vni: 7, mac, ipv4: vec![ADDRESS] }
}

fn segment() -> SegmentView {
    let network =
        Network { prefix_len: 24, gateway: Some([10, 0, 0, 254].into()), dns: vec![], names: None };
    SegmentView::new(7, 1, 1450, Some(network), [&port()].into_iter(), std::iter::empty(), None)
}

/// A frame of a guest: parsed, keyed, decided.
pub fn frame(data: &[u8]) {
    let head = &data[..data.len().min(HEAD)];
    let Ok(frame) = parse(head, data.len()) else {
        assert_eq!(Key::of_ordinary(head, data.len()), None);
        return;
    };
    let (slow, fast) = (Key::of(&frame), Key::of_ordinary(head, data.len()));
    assert!(fast.is_none() || fast == slow);
    for ingress in [Ingress::Port(&port()), Ingress::Overlay] {
        let _ = decide(&Packet { ingress, segment: &segment(), frame: &frame });
    }
    if let Payload::Ipv4(ipv4) = &frame.payload {
        let _ = checksum::transport_is_right(data, ipv4);
        icmp::too_big(&mut Vec::new(), data, &frame, ipv4, 1450, ADDRESS);
    }
}

/// A virtio-net header and a frame: what is left to do is done in software.
pub fn offload(data: &[u8]) {
    let Some((header, frame)) = data.split_first_chunk::<12>() else { return };
    let Ok(parsed) = parse(&frame[..frame.len().min(HEAD)], frame.len()) else { return };
    let Ok(offload) = Offload::read(header, u64::MAX, &parsed, frame.len()) else { return };
    let mut whole = frame.to_vec();
    match offload.segmentation {
        None => offload.complete_checksum(&mut whole),
        Some(cut) => {
            let Some(mut segments) = Segments::new(&whole, cut) else { return };
            let mut covered = usize::from(cut.headers);
            while let Some(segment) = segments.next_segment() {
                assert_eq!(segment.payload.start, covered);
                covered = segment.payload.end;
            }
            assert_eq!(covered, whole.len().max(cut.headers.into()));
        }
    }
}

/// An ARP packet, answered.
pub fn arp(data: &[u8]) {
    if let Some(asked) = arp::read(data) {
        let mut out = Vec::new();
        arp::reply(&mut out, &asked, Mac([2; 6]));
        assert!(arp::read(&out).is_some_and(|reply| !reply.request));
    }
}

/// A DHCP message, in the frame that a client would send it in, answered.
pub fn dhcp(data: &[u8]) {
    let Ok(length) = u16::try_from(data.len() + 28) else { return };
    let mut frame = [[0xff; 6], [2, 0, 0, 0, 0, 1]].concat();
    frame.extend_from_slice(&[8, 0, 0x45, 0]);
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(&[
        0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 0, 68, 0, 67,
    ]);
    frame.extend_from_slice(&(length - 20).to_be_bytes());
    frame.extend_from_slice(&[0, 0]);
    frame.extend_from_slice(data);
    let Ok(parsed) = parse(&frame, frame.len()) else { return };
    let Payload::Ipv4(ipv4) = parsed.payload else { return };
    let offer = dhcp::Offer {
        mac: Mac([2, 0, 0, 0, 0, 1]),
        address: ADDRESS,
        mask: [255, 255, 255, 0].into(),
        gateway: None,
        dns: &[ADDRESS; 9],
        domain: Some("lab.internal"),
        services: &[ADDRESS; 4],
        mtu: 1450,
        server: [10, 0, 0, 254].into(),
        server_mac: Mac([2; 6]),
    };
    let mut out = Vec::new();
    let outcome = dhcp::answer(&mut out, &frame, &ipv4, &offer);
    assert_eq!(outcome.answered, !out.is_empty());
    assert!(out.is_empty() || parse(&out, out.len()).is_ok());
}

/// A DNS message, answered.
pub fn dns(data: &[u8]) {
    let mut names = Names::new(vec![], Some("lab.internal"), [10, 0, 0, 0].into(), 24);
    names.add("web", ADDRESS);
    if let Some(response) = dns::respond(data, &names) {
        assert!(response.len() <= 512 && response[2] & 0x80 != 0);
    }
}

fn metadata() -> Metadata {
    let documents = vec![("latest/user-data".to_owned(), vec![7; 9000])];
    let documents = Documents::new(documents).unwrap_or_default();
    Metadata { port: "eni-1".to_owned(), documents, tokens_required: true, key: TokenKey([1; 32]) }
}

/// A request to the metadata server.
pub fn metadata_request(data: &[u8]) {
    if let http::Step::Answer(length, _) = http::step(data, &metadata(), 1) {
        assert!(length > 0 && length <= data.len());
    }
}

/// Packets to the metadata server's TCP, each behind a byte of time that passed and one of its length.
pub fn metadata_packets(data: &[u8]) {
    let metadata = metadata();
    let mut now = Now { instant: std::time::Instant::now(), seconds: 1 };
    let mut stack = Stack::new(now);
    let mut rest = data;
    while let [time, length, behind @ ..] = rest {
        now.instant += std::time::Duration::from_millis(u64::from(*time) * 50);
        let (packet, behind) = behind.split_at(behind.len().min((*length).into()));
        stack.take(packet, &metadata, now);
        stack.turn(&metadata, now);
        while let Some(packet) = stack.next_packet() {
            assert!(packet.len() <= 576);
        }
        assert!(stack.deadline(now).is_none_or(|deadline| deadline <= now.instant + LONGEST));
        rest = behind;
    }
}

/// A datagram from another server, unwrapped.
pub fn vxlan(data: &[u8]) {
    if let Some((vni, inner)) = vxlan::decapsulate(data) {
        assert!(vni < vxlan::VNI_LIMIT);
        frame(inner);
    }
}

/// The file of a flow cache, as a dead process, or anybody, may have left it.
pub fn flow_table(data: &[u8]) {
    with_file(data, |path| {
        if let Ok((mut flows, _)) = FlowTable::open(path, 64) {
            let key = Key([1, 2, 3, 4]);
            let hash = flows.hash(&key);
            let candidates = flows.look(hash);
            let _ = flows.find(&key, hash, candidates, 1, 1);
            let again = FlowTable::open(path, 64).map(|(flows, torn)| (flows.len(), torn));
            assert!(again.is_ok_and(|found| found == (flows.len(), 0)), "torn records stay");
        }
    });
}

/// The file of a port's leases, likewise.
pub fn lease_table(data: &[u8]) {
    with_file(data, |path| {
        if let Ok((leases, _)) = Leases::open(path) {
            leases.give(ADDRESS, Mac([2; 6]), 1, 60);
            assert!(leases.list().iter().any(|lease| lease.address == ADDRESS));
        }
    });
}

/// The file of a port or a segment in the state directory.
pub fn record(data: &[u8]) {
    if let Ok(payload) = records::decode(data) {
        let _ = records::decode_port(&payload);
        let _ = records::decode_segment(&payload, None);
        let _ = records::decode_metadata(&payload);
    }
}

/// Lets `data` overwrite a table of the right length, header or not, as its first byte says.
fn with_file(data: &[u8], look: impl FnOnce(&std::path::Path)) {
    use std::os::unix::fs::FileExt;
    let name = format!("bixi-fuzz-{}-{:?}", std::process::id(), std::thread::current().id());
    let path = std::env::temp_dir().join(name);
    let _ = std::fs::remove_file(&path);
    let Some((choice, data)) = data.split_first() else { return };
    // A sound file to begin with, so that the records are looked at, too.
    let made = match choice % 2 {
        0 => FlowTable::open(&path, 64).is_ok(),
        _ => Leases::open(&path).is_ok(),
    };
    let file = std::fs::OpenOptions::new().write(true).open(&path);
    if let (true, Ok(file)) = (made, file) {
        let at = if choice & 2 == 0 { 4096 } else { 0 };
        let _ = file.write_all_at(data, at);
        look(&path);
    }
    let _ = std::fs::remove_file(&path);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bytes that are often nearly what they should be.
    fn nearly() -> impl Strategy<Value = Vec<u8>> {
        let mut tcp = Vec::new();
        etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2; 6])
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .tcp(1, 2, 3, 4)
            .write(&mut tcp, &[7; 300])
            .unwrap();
        let mut arp = [[0xff; 6], [2; 6]].concat();
        arp.extend_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        arp.extend_from_slice(&[1; 20]);
        let mut dhcp = vec![0; 300];
        dhcp[..3].copy_from_slice(&[1, 1, 6]);
        dhcp[28..34].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
        dhcp[236..247].copy_from_slice(&[0x63, 0x82, 0x53, 0x63, 53, 1, 1, 61, 2, 1, 1]);
        let mut dns = vec![1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1, 3];
        dns.extend_from_slice(b"web\x03lab\x08internal\0\0\x01\0\x01\0\0\x29\x04\xd0\0\0\0\0\0\0");
        let mut offload = vec![1, 1, 54, 0, 50, 0, 34, 0, 16, 0, 0, 0];
        offload.extend_from_slice(&tcp);
        let wrapped = [&[8, 0, 0, 0, 0, 0, 7, 0][..], &tcp].concat();
        let http =
            b"PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 1\r\n\r\n";
        let mut packets = vec![9, 40];
        packets.extend_from_slice(&tcp[14..54]);
        let seeds = vec![
            http.to_vec(),
            packets,
            tcp,
            arp,
            dhcp,
            dns,
            offload,
            wrapped,
            vec![0; 5000],
            vec![],
        ];
        let damage = prop::collection::vec((0usize..400, any::<u8>()), 0..8);
        let tail = prop::collection::vec(any::<u8>(), 0..80);
        (prop::sample::select(seeds), damage, tail, 0usize..5100).prop_map(
            |(mut bytes, damage, tail, cut)| {
                bytes.extend(tail);
                for (at, value) in damage {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte = value;
                    }
                }
                bytes.truncate(cut.max(1));
                bytes
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

        #[test]
        fn every_parser_survives_anything(bytes in nearly()) {
            for target in [frame, offload, arp, dhcp, dns, vxlan, record, metadata_request] {
                target(&bytes);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

        #[test]
        fn every_table_and_connection_survives_anything(bytes in nearly()) {
            flow_table(&bytes);
            lease_table(&bytes);
            metadata_packets(&bytes);
        }
    }
}
