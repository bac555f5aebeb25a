//! A switch with guests, all in this thread: the driver's side of every queue is played by [`DriverQueue`].

use super::counters::PortCounters;
use super::rates::Rates;
use super::{Command, NewPort, Switch};
use crate::address::Mac;
use crate::engine::flow::FlowTable;
use crate::engine::names::Names;
use crate::engine::view::{Network, PeerView, PortIndex, PortView, SegmentView, View};
use crate::metadata::Metadata;
use crate::metadata::documents::Documents;
use crate::metadata::token::Key;
use crate::packet::offload::header_length;
use crate::tables::lease::Leases;
use crate::underlay::Underlay;
use bixi_api::network::PortLimits;
use bixi_offload::card::DeviceId;
use bixi_offload::frontend::{Backing, Buffer, DriverQueue, GuestArena};
use bixi_offload::ring::{Notifiers, QueueLayout, QueueSetup, SplitQueue};
use bixi_offload::worker::{Interest, Outbox, QueueFault, QueueKey, QueueSlot, WorkerService};
use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

pub const VNI: u32 = 7;
pub const MTU: u16 = 1500;

pub fn mac(n: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, n])
}

pub fn address(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, n)
}

/// The card's DNS server is at 100.64.0.1 and knows `one.lab.internal` as 10.0.0.1.
fn names() -> Arc<Names> {
    let servers = vec![Ipv4Addr::new(100, 64, 0, 1)];
    let mut names = Names::new(servers, Some("lab.internal"), Ipv4Addr::new(10, 0, 0, 0), 24);
    names.add("one", address(1));
    Arc::new(names)
}

/// One pair of queues, the driver's side.
#[derive(Debug)]
pub struct Pair {
    pub receive: DriverQueue,
    pub transmit: DriverQueue,
    receive_slot: QueueSlot,
    pub transmit_slot: QueueSlot,
    /// Where the buffer of each head is.
    buffers: HashMap<u16, Vec<(u64, u32)>>,
}

/// A guest that plays driver.
#[derive(Debug)]
pub struct Guest {
    pub arena: GuestArena,
    pub pairs: Vec<Pair>,
    pub features: u64,
    pub counters: Arc<PortCounters>,
    pub leases: Arc<Leases>,
}

impl Guest {
    /// Gives `count` buffers of these sizes each to a receive queue.
    pub fn fill(&mut self, pair: usize, count: usize, sizes: &[u32]) {
        for _ in 0..count {
            let buffers: Vec<_> = sizes
                .iter()
                .map(|size| {
                    Buffer::writable(self.arena.allocate((*size).into(), 64).unwrap(), *size)
                })
                .collect();
            let pair = &mut self.pairs[pair];
            let head = pair.receive.add(&buffers).expect("no free descriptor");
            pair.buffers.insert(head, buffers.iter().map(|b| (b.addr, b.len)).collect());
        }
        self.pairs[pair].receive.submit();
    }

    /// Puts a frame behind a virtio-net header into a transmit queue, cut at these offsets.
    pub fn send(&mut self, pair: usize, header: &[u8], frame: &[u8], cuts: &[usize]) {
        let length = header_length(self.features);
        let mut bytes = vec![0; length];
        let given = header.len().min(length);
        bytes[..given].copy_from_slice(&header[..given]);
        bytes.extend_from_slice(frame);
        let at = self.arena.allocate(bytes.len() as u64, 64).expect("arena is full");
        assert!(self.arena.memory().get(at, bytes.len() as u64).unwrap().write(0, &bytes));
        let mut buffers = Vec::new();
        let mut start = 0;
        let cuts = cuts.iter().copied().filter(|cut| *cut < bytes.len());
        for cut in cuts.chain([bytes.len()]) {
            buffers.push(Buffer::readable(at + start as u64, (cut - start) as u32));
            start = cut;
        }
        let queue = &mut self.pairs[pair].transmit;
        queue.take_all(|_| {}).unwrap();
        queue.add(&buffers).expect("no free descriptor");
        queue.submit();
    }

    /// Takes all frames that a receive queue got, each with its header.
    pub fn receive(&mut self, pair: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
        let length = header_length(self.features);
        let pair = &mut self.pairs[pair];
        let mut frames = Vec::new();
        let mut left = 0;
        while let Some(used) = pair.receive.take().unwrap() {
            let mut bytes = Vec::new();
            for (at, len) in pair.buffers.remove(&used.head).unwrap() {
                let take = (len as usize).min(used.len as usize - bytes.len());
                let start = bytes.len();
                bytes.resize(start + take, 0);
                let from = self.arena.memory().get(at, u64::from(len)).unwrap();
                assert!(from.read(0, &mut bytes[start..]));
            }
            assert_eq!(bytes.len(), used.len as usize);
            if left == 0 {
                let frame = bytes.split_off(length);
                left = if length == 12 { u16::from_le_bytes([bytes[10], bytes[11]]) } else { 1 };
                assert_ne!(left, 0, "num_buffers is zero");
                frames.push((bytes, frame));
            } else {
                frames.last_mut().unwrap().1.extend(bytes);
            }
            left -= 1;
        }
        assert_eq!(left, 0, "a frame misses buffers");
        frames
    }
}

/// The switch and its guests.
#[derive(Debug)]
pub struct Rig {
    pub switch: Switch,
    pub guests: Vec<Guest>,
    pub outbox: Outbox<()>,
    pub folder: tempfile::TempDir,
    slots: usize,
    epoch: u32,
    ports: Vec<PortView>,
    metadata: Option<Arc<Metadata>>,
}

