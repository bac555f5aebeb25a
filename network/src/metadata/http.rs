//! HTTP/1.1 (RFC 9112) for the metadata server: what a guest's bytes ask for, and what is answered.
//!
//! | request | answer |
//! |---|---|
//! | `PUT /latest/api/token` with the header `X-aliyun-ecs-metadata-token-ttl-seconds: 1..21600` | a token |
//! | `GET`, `HEAD` of a path, with `X-aliyun-ecs-metadata-token: TOKEN` | the document, or a folder's entries |
//!
//! The headers of EC2's clients, `X-aws-ec2-…`, mean the same. Without a token: 403 where one is required; with a wrong
//! one: 401; a `PUT` that came through a proxy: 403.
//!
//! Invariants: [`step`] is a pure function of bytes, metadata and time; any bytes give an answer, or the wish for more as
//! long as they are fewer than [`HEAD_LIMIT`]; an answer names its length.

use super::Metadata;
use super::documents::Found;
use super::token::LONGEST;
use std::sync::Arc;

/// The most bytes of a request.
pub const HEAD_LIMIT: usize = 4096;
/// The most headers of a request.
const HEADER_LIMIT: usize = 48;

const TTL: [&str; 2] =
    ["x-aliyun-ecs-metadata-token-ttl-seconds", "x-aws-ec2-metadata-token-ttl-seconds"];
const TOKEN: [&str; 2] = ["x-aliyun-ecs-metadata-token", "x-aws-ec2-metadata-token"];

/// What came of a guest's bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// The request is not whole yet.
    More,
    /// This many bytes were a request, and this is the answer.
    Answer(usize, Answer),
}

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// Status line and headers.
    pub head: Vec<u8>,
    /// What follows.
    pub body: Arc<[u8]>,
    /// Whether the connection ends with it.
    pub close: bool,
}

/// Reads the request at the beginning of `bytes` and answers it. `now` is in seconds since 1970.
pub fn step(bytes: &[u8], metadata: &Metadata, now: u64) -> Step {
    let mut headers = [httparse::EMPTY_HEADER; HEADER_LIMIT];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length <= HEAD_LIMIT => {
            Step::Answer(length, answer(&request, metadata, now))
        }
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_LIMIT => Step::More,
        Ok(_) | Err(httparse::Error::TooManyHeaders) => Step::Answer(
            bytes.len(),
            write("431 Request Header Fields Too Large", None, true, true),
        ),
        Err(_) => Step::Answer(bytes.len(), write("400 Bad Request", None, true, true)),
    }
}

fn answer(request: &httparse::Request<'_, '_>, metadata: &Metadata, now: u64) -> Answer {
    let header = |names: &[&str]| {
        let wanted = |header: &&httparse::Header<'_>| {
            names.iter().any(|name| header.name.eq_ignore_ascii_case(name))
        };
        request.headers.iter().find(wanted).map(|header| header.value)
    };
    let keeps = request.version == Some(1);
    let ends = header(&["connection"]).is_some_and(|value| value.eq_ignore_ascii_case(b"close"));
    let no_body = header(&["transfer-encoding"]).is_none()
        && header(&["content-length"]).is_none_or(|value| value == b"0");
    // Bytes of a body would be taken for the next request.
    let close = !keeps || ends || !no_body;
    let path = request.path.unwrap_or_default();
    // The absolute form is for proxies, and a query says nothing to us.
    let path = path
        .strip_prefix("http://")
        .map_or(path, |rest| rest.split_once('/').map_or("/", |(host, _)| &rest[host.len()..]));
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let give = |status, body: Option<Arc<[u8]>>| {
        write(status, body, close, request.method != Some("HEAD"))
    };
    let refuse = |status| give(status, None);
    match request.method {
        Some("PUT") if path == "/latest/api/token" => {
            if header(&["x-forwarded-for"]).is_some() {
                return refuse("403 Forbidden");
            }
            let seconds = header(&TTL)
                .and_then(|value| std::str::from_utf8(value).ok()?.trim().parse().ok())
                .filter(|seconds| (1..=LONGEST).contains(seconds));
            let Some(seconds) = seconds else { return refuse("400 Bad Request") };
            let token = metadata.key.token(&metadata.port, now.saturating_add(seconds));
            give("200 OK", Some(token.into_bytes().into()))
        }
        Some("GET" | "HEAD") => {
            match header(&TOKEN) {
                Some(token) if !metadata.key.accepts(&metadata.port, token, now) => {
                    return refuse("401 Unauthorized");
                }
                None if metadata.tokens_required => return refuse("403 Forbidden"),
                _ => {}
            }
            match metadata.documents.find(path) {
                Found::Document(bytes) => give("200 OK", Some(bytes)),
                Found::Folder(entries) => give("200 OK", Some(entries.into_bytes().into())),
                Found::Nothing => refuse("404 Not Found"),
            }
        }
        _ => refuse("405 Method Not Allowed"),
    }
}

/// Writes an answer; without a body, the status is its own text. To `HEAD` the body's length is told, and no body.
fn write(status: &str, body: Option<Arc<[u8]>>, close: bool, with_body: bool) -> Answer {
    let body = body.unwrap_or_else(|| format!("{status}\n").into_bytes().into());
    let connection = if close { "close" } else { "keep-alive" };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n",
        body.len()
    );
    let body = if with_body { body } else { Arc::default() };
    Answer { head: head.into_bytes(), body, close }
}

#[cfg(test)]
mod tests {
    use super::super::documents::Documents;
    use super::super::token::Key;
    use super::*;
    use proptest::prelude::*;

