//! Segments that reach other servers: between two processes, and with Linux's own VXLAN as an independent peer.

use crate::guest::{Guest, Shape, large_tcp, pattern, udp};
use crate::namespace::{Cable, run};
use crate::server::{PATIENCE, Server, segment, wait_for};
use bixi_api::network::{
    NetworkDescription, Peer, SegmentConfig, SegmentDescription, UnderlayStatistics,
};
use std::net::UdpSocket;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Where host `n` of segment 7 is: the odd on the first server, the even on the second.
fn peer(n: u8) -> Peer {
    let server = if n % 2 == 1 { 1 } else { 2 };
    Peer {
        mac: format!("02:00:00:00:00:{n:02x}"),
        ipv4: [10, 0, 0, n].into(),
        endpoint: format!("192.0.2.{server}:4789").parse().unwrap(),
    }
}

/// The same for every server.
fn config() -> SegmentConfig {
    SegmentConfig { peers: (1..=4).map(peer).collect(), ..segment() }
}

fn server(cable: &Cable, side: usize) -> Server {
    let own = format!("192.0.2.{}", side + 1);
    let server = Server::start_in(Some(cable.side(side)), &["--underlay", &own]);
    server.put::<SegmentDescription>("/v1/segments/7", &config()).unwrap();
    server
}

fn guest(server: &Server, n: u8) -> Guest {
    Guest::connect(&server.add_port(n, 1), &Shape::default())
}

fn underlay(server: &Server) -> UnderlayStatistics {
    server.get::<NetworkDescription>("/v1/network").unwrap().underlay_statistics.unwrap()
}

/// Captures what arrives at a side until told to stop.
struct Capture {
    tcpdump: Child,
    file: std::path::PathBuf,
}

impl Capture {
    /// None where there is no tcpdump or tshark.
    fn start(cable: &Cable, side: usize, folder: &std::path::Path) -> Option<Self> {
        run("tshark --version").ok()?;
        let file = folder.join("capture");
        let mut command = Command::new("ip");
        command.args([
            "netns",
            "exec",
            cable.side(side),
            "tcpdump",
            "-U",
            "-Z",
            "root",
            "-i",
            "under0",
            "-s",
            "0",
        ]);
        let tcpdump = command.arg("-w").arg(&file).stderr(Stdio::null()).spawn().ok()?;
        let capture = Self { tcpdump, file };
        wait_for("tcpdump", || std::fs::metadata(&capture.file).ok().filter(|file| file.len() > 0));
        Some(capture)
    }

    /// Stops, and gives what tshark finds with this filter. Checksums of the outer packets are the kernel's to complete
    /// and are not looked at.
    fn find(&self, filter: &str) -> String {
        let file = self.file.to_str().unwrap();
        let mut command = Command::new("tshark");
        command.args([
            "-r",
            file,
            "-o",
            "tcp.check_checksum:TRUE",
            "-o",
            "ip.check_checksum:TRUE",
            "-Y",
            filter,
        ]);
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.tcpdump.kill();
        let _ = self.tcpdump.wait();
    }
}

