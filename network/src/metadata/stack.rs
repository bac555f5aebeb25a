//! TCP between one port's guest and the metadata server: [`smoltcp`]'s, fed with the frames of that port alone.
//!
//! ```text
//! listening ── SYN ──► connection: request ─► answer ─► request … ── idle, too old, or done ──► gone
//!     ▲                                                                                          │
//!     └────────────── while there are fewer than CONNECTIONS ────────────────────────────────────┘
//! ```
//!
//! Off the fast path and driven by it: a packet of the guest is taken, what is to be sent back is collected, and a
//! deadline says when to look again. Without connections the stack need not be kept.
//!
//! Invariants: buffers are of fixed size and at most [`CONNECTIONS`] times; a connection that does not move for
//! [`IDLE`], or is older than [`LONGEST`], is reset; a turn ends after bounded work, whatever the guest sends. Packets
//! are never longer than every segment's MTU allows. No clock is read here. Called by [`crate::switch`].

use super::Metadata;
use super::http::{self, Answer, HEAD_LIMIT};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::HardwareAddress;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The most connections of a guest at a time.
pub const CONNECTIONS: usize = 8;
/// How long a connection may stand still.
pub const IDLE: Duration = Duration::from_secs(10);
/// How long a connection may last.
pub const LONGEST: Duration = Duration::from_secs(60);
/// The longest packet: what every host must take (RFC 791), and the least MTU that a segment can have.
const MTU: usize = 576;
/// Bytes that a guest may send ahead.
const RECEIVE_BUFFER: usize = 2048;
/// Bytes on their way to a guest.
const SEND_BUFFER: usize = 4096;
/// Packets for the guest that may wait; the rest stays with its connection until the next turn.
const WAITING: usize = 64;
/// How often a turn looks again because something moved.
const ROUNDS: usize = 8;

/// What time it is.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// For time-outs.
    pub instant: Instant,
    /// For tokens: seconds since 1970.
    pub seconds: u64,
}

/// The TCP of one port.
pub struct Stack {
    interface: Interface,
    sockets: SocketSet<'static>,
    wire: Wire,
    listener: Option<SocketHandle>,
    connections: Vec<Connection>,
    started: Instant,
}

impl std::fmt::Debug for Stack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stack").field("connections", &self.connections.len()).finish()
    }
}

/// A guest's connection.
#[derive(Debug)]
struct Connection {
    handle: SocketHandle,
    /// What came and was not answered yet.
    request: Vec<u8>,
    /// The answer under way, and how many bytes of it were sent.
    answer: Option<(Answer, usize)>,
    began: Instant,
    moved: Instant,
}

impl Stack {
    /// A stack without connections.
    pub fn new(now: Now) -> Self {
        let mut wire = Wire::default();
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = now.seconds;
        let mut interface = Interface::new(config, &mut wire, StackInstant::ZERO);
        // Only packets for the server come here, whichever of its addresses they name.
        interface.set_any_ip(true);
        let sockets = SocketSet::new(Vec::new());
        let (listener, connections) = (None, Vec::new());
        let mut stack =
            Self { interface, sockets, wire, listener, connections, started: now.instant };
        stack.listen();
        stack
    }

    fn time(&self, now: Now) -> StackInstant {
        let elapsed = now.instant.saturating_duration_since(self.started);
        StackInstant::from_micros(i64::try_from(elapsed.as_micros()).unwrap_or(i64::MAX))
    }

    /// Takes an IPv4 packet of the guest, without Ethernet header and padding.
    pub fn take(&mut self, packet: &[u8], metadata: &Metadata, now: Now) {
        self.wire.incoming = Some(packet.to_vec());
        self.turn(metadata, now);
    }

    /// Moves what can move.
    pub fn turn(&mut self, metadata: &Metadata, now: Now) {
        let time = self.time(now);
        for _ in 0..ROUNDS {
            self.interface.poll(time, &mut self.wire, &mut self.sockets);
            self.accept(now);
            self.reap();
            let mut moved = false;
            for connection in &mut self.connections {
                let socket = self.sockets.get_mut::<Socket<'_>>(connection.handle);
                moved |= connection.serve(socket, metadata, now);
            }
            if !moved {
                return;
            }
        }
    }

    /// The next packet for the guest.
    pub fn next_packet(&mut self) -> Option<Vec<u8>> {
        self.wire.outgoing.pop_front()
    }

