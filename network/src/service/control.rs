//! What is said on the control socket (the table is in `bixi_api::network`). Handlers check that the process still takes
//! changes and enqueue; all else is the driver's.

use super::driver::{Order, Orders};
use super::policy::Policy;
use super::ports::Reply;
use axum::Router;
use axum::extract::{Path, State};
use axum::routing::get;
use bixi_api::network::{
    MetadataDescription, NetworkDescription, PortAdd, PortDescription, PortMetadata, SegmentConfig,
    SegmentDescription,
};
use bixi_offload::control::{Json, Refusal};
use std::sync::Arc;
use tokio::sync::oneshot;

/// What handlers need.
#[derive(Debug, Clone)]
pub struct Control {
    /// The driver.
    pub orders: Orders,
    /// Whether a change is allowed.
    pub policy: Arc<Policy>,
}

type Answer<T> = Result<Json<T>, Refusal>;

/// The control socket's router.
pub fn router(control: Control) -> Router {
    Router::new()
        .route("/v1/network", get(describe))
        .route("/v1/ports", get(ports))
        .route("/v1/ports/{id}", get(port).put(put_port).delete(delete_port))
        .route("/v1/ports/{id}/metadata", get(metadata).put(put_metadata))
        .route("/v1/segments", get(segments))
        .route("/v1/segments/{vni}", get(segment).put(put_segment).delete(delete_segment))
        .with_state(control)
}

impl Control {
    async fn ask<T>(&self, order: impl FnOnce(Reply<T>) -> Order) -> Answer<T> {
        let (reply, answer) = oneshot::channel();
        let ended = || Refusal::conflict("Stopping", "the process is ending.", "");
        self.orders.send(order(reply)).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?.map(Json)
    }

    async fn change<T>(&self, order: impl FnOnce(Reply<T>) -> Order) -> Answer<T> {
        self.policy.allow_change()?;
        self.ask(order).await
    }
}

/// A segment's number in a path.
fn number(text: &str) -> Result<u32, Refusal> {
    text.parse().map_err(|_| {
        let shown: String = text.chars().take(32).collect();
        Refusal::bad_request("BadSegment", format!("`{shown}` is no segment's number."), "")
    })
}

async fn describe(State(control): State<Control>) -> Answer<NetworkDescription> {
    control.ask(Order::Describe).await
}

async fn ports(State(control): State<Control>) -> Answer<Vec<PortDescription>> {
    control.ask(Order::Ports).await
}

async fn port(State(control): State<Control>, Path(id): Path<String>) -> Answer<PortDescription> {
    control.ask(|reply| Order::Port(id, reply)).await
}

async fn put_port(
    State(control): State<Control>,
    Path(id): Path<String>,
    Json(add): Json<PortAdd>,
) -> Answer<PortDescription> {
    control.change(|reply| Order::PutPort(id, add, reply)).await
}

async fn delete_port(State(control): State<Control>, Path(id): Path<String>) -> Answer<()> {
    control.change(|reply| Order::DeletePort(id, reply)).await
}

async fn metadata(
    State(control): State<Control>,
    Path(id): Path<String>,
) -> Answer<MetadataDescription> {
    control.ask(|reply| Order::Metadata(id, reply)).await
}

async fn put_metadata(
    State(control): State<Control>,
    Path(id): Path<String>,
    Json(told): Json<PortMetadata>,
) -> Answer<MetadataDescription> {
    control.change(|reply| Order::PutMetadata(id, told, reply)).await
}

async fn segments(State(control): State<Control>) -> Answer<Vec<SegmentDescription>> {
    control.ask(Order::Segments).await
}

async fn segment(
    State(control): State<Control>,
    Path(vni): Path<String>,
) -> Answer<SegmentDescription> {
    let vni = number(&vni)?;
    control.ask(|reply| Order::Segment(vni, reply)).await
}

async fn put_segment(
    State(control): State<Control>,
    Path(vni): Path<String>,
    Json(config): Json<SegmentConfig>,
) -> Answer<SegmentDescription> {
    let vni = number(&vni)?;
    control.change(|reply| Order::PutSegment(vni, config, reply)).await
}

async fn delete_segment(State(control): State<Control>, Path(vni): Path<String>) -> Answer<()> {
    let vni = number(&vni)?;
    control.change(|reply| Order::DeleteSegment(vni, reply)).await
}
