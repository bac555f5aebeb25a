//! A guest's driver and a worker's service in one thread, without sockets: for tests and fuzzing.
//!
//! The [`Harness`] plays the guest (it owns memory and the driver's side of the queues) and turns the service by hand.

use super::media::ServedDisk;
use super::service::{BlockService, Command};
use bixi_offload::card::DeviceId;
use bixi_offload::frontend::{Backing, Buffer, DriverQueue, GuestArena};
use bixi_offload::memory::{GuestMemory, PageSize};
use bixi_offload::rate::Limiter;
use bixi_offload::ring::{Notifiers, QueueLayout, QueueSetup, SplitQueue};
use bixi_offload::worker::{Outbox, QueueFault, QueueKey, QueueSlot, WorkerService};
use std::convert::Infallible;
use std::io;
use std::sync::Arc;

const DEVICE: DeviceId = DeviceId(7);
/// Where the guest's memory begins.
const MEMORY: u64 = 1 << 20;

/// A service and a driver.
#[derive(Debug)]
pub struct Harness {
    /// The service.
    pub service: BlockService,
    /// The driver's side of each queue.
    pub queues: Vec<DriverQueue>,
    /// What the service told.
    pub outbox: Outbox<Infallible>,
    arena: GuestArena,
}

/// One request of the driver's.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// The chain.
    pub head: u16,
    /// Where the status byte is.
    pub status: u64,
    /// Where the data begins, in one piece.
    pub data: u64,
    /// The data's length.
    pub length: u32,
}

impl Harness {
    /// A service with this disk, and a guest of `memory` bytes with `queues` queues of `size`.
    ///
    /// # Errors
    /// No io_uring, or no memory.
    pub fn new(
        disk: &Arc<ServedDisk>,
        memory: u64,
        queues: u16,
        size: u16,
        features: u64,
    ) -> io::Result<Self> {
        let backing = Backing::Sealed(PageSize::Normal);
        let mut arena = GuestArena::new(MEMORY, memory, backing).map_err(io::Error::other)?;
        let mut service = BlockService::new(&[])?;
        let mut outbox = Outbox::default();
        service.command(Command::Serve(DEVICE, Arc::clone(disk)), &mut outbox);
        let mut drivers = Vec::new();
        for index in 0..queues {
            let driver = DriverQueue::new(&mut arena, index, size, features)?;
            let ring = driver.ring();
            let layout = QueueLayout {
                size,
                descriptors: ring.desc,
                available: ring.avail,
                used: ring.used,
            };
            let notifiers = Notifiers::default();
            let setup =
                QueueSetup { layout, features, base: 0, notifiers, inflight: None, log: None };
            let queue = SplitQueue::new(Arc::clone(arena.memory()), setup);
            let key = QueueKey { device: DEVICE, index };
            let queue = queue.map_err(io::Error::other)?;
            let _ = service.attach(QueueSlot(usize::from(index)), key, queue);
            drivers.push(driver);
        }
        Ok(Self { service, queues: drivers, outbox, arena })
    }

    /// Limits the disk, or not any longer.
    pub fn limit(&mut self, limiter: Option<Limiter>) {
        let limit = Command::Limit(DEVICE, limiter.map(Arc::new));
        self.service.command(limit, &mut self.outbox);
    }

    /// The guest's memory.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        self.arena.memory()
    }

    /// Fresh bytes of the guest.
    ///
    /// # Errors
    /// The guest has no more.
    pub fn allocate(&mut self, length: u64, align: u64) -> io::Result<u64> {
        self.arena.allocate(length, align).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }

    /// Room for indirect tables on queue 0.
    ///
    /// # Errors
    /// The guest has no more memory.
    pub fn make_tables(&mut self) -> io::Result<()> {
        match self.queues.first_mut() {
            Some(queue) => queue.make_tables(&mut self.arena),
            None => Ok(()),
        }
    }

    /// Writes bytes of the guest.
    pub fn write(&self, at: u64, bytes: &[u8]) {
        let room = self.memory().get(at, bytes.len() as u64);
        assert!(room.is_some_and(|room| room.write(0, bytes)), "the guest has no such bytes");
    }

    /// Reads bytes of the guest.
    pub fn read(&self, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let from = self.memory().get(at, length as u64);
        assert!(from.is_some_and(|from| from.read(0, &mut bytes)), "the guest has no such bytes");
        bytes
    }

    /// Puts a plain request on a queue: header, data in one piece, status. `None` if the ring or the memory is full.
    pub fn ask(&mut self, queue: usize, kind: u32, sector: u64, data: Data<'_>) -> Option<Asked> {
        let header = self.arena.allocate(16, 16)?;
        let status = self.arena.allocate(1, 1)?;
        let (length, writable) = match data {
            Data::Out(bytes) => (bytes.len() as u32, false),
            Data::In(length) => (length, true),
        };
        let at = self.arena.allocate(length.into(), 4096)?;
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[8..].copy_from_slice(&sector.to_le_bytes());
        self.write(header, &bytes);
        self.write(status, &[0xee]);
        if let Data::Out(bytes) = data {
            self.write(at, bytes);
        }
        let mut buffers = vec![Buffer::readable(header, 16)];
        if length > 0 {
            buffers.push(Buffer { addr: at, len: length, writable });
        }
        buffers.push(Buffer::writable(status, 1));
        let head = self.queues.get_mut(queue)?.add(&buffers)?;
        Some(Asked { head, status, data: at, length })
    }

    /// Shows the service what was asked, and turns it once.
    ///
    /// # Errors
    /// The driver broke a rule.
    pub fn turn(&mut self) -> Result<usize, QueueFault> {
        let mut done = 0;
        for (index, queue) in self.queues.iter_mut().enumerate() {
            let _ = queue.publish();
            done += self.service.poll_queue(QueueSlot(index), &mut self.outbox)?;
        }
        Ok(done + self.service.poll(&mut self.outbox))
    }
}

/// What a request carries.
#[derive(Debug, Clone, Copy)]
pub enum Data<'a> {
    /// For the device to read.
    Out(&'a [u8]),
    /// Room for as many bytes.
    In(u32),
}
