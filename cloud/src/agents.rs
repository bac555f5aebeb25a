//! The agents' interface: see `bixi_api::agent` for what is said. Who speaks is known by the certificate.
//!
//! Invariants: a certificate belongs to one server, and to none once the server was removed or has shown its next one. An agent sees and
//! changes what belongs to its server: its desired state, its reports, the images it needs, the consoles it was asked
//! for. Joining needs no certificate but a token, which is good once.

use crate::images::Images;
use crate::model::View;
use crate::plan::tenancy;
use crate::refusal::Refusal;
use crate::service::{Control, now};
use crate::tls::{Authority, Peer, Signed, hex};
use aws_lc_rs::digest::{SHA256, digest};
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Extension, FromRequestParts, Path, Query, Request, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bixi_api::agent::{
    JoinAnswer, JoinRequest, RenewAnswer, RenewRequest, Report, STREAM_PROTOCOL, WAIT_LIMIT,
};
use hyper::upgrade::OnUpgrade;
use std::sync::Arc;
use std::time::Duration;

/// The most bytes of a report: some thousands of instances.
const REPORT_LIMIT: usize = 16 << 20;

/// How long a request may take, its body and the wait for news included.
const PATIENCE: Duration = Duration::from_secs(WAIT_LIMIT + 30);

/// What handlers use.
#[derive(Debug, Clone)]
pub struct Agents {
    /// The control plane.
    pub control: Arc<Control>,
    /// The authority.
    pub authority: Arc<Authority>,
    /// The files of images.
    pub images: Images,
}

impl Agents {
    /// What the HTTPS listener serves.
    pub fn router(self) -> Router {
        Router::new()
            .route("/agent/v1/join", post(join))
            .route("/agent/v1/renew", post(renew))
            .route("/agent/v1/desired", get(desired))
            .route("/agent/v1/report", post(report))
            .route("/agent/v1/images/{id}", get(image))
            .route("/agent/v1/streams/{id}", post(stream))
            .layer(DefaultBodyLimit::max(REPORT_LIMIT))
            .layer(from_fn(in_time))
            .with_state(self)
    }
}

/// Whoever sends a body without end has an end all the same.
async fn in_time(request: Request, next: Next) -> Response {
    let late = |_| {
        let message = "The request was not whole in time.";
        Refusal::new(StatusCode::REQUEST_TIMEOUT, "TooSlow", message, "").into_response()
    };
    tokio::time::timeout(PATIENCE, next.run(request)).await.unwrap_or_else(late)
}

/// The server that speaks.
struct Server(String);

impl FromRequestParts<Agents> for Server {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, agents: &Agents) -> Result<Self, Refusal> {
        let peer = parts.extensions.get::<Peer>();
        let shown = peer.and_then(|peer| peer.certificate_sha256.as_deref());
        let unknown = |message| {
            let hint = "Join the cloud again with `bixi-agent join TOKEN`.";
            Refusal::new(StatusCode::UNAUTHORIZED, "UnknownServer", message, hint)
        };
        if peer.and_then(|peer| peer.certificate_ends).is_some_and(|ends| now() >= ends) {
            let message = "The agent's certificate has ended.";
            let hint = "Make a token by `bixi server token`, remove the agent's identity from its state and join \
                        again by `bixi-agent join TOKEN`.";
            return Err(Refusal::new(
                StatusCode::UNAUTHORIZED,
                "CertificateExpired",
                message,
                hint,
            ));
        }
        let shown = shown.ok_or_else(|| unknown("The agent has shown no certificate."))?;
        let found = agents.control.view().servers.iter().find_map(|server| {
            let new = server.next_certificate_sha256.as_deref() == Some(shown);
            (new || server.certificate_sha256 == shown).then(|| (server.id.clone(), new))
        });
        let (id, new) =
            found.ok_or_else(|| unknown("The certificate is of no server of this cloud."))?;
        if new {
            let plan = |view: &View| Ok((tenancy::has_shown(view, &id, shown)?, ()));
            agents.control.change(|view, _, _| plan(view)).await.map_err(Refusal::from)?;
        }
        Ok(Self(id))
    }
}

