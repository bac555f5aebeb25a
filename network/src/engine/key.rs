//! The exact key of a flow: everything that a layer may look at, and nothing else.
//!
//! Invariant: two packets with one key get one action under one view. Whoever lets a layer look at another field adds it
//! here first.

use crate::address::Mac;
use crate::packet::{Frame, Ipv4};
use std::net::Ipv4Addr;

/// The key of an IPv4 flow: four words, compared and hashed as such.
///
/// ```text
/// word 0   source address, destination address
/// word 1   source port, destination port, protocol, flags
/// word 2   destination hardware address, low 16 bits of the VNI
/// word 3   source hardware address, high 8 bits of the VNI
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key(pub [u64; 4]);

const FRAGMENT: u64 = 1 << 40;

impl Key {
    /// The key of a packet that came from a guest (`vni` zero) or out of the overlay.
    #[inline]
    pub fn new(frame: &Frame, ipv4: &Ipv4, vni: u32) -> Self {
        let addresses =
            u64::from(u32::from(ipv4.source)) | u64::from(u32::from(ipv4.destination)) << 32;
        let ports = u64::from(ipv4.ports[0]) | u64::from(ipv4.ports[1]) << 16;
        let flags = if ipv4.fragment { FRAGMENT } else { 0 };
        let vni = u64::from(vni);
        Self([
            addresses,
            ports | u64::from(ipv4.protocol) << 32 | flags,
            frame.destination.bits() | (vni & 0xffff) << 48,
            frame.source.bits() | (vni >> 16) << 48,
        ])
    }

    /// A hash with a seed that no guest knows. Its upper bits choose the group and its lower the tag of a flow table;
    /// its upper half also chooses a receive queue or a tunnel's source port.
    #[inline]
    pub fn hash(&self, seed: [u64; 2]) -> u64 {
        let [a, b, c, d] = self.0;
        fold(fold(a ^ seed[0], b ^ seed[1]) ^ c, d ^ seed[1].rotate_left(32))
    }

    /// The addresses that the key holds, for those who list flows.
    pub fn addresses(&self) -> (Ipv4Addr, Ipv4Addr) {
        ((self.0[0] as u32).into(), ((self.0[0] >> 32) as u32).into())
    }

    /// Source and destination hardware address.
    pub fn macs(&self) -> (Mac, Mac) {
        (Mac::from_bits(self.0[3]), Mac::from_bits(self.0[2]))
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
    use crate::packet::{Payload, parse};
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
        let frame = parse(bytes, bytes.len()).unwrap();
        let Payload::Ipv4(ipv4) = frame.payload else { panic!() };
        Key::new(&frame, &ipv4, vni)
    }

    #[test]
    fn every_field_that_a_layer_may_read_changes_the_key() {
        let base = frame(1, 1000);
        let keys = [
            key(&base, 0),
            key(&base, 1),
            key(&base, 1 << 16),
            key(&base, 0xff_0000),
            key(&frame(2, 1000), 0),
            key(&frame(1, 1001), 0),
        ];
        let fragment = {
            let mut f = base.clone();
            f[20] = 0x20;
            key(&f, 0)
        };
        let other_mac = {
            let mut f = base.clone();
            f[0] ^= 4;
            key(&f, 0)
        };
        let protocol = {
            let mut f = base.clone();
            f[23] = 47;
            key(&f, 0)
        };
        let all: HashSet<_> =
            keys.iter().chain([&fragment, &other_mac, &protocol]).map(|k| k.0).collect();
        assert_eq!(all.len(), 9);
        assert_eq!(key(&base, 0).addresses(), ([10, 0, 0, 1].into(), [10, 0, 0, 9].into()));
        assert_eq!(key(&base, 7).macs(), (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 9])));
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
