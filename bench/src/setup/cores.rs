//! Which core does what, and what else ran on it meanwhile.
//!
//! The server has one core and the load generator another. [`Watch`] compares what a core did with what the processes of the run
//! used; the rest, and time that the hypervisor stole, is disturbance.

use crate::BenchError;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::fmt;
use std::fs;
use std::time::Instant;

/// The two cores of a benchmark.
#[derive(Debug, Clone, Copy)]
pub struct Cores {
    /// For the server.
    pub server: Pinned,
    /// For the load.
    pub load: Pinned,
}

/// A core that something stays on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pinned(pub usize);

impl Pinned {
    /// Moves the calling thread there, for good.
    ///
    /// # Errors
    /// The kernel refuses the core.
    pub fn apply(self) -> std::io::Result<()> {
        let mut set = CpuSet::new();
        set.set(self.0);
        Ok(sched_setaffinity(None, &set)?)
    }
}

impl Cores {
    /// The first two that this process may use.
    ///
    /// # Errors
    /// There are not as many.
    pub fn choose() -> Result<Self, BenchError> {
        let set =
            sched_getaffinity(None).map_err(BenchError::system("see which cores there are"))?;
        let mut free = (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu));
        match (free.next(), free.next()) {
            (Some(server), Some(load)) => Ok(Self { server: Pinned(server), load: Pinned(load) }),
            _ => Err(BenchError::Cores { has: set.count() as usize }),
        }
    }
}

/// The benchmark's session comes before all others while this lives, if this is root and the kernel groups by session. Its threads
/// stay equal among themselves: a group's weight is shared out among cores by its threads' weights.
#[derive(Debug)]
pub struct Priority(());

/// The weight of the session this process is in.
const SESSION: &str = "/proc/self/autogroup";

impl Priority {
    /// From now on.
    #[must_use]
    pub fn raise() -> Self {
        let _ = fs::write(SESSION, "-20");
        Self(())
    }
}

impl Drop for Priority {
    fn drop(&mut self) {
        let _ = fs::write(SESSION, "0");
    }
}

/// What others took of the two cores, as a share of their time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Disturbance {
    /// Of the server's core.
    pub server: f64,
    /// Of the load's core.
    pub load: f64,
    /// What the server's processes used of their core.
    pub server_used: f64,
}

impl Disturbance {
    /// The larger one.
    #[must_use]
    pub fn worst(&self) -> f64 {
        self.server.max(self.load)
    }
}

impl fmt::Display for Disturbance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [used, server, load] =
            [self.server_used, self.server, self.load].map(|share| share * 100.0);
        write!(f, "server at {used:.0} %, others took {server:.0} % and {load:.0} %")
    }
}

/// Watches the cores from its making on.
#[derive(Debug)]
pub struct Watch {
    cores: Cores,
    servers: Vec<u32>,
    loads: Vec<u32>,
    start: Instant,
    before: [Sample; 2],
}

/// A core, and the processes that belong there.
#[derive(Debug, Clone, Copy, Default)]
struct Sample {
    /// Seconds the core was busy or stolen.
    busy: f64,
    /// Seconds the processes ran.
    own: f64,
}

impl Watch {
    /// Watches both cores; `servers` and `loads` are the processes that may use them. The calling process belongs to
    /// the load.
    #[must_use]
    pub fn start(cores: Cores, servers: &[u32], loads: &[u32]) -> Self {
        let mut loads = loads.to_vec();
        loads.push(std::process::id());
        let mut this = Self {
            cores,
            servers: servers.to_vec(),
            loads,
            start: Instant::now(),
            before: [Sample::default(); 2],
        };
        this.before = this.sample();
        this
    }

    /// What others took since.
    #[must_use]
    pub fn end(&self) -> Disturbance {
        let after = self.sample();
        let elapsed = self.start.elapsed().as_secs_f64().max(1e-3);
        let others = |at: usize| {
            let busy = after[at].busy - self.before[at].busy;
            let own = after[at].own - self.before[at].own;
            ((busy - own) / elapsed).max(0.0)
        };
        let used = (after[0].own - self.before[0].own) / elapsed;
        Disturbance { server: others(0), load: others(1), server_used: used }
    }

    fn sample(&self) -> [Sample; 2] {
        let of = |core: Pinned, pids: &[u32]| Sample {
            busy: busy_seconds(core.0),
            own: pids.iter().map(|pid| run_seconds(*pid)).sum(),
        };
        [of(self.cores.server, &self.servers), of(self.cores.load, &self.loads)]
    }
}

/// Seconds that a core was anything but idle, from /proc/stat.
fn busy_seconds(core: usize) -> f64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let name = format!("cpu{core} ");
    let Some(line) = stat.lines().find_map(|line| line.strip_prefix(&name)) else { return 0.0 };
    let ticks: Vec<f64> = line.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; guest times are part of user and nice.
    let busy = ticks.iter().enumerate().take(8).filter(|(at, _)| *at != 3 && *at != 4);
    busy.map(|(_, ticks)| ticks).sum::<f64>() / 100.0
}

/// Seconds that all threads of a process ran, from their schedstat.
fn run_seconds(pid: u32) -> f64 {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return 0.0 };
    let of_thread = |thread: fs::DirEntry| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<f64>().ok()
    };
    threads.flatten().filter_map(of_thread).sum::<f64>() / 1e9
}
