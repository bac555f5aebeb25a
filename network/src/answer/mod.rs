//! What the card answers itself: ARP, DHCP, DNS, and packets that are too big.
//!
//! Invariants: an answer goes to the port that asked and to nobody else; it is written from what the card was told, never
//! from what it saw; every function here is pure and takes any bytes without panic. An answer is appended to a buffer
//! that the caller keeps, so that none allocates once warm. Called by the engine's slow path.

pub mod arp;
pub mod dhcp;
pub mod dns;
pub mod icmp;

use crate::address::Mac;
use crate::packet::{self, checksum};
use std::net::Ipv4Addr;

/// Appends an Ethernet header.
pub(crate) fn push_ethernet(out: &mut Vec<u8>, destination: Mac, source: Mac, kind: u16) {
    out.extend_from_slice(&destination.0);
    out.extend_from_slice(&source.0);
    out.extend_from_slice(&kind.to_be_bytes());
}

/// Appends an IPv4 header without options for `length` bytes of payload.
fn push_ipv4(
    out: &mut Vec<u8>,
    protocol: u8,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    length: usize,
) {
    let mut header = [0; 20];
    header[0] = 0x45;
    header[2..4].copy_from_slice(&((length + 20) as u16).to_be_bytes());
    // Never cut on its way, and from the nearest hop.
    header[6] = 0x40;
    header[8] = 64;
    header[9] = protocol;
    header[12..16].copy_from_slice(&source.octets());
    header[16..20].copy_from_slice(&destination.octets());
    checksum::write_ipv4(&mut header);
    out.extend_from_slice(&header);
}

/// Appends a UDP header and payload with a complete checksum.
fn push_udp(out: &mut Vec<u8>, from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), payload: &[u8]) {
    let length = (payload.len() + 8) as u16;
    let mut header = [0; 8];
    header[..2].copy_from_slice(&from.1.to_be_bytes());
    header[2..4].copy_from_slice(&to.1.to_be_bytes());
    header[4..6].copy_from_slice(&length.to_be_bytes());
    let sum = checksum::Sum::default()
        .pseudo(from.0, to.0, packet::UDP, length)
        .with(&header)
        .with(payload)
        .finish();
    // To UDP, zero would mean that there is no checksum.
    let sum = if sum == 0 { 0xffff } else { sum };
    header[6..].copy_from_slice(&sum.to_be_bytes());
    out.extend_from_slice(&header);
    out.extend_from_slice(payload);
}
