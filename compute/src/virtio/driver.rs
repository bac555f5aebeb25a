//! A guest's driver for tests: it drives a function through its registers, and rings in memory.

use super::fuzz::{Around, MEMORY};
use super::registers::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK};
use super::transport::VirtioPci;
use crate::pci::PciFunction;
use bixi_offload::frontend::{Backing, Buffer, DriverQueue, GuestArena, Ring};
use bixi_offload::memory::PageSize;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a condition may take to come about.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// Guest memory of [`Around`]'s size.
pub(super) fn arena() -> GuestArena {
    GuestArena::new(0, MEMORY, Backing::Sealed(PageSize::Normal)).unwrap()
}

/// Waits until `condition` holds; says what did not come about.
pub(super) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not come about");
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
}

/// The registers of one function, as a driver uses them.
pub(super) struct Driver {
    pub(super) function: Arc<VirtioPci>,
    pub(super) host: Arc<Around>,
}

impl Driver {
    pub(super) fn read(&self, offset: u64, width: usize) -> u64 {
        let mut data = [0; 8];
        self.function.region_read(0, offset, &mut data[..width]);
        u64::from_le_bytes(data)
    }

    pub(super) fn write(&self, offset: u64, width: usize, value: u64) {
        self.function.region_write(0, offset, &value.to_le_bytes()[..width]);
    }

    pub(super) fn status(&self) -> u8 {
        self.read(0x14, 1) as u8
    }

    pub(super) fn set_status(&self, status: u8) {
        self.write(0x14, 1, status.into());
    }

    /// The features that the device offers.
    pub(super) fn offered(&self) -> u64 {
        let half = |half: u64| {
            self.write(0x00, 4, half);
            self.read(0x04, 4)
        };
        half(0) | half(1) << 32
    }

    /// From reset to FEATURES_OK.
    pub(super) fn negotiate(&self, features: u64) {
        self.set_status(ACKNOWLEDGE);
        self.set_status(ACKNOWLEDGE | DRIVER);
        for half in [0, 1] {
            self.write(0x08, 4, half);
            self.write(0x0c, 4, features >> (32 * half) & 0xffff_ffff);
        }
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
    }

    /// Sets a queue up, with the vector of its number plus one, and enables it.
    pub(super) fn set_up(&self, ring: &Ring) {
        self.write(0x16, 2, ring.index.into());
        self.write(0x18, 2, ring.size.into());
        self.write(0x1a, 2, u64::from(ring.index) + 1);
        for (register, address) in [(0x20, ring.desc), (0x28, ring.avail), (0x30, ring.used)] {
            self.write(register, 4, address & 0xffff_ffff);
            self.write(register + 4, 4, address >> 32);
        }
        self.write(0x1c, 2, 1);
    }

    pub(super) fn ready(&self) {
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    /// Resets the device and waits until it has stopped, as Linux does.
    pub(super) async fn reset(&self) {
        self.set_status(0);
        until("the reset", || self.status() == 0).await;
    }

    /// Drives the device with `features` and these queues from a reset on.
    pub(super) async fn drive(&self, features: u64, queues: &[&DriverQueue]) {
        self.reset().await;
        self.negotiate(features);
        queues.iter().for_each(|queue| self.set_up(&queue.ring()));
        self.ready();
        assert_eq!(self.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    /// Publishes what was added to `queue`, and notifies the device if it wants that.
    pub(super) fn submit(&self, queue: &mut DriverQueue) {
        if queue.publish() {
            self.write(0x2000 + 4 * u64::from(queue.ring().index), 2, 0);
        }
    }

    /// Whether vector `index` was raised since the last look.
    pub(super) fn raised(&self, index: usize) -> bool {
        self.host.vectors.lock().unwrap()[index].signalled()
    }

    /// Waits until `queue` has used a chain, by its interrupt, and takes all. Returns heads and lengths.
    pub(super) async fn take(&self, queue: &mut DriverQueue) -> Vec<(u16, u32)> {
        let vector = usize::from(queue.ring().index) + 1;
        let mut used = Vec::new();
        let mut take = |queue: &mut DriverQueue| {
            queue.take_all(|chain| used.push((chain.head, chain.len))).unwrap() > 0
        };
        if !take(queue) && !queue.calls_on() {
            until("an interrupt", || self.raised(vector)).await;
        }
        take(queue);
        used
    }

    /// Sends one chain and waits for it; returns how much the device wrote.
    pub(super) async fn ask(&self, queue: &mut DriverQueue, buffers: &[Buffer]) -> u32 {
        queue.add(buffers).unwrap();
        self.submit(queue);
        loop {
            if let [(_, len)] = self.take(queue).await[..] {
                return len;
            }
        }
    }
}
