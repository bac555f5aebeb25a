//! The two signatures, each as a parse and a string to sign.
//!
//! - **Version 1**: `HMAC-SHA1` (or `HMAC-SHA256`) in base64 over the method and the sorted parameters of query and
//!   form; everything is a parameter.
//! - **ACS3**: `HMAC-SHA256` in hex over a canonical request of method, path, query, chosen headers and the digest of
//!   the body; action, version, time and nonce are headers.
//!
//! What is compared is compared in constant time.

use super::percent;
use super::request::{Decoded, Incoming};
use crate::ecs::refusal::Refusal;
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac;
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::fmt::Write;

const ACS3: &str = "ACS3-HMAC-SHA256";
/// What the caller must have signed with ACS3: without them a request could be given another meaning.
const MUST_BE_SIGNED: [&str; 5] = [
    "x-acs-action",
    "x-acs-version",
    "x-acs-date",
    "x-acs-signature-nonce",
    "x-acs-content-sha256",
];

/// What a request says of itself, and what it must have signed to be believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The access key's id.
    pub key: String,
    /// The action's name.
    pub action: String,
    /// The API's version.
    pub version: String,
    /// When it was signed, as written.
    pub timestamp: String,
    /// What makes the request one of its kind.
    pub nonce: String,
    /// The token of temporary credentials; empty where there is none.
    pub token: String,
    /// What is signed.
    pub to_sign: String,
    signature: Signature,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Signature {
    Sha1(Vec<u8>),
    Sha256(Vec<u8>),
    Acs3(Vec<u8>),
}

impl Claim {
    /// Reads the claim of a request, in whichever form it is signed.
    pub fn read(incoming: &Incoming<'_>, decoded: &Decoded) -> Result<Self, Refusal> {
        match header(incoming.headers, AUTHORIZATION.as_str())? {
            Some(authorization) if authorization.starts_with("ACS") => {
                acs3(incoming, decoded, authorization)
            }
            _ => version_1(incoming, decoded),
        }
    }

    /// Whether the holder of `secret` signed it.
    pub fn is_signed_with(&self, secret: &str) -> bool {
        let (algorithm, key, signature) = match &self.signature {
            Signature::Sha1(signature) => {
                (hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, format!("{secret}&"), signature)
            }
            Signature::Sha256(signature) => (hmac::HMAC_SHA256, format!("{secret}&"), signature),
            Signature::Acs3(signature) => (hmac::HMAC_SHA256, secret.to_owned(), signature),
        };
        // Compares in constant time.
        let key = hmac::Key::new(algorithm, key.as_bytes());
        hmac::verify(&key, self.to_sign.as_bytes(), signature).is_ok()
    }

    /// The refusal of a wrong signature. Old clients compare the text after the colon with their own.
    pub fn refuse(&self) -> Refusal {
        let what = match self.signature {
            Signature::Acs3(_) => "server string to sign and canonical request is",
            _ => "server string to sign is",
        };
        let message = format!(
            "Specified signature is not matched with our calculation. {what}:{}",
            self.to_sign
        );
        Refusal::bad("SignatureDoesNotMatch", message)
            .recommend("Look whether the secret belongs to this access key.")
    }
}

fn version_1(incoming: &Incoming<'_>, decoded: &Decoded) -> Result<Claim, Refusal> {
    let given = |name: &str| decoded.get(name).filter(|value| !value.is_empty());
    let needed = |name| given(name).map(str::to_owned).ok_or_else(|| Refusal::missing(name));
    let key = needed("AccessKeyId")?;
    let bytes = STANDARD.decode(needed("Signature")?).map_err(|_| incomplete("it is no base64"))?;
    if given("SignatureVersion").is_some_and(|version| version != "1.0") {
        return Err(incomplete("SignatureVersion is not 1.0"));
    }
    let signature = match needed("SignatureMethod")?.to_ascii_uppercase().as_str() {
        "HMAC-SHA1" => Signature::Sha1(bytes),
        "HMAC-SHA256" => Signature::Sha256(bytes),
        _ => return Err(incomplete("SignatureMethod is neither HMAC-SHA1 nor HMAC-SHA256")),
    };
    let mut pairs: Vec<_> = decoded.query.iter().chain(&decoded.form).collect();
    pairs.sort();
    let signed = pairs.into_iter().filter(|(name, _)| *name != "Signature");
    let canonical = percent::canonical(signed.map(|(name, value)| (name.as_str(), value.as_str())));
    let to_sign = format!("{}&%2F&{}", incoming.method, percent::encode(&canonical));
    Ok(Claim {
        key,
        action: needed("Action")?,
        version: needed("Version")?,
        timestamp: needed("Timestamp")?,
        nonce: needed("SignatureNonce")?,
        token: given("SecurityToken").unwrap_or_default().to_owned(),
        to_sign,
        signature,
    })
}

