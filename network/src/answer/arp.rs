//! ARP (RFC 826), answered by the card for the addresses it was told: nothing is flooded, nothing learnt.
//!
//! Invariant: a request for an address that the asking port itself has is never answered, or the guest's duplicate
//! address detection (RFC 5227) would find a duplicate.

use super::push_ethernet;
use crate::address::Mac;
use crate::packet::{self, ETHERNET, address, be16};
use std::net::Ipv4Addr;

/// Bytes of an ARP packet for Ethernet and IPv4.
const LENGTH: usize = 28;

/// An ARP packet for Ethernet and IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arp {
    /// Whether it asks.
    pub request: bool,
    /// The sender's hardware address.
    pub sender: Mac,
    /// The sender's address; unspecified in a probe.
    pub sender_address: Ipv4Addr,
    /// The address that is asked for.
    pub target_address: Ipv4Addr,
}

/// Reads the ARP packet of an Ethernet frame; none when it is no request or reply for Ethernet and IPv4.
pub fn read(frame: &[u8]) -> Option<Arp> {
    let body = frame.get(ETHERNET..ETHERNET + LENGTH)?;
    let fixed = body[..6] == [0, 1, 8, 0, 6, 4];
    let operation = be16(body, 6);
    (fixed && matches!(operation, 1 | 2)).then(|| Arp {
        request: operation == 1,
        sender: Mac::read(&body[8..]),
        sender_address: address(body, 14),
        target_address: address(body, 24),
    })
}

/// Appends the reply to `asked` that says `owner` has the address.
pub fn reply(out: &mut Vec<u8>, asked: &Arp, owner: Mac) {
    push_ethernet(out, asked.sender, owner, packet::ARP);
    out.extend_from_slice(&[0, 1, 8, 0, 6, 4, 0, 2]);
    out.extend_from_slice(&owner.0);
    out.extend_from_slice(&asked.target_address.octets());
    out.extend_from_slice(&asked.sender.0);
    out.extend_from_slice(&asked.sender_address.octets());
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{ArpEthIpv4Packet, ArpOperation, PacketBuilder};
    use proptest::prelude::*;

    fn request(operation: ArpOperation) -> Vec<u8> {
        let arp = ArpEthIpv4Packet {
            operation,
            sender_mac: [2, 0, 0, 0, 0, 1],
            sender_ipv4: [10, 0, 0, 1],
            target_mac: [0; 6],
            target_ipv4: [10, 0, 0, 2],
        };
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [0xff; 6])
            .arp(arp.into())
            .write(&mut frame)
            .unwrap();
        frame
    }

    #[test]
    fn a_request_is_read_and_its_reply_is_sound() {
        let asked = read(&request(ArpOperation::REQUEST)).unwrap();
        assert!(asked.request);
        let owner = Mac([2, 0, 0, 0, 0, 2]);
        let mut out = Vec::new();
        reply(&mut out, &asked, owner);
        let sliced = etherparse::SlicedPacket::from_ethernet(&out).unwrap();
        let Some(etherparse::NetSlice::Arp(arp)) = sliced.net else { panic!("{sliced:?}") };
        let arp: ArpEthIpv4Packet = arp.to_packet().try_into().unwrap();
        assert_eq!(
            arp,
            ArpEthIpv4Packet {
                operation: ArpOperation::REPLY,
                sender_mac: owner.0,
                sender_ipv4: [10, 0, 0, 2],
                target_mac: [2, 0, 0, 0, 0, 1],
                target_ipv4: [10, 0, 0, 1],
            }
        );
    }

    #[test]
    fn other_operations_and_hardware_are_not_arp_to_us() {
        assert!(!read(&request(ArpOperation::REPLY)).unwrap().request);
        assert_eq!(read(&request(ArpOperation(8))), None);
        let good = request(ArpOperation::REQUEST);
        assert_eq!(read(&good[..41]), None);
        for at in 14..20 {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert_eq!(read(&bad), None, "byte {at}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Some(arp) = read(&bytes) {
                reply(&mut Vec::new(), &arp, Mac::BROADCAST);
            }
        }
    }
}
