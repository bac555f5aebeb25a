//! The frame that is sent: UDP over IPv4 over Ethernet, valid to the last checksum.

use std::net::Ipv4Addr;

/// Bytes of an Ethernet, an IPv4 and a UDP header.
const ETHERNET: usize = 14;
const IPV4: usize = 20;
const UDP: usize = 8;

/// One end of the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// Its hardware address.
    pub mac: [u8; 6],
    /// Its address.
    pub ip: Ipv4Addr,
    /// Its UDP port.
    pub port: u16,
}

impl End {
    /// The hardware address as it is written.
    #[must_use]
    pub fn mac_text(&self) -> String {
        self.mac.map(|byte| format!("{byte:02x}")).join(":")
    }
}

/// A frame of `len` bytes (without the frame check sequence, as a virtio device sees it).
///
/// # Panics
/// `len` has no room for the headers: a mistake of the caller.
#[must_use]
pub fn udp(from: &End, to: &End, len: usize) -> Vec<u8> {
    assert!(len >= ETHERNET + IPV4 + UDP, "a frame of {len} bytes has no room for its headers");
    let mut frame = Vec::with_capacity(len);
    frame.extend(to.mac);
    frame.extend(from.mac);
    frame.extend(0x0800u16.to_be_bytes());
    let total = (len - ETHERNET) as u16;
    frame.extend([0x45, 0]);
    frame.extend(total.to_be_bytes());
    // No identification, do not fragment, a time to live of 64, UDP, and room for the checksum.
    frame.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    frame.extend(from.ip.octets());
    frame.extend(to.ip.octets());
    frame.extend(from.port.to_be_bytes());
    frame.extend(to.port.to_be_bytes());
    frame.extend((total - IPV4 as u16).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend((0..len - frame.len()).map(|at| at as u8));
    let header = sum(&frame[ETHERNET..ETHERNET + IPV4]);
    frame[24..26].copy_from_slice(&fold(header).to_be_bytes());
    let pseudo = sum(&frame[26..34]) + 17 + u32::from(total) - IPV4 as u32;
    let udp = fold(pseudo + sum(&frame[ETHERNET + IPV4..]));
    // A checksum of 0 would say that there is none.
    frame[40..42].copy_from_slice(&if udp == 0 { 0xffff } else { udp }.to_be_bytes());
    frame
}

fn sum(bytes: &[u8]) -> u32 {
    let pairs = bytes.chunks(2);
    pairs.map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low))).sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_of_a_frame_add_up() {
        let from = End { mac: [2, 0, 0, 0, 0, 1], ip: Ipv4Addr::new(10, 0, 0, 1), port: 1000 };
        let to = End { mac: [2, 0, 0, 0, 0, 2], ip: Ipv4Addr::new(10, 0, 0, 2), port: 2000 };
        for len in [42, 64, 65, 1500] {
            let frame = udp(&from, &to, len);
            assert_eq!(frame.len(), len);
            assert_eq!(fold(sum(&frame[14..34])), 0);
            let pseudo = sum(&frame[26..34]) + 17 + (len as u32 - 34);
            assert_eq!(fold(pseudo + sum(&frame[34..])), 0);
        }
    }
}