    /// When to take the next turn at the latest; none when there is no connection, so that the stack may go.
    pub fn deadline(&mut self, now: Now) -> Option<Instant> {
        let idle = self.connections.iter().map(Connection::deadline).min()?;
        let time = self.time(now);
        let wait = self.interface.poll_delay(time, &self.sockets);
        let moves = wait.map(|wait| now.instant + Duration::from_micros(wait.total_micros()));
        Some(moves.map_or(idle, |moves| moves.min(idle)))
    }

    fn listen(&mut self) {
        if self.listener.is_some() || self.connections.len() >= CONNECTIONS {
            return;
        }
        let buffer = |size| SocketBuffer::new(vec![0; size]);
        let mut socket = Socket::new(buffer(RECEIVE_BUFFER), buffer(SEND_BUFFER));
        socket.set_nagle_enabled(false);
        if socket.listen(super::PORT).is_ok() {
            self.listener = Some(self.sockets.add(socket));
        }
    }

    /// Makes a connection of a listener that heard a guest, and listens anew.
    fn accept(&mut self, now: Now) {
        let heard = |handle: &mut SocketHandle| {
            self.sockets.get::<Socket<'_>>(*handle).state() != State::Listen
        };
        if let Some(handle) = self.listener.take_if(heard) {
            let (began, moved) = (now.instant, now.instant);
            let request = Vec::new();
            self.connections.push(Connection { handle, request, answer: None, began, moved });
        }
        self.listen();
    }

    /// Forgets connections that have ended. A guest that did not hear our last word asks again and is told that there is
    /// no such connection: nobody waits for that here.
    fn reap(&mut self) {
        let sockets = &mut self.sockets;
        self.connections.retain(|connection| {
            let state = sockets.get::<Socket<'_>>(connection.handle).state();
            let ended = matches!(state, State::Closed | State::TimeWait);
            if ended {
                sockets.remove(connection.handle);
            }
            !ended
        });
        self.listen();
    }
}

impl Connection {
    fn deadline(&self) -> Instant {
        (self.moved + IDLE).min(self.began + LONGEST)
    }

    /// Reads, answers and sends as far as it goes now; whether anything moved.
    fn serve(&mut self, socket: &mut Socket<'_>, metadata: &Metadata, now: Now) -> bool {
        if now.instant >= self.deadline() && socket.is_open() {
            socket.abort();
            return true;
        }
        let mut moved = self.read(socket);
        if self.answer.is_none() {
            match http::step(&self.request, metadata, now.seconds) {
                http::Step::Answer(length, answer) => {
                    self.request.drain(..length);
                    self.answer = Some((answer, 0));
                    moved = true;
                }
                // The guest says no more, and what it said was not all.
                http::Step::More if socket.state() == State::CloseWait && !socket.can_recv() => {
                    socket.close();
                    moved = true;
                }
                http::Step::More => {}
            }
        }
        moved |= self.send(socket);
        if moved {
            self.moved = now.instant;
        }
        moved
    }

    fn read(&mut self, socket: &mut Socket<'_>) -> bool {
        let room = HEAD_LIMIT.saturating_sub(self.request.len());
        if self.answer.is_some() || room == 0 || !socket.can_recv() {
            return false;
        }
        let take = |bytes: &mut [u8]| {
            let length = bytes.len().min(room);
            self.request.extend_from_slice(&bytes[..length]);
            (length, length)
        };
        socket.recv(take).is_ok_and(|length| length > 0)
    }

    fn send(&mut self, socket: &mut Socket<'_>) -> bool {
        let Some((answer, sent)) = &mut self.answer else { return false };
        let before = *sent;
        loop {
            let in_body = sent.checked_sub(answer.head.len());
            let rest = match in_body {
                None => answer.head.get(*sent..).unwrap_or_default(),
                Some(at) => answer.body.get(at..).unwrap_or_default(),
            };
            if rest.is_empty() {
                break;
            }
            match socket.send_slice(rest) {
                Ok(0) | Err(_) => return *sent > before,
                Ok(length) => *sent += length,
            }
        }
        if answer.close {
            // It keeps its answer, so that nothing more is read.
            socket.close();
            return *sent > before;
        }
        self.answer = None;
        true
    }
}

/// What the stack takes for its network device: a packet that came, and those that are to go.
#[derive(Debug, Default)]
struct Wire {
    incoming: Option<Vec<u8>>,
    outgoing: VecDeque<Vec<u8>>,
}

/// A packet that came.
struct Incoming(Vec<u8>);

/// Room for a packet that is to go.
struct Outgoing<'a>(&'a mut VecDeque<Vec<u8>>);

impl phy::RxToken for Incoming {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, look: F) -> R {
        look(&self.0)
    }
}

