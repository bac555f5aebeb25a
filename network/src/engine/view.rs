//! What the engine knows of ports and segments: an immutable snapshot, told by the driver.
//!
//! Invariants: a view is never changed, only replaced whole; a segment's epoch is not zero, is used for one content of
//! that segment only, and changes whenever anything in the segment does, so that one tenant's change touches no other's
//! flows; within a segment an address has one owner, and a port of this process comes before a peer on another server.

use super::names::Names;
use crate::address::{GATEWAY_MAC, Mac};
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

/// The MTU of a segment that nobody has told anything about.
pub const DEFAULT_MTU: u16 = 1500;
/// Where the card's DHCP server of a segment without gateway is: an address that is nobody's.
const SERVER_WITHOUT_GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 253);

/// A port's number in the process, small and dense; used again only after the port has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortIndex(pub u16);

/// What the engine knows of a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortView {
    /// Its number.
    pub index: PortIndex,
    /// Its segment's VXLAN network identifier.
    pub vni: u32,
    /// Its hardware address.
    pub mac: Mac,
    /// Its addresses; DHCP gives the first.
    pub ipv4: Vec<Ipv4Addr>,
}

/// What guests are told of a segment's network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Its prefix length in bits.
    pub prefix_len: u8,
    /// The gateway, if there is one.
    pub gateway: Option<Ipv4Addr>,
    /// DNS servers that are announced.
    pub dns: Vec<Ipv4Addr>,
    /// The names that the card answers for, if it does.
    pub names: Option<Arc<Names>>,
}

/// A host on another server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerView {
    /// Its hardware address.
    pub mac: Mac,
    /// Its address.
    pub ipv4: Ipv4Addr,
    /// Its server's tunnel end point.
    pub endpoint: SocketAddr,
}

/// Who has an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    /// Its hardware address.
    pub mac: Mac,
    /// Where it is.
    pub place: Place,
}

/// Where a host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A port of this process.
    Local(PortIndex),
    /// Behind an end point of the segment: an index into [`SegmentView::endpoints`].
    Remote(u32),
    /// The card itself, which answers for the gateway.
    Gateway,
}

/// What the engine knows of a segment.
#[derive(Debug, Clone)]
pub struct SegmentView {
    /// Its VXLAN network identifier.
    pub vni: u32,
    /// Which content this is; see the module.
    pub epoch: u32,
    /// The guests' MTU in bytes.
    pub mtu: u16,
    /// What guests are told; none before anybody told the card.
    pub network: Option<Network>,
    hosts: HashMap<Ipv4Addr, Host>,
    endpoints: Vec<SocketAddr>,
    servers: HashSet<IpAddr>,
}

