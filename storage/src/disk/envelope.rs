//! The frame around every small file this process writes: what it is, which version, and a checksum over all of it.
//!
//! ```text
//! offset  bytes  content (numbers little-endian)
//!      0      8  magic: what the file is, for example "BIXIDISK"
//!      8      4  version of the body's layout, from 1
//!     12      4  length of the body
//!     16      4  CRC-32C over bytes 0..16 and the body
//!     20      …  the body, to the end of the file
//! ```
//!
//! Invariant: a file in which any bit was changed, that was cut, or to which something was added, is refused with a
//! reason. Used for a disk's `meta` and for attachment records.

/// Bytes before the body.
const HEADER: usize = 20;

/// The largest body, in bytes; a reader refuses more before it looks at it.
pub const BODY_LIMIT: usize = 1 << 20;

/// Why the bytes are not such a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// The file is shorter than it says, or longer.
    #[error("it is cut or has bytes after its end: {got} bytes, expected {expected}")]
    Length {
        /// Bytes there are.
        got: usize,
        /// Bytes there should be.
        expected: usize,
    },
    /// Another kind of file.
    #[error("it is another kind of file")]
    Magic,
    /// The checksum is wrong.
    #[error("its checksum is {got:#010x}, its bytes give {computed:#010x}: it is damaged")]
    Checksum {
        /// The checksum in the file.
        got: u32,
        /// The checksum of the bytes there are.
        computed: u32,
    },
    /// Written by a newer release.
    #[error("its layout has version {got}, this release reads up to {newest}: use a newer release")]
    Version {
        /// The version in the file.
        got: u32,
        /// The newest version this release reads.
        newest: u32,
    },
    /// The body is not such a message.
    #[error("its body does not decode: {0}")]
    Body(#[from] prost::DecodeError),
}

/// Frames a message.
pub fn seal(magic: &[u8; 8], version: u32, message: &impl prost::Message) -> Vec<u8> {
    let body = message.encode_to_vec();
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend_from_slice(magic);
    bytes.extend_from_slice(&version.to_le_bytes());
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&bytes), &body);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes.extend_from_slice(&body);
    bytes
}

/// Reads a framed message of a version up to `newest`.
///
/// # Errors
/// See [`EnvelopeError`].
pub fn open<M: prost::Message + Default>(
    magic: &[u8; 8],
    newest: u32,
    bytes: &[u8],
) -> Result<M, EnvelopeError> {
    let short = EnvelopeError::Length { got: bytes.len(), expected: HEADER };
    let (found, rest) = bytes.split_first_chunk::<8>().ok_or(short.clone())?;
    let (version, rest) = number(rest).ok_or(short.clone())?;
    let (length, rest) = number(rest).ok_or(short.clone())?;
    let (checksum, body) = number(rest).ok_or(short)?;
    if found != magic {
        return Err(EnvelopeError::Magic);
    }
    if body.len() != length as usize || body.len() > BODY_LIMIT {
        let expected = HEADER + (length as usize).min(BODY_LIMIT);
        return Err(EnvelopeError::Length { got: bytes.len(), expected });
    }
    let computed = crc32c::crc32c_append(crc32c::crc32c(&bytes[..16]), body);
    if computed != checksum {
        return Err(EnvelopeError::Checksum { got: checksum, computed });
    }
    if !(1..=newest).contains(&version) {
        return Err(EnvelopeError::Version { got: version, newest });
    }
    Ok(M::decode(body)?)
}

fn number(bytes: &[u8]) -> Option<(u32, &[u8])> {
    bytes.split_first_chunk::<4>().map(|(number, rest)| (u32::from_le_bytes(*number), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, PartialEq, prost::Message)]
    struct Note {
        #[prost(string, tag = "1")]
        text: String,
    }

    const MAGIC: &[u8; 8] = b"BIXITEST";

    #[test]
    fn every_changed_cut_or_added_byte_is_refused() {
        let note = Note { text: "what is true".into() };
        let sealed = seal(MAGIC, 1, &note);
        assert_eq!(open::<Note>(MAGIC, 1, &sealed).unwrap(), note);
        for at in 0..sealed.len() {
            for bit in 0..8 {
                let mut bad = sealed.clone();
                bad[at] ^= 1 << bit;
                assert!(open::<Note>(MAGIC, 9, &bad).is_err(), "byte {at} bit {bit}");
            }
            assert!(open::<Note>(MAGIC, 1, &sealed[..at]).is_err(), "cut at {at}");
        }
        let mut longer = sealed.clone();
        longer.push(0);
        assert!(matches!(open::<Note>(MAGIC, 1, &longer), Err(EnvelopeError::Length { .. })));
        assert_eq!(open::<Note>(b"OTHERXXX", 1, &sealed), Err(EnvelopeError::Magic));
    }

    #[test]
    fn a_newer_version_says_so() {
        let sealed = seal(MAGIC, 2, &Note::default());
        let refused = open::<Note>(MAGIC, 1, &sealed);
        assert_eq!(refused, Err(EnvelopeError::Version { got: 2, newest: 1 }));
    }
}
