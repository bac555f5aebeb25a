//! The name of a disk.
//!
//! A disk's id is a prefix, `-` and 20 letters or digits, for example `d-0123456789abcdefghij`. The 20 characters
//! are the serial number that a guest sees (virtio gives it exactly 20 bytes), so a disk in a guest can be matched
//! with a disk of the cloud. Invariant: a [`DiskId`] is a safe file name, whoever it came from.

use std::fmt;
use std::str::FromStr;

/// The characters of an id that a guest sees as the serial number.
pub const SERIAL_LENGTH: usize = 20;

/// The longest prefix, in characters.
const PREFIX_LENGTH: usize = 16;

/// The id of a disk, checked.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DiskId(String);

/// The text is not the id of a disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a disk id: it takes a prefix of up to {PREFIX_LENGTH} letters or digits, `-` and \
     {SERIAL_LENGTH} letters or digits, for example d-0123456789abcdefghij"
)]
pub struct BadDiskId(String);

impl DiskId {
    /// The serial number, as the bytes that `VIRTIO_BLK_T_GET_ID` answers.
    pub fn serial(&self) -> [u8; SERIAL_LENGTH] {
        let mut serial = [0; SERIAL_LENGTH];
        let from = self.0.len().saturating_sub(SERIAL_LENGTH);
        for (to, byte) in serial.iter_mut().zip(self.0.bytes().skip(from)) {
            *to = byte;
        }
        serial
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DiskId {
    type Err = BadDiskId;

    fn from_str(text: &str) -> Result<Self, BadDiskId> {
        let word = |part: &str| part.bytes().all(|b| b.is_ascii_alphanumeric());
        match text.split_once('-') {
            Some((prefix, serial))
                if (1..=PREFIX_LENGTH).contains(&prefix.len())
                    && serial.len() == SERIAL_LENGTH
                    && word(prefix)
                    && word(serial) =>
            {
                Ok(Self(text.to_owned()))
            }
            _ => Err(BadDiskId(text.chars().take(64).collect())),
        }
    }
}

impl fmt::Display for DiskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for DiskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_serial_is_the_twenty_characters() {
        let id: DiskId = "d-0123456789abcdefghij".parse().unwrap();
        assert_eq!(&id.serial(), b"0123456789abcdefghij");
        assert_eq!(id.to_string(), "d-0123456789abcdefghij");
    }

    #[test]
    fn what_is_no_id_is_refused() {
        for text in [
            "",
            "-",
            "d",
            "d-",
            "-0123456789abcdefghij",
            "d-0123456789abcdefghi",
            "d-0123456789abcdefghijk",
            "d-0123456789abcdefghi/",
            "d-0123456789abcdefgh-j",
            "../0123456789abcdefghij",
            "d.x-0123456789abcdefghij",
            "abcdefghijklmnopq-0123456789abcdefghij",
            "d-0123456789abcdefghé",
            "d-0123456789abcdefghi\0",
        ] {
            assert!(text.parse::<DiskId>().is_err(), "{text:?}");
        }
    }
}
