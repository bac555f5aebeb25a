//! The control socket's handlers: they check the policy, enqueue to the owner and wait for its answer.

use super::policy::{Policy, Request, Verdict};
use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use bixi_api::compute::{VmDescription, VmStatistics};
use bixi_offload::control::{Json, Refusal};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// Requests that wait for the owner; more are refused.
pub(super) const QUEUE: usize = 32;

/// What the owner answers.
#[derive(Debug)]
pub enum Answer {
    /// The VM as it is after the request.
    Description(Box<VmDescription>),
    /// Its counters.
    Statistics(Box<VmStatistics>),
}

/// Where an answer goes.
pub type Reply = oneshot::Sender<Result<Answer, Refusal>>;

/// A request on its way to the owner.
#[derive(Debug)]
pub struct Asked {
    /// What is asked.
    pub request: Request,
    /// Where the answer goes.
    pub reply: Reply,
}

#[derive(Debug, Clone)]
struct Handlers {
    policy: Arc<Policy>,
    owner: mpsc::Sender<Asked>,
}

/// The router of a VM whose owner listens on the other end of `owner`.
pub(super) fn router(policy: Arc<Policy>, owner: mpsc::Sender<Asked>) -> Router {
    let act = |request| {
        put(move |State(handlers): State<Handlers>| async move { handlers.ask(request).await })
    };
    let look = |request| {
        get(move |State(handlers): State<Handlers>| async move { handlers.ask(request).await })
    };
    Router::new()
        .route("/v1/vm", look(Request::Describe))
        .route("/v1/vm/statistics", look(Request::Statistics))
        .route("/v1/vm/start", act(Request::Start))
        .route("/v1/vm/pause", act(Request::Pause))
        .route("/v1/vm/resume", act(Request::Resume))
        .route("/v1/vm/power-button", act(Request::PowerButton))
        .route("/v1/vm/reset", act(Request::Reset))
        .route("/v1/vm/stop", act(Request::Stop))
        .with_state(Handlers { policy, owner })
}

impl Handlers {
    async fn ask(&self, request: Request) -> Result<Response, Refusal> {
        let request = match self.policy.check(request)? {
            // The owner would do nothing but describe.
            Verdict::Nothing => Request::Describe,
            _ => request,
        };
        let (reply, answer) = oneshot::channel();
        let ended = || Refusal::conflict("WrongState", "the VM has ended.", "");
        self.owner.try_send(Asked { request, reply }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                Refusal::conflict("Busy", "too many requests wait already.", "Ask again later.")
            }
            mpsc::error::TrySendError::Closed(_) => ended(),
        })?;
        match answer.await.map_err(|_| ended())?? {
            Answer::Description(description) => Ok(Json(*description).into_response()),
            Answer::Statistics(statistics) => Ok(Json(*statistics).into_response()),
        }
    }
}
