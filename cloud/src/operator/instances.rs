//! Instances of all tenants, what is asked of them, their consoles and tasks.

use super::{Answer, Operator, describe};
use crate::agents::switched;
use crate::model::TaskKind;
use crate::model::ids::{Kernel, Source};
use crate::plan::power;
use crate::refusal::Refusal;
use crate::service::{Control, Waiting};
use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Extension, Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use bixi_api::agent::STREAM_PROTOCOL;
use bixi_api::operator::{InstanceDescription, LedgerDescription, PowerRequest, TaskDescription};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use std::time::Duration;
use tokio::sync::oneshot;

/// How long a server may take to open a console.
const CONSOLE_PATIENCE: Duration = Duration::from_secs(15);

/// All instances.
#[utoipa::path(get, path = "/v1/instances", responses((status = 200, body = Vec<InstanceDescription>)))]
pub(super) async fn list(State(operator): State<Operator>) -> Answer<Vec<InstanceDescription>> {
    let (view, live) = (operator.control.view(), operator.control.live());
    let instances = view.instances.iter();
    Ok(Json(instances.map(|instance| describe::instance(&view, &live, instance)).collect()))
}

/// One instance.
#[utoipa::path(get, path = "/v1/instances/{id}", responses((status = 200, body = InstanceDescription)))]
pub(super) async fn show(
    State(operator): State<Operator>,
    Path(id): Path<String>,
) -> Answer<InstanceDescription> {
    let (view, live) = (operator.control.view(), operator.control.live());
    Ok(Json(describe::instance(&view, &live, power::instance(&view, None, &id)?)))
}

/// Starts, stops, reboots or deletes an instance.
#[utoipa::path(post, path = "/v1/instances/{id}/{action}", request_body = PowerRequest,
    responses((status = 200, body = TaskDescription)))]
pub(super) async fn power(
    State(operator): State<Operator>,
    Path((id, action)): Path<(String, String)>,
    request: Result<Json<PowerRequest>, JsonRejection>,
) -> Answer<TaskDescription> {
    let kind = match action.as_str() {
        "start" => TaskKind::Start,
        "stop" => TaskKind::Stop,
        "reboot" => TaskKind::Reboot,
        "delete" => TaskKind::Delete,
        other => return Err(Refusal::not_found("action", other)),
    };
    let force = request?.0.force;
    let plan = operator
        .control
        .change(|view, _, context| power::request(view, None, &id, kind, force, context));
    let task = plan.await.map_err(Refusal::from)?;
    let (view, live) = (operator.control.view(), operator.control.live());
    Ok(Json(describe::task(&view, &live, &task)))
}

/// The breaks that an instance has felt.
#[utoipa::path(get, path = "/v1/instances/{id}/ledger",
    responses((status = 200, body = Vec<LedgerDescription>)))]
pub(super) async fn ledger(
    State(operator): State<Operator>,
    Path(id): Path<String>,
) -> Answer<Vec<LedgerDescription>> {
    let view = operator.control.view();
    let prefix = format!("{id}/");
    let entries = view.disturbances.under(&prefix);
    let entries: Vec<LedgerDescription> =
        entries.map(|entry| describe::disturbance(entry)).collect();
    // A deleted instance's ledger stays readable.
    if entries.is_empty() {
        power::instance(&view, None, &id)?;
    }
    Ok(Json(entries))
}

/// All tasks, ended ones too for a while.
#[utoipa::path(get, path = "/v1/tasks", responses((status = 200, body = Vec<TaskDescription>)))]
pub(super) async fn tasks(State(operator): State<Operator>) -> Answer<Vec<TaskDescription>> {
    let (view, live) = (operator.control.view(), operator.control.live());
    Ok(Json(view.tasks.iter().map(|task| describe::task(&view, &live, task)).collect()))
}

/// One task.
#[utoipa::path(get, path = "/v1/tasks/{id}", responses((status = 200, body = TaskDescription)))]
pub(super) async fn task(
    State(operator): State<Operator>,
    Path(id): Path<String>,
) -> Answer<TaskDescription> {
    let (view, live) = (operator.control.view(), operator.control.live());
    let task = view.tasks.get(&id).ok_or_else(|| Refusal::not_found("task", &id))?;
    Ok(Json(describe::task(&view, &live, task)))
}

/// Wants a task to end.
#[utoipa::path(delete, path = "/v1/tasks/{id}", responses((status = 200, body = TaskDescription)))]
pub(super) async fn cancel(
    State(operator): State<Operator>,
    Path(id): Path<String>,
) -> Answer<TaskDescription> {
    let plan = operator.control.change(|view, _, _| Ok((power::cancel(view, None, &id)?, ())));
    plan.await.map_err(Refusal::from)?;
    task(State(operator), Path(id)).await
}

/// The console of an instance.
#[utoipa::path(post, path = "/v1/instances/{id}/console", responses((status = 101)))]
pub(super) async fn console(
    State(operator): State<Operator>,
    Path(id): Path<String>,
    upgrade: Option<Extension<OnUpgrade>>,
) -> Result<Response, Refusal> {
    let Some(Extension(upgrade)) = upgrade else {
        return Err(Refusal::invalid(format!("Ask for an upgrade to {STREAM_PROTOCOL}.")));
    };
    let server = open_console(&operator.control, &id).await?;
    tokio::spawn(async move {
        if let Ok(client) = upgrade.await {
            let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
            // Either side may go at any time.
            let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        }
    });
    Ok(switched())
}

/// Asks the instance's server for its console and waits for the stream.
async fn open_console(control: &Control, instance: &str) -> Result<Upgraded, Refusal> {
    let server = power::instance(&control.view(), None, instance)?.placement.server.clone();
    let id = Kernel.id("c");
    let (taker, taken) = oneshot::channel();
    let waiting = Waiting { server, instance: instance.to_owned(), taker };
    control.live().want_stream(id.clone(), waiting);
    let unwanted = Unwanted { control, id };
    control.wake();
    let opened = tokio::time::timeout(CONSOLE_PATIENCE, taken).await;
    drop(unwanted);
    match opened {
        Ok(Ok(stream)) => Ok(stream),
        _ => Err(Refusal::new(
            StatusCode::GATEWAY_TIMEOUT,
            "NoConsole",
            format!("The server of instance {instance} has not opened its console."),
            "Does the instance run, and is its server's agent alive?",
        )),
    }
}

/// Takes the wish for a stream back, also when the request was given up.
struct Unwanted<'a> {
    control: &'a Control,
    id: String,
}

impl Drop for Unwanted<'_> {
    fn drop(&mut self) {
        if self.control.live().take_stream(&self.id).is_some() {
            self.control.wake();
        }
    }
}
