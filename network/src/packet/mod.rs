//! Frames as they are on the wire: what the fast path reads from a header, and how frames are checksummed, cut and
//! wrapped.
//!
//! Invariants: nothing here trusts a length field before it is compared with the bytes at hand; nothing allocates;
//! nothing panics on any input. [`parse`] looks only at the bytes it is given, which are the engine's own copy of a
//! frame's beginning: a guest that changes its memory meanwhile changes nothing.
//!
//! Called by the engine for every frame, and by the card's own answers.

pub mod checksum;
pub mod offload;
pub mod segment;
pub mod vxlan;

use crate::address::Mac;
use std::net::Ipv4Addr;

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;
/// Bytes of a frame that are enough for every header [`parse`] reads: Ethernet, the longest IPv4 and TCP headers.
pub const HEAD: usize = ETHERNET + 60 + 60;

/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;

/// IP protocol number of ICMP.
pub const ICMP: u8 = 1;
/// IP protocol number of TCP.
pub const TCP: u8 = 6;
/// IP protocol number of UDP.
pub const UDP: u8 = 17;

/// What the engine knows of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Where it goes.
    pub destination: Mac,
    /// Where it says it is from.
    pub source: Mac,
    /// What it carries.
    pub payload: Payload,
}

/// What an Ethernet frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payload {
    /// An IPv4 packet whose header is sound.
    Ipv4(Ipv4),
    /// ARP; its body is read by the answer.
    Arp,
    /// IPv6, which no guest of this release has.
    Ipv6,
    /// Any other EtherType.
    Other(u16),
}

/// The header of an IPv4 packet, checked against the frame that carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv4 {
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub destination: Ipv4Addr,
    /// Protocol number.
    pub protocol: u8,
    /// Bytes of the IPv4 header, 20 to 60.
    pub header: u8,
    /// Bytes of header and payload; at most what the frame has behind its Ethernet header.
    pub total: u16,
    /// Whether routers may not cut it.
    pub dont_fragment: bool,
    /// Whether it is a part of a larger packet.
    pub fragment: bool,
    /// Source and destination port of TCP and UDP; zero for fragments and all else.
    pub ports: [u16; 2],
    /// Bytes of the TCP header; zero for all else and for fragments.
    pub tcp_header: u8,
}

impl Ipv4 {
    /// Offset of the transport header in the frame.
    pub fn transport(&self) -> usize {
        ETHERNET + usize::from(self.header)
    }
}

/// A frame is shorter than its headers say, or they contradict themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed frame")]
pub struct Malformed;

/// Asks the processor to fetch the line at `at`, without waiting. Any address is allowed.
#[inline(always)]
pub(crate) fn prefetch(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults, whatever the address.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// The big-endian number at `at`, zero past the end.
pub fn be16(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u16::from_be_bytes(*b))
}

/// The IPv4 address at `at`, unspecified past the end.
pub fn address(bytes: &[u8], at: usize) -> Ipv4Addr {
    bytes.get(at..).and_then(|b| b.first_chunk::<4>()).copied().unwrap_or_default().into()
}

/// Reads the headers of a frame of `length` bytes that begins with `head`: all of it, or its first [`HEAD`] bytes at
/// least.
///
/// # Errors
/// [`Malformed`] when a header does not fit or contradicts itself.
#[inline]
pub fn parse(head: &[u8], length: usize) -> Result<Frame, Malformed> {
    if head.len() < ETHERNET || head.len() > length {
        return Err(Malformed);
    }
    let payload = match be16(head, 12) {
        IPV4 => Payload::Ipv4(parse_ipv4(&head[ETHERNET..], length - ETHERNET)?),
        ARP => Payload::Arp,
        IPV6 => Payload::Ipv6,
        other => Payload::Other(other),
    };
    Ok(Frame { destination: Mac::read(head), source: Mac::read(&head[6..]), payload })
}

/// Reads an IPv4 header at the beginning of `packet`, of which the frame has `length` bytes.
#[inline]
fn parse_ipv4(packet: &[u8], length: usize) -> Result<Ipv4, Malformed> {
    let fixed: &[u8; 20] = packet.first_chunk().ok_or(Malformed)?;
    let header = (fixed[0] & 15) * 4;
    let total = u16::from_be_bytes([fixed[2], fixed[3]]);
    let sound = fixed[0] >> 4 == 4
        && header >= 20
        && usize::from(total) >= usize::from(header)
        && usize::from(total) <= length
        && packet.len() >= usize::from(header);
    if !sound {
        return Err(Malformed);
    }
    let fragment_field = u16::from_be_bytes([fixed[6], fixed[7]]);
    let mut ipv4 = Ipv4 {
        source: address(fixed, 12),
        destination: address(fixed, 16),
        protocol: fixed[9],
        header,
        total,
        dont_fragment: fragment_field & 0x4000 != 0,
        // An offset, or more fragments to come. The reserved bit says nothing.
        fragment: fragment_field & 0x3fff != 0,
        ports: [0; 2],
        tcp_header: 0,
    };
    if !ipv4.fragment {
        let transport = &packet[usize::from(header)..];
        read_ports(&mut ipv4, transport)?;
    }
    Ok(ipv4)
}

