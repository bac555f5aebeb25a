//! The driver: the one task that owns a VM's state.
//!
//! ```text
//!   Checked ──Prepared::build──► Built ──► Owner: select the next event, apply it
//!  (described)                                built ──► running ◄──► paused ──► stopped
//! ```
//!
//! Events are requests of the control socket, the doorbell that vCPUs and devices ring, timers of the board, signals, the
//! console's operator, and the end of a pending operation. Applying an event is synchronous. What takes time (calling
//! vCPUs back, bringing devices to rest) is one pending operation at most; while it runs, requests wait, but for those
//! that only look or end the VM, and signals are taken. A reset waits for its devices as long as it takes. The control socket answers from the beginning, also while back ends are waited for.
//!
//! [`run`] is what `main` calls.

pub mod build;
pub mod control;
mod owner;
pub mod policy;
mod report;

use crate::config::Checked;
use crate::console::{Console, ConsoleError};
use crate::seccomp::{self, Kind, SeccompError};
use bixi_api::RELEASE;
use bixi_api::compute::{VmDescription, VmState, VmStatistics};
use bixi_offload::control::{self as socket, ListenError, Listener};
use build::{BuildError, Built, Prepared};
use control::{Answer, Asked};
use owner::Owner;
use policy::{Policy, Request};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, mpsc, oneshot};

/// How long answers under way may take at the end.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Why a VM ended other than by power-off or by order.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// It could not be built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The console cannot be opened.
    #[error(transparent)]
    Console(#[from] ConsoleError),
    /// The control socket cannot be listened on.
    #[error("the control socket: {0}")]
    Control(#[from] ListenError),
    /// The process cannot be confined.
    #[error(transparent)]
    Confine(#[from] SeccompError),
    /// The runtime cannot be used.
    #[error("cannot wait for events")]
    Runtime(#[source] io::Error),
    /// A device may still write to the memory that a reset would load anew.
    #[error("the machine cannot be reset safely")]
    Reset(#[source] crate::device::QuiesceError),
    /// The guest cannot go on.
    #[error("the guest cannot go on: vCPU {index}: {failure}")]
    Guest {
        /// The vCPU.
        index: u8,
        /// What it met.
        failure: crate::vcpu::Failure,
    },
}

/// Signals that end a VM in good order.
pub(crate) struct Signals([Signal; 4]);

impl Signals {
    fn new() -> io::Result<Self> {
        let kinds = [
            SignalKind::terminate(),
            SignalKind::interrupt(),
            SignalKind::hangup(),
            SignalKind::quit(),
        ];
        let [a, b, c, d] = kinds.map(signal);
        Ok(Self([a?, b?, c?, d?]))
    }

    /// Done when one has come.
    pub(crate) async fn recv(&mut self) {
        let [a, b, c, d] = &mut self.0;
        tokio::select! {
            _ = a.recv() => {}
            _ = b.recv() => {}
            _ = c.recv() => {}
            _ = d.recv() => {}
        }
    }
}

/// Builds the VM that `checked` describes and runs it to its end. `confined` is called once the process is confined to its
/// system calls, for threads that are to be too.
///
/// # Errors
/// It cannot be built, or the guest cannot go on.
pub async fn run(
    checked: Checked,
    confined: impl FnOnce() -> io::Result<()>,
) -> Result<(), DriverError> {
    let mut signals = Signals::new().map_err(DriverError::Runtime)?;
    let prepared = Prepared::new(&checked.config)?;
    let console = Console::open(&checked.config.console)?;
    let policy = Arc::new(Policy::new());
    let (owner, requests) = mpsc::channel(control::QUEUE);
    let (end, ended) = oneshot::channel::<()>();
    let server = match &checked.config.control {
        None => None,
        Some(source) => {
            let listener = Listener::bind(source)?;
            let router = control::router(Arc::clone(&policy), owner.clone());
            let ended = async {
                let _ = ended.await;
            };
            Some(tokio::spawn(socket::serve(listener, router, ended)))
        }
    };
    // What the configuration names is open; nobody but the operator has been listened to.
    seccomp::confine(Kind::Main)?;
    confined().map_err(DriverError::Runtime)?;
    // Held so that the channel stays open where there is no control socket.
    let _owner = owner;
    let result = live(&checked, prepared, console, policy, requests, &mut signals).await;
    // Answers under way go out before the process does.
    drop(end);
    if let Some(server) = server
        && tokio::time::timeout(LAST_ANSWERS, server).await.is_err()
    {
        tracing::warn!("the control socket did not finish its answers");
    }
    result
}

/// From described to stopped.
async fn live(
    checked: &Checked,
    prepared: Prepared,
    console: Console,
    policy: Arc<Policy>,
    mut requests: mpsc::Receiver<Asked>,
    signals: &mut Signals,
) -> Result<(), DriverError> {
    let build = prepared.build(checked, console.writer());
    let Some(built) = wait_until_built(build, checked, &policy, &mut requests, signals).await
    else {
        return Ok(());
    };
    let built = built?;
    policy.set(VmState::Built);
    let leave = Arc::new(Notify::new());
    let carrier = console.start(Arc::clone(&built.machine.board().serial), Arc::clone(&leave))?;
    let mut owner = Owner::new(checked, built, policy, leave).map_err(DriverError::Runtime)?;
    let result = owner.run(&mut requests, signals).await;
    carrier.finish().await;
    owner.end().await;
    result
}

/// Builds, while the control socket can be asked what is going on. `None` if the VM is stopped meanwhile.
async fn wait_until_built(
    build: impl Future<Output = Result<Built, BuildError>>,
    checked: &Checked,
    policy: &Policy,
    requests: &mut mpsc::Receiver<Asked>,
    signals: &mut Signals,
) -> Option<Result<Built, BuildError>> {
    tokio::pin!(build);
    loop {
        let asked = tokio::select! {
            built = &mut build => return Some(built),
            () = signals.recv() => return None,
            Some(asked) = requests.recv() => asked,
        };
        let described = |state| description(checked, state, Vec::new());
        let answer = match asked.request {
            Request::Statistics => Ok(Answer::Statistics(Box::<VmStatistics>::default())),
            Request::Stop => {
                // Nothing is built that would have to end: the answer is all there is to do.
                let stopped = Answer::Description(Box::new(described(VmState::Stopped)));
                let _ = asked.reply.send(Ok(stopped));
                return None;
            }
            request => {
                let allowed = policy.check(request);
                allowed.map(|_| Answer::Description(Box::new(described(policy.state()))))
            }
        };
        // Who asked may have gone.
        let _ = asked.reply.send(answer);
    }
}

fn description(
    checked: &Checked,
    state: VmState,
    devices: Vec<bixi_api::compute::DeviceDescription>,
) -> VmDescription {
    VmDescription {
        id: checked.config.id.clone(),
        release: RELEASE.to_owned(),
        pid: std::process::id(),
        state,
        config: checked.config.clone(),
        devices,
    }
}
