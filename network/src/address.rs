//! Hardware addresses: how they are written, and the one that every gateway has.
//!
//! Invariant: a [`Mac`] is six bytes and nothing else; whether it may be a port's is asked by [`Mac::unicast`].
//! Used by every layer of the engine and by the control socket.

use std::fmt;
use std::str::FromStr;

/// An Ethernet hardware address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Mac(pub [u8; 6]);

/// The hardware address that the card gives to the gateway of every segment. It is the same on every server, so that
/// a guest that moves keeps its neighbour entry; it is locally administered, so that no vendor owns it.
pub const GATEWAY_MAC: Mac = Mac([0xee, 0xff, 0xff, 0xff, 0xff, 0xff]);

impl Mac {
    /// The broadcast address.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Reads the address at the beginning of `bytes`; zero where there are too few.
    pub fn read(bytes: &[u8]) -> Self {
        Self(bytes.first_chunk().copied().unwrap_or_default())
    }

    /// Whether many may listen to it.
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether one station can own it: neither multicast nor zero, and not the gateway's.
    pub fn unicast(self) -> bool {
        !self.is_multicast() && self.0 != [0; 6] && self != GATEWAY_MAC
    }

    /// The address as a number below 2^48, first byte on the wire lowest.
    pub fn bits(self) -> u64 {
        let [a, b, c, d, e, f] = self.0;
        u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
    }

    /// The address with these [`Mac::bits`]; higher bits are ignored.
    pub fn from_bits(bits: u64) -> Self {
        let [a, b, c, d, e, f, ..] = bits.to_le_bytes();
        Self([a, b, c, d, e, f])
    }
}

/// A text is not a hardware address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a hardware address: write six hexadecimal bytes, as in 52:54:00:12:34:56")]
pub struct NotAMac(String);

impl FromStr for Mac {
    type Err = NotAMac;

    fn from_str(text: &str) -> Result<Self, NotAMac> {
        let wrong = || NotAMac(text.chars().take(64).collect());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(wrong)?;
            // from_str_radix would take a sign, too.
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(wrong());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        if parts.next().is_some() {
            return Err(wrong());
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes_and_nothing_else() {
        let mac: Mac = "52:54:00:aB:cd:0f".parse().unwrap();
        assert_eq!(mac.to_string(), "52:54:00:ab:cd:0f");
        assert_eq!(mac.to_string().parse::<Mac>().unwrap(), mac);
        for bad in [
            "",
            "52:54:00:ab:cd",
            "52:54:00:ab:cd:0f:",
            "52:54:00:ab:cd:+f",
            "5:54:00:ab:cd:0f0",
            "52-54-00-ab-cd-0f",
            "52:54:00:ab:cd:0f:01",
            "gg:54:00:ab:cd:0f",
        ] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_port_owns_neither_groups_nor_the_gateway() {
        assert!(Mac([2, 0, 0, 0, 0, 1]).unicast());
        for mac in [Mac::BROADCAST, Mac([1, 0, 0x5e, 0, 0, 1]), Mac::default(), GATEWAY_MAC] {
            assert!(!mac.unicast(), "{mac}");
        }
        assert_eq!(Mac([1, 2, 3, 4, 5, 6]).bits(), 0x0605_0403_0201);
        assert_eq!(Mac::from_bits(0xffff_0605_0403_0201), Mac([1, 2, 3, 4, 5, 6]));
    }
}
