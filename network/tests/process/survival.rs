//! kill -9: ports, segments, flows and leases go on; no descriptor is lost.

use crate::guest::{Guest, Shape, udp};
use crate::server::{Server, segment, wait_for};
use bixi_api::network::{PortDescription, SegmentDescription};
use etherparse::PacketBuilder;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

fn dhcp_request() -> Vec<u8> {
    let mut message = vec![0u8; 243];
    message[..4].copy_from_slice(&[1, 1, 6, 0]);
    message[28..34].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    message[236..240].copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
    message[240..].copy_from_slice(&[53, 1, 3]);
    message.extend_from_slice(&[50, 4, 10, 0, 0, 1, 255]);
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [0xff; 6])
        .ipv4([0; 4], [255; 4], 64)
        .udp(68, 67)
        .write(&mut frame, &message)
        .unwrap();
    frame
}

#[test]
fn what_was_promised_is_there_after_a_kill() {
    let mut server = Server::start(&[]);
    server.put::<SegmentDescription>("/v1/segments/7", &segment()).unwrap();
    let sockets = [1, 2].map(|n| server.add_port(n, 1));
    let [mut a, mut b] = sockets.each_ref().map(|socket| Guest::connect(socket, &Shape::default()));
    a.send_plain(&dhcp_request());
    assert_eq!(a.receive(0).1[58..62], [10, 0, 0, 1]);
    for flow in 0..50 {
        a.send_plain(&udp(1, 2, 1000 + flow, b"x"));
        b.receive(0);
    }
    let before = server.describe(1);
    assert!(before.lease_until.is_some());
    assert_eq!(before.statistics.flows, 50);

    server.kill();
    server.restart();
    let after = server.describe(1);
    assert_eq!((after.port, after.lease_until), (before.port, before.lease_until));
    assert_eq!((after.statistics.flows, after.statistics.torn_records), (50, 0));
    let segments: Vec<SegmentDescription> = server.get("/v1/segments").unwrap();
    assert_eq!(segments, [SegmentDescription { vni: 7, config: segment() }]);
    a.wait_starts(2);
    b.wait_starts(2);
    for flow in 0..50 {
        a.send_plain(&udp(1, 2, 1000 + flow, b"y"));
        assert_eq!(b.receive(0).1[42], b'y');
    }
    assert_eq!(server.statistics(1).flows, 50, "flows were found again, not made anew");
}

#[test]
fn frames_sent_while_nobody_is_there_arrive_when_somebody_is() {
    let mut server = Server::start(&[]);
    let sockets = [1, 2].map(|n| server.add_port(n, 1));
    let [mut a, mut b] = sockets.each_ref().map(|socket| Guest::connect(socket, &Shape::default()));
    server.kill();
    for n in 0..40 {
        assert!(a.try_send(0, &[0; 12], &udp(1, 2, 1000, &[n])));
    }
    server.restart();
    // Whoever comes first finds the other not there yet and loses what it sent; so send until the other has come.
    b.wait_starts(2);
    let last = wait_for("a frame", || {
        a.try_send(0, &[0; 12], &udp(1, 2, 1000, &[99]));
        b.try_receive(0)
    });
    assert!(last.1[42] == 99 || last.1[42] < 40);
    a.drain(0);
}

#[test]
fn no_descriptor_is_lost_when_the_process_is_killed_under_traffic() {
    const KILLS: u64 = 8;
    const BUFFERS: usize = 60;
    let mut server = Server::start(&[]);
    let sockets = [1, 2].map(|n| server.add_port(n, 1));
    let shape = Shape { queue_size: 64, buffers: BUFFERS, ..Shape::default() };
    let [a, b] = sockets.each_ref().map(|socket| Guest::connect(socket, &shape));
    let stop = AtomicBool::new(false);
    // Each guest sends as fast as it can and gives every buffer back, while the process dies and comes back.
    let busy = |mut guest: Guest, from: u8, to: u8| {
        let (mut sent, mut got) = (0u64, 0u64);
        while !stop.load(Ordering::Relaxed) {
            sent += u64::from(guest.try_send(0, &[0; 12], &udp(from, to, 1000, &[0; 300])));
            while let Some((_, frame)) = guest.try_receive(0) {
                assert!(frame == udp(to, from, 1000, &[0; 300]), "a frame came to harm");
                got += 1;
            }
        }
        (guest, sent, got)
    };
    let guests = std::thread::scope(|scope| {
        let threads = [scope.spawn(|| busy(a, 1, 2)), scope.spawn(|| busy(b, 2, 1))];
        for kill in 1..=KILLS {
            let before: PortDescription = server.describe(2);
            wait_for("traffic", || {
                let now = server.describe(2);
                (now.connected && now.statistics.received > before.statistics.received + 500)
                    .then_some(())
            });
            server.kill();
            server.restart();
            assert!(kill <= KILLS);
        }
        wait_for("traffic after the last kill", || {
            (server.statistics(1).received > 500 && server.statistics(2).received > 500)
                .then_some(())
        });
        stop.store(true, Ordering::Relaxed);
        threads.map(|thread| thread.join().unwrap())
    });
    let [(mut a, sent, _), (mut b, _, got)] = guests;
    assert!(sent > 1000 && got > 1000, "{sent} sent, {got} came");
    assert_eq!((a.starts(), b.starts()), (KILLS + 1, KILLS + 1));

    // Everything that was sent is used, and every buffer can still be filled: exactly as many frames come as there are
    // buffers, then none.
    a.drain(0);
    b.drain(0);
    while b.take(0, true).is_some() {}
    b.pairs[0].receive.submit();
    assert_eq!(b.pairs[0].receive.in_flight(), BUFFERS);
    let dropped = server.statistics(2).no_buffer;
    for n in 0..BUFFERS + 10 {
        a.send_plain(&udp(1, 2, 1000, &[n as u8]));
    }
    a.drain(0);
    wait_for("the frames too many", || {
        (server.statistics(2).no_buffer == dropped + 10).then_some(())
    });
    for n in 0..BUFFERS {
        assert_eq!(b.take(0, false).unwrap().1[42], n as u8);
    }
    assert!(b.take(0, false).is_none());
}

#[test]
fn a_killed_process_is_back_in_no_time() {
    let mut server = Server::start(&[]);
    let sockets: Vec<_> = (1..=40).map(|n| server.add_port(n, 1)).collect();
    let guest = Guest::connect(&sockets[39], &Shape::default());
    let killed = Instant::now();
    server.kill();
    server.restart();
    guest.wait_starts(2);
    let gap = killed.elapsed();
    assert!(gap < Duration::from_secs(5), "{gap:?}");
    println!("a port of forty was served again {gap:?} after the kill");
}
