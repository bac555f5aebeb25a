//! The layers of a port, walked for the first packet of a flow.
//!
//! ```text
//! from a guest      anti-spoof ─► the card's own services ─► destination (port, end point, nobody)
//! from the overlay  destination (ports only)
//! ```
//!
//! A layer looks at the packet and either ends the walk with an action or lets it go on. Security groups, routes and
//! address translation will be layers between the services and the destination.
//!
//! Invariants: a layer reads nothing of the packet but what is in the flow's [key](super::key), except where it answers;
//! every walk ends with an action; what came from the overlay never goes back there.

use super::action::{Action, Answer, Reason};
use super::view::{Place, PortView, SegmentView};
use crate::address::GATEWAY_MAC;
use crate::answer::{dhcp, dns};
use crate::metadata;
use crate::packet::{Frame, Ipv4, Payload};

/// Where a frame came from.
#[derive(Debug, Clone, Copy)]
pub enum Ingress<'a> {
    /// A guest's port.
    Port(&'a PortView),
    /// Another server, by the overlay.
    Overlay,
}

/// What the layers look at.
#[derive(Debug, Clone, Copy)]
pub struct Packet<'a> {
    /// Where it came from.
    pub ingress: Ingress<'a>,
    /// Its segment.
    pub segment: &'a SegmentView,
    /// Its headers.
    pub frame: &'a Frame,
}

