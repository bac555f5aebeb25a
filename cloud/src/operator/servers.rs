//! The cloud itself, its servers, and where the scheduler would place something.

use super::{Answer, Operator, describe};
use crate::model::ids::{Kernel, Source};
use crate::plan::create::candidates;
use crate::plan::schedule::{Demand, decide};
use crate::plan::tenancy;
use crate::refusal::Refusal;
use crate::tls::hex;
use aws_lc_rs::digest::{SHA256, digest};
use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use bixi_api::agent::JoinToken;
use bixi_api::operator::{
    CloudDescription, JoinTokenDescription, ScheduleAnswer, ScheduleQuestion, ScheduleVerdict,
    ServerChange, ServerDescription,
};

/// The cloud as it is now.
#[utoipa::path(get, path = "/v1/cloud", responses((status = 200, body = CloudDescription)))]
pub(super) async fn cloud(State(operator): State<Operator>) -> Answer<CloudDescription> {
    let (place, view) = (operator.control.place(), operator.control.view());
    let alive = operator.control.live().alive();
    Ok(Json(CloudDescription {
        release: bixi_api::RELEASE.to_owned(),
        pid: std::process::id(),
        region: place.region.clone(),
        zone: place.zone.clone(),
        revision: view.revision,
        servers: view.servers.len(),
        servers_alive: view.servers.iter().filter(|server| alive.contains(&server.id)).count(),
        instances: view.instances.len(),
        tasks: view.active.len(),
    }))
}

/// All servers.
#[utoipa::path(get, path = "/v1/servers", responses((status = 200, body = Vec<ServerDescription>)))]
pub(super) async fn list(State(operator): State<Operator>) -> Answer<Vec<ServerDescription>> {
    let (view, live) = (operator.control.view(), operator.control.live());
    let servers = view.servers.iter().map(|server| describe::server(&view, &live, server));
    Ok(Json(servers.collect()))
}

/// One server.
#[utoipa::path(get, path = "/v1/servers/{id}", responses((status = 200, body = ServerDescription)))]
pub(super) async fn show(
    State(operator): State<Operator>,
    Path(id): Path<String>,
) -> Answer<ServerDescription> {
    let (view, live) = (operator.control.view(), operator.control.live());
    Ok(Json(describe::server(&view, &live, tenancy::server(&view, &id)?)))
}

/// Lets new instances come to a server, or keeps them away.
#[utoipa::path(patch, path = "/v1/servers/{id}", request_body = ServerChange,
    responses((status = 200, body = ServerDescription)))]
pub(super) async fn change(
    State(operator): State<Operator>,
    Path(id): Path<String>,
    change: Result<Json<ServerChange>, JsonRejection>,
) -> Answer<ServerDescription> {
    let schedulable = change?.0.schedulable;
    let plan = operator
        .control
        .change(|view, _, _| Ok((tenancy::set_schedulable(view, &id, schedulable)?, ())));
    plan.await.map_err(Refusal::from)?;
    show(State(operator), Path(id)).await
}

/// Removes a server where nothing is placed.
#[utoipa::path(delete, path = "/v1/servers/{id}", responses((status = 200)))]
pub(super) async fn remove(State(operator): State<Operator>, Path(id): Path<String>) -> Answer<()> {
    let plan = operator
        .control
        .change(|view, _, context| Ok((tenancy::remove_server(view, &id, context)?, ())));
    Ok(Json(plan.await.map_err(Refusal::from)?))
}

/// A token by which one server can join.
#[utoipa::path(post, path = "/v1/join-tokens", responses((status = 200, body = JoinTokenDescription)))]
pub(super) async fn join_token(State(operator): State<Operator>) -> Answer<JoinTokenDescription> {
    let secret = Kernel.secret(32);
    let sum = hex(digest(&SHA256, secret.as_bytes()).as_ref());
    let plan =
        operator.control.change(|_, _, context| Ok(tenancy::new_ticket(sum.clone(), context)));
    let ticket = plan.await.map_err(Refusal::from)?;
    let (ca_sha256, cloud) = (operator.authority.sha256(), operator.address.clone());
    let token = JoinToken { secret, ca_sha256, cloud }.to_string();
    Ok(Json(JoinTokenDescription { token, expires: ticket.expires }))
}

/// Where something would be placed, and why not elsewhere.
#[utoipa::path(post, path = "/v1/schedule", request_body = ScheduleQuestion,
    responses((status = 200, body = ScheduleAnswer)))]
pub(super) async fn schedule(
    State(operator): State<Operator>,
    question: Result<Json<ScheduleQuestion>, JsonRejection>,
) -> Answer<ScheduleAnswer> {
    let Json(question) = question?;
    let demand = Demand {
        vcpus: question.vcpus,
        memory_mib: question.memory_mib,
        disk: question.disk_gib.saturating_mul(1 << 30),
        architecture: question.architecture,
    };
    let alive = operator.control.live().alive();
    let decision = decide(&demand, &candidates(&operator.control.view(), &alive, ""));
    let verdict = |verdict: crate::plan::schedule::Verdict| ScheduleVerdict {
        server: verdict.server,
        score: verdict.score.ok(),
        reason: verdict.score.err().map(|reason| reason.to_string()),
    };
    let servers = decision.verdicts.into_iter().map(verdict).collect();
    Ok(Json(ScheduleAnswer { chosen: decision.chosen, servers }))
}
