//! The header that virtio-net puts before each frame (virtio 1.2, 5.1.6), and what of a guest's header is believed.
//!
//! Invariant: an [`Offload`] has been compared with the frame it belongs to: its checksum field lies in the frame, and
//! its segments are not empty and carry whole headers. A guest's `hdr_len` is a hint and is never used as a length.
//! Called by the engine for each frame that has work left to the device.

use super::{ETHERNET, Frame, Ipv4, Payload, TCP, UDP, checksum};

/// Bytes of the header in virtio 1.x, or with mergeable buffers.
pub const HEADER: usize = 12;
/// Bytes of the header of a legacy device without mergeable buffers.
pub const LEGACY_HEADER: usize = 10;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the checksum is left to the other side.
const NEEDS_CSUM: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_NONE`: not segmented.
const GSO_NONE: u8 = 0;
/// `VIRTIO_NET_HDR_GSO_TCPV4`: TCP over IPv4.
const GSO_TCPV4: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_TCPV6`: TCP over IPv6.
const GSO_TCPV6: u8 = 4;
/// `VIRTIO_NET_HDR_GSO_ECN`: CWR is set in the first segment only.
const GSO_ECN: u8 = 0x80;

/// Feature bits of virtio-net that change how frames are carried (virtio 1.2, 5.1.3).
pub mod feature {
    /// The device completes checksums.
    pub const CSUM: u64 = 1 << 0;
    /// The driver takes frames whose checksum is not complete.
    pub const GUEST_CSUM: u64 = 1 << 1;
    /// The device tells the MTU.
    pub const MTU: u64 = 1 << 3;
    /// The device tells the hardware address.
    pub const MAC: u64 = 1 << 5;
    /// The driver takes TCP over IPv4 that is not yet cut.
    pub const GUEST_TSO4: u64 = 1 << 7;
    /// The same over IPv6.
    pub const GUEST_TSO6: u64 = 1 << 8;
    /// The driver takes such with ECN.
    pub const GUEST_ECN: u64 = 1 << 9;
    /// The device cuts TCP over IPv4.
    pub const HOST_TSO4: u64 = 1 << 11;
    /// The same over IPv6.
    pub const HOST_TSO6: u64 = 1 << 12;
    /// The device cuts such with ECN.
    pub const HOST_ECN: u64 = 1 << 13;
    /// The driver merges several buffers into one frame.
    pub const MRG_RXBUF: u64 = 1 << 15;
    /// The device tells whether the link is up.
    pub const STATUS: u64 = 1 << 16;
    /// There is a control queue.
    pub const CTRL_VQ: u64 = 1 << 17;
    /// There are several pairs of queues.
    pub const MQ: u64 = 1 << 22;
    /// Virtio 1.x rather than legacy.
    pub const VERSION_1: u64 = 1 << 32;
}

/// The most segments that one frame is cut into: enough for the longest with a maximum segment size of 128 bytes, few
/// enough that one guest's frames do not keep a worker for long.
const SEGMENT_LIMIT: usize = 512;

/// Bytes of the header under these negotiated features.
pub fn header_length(features: u64) -> usize {
    if features & (feature::MRG_RXBUF | feature::VERSION_1) != 0 { HEADER } else { LEGACY_HEADER }
}

/// What is left to do on a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offload {
    /// The checksum from this offset to the frame's end is to be written at `start + offset`.
    pub checksum: Option<Partial>,
    /// TCP payload is to be cut into pieces.
    pub segmentation: Option<Segmentation>,
}

/// A checksum that holds only the pseudo header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partial {
    /// Where the summed bytes begin, from the frame's first byte.
    pub start: u16,
    /// Where the field is, from `start`.
    pub offset: u16,
}

/// How TCP over IPv4 is to be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segmentation {
    /// Payload bytes of each segment but the last.
    pub size: u16,
    /// Bytes of Ethernet, IPv4 and TCP headers, by the frame's own headers.
    pub headers: u16,
    /// Whether the first segment alone carries CWR.
    pub ecn: bool,
}

/// A guest's header contradicts the frame or what was negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the virtio-net header contradicts the frame")]
pub struct BadOffload;

impl Offload {
    /// Nothing is left to do.
    pub const NONE: Self = Self { checksum: None, segmentation: None };

    /// Whether the header's first bytes leave nothing to the device: the fast path's question.
    #[inline]
    pub fn is_plain(header: &[u8]) -> bool {
        matches!(header, [flags, gso, ..] if flags & NEEDS_CSUM == 0 && *gso == GSO_NONE)
    }