impl phy::TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, fill: F) -> R {
        let mut packet = vec![0; length];
        let result = fill(&mut packet);
        self.0.push_back(packet);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Incoming;
    type TxToken<'a> = Outgoing<'a>;

    fn receive(&mut self, _at: StackInstant) -> Option<(Incoming, Outgoing<'_>)> {
        self.incoming.take().map(|packet| (Incoming(packet), Outgoing(&mut self.outgoing)))
    }

    fn transmit(&mut self, _at: StackInstant) -> Option<Outgoing<'_>> {
        (self.outgoing.len() < WAITING).then_some(Outgoing(&mut self.outgoing))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU;
        // A guest may leave its checksums to us, and what came through shared memory is whole.
        capabilities.checksum = ChecksumCapabilities::default();
        capabilities.checksum.ipv4 = Checksum::Tx;
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities
    }
}

#[cfg(test)]
mod tests {
    use super::super::documents::Documents;
    use super::super::token::Key;
    use super::*;
    use smoltcp::wire::{IpCidr, Ipv4Address};

    /// A guest's own TCP, and the card's, a wire apart.
    struct Bed {
        guest: Interface,
        guest_wire: Wire,
        sockets: SocketSet<'static>,
        stack: Option<Stack>,
        metadata: Metadata,
        now: Now,
        started: Instant,
        next_port: u16,
    }

    impl Bed {
        fn new() -> Self {
            let documents = vec![
                ("latest/user-data".to_owned(), (0..60_000u32).map(|n| n as u8).collect()),
                ("latest/meta-data/instance-id".to_owned(), b"i-1".to_vec()),
            ];
            let documents = Documents::new(documents).unwrap();
            let key = Key([1; 32]);
            let metadata =
                Metadata { port: "eni-1".into(), documents, tokens_required: false, key };
            let started = Instant::now();
            let mut guest_wire = Wire::default();
            let config = Config::new(HardwareAddress::Ip);
            let mut guest = Interface::new(config, &mut guest_wire, StackInstant::ZERO);
            guest.update_ip_addrs(|addresses| {
                addresses.push(IpCidr::new(Ipv4Address::new(10, 0, 0, 1).into(), 24)).unwrap();
            });
            guest.routes_mut().add_default_ipv4_route(Ipv4Address::new(10, 0, 0, 254)).unwrap();
            let now = Now { instant: started, seconds: 1000 };
            let sockets = SocketSet::new(Vec::new());
            let stack = None;
            Self { guest, guest_wire, sockets, stack, metadata, now, started, next_port: 40_000 }
        }

        fn connect(&mut self) -> SocketHandle {
            let buffer = || SocketBuffer::new(vec![0; 4096]);
            let mut socket = Socket::new(buffer(), buffer());
            self.next_port += 1;
            let server = (Ipv4Address::new(169, 254, 169, 254), 80);
            socket.connect(self.guest.context(), server, self.next_port).unwrap();
            self.sockets.add(socket)
        }

        fn socket(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
            self.sockets.get_mut(handle)
        }

        /// Lets both sides run until neither has anything to say; `lose` says whether a packet is lost.
        fn run(&mut self, mut lose: impl FnMut() -> bool) {
            loop {
                let elapsed = (self.now.instant - self.started).as_micros() as i64;
                let time = StackInstant::from_micros(elapsed);
                self.guest.poll(time, &mut self.guest_wire, &mut self.sockets);
                let Some(packet) = self.guest_wire.outgoing.pop_front() else { return };
                if lose() {
                    continue;
                }
                let now = self.now;
                let stack = self.stack.get_or_insert_with(|| Stack::new(now));
                stack.take(&packet, &self.metadata, now);
                self.back(&mut lose);
            }
        }

        /// Gives the guest what the card says.
        fn back(&mut self, lose: &mut impl FnMut() -> bool) {
            let elapsed = (self.now.instant - self.started).as_micros() as i64;
            let time = StackInstant::from_micros(elapsed);
            let Some(stack) = &mut self.stack else { return };
            while let Some(packet) = stack.next_packet() {
                assert!(packet.len() <= MTU);
                if !lose() {
                    self.guest_wire.incoming = Some(packet);
                    self.guest.poll(time, &mut self.guest_wire, &mut self.sockets);
                }
            }
            if stack.deadline(self.now).is_none() {
                self.stack = None;
            }
        }

        /// Lets time pass.
        fn pass(&mut self, time: Duration, mut lose: impl FnMut() -> bool) {
            self.now.instant += time;
            if let Some(stack) = &mut self.stack {
                stack.turn(&self.metadata, self.now);
            }
            self.back(&mut lose);
            self.run(lose);
        }

