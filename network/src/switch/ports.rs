//! The ports a worker owns, and where their queues are.
//!
//! Invariant: a queue that a port lists for receiving is attached and was not found broken.

use super::NewPort;
use super::counters::PortCounters;
use super::limit::Limit;
use super::rates::Rates;
use crate::engine::flow::FlowTable;
use crate::engine::view::{PortIndex, PortView, SegmentView, View};
use crate::metadata::Metadata;
use crate::metadata::stack::Stack;
use crate::tables::lease::Leases;
use bixi_offload::card::DeviceId;
use bixi_offload::rate::{Limiter, QueueLimit};
use bixi_offload::ring::SplitQueue;
use bixi_offload::worker::{Interest, QueueKey, QueueSlot};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

/// A port as its worker has it.
#[derive(Debug)]
pub struct Port {
    pub view: PortView,
    pub segment: Arc<SegmentView>,
    pub flows: FlowTable,
    pub leases: Arc<Leases>,
    pub counters: Arc<PortCounters>,
    pub metadata: Option<Arc<Metadata>>,
    /// The TCP of its metadata server, while its guest talks.
    pub stack: Option<Box<Stack>>,
    /// How often its guest may ask the card's own servers.
    pub limit: Limit,
    /// What may come for its guest.
    pub receive_limit: Option<Arc<Limiter>>,
    transmit_limit: Option<Arc<Limiter>>,
    device: DeviceId,
    /// Its receive queues that run, in the order of their pairs.
    receive: Vec<(u16, QueueSlot)>,
}

impl Port {
    /// The receive queue for a flow with this hash: always the same while the same queues run, so that a flow keeps its
    /// order.
    #[inline]
    pub fn receive_queue(&self, hash: u32) -> Option<QueueSlot> {
        let index = (u64::from(hash) * self.receive.len() as u64) >> 32;
        self.receive.get(index as usize).map(|(_, slot)| *slot)
    }
}

/// A queue that is here.
#[derive(Debug)]
pub struct Attached {
    pub queue: SplitQueue,
    /// Whose it is; none when its port is not known.
    pub port: Option<PortIndex>,
    /// Its index in the device.
    pub index: u16,
    /// Its part in what the port's guest may send.
    pub limit: Option<QueueLimit>,
}

impl Attached {
    /// What waits for the port's limit waits no longer.
    fn give_back(&mut self) {
        if let Some(limit) = &mut self.limit {
            limit.give_back(Instant::now());
        }
    }
}

/// All ports and queues of a worker.
#[derive(Debug, Default)]
pub struct Ports {
    list: Vec<Option<Port>>,
    queues: Vec<Option<Attached>>,
    pub view: Arc<View>,
    devices: HashMap<DeviceId, PortIndex>,
    /// When each stack must take its next turn, and the first of them.
    timers: BTreeMap<PortIndex, Instant>,
    first_timer: Option<Instant>,
}

impl Ports {
    pub fn add(&mut self, new: NewPort, now: u32) {
        let NewPort { device, view, flows, leases, counters, metadata, rates } = new;
        let index = usize::from(view.index.0);
        if self.list.len() <= index {
            self.list.resize_with(index + 1, || None);
        }
        self.devices.insert(device, view.index);
        let segment = self.segment(view.vni);
        let receive = Vec::with_capacity(32);
        self.list[index] = Some(Port {
            view,
            segment,
            flows,
            leases,
            counters,
            metadata,
            stack: None,
            limit: Limit::new(now),
            receive_limit: rates.receive,
            transmit_limit: rates.transmit,
            device,
            receive,
        });
    }

    pub fn remove(&mut self, index: PortIndex) {
        if let Some(port) = self.list.get_mut(usize::from(index.0)).and_then(Option::take) {
            self.devices.remove(&port.device);
        }
        self.set_timer(index, None);
    }