    /// Reads a guest's header for `frame` of `length` bytes. DATA_VALID from a driver means nothing and is ignored.
    ///
    /// # Errors
    /// An offload that was not negotiated, a checksum outside the frame, or a segmentation that does not fit the
    /// frame's own headers.
    pub fn read(
        header: &[u8],
        features: u64,
        frame: &Frame,
        length: usize,
    ) -> Result<Self, BadOffload> {
        let header: &[u8; LEGACY_HEADER] = header.first_chunk().ok_or(BadOffload)?;
        let [flags, gso, h0, h1, s0, s1, c0, c1, o0, o1] = *header;
        let hint = u16::from_le_bytes([h0, h1]);
        let checksum = (flags & NEEDS_CSUM != 0).then(|| Partial {
            start: u16::from_le_bytes([c0, c1]),
            offset: u16::from_le_bytes([o0, o1]),
        });
        if let Some(partial) = checksum {
            let end = usize::from(partial.start) + usize::from(partial.offset) + 2;
            if features & feature::CSUM == 0
                || usize::from(partial.start) < ETHERNET
                || end > length
            {
                return Err(BadOffload);
            }
        }
        if gso == GSO_NONE {
            return Ok(Self { checksum, segmentation: None });
        }
        if usize::from(hint) > length {
            return Err(BadOffload);
        }
        let size = u16::from_le_bytes([s0, s1]);
        let segmentation = read_segmentation(gso, size, features, frame, length, checksum)?;
        Ok(Self { checksum, segmentation: Some(segmentation) })
    }

    /// Writes the header for a receiver, `num_buffers` included.
    #[inline]
    pub fn write(&self, num_buffers: u16) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        if let Some(partial) = self.checksum {
            header[0] = NEEDS_CSUM;
            header[6..8].copy_from_slice(&partial.start.to_le_bytes());
            header[8..10].copy_from_slice(&partial.offset.to_le_bytes());
        }
        if let Some(cut) = self.segmentation {
            header[1] = GSO_TCPV4 | if cut.ecn { GSO_ECN } else { 0 };
            header[2..4].copy_from_slice(&cut.headers.to_le_bytes());
            header[4..6].copy_from_slice(&cut.size.to_le_bytes());
        }
        header[10..].copy_from_slice(&num_buffers.to_le_bytes());
        header
    }

    /// Whether a driver with these features takes the frame as it is.
    pub fn is_taken_by(&self, features: u64) -> bool {
        let checksum = self.checksum.is_none() || features & feature::GUEST_CSUM != 0;
        let cut = self.segmentation.is_none_or(|cut| {
            let wanted = feature::GUEST_TSO4 | if cut.ecn { feature::GUEST_ECN } else { 0 };
            features & wanted == wanted
        });
        checksum && cut
    }

    /// Completes the checksum of a frame that is not to be cut, if one was left.
    pub fn complete_checksum(&self, frame: &mut [u8]) {
        if let Some(partial) = self.checksum {
            // The frame was checked when the offload was read; one that shrank since keeps its partial sum.
            checksum::complete(frame, partial.start.into(), partial.offset.into());
        }
    }
}

/// Compares a request to segment with the frame's own headers.
fn read_segmentation(
    gso: u8,
    size: u16,
    features: u64,
    frame: &Frame,
    length: usize,
    checksum: Option<Partial>,
) -> Result<Segmentation, BadOffload> {
    let ecn = gso & GSO_ECN != 0;
    let wanted = feature::HOST_TSO4 | if ecn { feature::HOST_ECN } else { 0 };
    let Payload::Ipv4(ipv4) = frame.payload else {
        // The engine drops IPv6 whatever its header says; that it could be cut is no lie.
        let ipv6 = frame.payload == Payload::Ipv6
            && gso & !GSO_ECN == GSO_TCPV6
            && features & feature::HOST_TSO6 != 0
            && size > 0;
        let whole = Segmentation { size, headers: ETHERNET as u16, ecn };
        return if ipv6 { Ok(whole) } else { Err(BadOffload) };
    };
    let headers = ipv4.transport() + usize::from(ipv4.tcp_header);
    let sound = gso & !GSO_ECN == GSO_TCPV4
        && features & wanted == wanted
        && usize::from(size) * SEGMENT_LIMIT >= length
        && size > 0
        && ipv4.protocol == TCP
        && ipv4.tcp_header != 0
        && usize::from(ipv4.total) + ETHERNET == length
        && checksum.is_some_and(|c| usize::from(c.start) == ipv4.transport() && c.offset == 16);
    if !sound {
        return Err(BadOffload);
    }
    Ok(Segmentation { size, headers: headers as u16, ecn })
}

