//! A NIC's control queue (virtio 1.2, section 5.1.6.5), of which this device knows one command: how many pairs of queues
//! the driver uses.
//!
//! Served in this process by the device's task, at a bounded rate; the pairs it enables are then told to the back end.

use super::super::budget::Budget;
use super::super::ring::{LocalRing, LocalRingError};
use bixi_offload::memory::GuestMemory;
use bixi_offload::ring::{Batch, Chain};
use tokio::time::Instant;

/// Commands a second in the long run, and at once. A driver sends one when its administrator does.
const RATE: u64 = 500;
const BURST: u64 = 64;
const BATCH: usize = 8;

/// Class of commands about pairs, and its command to set their number.
const CLASS_MQ: u8 = 4;
const PAIRS_SET: u8 = 0;
const DONE: u8 = 0;
const REFUSED: u8 = 1;

/// What serves a control queue.
#[derive(Debug)]
pub(super) struct ControlQueue {
    pub(super) ring: LocalRing,
    batch: Batch,
    budget: Budget,
    /// Pairs the driver may ask for.
    pairs: u16,
}

impl ControlQueue {
    /// A queue over `ring` for a device with `pairs` pairs; 1 if the driver has not taken more.
    pub(super) fn new(ring: LocalRing, pairs: u16) -> Self {
        let budget = Budget::new(RATE, BURST, Instant::now());
        Self { ring, batch: Batch::new(BATCH), budget, pairs }
    }

    /// Works off what is there. `set_pairs` is told before the driver has its answer. Returns when to look again, if
    /// the driver has used up its budget.
    ///
    /// # Errors
    /// The ring is broken: the device needs a reset.
    pub(super) fn serve(
        &mut self,
        memory: &GuestMemory,
        mut set_pairs: impl FnMut(u16),
    ) -> Result<Option<Instant>, LocalRingError> {
        loop {
            let taken = self.ring.queue.take(BATCH, &mut self.batch)?;
            let (mut done, mut dry) = (0, None);
            for chain in self.batch.chains(memory) {
                dry = self.budget.take(1, Instant::now()).err();
                if dry.is_some() {
                    break;
                }
                let answer = match command(&chain, self.pairs) {
                    Some(pairs) => {
                        set_pairs(pairs);
                        DONE
                    }
                    None => REFUSED,
                };
                let written = chain.writable().write(&[answer]);
                self.ring.queue.complete(chain.head(), written as u32);
                done += 1;
            }
            self.ring.queue.give_back(&mut self.batch, taken - done);
            if self.ring.queue.publish() {
                self.ring.queue.signal();
            }
            if dry.is_some() || taken == 0 && !self.ring.queue.kicks_on() {
                return Ok(dry);
            }
        }
    }
}

/// The number of pairs that a command sets, if it is one and may.
fn command(chain: &Chain<'_>, most: u16) -> Option<u16> {
    let [class, command, low, high] = chain.readable().read_array()?;
    let pairs = u16::from_le_bytes([low, high]);
    ((class, command) == (CLASS_MQ, PAIRS_SET) && (1..=most).contains(&pairs)).then_some(pairs)
}