impl Rig {
    pub fn new(underlay: Option<Underlay>) -> Self {
        Self {
            switch: Switch::new(underlay),
            guests: Vec::new(),
            outbox: Outbox::default(),
            folder: tempfile::tempdir().unwrap(),
            slots: 0,
            epoch: 0,
            ports: Vec::new(),
            metadata: None,
        }
    }

    /// Guests 1, 2, … with these features and pairs of queues, in one segment with gateway 10.0.0.254.
    pub fn with_guests(guests: &[(u64, usize)]) -> Self {
        let mut rig = Self::new(None);
        for (features, pairs) in guests {
            rig.add_guest(*features, *pairs, 256);
        }
        rig.tell(&[], MTU);
        rig
    }

    /// Adds the next guest: number n has hardware address 02:…:n and address 10.0.0.n.
    pub fn add_guest(&mut self, features: u64, pairs: usize, queue_size: u16) -> usize {
        let n = self.guests.len() as u8 + 1;
        self.add_guest_at(features, pairs, queue_size, address(n))
    }

    /// Adds the next guest, but with this address.
    pub fn add_guest_at(
        &mut self,
        features: u64,
        pairs: usize,
        queue_size: u16,
        ipv4: Ipv4Addr,
    ) -> usize {
        let n = self.guests.len() as u8 + 1;
        let device = DeviceId(u64::from(n) + 100);
        let view =
            PortView { index: PortIndex((n - 1).into()), vni: VNI, mac: mac(n), ipv4: vec![ipv4] };
        let path = self.folder.path().join(format!("{n}"));
        let (flows, _) = FlowTable::open(&path.with_extension("flows"), 1 << 12).unwrap();
        let leases = Arc::new(Leases::open(&path.with_extension("leases")).unwrap().0);
        let counters = Arc::new(PortCounters::default());
        self.ports.push(view.clone());
        let new = NewPort {
            device,
            view,
            flows,
            leases: leases.clone(),
            counters: counters.clone(),
            metadata: self.metadata.take(),
            rates: Rates::default(),
        };
        self.switch.command(Command::AddPort(Box::new(new)), &mut self.outbox);
        let mut arena = GuestArena::new(0x10_0000, 64 << 20, Backing::Unsealed).unwrap();
        let pairs = (0..pairs as u16)
            .map(|pair| {
                let mut queue =
                    |index| DriverQueue::new(&mut arena, index, queue_size, features).unwrap();
                let (receive, transmit) = (queue(pair * 2), queue(pair * 2 + 1));
                let receive_slot = self.attach(device, &receive, features);
                let transmit_slot = self.attach(device, &transmit, features);
                Pair { receive, transmit, receive_slot, transmit_slot, buffers: HashMap::new() }
            })
            .collect();
        self.guests.push(Guest { arena, pairs, features, counters, leases });
        usize::from(n - 1)
    }

    fn attach(&mut self, device: DeviceId, queue: &DriverQueue, features: u64) -> QueueSlot {
        let ring = queue.ring();
        let layout = QueueLayout {
            size: ring.size,
            descriptors: ring.desc,
            available: ring.avail,
            used: ring.used,
        };
        let notifiers = Notifiers {
            kick: Some(queue.fds().kick.clone()),
            call: Some(queue.fds().call.clone()),
            error: None,
            own: false,
        };
        let setup = QueueSetup { layout, features, base: 0, notifiers, inflight: None, log: None };
        let split = SplitQueue::new(Arc::clone(queue.memory()), setup).unwrap();
        let slot = QueueSlot(self.slots);
        self.slots += 1;
        let interest = self.switch.attach(slot, QueueKey { device, index: ring.index }, split);
        let expected =
            if ring.index.is_multiple_of(2) { Interest::Passive } else { Interest::Polled };
        assert_eq!(interest, expected);
        slot
    }

    /// Lets the next guest that is added read `text` of itself.
    pub fn with_metadata(&mut self, port: &str, text: &str) {
        let documents = vec![("latest/user-data".to_owned(), text.as_bytes().to_vec())];
        let documents = Documents::new(documents).unwrap();
        let (port, key) = (port.to_owned(), Key([1; 32]));
        self.metadata = Some(Arc::new(Metadata { port, documents, tokens_required: false, key }));
    }

    /// Tells the switch its segment anew.
    pub fn tell(&mut self, peers: &[PeerView], mtu: u16) {
        self.epoch += 1;
        let network = Network {
            prefix_len: 24,
            gateway: Some(address(254)),
            dns: vec![address(253)],
            names: Some(names()),
        };
        let segment = SegmentView::new(
            VNI,
            self.epoch,
            mtu,
            Some(network),
            self.ports.iter(),
            peers.iter().copied(),
            None,
        );
        let view = View { segments: [(VNI, Arc::new(segment))].into() };
        self.switch.command(Command::View(Arc::new(view)), &mut self.outbox);
    }

    /// Moves everything that any guest has sent.
    pub fn run(&mut self) -> Result<(), QueueFault> {
        let slots: Vec<_> =
            self.guests.iter().flat_map(|g| g.pairs.iter().map(|p| p.transmit_slot)).collect();
        loop {
            let mut done = self.switch.poll(&mut self.outbox);
            for slot in &slots {
                done += self.switch.poll_queue(*slot, &mut self.outbox)?;
            }
            if done == 0 {
                return Ok(());
            }
        }
    }

    /// Limits a guest's port.
    pub fn limit(&mut self, guest: usize, limits: PortLimits) {
        let index = PortIndex(guest as u16);
        let rates = Rates::new(&limits).unwrap();
        self.switch.command(Command::Rates(index, rates), &mut self.outbox);
    }

    /// Takes a receive queue away from the switch.
    pub fn detach_receive(&mut self, guest: usize, pair: usize) {
        let slot = self.guests[guest].pairs[pair].receive_slot;
        self.switch.detach(slot, &mut self.outbox);
    }
}
