//! One function per parser of untrusted bytes, for the fuzzer and for a test that gives each some thousands of inputs.

use super::actions;
use super::dispatch::{Caller, Place};
use super::documented::{Version, action};
use super::wire::params::Params;
use super::wire::reply::Format;
use super::wire::request::{Decoded, Incoming};
use super::wire::signature::Claim;
use super::wire::{percent, timestamp};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Map, Value};

/// A signed query and form: whatever is decoded is encoded to something that decodes to the same.
pub fn signature_version_1(data: &[u8]) {
    let mut headers = HeaderMap::new();
    let form = HeaderValue::from_static("application/x-www-form-urlencoded");
    headers.insert("content-type", form);
    let (query, body) = data.split_at(data.len() / 2);
    let query = String::from_utf8_lossy(query);
    let incoming = Incoming { method: "POST", path: "/", query: &query, headers: &headers, body };
    let Ok(decoded) = Decoded::new(&incoming) else { return };
    let pairs = decoded.query.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let canonical = percent::canonical(pairs);
    let again = Decoded::new(&Incoming { query: &canonical, body: b"", ..incoming });
    assert!(again.is_ok_and(|again| again.query == decoded.query), "{canonical}");
    if let Ok(claim) = Claim::read(&incoming, &decoded) {
        assert!(!claim.is_signed_with("no such secret"));
        let _ = timestamp::parse(&claim.timestamp);
    }
}

/// Headers in lines, as a peer may write them.
pub fn signature_acs3(data: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n') {
        let Some(at) = line.iter().position(|byte| *byte == b':') else { continue };
        let name = HeaderName::from_bytes(&line[..at]);
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(&line[at + 1..])) {
            headers.append(name, value);
        }
    }
    let incoming =
        Incoming { method: "GET", path: "/", query: "A=1", headers: &headers, body: data };
    let Ok(decoded) = Decoded::new(&incoming) else { return };
    if let Ok(claim) = Claim::read(&incoming, &decoded) {
        assert!(!claim.is_signed_with("no such secret"));
    }
}

/// Actions with the most parameters, and what they are given.
const ACTIONS: [&str; 6] = [
    "RunInstances",
    "DescribeInstances",
    "DescribeInstanceTypes",
    "StopInstances",
    "DescribeTasks",
    "ListTagResources",
];

/// An action's parameters: the first byte says which action's.
pub fn parameters(data: &[u8]) {
    let Some((which, query)) = data.split_first() else { return };
    let name = ACTIONS[usize::from(*which) % ACTIONS.len()];
    let query = String::from_utf8_lossy(query);
    let headers = HeaderMap::new();
    let incoming =
        Incoming { method: "GET", path: "/", query: &query, headers: &headers, body: b"" };
    let (Ok(decoded), Some(action)) = (Decoded::new(&incoming), action(Version::Ecs, name)) else {
        return;
    };
    let Ok(mut params) = Params::new(action, decoded.into_all()) else { return };
    let place = Place { region: "r".into(), name: "r".into(), zones: vec!["z".into()] };
    let caller = Caller { tenant: "t-1".into(), host: "h".into(), place };
    if let Some(read) = actions::find(Version::Ecs, name)
        && read(&mut params, &caller).is_ok()
    {
        let _ = params.finish();
    }
}

/// Any tree as XML: it is well-formed, and the texts in it are those of the tree.
pub fn xml(data: &[u8]) {
    let Ok(tree) = serde_json::from_slice::<Value>(data) else { return };
    let mut texts = Vec::new();
    let mut fields = Map::new();
    fields.insert("Tree".into(), named(tree, &mut texts));
    let text = Format::Xml.reply("Fuzz", "id", fields);
    let body = text.split_once("?>").map_or("", |(_, body)| body);
    let read = read_xml(body).unwrap_or_else(|| panic!("not well-formed: {text}"));
    let read: Vec<&String> = read.iter().filter(|text| !text.is_empty()).collect();
    texts.retain(|text| !text.is_empty());
    let mut wanted: Vec<&String> = texts.iter().collect();
    let id = "id".to_owned();
    wanted.push(&id);
    let (mut read, mut wanted) = (read.clone(), wanted);
    read.sort();
    wanted.sort();
    assert_eq!(read, wanted);
}

