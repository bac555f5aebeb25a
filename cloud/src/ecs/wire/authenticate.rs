//! From a request to a call: who calls what, believed.
//!
//! The order is ECS's: what is mandatory, the key, the signature, the time, the nonce; then the action is looked up.
//! A nonce is remembered only after the signature was checked, so that nobody can use up another's.

use super::nonces::{Stale, in_window};
use super::reply::Format;
use super::request::{Decoded, Incoming};
use super::signature::Claim;
use super::timestamp;
use crate::ecs::documented::{self, Version};
use crate::ecs::refusal::Refusal;
use aws_lc_rs::digest::{Context, SHA256};
use std::collections::BTreeMap;

/// Parameters that are the wire's and not an action's.
const COMMON: [&str; 12] = [
    "Action",
    "Version",
    "Format",
    "AccessKeyId",
    "Signature",
    "SignatureMethod",
    "SignatureVersion",
    "SignatureNonce",
    "SignatureType",
    "Timestamp",
    "SecurityToken",
    "ServiceCode",
];

/// Who holds an access key.
#[derive(Clone)]
pub struct AccessKey {
    /// The tenant it acts for.
    pub tenant: String,
    /// What requests are signed with.
    pub secret: String,
    /// A key that was taken out of use is known, and refused.
    pub active: bool,
}

impl std::fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AccessKey").field("tenant", &self.tenant).finish_non_exhaustive()
    }
}

/// A believed call.
#[derive(Debug)]
pub struct Call {
    /// The access key's id.
    pub key: String,
    /// The tenant that calls.
    pub tenant: String,
    /// The action as documented.
    pub action: &'static documented::Action,
    /// The API whose action it is.
    pub version: Version,
    /// The action's own parameters.
    pub parameters: BTreeMap<String, String>,
}

/// The form of the answer, which also a refused request gets. Without a wish it is XML, as ever; with the newer
/// signature it is JSON, which its clients take for granted.
pub fn format(incoming: &Incoming<'_>, decoded: Option<&Decoded>) -> Format {
    let header = |name| incoming.headers.get(name).and_then(|value| value.to_str().ok());
    match decoded.and_then(|decoded| decoded.get("Format")).filter(|wish| !wish.is_empty()) {
        Some(wish) if wish.eq_ignore_ascii_case("xml") => Format::Xml,
        Some(_) => Format::Json,
        None if header("accept").is_some_and(|accept| accept.contains("application/json")) => {
            Format::Json
        }
        None if header("authorization").is_some_and(|value| value.starts_with("ACS3")) => {
            Format::Json
        }
        None => Format::Xml,
    }
}

/// Checks everything that must hold before an action looks at a request. `keys` finds an access key, `admit` remembers
/// a request by key, nonce and time.
pub fn authenticate(
    incoming: &Incoming<'_>,
    decoded: Decoded,
    keys: impl FnOnce(&str) -> Option<AccessKey>,
    admit: impl FnOnce(&str, [u8; 16], i64) -> Result<(), Stale>,
    now: i64,
) -> Result<Call, Refusal> {
    if !matches!(incoming.method, "GET" | "POST") {
        let message = format!("The method {} is not supported.", incoming.method);
        return Err(Refusal::new(405, "UnsupportedHTTPMethod", message, "Use GET or POST."));
    }
    let claim = Claim::read(incoming, &decoded)?;
    if !claim.token.is_empty() {
        let message = "There are no temporary credentials here: SecurityToken must be empty.";
        return Err(Refusal::denied("InvalidSecurityToken.MismatchWithAccessKey", message));
    }
    let signed = timestamp::parse(&claim.timestamp).ok_or_else(|| {
        let why = "Specified time stamp or date value is not well formatted.";
        Refusal::bad("InvalidTimeStamp.Format", why).recommend("Write it as 2026-01-31T12:00:00Z.")
    })?;
    let key = keys(&claim.key).ok_or_else(|| {
        let why = "Specified access key is not found.";
        Refusal::not_found("InvalidAccessKeyId.NotFound", why)
    })?;
    if !key.active {
        let why = "Specified access key is disabled.";
        return Err(Refusal::bad("InvalidAccessKeyId.Inactive", why));
    }
    if !in_window(signed, now) {
        return Err(illegal_timestamp(&claim.timestamp, now));
    }
    if !claim.is_signed_with(&key.secret) {
        return Err(claim.refuse());
    }
    let nonce = digest(&claim.nonce);
    admit(&claim.key, nonce, signed).map_err(|stale| match stale {
        Stale::Timestamp => illegal_timestamp(&claim.timestamp, now),
        Stale::Used => {
            let why = "Specified signature nonce was used already.";
            Refusal::bad("SignatureNonceUsed", why).recommend("Sign again with a new nonce.")
        }
    })?;
    call(claim, key.tenant, decoded)
}

fn call(claim: Claim, tenant: String, decoded: Decoded) -> Result<Call, Refusal> {
    let version = Version::parse(&claim.version).ok_or_else(|| {
        let why = "Specified parameter Version is not valid.";
        Refusal::bad("InvalidVersion", why)
            .recommend("Call 2014-05-26, or 2016-04-28 for networks.")
    })?;
    let action = documented::action(version, &claim.action).ok_or_else(|| {
        let why = "Specified api is not found, please check your url and method.";
        Refusal::not_found("InvalidAction.NotFound", why)
    })?;
    if decoded.get("Action").is_some_and(|name| name != claim.action) {
        return Err(Refusal::invalid("Action", "the signed header names another action"));
    }
    let mut parameters = decoded.into_all();
    parameters.retain(|name, value| !COMMON.contains(&name.as_str()) && !value.is_empty());
    Ok(Call { key: claim.key, tenant, action, version, parameters })
}

fn illegal_timestamp(given: &str, now: i64) -> Refusal {
    let message = format!(
        "The input parameter \"Timestamp\" that is mandatory for processing this request is not \
         acceptable: it is {given}, and here it is {}.",
        timestamp::to_the_second(now)
    );
    Refusal::bad("IllegalTimestamp", message)
        .recommend("Set the clock (15 minutes are tolerated) and sign the request again.")
}

/// A digest of a nonce: whatever its length, one entry has one size.
fn digest(nonce: &str) -> [u8; 16] {
    let mut context = Context::new(&SHA256);
    context.update(nonce.as_bytes());
    let mut short = [0; 16];
    short.copy_from_slice(&context.finish().as_ref()[..16]);
    short
}