/// Reads the ports of an unfragmented packet whose transport header begins with `transport`.
#[inline]
fn read_ports(ipv4: &mut Ipv4, transport: &[u8]) -> Result<(), Malformed> {
    let room = usize::from(ipv4.total) - usize::from(ipv4.header);
    match ipv4.protocol {
        TCP => {
            let fixed: &[u8; 20] = transport.first_chunk().ok_or(Malformed)?;
            let header = usize::from(fixed[12] >> 4) * 4;
            if header < 20 || header > room || header > transport.len() {
                return Err(Malformed);
            }
            ipv4.tcp_header = (fixed[12] >> 4) * 4;
        }
        UDP if room >= 8 && transport.len() >= 8 => {}
        UDP => return Err(Malformed),
        _ => return Ok(()),
    }
    ipv4.ports = [be16(transport, 0), be16(transport, 2)];
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
    use proptest::prelude::*;

    fn udp(payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .udp(1234, 53)
            .write(&mut frame, payload)
            .unwrap();
        frame
    }

    #[test]
    fn reads_a_udp_packet() {
        let frame = udp(b"hello");
        let parsed = parse(&frame, frame.len()).unwrap();
        assert_eq!(parsed.source, Mac([2, 0, 0, 0, 0, 1]));
        assert_eq!(parsed.destination, Mac([2, 0, 0, 0, 0, 2]));
        let Payload::Ipv4(ipv4) = parsed.payload else { panic!("{parsed:?}") };
        assert_eq!((ipv4.protocol, ipv4.ports), (UDP, [1234, 53]));
        assert_eq!(ipv4.transport(), 34);
    }

    #[test]
    fn padding_behind_the_packet_is_no_fault_but_a_missing_byte_is() {
        let mut frame = udp(b"hello");
        assert_eq!(parse(&frame[..frame.len() - 1], frame.len() - 1), Err(Malformed));
        frame.extend([0; 20]);
        assert!(parse(&frame, frame.len()).is_ok());
    }

    #[test]
    fn every_length_that_lies_is_refused() {
        let good = udp(&[7; 20]);
        for (at, value) in [(14, 0x44), (14, 0x65), (14, 0x4f), (16, 0xff), (17, 19)] {
            let mut frame = good.clone();
            frame[at] = value;
            if at == 17 {
                frame[16] = 0;
            }
            assert_eq!(parse(&frame, frame.len()), Err(Malformed), "byte {at} = {value:#x}");
        }
    }

    #[test]
    fn a_fragment_has_no_ports() {
        let mut frame = udp(&[7; 40]);
        frame[20] = 0x20;
        let Payload::Ipv4(ipv4) = parse(&frame, frame.len()).unwrap().payload else { panic!() };
        assert!(ipv4.fragment && ipv4.ports == [0, 0]);
    }

    proptest! {
        #[test]
        fn agrees_with_an_independent_parser(
            source: [u8; 4], destination: [u8; 4], ports: (u16, u16), tcp: bool,
            options in prop::sample::select(vec![0usize, 4, 20, 40]),
            payload in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let options = etherparse::Ipv4Options::try_from(&[1u8; 40][..options]).unwrap();
            let mut header = etherparse::Ipv4Header::new(
                0, 64, if tcp { 6 } else { 17 }.into(), source, destination).unwrap();
            header.options = options;
            let builder = PacketBuilder::ethernet2([2; 6], [4; 6])
                .ip(etherparse::IpHeaders::Ipv4(header, Default::default()));
            let mut frame = Vec::new();
            if tcp {
                builder.tcp(ports.0, ports.1, 1, 100).write(&mut frame, &payload).unwrap();
            } else {
                builder.udp(ports.0, ports.1).write(&mut frame, &payload).unwrap();
            }
            let head = &frame[..frame.len().min(HEAD)];
            let Payload::Ipv4(ours) = parse(head, frame.len()).unwrap().payload else { panic!() };
            let theirs = SlicedPacket::from_ethernet(&frame).unwrap();
            let expected = match theirs.transport.unwrap() {
                TransportSlice::Udp(u) => [u.source_port(), u.destination_port()],
                TransportSlice::Tcp(t) => [t.source_port(), t.destination_port()],
                other => panic!("{other:?}"),
            };
            prop_assert_eq!(ours.ports, expected);
            prop_assert_eq!(ours.source, Ipv4Addr::from(source));
            prop_assert_eq!(ours.destination, Ipv4Addr::from(destination));
            prop_assert_eq!(usize::from(ours.total), frame.len() - ETHERNET);
        }

        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), extra in 0usize..2000) {
            let _ = parse(&bytes, bytes.len() + extra);
        }
    }
}