/// Frames both ways, bursts and a large one: 293 frames there, 100 back.
fn exchange(a: &mut Guest, b: &mut Guest) {
    for n in 0..100u16 {
        let frame = udp(1, 2, 1000 + n % 7, &pattern(usize::from(n) * 14));
        a.send_plain(&frame);
        assert!(b.receive(0).1 == frame, "frame {n}");
        let back = udp(2, 1, 1000 + n % 7, &pattern(60));
        b.send_plain(&back);
        assert!(a.receive(0).1 == back);
    }
    // A burst of small frames leaves in few messages and arrives in order.
    for n in 0..150u8 {
        a.send_plain(&udp(1, 2, 1000, &[n]));
    }
    for n in 0..150u8 {
        assert_eq!(b.receive(0).1[42], n);
    }
    // A large frame is cut to the guest's own segment size, with complete checksums.
    let payload = pattern(60_000);
    let (header, frame) = large_tcp(1, 2, &payload, 1396);
    a.send(0, &header, &frame);
    let mut together = Vec::new();
    while together.len() < payload.len() {
        let (header, segment) = b.receive(0);
        assert_eq!(header, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        assert!(segment.len() <= 1450 + 14);
        together.extend_from_slice(&segment[54..]);
    }
    assert!(together == payload);
    a.drain(0);
    b.drain(0);
}

#[test]
fn a_segment_spans_two_servers() {
    let Some(cable) = Cable::lay("a_segment_spans_two_servers") else { return };
    let (here, there) = (server(&cable, 0), server(&cable, 1));
    let (mut a, mut b) = (guest(&here, 1), guest(&there, 2));
    exchange(&mut a, &mut b);
    let seen = underlay(&here);
    assert_eq!((seen.sent, seen.received), (293, 100));
    assert_eq!(
        (underlay(&there).received, underlay(&there).received_bytes),
        (293, seen.sent_bytes)
    );
    // One that does not fit the segment's MTU is not sent.
    let (header, frame) = large_tcp(1, 2, &pattern(60_000), 1420);
    a.send(0, &header, &frame);
    a.drain(0);
    wait_for("the drop", || (here.statistics(1).too_big == 1).then_some(()));
    assert_eq!(underlay(&here).sent, 293);
    let told = a.receive(0).1;
    assert_eq!(
        (told[23], &told[34..36], &told[40..42]),
        (1, &[3, 4][..], &1450u16.to_be_bytes()[..])
    );

    // The same once more over a cable that carries one datagram at a time, with somebody who listens.
    let cut = cable.ip(0, "link set under0 gso_max_segs 1");
    let capture = Capture::start(&cable, 1, here.folder.path());
    exchange(&mut a, &mut b);
    let (Ok(_), Some(capture)) = (cut, capture) else {
        println!("a_segment_spans_two_servers: no tshark, tcpdump or recent ip: nobody listened");
        return;
    };
    let inner = "vxlan && ip.src == 10.0.0.1";
    wait_for("the capture", || (capture.find(inner).lines().count() >= 293).then_some(()));
    let bad = "_ws.malformed || tcp.checksum.status == \"Bad\" || ip.checksum.status == \"Bad\" || ip.flags.mf == 1";
    assert_eq!(capture.find(bad), "");
}

#[test]
fn the_network_between_servers_may_be_ipv6() {
    let Some(cable) = Cable::lay("the_network_between_servers_may_be_ipv6") else { return };
    // IPv6 costs 20 bytes more.
    let peers = [1, 2]
        .map(|n| Peer { endpoint: format!("[2001:db8::{n}]:4789").parse().unwrap(), ..peer(n) });
    let config = SegmentConfig { peers: peers.to_vec(), mtu: 1430, ..segment() };
    let [here, there] = [0, 1].map(|side| {
        let own = format!("2001:db8::{}", side + 1);
        let server = Server::start_in(Some(cable.side(side)), &["--underlay", &own]);
        server.put::<SegmentDescription>("/v1/segments/7", &config).unwrap();
        server
    });
    let (mut a, mut b) = (guest(&here, 1), guest(&there, 2));
    for n in 0..100u16 {
        let frame = udp(1, 2, 1000, &pattern(usize::from(n) * 14));
        a.send_plain(&frame);
        assert!(b.receive(0).1 == frame, "frame {n}");
    }
    let payload = pattern(40_000);
    let (header, frame) = large_tcp(1, 2, &payload, 1376);
    a.send(0, &header, &frame);
    let mut together = Vec::new();
    while together.len() < payload.len() {
        together.extend_from_slice(&b.receive(0).1[54..]);
    }
    assert!(together == payload);
    assert_eq!(underlay(&here).send_failed, 0);
}

#[test]
fn flows_leave_from_several_source_ports() {
    let Some(cable) = Cable::lay("flows_leave_from_several_source_ports") else { return };
    let here = server(&cable, 0);
    let listener = cable.within(1, || UdpSocket::bind("192.0.2.2:4789").unwrap());
    listener.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut a = guest(&here, 1);
    let mut ports = std::collections::BTreeSet::new();
    for flow in 0..64 {
        let mut bytes = [0; 2000];
        let mut from_of = |payload: &[u8]| {
            a.send_plain(&udp(1, 2, 2000 + flow, payload));
            let (length, from) = listener.recv_from(&mut bytes).unwrap();
            assert_eq!(bytes[..8], [8, 0, 0, 0, 0, 0, 7, 0]);
            assert!(bytes[8..length] == udp(1, 2, 2000 + flow, payload));
            from
        };
        let first = from_of(b"x");
        assert_eq!(first, from_of(b"another of the same flow"));
        assert_eq!(first.ip(), std::net::Ipv4Addr::new(192, 0, 2, 1));
        ports.insert(first.port());
    }
    assert!(ports.len() > 10, "{ports:?}");
}

#[test]
fn what_does_not_belong_here_is_dropped_and_counted() {
    let Some(cable) = Cable::lay("what_does_not_belong_here_is_dropped_and_counted") else {
        return;
    };
    let here = server(&cable, 0);
    let mut a = guest(&here, 1);
    cable.ip(1, "addr add 192.0.2.3/24 dev under0").unwrap();
    let (known, stranger) = cable.within(1, || {
        (UdpSocket::bind("192.0.2.2:0").unwrap(), UdpSocket::bind("192.0.2.3:0").unwrap())
    });
    let wrap = |vni: u8, frame: &[u8]| [&[8, 0, 0, 0, 0, 0, vni, 0], frame].concat();
    let send = |socket: &UdpSocket, bytes: &[u8]| socket.send_to(bytes, "192.0.2.1:4789").unwrap();
    let good = udp(2, 1, 5, b"good");
    let mut ipv6 = good.clone();
    ipv6[12..14].copy_from_slice(&[0x86, 0xdd]);
    let mut cut = good.clone();
    cut.truncate(30);
    send(&known, &wrap(7, &good));
    assert_eq!(a.receive(0).1, good);
    send(&known, &[]);
    send(&known, &[8, 0, 0]);
    send(&known, &[0, 0, 0, 0, 0, 0, 7, 0, 1, 2, 3]);
    send(&known, &wrap(7, &cut));
    send(&known, &wrap(8, &good));
    send(&stranger, &wrap(7, &good));
    send(&known, &wrap(7, &udp(2, 3, 5, b"not here")));
    send(&known, &wrap(7, &udp(2, 4, 5, b"its own")));
    send(&known, &wrap(7, &ipv6));
    send(&known, &wrap(7, &udp(2, 1, 5, &pattern(1500))));
    send(&known, &wrap(7, &good));
    assert_eq!(a.receive(0).1, good);
    let seen = wait_for("the counters", || {
        let seen = underlay(&here);
        (seen.received == 2 && seen.not_carried == 2).then_some(seen)
    });
    assert_eq!((seen.malformed, seen.unknown_segment, seen.unknown_server), (4, 1, 1));
    assert_eq!(seen.unknown_destination, 2);
}

#[test]
fn a_network_that_does_not_take_a_datagram_is_counted() {
    let Some(cable) = Cable::lay("a_network_that_does_not_take_a_datagram_is_counted") else {
        return;
    };
    let here = server(&cable, 0);
    let mut a = guest(&here, 1);
    cable.ip(0, "link set under0 mtu 1000").unwrap();
    for port in 0..3 {
        a.send_plain(&udp(1, 2, 1000 + port, &pattern(1200)));
    }
    wait_for("the counter", || (here.statistics(1).underlay_failed == 3).then_some(()));
    a.send_plain(&udp(1, 2, 1000, &pattern(800)));
    wait_for("the counter", || (underlay(&here).sent == 1).then_some(()));
    assert_eq!(underlay(&here).send_failed, 3);
}

#[test]
fn a_segment_goes_on_when_one_end_is_killed() {
    let Some(cable) = Cable::lay("a_segment_goes_on_when_one_end_is_killed") else { return };
    let (mut here, mut there) = (server(&cable, 0), server(&cable, 1));
    let (mut a, mut b) = (guest(&here, 1), guest(&there, 2));
    for round in 0..4u16 {
        let victim = if round % 2 == 0 { &mut here } else { &mut there };
        victim.kill();
        victim.restart();
        wait_for("a frame", || {
            a.try_send(0, &[0; 12], &udp(1, 2, round, b"x"));
            b.try_receive(0).filter(|(_, frame)| *frame == udp(1, 2, round, b"x"))
        });
        while b.try_receive(0).is_some() {}
    }
    a.drain(0);
}

/// An ICMP echo request from host 1 to host 2.
fn ping(sequence: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .icmpv4_echo_request(7, sequence)
        .write(&mut frame, payload)
        .unwrap();
    frame
}

#[test]
fn linux_s_own_vxlan_understands_us_and_we_it() {
    let name = "linux_s_own_vxlan_understands_us_and_we_it";
    let Some(cable) = Cable::lay(name) else { return };
    let made = cable.ip(
        1,
        "link add vx0 address 02:00:00:00:00:02 mtu 1450 type vxlan id 7 dev under0 \
        local 192.0.2.2 remote 192.0.2.1 dstport 4789",
    );
    if let Err(reason) = made {
        println!("skipped {name}: the kernel has no VXLAN ({reason})");
        return;
    }
    cable.ip(1, "addr add 10.0.0.2/24 dev vx0").unwrap();
    cable.ip(1, "link set vx0 up").unwrap();
    cable.ip(1, "neigh replace 10.0.0.1 lladdr 02:00:00:00:00:01 dev vx0").unwrap();
    let here = server(&cable, 0);
    let mut a = guest(&here, 1);
    // The kernel says things of its own to groups on a new link; they are no answer to us.
    let answer_to = |a: &mut Guest, sequence: u16, payload: &[u8]| {
        let deadline = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < deadline, "no answer to ping {sequence}");
            let (header, frame) = a.receive(0);
            if frame[23] == 1 && frame[34] == 0 && frame[40..42] == sequence.to_be_bytes() {
                assert_eq!(header[..10], [0; 10]);
                assert!(&frame[42..] == payload, "the kernel saw other bytes");
                return;
            }
        }
    };
    for sequence in 0..100 {
        let payload = pattern(usize::from(sequence) * 14);
        a.send_plain(&ping(sequence, &payload));
        answer_to(&mut a, sequence, &payload);
    }
    // As many at once as leave in one message, cut by the kernel.
    for sequence in 100..130 {
        a.send_plain(&ping(sequence, &pattern(200)));
    }
    for sequence in 100..130 {
        answer_to(&mut a, sequence, &pattern(200));
    }
    // UDP both ways through the kernel's sockets.
    let socket = cable.within(1, || UdpSocket::bind("10.0.0.2:9").unwrap());
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut bytes = [0; 2000];
    a.send_plain(&udp(1, 2, 4000, &pattern(1400)));
    let (length, from) = socket.recv_from(&mut bytes).unwrap();
    assert!(from == "10.0.0.1:4000".parse().unwrap() && bytes[..length] == pattern(1400));
    socket.send_to(&pattern(1000), from).unwrap();
    let got = wait_for("the kernel's datagram", || {
        a.try_receive(0).filter(|(_, f)| f[23] == 17 && f[30..34] == [10, 0, 0, 1])
    });
    assert!(got.1[42..] == pattern(1000));
}
