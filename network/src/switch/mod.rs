//! The switch: what a worker thread does with the queues of all ports, and with the underlay.
//!
//! ```text
//! guest's transmit queue ─ take 32 ─► burst: read heads, parse, find flows, decide
//! underlay's sockets ── receive ────►   │ each frame has a fate
//!                                       ├─► receive   into a guest's buffers, all for one queue at a time
//!                                       ├─► tunnel    staged, sent in few system calls
//!                                       └─► answer    ARP, DHCP, DNS, metadata, too big: back to the port that asked
//! ```
//!
//! One worker owns all ports of a process in this release: whatever goes from port to port stays on one core, and nothing
//! here is shared. More workers will each own some ports and pass frames by rings between them.
//!
//! Invariants: no lock, allocation or system call per frame (a call to a guest, and sending or receiving datagrams, are
//! one for each batch); a frame's head is read from guest memory once, and decisions are made on that copy alone; the
//! payload is copied once, from guest to guest. Nothing that a guest sends ends anything but its own session.
//!
//! Called by [`bixi_offload::worker`]; told what to do by [`crate::service`] through [`Command`]s.

mod answers;
mod burst;
mod copy;
pub mod counters;
pub mod frame;
mod limit;
mod metadata;
mod ports;
pub mod rates;
mod receive;
mod software;
mod transmit;

#[cfg(test)]
mod rates_tests;
#[cfg(test)]
mod rig;
#[cfg(test)]
mod tests;

use crate::engine::flow::FlowTable;
use crate::engine::view::{PortIndex, PortView, View};
use crate::metadata::Metadata;
use crate::tables::lease::Leases;
use crate::underlay::Underlay;
use bixi_offload::card::DeviceId;
use bixi_offload::ring::{Batch, SplitQueue};
use bixi_offload::worker::{
    Interest, Outbox, QueueFault, QueueKey, QueueSlot, Registry, WorkerService,
};
use burst::Burst;
use counters::PortCounters;
use ports::Ports;
use rates::Rates;
use std::sync::Arc;
use std::time::Instant;

pub use burst::BATCH;

/// Busy turns between two looks at the clock: microseconds each, where a tick has sixteen thousand.
const BUSY_TURNS: u32 = 16;

/// What the driver tells the switch.
#[derive(Debug)]
pub enum Command {
    /// A port exists from now on; its queues come after this.
    AddPort(Box<NewPort>),
    /// A port exists no longer; its queues have gone before this.
    RemovePort(PortIndex),
    /// This is known from now on.
    View(Arc<View>),
    /// The guest of a port reads this of itself from now on.
    Metadata(PortIndex, Arc<Metadata>),
    /// A port may carry this from now on.
    Rates(PortIndex, Rates),
}

/// A port to own.
#[derive(Debug)]
pub struct NewPort {
    /// The device that its queues belong to.
    pub device: DeviceId,
    /// What the engine knows of it.
    pub view: PortView,
    /// Its flow cache.
    pub flows: FlowTable,
    /// Its leases, which the driver reads too.
    pub leases: Arc<Leases>,
    /// Its counters, which the driver reads.
    pub counters: Arc<PortCounters>,
    /// What its guest reads of itself, if anything.
    pub metadata: Option<Arc<Metadata>>,
    /// What it may carry.
    pub rates: Rates,
}

/// All ports, their queues, and room for the batch under way.
#[derive(Debug)]
pub struct Switch {
    ports: Ports,
    underlay: Option<Underlay>,
    burst: Box<Burst>,
    /// Chains of the guest that sends.
    sent: Batch,
    work: Work,
}

/// Room that a batch's frames share, and what time it is.
#[derive(Debug)]
struct Work {
    /// Buffers of the guest that receives.
    buffers: Batch,
    /// A whole frame, where software must work on it.
    staged: Vec<u8>,
    /// An answer of the card.
    answer: Vec<u8>,
    /// Faults of queues that were found while somebody else's frames were given to them.
    faults: Vec<(QueueSlot, QueueFault)>,
    /// Queues to which something was revealed, and whose drivers may want a call.
    revealed: Vec<QueueSlot>,
    /// The time in ticks of a flow's last use.
    now: u32,
    /// Turns since the clock was read.
    turns: u32,
    /// Whether frames have come since the last turn.
    busy: bool,
}