impl SegmentView {
    /// Puts a segment together. `own` is this process's tunnel end point: peers said to be behind it are here, and are
    /// known by their port alone, so that every server can be told the same.
    pub fn new<'a>(
        vni: u32,
        epoch: u32,
        mtu: u16,
        network: Option<Network>,
        ports: impl Iterator<Item = &'a PortView>,
        peers: impl Iterator<Item = PeerView>,
        own: Option<SocketAddr>,
    ) -> Self {
        let mut view = Self {
            vni,
            epoch,
            mtu,
            network,
            hosts: HashMap::new(),
            endpoints: Vec::new(),
            servers: HashSet::new(),
        };
        let mut known: HashMap<SocketAddr, u32> = HashMap::new();
        for peer in peers.filter(|peer| Some(peer.endpoint) != own) {
            let index = *known.entry(peer.endpoint).or_insert_with(|| {
                view.endpoints.push(peer.endpoint);
                view.servers.insert(peer.endpoint.ip());
                view.endpoints.len() as u32 - 1
            });
            let host = Host { mac: peer.mac, place: Place::Remote(index) };
            view.hosts.insert(peer.ipv4, host);
        }
        if let Some(gateway) = view.network.as_ref().and_then(|network| network.gateway) {
            view.hosts.insert(gateway, Host { mac: GATEWAY_MAC, place: Place::Gateway });
        }
        for port in ports {
            let host = Host { mac: port.mac, place: Place::Local(port.index) };
            view.hosts.extend(port.ipv4.iter().map(|ipv4| (*ipv4, host)));
        }
        view
    }

    /// A segment that knows nobody.
    pub fn empty(vni: u32) -> Arc<Self> {
        let nobody = (std::iter::empty(), std::iter::empty());
        Arc::new(Self::new(vni, u32::MAX, DEFAULT_MTU, None, nobody.0, nobody.1, None))
    }

    /// Who has an address.
    pub fn host(&self, ipv4: Ipv4Addr) -> Option<Host> {
        self.hosts.get(&ipv4).copied()
    }

    /// The names of the segment, if the card answers for them at this address.
    pub fn names_at(&self, server: Ipv4Addr) -> Option<&Arc<Names>> {
        let names = self.network.as_ref()?.names.as_ref()?;
        names.servers().contains(&server).then_some(names)
    }

    /// A tunnel end point by its index.
    pub fn endpoint(&self, index: u32) -> Option<SocketAddr> {
        self.endpoints.get(index as usize).copied()
    }

    /// Whether `server` has hosts of this segment: what comes from any other is not of this segment.
    pub fn has_server(&self, server: IpAddr) -> bool {
        self.servers.contains(&server)
    }

    /// The address that the card answers from: the gateway's, or one that is nobody's.
    pub fn server(&self) -> Ipv4Addr {
        let gateway = self.network.as_ref().and_then(|network| network.gateway);
        gateway.unwrap_or(SERVER_WITHOUT_GATEWAY)
    }
}

/// Everything the engine knows.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// Segments by their VXLAN network identifier: those that were told, and those that a port is in.
    pub segments: HashMap<u32, Arc<SegmentView>>,
}

/// The mask of a prefix length; all ones from 32 on.
pub fn mask(prefix_len: u8) -> Ipv4Addr {
    Ipv4Addr::from(!u32::MAX.checked_shr(prefix_len.into()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_comes_before_a_peer_and_a_peer_behind_our_own_end_point_is_none() {
        let own: SocketAddr = "192.0.2.1:4789".parse().unwrap();
        let there: SocketAddr = "192.0.2.2:4789".parse().unwrap();
        let address = |n| Ipv4Addr::new(10, 0, 0, n);
        let mac = |n| Mac([2, 0, 0, 0, 0, n]);
        let port = PortView { index: PortIndex(3), vni: 5, mac: mac(1), ipv4: vec![address(1)] };
        let peer = |n, endpoint| PeerView { mac: mac(n), ipv4: address(n), endpoint };
        let peers = [peer(1, there), peer(2, there), peer(3, own), peer(4, there)];
        let network =
            Network { prefix_len: 24, gateway: Some(address(254)), dns: vec![], names: None };
        let view = SegmentView::new(
            5,
            1,
            1450,
            Some(network),
            [&port].into_iter(),
            peers.into_iter(),
            Some(own),
        );
        assert_eq!(view.host(address(1)).unwrap().place, Place::Local(PortIndex(3)));
        assert_eq!(view.host(address(2)), Some(Host { mac: mac(2), place: Place::Remote(0) }));
        assert_eq!(view.host(address(3)), None);
        assert_eq!(view.host(address(254)).unwrap().mac, GATEWAY_MAC);
        assert_eq!(view.endpoint(0), Some(there));
        assert_eq!(view.endpoint(1), None);
        assert!(view.has_server(there.ip()) && !view.has_server(own.ip()));
        assert_eq!(view.server(), address(254));
    }

    #[test]
    fn masks() {
        assert_eq!(mask(0), Ipv4Addr::UNSPECIFIED);
        assert_eq!(mask(24), Ipv4Addr::new(255, 255, 255, 0));
        assert_eq!(mask(32), Ipv4Addr::BROADCAST);
        assert_eq!(mask(200), Ipv4Addr::BROADCAST);
    }
}
