//! Starting the process: limits, directories, workers, sockets, in an order that lets front ends find an ear first.

use super::control::{Control, router};
use super::driver::{Driver, Order};
use super::records::Records;
use crate::disk::DiskId;
use crate::disk::store::Store;
use crate::engine::config::Shape;
use crate::engine::media::{Media, MemoryMedia, ServedDisk, counters};
use crate::engine::service::BlockService;
use bixi_api::file::FileSource;
use bixi_offload::card::{Card, CardError, WorkerId};
use bixi_offload::control::{self, Listener};
use bixi_offload::worker::WorkerConfig;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// How long the start waits for the root directory; a device that hangs must not keep operators from asking.
const ROOT_PATIENCE: Duration = Duration::from_secs(2);

/// What the process is started with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the disks are.
    pub root: PathBuf,
    /// Where attachments are written down; on tmpfs.
    pub state: PathBuf,
    /// The control socket.
    pub control: FileSource,
    /// Worker threads.
    pub workers: usize,
    /// The processors that workers stay on, one each; anywhere if there are none.
    pub cpus: Vec<usize>,
    /// How long a worker polls before it sleeps.
    pub spin: Duration,
    /// Disks for measurements.
    pub bench_disks: Vec<BenchDisk>,
}

/// A disk that is no disk, for measurements: `null:ID:SIZE:SOCKET` or `memory:ID:SIZE:SOCKET`, with `:QUEUES` if told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BenchDisk {
    /// Whether its bytes are kept.
    pub memory: bool,
    /// Its id.
    pub id: DiskId,
    /// Its size in bytes.
    pub size: u64,
    /// Where it is served.
    pub socket: PathBuf,
    /// Its queues.
    pub queues: u16,
}

