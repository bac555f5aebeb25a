//! VXLAN's own eight bytes (RFC 7348, section 5): encapsulation apart from whatever carries it.
//!
//! Invariant: the flag that says a network identifier is there is set on all we send and demanded of all we take; every
//! other bit is sent as zero and ignored. Called by the underlay.

/// Bytes of the header.
pub const HEADER: usize = 8;
/// The UDP port of a tunnel end point.
pub const PORT: u16 = 4789;
/// What encapsulation adds to a guest's packet over IPv4: IPv4, UDP, VXLAN and the inner Ethernet header.
pub const OVERHEAD: u16 = 20 + 8 + 8 + 14;

/// A VXLAN network identifier has 24 bits.
pub const VNI_LIMIT: u32 = 1 << 24;

const HAS_VNI: u8 = 0x08;

/// The header for a network.
pub fn header(vni: u32) -> [u8; HEADER] {
    let [_, a, b, c] = vni.to_be_bytes();
    [HAS_VNI, 0, 0, 0, a, b, c, 0]
}

/// The network identifier and the inner frame of a datagram; none when it is no VXLAN.
pub fn decapsulate(datagram: &[u8]) -> Option<(u32, &[u8])> {
    let (header, frame) = datagram.split_first_chunk::<HEADER>()?;
    (header[0] & HAS_VNI != 0)
        .then(|| (u32::from_be_bytes([0, header[4], header[5], header[6]]), frame))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_bytes_of_the_rfc() {
        assert_eq!(header(0x12_3456), [8, 0, 0, 0, 0x12, 0x34, 0x56, 0]);
        assert_eq!(decapsulate(&[8, 0, 0, 0, 0, 0, 5, 0, 9]), Some((5, &[9][..])));
        assert_eq!(decapsulate(&[0xff, 1, 2, 3, 0, 0, 5, 77]), Some((5, &[][..])));
        assert_eq!(decapsulate(&[0xf7, 0, 0, 0, 0, 0, 5, 0, 9]), None);
        assert_eq!(decapsulate(&[8, 0, 0, 0, 0, 0, 5]), None);
    }

    proptest! {
        #[test]
        fn what_is_wrapped_is_unwrapped(vni in 0..VNI_LIMIT, frame in prop::collection::vec(any::<u8>(), 0..64)) {
            let datagram = [&header(vni)[..], &frame].concat();
            prop_assert_eq!(decapsulate(&datagram), Some((vni, &frame[..])));
        }
    }
}
