//! A front end that makes one request at a time and looks at its status.

use super::guest::{FEATURES, client};
use super::{PATIENCE, until};
use bixi_offload::frontend::{Backing, Buffer, Client, DriverQueue, GuestArena};
use bixi_offload::memory::PageSize;
use std::path::Path;

pub struct Plain {
    pub client: Client,
    arena: GuestArena,
    queue: DriverQueue,
    header: u64,
    status: u64,
    data: u64,
}

/// The most bytes of one request.
pub const ROOM: u64 = 1 << 20;

impl Plain {
    pub fn connect(socket: &Path) -> Self {
        let backing = Backing::Sealed(PageSize::Normal);
        let mut arena = GuestArena::new(1 << 20, 4 << 20, backing).unwrap();
        let queue = DriverQueue::new(&mut arena, 0, 64, FEATURES).unwrap();
        let mut client = client(socket, &arena);
        client.probe(PATIENCE).unwrap();
        client.activate(FEATURES, &[&queue], PATIENCE).unwrap();
        let mut room = |len, align| arena.allocate(len, align).unwrap();
        let (header, status, data) = (room(16, 16), room(1, 1), room(ROOM, 4096));
        Self { client, arena, queue, header, status, data }
    }

    /// Writes `bytes` at `sector`; the status.
    pub fn write(&mut self, sector: u64, bytes: &[u8]) -> u8 {
        self.put(self.data, bytes);
        self.ask(1, sector, Some(Buffer::readable(self.data, bytes.len() as u32)))
    }

    /// Reads `length` bytes at `sector`.
    pub fn read(&mut self, sector: u64, length: usize) -> (u8, Vec<u8>) {
        let status = self.ask(0, sector, Some(Buffer::writable(self.data, length as u32)));
        let mut bytes = vec![0; length];
        assert!(self.arena.memory().get(self.data, length as u64).unwrap().read(0, &mut bytes));
        (status, bytes)
    }

    pub fn flush(&mut self) -> u8 {
        self.ask(4, 0, None)
    }

    /// Discard (11) or write-zeroes (13).
    pub fn range(&mut self, kind: u32, sector: u64, sectors: u32) -> u8 {
        let bytes = [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &[0; 4]].concat();
        self.put(self.data, &bytes);
        self.ask(kind, 0, Some(Buffer::readable(self.data, 16)))
    }

    fn ask(&mut self, kind: u32, sector: u64, data: Option<Buffer>) -> u8 {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.put(self.header, &header);
        self.put(self.status, &[0xee]);
        let mut chain = vec![Buffer::readable(self.header, 16)];
        chain.extend(data);
        chain.push(Buffer::writable(self.status, 1));
        self.queue.add(&chain).unwrap();
        self.queue.submit();
        until("the request is answered", || self.queue.take().unwrap().is_some());
        self.arena.memory().get(self.status, 1).unwrap().read_array::<1>(0).unwrap()[0]
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        assert!(self.arena.memory().get(at, bytes.len() as u64).unwrap().write(0, bytes));
    }
}
