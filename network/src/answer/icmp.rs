//! ICMP *fragmentation needed* (RFC 792, RFC 1191): the segment's MTU told to a guest that sent a larger packet and
//! forbade to cut it. A tunnel end point never fragments (RFC 7348, 4.3), so a silent drop would be a black hole.
//!
//! Invariant: no error is sent about an ICMP error, a fragment other than the first, or a packet not for one host
//! (RFC 1122, 3.2.2).

use super::{push_ethernet, push_ipv4};
use crate::packet::{self, ETHERNET, Frame, Ipv4, address, be16, checksum};
use std::net::Ipv4Addr;

/// Bytes of the offending packet that are sent back behind its header.
const QUOTED: usize = 8;

/// Appends *fragmentation needed* for the packet in `frame`, from `router` with the hardware address that the guest
/// sent to. False, and nothing appended, where no error may be sent.
pub fn too_big(
    out: &mut Vec<u8>,
    frame: &[u8],
    parsed: &Frame,
    ipv4: &Ipv4,
    mtu: u16,
    router: Ipv4Addr,
) -> bool {
    let header = usize::from(ipv4.header);
    let Some(packet) = frame.get(ETHERNET..) else { return false };
    let later_fragment = be16(packet, 6) & 0x1fff != 0;
    // Types 0, 8, and 13 to 18 ask or answer; all others tell of errors.
    let error = ipv4.protocol == packet::ICMP
        && !packet.get(header).is_some_and(|kind| matches!(kind, 0 | 8 | 13..=18));
    let hosts = !parsed.destination.is_multicast()
        && !ipv4.destination.is_multicast()
        && !ipv4.source.is_unspecified();
    if later_fragment || error || !hosts || packet.len() < header {
        return false;
    }
    let quoted = &packet[..(header + QUOTED).min(packet.len())];
    let mut body = [0; 8];
    body[..2].copy_from_slice(&[3, 4]);
    body[6..].copy_from_slice(&mtu.to_be_bytes());
    let sum = checksum::Sum::default().with(&body).with(quoted).finish();
    body[2..4].copy_from_slice(&sum.to_be_bytes());

    push_ethernet(out, parsed.source, parsed.destination, packet::IPV4);
    push_ipv4(out, packet::ICMP, router, address(packet, 12), body.len() + quoted.len());
    out.extend_from_slice(&body);
    out.extend_from_slice(quoted);
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{Payload, parse};
    use etherparse::{
        Icmpv4Type, PacketBuilder, SlicedPacket, TransportSlice, icmpv4::DestUnreachableHeader,
    };

    const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 254);

    fn answer(frame: &[u8]) -> Option<Vec<u8>> {
        let parsed = parse(frame, frame.len()).unwrap();
        let Payload::Ipv4(ipv4) = parsed.payload else { panic!() };
        let mut out = Vec::new();
        too_big(&mut out, frame, &parsed, &ipv4, 1400, ROUTER).then_some(out)
    }

    fn builder() -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
        PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
    }

    #[test]
    fn tells_the_mtu_and_quotes_the_packet() {
        let mut frame = Vec::new();
        builder().udp(7, 9).write(&mut frame, &[1; 1450]).unwrap();
        let out = answer(&frame).unwrap();
        let sliced = SlicedPacket::from_ethernet(&out).unwrap();
        let Some(TransportSlice::Icmpv4(icmp)) = sliced.transport else { panic!() };
        let expected =
            Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded {
                next_hop_mtu: 1400,
            });
        assert_eq!(icmp.icmp_type(), expected);
        assert_eq!(icmp.payload(), &frame[14..14 + 28]);
        assert_eq!(icmp.header().icmp_type.calc_checksum(icmp.payload()), icmp.checksum());
        let Some(etherparse::NetSlice::Ipv4(ip)) = sliced.net else { panic!() };
        assert_eq!(
            (ip.header().source_addr(), ip.header().destination_addr()),
            (ROUTER, [10, 0, 0, 1].into())
        );
        assert_eq!(&out[..12], &[2, 2, 2, 2, 2, 2, 4, 4, 4, 4, 4, 4]);
    }

    #[test]
    fn no_error_about_an_error_a_later_fragment_or_a_group() {
        let mut ping = Vec::new();
        builder().icmpv4_echo_request(1, 1).write(&mut ping, &[1; 1450]).unwrap();
        assert!(answer(&ping).is_some());
        let mut error = ping.clone();
        error[34] = 3;
        assert_eq!(answer(&error), None);
        let mut later = ping.clone();
        later[21] = 1;
        assert_eq!(answer(&later), None);
        let mut group = ping;
        group[30] = 224;
        assert_eq!(answer(&group), None);
    }
}
