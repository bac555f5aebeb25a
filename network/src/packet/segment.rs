//! Cuts TCP over IPv4 into segments, for a way that cannot carry the whole (RFC 9293; what a NIC's TSO does).
//!
//! Invariant: the payloads of all segments, put together, are the payload of the frame; each segment has complete
//! lengths and checksums; CWR is in the first only, FIN and PSH in the last only. Pure: the caller gets each header
//! with the range of the payload that follows it.
//!
//! Called for a receiver that did not accept GUEST_TSO4, and for the overlay.

use super::checksum::{self, Sum};
use super::offload::Segmentation;
use super::{ETHERNET, HEAD, TCP, address};
use std::ops::Range;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// The segments of one frame, in order.
#[derive(Debug)]
pub struct Segments<'a> {
    frame: &'a [u8],
    header: [u8; HEAD],
    headers: usize,
    size: usize,
    at: usize,
    sent_one: bool,
}

/// One segment: its headers, and where its payload is in the frame.
#[derive(Debug)]
pub struct Segment<'s> {
    /// Ethernet, IPv4 and TCP header.
    pub header: &'s [u8],
    /// The bytes of the frame that follow.
    pub payload: Range<usize>,
}

impl<'a> Segments<'a> {
    /// Cuts `frame`, whose headers [`super::parse`] and [`super::offload::Offload::read`] found sound. None when they
    /// are not.
    pub fn new(frame: &'a [u8], how: Segmentation) -> Option<Self> {
        let headers = usize::from(how.headers);
        if headers > HEAD || headers > frame.len() || how.size == 0 {
            return None;
        }
        let mut header = [0; HEAD];
        header[..headers].copy_from_slice(&frame[..headers]);
        let transport = ETHERNET + usize::from(header[ETHERNET] & 15) * 4;
        if headers < transport + 20 || header[ETHERNET + 9] != TCP {
            return None;
        }
        Some(Self { frame, header, headers, size: how.size.into(), at: headers, sent_one: false })
    }

    /// The length of every segment but the last: headers and payload.
    pub fn full_length(&self) -> usize {
        self.headers + self.size
    }

    /// The next segment. A frame without payload has one.
    pub fn next_segment(&mut self) -> Option<Segment<'_>> {
        if self.sent_one && self.at >= self.frame.len() {
            return None;
        }
        let end = (self.at + self.size).min(self.frame.len());
        let payload = self.at..end;
        self.write_header(&payload, end == self.frame.len());
        self.at = end;
        self.sent_one = true;
        Some(Segment { header: &self.header[..self.headers], payload })
    }

    /// Rewrites the header in place for the segment that carries `payload`.
    fn write_header(&mut self, payload: &Range<usize>, last: bool) {
        let (frame, headers) = (self.frame, self.headers);
        let (ip, tcp) =
            self.header[ETHERNET..headers].split_at_mut(usize::from(frame[ETHERNET] & 15) * 4);
        let total = (headers - ETHERNET + payload.len()) as u16;
        ip[2..4].copy_from_slice(&total.to_be_bytes());
        let offset = payload.start - headers;
        if self.sent_one {
            let id = u16::from_be_bytes([ip[4], ip[5]]).wrapping_add(1);
            ip[4..6].copy_from_slice(&id.to_be_bytes());
        }
        checksum::write_ipv4(ip);

        let first_sequence = frame[headers - tcp.len() + 4..].first_chunk().copied();
        let sequence = u32::from_be_bytes(first_sequence.unwrap_or_default());
        tcp[4..8].copy_from_slice(&sequence.wrapping_add(offset as u32).to_be_bytes());
        let flags = frame[headers - tcp.len() + 13];
        let not_here = if self.sent_one { CWR } else { 0 } | if last { 0 } else { FIN | PSH };
        tcp[13] = flags & !not_here;
        tcp[16..18].fill(0);
        let length = (tcp.len() + payload.len()) as u16;
        let sum = Sum::default()
            .pseudo(address(ip, 12), address(ip, 16), TCP, length)
            .with(tcp)
            .with(&frame[payload.clone()])
            .finish();
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{Payload, checksum::transport_is_right, parse};
    use etherparse::{SlicedPacket, TransportSlice};
    use proptest::prelude::*;

    fn frame(payload: &[u8], options: usize) -> Vec<u8> {
        let mut frame = Vec::new();
        etherparse::PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .tcp(1, 2, 0xffff_ff00, 4)
            .options_raw(&[1u8; 40][..options])
            .unwrap()
            .psh()
            .fin()
            .cwr()
            .ack(9)
            .write(&mut frame, payload)
            .unwrap();
        frame
    }

    fn cut(frame: &[u8], size: u16, headers: u16) -> Vec<Vec<u8>> {
        let how = Segmentation { size, headers, ecn: true };
        let mut segments = Segments::new(frame, how).unwrap();
        let mut all = Vec::new();
        while let Some(segment) = segments.next_segment() {
            all.push([segment.header, &frame[segment.payload]].concat());
        }
        all
    }

    proptest! {
        #[test]
        fn segments_are_sound_packets_that_put_together_are_the_frame(
            payload in prop::collection::vec(any::<u8>(), 0..6000),
            size in 1u16..3000,
            options in prop::sample::select(vec![0usize, 12, 40]),
        ) {
            let size = size.max((payload.len() / 500) as u16 + 1);
            let whole = frame(&payload, options);
            let segments = cut(&whole, size, 54 + options as u16);
            prop_assert_eq!(segments.len(), payload.len().div_ceil(size.into()).max(1));
            let mut together = Vec::new();
            for (i, segment) in segments.iter().enumerate() {
                let parsed = parse(segment, segment.len()).unwrap();
                let Payload::Ipv4(ipv4) = parsed.payload else { panic!() };
                prop_assert!(transport_is_right(segment, &ipv4));
                let sliced = SlicedPacket::from_ethernet(segment).unwrap();
                let Some(etherparse::NetSlice::Ipv4(ip)) = &sliced.net else { panic!() };
                let header = ip.header().to_header();
                prop_assert_eq!(header.calc_header_checksum(), header.header_checksum);
                let Some(TransportSlice::Tcp(tcp)) = sliced.transport else { panic!() };
                let sequence = 0xffff_ff00u32.wrapping_add(together.len() as u32);
                prop_assert_eq!(tcp.sequence_number(), sequence);
                let last = i + 1 == segments.len();
                prop_assert_eq!((tcp.fin(), tcp.psh(), tcp.cwr(), tcp.ack()), (last, last, i == 0, true));
                together.extend_from_slice(tcp.payload());
            }
            prop_assert_eq!(together, payload);
        }
    }

    #[test]
    fn what_is_no_tcp_packet_is_not_cut() {
        let whole = frame(&[1; 100], 0);
        let how = |headers, size| Segmentation { size, headers, ecn: false };
        assert!(Segments::new(&whole, how(54, 0)).is_none());
        assert!(Segments::new(&whole, how(40, 10)).is_none());
        assert!(Segments::new(&whole, how(200, 10)).is_none());
        assert!(Segments::new(&[], how(54, 10)).is_none());
        let mut udp = whole;
        udp[23] = 17;
        assert!(Segments::new(&udp, how(54, 10)).is_none());
    }
}