fn acs3(incoming: &Incoming<'_>, decoded: &Decoded, authorization: &str) -> Result<Claim, Refusal> {
    let fields = authorization
        .strip_prefix(ACS3)
        .ok_or_else(|| incomplete("the algorithm is not ACS3-HMAC-SHA256"))?;
    let (mut key, mut names, mut signature) = ("", "", "");
    for field in fields.split(',') {
        match field.trim().split_once('=') {
            Some(("Credential", value)) => key = value,
            Some(("SignedHeaders", value)) => names = value,
            Some(("Signature", value)) => signature = value,
            _ => return Err(incomplete("Authorization has a field that is not known")),
        }
    }
    let needed = |name| {
        let value = header(incoming.headers, name)?.filter(|value| !value.is_empty());
        value.map(str::to_owned).ok_or_else(|| Refusal::missing(name))
    };
    let [action, version, timestamp, nonce, body] = MUST_BE_SIGNED.map(needed);
    let body = body?;
    let sent = unhex(&body).ok_or_else(|| incomplete("x-acs-content-sha256 is no SHA-256"))?;
    if verify_slices_are_equal(digest(&SHA256, incoming.body).as_ref(), &sent).is_err() {
        return Err(incomplete("x-acs-content-sha256 is not the digest of the body"));
    }
    let canonical = canonical_request(incoming, decoded, names, &body)?;
    let to_sign = format!("{ACS3}\n{}", hex(digest(&SHA256, canonical.as_bytes()).as_ref()));
    let signature = unhex(signature).ok_or_else(|| incomplete("Signature is no hex"))?;
    Ok(Claim {
        key: key.to_owned(),
        action: action?,
        version: version?,
        timestamp: timestamp?,
        nonce: nonce?,
        token: header(incoming.headers, "x-acs-security-token")?.unwrap_or_default().to_owned(),
        to_sign,
        signature: Signature::Acs3(signature),
    })
}

fn canonical_request(
    incoming: &Incoming<'_>,
    decoded: &Decoded,
    names: &str,
    body: &str,
) -> Result<String, Refusal> {
    if MUST_BE_SIGNED.iter().any(|must| !names.split(';').any(|name| name == *must)) {
        return Err(incomplete("SignedHeaders lacks an x-acs- header of the request"));
    }
    let query = decoded.query.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let (method, path) = (incoming.method, incoming.path);
    let mut canonical = format!("{method}\n{path}\n{}\n", percent::canonical(query));
    for name in names.split(';') {
        let value = header(incoming.headers, name)?
            .ok_or_else(|| incomplete("SignedHeaders names a header that is not there"))?;
        canonical.extend([name, ":", value.trim(), "\n"]);
    }
    canonical.extend(["\n", names, "\n", body]);
    Ok(canonical)
}

/// A header that may be there once, as text.
fn header<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Refusal> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(incomplete("a header that counts for it is given more than once"));
    }
    let text = std::str::from_utf8(value.as_bytes());
    text.map(Some).map_err(|_| incomplete("a header that counts for it is not UTF-8"))
}

fn incomplete(why: &str) -> Refusal {
    let message =
        format!("The request signature does not conform to Alibaba Cloud standards: {why}.");
    Refusal::bad("IncompleteSignature", message)
}

/// Bytes as lower-case hex.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let nibble = |byte: u8| char::from(byte).to_digit(16);
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let byte = |[high, low]: &[u8; 2]| u8::try_from(nibble(*high)? << 4 | nibble(*low)?).ok();
    if rest.is_empty() { pairs.iter().map(byte).collect() } else { None }
}

#[cfg(test)]
#[path = "signature_tests.rs"]
mod tests;
