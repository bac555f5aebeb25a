//! The signature `ACS3-HMAC-SHA256`: what a request says of itself in headers, and the proof that a key's holder said it.
//!
//! ```text
//! canonical request   method, path, query, the signed headers, their names, the digest of the body
//! string to sign      ACS3-HMAC-SHA256 and the digest of the canonical request
//! authorization       the key's id, the names, HMAC-SHA256 of the string under the key's secret
//! ```
//!
//! Pure: the time and the nonce come from the caller.

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use std::fmt::{self, Write};
use time::OffsetDateTime;

const ALGORITHM: &str = "ACS3-HMAC-SHA256";
/// What RFC 3986 calls reserved: all but letters, digits and `-_.~`.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// An access key.
#[derive(Clone, PartialEq, Eq)]
pub struct AccessKey {
    /// Its public half.
    pub id: String,
    /// Its secret half.
    pub secret: String,
}

impl fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The secret stays out of logs.
        f.debug_struct("AccessKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A request to `/` before it is signed.
#[derive(Debug, Clone, Copy)]
pub struct Unsigned<'a> {
    /// Where it goes, as in the `host` header.
    pub host: &'a str,
    /// What is wanted.
    pub action: &'a str,
    /// The API's version.
    pub version: &'a str,
    /// When, in seconds since 1970.
    pub at: i64,
    /// What makes it one of its kind.
    pub nonce: &'a str,
    /// The query as it is sent: sorted, encoded by [`encode`].
    pub query: &'a str,
    /// The body's type; none is signed for an empty body.
    pub content_type: Option<&'a str>,
    /// The body.
    pub body: &'a [u8],
}

/// The headers that a signed request carries: names in small letters, and their values.
pub type Signed = Vec<(&'static str, String)>;

/// Signs a POST.
#[must_use]
pub fn sign(key: &AccessKey, request: &Unsigned<'_>) -> Signed {
    let body = hex(digest(&SHA256, request.body).as_ref());
    // In the order of their names, as the canonical request wants them.
    let mut headers: Signed = Vec::new();
    headers.extend(request.content_type.map(|kind| ("content-type", kind.to_owned())));
    headers.push(("host", request.host.to_owned()));
    headers.push(("x-acs-action", request.action.to_owned()));
    headers.push(("x-acs-content-sha256", body.clone()));
    headers.push(("x-acs-date", date(request.at)));
    headers.push(("x-acs-signature-nonce", request.nonce.to_owned()));
    headers.push(("x-acs-version", request.version.to_owned()));
    let names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
    let names = names.join(";");
    let mut canonical = format!("POST\n/\n{}\n", request.query);
    for (name, value) in &headers {
        canonical.extend([name, ":", value.trim(), "\n"]);
    }
    canonical.extend(["\n", &names, "\n", &body]);
    let to_sign = format!("{ALGORITHM}\n{}", hex(digest(&SHA256, canonical.as_bytes()).as_ref()));
    let secret = hmac::Key::new(hmac::HMAC_SHA256, key.secret.as_bytes());
    let signature = hex(hmac::sign(&secret, to_sign.as_bytes()).as_ref());
    let proof =
        format!("{ALGORITHM} Credential={},SignedHeaders={names},Signature={signature}", key.id);
    headers.push(("authorization", proof));
    headers
}

/// Parameters as a query or a form: sorted, both sides encoded.
pub(super) fn encode<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut pairs: Vec<_> = pairs.collect();
    pairs.sort_unstable();
    let mut text = String::new();
    for (name, value) in pairs {
        if !text.is_empty() {
            text.push('&');
        }
        text.extend(utf8_percent_encode(name, RESERVED));
        text.push('=');
        text.extend(utf8_percent_encode(value, RESERVED));
    }
    text
}

/// `2026-01-31T12:00:00Z`.
fn date(seconds: i64) -> String {
    let t = OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let (month, day) = (u8::from(t.month()), t.day());
    let (hour, minute, second) = (t.hour(), t.minute(), t.second());
    format!("{:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z", t.year())
}

/// Bytes as small hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> AccessKey {
        let (id, secret) = ("YourAccessKeyId".to_owned(), "YourAccessKeySecret".to_owned());
        AccessKey { id, secret }
    }

    /// The example of Alibaba's documentation, with its signature.
    #[test]
    fn the_official_vector_holds() {
        let image = "win2019_1809_x64_dtc_zh-cn_40G_alibase_20230811.vhd";
        let query = encode([("RegionId", "cn-shanghai"), ("ImageId", image)].into_iter());
        let signed = sign(
            &key(),
            &Unsigned {
                host: "ecs.cn-shanghai.aliyuncs.com",
                action: "RunInstances",
                version: super::super::VERSION,
                at: 1_698_315_752,
                nonce: "3156853299f313e23d1673dc12e1703d",
                query: &query,
                content_type: None,
                body: b"",
            },
        );
        let value = |name| &signed.iter().find(|(n, _)| *n == name).unwrap().1;
        assert_eq!(value("x-acs-date"), "2023-10-26T10:22:32Z");
        assert_eq!(
            value("authorization"),
            "ACS3-HMAC-SHA256 Credential=YourAccessKeyId,SignedHeaders=host;x-acs-action;\
             x-acs-content-sha256;x-acs-date;x-acs-signature-nonce;x-acs-version,\
             Signature=06563a9e1b43f5dfe96b81484da74bceab24a1d853912eee15083a6f0f3283c0"
        );
    }

    #[test]
    fn what_is_reserved_is_encoded_and_the_order_is_that_of_names() {
        let pairs = [("b", "x y*~/"), ("a.1", "é"), ("a", "")];
        assert_eq!(encode(pairs.into_iter()), "a=&a.1=%C3%A9&b=x%20y%2A~%2F");
    }

    #[test]
    fn a_secret_stays_out_of_logs() {
        assert!(!format!("{:?}", key()).contains("Secret"));
    }
}
