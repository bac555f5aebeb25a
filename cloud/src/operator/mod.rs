//! The operator's interface: see `bixi_api::operator` for what is said.
//!
//! Invariants: nothing is read or changed without the token, which is compared in constant time; a secret is shown once,
//! when it is made. The OpenAPI document is made of these handlers and is checked in beside them.

mod describe;
mod document;
mod events;
mod images;
mod instances;
mod servers;
mod tenants;

pub use document::document;

use crate::images::Images;
use crate::refusal::Refusal;
use crate::service::Control;
use crate::tls::Authority;
use aws_lc_rs::constant_time::verify_slices_are_equal;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// What handlers use.
#[derive(Debug, Clone)]
pub struct Operator {
    /// The control plane.
    pub control: Arc<Control>,
    /// The authority.
    pub authority: Arc<Authority>,
    /// The files of images.
    pub images: Images,
    /// Where agents find the cloud: `HOST:PORT` of join tokens.
    pub address: String,
    /// Counts uploads, so that two of one file do not meet.
    pub uploads: Arc<AtomicU64>,
    /// What operators show.
    pub token: Arc<str>,
}

type Answer<T> = Result<axum::Json<T>, Refusal>;

impl Operator {
    /// What the HTTPS listener serves.
    pub fn router(self) -> Router {
        Router::new()
            .route("/v1/cloud", get(servers::cloud))
            .route("/v1/servers", get(servers::list))
            .route(
                "/v1/servers/{id}",
                get(servers::show).patch(servers::change).delete(servers::remove),
            )
            .route("/v1/join-tokens", post(servers::join_token))
            .route("/v1/schedule", post(servers::schedule))
            .route("/v1/tenants", get(tenants::list).post(tenants::create))
            .route(
                "/v1/tenants/{id}",
                axum::routing::patch(tenants::change).delete(tenants::remove),
            )
            .route("/v1/tenants/{id}/access-keys", get(tenants::keys).post(tenants::create_key))
            .route("/v1/access-keys/{id}", delete(tenants::remove_key))
            .route("/v1/images", get(images::list).post(images::create))
            .route("/v1/images/{id}", delete(images::remove))
            .route("/v1/images/{id}/{part}", put(images::put))
            .route("/v1/instances", get(instances::list))
            .route("/v1/instances/{id}", get(instances::show))
            .route("/v1/instances/{id}/ledger", get(instances::ledger))
            .route("/v1/instances/{id}/console", post(instances::console))
            .route("/v1/instances/{id}/{action}", post(instances::power))
            .route("/v1/tasks", get(instances::tasks))
            .route("/v1/tasks/{id}", get(instances::task).delete(instances::cancel))
            .route("/v1/events", get(events::events))
            .layer(from_fn_with_state(self.clone(), allow))
            .route("/v1/openapi.json", get(openapi))
            .with_state(self)
    }
}

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], document()).into_response()
}

/// Lets operators through.
async fn allow(State(operator): State<Operator>, request: Request, next: Next) -> Response {
    let shown = request.headers().get(header::AUTHORIZATION).map(|value| value.as_bytes());
    let shown = shown.and_then(|value| value.strip_prefix(b"Bearer "));
    let good = shown
        .is_some_and(|shown| verify_slices_are_equal(shown, operator.token.as_bytes()).is_ok());
    if good {
        return next.run(request).await;
    }
    let (message, hint) = (
        "This needs the operator's token.",
        "Send `authorization: Bearer TOKEN`; the token is in operator.token of the cloud's state directory.",
    );
    Refusal::new(StatusCode::UNAUTHORIZED, "NotAllowed", message, hint).into_response()
}
