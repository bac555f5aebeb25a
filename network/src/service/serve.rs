//! The process from start to end: `bixi-network serve`.
//!
//! Invariant: when the control socket answers, every port that was promised before is served.

use super::control::{Control, router};
use super::driver::{Driver, Order};
use super::records::{Records, RecordsError};
use super::refusal::describe;
use crate::engine::flow::{FlowTable, QUOTA};
use crate::switch::Switch;
use crate::switch::counters::UnderlayCounters;
use crate::tables::{Table, TableError};
use crate::underlay::{Sockets, Underlay, UnderlayError};
use bixi_api::file::FileSource;
use bixi_offload::card::{Card, CardError, WorkerId};
use bixi_offload::control::{self, ListenError, Listener};
use bixi_offload::worker::WorkerConfig;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// The name under which the flows of what comes from other servers are kept; no port can have it.
pub const UNDERLAY_TABLE: (&str, u64) = ("@underlay", 0);

/// How the process is started.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where what was promised is written down.
    pub state: PathBuf,
    /// The control socket.
    pub control: FileSource,
    /// The tunnel end point, if there is an underlay.
    pub underlay: Option<SocketAddr>,
    /// The processor that the worker stays on; anywhere unless told.
    pub cpu: Option<usize>,
    /// How long the worker polls after its last work before it sleeps.
    pub spin: Duration,
}

/// Why the process cannot start, or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The control socket.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The state directory.
    #[error("{}", describe(.0))]
    Records(#[from] RecordsError),
    /// The underlay.
    #[error("{}", describe(.0))]
    Underlay(#[from] UnderlayError),
    /// A table.
    #[error("{}", describe(.0))]
    Table(#[from] TableError),
    /// The card.
    #[error("{}", describe(.0))]
    Card(#[from] CardError),
    /// The kernel refuses something the process needs.
    #[error("cannot {what}: {source}")]
    System {
        /// What.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A worker was lost.
    #[error(transparent)]
    Worker(#[from] super::driver::WorkerLost),
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> ServeError {
    move |source| ServeError::System { what, source }
}

/// Runs the process until it is told to end.
///
/// # Errors
/// See [`ServeError`].
pub fn serve(settings: &Settings) -> Result<(), ServeError> {
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(system("start a runtime"))?;
    runtime.block_on(run(settings))
}

async fn run(settings: &Settings) -> Result<(), ServeError> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("watch for signals"))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(system("watch for signals"))?;
    let listener = Listener::bind(&settings.control)?;
    let records = Records::open(&settings.state)?;
    if !records.is_in_memory() {
        let state = settings.state.display();
        tracing::warn!(%state, "the state directory is not on tmpfs: flows are written to a disk");
    }
    let model = records.read(settings.underlay)?;
    let counters = settings.underlay.map(|_| Arc::new(UnderlayCounters::default()));
    let mut card = Card::new()?;
    let worker = start_worker(&mut card, settings, counters.clone())?;
    let token_key = records.token_key()?;
    let mut driver = Driver::new(card, worker, records, model, counters, token_key);
    driver.restore();

    let (orders, policy) = (driver.orders(), driver.policy());
    let router = router(Control { orders: orders.clone(), policy });
    let (stop_server, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = tokio::spawn(control::serve(listener, router, async {
        let _ = stopped.await;
    }));
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        tracing::info!("ending");
        let _ = orders.send(Order::Stop).await;
    });
    let (pid, release) = (std::process::id(), bixi_api::RELEASE);
    tracing::info!(pid, release, underlay = ?settings.underlay, "serving ports");
    let ended = driver.run().await;
    drop(stop_server);
    // The server removes its socket's file; a client that does not read its answer is not waited for.
    let _ = tokio::time::timeout(Duration::from_millis(500), server).await;
    Ok(ended?)
}

/// Starts the one worker that owns all ports, with the underlay's sockets if there is one.
fn start_worker(
    card: &mut Card<Switch>,
    settings: &Settings,
    counters: Option<Arc<UnderlayCounters>>,
) -> Result<WorkerId, ServeError> {
    let underlay = match (settings.underlay, counters) {
        (Some(own), Some(counters)) => {
            let (name, epoch) = UNDERLAY_TABLE;
            let path = Table::Flows.path(&settings.state, name, epoch);
            let (flows, torn) = FlowTable::open(&path, QUOTA)?;
            if torn > 0 {
                tracing::warn!(torn, "dropped flows that a killed process left half written");
            }
            Some((Sockets::open(own)?, flows, counters))
        }
        _ => None,
    };
    let config =
        WorkerConfig { name: "switch".to_owned(), core: settings.cpu, spin: settings.spin };
    Ok(card.add_worker(config, move || {
        let underlay =
            underlay.map(|(sockets, flows, counters)| Underlay::new(sockets, flows, counters));
        Ok(Switch::new(underlay))
    })?)
}

/// Each front end needs several descriptors per queue: take as many as the system gives.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}
