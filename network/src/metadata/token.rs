//! Session tokens: proof that whoever asks can make a `PUT` from inside of the guest, which a tricked proxy cannot.
//!
//! A token is `expiry ‖ HMAC-SHA256(key, port ‖ expiry)` in hexadecimal: nothing is remembered of those given out, so that
//! no guest can fill a table with them, and a process that was killed goes on with those of its predecessor, since the
//! key lies in the state directory.
//!
//! Invariant: a token holds for the port it was made for, until it expires, and for nothing else.

use aws_lc_rs::hmac;
use std::fmt;

/// The longest life of a token, in seconds.
pub const LONGEST: u64 = 21_600;
/// Bytes of a key.
pub const KEY_LENGTH: usize = 32;
/// Bytes of a token.
const LENGTH: usize = 8 + 32;

/// What tokens are made with.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(pub [u8; KEY_LENGTH]);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

impl Key {
    fn key(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &self.0)
    }

    /// A token for `port` that expires at `expiry`, in seconds since 1970.
    pub fn token(&self, port: &str, expiry: u64) -> String {
        let tag = hmac::sign(&self.key(), &signed(port, expiry));
        let bytes = expiry.to_be_bytes();
        bytes.iter().chain(tag.as_ref()).map(|byte| format!("{byte:02x}")).collect()
    }

    /// Whether `token` was made for `port` and has not expired `now`.
    pub fn accepts(&self, port: &str, token: &[u8], now: u64) -> bool {
        let Some(bytes) = bytes(token) else { return false };
        let Some((expiry, tag)) = bytes.split_first_chunk::<8>() else { return false };
        let expiry = u64::from_be_bytes(*expiry);
        // Compares in constant time.
        let ours = hmac::verify(&self.key(), &signed(port, expiry), tag).is_ok();
        ours && now < expiry
    }
}

fn signed(port: &str, expiry: u64) -> Vec<u8> {
    [&expiry.to_be_bytes()[..], port.as_bytes()].concat()
}

fn bytes(hexadecimal: &[u8]) -> Option<[u8; LENGTH]> {
    let mut bytes = [0; LENGTH];
    if hexadecimal.len() != LENGTH * 2 {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(hexadecimal.chunks_exact(2)) {
        let digit = |at: usize| char::from(pair[at]).to_digit(16);
        *byte = u8::try_from(digit(0)? << 4 | digit(1)?).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_holds_for_its_port_and_its_time_only() {
        let key = Key([7; KEY_LENGTH]);
        let token = key.token("eni-1", 1000);
        assert!(key.accepts("eni-1", token.as_bytes(), 999));
        assert!(!key.accepts("eni-1", token.as_bytes(), 1000));
        assert!(!key.accepts("eni-2", token.as_bytes(), 999));
        assert!(!Key([8; KEY_LENGTH]).accepts("eni-1", token.as_bytes(), 999));
        for at in 0..token.len() {
            let mut other = token.clone().into_bytes();
            other[at] = if other[at] == b'0' { b'1' } else { b'0' };
            assert!(!key.accepts("eni-1", &other, 1), "byte {at}");
        }
        for other in ["", "00", &token[2..], &"g".repeat(80), &"ä".repeat(40)] {
            assert!(!key.accepts("eni-1", other.as_bytes(), 1), "{other}");
        }
    }
}
