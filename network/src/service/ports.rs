//! A port at run time: its socket, its tables, its device, and what is asked about it.
//!
//! ```text
//! Dark ── serve ──► Served ── leave ──► Leaving ── the card has let go ──► gone, or served anew
//! ```
//!
//! Invariant: a port that is not dark has its socket; its index is used by no other port until the card has let go.

use super::hush::Hush;
use super::model::WantedPort;
use super::refusal::Failure;
use crate::address::Mac;
use crate::engine::flow::{FlowTable, QUOTA};
use crate::engine::view::{PortIndex, PortView};
use crate::packet::offload::feature;
use crate::switch::NewPort;
use crate::switch::counters::PortCounters;
use crate::switch::rates::Rates;
use crate::tables::Table;
use crate::tables::lease::Leases;
use bixi_api::network::{PortAdd, PortDescription};
use bixi_offload::card::DeviceId;
use bixi_offload::control::{Listener, Refusal, SocketFile};
use bixi_offload::ring::{FEATURE_EVENT_IDX, FEATURE_INDIRECT};
use bixi_offload::vhost_user::Offer;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::oneshot;

/// Where an answer goes.
pub type Reply<T> = oneshot::Sender<Result<T, Refusal>>;

/// The largest queue offered, in descriptors.
const QUEUE_SIZE: u16 = 4096;
/// VIRTIO_F_ANY_LAYOUT: a legacy driver may put header and frame into one descriptor.
const FEATURE_ANY_LAYOUT: u64 = 1 << 27;
/// VIRTIO_NET_S_LINK_UP in the configuration space.
const LINK_UP: u16 = 1;

/// A port's socket, kept open while the device behind it may be replaced.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    _file: Option<SocketFile>,
}

impl Socket {
    /// Listens at `path`.
    ///
    /// # Errors
    /// See [`bixi_offload::control::ListenError`], or no descriptor can be had.
    pub fn bind(path: &Path) -> Result<Self, Failure> {
        let (listener, file) = Listener::bind_path(path)?.into_parts().map_err(system)?;
        Ok(Self { listener, _file: file })
    }

    /// The same socket for a device.
    ///
    /// # Errors
    /// No descriptor can be had.
    pub fn share(&self) -> Result<UnixListener, Failure> {
        self.listener.try_clone().map_err(system)
    }
}

fn system(source: std::io::Error) -> Failure {
    bixi_offload::card::CardError::System { what: "listen for front ends", source }.into()
}

/// What follows when the card has let go of a port.
#[derive(Debug)]
pub enum Then {
    /// It is gone.
    Gone,
    /// It is served anew.
    Again(Box<(WantedPort, Socket, Reply<PortDescription>)>),
}

/// A port at run time.
#[derive(Debug)]
pub struct Port {
    /// What was asked for.
    pub wanted: WantedPort,
    /// Its number.
    pub index: PortIndex,
    /// Its counters, which the worker writes.
    pub counters: Arc<PortCounters>,
    /// Its device, while it is served.
    pub device: Option<DeviceId>,
    /// Its leases, while it is served.
    pub leases: Option<Arc<Leases>>,
    /// Its socket; none while it is dark.
    pub socket: Option<Socket>,
    /// Whether a front end is connected.
    pub connected: bool,
    /// Why the last session was ended by this side, or why the port is dark.
    pub last_fault: Option<String>,
    /// What follows when the card has let go; none unless it is to.
    pub then: Option<Then>,
    /// Who waits for it to be gone.
    pub waiting: Vec<Reply<()>>,
    /// Lines about its front end.
    pub hush: Hush,
}

impl Port {
    /// A port that is not served yet.
    pub fn new(wanted: WantedPort, index: PortIndex) -> Self {
        Self {
            wanted,
            index,
            counters: Arc::default(),
            device: None,
            leases: None,
            socket: None,
            connected: false,
            last_fault: None,
            then: None,
            waiting: Vec::new(),
            hush: Hush::default(),
        }
    }

    /// What the engine knows of it.
    pub fn view(&self) -> PortView {
        let WantedPort { add, mac } = &self.wanted;
        PortView { index: self.index, vni: add.segment, mac: *mac, ipv4: add.ipv4.clone() }
    }