    /// Limits a port anew; `resume` hears of its transmit queues, which may have waited for the old limits.
    pub fn limit(&mut self, index: PortIndex, rates: Rates, mut resume: impl FnMut(QueueSlot)) {
        for (slot, attached) in self.queues.iter_mut().enumerate() {
            let Some(attached) = attached.as_mut().filter(|queue| queue.port == Some(index)) else {
                continue;
            };
            attached.give_back();
            attached.limit = rates.transmit.as_ref().map(QueueLimit::new);
            resume(QueueSlot(slot));
        }
        if let Some(port) = self.port_mut(index) {
            (port.receive_limit, port.transmit_limit) = (rates.receive, rates.transmit);
        }
    }

    /// Says when the stack of a port must take its next turn.
    pub fn set_timer(&mut self, index: PortIndex, deadline: Option<Instant>) {
        match deadline {
            Some(deadline) => drop(self.timers.insert(index, deadline)),
            None => drop(self.timers.remove(&index)),
        }
        self.first_timer = self.timers.values().min().copied();
    }

    /// When the first stack must take its next turn.
    #[inline]
    pub fn next_timer(&self) -> Option<Instant> {
        self.first_timer
    }

    /// The ports whose stacks must take a turn now.
    pub fn due_timers(&self, now: Instant) -> Vec<PortIndex> {
        let due = self.timers.iter().filter(|(_, deadline)| **deadline <= now);
        due.map(|(index, _)| *index).collect()
    }

    /// Uses a new view from the next frame on.
    pub fn see(&mut self, view: Arc<View>) {
        self.view = view;
        for index in 0..self.list.len() {
            let Some(vni) = self.list[index].as_ref().map(|port| port.view.vni) else { continue };
            let segment = self.segment(vni);
            if let Some(port) = &mut self.list[index] {
                port.segment = segment;
            }
        }
    }

    fn segment(&self, vni: u32) -> Arc<SegmentView> {
        self.view.segments.get(&vni).cloned().unwrap_or_else(|| SegmentView::empty(vni))
    }

    #[inline]
    pub fn port(&self, index: PortIndex) -> Option<&Port> {
        self.list.get(usize::from(index.0))?.as_ref()
    }

    #[inline]
    pub fn port_mut(&mut self, index: PortIndex) -> Option<&mut Port> {
        self.list.get_mut(usize::from(index.0))?.as_mut()
    }

    #[inline]
    pub fn attached(&mut self, slot: QueueSlot) -> Option<&mut Attached> {
        self.queues.get_mut(slot.0)?.as_mut()
    }

    pub fn attach(&mut self, slot: QueueSlot, key: QueueKey, queue: SplitQueue) -> Interest {
        let port = self.devices.get(&key.device).copied();
        if self.queues.len() <= slot.0 {
            self.queues.resize_with(slot.0 + 1, || None);
        }
        let rates = port.and_then(|port| self.port(port)).map(|port| &port.transmit_limit);
        let limit = rates.and_then(|limiter| limiter.as_ref().map(QueueLimit::new));
        self.queues[slot.0] = Some(Attached { queue, port, index: key.index, limit });
        // Virtio numbers the queues of pair n: receive 2n, transmit 2n + 1.
        if key.index % 2 == 1 {
            return Interest::Polled;
        }
        if let Some(port) = port.and_then(|port| self.port_mut(port)) {
            port.receive.push((key.index / 2, slot));
            port.receive.sort_unstable();
        }
        Interest::Passive
    }

    pub fn queue(&mut self, slot: QueueSlot) -> Option<&mut SplitQueue> {
        Some(&mut self.attached(slot)?.queue)
    }

    /// Gives nothing more to a queue.
    pub fn stop(&mut self, slot: QueueSlot) {
        let port = self.queues.get(slot.0).and_then(|queue| queue.as_ref()?.port);
        if let Some(port) = port.and_then(|port| self.port_mut(port)) {
            port.receive.retain(|(_, other)| *other != slot);
        }
    }

    pub fn detach(&mut self, slot: QueueSlot) -> Option<SplitQueue> {
        self.stop(slot);
        let mut attached = self.queues.get_mut(slot.0)?.take()?;
        attached.give_back();
        Some(attached.queue)
    }
}
