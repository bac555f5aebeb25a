//! What the card answers its guests itself: names and metadata.

use crate::guest::{Guest, PLAIN, Shape};
use crate::namespace::Cable;
use crate::server::{Server, refused, segment};
use crate::tap::Tap;
use bixi_api::network::{
    Document, HttpTokens, MetadataDescription, NamedHost, PortDescription, PortMetadata,
    SegmentConfig, SegmentDescription, SegmentNames,
};
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

/// Metadata of an instance, as its controller would tell it.
fn metadata(generation: u64, instance: &str, http_tokens: HttpTokens) -> PortMetadata {
    let text = |text: &str| Document::Text(text.to_owned());
    let documents = [
        ("latest/meta-data/instance-id", text(instance)),
        ("latest/meta-data/hostname", text("web")),
        ("latest/meta-data/public-keys/0/openssh-key", text("ssh-ed25519 AAAA root@web")),
        ("latest/user-data", Document::Base64("IyEvYmluL3NoCg==".to_owned())),
        ("nocloud/meta-data", text(&format!("instance-id: {instance}\n"))),
        ("nocloud/user-data", text("#cloud-config\n")),
    ];
    let documents = documents.map(|(path, document)| (path.to_owned(), document)).into();
    PortMetadata { generation, http_tokens, documents }
}

#[test]
fn metadata_has_generations_limits_and_goes_with_its_port() {
    let server = Server::start(&[]);
    let path = "/v1/ports/p1/metadata";
    let told = metadata(3, "i-1", HttpTokens::Optional);
    let nobody = server.put::<MetadataDescription>(path, &told);
    assert_eq!(refused(nobody).code, "NoSuchPort");
    server.add_port(1, 1);
    assert_eq!(refused(server.get::<MetadataDescription>(path)).code, "NoMetadata");
    let known: MetadataDescription = server.put(path, &told).unwrap();
    assert_eq!((known.generation, known.documents), (3, 6));
    assert_eq!(server.put::<MetadataDescription>(path, &told).unwrap(), known);
    assert_eq!(server.describe(1).metadata, Some(3));
    let code = |told| refused(server.put::<MetadataDescription>(path, &told)).code;
    assert_eq!(code(metadata(2, "i-1", HttpTokens::Optional)), "StaleGeneration");
    assert_eq!(code(metadata(3, "i-2", HttpTokens::Optional)), "MetadataExists");
    let mut bad = metadata(4, "i-1", HttpTokens::Optional);
    bad.documents.insert("latest/user-data/x".to_owned(), Document::Text(String::new()));
    assert_eq!(code(bad), "BadMetadata");
    // The port may be placed anew and keeps it; deleted, it does not.
    let again = bixi_api::network::PortAdd { epoch: 2, ..server.port(1, 1) };
    server.put::<PortDescription>("/v1/ports/p1", &again).unwrap();
    assert_eq!(server.describe(1).metadata, Some(3));
    server.delete("/v1/ports/p1").unwrap();
    server.put::<PortDescription>("/v1/ports/p1", &again).unwrap();
    assert_eq!(server.describe(1).metadata, None);
    let left = std::fs::read_dir(server.path("state/metadata")).unwrap().count();
    assert_eq!(left, 0);
}

#[test]
fn curl_and_a_resolver_in_a_guest_of_linux_are_answered_across_a_kill() {
    let test = "curl_and_a_resolver_in_a_guest_of_linux_are_answered_across_a_kill";
    if std::process::Command::new("curl").arg("--version").output().is_err() {
        println!("skipped {test}: no curl (apt-get install curl)");
        return;
    }
    let Some(cable) = Cable::lay(test) else { return };
    let mut server = Server::start(&[]);
    server.put::<SegmentDescription>("/v1/segments/7", &named(1, 9)).unwrap();
    let socket = server.add_port(1, 1);
    let path = "/v1/ports/p1/metadata";
    let tell = |server: &Server, told: &PortMetadata| {
        server.put::<MetadataDescription>(path, told).unwrap();
    };
    tell(&server, &metadata(1, "i-1", HttpTokens::Optional));
    let shape = Shape { features: PLAIN, ..Shape::default() };
    let guest = Guest::connect(&socket, &shape);
    let tap = Tap::new(&cable, 0, guest);
    let curl = |arguments: &[&str]| {
        let (_, text) = tap.run(&[&["curl", "-s", "-m", "20"], arguments].concat());
        text
    };
    let status = |arguments: &[&str]| {
        curl(&[&["-o", "/dev/null", "-w", "%{http_code}"], arguments].concat())
    };
    for address in ["100.100.100.200", "169.254.169.254"] {
        for version in ["latest", "2016-01-01"] {
            let url = |path: &str| format!("http://{address}/{version}/{path}");
            assert_eq!(curl(&[&url("meta-data/instance-id")]), "i-1");
            assert_eq!(curl(&[&url("meta-data/")]), "hostname\ninstance-id\npublic-keys/");
            // Two on one connection.
            let both = curl(&[&url("user-data"), &url("meta-data/hostname")]);
            assert_eq!(both, "#!/bin/sh\nweb");
            assert_eq!(status(&[&url("vendor-data")]), "404");
        }
    }
    assert_eq!(curl(&["http://169.254.169.254/nocloud/meta-data"]), "instance-id: i-1\n");

    tell(&server, &metadata(2, "i-1", HttpTokens::Required));
    let id = "http://100.100.100.200/2016-01-01/meta-data/instance-id";
    let token_url = "http://100.100.100.200/latest/api/token";
    let ttl = "X-aliyun-ecs-metadata-token-ttl-seconds: 21600";
    assert_eq!(status(&[id]), "403");
    let token = curl(&["-X", "PUT", token_url, "-H", ttl]);
    let header = format!("X-aliyun-ecs-metadata-token: {token}");
    assert_eq!(curl(&["-H", &header, id]), "i-1");

    server.kill();
    server.restart();
    assert_eq!(curl(&["--retry", "9", "--retry-connrefused", "-H", &header, id]), "i-1");
    assert_eq!(status(&[id]), "403", "what was told is forgotten");

    let resolv = server.path("resolv.conf");
    std::fs::write(&resolv, "nameserver 100.100.2.136\nsearch lab.internal\n").unwrap();
    let lookup =
        format!("mount --bind {} /etc/resolv.conf && getent ahostsv4 web", resolv.display());
    let (_, found) = tap.run(&["unshare", "--mount", "sh", "-c", &lookup]);
    assert!(found.starts_with("10.0.0.9 "), "{found}");
    assert!(server.statistics(1).answered > 10);
}
