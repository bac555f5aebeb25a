//! The token by which a server joins: where the cloud is, how to know it, and a secret that it takes once.

use std::fmt;
use std::str::FromStr;

/// `bixi1.SECRET.FINGERPRINT@HOST:PORT`.
///
/// Whoever has it can join one server. The fingerprint is the SHA-256 of the authority's certificate (its DER bytes), so
/// that the agent gives the secret to no one else.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// What the cloud knows the token by: 16 to 128 letters, digits, `-` or `_`.
    pub secret: String,
    /// SHA-256 of the authority's certificate.
    pub ca_sha256: [u8; 32],
    /// The cloud's address for agents: `HOST:PORT`.
    pub cloud: String,
}

/// Why a text is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this is no join token ({0}): copy it whole from `bixi server token`")]
pub struct TokenError(&'static str);

const PREFIX: &str = "bixi1.";

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let rest = text.trim().strip_prefix(PREFIX);
        let rest = rest.ok_or(TokenError("it does not begin with bixi1."))?;
        let (names, cloud) = rest.split_once('@').ok_or(TokenError("it names no cloud"))?;
        let (secret, digits) = names.split_once('.').ok_or(TokenError("it has no fingerprint"))?;
        let good = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_');
        if !(16..=128).contains(&secret.len()) || !secret.bytes().all(good) {
            return Err(TokenError("its secret is damaged"));
        }
        let ca_sha256 = sha256(digits).ok_or(TokenError("its fingerprint is damaged"))?;
        let address = cloud.rsplit_once(':').filter(|(host, port)| {
            let plain = host.bytes().all(|c| c.is_ascii_alphanumeric() || b".-:[]".contains(&c));
            !host.is_empty() && plain && port.parse::<u16>().is_ok_and(|port| port != 0)
        });
        if address.is_none() {
            return Err(TokenError("its cloud is no HOST:PORT"));
        }
        Ok(Self { secret: secret.to_owned(), ca_sha256, cloud: cloud.to_owned() })
    }
}

/// Reads 64 hexadecimal digits.
fn sha256(digits: &str) -> Option<[u8; 32]> {
    let digits = digits.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let mut sum = [0; 32];
    for (byte, pair) in sum.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |c: u8| char::from(c).to_digit(16);
        *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
    }
    Some(sum)
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}.", self.secret)?;
        for byte in self.ca_sha256 {
            write!(f, "{byte:02x}")?;
        }
        write!(f, "@{}", self.cloud)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The secret stays out of logs.
        f.debug_struct("JoinToken").field("cloud", &self.cloud).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_its_text_and_damage_is_told() {
        let token = JoinToken {
            secret: "0123456789abcdefXYZ".to_owned(),
            ca_sha256: [0xa5; 32],
            cloud: "cloud.example:7443".to_owned(),
        };
        let text = token.to_string();
        assert_eq!(text.parse::<JoinToken>().unwrap(), token);
        assert_eq!(format!("\n{text} ").parse::<JoinToken>().unwrap(), token);
        assert!(!format!("{token:?}").contains(&token.secret));
        let v6 = JoinToken { cloud: "[2001:db8::1]:7443".to_owned(), ..token };
        assert_eq!(v6.to_string().parse::<JoinToken>().unwrap(), v6);
        for cut in 0..text.len() - 4 {
            assert!(text[..cut].parse::<JoinToken>().is_err(), "{}", &text[..cut]);
        }
        for bad in
            [text.replace("a5a5", "a5zz"), text.replace("7443", "0"), text.replace("01", "é")]
        {
            assert!(bad.parse::<JoinToken>().is_err(), "{bad}");
        }
    }
}