impl Work {
    /// Reads the clock, but once in a while only as long as there is work: busy turns are short.
    #[inline]
    fn look_at_clock(&mut self) {
        self.turns += 1;
        if !std::mem::take(&mut self.busy) || self.turns >= BUSY_TURNS {
            (self.now, self.turns) = (ticks(), 0);
        }
    }
}

impl Switch {
    /// A switch without ports.
    pub fn new(underlay: Option<Underlay>) -> Self {
        Self {
            ports: Ports::default(),
            underlay,
            burst: Burst::new(),
            sent: Batch::new(BATCH),
            work: Work {
                buffers: Batch::new(receive::MERGE_LIMIT),
                staged: Vec::with_capacity(frame::SPARE + frame::LONGEST),
                answer: Vec::with_capacity(2048),
                faults: Vec::new(),
                // Each frame of a burst is given once, and the sender's own queue comes last.
                revealed: Vec::with_capacity(BATCH + 1),
                now: ticks(),
                turns: 0,
                busy: false,
            },
        }
    }

    fn tell_faults(&mut self, outbox: &mut Outbox<()>) {
        for (slot, fault) in self.work.faults.drain(..) {
            outbox.fault(slot, fault);
        }
    }
}

/// Time in sixty-fourths of a second since the machine started; goes around after two years. It goes on over restarts of
/// the process, as the flows do.
fn ticks() -> u32 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    (now.tv_sec as u32).wrapping_mul(64).wrapping_add((now.tv_nsec / 15_625_000) as u32)
}

impl WorkerService for Switch {
    type Command = Command;
    type Report = ();

    fn start(&mut self, registry: &Registry<'_>) -> std::io::Result<()> {
        self.underlay.as_ref().map_or(Ok(()), |underlay| registry.add(underlay.wakes()))
    }

    fn attach(&mut self, slot: QueueSlot, key: QueueKey, queue: SplitQueue) -> Interest {
        self.ports.attach(slot, key, queue)
    }

    fn queue(&mut self, slot: QueueSlot) -> Option<&mut SplitQueue> {
        self.ports.queue(slot)
    }

    fn detach(&mut self, slot: QueueSlot, outbox: &mut Outbox<()>) {
        // Nothing is held between batches, so it can go at once; what waits for its limit is in the ring.
        if let Some(queue) = self.ports.detach(slot) {
            outbox.detached(slot, queue);
        }
    }

    fn command(&mut self, command: Command, outbox: &mut Outbox<()>) {
        match command {
            Command::AddPort(port) => self.ports.add(*port, self.work.now),
            Command::RemovePort(index) => self.ports.remove(index),
            Command::View(view) => self.ports.see(view),
            Command::Rates(index, rates) => {
                self.ports.limit(index, rates, |slot| outbox.resume(slot));
            }
            Command::Metadata(index, metadata) => {
                if let Some(port) = self.ports.port_mut(index) {
                    port.metadata = Some(metadata);
                }
            }
        }
    }

    fn poll_queue(
        &mut self,
        slot: QueueSlot,
        outbox: &mut Outbox<()>,
    ) -> Result<usize, QueueFault> {
        let done = self.transmit(slot, outbox)?;
        self.work.busy |= done > 0;
        self.tell_faults(outbox);
        Ok(done)
    }

    fn arm(&mut self) -> bool {
        // Whatever wakes the worker next may be a datagram.
        if let Some(underlay) = &mut self.underlay {
            underlay.look_soon();
        }
        false
    }

    fn poll(&mut self, outbox: &mut Outbox<()>) -> usize {
        debug_assert!(
            self.work.revealed.is_empty(),
            "a driver was not asked whether it wants a call"
        );
        self.work.look_at_clock();
        let done = self.receive_from_underlay() + self.turn_metadata();
        self.tell_faults(outbox);
        done
    }

    fn deadline(&self) -> Option<Instant> {
        self.ports.next_timer()
    }
}
