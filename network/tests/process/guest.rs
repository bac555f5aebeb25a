//! A guest: a front end over a real socket, and the driver's side of its rings.

use crate::server::PATIENCE;
use bixi_offload::frontend::{
    Backing, Buffer, Client, DriverQueue, FrontConfig, GuestArena, Keeper,
};
use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

pub const CSUM: u64 = 1 << 0;
pub const GUEST_CSUM: u64 = 1 << 1;
pub const GUEST_TSO4: u64 = 1 << 7;
pub const HOST_TSO4: u64 = 1 << 11;
pub const MRG_RXBUF: u64 = 1 << 15;
pub const INDIRECT: u64 = 1 << 28;
pub const EVENT_IDX: u64 = 1 << 29;
pub const VERSION_1: u64 = 1 << 32;

/// A driver of virtio 1.x without offloads.
pub const PLAIN: u64 = VERSION_1 | EVENT_IDX | INDIRECT;
/// A driver with all offloads, as Linux has.
pub const FULL: u64 = PLAIN | CSUM | GUEST_CSUM | GUEST_TSO4 | HOST_TSO4 | MRG_RXBUF;

/// Bytes of a virtio-net header of virtio 1.x.
pub const HEADER: usize = 12;
/// Bytes of a receive buffer.
const RECEIVE_BUFFER: u32 = 1600;
/// Bytes of a transmit buffer: the longest frame.
const TRANSMIT_BUFFER: u32 = 66 << 10;

/// One pair of queues.
pub struct Pair {
    pub receive: DriverQueue,
    pub transmit: DriverQueue,
    /// Where the receive buffer of each head is.
    receiving: HashMap<u16, u64>,
    /// Where the transmit buffer of each head is.
    sending: HashMap<u16, u64>,
    /// Transmit buffers that are free.
    free: Vec<u64>,
}

/// A guest with its front end.
pub struct Guest {
    pub arena: GuestArena,
    pub keeper: Keeper,
    pub pairs: Vec<Pair>,
    pub features: u64,
}

/// How a guest is made.
pub struct Shape {
    pub features: u64,
    pub pairs: u16,
    pub queue_size: u16,
    /// Receive buffers given to each pair.
    pub buffers: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Self { features: FULL, pairs: 1, queue_size: 256, buffers: 200 }
    }
}

impl Guest {
    /// Connects to the port at `socket` and starts all rings.
    pub fn connect(socket: &Path, shape: &Shape) -> Self {
        let mut arena =
            GuestArena::new(0x10_0000, 192 << 20, Backing::Sealed(Default::default())).unwrap();
        let features = shape.features;
        let pairs: Vec<_> = (0..shape.pairs)
            .map(|pair| {
                let mut queue = |index| {
                    DriverQueue::new(&mut arena, index, shape.queue_size, features).unwrap()
                };
                let (receive, transmit) = (queue(pair * 2), queue(pair * 2 + 1));
                let free = (0..shape.queue_size.min(64))
                    .map(|_| arena.allocate(TRANSMIT_BUFFER.into(), 64).unwrap())
                    .collect();
                Pair { receive, transmit, receiving: HashMap::new(), sending: HashMap::new(), free }
            })
            .collect();
        let config = FrontConfig {
            features: u64::MAX,
            rings: shape.pairs * 2,
            in_order: true,
            ..FrontConfig::default()
        };
        let mut client = Client::new(config, socket, &arena);
        let offered = client.probe(PATIENCE).unwrap().features;
        assert_eq!(offered & features, features, "the port does not offer all features");
        let queues: Vec<_> =
            pairs.iter().flat_map(|pair| [&pair.receive, &pair.transmit]).collect();
        client.activate(features, &queues, PATIENCE).unwrap();
        let mut guest = Self { arena, keeper: client.keep().unwrap(), pairs, features };
        for pair in 0..usize::from(shape.pairs) {
            for _ in 0..shape.buffers {
                let at = guest.arena.allocate(RECEIVE_BUFFER.into(), 64).unwrap();
                guest.give(pair, at);
            }
            guest.pairs[pair].receive.submit();
        }
        guest
    }

    /// Gives a receive buffer back to the device; it sees it with the next submit.
    fn give(&mut self, pair: usize, at: u64) {
        let pair = &mut self.pairs[pair];
        let head = pair.receive.add(&[Buffer::writable(at, RECEIVE_BUFFER)]).unwrap();
        pair.receiving.insert(head, at);
    }

    /// Frees what the device has sent.
    pub fn reap(&mut self, pair: usize) {
        let Pair { transmit, sending, free, .. } = &mut self.pairs[pair];
        transmit.take_all(|used| free.extend(sending.remove(&used.head))).unwrap();
    }