async fn join(
    State(agents): State<Agents>,
    request: Result<Json<JoinRequest>, JsonRejection>,
) -> Result<Json<JoinAnswer>, Refusal> {
    let Json(request) = request?;
    let secret = hex(digest(&SHA256, request.secret.as_bytes()).as_ref());
    // Who has no token gets nothing signed: the ticket is looked at before, and used up by the change.
    if agents.control.view().tickets.get(&secret).is_none() {
        let message = "The join token is unknown, was used already or is too old.";
        let hint = "Make a new one with `bixi server token`.";
        return Err(Refusal::new(StatusCode::UNAUTHORIZED, "BadToken", message, hint));
    }
    let server = crate::model::ids::Source::id(&mut crate::model::ids::Kernel, "s");
    let signed = sign(&agents, &request.csr_pem, &server)?;
    agents
        .control
        .change(|view, _, context| {
            let sum = signed.sha256.clone();
            let draft = tenancy::join(view, &secret, &server, &request.name, sum, context)?;
            Ok((draft, ()))
        })
        .await
        .map_err(Refusal::from)?;
    tracing::info!(server, name = request.name, "a server joined");
    let ca_pem = agents.authority.pem().to_owned();
    let validity = Some(signed.validity);
    Ok(Json(JoinAnswer { server_id: server, certificate_pem: signed.pem, ca_pem, validity }))
}

fn sign(agents: &Agents, csr_pem: &str, server: &str) -> Result<Signed, Refusal> {
    let signed = agents.authority.sign(csr_pem, server);
    signed.map_err(|error| Refusal::invalid(format!("The certificate request: {error}.")))
}

async fn renew(
    State(agents): State<Agents>,
    Server(server): Server,
    request: Result<Json<RenewRequest>, JsonRejection>,
) -> Result<Json<RenewAnswer>, Refusal> {
    let Json(request) = request?;
    let Signed { pem: certificate_pem, sha256, validity } =
        sign(&agents, &request.csr_pem, &server)?;
    let plan = |view: &View| Ok((tenancy::renew(view, &server, sha256.clone())?, ()));
    agents.control.change(|view, _, _| plan(view)).await.map_err(Refusal::from)?;
    tracing::info!(server, "a server was given a new certificate");
    Ok(Json(RenewAnswer { certificate_pem, validity }))
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Poll {
    #[serde(default)]
    after: u64,
    #[serde(default)]
    wait: u64,
}

async fn desired(
    State(agents): State<Agents>,
    Server(server): Server,
    poll: Result<Query<Poll>, QueryRejection>,
) -> Result<Response, Refusal> {
    let Query(poll) = poll?;
    agents.control.live().lives(&server);
    let wait = Duration::from_secs(poll.wait.min(WAIT_LIMIT));
    match agents.control.desired_after(&server, poll.after, wait).await {
        Some(desired) => Ok(Json(desired).into_response()),
        None => Ok(StatusCode::NO_CONTENT.into_response()),
    }
}

async fn report(
    State(agents): State<Agents>,
    Server(server): Server,
    report: Result<Json<Report>, JsonRejection>,
) -> Result<Json<()>, Refusal> {
    let Json(report) = report?;
    if let Some(refused) = &report.refused {
        tracing::warn!(server, %refused, "an agent does not understand what it is to do");
    }
    agents.control.report(&server, report).await?;
    Ok(Json(()))
}

async fn image(
    State(agents): State<Agents>,
    Server(server): Server,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    // Only files that the server's instances begin with: their names come from the view, never from the request.
    let wanted = agents.control.desired(&server);
    let disks =
        wanted.instances.iter().flat_map(|i| i.disks.iter().filter_map(|d| d.image.as_ref()));
    let boots = wanted.instances.iter().flat_map(|instance| {
        let bixi_api::agent::BootSource::Kernel { kernel, initrd, .. } = &instance.source;
        std::iter::once(kernel).chain(initrd)
    });
    let file = disks.chain(boots).find(|file| file.id == id);
    let file = file.ok_or_else(|| Refusal::not_found("image's file", &id))?;
    agents.images.serve(&file.id, &file.sha256).await.map_err(|error| {
        let message = format!("The file {id} cannot be read: {error}.");
        let hint = "Look at the cloud's state directory.";
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "ImageUnreadable", message, hint)
    })
}

async fn stream(
    State(agents): State<Agents>,
    Server(server): Server,
    Path(id): Path<String>,
    upgrade: Option<Extension<OnUpgrade>>,
) -> Result<Response, Refusal> {
    let Some(Extension(upgrade)) = upgrade else {
        return Err(Refusal::invalid(format!("Ask for an upgrade to {STREAM_PROTOCOL}.")));
    };
    let waiting = {
        let mut live = agents.control.live();
        let wanted = live.is_wanted(&id, &server);
        wanted.then(|| live.take_stream(&id)).flatten()
    };
    let waiting = waiting.ok_or_else(|| Refusal::not_found("stream", &id))?;
    agents.control.wake();
    tokio::spawn(async move {
        if let Ok(upgraded) = upgrade.await {
            // Nobody may wait any more: then the stream is closed.
            let _ = waiting.taker.send(upgraded);
        }
    });
    Ok(switched())
}

/// The answer after which a connection is a stream.
pub fn switched() -> Response {
    let headers = [(header::CONNECTION, "upgrade"), (header::UPGRADE, STREAM_PROTOCOL)];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}
