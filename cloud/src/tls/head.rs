//! The bounds of a request's head, watched before hyper sees it: hyper would end the connection with a bare status.
//!
//! ```text
//!   bytes ──► Guard ──► hyper ──► service (Phase::watch) ──► handlers
//!               │ more than a head may have
//!               └──► Excess: the stream comes back, and whoever listens answers in the interface's own words
//! ```
//!
//! Invariants: while a request is under way, or its connection was upgraded, bytes pass unseen; a head is kept up to its
//! bounds and no further; what the guard lets through is within hyper's own bounds.

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

/// The longest request line in bytes: the library's URIs end at 65,534.
const LINE: usize = 65_000;
/// The most bytes of a head; hyper's own bound is above 400,000.
const HEAD: usize = 192 << 10;
/// The most header fields; hyper's own bound.
const FIELDS: usize = 100;

/// A handler has the request.
const ANSWERING: u32 = 1;
/// The request's body was not read to its end.
const BODY: u32 = 2;
/// From here on requests are counted, so that the next head is known for a new one.
const ONE: u32 = 4;

/// What a connection is at: the head of a request if nothing is under way.
#[derive(Debug, Clone, Default)]
pub struct Phase(Arc<AtomicU32>);

impl Phase {
    /// How many requests came before, if the head of another is being read.
    fn head(&self) -> Option<u32> {
        let now = self.0.load(Ordering::Relaxed);
        now.is_multiple_of(ONE).then_some(now)
    }

    /// Follows a request through its handlers.
    pub async fn watch(self, request: Request, next: Next) -> Response {
        let whole = request.body().is_end_stream();
        let under_way = if whole { ANSWERING } else { ANSWERING | BODY };
        // One request at a time: nobody else counts.
        let before = self.0.load(Ordering::Relaxed) & !(ANSWERING | BODY);
        self.0.store(before.wrapping_add(ONE) | under_way, Ordering::Relaxed);
        let body = |body| Body::new(Watched { body, phase: self.clone() });
        let request = if whole { request } else { request.map(body) };
        let response = next.run(request).await;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            self.0.fetch_and(!ANSWERING, Ordering::Relaxed);
        }
        response
    }
}