/// The tree with names as this program chooses them, and its texts as XML can hold them.
fn named(tree: Value, texts: &mut Vec<String>) -> Value {
    match tree {
        Value::Array(items) => items.into_iter().map(|item| named(item, texts)).collect(),
        Value::Object(fields) => {
            let fields = fields.into_values().enumerate();
            let with = fields.map(|(index, item)| (format!("F{index}"), named(item, texts)));
            Value::Object(with.collect())
        }
        Value::String(text) => {
            let holds = |c: char| match c {
                '\t' | '\n' | '\r' => c,
                '\0'..='\x1f' | '\u{fffe}' | '\u{ffff}' => '\u{fffd}',
                _ => c,
            };
            texts.push(text.chars().map(holds).collect());
            Value::String(text)
        }
        Value::Null => Value::Null,
        other => {
            texts.push(other.to_string());
            other
        }
    }
}

/// The texts of a well-formed document without attributes.
fn read_xml(mut text: &str) -> Option<Vec<String>> {
    let (mut open, mut texts) = (Vec::new(), Vec::new());
    while !text.is_empty() {
        let at = text.find('<')?;
        texts.push(unescape(&text[..at])?);
        let end = text.find('>')?;
        match text.get(at + 1..end)? {
            tag if tag.starts_with('/') => {
                let opened: &str = open.pop()?;
                (opened == &tag[1..]).then_some(())?;
            }
            tag => open.push(tag),
        }
        text = &text[end + 1..];
    }
    open.is_empty().then_some(texts)
}

fn unescape(text: &str) -> Option<String> {
    let mut parts = text.split('&');
    let mut plain = parts.next()?.to_owned();
    for part in parts {
        let (entity, rest) = part.split_once(';')?;
        plain.push(match entity {
            "amp" => '&',
            "lt" => '<',
            "gt" => '>',
            "#13" => '\r',
            _ => return None,
        });
        plain.push_str(rest);
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORDS: [&str; 24] = [
        "AccessKeyId=k",
        "&",
        "Signature=AAAA",
        "SignatureMethod=HMAC-SHA1",
        "Timestamp=T",
        "SignatureNonce=n",
        "Action=A",
        "Version=V",
        "%2",
        "%ff",
        "+",
        "\n",
        "=",
        ".1.",
        "authorization:ACS3-HMAC-SHA256 Credential=a,SignedHeaders=x-acs-action,Signature=00",
        "x-acs-action:A",
        "Tag",
        "DataDisk.1.Size=1",
        "InstanceId.1=i-1",
        "[{\"Key\":1}]",
        "ImageId=m",
        "InstanceType=bixi.tiny",
        "UserData=aGk=",
        "NextToken=MSBp",
    ];

    #[test]
    fn thousands_of_inputs_do_no_harm() {
        let mut seed = 1u64;
        let mut byte = || {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) as u8
        };
        for _ in 0..6000 {
            let mut data = vec![byte()];
            for _ in 0..byte() % 24 {
                match byte() % 4 {
                    0 => data.push(byte()),
                    _ => data.extend(WORDS[usize::from(byte()) % WORDS.len()].bytes()),
                }
            }
            signature_version_1(&data);
            signature_acs3(&data);
            parameters(&data);
            let texts: Vec<String> = (0..byte() % 4).map(|_| char::from(byte()).into()).collect();
            let tree = serde_json::json!({"a": texts, "b": [{"c": null}, 1.5, true]});
            xml(tree.to_string().as_bytes());
        }
    }
}
