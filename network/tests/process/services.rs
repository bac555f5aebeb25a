//! What the card answers its guests itself: names.

use crate::guest::{Guest, Shape};
use crate::server::{Server, segment};
use bixi_api::network::{NamedHost, SegmentConfig, SegmentDescription, SegmentNames};
use etherparse::PacketBuilder;

/// The gateway's hardware address, as every segment's.
pub const GATEWAY: [u8; 6] = [0xee, 0xff, 0xff, 0xff, 0xff, 0xff];

/// The segment with names for its hosts.
fn named(generation: u64, address: u8) -> SegmentConfig {
    let ipv4 = [10, 0, 0, address].into();
    let hosts = vec![NamedHost { name: "web".to_owned(), ipv4 }];
    let domain = Some("lab.internal".to_owned());
    let names = SegmentNames { servers: bixi_api::network::name_servers(), domain, hosts };
    SegmentConfig { generation, dns: vec![], names: Some(names), ..segment() }
}

/// Asks the card for the address of `web.lab.internal`; the response code and the last four bytes.
fn ask(guest: &mut Guest) -> (u8, [u8; 4]) {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], GATEWAY)
        .ipv4([10, 0, 0, 1], [100, 100, 2, 136], 64)
        .udp(4000, 53)
        .write(
            &mut frame,
            b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03web\x03lab\x08internal\0\0\x01\0\x01",
        )
        .unwrap();
    guest.send_plain(&frame);
    let got = guest.receive(0).1;
    (got[45] & 15, *got.last_chunk().unwrap())
}

#[test]
fn names_are_answered_changed_and_survive_a_kill() {
    let mut server = Server::start(&[]);
    server.put::<SegmentDescription>("/v1/segments/7", &named(1, 9)).unwrap();
    let socket = server.add_port(1, 1);
    let mut guest = Guest::connect(&socket, &Shape::default());
    assert_eq!(ask(&mut guest), (0, [10, 0, 0, 9]));
    let shown = server.command(&["segment", "show", "7"]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("lab.internal") && shown.contains("web"), "{shown}");

    server.put::<SegmentDescription>("/v1/segments/7", &named(2, 8)).unwrap();
    assert_eq!(ask(&mut guest), (0, [10, 0, 0, 8]));
    server.kill();
    server.restart();
    guest.wait_starts(2);
    assert_eq!(ask(&mut guest), (0, [10, 0, 0, 8]));
    let read: SegmentDescription = server.get("/v1/segments/7").unwrap();
    assert_eq!(read.config, named(2, 8));
}