    /// Opens its tables and puts together what the switch is told, but for the device and the metadata.
    ///
    /// # Errors
    /// A table cannot be used.
    pub fn open_tables(&mut self, id: &str, state: &Path) -> Result<NewPort, Failure> {
        let epoch = self.wanted.add.epoch;
        let (flows, torn_flows) = FlowTable::open(&Table::Flows.path(state, id, epoch), QUOTA)?;
        let (leases, torn_leases) = Leases::open(&Table::Leases.path(state, id, epoch))?;
        if torn_flows + torn_leases > 0 {
            tracing::warn!(
                port = id,
                torn_flows,
                torn_leases,
                "dropped what a killed process left half written"
            );
        }
        self.counters.set_torn(torn_flows + torn_leases);
        self.counters.set_flows(flows.len());
        let leases = Arc::new(leases);
        self.leases = Some(Arc::clone(&leases));
        let (view, counters) = (self.view(), Arc::clone(&self.counters));
        let (device, rates) = (DeviceId(0), self.rates());
        Ok(NewPort { device, view, flows, leases, counters, metadata: None, rates })
    }

    /// What it may carry, with full buckets.
    pub fn rates(&self) -> Rates {
        // Limits that cannot be were refused before.
        Rates::new(&self.wanted.add.limits).unwrap_or_default()
    }

    /// How it is, but for its metadata.
    pub fn describe(&self, id: &str) -> PortDescription {
        let leases = self.leases.as_ref().map(|leases| leases.list()).unwrap_or_default();
        let first = self.wanted.add.ipv4.first();
        let lease = leases.iter().find(|lease| Some(&lease.address) == first);
        PortDescription {
            id: id.to_owned(),
            port: self.wanted.add.clone(),
            connected: self.connected,
            last_fault: self.last_fault.clone(),
            lease_until: lease.map(|lease| lease.until),
            metadata: None,
            statistics: self.counters.read(),
        }
    }
}

/// What a port offers to its front end. The same for the same port in every process of a release, so that a front end that
/// comes back finds what its driver has accepted.
pub fn offer(add: &PortAdd, mac: Mac, mtu: u16) -> Offer {
    use feature::*;
    let several = if add.queue_pairs > 1 { MQ } else { 0 };
    let features = CSUM
        | GUEST_CSUM
        | MTU
        | MAC
        | GUEST_TSO4
        | GUEST_TSO6
        | GUEST_ECN
        | HOST_TSO4
        | HOST_TSO6
        | HOST_ECN
        | MRG_RXBUF
        | STATUS
        | CTRL_VQ
        | several
        | FEATURE_ANY_LAYOUT
        | FEATURE_INDIRECT
        | FEATURE_EVENT_IDX
        | VERSION_1;
    // struct virtio_net_config (virtio 1.2, 5.1.4): mac, status, max_virtqueue_pairs, mtu.
    let mut config = mac.0.to_vec();
    for field in [LINK_UP, add.queue_pairs, mtu] {
        config.extend_from_slice(&field.to_le_bytes());
    }
    Offer {
        features,
        config,
        config_writable: 0..0,
        queues: add.queue_pairs * 2,
        max_queue_size: QUEUE_SIZE,
        // A network device needs none: its rings are used in order, and what was taken and not used is sent again.
        inflight: false,
        mtu: true,
    }
}

#[cfg(test)]
mod tests {
    use super::super::rules::tests::port;
    use super::*;

    #[test]
    fn the_configuration_space_is_as_the_specification_says() {
        let add = PortAdd { queue_pairs: 4, ..port(1) };
        let offered = offer(&add, Mac([2, 0, 0, 0, 0, 1]), 1450);
        assert_eq!(offered.config, [2, 0, 0, 0, 0, 1, 1, 0, 4, 0, 0xaa, 5]);
        assert_eq!(offered.queues, 8);
        assert_ne!(offered.features & feature::MQ, 0);
        assert_eq!(offer(&port(1), Mac([2; 6]), 1500).features & feature::MQ, 0);
    }
}