    fn metadata(tokens_required: bool) -> Metadata {
        let documents = vec![
            ("latest/meta-data/instance-id".to_owned(), b"i-1".to_vec()),
            ("latest/user-data".to_owned(), vec![0xff; 300]),
        ];
        let documents = Documents::new(documents).unwrap();
        Metadata { port: "eni-1".into(), documents, tokens_required, key: Key([1; 32]) }
    }

    fn ask(text: &str, metadata: &Metadata) -> (u16, Vec<u8>, bool) {
        let Step::Answer(length, answer) = step(text.as_bytes(), metadata, 1000) else {
            panic!("more of {text}")
        };
        assert_eq!(length, text.len());
        let head = String::from_utf8(answer.head).unwrap();
        assert!(head.contains(&format!("Content-Length: {}\r\n", answer.body.len())), "{head}");
        assert_eq!(head.contains("Connection: close"), answer.close);
        (head[9..12].parse().unwrap(), answer.body.to_vec(), answer.close)
    }

    fn get(path: &str, headers: &str) -> String {
        format!("GET {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n")
    }

    #[test]
    fn documents_are_given_and_the_connection_kept() {
        let metadata = metadata(false);
        let (status, body, close) = ask(&get("/latest/meta-data/instance-id", ""), &metadata);
        assert_eq!((status, &body[..], close), (200, &b"i-1"[..], false));
        let proxied = get("http://100.100.100.200/2016-01-01/meta-data/instance-id?x=1", "");
        assert_eq!(ask(&proxied, &metadata).1, b"i-1");
        assert_eq!(ask(&get("/2016-01-01/meta-data/", ""), &metadata).1, b"instance-id");
        assert_eq!(ask(&get("/latest/user-data", ""), &metadata).1, vec![0xff; 300]);
        assert_eq!(ask(&get("/latest/x", ""), &metadata).0, 404);
        assert!(ask(&get("/", "Connection: Close\r\n"), &metadata).2);
        assert!(ask("GET / HTTP/1.0\r\n\r\n", &metadata).2);
        assert_eq!(ask("POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\n", &metadata).0, 405);
        assert!(ask("POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\n", &metadata).2);
        let Step::Answer(_, head) = step(b"HEAD /latest/user-data HTTP/1.1\r\n\r\n", &metadata, 0)
        else {
            panic!()
        };
        assert!(head.body.is_empty());
        assert!(String::from_utf8(head.head).unwrap().contains("Content-Length: 300"));
    }

    #[test]
    fn tokens_are_given_checked_and_required() {
        let put = |headers: &str| format!("PUT /latest/api/token HTTP/1.1\r\n{headers}\r\n");
        for required in [false, true] {
            let metadata = metadata(required);
            for family in ["X-aliyun-ecs-metadata-token", "X-aws-ec2-metadata-token"] {
                let ttl = format!("{family}-ttl-seconds: 60\r\nContent-Length: 0\r\n");
                let (status, token, close) = ask(&put(&ttl), &metadata);
                assert_eq!((status, close), (200, false));
                let token = String::from_utf8(token).unwrap();
                let with =
                    |token: &str| get("/latest/user-data", &format!("{family}: {token}\r\n"));
                assert_eq!(ask(&with(&token), &metadata).0, 200);
                assert_eq!(ask(&with("00"), &metadata).0, 401);
                let late = step(with(&token).as_bytes(), &metadata, 1060);
                let Step::Answer(_, late) = late else { panic!() };
                assert!(late.head.starts_with(b"HTTP/1.1 401"));
                let proxied = put(&format!("{ttl}X-Forwarded-For: 1.1.1.1\r\n"));
                assert_eq!(ask(&proxied, &metadata).0, 403);
            }
            let bare = ask(&get("/latest/user-data", ""), &metadata).0;
            assert_eq!(bare, if required { 403 } else { 200 });
            for ttl in ["0", "21601", "-1", "x", ""] {
                let header = format!("X-aliyun-ecs-metadata-token-ttl-seconds: {ttl}\r\n");
                assert_eq!(ask(&put(&header), &metadata).0, 400, "{ttl}");
            }
            assert_eq!(ask(&put(""), &metadata).0, 400);
        }
    }

    #[test]
    fn a_request_may_come_in_pieces_and_may_not_be_endless() {
        let metadata = metadata(false);
        let whole = get("/latest/user-data", "");
        for cut in 0..whole.len() {
            assert_eq!(step(&whole.as_bytes()[..cut], &metadata, 0), Step::More, "{cut}");
        }
        let two = format!("{whole}{whole}");
        let Step::Answer(length, _) = step(two.as_bytes(), &metadata, 0) else { panic!() };
        assert_eq!(length, whole.len());
        assert_eq!(ask(&"x".repeat(HEAD_LIMIT), &metadata).0, 431);
        assert_eq!(ask(&get("/", &"a: b\r\n".repeat(HEADER_LIMIT + 1)), &metadata).0, 431);
        assert_eq!(ask("\0\0\0", &metadata).0, 400);
    }

    proptest! {
        #[test]
        fn any_bytes_lead_to_an_answer_or_the_wish_for_more(
            mut bytes in prop::sample::select(vec![
                get("/latest/user-data", "x-aws-ec2-metadata-token: 1\r\n"),
                "PUT /latest/api/token HTTP/1.1\r\nx-aws-ec2-metadata-token-ttl-seconds: 9\r\n\r\n".into(),
            ]).prop_map(String::into_bytes),
            damage in prop::collection::vec((0usize..90, any::<u8>()), 0..6),
        ) {
            for (at, value) in damage {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
            }
            match step(&bytes, &metadata(true), u64::MAX) {
                Step::More => {}
                Step::Answer(length, answer) => {
                    prop_assert!(length > 0 && length <= bytes.len());
                    prop_assert!(answer.head.starts_with(b"HTTP/1.1 "));
                }
            }
        }
    }
}
