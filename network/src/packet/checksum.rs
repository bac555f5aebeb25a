//! The Internet checksum (RFC 1071): sums over bytes in several pieces, and the checksum fields of IPv4, TCP and UDP.
//!
//! Invariant: pieces may have odd lengths; the result is that of the bytes put together. Called where the other side
//! cannot complete a checksum itself, and for the packets the card writes.

use super::{Ipv4, UDP};
use std::net::Ipv4Addr;

/// A running one's-complement sum.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sum {
    total: u64,
    odd: bool,
}

impl Sum {
    /// Adds the next bytes.
    #[must_use]
    pub fn with(mut self, bytes: &[u8]) -> Self {
        let mut bytes = bytes;
        if self.odd {
            let Some((first, rest)) = bytes.split_first() else { return self };
            self.total += u64::from(*first);
            self.odd = false;
            bytes = rest;
        }
        // Four bytes at a time: a sum of 32-bit words folds to the same 16 bits, and 2^32 of them fit.
        let (words, rest) = bytes.as_chunks::<4>();
        self.total += words.iter().map(|w| u64::from(u32::from_be_bytes(*w))).sum::<u64>();
        let (pairs, rest) = rest.as_chunks::<2>();
        self.total += pairs.iter().map(|w| u64::from(u16::from_be_bytes(*w))).sum::<u64>();
        if let [last] = rest {
            self.total += u64::from(*last) << 8;
            self.odd = true;
        }
        self
    }

    /// Adds the pseudo header of TCP or UDP (RFC 9293, 3.1).
    #[must_use]
    pub fn pseudo(
        self,
        source: Ipv4Addr,
        destination: Ipv4Addr,
        protocol: u8,
        length: u16,
    ) -> Self {
        let [a, b] = length.to_be_bytes();
        self.with(&source.octets()).with(&destination.octets()).with(&[0, protocol, a, b])
    }

    /// The sum folded to 16 bits, not complemented.
    pub fn folded(self) -> u16 {
        let mut total = self.total;
        while total > 0xffff {
            total = (total & 0xffff) + (total >> 16);
        }
        total as u16
    }

    /// The checksum: the complement of the folded sum.
    pub fn finish(self) -> u16 {
        !self.folded()
    }
}

/// Writes the checksum of the IPv4 header that begins at `header`, whose length is `header.len()`.
pub fn write_ipv4(header: &mut [u8]) {
    if let Some(field) = header.get_mut(10..12) {
        field.fill(0);
        let sum = Sum::default().with(header).finish();
        header[10..12].copy_from_slice(&sum.to_be_bytes());
    }
}

/// Completes the checksum that a guest left to the device (virtio 1.2, 5.1.6.2): the field at `start + offset` holds
/// the sum of the pseudo header; the checksum runs from `start` to the end of `frame`. False when it does not fit.
pub fn complete(frame: &mut [u8], start: usize, offset: usize) -> bool {
    let Some(field) = start.checked_add(offset).filter(|at| at + 2 <= frame.len()) else {
        return false;
    };
    let sum = Sum::default().with(&frame[start..]).finish();
    // Zero means "no checksum" to UDP; its complement is the same number. To all other protocols both are right.
    let sum = if sum == 0 { 0xffff } else { sum };
    frame[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    true
}

/// Whether the transport checksum of an unfragmented TCP or UDP packet in `frame` is right; for tests and captures.
pub fn transport_is_right(frame: &[u8], ipv4: &Ipv4) -> bool {
    let end = super::ETHERNET + usize::from(ipv4.total);
    let Some(transport) = frame.get(ipv4.transport()..end) else { return false };
    if ipv4.protocol == UDP && super::be16(transport, 6) == 0 {
        return true;
    }
    let length = transport.len() as u16;
    let sum = Sum::default().pseudo(ipv4.source, ipv4.destination, ipv4.protocol, length);
    sum.with(transport).finish() == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::checksum::Sum16BitWords;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_an_independent_sum_however_it_is_cut(
            bytes in prop::collection::vec(any::<u8>(), 0..400),
            cut in 0usize..400,
        ) {
            let theirs = Sum16BitWords::new().add_slice(&bytes).ones_complement().to_be();
            let (a, b) = bytes.split_at(cut.min(bytes.len()));
            prop_assert_eq!(Sum::default().with(&bytes).finish(), theirs);
            prop_assert_eq!(Sum::default().with(a).with(b).finish(), theirs);
        }

        #[test]
        fn completes_what_a_guest_left(payload in prop::collection::vec(any::<u8>(), 0..300), tcp: bool) {
            let mut frame = Vec::new();
            let builder = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6])
                .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
            let offset = if tcp {
                builder.tcp(1, 2, 3, 4).write(&mut frame, &payload).unwrap();
                16
            } else {
                builder.udp(1, 2).write(&mut frame, &payload).unwrap();
                6
            };
            let whole = frame.clone();
            prop_assume!(whole[34 + offset..36 + offset] != [0, 0]);
            let length = (frame.len() - 34) as u16;
            let pseudo = Sum::default()
                .pseudo([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), if tcp { 6 } else { 17 }, length)
                .folded();
            frame[34 + offset..36 + offset].copy_from_slice(&pseudo.to_be_bytes());
            prop_assert!(complete(&mut frame, 34, offset));
            prop_assert_eq!(frame, whole);
        }
    }

    #[test]
    fn a_field_outside_the_frame_is_not_written() {
        let mut frame = [0u8; 40];
        assert!(!complete(&mut frame, 34, 6));
        assert!(!complete(&mut frame, usize::MAX, 6));
        assert!(complete(&mut frame, 34, 4));
    }
}