/// Why the process cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A directory is unusable.
    #[error("cannot use {what} {}: {source}", path.display())]
    Directory {
        /// Which.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The control socket is unusable.
    #[error(transparent)]
    Listen(#[from] control::ListenError),
    /// A worker or a bench disk cannot be.
    #[error("{error}{}", error_chain(error))]
    Card {
        /// Why.
        error: CardError,
    },
    /// The settings contradict each other.
    #[error("{0}")]
    Settings(String),
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

fn error_chain(error: &CardError) -> String {
    std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default()
}

impl From<CardError> for ServeError {
    fn from(error: CardError) -> Self {
        Self::Card { error }
    }
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> ServeError {
    move |source| ServeError::System { what, source }
}

impl FromStr for BenchDisk {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let (kind, id, size, socket, queues) = match parts[..] {
            [kind, id, size, socket] => (kind, id, size, socket, "1"),
            [kind, id, size, socket, queues] => (kind, id, size, socket, queues),
            _ => return Err("expected null|memory:ID:SIZE:SOCKET[:QUEUES]".to_owned()),
        };
        let memory = match kind {
            "null" => false,
            "memory" => true,
            other => return Err(format!("`{other}` is neither null nor memory")),
        };
        let size: u64 = crate::cli::size::parse(size)?;
        let queues = queues.parse().ok().filter(|queues| (1..=64).contains(queues));
        Ok(Self {
            memory,
            id: id.parse().map_err(|e| format!("{e}"))?,
            size,
            socket: socket.into(),
            queues: queues.ok_or("1 to 64 queues are possible")?,
        })
    }
}

/// Runs the process until it is told to end.
///
/// # Errors
/// See [`ServeError`].
pub fn serve(settings: &Settings) -> Result<(), ServeError> {
    check(settings)?;
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(system("start a runtime"))?;
    let ended = runtime.block_on(run(settings));
    // A job that still waits for a disk is not waited for: what it leaves is cleaned up at the next start.
    runtime.shutdown_background();
    ended
}

fn check(settings: &Settings) -> Result<(), ServeError> {
    let (workers, cpus) = (settings.workers, settings.cpus.len());
    if !(1..=256).contains(&workers) {
        return Err(ServeError::Settings(format!("{workers} workers: 1 to 256 are possible")));
    }
    if cpus != 0 && cpus != workers {
        return Err(ServeError::Settings(format!(
            "{workers} workers on {cpus} processors: name one processor for each worker"
        )));
    }
    Ok(())
}

async fn run(settings: &Settings) -> Result<(), ServeError> {
    // The control socket first: it also says that no other process has this command line.
    let listener = Listener::bind(&settings.control)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("watch for signals"))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(system("watch for signals"))?;
    let directory = |what, path: &PathBuf| {
        let path = path.clone();
        move |source| ServeError::Directory { what, path, source }
    };
    let records = Records::open(&settings.state)
        .map_err(directory("the state directory", &settings.state))?;
    let promised = records.all().map_err(directory("the state directory", &settings.state))?;
    let mut card = Card::new()?;
    let workers = start_workers(&mut card, settings)?;
    let store = Store::new(&settings.root);
    let mut driver = Driver::new(card, workers, store.clone(), records);
    // Front ends that lost their back end are answered from here on; the disks are looked at after.
    driver.restore(promised);
    for disk in &settings.bench_disks {
        add_bench_disk(&mut driver, disk)?;
    }
    let prepared = tokio::task::spawn_blocking({
        let store = store.clone();
        move || store.prepare()
    });
    match tokio::time::timeout(ROOT_PATIENCE, prepared).await {
        Ok(prepared) => prepared
            .map_err(|e| system("look at the root directory")(io::Error::other(e)))?
            .map_err(directory("the root directory", &settings.root))?,
        Err(_) => tracing::warn!("the root directory does not answer; going on without it"),
    }

    let (orders, policy) = (driver.orders(), driver.policy());
    let router = router(Control { orders: orders.clone(), policy, store });
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
    tracing::info!(pid = std::process::id(), release = bixi_api::RELEASE, "serving disks");
    let ended = driver.run().await;
    drop(stop_server);
    // The server removes its socket's file; a client that does not read its answer is not waited for.
    let _ = tokio::time::timeout(Duration::from_millis(500), server).await;
    Ok(ended?)
}

fn start_workers(
    card: &mut Card<BlockService>,
    settings: &Settings,
) -> Result<Vec<WorkerId>, ServeError> {
    // Kernel threads that wait for disks keep off the processors where workers poll, if there are others.
    let allowed = rustix::thread::sched_getaffinity(None).map_err(|e| e.into());
    let allowed = allowed.map_err(system("learn which processors there are"))?;
    let helpers: Vec<usize> = (0..rustix::thread::CpuSet::MAX_CPU)
        .filter(|cpu| allowed.is_set(*cpu) && !settings.cpus.contains(cpu))
        .collect();
    (0..settings.workers)
        .map(|index| {
            let helpers = helpers.clone();
            let config = WorkerConfig {
                name: format!("disk-{index}"),
                core: settings.cpus.get(index).copied(),
                spin: settings.spin,
            };
            Ok(card.add_worker(config, move || BlockService::new(&helpers))?)
        })
        .collect()
}

fn add_bench_disk(driver: &mut Driver, disk: &BenchDisk) -> Result<(), ServeError> {
    let shape = Shape {
        size: disk.size,
        queues: disk.queues,
        read_only: false,
        discard: true,
        write_zeroes: true,
        zeroes_may_unmap: true,
    };
    let media = match disk.memory {
        true => Media::Memory(MemoryMedia::new(disk.size).map_err(system("make a memory disk"))?),
        false => Media::Null,
    };
    let listener = Listener::bind_path(&disk.socket)?;
    let (serial, counters) = (disk.id.serial(), counters(disk.queues));
    let served = ServedDisk { size: disk.size, serial, read_only: false, media, counters };
    tracing::warn!(disk = %disk.id, memory = disk.memory, "serving a disk for measurements: nothing on it is kept");
    Ok(driver.add_bench_disk(&shape, served, listener)?)
}

/// Each front end needs several descriptors per queue: take as many as the system gives.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}