/// A request's body whose end is noticed.
#[derive(Debug)]
struct Watched {
    body: Body,
    phase: Phase,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if frame.is_none() || self.body.is_end_stream() {
            self.phase.0.fetch_and(!BODY, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A stream whose heads are watched.
#[derive(Debug)]
pub struct Guard<S> {
    /// Until it was given back.
    stream: Option<S>,
    phase: Phase,
    head: Head,
    give: Option<oneshot::Sender<(S, Excess)>>,
}

impl<S> Guard<S> {
    /// Watches a stream; it comes back with what was too much, if something is.
    pub fn new(stream: S, phase: Phase) -> (Self, oneshot::Receiver<(S, Excess)>) {
        let (give, taken) = oneshot::channel();
        (Self { stream: Some(stream), phase, head: Head::default(), give: Some(give) }, taken)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        // A stream that was given back has ended, as far as hyper goes.
        let Some(stream) = &mut this.stream else { return Poll::Ready(Ok(())) };
        let before = buffer.filled().len();
        ready!(Pin::new(stream).poll_read(context, buffer))?;
        let Some(number) = this.phase.head() else { return Poll::Ready(Ok(())) };
        if this.head.number != number {
            this.head = Head { number, ..Head::default() };
        }
        if let Some(excess) = this.head.take(&buffer.filled()[before..]) {
            buffer.set_filled(before);
            if let (Some(stream), Some(give)) = (this.stream.take(), this.give.take()) {
                // Nobody waits for it if the connection is being dropped.
                let _ = give.send((stream, excess));
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guard<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Some(stream) => Pin::new(stream).poll_write(context, bytes),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Some(stream) => Pin::new(stream).poll_flush(context),
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Some(stream) => Pin::new(stream).poll_shutdown(context),
            None => Poll::Ready(Ok(())),
        }
    }
}

/// What was seen of a head.
#[derive(Debug, Default)]
struct Head {
    number: u32,
    seen: Vec<u8>,
    lines: usize,
    line: usize,
    ended: bool,
}

impl Head {
    fn take(&mut self, bytes: &[u8]) -> Option<Excess> {
        for byte in bytes {
            if self.ended {
                return None;
            }
            self.seen.push(*byte);
            match byte {
                // Empty lines before the first one mean nothing.
                b'\n' if self.line == 0 => self.ended = self.lines > 0,
                b'\n' => (self.lines, self.line) = (self.lines + 1, 0),
                b'\r' => {}
                _ => self.line += 1,
            }
            let what = if self.lines == 0 && self.line > LINE {
                TooMuch::Line
            } else if self.seen.len() > HEAD {
                TooMuch::Head
            } else if self.lines > 1 + FIELDS {
                TooMuch::Fields
            } else {
                continue;
            };
            return Some(Excess { what, seen: std::mem::take(&mut self.seen) });
        }
        None
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TooMuch {
    Line,
    Head,
    Fields,
}

/// A head with too much in it.
#[derive(Debug)]
pub struct Excess {
    what: TooMuch,
    seen: Vec<u8>,
}

impl Excess {
    /// The answer, in the words of the interface that was asked.
    pub fn answer(&self) -> Response {
        let text = String::from_utf8_lossy(&self.seen);
        let mut lines = text.trim_start_matches(['\r', '\n']).lines();
        let target = lines.next().unwrap_or("").split(' ').nth(1).unwrap_or("");
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        // A proxy's form has the host before the path.
        let path = path
            .split_once("://")
            .map_or(path, |(_, rest)| rest.find('/').map_or("/", |at| &rest[at..]));
        let (status, code, message) = match self.what {
            TooMuch::Line => (
                StatusCode::URI_TOO_LONG,
                "RequestURITooLong",
                format!("The request's line is longer than {LINE} bytes."),
            ),
            TooMuch::Head => (
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "RequestHeaderTooLarge",
                format!("The request's headers are larger than {HEAD} bytes."),
            ),
            TooMuch::Fields => (
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "RequestHeaderTooLarge",
                format!("The request has more than {FIELDS} header fields."),
            ),
        };
        if path == "/" {
            let next = "Send large parameters in a form body, by POST.";
            let refusal = crate::ecs::refusal::Refusal::new(status.as_u16(), code, message, next);
            return crate::ecs::service::refuse(query, &fields(lines), &refusal);
        }
        crate::refusal::Refusal::new(status, code, message, "Send less in one request.")
            .into_response()
    }
}

fn fields<'a>(lines: impl Iterator<Item = &'a str>) -> HeaderMap {
    let mut fields = HeaderMap::new();
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.trim().parse()) {
            fields.insert::<HeaderName>(name, value);
        }
    }
    fields
}

/// An answer as it goes over the wire; the connection ends with it.
pub async fn wire(response: Response) -> Vec<u8> {
    let (parts, body) = response.into_parts();
    // Such answers are whole in memory: collecting one does not fail.
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let mut bytes = format!("HTTP/1.1 {}\r\n", parts.status).into_bytes();
    let mut field = |name: &str, value: &HeaderValue| {
        bytes.extend_from_slice(name.as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    };
    parts.headers.iter().for_each(|(name, value)| field(name.as_str(), value));
    field("content-length", &body.len().into());
    field("connection", &HeaderValue::from_static("close"));
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(&body);
    bytes
}

/// For the fuzzer: whatever a head is, it passes or is answered.
pub fn fuzz(data: &[u8]) {
    let mut head = Head::default();
    for part in data.chunks(7) {
        if head.take(part).is_some() {
            return;
        }
    }
    for what in [TooMuch::Line, TooMuch::Head, TooMuch::Fields] {
        assert!(!Excess { what, seen: data.to_vec() }.answer().status().is_success());
    }
}