/// A layer: an action, or none to go on.
type Layer = fn(&Packet<'_>) -> Option<Action>;

/// What a frame of a guest passes.
const FROM_GUEST: [Layer; 3] = [anti_spoof, services, destination];
/// What a frame out of the overlay passes.
const FROM_OVERLAY: [Layer; 2] = [carried, destination];

/// Decides what is done with a frame.
pub fn decide(packet: &Packet<'_>) -> Action {
    let layers: &[Layer] = match packet.ingress {
        Ingress::Port(_) => &FROM_GUEST,
        Ingress::Overlay => &FROM_OVERLAY,
    };
    let decided = layers.iter().find_map(|layer| layer(packet));
    decided.unwrap_or(Action::Drop(Reason::UnknownDestination))
}

/// A guest speaks for its own addresses only. ARP's sender is looked at where ARP is answered, because it is not in the
/// key.
fn anti_spoof(packet: &Packet<'_>) -> Option<Action> {
    let Ingress::Port(port) = packet.ingress else { return None };
    if packet.frame.source != port.mac {
        return Some(Action::Drop(Reason::Spoofed));
    }
    let Payload::Ipv4(ipv4) = &packet.frame.payload else { return None };
    let asks_for_address = dhcp::is_request(ipv4) && ipv4.source.is_unspecified();
    let owns = port.ipv4.contains(&ipv4.source);
    // Only the card gives addresses away.
    let spoofed = !(owns || asks_for_address) || dhcp::is_reply(ipv4);
    spoofed.then_some(Action::Drop(Reason::Spoofed))
}

/// What the card answers itself, and what it does not carry.
fn services(packet: &Packet<'_>) -> Option<Action> {
    match &packet.frame.payload {
        Payload::Arp => Some(Action::Answer(Answer::Arp)),
        Payload::Ipv4(ipv4) if dhcp::is_request(ipv4) => Some(Action::Answer(Answer::Dhcp)),
        Payload::Ipv4(ipv4) if asks_for_name(packet, ipv4) => Some(Action::Answer(Answer::Dns)),
        Payload::Ipv4(ipv4) if asks_for_metadata(packet, ipv4) => {
            Some(Action::Answer(Answer::Metadata))
        }
        _ => carried(packet),
    }
}

/// Whether a packet is for the card's own DNS server.
fn asks_for_name(packet: &Packet<'_>, ipv4: &Ipv4) -> bool {
    dns::is_request(ipv4)
        && packet.frame.destination == GATEWAY_MAC
        && packet.segment.names_at(ipv4.destination).is_some()
}

/// Whether a packet is for the metadata server, which is at the same place in every segment.
fn asks_for_metadata(packet: &Packet<'_>, ipv4: &Ipv4) -> bool {
    metadata::is_request(ipv4) && packet.frame.destination == GATEWAY_MAC
}

/// Only IPv4 for one host goes anywhere.
fn carried(packet: &Packet<'_>) -> Option<Action> {
    match packet.frame.payload {
        Payload::Ipv6 => Some(Action::Drop(Reason::Ipv6)),
        _ if packet.frame.destination.is_multicast() => Some(Action::Drop(Reason::Multicast)),
        Payload::Arp | Payload::Other(_) => Some(Action::Drop(Reason::OtherProtocol)),
        Payload::Ipv4(_) => None,
    }
}

/// Whoever has the packet's address, if the frame is for its hardware address.
fn destination(packet: &Packet<'_>) -> Option<Action> {
    let Payload::Ipv4(Ipv4 { destination, .. }) = &packet.frame.payload else { return None };
    let host = packet.segment.host(*destination)?;
    if host.mac != packet.frame.destination {
        return None;
    }
    match (host.place, packet.ingress) {
        // A guest that sends to itself would hear itself speak.
        (Place::Local(to), Ingress::Port(from)) if to == from.index => None,
        (Place::Local(port), _) => Some(Action::Local(port)),
        (Place::Remote(endpoint), Ingress::Port(_)) => Some(Action::Tunnel(endpoint)),
        (Place::Remote(_), Ingress::Overlay) | (Place::Gateway, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::view::{Network, PeerView, PortIndex};
    use super::*;
    use crate::address::Mac;
    use crate::packet::parse;
    use etherparse::PacketBuilder;
    use std::net::Ipv4Addr;

    const fn mac(n: u8) -> Mac {
        Mac([2, 0, 0, 0, 0, n])
    }

    const fn address(n: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 0, n)
    }

    fn port(n: u8) -> PortView {
        PortView {
            index: PortIndex(n.into()),
            vni: 5,
            mac: mac(n),
            ipv4: vec![address(n), address(n + 100)],
        }
    }

    fn segment() -> SegmentView {
        let peer =
            PeerView { mac: mac(3), ipv4: address(3), endpoint: "192.0.2.2:4789".parse().unwrap() };
        let network =
            Network { prefix_len: 24, gateway: Some(address(254)), dns: vec![], names: None };
        let ports = [port(1), port(2)];
        SegmentView::new(5, 1, 1450, Some(network), ports.iter(), [peer].into_iter(), None)
    }

    fn udp(from: (Mac, Ipv4Addr, u16), to: (Mac, Ipv4Addr, u16)) -> Vec<u8> {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(from.0.0, to.0.0)
            .ipv4(from.1.octets(), to.1.octets(), 64)
            .udp(from.2, to.2)
            .write(&mut frame, b"x")
            .unwrap();
        frame
    }

    fn from_guest(bytes: &[u8]) -> Action {
        let frame = parse(bytes, bytes.len()).unwrap();
        decide(&Packet { ingress: Ingress::Port(&port(1)), segment: &segment(), frame: &frame })
    }

    fn from_overlay(bytes: &[u8]) -> Action {
        let frame = parse(bytes, bytes.len()).unwrap();
        decide(&Packet { ingress: Ingress::Overlay, segment: &segment(), frame: &frame })
    }

    const SPOOFED: Action = Action::Drop(Reason::Spoofed);
    const UNKNOWN: Action = Action::Drop(Reason::UnknownDestination);

    #[test]
    fn a_packet_goes_to_whoever_has_its_address() {
        let me = (mac(1), address(1), 9);
        assert_eq!(from_guest(&udp(me, (mac(2), address(2), 9))), Action::Local(PortIndex(2)));
        assert_eq!(from_guest(&udp(me, (mac(2), address(102), 9))), Action::Local(PortIndex(2)));
        assert_eq!(from_guest(&udp(me, (mac(3), address(3), 9))), Action::Tunnel(0));
        let second = (mac(1), address(101), 9);
        assert_eq!(from_guest(&udp(second, (mac(2), address(2), 9))), Action::Local(PortIndex(2)));
    }

    #[test]
    fn nobody_is_guessed() {
        let me = (mac(1), address(1), 9);
        for to in [
            (mac(9), address(9), 9),
            (mac(3), address(2), 9),
            (mac(2), address(3), 9),
            (mac(1), address(1), 9),
            (GATEWAY_MAC, address(254), 9),
            (GATEWAY_MAC, Ipv4Addr::new(8, 8, 8, 8), 53),
        ] {
            assert_eq!(from_guest(&udp(me, to)), UNKNOWN, "{to:?}");
        }
        let many = (Mac::BROADCAST, Ipv4Addr::BROADCAST, 9);
        assert_eq!(from_guest(&udp(me, many)), Action::Drop(Reason::Multicast));
        let group = (Mac([1, 0, 0x5e, 0, 0, 1]), Ipv4Addr::new(224, 0, 0, 1), 9);
        assert_eq!(from_guest(&udp(me, group)), Action::Drop(Reason::Multicast));
    }

    #[test]
    fn a_guest_speaks_for_itself_only() {
        let to = (mac(2), address(2), 9);
        assert_eq!(from_guest(&udp((mac(9), address(1), 9), to)), SPOOFED);
        assert_eq!(from_guest(&udp((mac(1), address(9), 9), to)), SPOOFED);
        assert_eq!(from_guest(&udp((mac(1), Ipv4Addr::UNSPECIFIED, 9), to)), SPOOFED);
        let server = udp((mac(1), address(1), 67), (mac(2), address(2), 68));
        assert_eq!(from_guest(&server), SPOOFED);
        let spoofed_arp = [&[0xff; 6], &mac(9).0[..], &[8, 6], &[0; 28]].concat();
        assert_eq!(from_guest(&spoofed_arp), SPOOFED);
    }

    #[test]
    fn the_card_answers_arp_and_dhcp() {
        let ask =
            udp((mac(1), Ipv4Addr::UNSPECIFIED, 68), (Mac::BROADCAST, Ipv4Addr::BROADCAST, 67));
        assert_eq!(from_guest(&ask), Action::Answer(Answer::Dhcp));
        let renew = udp((mac(1), address(1), 68), (GATEWAY_MAC, address(254), 67));
        assert_eq!(from_guest(&renew), Action::Answer(Answer::Dhcp));
        let arp = [&[0xff; 6], &mac(1).0[..], &[8, 6], &[0; 28]].concat();
        assert_eq!(from_guest(&arp), Action::Answer(Answer::Arp));
    }

    #[test]
    fn what_is_not_carried_is_dropped_by_name() {
        let ipv6 = [&mac(2).0[..], &mac(1).0, &[0x86, 0xdd], &[0x60; 40]].concat();
        assert_eq!(from_guest(&ipv6), Action::Drop(Reason::Ipv6));
        let vlan = [&mac(2).0[..], &mac(1).0, &[0x81, 0], &[0; 40]].concat();
        assert_eq!(from_guest(&vlan), Action::Drop(Reason::OtherProtocol));
    }

    #[test]
    fn what_comes_from_the_overlay_goes_to_ports_only() {
        let there = (mac(3), address(3), 9);
        assert_eq!(from_overlay(&udp(there, (mac(2), address(2), 9))), Action::Local(PortIndex(2)));
        assert_eq!(from_overlay(&udp(there, (mac(3), address(3), 9))), UNKNOWN);
        assert_eq!(from_overlay(&udp(there, (GATEWAY_MAC, address(254), 9))), UNKNOWN);
        let arp = [&mac(1).0[..], &mac(3).0, &[8, 6], &[0; 28]].concat();
        assert_eq!(from_overlay(&arp), Action::Drop(Reason::OtherProtocol));
        let flood = [&[0xff; 6], &mac(3).0[..], &[8, 6], &[0; 28]].concat();
        assert_eq!(from_overlay(&flood), Action::Drop(Reason::Multicast));
    }
}
