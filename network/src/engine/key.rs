//! The exact key of a flow: everything that a layer may look at, and nothing else.
//!
//! Invariant: two packets with one key get one action under one view. Whoever lets a layer look at another field adds it
//! here first.

use crate::packet::{ETHERNET, Frame, Payload, TCP, UDP};
use std::net::Ipv4Addr;

/// The key of an IPv4 flow: four words, compared and hashed as such. Addresses and ports are as on the wire.
///
/// ```text
/// word 0   source address, destination address
/// word 1   source port, destination port, protocol, flags, low 16 bits of the VNI
/// word 2   destination hardware address, high 8 bits of the VNI
/// word 3   source hardware address
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key(pub [u64; 4]);

const FRAGMENT: u64 = 1 << 40;

impl Key {
    /// The key of a parsed frame; none if it is not IPv4.
    pub fn of(frame: &Frame) -> Option<Self> {
        let Payload::Ipv4(ipv4) = &frame.payload else { return None };
        let address = |address: Ipv4Addr| u64::from(u32::from_le_bytes(address.octets()));
        let port = |port: u16| u64::from(port.swap_bytes());
        Some(Self([
            address(ipv4.source) | address(ipv4.destination) << 32,
            port(ipv4.ports[0])
                | port(ipv4.ports[1]) << 16
                | u64::from(ipv4.protocol) << 32
                | if ipv4.fragment { FRAGMENT } else { 0 },
            frame.destination.bits(),
            frame.source.bits(),
        ]))
    }

    /// The same for the ordinary frame, without parsing it: TCP or UDP over IPv4 without IPv4 options, not a fragment,
    /// whose headers are sound. `head` is the beginning of a frame of `length` bytes. None for any other frame.
    #[inline(always)]
    pub fn of_ordinary(head: &[u8], length: usize) -> Option<Self> {
        const TRANSPORT: usize = ETHERNET + 20;
        let fixed: &[u8; TRANSPORT + 8] = head.first_chunk()?;
        let word = |at: usize| {
            fixed[at..].first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes))
        };
        // Hardware addresses, 08 00, 45, type of service: the last two bytes of the third word do not matter yet.
        let (low, middle) = (word(0), word(8));
        let total = usize::from(u16::from_be_bytes([fixed[16], fixed[17]]));
        let whole = u16::from_be_bytes([fixed[20], fixed[21]]) & 0x3fff == 0;
        let ordinary = middle >> 32 & 0xff_ffff == 0x45_0008;
        if !ordinary || !whole || total + ETHERNET > length {
            return None;
        }
        let transport = match fixed[23] {
            UDP => 8,
            TCP => usize::from(*head.get(TRANSPORT + 12)? >> 4) * 4,
            _ => return None,
        };
        let least = if fixed[23] == TCP { 20 } else { 8 };
        if transport < least || total < 20 + transport || head.len() < TRANSPORT + transport {
            return None;
        }
        let protocol = u64::from(fixed[23]) << 32;
        Some(Self([
            word(26),
            word(34) & 0xffff_ffff | protocol,
            low & 0xffff_ffff_ffff,
            low >> 48 | (middle & 0xffff_ffff) << 16,
        ]))
    }

    /// The key of a frame that came out of the overlay in this segment; of a guest's frame with `vni` zero.
    #[inline(always)]
    pub fn in_segment(self, vni: u32) -> Self {
        let Self([a, b, c, d]) = self;
        let vni = u64::from(vni);
        Self([a, b | (vni & 0xffff) << 48, c | (vni >> 16) << 48, d])
    }

    /// A hash with a seed that no guest knows. Its upper bits choose the group and its lower the tag of a flow table;
    /// its upper half also chooses a receive queue or a tunnel's source port.
    #[inline]
    pub fn hash(&self, seed: [u64; 2]) -> u64 {
        let [a, b, c, d] = self.0;
        fold(fold(a ^ seed[0], b ^ seed[1]) ^ c, d ^ seed[1].rotate_left(32))
    }
}

/// Both halves of the 128-bit product, one over the other; never stuck at zero.
#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a ^ 0x9e37_79b9_7f4a_7c15) * u128::from(b ^ 0xe703_7ed1_a0b4_28db);
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{HEAD, parse};
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn frame(source: u8, port: u16) -> Vec<u8> {
        let mut frame = Vec::new();
        etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, source], [2, 0, 0, 0, 0, 9])
            .ipv4([10, 0, 0, source], [10, 0, 0, 9], 64)
            .udp(port, 53)
            .write(&mut frame, &[])
            .unwrap();
        frame
    }

    fn key(bytes: &[u8], vni: u32) -> Key {
        Key::of(&parse(bytes, bytes.len()).unwrap()).unwrap().in_segment(vni)
    }

    #[test]
    fn every_field_that_a_layer_may_read_changes_the_key() {
        let base = frame(1, 1000);
        let changed = |at: usize, value: u8| {
            let mut frame = base.clone();
            frame[at] = value;
            key(&frame, 0)
        };
        let keys = [
            key(&base, 0),
            key(&base, 1),
            key(&base, 1 << 16),
            key(&base, 0xff_0000),
            key(&frame(2, 1000), 0),
            key(&frame(1, 1001), 0),
            changed(0, 6),
            changed(6, 6),
            changed(20, 0x20),
            changed(23, 47),
            changed(30, 11),
            changed(37, 54),
        ];
        let all: HashSet<_> = keys.iter().map(|key| key.0).collect();
        assert_eq!(all.len(), keys.len());
    }

    proptest! {
        #[test]
        fn the_short_way_gives_the_key_that_parsing_gives_or_none(
            source: u8, port: u16, tcp: bool, payload in 0usize..100,
            damage in prop::collection::vec((12usize..60, any::<u8>()), 0..4),
            cut in 0usize..200,
        ) {
            let mut bytes = frame(source, port);
            if tcp {
                bytes.truncate(14);
                bytes.extend(vec![0; 40 + payload]);
                bytes[14..18].copy_from_slice(&[0x45, 0, 0, 40 + payload as u8]);
                bytes[23] = 6;
                bytes[46] = 0x50;
            }
            for (at, value) in damage {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
            }
            bytes.truncate(bytes.len().saturating_sub(cut / 4));
            let head = &bytes[..bytes.len().min(HEAD)];
            let slow = parse(head, bytes.len()).ok().and_then(|frame| Key::of(&frame));
            let fast = Key::of_ordinary(head, bytes.len());
            prop_assert!(fast.is_none() || fast == slow, "{:x?} {:x?}", fast, slow);
            if cut < 4 && slow.is_some() && bytes[14] == 0x45 && matches!(bytes[23], 6 | 17) && bytes[20] & 0x3f == 0 && bytes[21] == 0 {
                prop_assert!(fast.is_some());
            }
        }
    }

    #[test]
    fn hashes_spread_over_groups_tags_and_queues() {
        let seed = [0x1234_5678_9abc_def0, 0x0fed_cba9_8765_4321];
        let mut groups = [0u32; 64];
        let mut tags = HashSet::new();
        for port in 0..6400u16 {
            let hash = key(&frame(1, port), 0).hash(seed);
            groups[(hash >> 58) as usize] += 1;
            tags.insert(hash as u16);
        }
        assert!(groups.iter().all(|n| (50..170).contains(n)), "{groups:?}");
        assert!(tags.len() > 5500, "{}", tags.len());
    }
}
