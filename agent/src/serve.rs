//! The process from start to end: `bixi-agent serve`.
//!
//! Its end stops nothing: VMMs and card processes go on, and the next agent takes them up.

use crate::driver::{Driver, Sources, converse};
use crate::executor::Executor;
use crate::identity::{Identity, IdentityError};
use crate::inventory::Fixed;
use crate::jail::cgroup::Groups;
use crate::places::Places;
use crate::process::boot_id;
use crate::record::{RecordError, Records};
use crate::renewal;
use crate::supervisor::{self, Card};
use bixi_api::agent::AgentClientError;
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

/// How the process is started.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where things are.
    pub places: Places,
    /// This server's tunnel end point.
    pub underlay: Option<SocketAddr>,
    /// Further arguments for `bixi-storage serve`.
    pub storage: Vec<String>,
    /// Further arguments for `bixi-network serve`.
    pub network: Vec<String>,
    /// The user of the first VMM; those of others follow.
    pub first_user: u32,
    /// The control group that is held for VMMs and card processes, if one is.
    pub cgroup: Option<PathBuf>,
}

/// Why the process cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The server has no identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Its certificate cannot be used.
    #[error(transparent)]
    Credentials(#[from] AgentClientError),
    /// The records cannot be used.
    #[error(transparent)]
    Records(#[from] RecordError),
    /// Another agent runs.
    #[error("another bixi-agent uses {}: stop it first", .0.display())]
    Another(PathBuf),
    /// The system refuses something the process needs.
    #[error("cannot {what}")]
    System {
        /// What.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
}

fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> ServeError {
    let what = what.into();
    move |source| ServeError::System { what, source }
}

/// Runs the process until it is told to end.
///
/// # Errors
/// See [`ServeError`].
pub fn serve(settings: &Settings) -> Result<(), ServeError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(system("start a runtime"))?;
    let ended = runtime.block_on(run(settings));
    // What is under way is not waited for: the next agent begins it again.
    runtime.shutdown_background();
    ended
}

async fn run(settings: &Settings) -> Result<(), ServeError> {
    let places = &settings.places;
    let _lock = lock(places)?;
    let identity = Identity::read(&places.identity())?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("watch for signals"))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(system("watch for signals"))?;
    for folder in [&places.run, &places.disks] {
        fs::create_dir_all(folder).map_err(system(format!("make {}", folder.display())))?;
    }
    // VMMs leave their jail's parent for this process, which learns how they end.
    rustix::process::set_child_subreaper(rustix::process::Pid::from_raw(1))
        .map_err(|e| system("take in the VMMs")(e.into()))?;
    let boot_id = boot_id().map_err(system("learn which boot this is"))?;
    let (groups, lacks) = match Groups::open(settings.cgroup.as_deref()) {
        Ok(groups) => (Some(groups), Vec::new()),
        Err(lack) => {
            tracing::warn!("{lack}");
            (None, vec![lack])
        }
    };
    let client = identity.client()?;
    tokio::spawn(renewal::keep(places.identity(), identity.clone(), client.clone()));
    let (progress, going) = mpsc::unbounded_channel();
    let executor = Arc::new(Executor::new(
        places.clone(),
        Records::open(&places.records())?,
        client,
        groups,
        settings.first_user,
        boot_id.clone(),
        progress,
    ));
    let (changes, cards) = mpsc::unbounded_channel();
    for card in card_processes(settings) {
        tokio::spawn(supervisor::keep(card, changes.clone()));
    }
    let (reports, reporting) = watch::channel(None);
    let fixed = Fixed { underlay: settings.underlay, lacks, boot_id };
    let driver = Driver::new(Arc::clone(&executor), fixed, reports)?;
    let server = identity.server.clone();
    let heard = converse(&executor, server, driver.revision(), reporting);
    tracing::info!(server = identity.server, cloud = identity.cloud, "serving");
    let end = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    driver.run(Sources { heard, cards, progress: going }, end).await;
    tracing::info!("ending; instances and cards go on");
    Ok(())
}

/// One agent for each state folder, for as long as the file is open.
fn lock(places: &Places) -> Result<File, ServeError> {
    let path = places.state.join("lock");
    let opened = fs::create_dir_all(&places.state)
        .and_then(|()| File::options().create(true).truncate(false).write(true).open(&path));
    let file = opened.map_err(system(format!("open {}", path.display())))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(ServeError::Another(places.state.clone())),
        Err(error) => Err(system(format!("lock {}", path.display()))(error.into())),
    }
}

fn card_processes(settings: &Settings) -> [Card; 2] {
    let places = &settings.places;
    let card = |name: &'static str, program, own: Vec<String>, more: &[String]| {
        let control = places.card_control(name);
        let mut arguments = vec!["serve".to_owned()];
        arguments.extend(["--state".to_owned(), places.card_state(name).display().to_string()]);
        arguments.extend(["--control".to_owned(), control.display().to_string()]);
        arguments.extend(own);
        arguments.extend(more.iter().cloned());
        let (program, log) = (places.program(program), places.card_log(name));
        let group = settings.cgroup.as_ref().map(|held| held.join("card"));
        Card { name, program, arguments, control, log, group }
    };
    let root = vec!["--root".to_owned(), places.disks.display().to_string()];
    let underlay = settings.underlay.map(|own| vec!["--underlay".to_owned(), own.to_string()]);
    [
        card("storage", "bixi-storage", root, &settings.storage),
        card("network", "bixi-network", underlay.unwrap_or_default(), &settings.network),
    ]
}