    /// Puts a frame into the transmit queue, if there is room.
    pub fn try_send(&mut self, pair: usize, header: &[u8; HEADER], frame: &[u8]) -> bool {
        self.reap(pair);
        let memory = self.arena.memory();
        let pair = &mut self.pairs[pair];
        if pair.transmit.free() == 0 {
            return false;
        }
        let Some(at) = pair.free.pop() else { return false };
        let bytes = [&header[..], frame].concat();
        assert!(memory.get(at, bytes.len() as u64).unwrap().write(0, &bytes));
        let head = pair.transmit.add(&[Buffer::readable(at, bytes.len() as u32)]).unwrap();
        pair.sending.insert(head, at);
        pair.transmit.submit();
        true
    }

    /// Sends a frame, as soon as there is room.
    pub fn send(&mut self, pair: usize, header: &[u8; HEADER], frame: &[u8]) {
        let deadline = Instant::now() + PATIENCE;
        while !self.try_send(pair, header, frame) {
            assert!(Instant::now() < deadline, "the transmit ring stays full");
            std::thread::yield_now();
        }
    }

    /// Sends a frame that leaves nothing to do.
    pub fn send_plain(&mut self, frame: &[u8]) {
        self.send(0, &[0; HEADER], frame);
    }

    /// The next frame of a pair, if there is one now; its buffers go back to the device.
    pub fn try_receive(&mut self, pair: usize) -> Option<([u8; HEADER], Vec<u8>)> {
        let (header, frame) = self.take(pair, true)?;
        self.pairs[pair].receive.submit();
        Some((header, frame))
    }

    /// Takes the next frame of a pair; its buffers go back only if `give`.
    pub fn take(&mut self, pair: usize, give: bool) -> Option<([u8; HEADER], Vec<u8>)> {
        let mut bytes = Vec::new();
        let mut left = 1;
        let deadline = Instant::now() + PATIENCE;
        while left > 0 {
            let Some(used) = self.pairs[pair].receive.take().unwrap() else {
                if bytes.is_empty() {
                    return None;
                }
                assert!(Instant::now() < deadline, "a frame misses buffers");
                continue;
            };
            let at = self.pairs[pair].receiving.remove(&used.head).unwrap();
            let start = bytes.len();
            bytes.resize(start + used.len as usize, 0);
            let from = self.arena.memory().get(at, u64::from(used.len)).unwrap();
            assert!(from.read(0, &mut bytes[start..]));
            if start == 0 {
                left = u16::from_le_bytes([bytes[10], bytes[11]]);
                assert!(left == 1 || self.features & MRG_RXBUF != 0);
            }
            left -= 1;
            if give {
                self.give(pair, at);
            }
        }
        let frame = bytes.split_off(HEADER);
        Some((bytes.try_into().unwrap(), frame))
    }

    /// The next frame of a pair; sleeps until the device calls.
    pub fn receive(&mut self, pair: usize) -> ([u8; HEADER], Vec<u8>) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(got) = self.try_receive(pair) {
                return got;
            }
            assert!(Instant::now() < deadline, "no frame came");
            self.pairs[pair]
                .receive
                .wait(deadline.min(Instant::now() + Duration::from_secs(1)))
                .unwrap();
        }
    }

    /// Waits until the device has used all that was sent.
    pub fn drain(&mut self, pair: usize) {
        crate::server::wait_for("all that was sent to be used", || {
            self.reap(pair);
            (self.pairs[pair].transmit.in_flight() == 0).then_some(())
        });
    }

    /// How often a back end has taken up the rings.
    pub fn starts(&self) -> u64 {
        self.keeper.with(|client| client.starts()).unwrap()
    }

    /// Waits until a back end has taken up the rings for the `starts`-th time.
    pub fn wait_starts(&self, starts: u64) {
        self.keeper.with(move |client| client.wait_starts(starts, PATIENCE)).unwrap().unwrap();
    }
}

/// A UDP frame from guest `from` to guest `to` of segment 7.
pub fn udp(from: u8, to: u8, port: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, from], [2, 0, 0, 0, 0, to])
        .ipv4([10, 0, 0, from], [10, 0, 0, to], 64)
        .udp(port, 9)
        .write(&mut frame, payload)
        .unwrap();
    frame
}

/// A large TCP frame to be cut into segments of `size` bytes, with its header.
pub fn large_tcp(from: u8, to: u8, payload: &[u8], size: u16) -> ([u8; HEADER], Vec<u8>) {
    let mut frame = Vec::new();
    etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, from], [2, 0, 0, 0, 0, to])
        .ipv4([10, 0, 0, from], [10, 0, 0, to], 64)
        .tcp(1000, 2000, 77, 4096)
        .ack(5)
        .write(&mut frame, payload)
        .unwrap();
    let length = (frame.len() - 34) as u16;
    let pseudo: u32 =
        [10 << 8, u32::from(from), 10 << 8, u32::from(to), 6, u32::from(length)].iter().sum();
    let pseudo = (pseudo & 0xffff) + (pseudo >> 16);
    frame[50..52].copy_from_slice(&(pseudo as u16).to_be_bytes());
    let mut header = [0; HEADER];
    header[..2].copy_from_slice(&[1, 1]);
    for (at, value) in [(2, 54), (4, size), (6, 34), (8, 16)] {
        header[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    (header, frame)
}

/// Bytes that show where they are from.
pub fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 7 + i / 251) as u8).collect()
}
