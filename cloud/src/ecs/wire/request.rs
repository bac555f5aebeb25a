//! What came over HTTP, decoded and within limits, before anything of it is believed.
//!
//! Parameters are in the query, in a form body, or in both; the method does not matter. A limit that is passed is
//! answered by a code of its own, so that the caller knows which.

use super::percent;
use crate::ecs::refusal::Refusal;
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use std::collections::BTreeMap;

/// The largest body in bytes: user data (32 KiB in base64) and every documented list fit many times.
pub const MAX_BODY: usize = 1 << 20;
/// The most parameters of a request. The largest documented one, with every disk and interface, has some 1,400.
pub const MAX_PARAMETERS: usize = 2_000;
/// The longest name of a parameter in bytes.
const MAX_NAME: usize = 256;
/// The deepest documented name has five parts: `NetworkInterface.1.SecurityGroupIds.1`, and one to spare.
const MAX_DEPTH: usize = 6;

/// A request as it came.
#[derive(Debug, Clone, Copy)]
pub struct Incoming<'a> {
    /// The method, in capitals.
    pub method: &'a str,
    /// The path of the target, without host and query.
    pub path: &'a str,
    /// The query, without `?`.
    pub query: &'a str,
    /// All headers.
    pub headers: &'a HeaderMap,
    /// The whole body.
    pub body: &'a [u8],
}

/// Decoded parameters by name: those of the query, and those of a form body.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Decoded {
    /// From the query.
    pub query: BTreeMap<String, String>,
    /// From the body.
    pub form: BTreeMap<String, String>,
}

impl Decoded {
    /// Decodes and limits.
    pub fn new(incoming: &Incoming<'_>) -> Result<Self, Refusal> {
        if incoming.body.len() > MAX_BODY {
            return Err(too_large());
        }
        let mut decoded = Self { query: pairs(incoming.query.as_bytes())?, form: BTreeMap::new() };
        if is_form(incoming.headers) {
            decoded.form = pairs(incoming.body)?;
        }
        if let Some(name) = decoded.form.keys().find(|name| decoded.query.contains_key(*name)) {
            return Err(twice(name));
        }
        match decoded.query.len() + decoded.form.len() {
            count if count > MAX_PARAMETERS => Err(too_many()),
            _ => Ok(decoded),
        }
    }

    /// The value of a parameter, wherever it came.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.query.get(name).or_else(|| self.form.get(name)).map(String::as_str)
    }

    /// All parameters as one map.
    pub fn into_all(mut self) -> BTreeMap<String, String> {
        self.query.append(&mut self.form);
        self.query
    }
}

/// Whether the body holds parameters.
fn is_form(headers: &HeaderMap) -> bool {
    let content = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let mime = content.split(';').next().unwrap_or("").trim();
    mime.eq_ignore_ascii_case("application/x-www-form-urlencoded")
}

fn pairs(text: &[u8]) -> Result<BTreeMap<String, String>, Refusal> {
    let mut pairs = BTreeMap::new();
    for pair in text.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty()) {
        let end = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
        let value = pair.get(end + 1..).unwrap_or_default();
        let (Some(name), Some(value)) = (percent::decode(&pair[..end]), percent::decode(value))
        else {
            return Err(not_utf8());
        };
        check_name(&name)?;
        if pairs.len() == MAX_PARAMETERS {
            return Err(too_many());
        }
        if pairs.contains_key(&name) {
            return Err(twice(&name));
        }
        pairs.insert(name, value);
    }
    Ok(pairs)
}

fn check_name(name: &str) -> Result<(), Refusal> {
    if name.len() > MAX_NAME {
        let why = format!("its name is longer than {MAX_NAME} bytes");
        let start: String = name.chars().take(32).collect();
        return Err(Refusal::invalid(&format!("{start}…"), why));
    }
    if name.split('.').count() > MAX_DEPTH {
        return Err(Refusal::invalid(name, format!("it is nested deeper than {MAX_DEPTH} levels")));
    }
    Ok(())
}

/// The refusal of a body above [`MAX_BODY`], which the listener gives without keeping the body.
pub fn too_large() -> Refusal {
    let message = format!("The request's body is larger than {MAX_BODY} bytes.");
    Refusal::new(413, "RequestEntityTooLarge", message, "Send less in one request.")
}

fn too_many() -> Refusal {
    let message = format!("The request has more than {MAX_PARAMETERS} parameters.");
    Refusal::bad("InvalidParameter.TooManyParameters", message)
}

fn not_utf8() -> Refusal {
    let message = "A parameter of the request is not valid UTF-8.";
    Refusal::bad("InvalidParameter.Encoding", message).recommend("Encode parameters as UTF-8.")
}

fn twice(name: &str) -> Refusal {
    Refusal::invalid(name, "it is given more than once")
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn decode(query: &str, body: &[u8], form: bool) -> Result<Decoded, Refusal> {
        let mut headers = HeaderMap::new();
        if form {
            let value =
                HeaderValue::from_static("application/x-www-form-urlencoded; charset=utf-8");
            headers.insert(CONTENT_TYPE, value);
        }
        Decoded::new(&Incoming { method: "POST", path: "/", query, headers: &headers, body })
    }

    fn code(result: Result<Decoded, Refusal>) -> String {
        result.unwrap_err().code.into_owned()
    }

    #[test]
    fn parameters_come_from_query_and_form() {
        let decoded = decode("A=1&&B=x%20y", b"C=a+b&D", true).unwrap();
        assert_eq!(decoded.get("A"), Some("1"));
        assert_eq!(decoded.get("B"), Some("x y"));
        assert_eq!(decoded.get("C"), Some("a b"));
        assert_eq!(decoded.get("D"), Some(""));
        assert_eq!(decoded.into_all().len(), 4);
    }

    #[test]
    fn a_body_that_is_no_form_holds_no_parameters() {
        assert_eq!(decode("A=1", b"C=3", false).unwrap().get("C"), None);
    }

    #[test]
    fn each_limit_has_its_code() {
        assert_eq!(code(decode("", &vec![b'x'; 10 << 20], true)), "RequestEntityTooLarge");
        let many: String = (0..100_000).map(|n| format!("P{n}=1&")).collect();
        assert_eq!(code(decode("", many.as_bytes(), true)), "InvalidParameter.TooManyParameters");
        let half: String = (0..1_500).map(|n| format!("P{n}=1&")).collect();
        let other = half.replace('P', "Q");
        let both = decode(&half, other.as_bytes(), true);
        assert_eq!(code(both), "InvalidParameter.TooManyParameters");
        assert_eq!(code(decode("A=%ff", b"", false)), "InvalidParameter.Encoding");
        assert_eq!(code(decode("%c3%28=1", b"", false)), "InvalidParameter.Encoding");
        assert_eq!(code(decode(&"A.1.".repeat(40), b"", false)), "InvalidParameter");
        assert_eq!(code(decode(&"A".repeat(300), b"", false)), "InvalidParameter");
        assert_eq!(code(decode("A=1&A=1", b"", false)), "InvalidParameter");
        assert_eq!(code(decode("A=1", b"A=1", true)), "InvalidParameter");
    }
}