/// The partial checksum of an unfragmented TCP or UDP packet, as a device that gets it from elsewhere would ask for.
pub fn partial_of(ipv4: &Ipv4) -> Option<Partial> {
    let offset = match ipv4.protocol {
        TCP => 16,
        UDP => 6,
        _ => return None,
    };
    (!ipv4.fragment).then(|| Partial { start: ipv4.transport() as u16, offset })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::parse;
    use proptest::prelude::*;

    const ALL: u64 = feature::CSUM | feature::HOST_TSO4 | feature::HOST_ECN;

    fn tcp(payload: usize) -> Vec<u8> {
        let mut frame = Vec::new();
        etherparse::PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .tcp(1, 2, 3, 4)
            .write(&mut frame, &vec![7; payload])
            .unwrap();
        frame
    }

    fn header(flags: u8, gso: u8, hint: u16, size: u16, start: u16, offset: u16) -> [u8; 12] {
        let mut header = [0; 12];
        header[0] = flags;
        header[1] = gso;
        for (at, value) in [(2, hint), (4, size), (6, start), (8, offset)] {
            header[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        header
    }

    fn read(header: [u8; 12], features: u64, frame: &[u8]) -> Result<Offload, BadOffload> {
        Offload::read(&header, features, &parse(frame, frame.len()).unwrap(), frame.len())
    }

    #[test]
    fn what_is_written_is_read_back() {
        let frame = tcp(4000);
        let offload = Offload {
            checksum: Some(Partial { start: 34, offset: 16 }),
            segmentation: Some(Segmentation { size: 1448, headers: 54, ecn: true }),
        };
        assert_eq!(read(offload.write(1), ALL, &frame), Ok(offload));
        assert_eq!(offload.write(3)[10..], [3, 0]);
        assert!(Offload::is_plain(&Offload::NONE.write(1)));
        assert!(!Offload::is_plain(&offload.write(1)));
    }

    #[test]
    fn nonsense_is_refused() {
        let frame = tcp(4000);
        for (bad, why) in [
            (header(1, 0, 0, 0, 34, 4020), "field past the end"),
            (header(1, 0, 0, 0, 0xffff, 0xffff), "field far past the end"),
            (header(1, 0, 0, 0, 4, 6), "a sum over the Ethernet header"),
            (header(1, 1, 54, 0, 34, 16), "no payload in a segment"),
            (header(1, 1, 54, 7, 34, 16), "a flood of segments"),
            (header(0, 1, 54, 1448, 34, 16), "segmentation without checksum"),
            (header(1, 1, 54, 1448, 34, 6), "another field than TCP's"),
            (header(1, 1, 54, 1448, 14, 16), "another start than TCP's"),
            (header(1, 1, 9000, 1448, 34, 16), "a header longer than the frame"),
            (header(1, 3, 54, 1448, 34, 16), "UFO"),
            (header(1, 4, 54, 1448, 34, 16), "TCP over IPv6 in IPv4"),
            (header(1, 5, 54, 1448, 34, 16), "USO"),
            (header(1, 0x7f, 54, 1448, 34, 16), "an unknown type"),
        ] {
            assert_eq!(read(bad, ALL, &frame), Err(BadOffload), "{why}");
        }
        let good = header(1, 0x81, 54, 1448, 34, 16);
        assert!(read(good, ALL, &frame).is_ok());
        assert!(read(good, ALL & !feature::HOST_ECN, &frame).is_err());
        assert!(read(good, ALL & !feature::HOST_TSO4, &frame).is_err());
        assert!(read(good, ALL & !feature::CSUM, &frame).is_err());
    }

    #[test]
    fn a_receiver_takes_only_what_it_accepted() {
        let plain = Offload::NONE;
        let partial =
            Offload { checksum: Some(Partial { start: 34, offset: 6 }), segmentation: None };
        let cut = |ecn| Offload {
            segmentation: Some(Segmentation { size: 1000, headers: 54, ecn }),
            ..partial
        };
        let (csum, tso, ecn) = (feature::GUEST_CSUM, feature::GUEST_TSO4, feature::GUEST_ECN);
        assert!(plain.is_taken_by(0) && !partial.is_taken_by(0) && partial.is_taken_by(csum));
        assert!(!cut(false).is_taken_by(csum) && cut(false).is_taken_by(csum | tso));
        assert!(!cut(true).is_taken_by(csum | tso) && cut(true).is_taken_by(csum | tso | ecn));
    }

    #[test]
    fn the_header_has_ten_bytes_only_for_a_legacy_driver_without_merging() {
        assert_eq!(header_length(0), 10);
        assert_eq!(header_length(feature::MRG_RXBUF), 12);
        assert_eq!(header_length(feature::VERSION_1), 12);
    }

    proptest! {
        #[test]
        fn a_header_that_is_believed_fits_the_frame(header: [u8; 12], payload in 0usize..5000, features: u64) {
            let frame = tcp(payload);
            if let Ok(offload) = read(header, features, &frame) {
                if let Some(partial) = offload.checksum {
                    let field = usize::from(partial.start) + usize::from(partial.offset);
                    prop_assert!(field + 2 <= frame.len());
                }
                prop_assert!(offload.segmentation.is_none_or(|s| s.size > 0 && s.headers == 54));
            }
        }
    }
}
