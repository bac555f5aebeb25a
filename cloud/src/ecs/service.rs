//! The API over HTTP: bodies within limits, the clock, the request's id, and one answer for each request.
//!
//! A handler owns nothing: what was seen of nonces is behind a lock that is held for a look-up, the model belongs to the
//! control plane. HTTP and HTTPS listeners serve the same router.

use super::dispatch::{Caller, Cloud, Place, Reply, dispatch, now};
use super::refusal::Refusal;
use super::wire::authenticate::{AccessKey, authenticate, format};
use super::wire::nonces::{Nonces, Stale};
use super::wire::reply::Format;
use super::wire::request::{self, Decoded, Incoming, MAX_BODY};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{CONNECTION, CONTENT_TYPE, HOST};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::Response;
use axum::routing::any;
use http_body_util::BodyExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A body above the limit is still read, up to here, or its sender would see a reset connection and not the answer.
const DRAIN: usize = 32 << 20;
/// How long a body may take to arrive.
const BODY_TIME: Duration = Duration::from_secs(30);

/// The API.
pub struct Api {
    cloud: Arc<dyn Cloud>,
    place: Place,
    nonces: Mutex<Nonces>,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").field("place", &self.place).finish_non_exhaustive()
    }
}

impl Api {
    /// The API of a cloud; requests signed before now are refused.
    pub fn new(cloud: Arc<dyn Cloud>, place: Place) -> Self {
        Self { cloud, place, nonces: Mutex::new(Nonces::new(seconds())) }
    }

    /// What the listeners serve: the API is at `/`.
    pub fn router(self) -> Router {
        Router::new().route("/", any(handle)).with_state(Arc::new(self))
    }

    fn key(&self, id: &str) -> Option<AccessKey> {
        let mut found = None;
        self.cloud.look(&mut |world| {
            found = world.view.access_keys.get(id).map(|key| AccessKey {
                tenant: key.tenant.clone(),
                secret: key.secret.clone(),
                active: key.enabled,
            });
        });
        found
    }

    fn admit(&self, key: &str, nonce: [u8; 16], signed: i64, now: i64) -> Result<(), Stale> {
        // A panic elsewhere leaves the memory of nonces whole: every change of it is one insertion.
        let mut nonces = self.nonces.lock().unwrap_or_else(PoisonError::into_inner);
        nonces.admit(key, nonce, signed, now)
    }
}

fn seconds() -> i64 {
    i64::try_from(now() / 1000).unwrap_or(i64::MAX)
}

async fn handle(State(api): State<Arc<Api>>, request: Request) -> Response {
    let id = request_id();
    let (parts, body) = request.into_parts();
    let host = host(&parts.headers);
    let body = collect(body).await;
    let closing = body.is_err();
    let incoming = Incoming {
        method: parts.method.as_str(),
        path: parts.uri.path(),
        query: parts.uri.query().unwrap_or(""),
        headers: &parts.headers,
        body: body.as_deref().unwrap_or(&[]),
    };
    let decoded = Decoded::new(&incoming);
    let form = format(&incoming, decoded.as_ref().ok());
    let caller = |tenant| Caller { tenant, host: host.clone(), place: api.place.clone() };
    let answered = async {
        if let Err(refusal) = &body {
            return Err(refusal.clone());
        }
        let now = seconds();
        let admit = |key: &str, nonce, signed| api.admit(key, nonce, signed, now);
        let call = authenticate(&incoming, decoded?, |key| api.key(key), admit, now)?;
        let (action, caller) = (call.action.name, caller(call.tenant.clone()));
        tracing::debug!(request_id = id, tenant = caller.tenant, action, "called");
        let (reply, ignored) = dispatch(api.cloud.as_ref(), &caller, call).await?;
        Ok((action, reply, ignored))
    };
    let mut response = match answered.await {
        Ok((action, reply, ignored)) => granted(form, action, &id, reply, &ignored),
        Err(refusal) => refused(form, &id, &host, &refusal),
    };
    if closing {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// The refusal of a request of which only the head was seen, and not all of it.
pub fn refuse(query: &str, headers: &HeaderMap, refusal: &Refusal) -> Response {
    let query = query.rsplit_once('&').map_or(query, |(whole, _)| whole);
    let incoming = Incoming { method: "GET", path: "/", query, headers, body: &[] };
    let decoded = Decoded::new(&incoming);
    let form = format(&incoming, decoded.as_ref().ok());
    refused(form, &request_id(), &host(headers), refusal)
}

fn granted(form: Format, action: &str, id: &str, reply: Reply, ignored: &[String]) -> Response {
    let mut response = Response::new(Body::from(form.reply(action, id, reply)));
    headers(&mut response, form, id);
    // Names of parameters come from outside: what cannot stand in a header is left out of it.
    if let Ok(names) = HeaderValue::from_str(&ignored.join(","))
        && !ignored.is_empty()
    {
        response.headers_mut().insert("x-bixi-ignored-parameters", names);
    }
    response
}

fn refused(form: Format, id: &str, host: &str, refusal: &Refusal) -> Response {
    tracing::debug!(request_id = id, code = %refusal.code, "refused");
    let mut response = Response::new(Body::from(form.refusal(id, host, refusal)));
    *response.status_mut() =
        StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    headers(&mut response, form, id);
    response
}

fn headers(response: &mut Response, form: Format, id: &str) {
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(form.content_type()));
    if let Ok(id) = HeaderValue::from_str(id) {
        headers.insert("x-acs-request-id", id);
    }
}

/// The whole body, or the refusal of one that is too large, too slow or broken.
async fn collect(body: Body) -> Result<Vec<u8>, Refusal> {
    let late = |_| Refusal::new(408, "RequestTimeout", "The request's body did not arrive.", "");
    tokio::time::timeout(BODY_TIME, read(body)).await.map_err(late)?
}

async fn read(mut body: Body) -> Result<Vec<u8>, Refusal> {
    let (mut kept, mut seen) = (Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Refusal::bad("InvalidRequest", "The body is broken."))?;
        let Ok(data) = frame.into_data() else { continue };
        seen += data.len();
        if seen > DRAIN {
            break;
        }
        if seen <= MAX_BODY {
            kept.extend_from_slice(&data);
        } else {
            kept = Vec::new();
        }
    }
    if seen > MAX_BODY { Err(request::too_large()) } else { Ok(kept) }
}

/// Where the request was sent, as its sender names it.
fn host(headers: &HeaderMap) -> String {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or("");
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '[' | ']');
    if !host.is_empty() && host.len() <= 255 && host.chars().all(allowed) {
        host.to_owned()
    } else {
        "bixi".to_owned()
    }
}

/// A random id in the form of ECS's.
fn request_id() -> String {
    let mut bytes = [0; 16];
    // Without randomness the id is all zero: it names a request in the log and guards nothing.
    let _ = getrandom::fill(&mut bytes);
    let number = u128::from_be_bytes(bytes);
    format!(
        "{:08X}-{:04X}-{:04X}-{:04X}-{:012X}",
        number >> 96,
        (number >> 80) & 0xffff,
        (number >> 64) & 0xffff,
        (number >> 48) & 0xffff,
        number & 0xffff_ffff_ffff
    )
}
