//! Signatures of the documents and of the real clients, and what is done to each of their parts.

use super::*;
use axum::http::{HeaderName, HeaderValue};

fn v1<'a>(method: &'a str, query: &'a str, headers: &'a HeaderMap) -> Incoming<'a> {
    Incoming { method, path: "/", query, headers, body: b"" }
}

fn claim(incoming: &Incoming<'_>) -> Result<Claim, Refusal> {
    Claim::read(incoming, &Decoded::new(incoming).unwrap())
}

/// The request of Alibaba's documentation, with its signature.
const OFFICIAL: &str = "AccessKeyId=testid&Action=DescribeRegions&Format=XML&\
    SignatureMethod=HMAC-SHA1&SignatureNonce=3ee8c1b8-83d3-44af-a94f-4e0ad82fd6cf&\
    SignatureVersion=1.0&Timestamp=2016-02-23T12%3A46%3A24Z&Version=2014-05-26&\
    Signature=OLeaidS1JvxuMvnyHOwuJ%2BuX5qY%3D";

#[test]
fn the_official_vector_holds() {
    let headers = HeaderMap::new();
    let claim = claim(&v1("GET", OFFICIAL, &headers)).unwrap();
    assert_eq!(claim.key, "testid");
    assert_eq!(claim.action, "DescribeRegions");
    assert_eq!(
        claim.to_sign,
        "GET&%2F&AccessKeyId%3Dtestid%26Action%3DDescribeRegions%26Format%3DXML%26\
         SignatureMethod%3DHMAC-SHA1%26SignatureNonce%3D3ee8c1b8-83d3-44af-a94f-4e0ad82fd6cf%26\
         SignatureVersion%3D1.0%26Timestamp%3D2016-02-23T12%253A46%253A24Z%26Version%3D2014-05-26"
    );
    assert!(claim.is_signed_with("testsecret"));
    assert!(!claim.is_signed_with("testsecres"));
}

/// Requests as the real clients wrote them, all with the same key.
const CAPTURED: [(&str, &str); 6] = [
    ("RunInstances", include_str!("captured/aliyun-python-sdk-run.http")),
    ("DescribeInstances", include_str!("captured/aliyun-python-sdk-describe.http")),
    ("RunInstances", include_str!("captured/alibabacloud-run.http")),
    ("DescribeInstances", include_str!("captured/alibabacloud-describe.http")),
    ("DescribeInstances", include_str!("captured/libcloud-describe.http")),
    ("DescribeInstances", include_str!("captured/libcloud-describe-ids.http")),
];

struct Captured {
    method: String,
    query: String,
    headers: HeaderMap,
}

impl Captured {
    fn read(text: &str) -> Self {
        let mut lines = text.lines();
        let mut first = lines.next().unwrap().split(' ');
        let (method, target) = (first.next().unwrap(), first.next().unwrap());
        let mut headers = HeaderMap::new();
        for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
            let name: HeaderName = name.to_ascii_lowercase().parse().unwrap();
            headers.insert(name, HeaderValue::from_str(value).unwrap());
        }
        let query = target.strip_prefix("/?").unwrap().to_owned();
        Self { method: method.to_owned(), query, headers }
    }

    fn incoming(&self) -> Incoming<'_> {
        let (method, query) = (self.method.as_str(), self.query.as_str());
        Incoming { method, path: "/", query, headers: &self.headers, body: b"" }
    }

    fn is_signed(&self) -> bool {
        claim(&self.incoming()).is_ok_and(|claim| claim.is_signed_with("captured-secret"))
    }
}

