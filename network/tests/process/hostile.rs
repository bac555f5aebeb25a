//! Front ends and guests that do what they should not: their session ends, and nothing else.

use crate::guest::{Guest, Shape, udp};
use crate::server::{Server, wait_for};
use std::io::Write;
use std::os::unix::net::UnixStream;

/// A small generator of numbers, the same in each run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 24
    }
}

#[test]
fn garbage_on_a_ports_socket_ends_that_session_only() {
    let mut server = Server::start(&[]);
    let sockets = [1, 2, 3].map(|n| server.add_port(n, 1));
    let mut a = Guest::connect(&sockets[0], &Shape::default());
    let mut b = Guest::connect(&sockets[1], &Shape::default());
    let mut numbers = Numbers(1);
    for round in 0..200 {
        let Ok(mut stream) = UnixStream::connect(&sockets[2]) else { continue };
        for _ in 0..numbers.next() % 8 {
            // A header that may be one: request, flags with version 1, length; then anything.
            let length = (numbers.next() % 64) as usize;
            let mut message =
                vec![(numbers.next() % 50) as u8, 0, 0, 0, 1 | (numbers.next() as u8 & 8), 0, 0, 0];
            message.extend_from_slice(&(length as u32).to_le_bytes());
            message.extend((0..length).map(|_| numbers.next() as u8));
            if stream.write_all(&message).is_err() {
                break;
            }
        }
        if round % 20 == 0 {
            a.send_plain(&udp(1, 2, round, b"x"));
            assert_eq!(b.receive(0).1, udp(1, 2, round, b"x"));
        }
    }
    assert!(server.is_alive());
    wait_for("a fault to be told", || server.describe(3).last_fault);
    // The port takes a front end that behaves.
    let mut c = Guest::connect(&sockets[2], &Shape::default());
    a.send_plain(&udp(1, 3, 1, b"x"));
    assert_eq!(c.receive(0).1, udp(1, 3, 1, b"x"));
}

#[test]
fn a_guest_that_breaks_its_rings_loses_its_session_and_others_none() {
    let mut server = Server::start(&[]);
    let sockets = [1, 2, 3].map(|n| server.add_port(n, 1));
    let mut a = Guest::connect(&sockets[0], &Shape::default());
    let mut b = Guest::connect(&sockets[1], &Shape::default());
    let breaks: [fn(&mut Guest); 4] = [
        |guest| guest.pairs[0].transmit.write_avail_idx(0x7777),
        |guest| {
            guest.pairs[0].transmit.push_raw(9999);
            let _ = guest.pairs[0].transmit.publish();
        },
        |guest| {
            guest.pairs[0].transmit.write_descriptor(5, 0xffff_ffff_ffff_f000, 4096, 0, 0);
            guest.pairs[0].transmit.push_raw(5);
            let _ = guest.pairs[0].transmit.publish();
        },
        |guest| {
            guest.pairs[0].transmit.write_descriptor(5, 0x10_0000, 64, 1, 5);
            guest.pairs[0].transmit.push_raw(5);
            let _ = guest.pairs[0].transmit.publish();
        },
    ];
    for (round, break_it) in breaks.into_iter().enumerate() {
        let mut c = Guest::connect(&sockets[2], &Shape::default());
        break_it(&mut c);
        c.pairs[0].transmit.kick();
        wait_for("the session's end", || {
            let told = c.keeper.with(|client| client.downs().len()).unwrap();
            (told > 0).then_some(())
        });
        let fault = wait_for("the reason", || server.describe(3).last_fault);
        assert!(fault.contains("queue 1"), "{fault}");
        drop(c);
        let frame = udp(1, 2, round as u16, b"x");
        a.send_plain(&frame);
        assert!(b.receive(0).1 == frame);
    }
    assert!(server.is_alive());
    assert_eq!(a.starts() + b.starts(), 2);
}

#[test]
fn a_front_end_that_shrinks_its_memory_loses_its_session_only() {
    use bixi_offload::frontend::{Backing, Client, DriverQueue, FrontConfig, GuestArena};
    let mut server = Server::start(&[]);
    let sockets = [1, 2, 3].map(|n| server.add_port(n, 1));
    let mut a = Guest::connect(&sockets[0], &Shape::default());
    let mut b = Guest::connect(&sockets[1], &Shape::default());

    let mut arena = GuestArena::new(0x10_0000, 4 << 20, Backing::Unsealed).unwrap();
    let queues =
        [0, 1].map(|index| DriverQueue::new(&mut arena, index, 64, crate::guest::PLAIN).unwrap());
    let config =
        FrontConfig { features: u64::MAX, rings: 2, in_order: true, ..FrontConfig::default() };
    let mut client = Client::new(config, &sockets[2], &arena);
    client.activate(crate::guest::PLAIN, &queues.each_ref(), crate::server::PATIENCE).unwrap();
    let (_, file) = arena.regions().pop().unwrap();
    rustix::fs::ftruncate(&*file, 0).unwrap();
    a.send_plain(&udp(1, 3, 1, b"x"));
    queues[1].kick();
    wait_for("the reason", || server.describe(3).last_fault);
    assert!(server.is_alive());
    a.send_plain(&udp(1, 2, 1, b"x"));
    assert_eq!(b.receive(0).1, udp(1, 2, 1, b"x"));
    // Our own map of that memory must not be touched any more.
    std::mem::forget((client, queues, arena));
}

#[test]
fn a_port_that_wants_sealed_memory_gets_no_other() {
    use bixi_offload::frontend::{Backing, Client, DriverQueue, FrontConfig, GuestArena};
    let server = Server::start(&[]);
    let add = bixi_api::network::PortAdd { require_sealed: true, ..server.port(1, 1) };
    server.put::<bixi_api::network::PortDescription>("/v1/ports/p1", &add).unwrap();
    let mut arena = GuestArena::new(0x10_0000, 4 << 20, Backing::Unsealed).unwrap();
    let queues =
        [0, 1].map(|index| DriverQueue::new(&mut arena, index, 64, crate::guest::PLAIN).unwrap());
    let config =
        FrontConfig { features: u64::MAX, rings: 2, in_order: true, ..FrontConfig::default() };
    let mut client = Client::new(config, &add.socket, &arena);
    let soon = std::time::Duration::from_millis(500);
    assert!(client.activate(crate::guest::PLAIN, &queues.each_ref(), soon).is_err());
    let fault = wait_for("the reason", || server.describe(1).last_fault);
    assert!(fault.contains("sealed"), "{fault}");
}
