//! What happened: a list, or a stream of server-sent events that goes on.

use super::{Operator, describe};
use crate::refusal::Refusal;
use crate::service::Control;
use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bixi_api::operator::EventDescription;
use http_body_util::StreamBody;
use hyper::body::Frame;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc;

/// The most events of one answer; whoever wants more asks for those after the last one.
const LIMIT: usize = 1000;
/// How often a silent stream shows that it lives.
const HEARTBEAT: Duration = Duration::from_secs(15);

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    /// Only events after this one.
    #[serde(default)]
    after: String,
    /// Whether the answer goes on with what happens next.
    #[serde(default)]
    follow: bool,
}

/// What happened.
#[utoipa::path(get, path = "/v1/events",
    params(("after" = Option<String>, Query, description = "Only events after this one"),
           ("follow" = Option<bool>, Query, description = "Go on with what happens next, as server-sent events")),
    responses((status = 200, body = Vec<EventDescription>)))]
pub(super) async fn events(
    State(operator): State<Operator>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Response, Refusal> {
    let Query(wanted) = wanted?;
    if !wanted.follow {
        return Ok(Json(after(&operator.control, &wanted.after)).into_response());
    }
    let (sender, receiver) = mpsc::channel(16);
    tokio::spawn(follow(operator.control, wanted.after, sender));
    let headers =
        [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, Body::new(StreamBody::new(Frames(receiver)))).into_response())
}

fn after(control: &Control, after: &str) -> Vec<EventDescription> {
    let view = control.view();
    let later = view.events_after(after);
    later.take(LIMIT).map(|event| describe::event(event)).collect()
}

/// Sends events in the order in which they were committed, until nobody reads any more.
async fn follow(control: Arc<Control>, mut last: String, sender: mpsc::Sender<Bytes>) {
    let mut revisions = control.revisions();
    loop {
        revisions.mark_unchanged();
        for event in after(&control, &last) {
            let text = serde_json::to_string(&event).unwrap_or_default();
            let frame = format!("id: {}\nevent: {}\ndata: {text}\n\n", event.id, event.kind);
            last = event.id;
            if sender.send(frame.into()).await.is_err() {
                return;
            }
        }
        let silent = tokio::select! {
            changed = revisions.changed() => match changed {
                Ok(()) => false,
                Err(_) => return,
            },
            () = sender.closed() => return,
            () = tokio::time::sleep(HEARTBEAT) => true,
        };
        if silent && sender.send(Bytes::from_static(b": alive\n\n")).await.is_err() {
            return;
        }
    }
}

struct Frames(mpsc::Receiver<Bytes>);

impl futures_core::Stream for Frames {
    type Item = Result<Frame<Bytes>, Infallible>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().0.poll_recv(context).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}