        fn read(&mut self, handle: SocketHandle) -> Vec<u8> {
            let mut bytes = Vec::new();
            let socket = self.socket(handle);
            while socket.can_recv() {
                socket.recv(|new| (new.len(), bytes.extend_from_slice(new))).unwrap();
            }
            bytes
        }
    }

    const GET_ID: &[u8] = b"GET /latest/meta-data/instance-id HTTP/1.1\r\n\r\n";

    #[test]
    fn requests_are_answered_one_after_the_other_on_one_connection() {
        let mut bed = Bed::new();
        let handle = bed.connect();
        bed.run(|| false);
        // Two at once, and then one in pieces.
        let two = [GET_ID, GET_ID].concat();
        for piece in [&two[..], &GET_ID[..9], &GET_ID[9..]] {
            bed.socket(handle).send_slice(piece).unwrap();
            // Longer than either side keeps an acknowledgement back.
            bed.pass(Duration::from_millis(20), || false);
            bed.pass(Duration::from_millis(20), || false);
        }
        let text = String::from_utf8(bed.read(handle)).unwrap();
        assert_eq!(text.matches("\r\n\r\ni-1").count(), 3, "{text}");
        bed.socket(handle).close();
        bed.run(|| false);
        assert!(bed.stack.is_none(), "nobody is connected, and the stack stays");
    }

    #[test]
    fn a_large_document_arrives_whole_though_packets_are_lost() {
        let mut bed = Bed::new();
        let mut n = 0;
        let mut lose = move || {
            n += 1;
            n % 29 == 0
        };
        let handle = bed.connect();
        let mut got = Vec::new();
        let mut asked = false;
        for _ in 0..4000 {
            bed.pass(Duration::from_millis(50), &mut lose);
            if !asked && bed.socket(handle).may_send() {
                let get = b"GET /latest/user-data HTTP/1.1\r\nConnection: close\r\n\r\n";
                bed.socket(handle).send_slice(get).unwrap();
                asked = true;
            }
            got.extend(bed.read(handle));
            if !bed.socket(handle).may_recv() && asked {
                break;
            }
        }
        let expected: Vec<u8> = (0..60_000u32).map(|n| n as u8).collect();
        assert!(got.ends_with(&expected), "{} bytes", got.len());
    }

    #[test]
    fn a_guest_cannot_hold_more_connections_than_it_may_nor_longer() {
        let mut bed = Bed::new();
        let all: Vec<_> = (0..CONNECTIONS + 4).map(|_| bed.connect()).collect();
        bed.run(|| false);
        let open =
            |bed: &mut Bed| all.iter().filter(|handle| bed.socket(**handle).may_send()).count();
        assert_eq!(open(&mut bed), CONNECTIONS);
        bed.pass(IDLE - Duration::from_millis(1), || false);
        assert_eq!(open(&mut bed), CONNECTIONS);
        bed.pass(Duration::from_millis(1), || false);
        assert_eq!(open(&mut bed), 0, "idle connections are kept");
        assert!(bed.stack.is_none());

        // One that sends a byte now and then is not idle, but it gets old.
        let slow = bed.connect();
        bed.run(|| false);
        let mut lived = Duration::ZERO;
        while bed.socket(slow).may_send() {
            bed.socket(slow).send_slice(b"G").unwrap();
            bed.pass(Duration::from_secs(5), || false);
            lived += Duration::from_secs(5);
            assert!(lived <= LONGEST + Duration::from_secs(5));
        }
        assert!(bed.stack.is_none());
        // And the next one is served.
        let next = bed.connect();
        bed.run(|| false);
        bed.socket(next).send_slice(GET_ID).unwrap();
        bed.run(|| false);
        assert!(bed.read(next).ends_with(b"i-1"));
    }

    #[test]
    fn whoever_stops_reading_or_says_half_a_request_is_let_go() {
        let mut bed = Bed::new();
        let deaf = bed.connect();
        bed.run(|| false);
        bed.socket(deaf).send_slice(b"GET /latest/user-data HTTP/1.1\r\n\r\n").unwrap();
        bed.run(|| false);
        // Its window is full now, and stays so.
        for _ in 0..130 {
            bed.pass(Duration::from_millis(500), || false);
        }
        assert!(bed.stack.is_none());
        let half = bed.connect();
        bed.run(|| false);
        bed.socket(half).send_slice(b"GET /").unwrap();
        bed.socket(half).close();
        bed.run(|| false);
        assert!(bed.stack.is_none());
    }
}