#[test]
fn what_the_real_clients_send_is_believed_and_a_changed_byte_is_not() {
    for (action, text) in CAPTURED {
        let mut captured = Captured::read(text);
        let claim = claim(&captured.incoming()).unwrap();
        assert_eq!((claim.key.as_str(), claim.action.as_str()), ("LTAIcapturedkey", action));
        assert!(claim.is_signed_with("captured-secret"), "{text}");
        assert!(!claim.is_signed_with("captured-secreT"));
        assert_eq!(claim.refuse().code, "SignatureDoesNotMatch");
        captured.query = captured.query.replace("bixi-1", "bixi-2");
        assert!(!captured.is_signed(), "{text}");
    }
}

#[test]
fn the_newer_signature_covers_action_body_and_headers() {
    let good = Captured::read(CAPTURED[2].1);
    let with = |name: &'static str, value: &str| {
        let (mut changed, good) = (Captured::read(CAPTURED[2].1), &good);
        assert_eq!(changed.headers.len(), good.headers.len());
        changed.headers.insert(name, HeaderValue::from_str(value).unwrap());
        changed
    };
    assert!(good.is_signed());
    assert!(!with("x-acs-action", "DeleteInstance").is_signed());
    assert!(!with("x-acs-date", "2026-11-28T01:32:43Z").is_signed());
    let body = Incoming { body: b"x", ..good.incoming() };
    assert_eq!(claim(&body).unwrap_err().code, "IncompleteSignature");
    // A list of signed headers that leaves out the action would let anybody choose it.
    let authorization = good.headers["authorization"].to_str().unwrap();
    let without = with("authorization", &authorization.replace("x-acs-action;", ""));
    assert_eq!(claim(&without.incoming()).unwrap_err().code, "IncompleteSignature");
}

#[test]
fn version_1_knows_sha_256_and_covers_the_form() {
    let mut headers = HeaderMap::new();
    let form = HeaderValue::from_static("application/x-www-form-urlencoded");
    headers.insert(axum::http::header::CONTENT_TYPE, form);
    let query = "AccessKeyId=k&Action=A&Version=V&Timestamp=T&SignatureNonce=N\
        &SignatureMethod=HMAC-SHA256&SignatureVersion=1.0";
    let sign = |body: &str, signature: &str| {
        let query = format!("{query}&Signature={}", percent::encode(signature));
        let body = body.as_bytes();
        claim(&Incoming { method: "POST", path: "/", query: &query, headers: &headers, body })
    };
    let to_sign = sign("InstanceId.1=i-1", "AAAA").unwrap().to_sign;
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"secret&");
    let signature = STANDARD.encode(hmac::sign(&key, to_sign.as_bytes()));
    assert!(sign("InstanceId.1=i-1", &signature).unwrap().is_signed_with("secret"));
    assert!(!sign("InstanceId.1=i-2", &signature).unwrap().is_signed_with("secret"));
}

#[test]
fn what_is_no_signature_is_refused_by_its_code() {
    let code = |query: &str, authorization: Option<&str>| {
        let mut headers = HeaderMap::new();
        if let Some(text) = authorization {
            headers.insert(AUTHORIZATION, HeaderValue::from_str(text).unwrap());
        }
        claim(&v1("GET", query, &headers)).unwrap_err().code.into_owned()
    };
    assert_eq!(code("", None), "MissingParameter");
    assert_eq!(code(&OFFICIAL.replace("HMAC-SHA1", "HMAC-MD5"), None), "IncompleteSignature");
    assert_eq!(code(&OFFICIAL.replace("=1.0", "=2.0"), None), "IncompleteSignature");
    assert_eq!(code(&OFFICIAL.replace("OLea", "%2A"), None), "IncompleteSignature");
    assert_eq!(code(&OFFICIAL.replace("Timestamp", "Time"), None), "MissingParameter");
    for text in
        ["ACS3-HMAC-SM3 Credential=x", "ACS3-HMAC-SHA256 Credential", "ACS3-HMAC-SHA256 X=1"]
    {
        assert_eq!(code("", Some(text)), "IncompleteSignature", "{text}");
    }
    assert_eq!(code("", Some("ACS3-HMAC-SHA256 Credential=x")), "MissingParameter");
}
