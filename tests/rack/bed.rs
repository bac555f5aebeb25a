//! The one rack of all tests: brought up by the first, reset before each, watched while one runs.

use bixi_lab::{Acceleration, Config, Contents, Needed, Rack};
use bixi_tests::{Failure, Result};
use libtest_mimic::{Completion, Failed};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A test that takes longer hangs; the whole run ends then, since the rack cannot be trusted any more.
const LIMIT: Duration = Duration::from_secs(600);

/// The same for a test that boots whole systems.
const ALONE_LIMIT: Duration = Duration::from_secs(1800);

pub const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// What tests need beside what every rack needs.
const PEERS: &[Needed] = &[("dpdk-testpmd", "dpdk-dev"), ("qemu-system-x86_64", "qemu-system-x86")];

/// A test.
pub struct Check {
    /// Its name within its module.
    pub name: &'static str,
    /// Whether it runs only when slow ones are asked for.
    pub slow: bool,
    /// The test.
    pub run: fn(&Rack) -> Result<()>,
}

/// A test that brings up a rack of its own; a slow one.
pub struct Alone {
    /// Its name within its module.
    pub name: &'static str,
    /// The test.
    pub run: fn() -> Result<()>,
}

/// Held as long as this run uses the rack's folder.
static TURN: Mutex<Option<std::fs::File>> = Mutex::new(None);

static RACK: Mutex<Option<Rack>> = Mutex::new(None);

fn rack() -> MutexGuard<'static, Option<Rack>> {
    RACK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The rack, as tests get at it.
pub struct Bed;

impl Bed {
    /// Runs one test in a rack that looks new.
    pub fn run(check: &fn(&Rack) -> Result<()>) -> Result<Completion, Failed> {
        if !is_root() {
            return Ok(Completion::ignored_with("a rack needs root"));
        }
        let mut rack = rack();
        let rack = match &mut *rack {
            Some(rack) => rack,
            none => none.insert(up().map_err(|e| e.to_string())?),
        };
        let mut result = attempt(rack, *check)?;
        if let (Err(failure), Some(server)) = (&result, stands_still(rack)) {
            println!("server-{server} itself stands still, so this is tried again: {failure}");
            result = attempt(rack, *check)?;
        }
        match result {
            Ok(()) => Ok(Completion::Completed),
            Err(failure) => Err(format!("{failure}\n{}", logs(rack)).into()),
        }
    }

    /// Runs one test that has a rack of its own, when no other is up: there is room for one.
    pub fn run_alone(check: fn() -> Result<()>) -> Result<Completion, Failed> {
        if !is_root() {
            return Ok(Completion::ignored_with("a rack needs root"));
        }
        Self::end();
        let _watch = watch(ALONE_LIMIT);
        check().map(|()| Completion::Completed).map_err(|failure| failure.to_string().into())
    }

    /// Ends the rack.
    pub fn end() {
        drop(rack().take());
    }
}

/// Runs a test once, in a rack that looks new.
fn attempt(rack: &Rack, check: fn(&Rack) -> Result<()>) -> Result<Result<()>, Failed> {
    rack.reset().map_err(|e| e.to_string())?;
    let watch = watch(LIMIT);
    let result = check(rack);
    drop(watch);
    Ok(result)
}

/// An emulated server whose kernel answers nobody any more. Once in some hundred tests its processors are found with interrupts
/// off, for ever; that says nothing of what was tested in it. On real hardware a server that stands still is a failure.
fn stands_still(rack: &Rack) -> Option<usize> {
    if Acceleration::of_this_machine() != Acceleration::Emulated {
        return None;
    }
    rack.servers().iter().find(|server| server.hello().is_err()).map(bixi_lab::Server::number)
}

/// Ends this process, and the rack with it, unless the value is dropped in time.
fn watch(limit: Duration) -> mpsc::Sender<()> {
    let (alive, watched) = mpsc::channel::<()>();
    std::thread::spawn(move || {
        if watched.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
            println!("a test hangs: nothing came for {limit:?}");
            std::process::exit(101);
        }
    });
    alive
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0)
}

fn up() -> Result<Rack> {
    let state = Path::new(WORKSPACE).join(".lab/tests");
    std::fs::create_dir_all(&state)?;
    let turn = std::fs::File::create(state.join("run.lock"))?;
    turn.try_lock().map_err(|_| {
        Failure::new(format!(
            "another run of these tests uses {}: wait for its end",
            state.display()
        ))
    })?;
    *TURN.lock().unwrap_or_else(PoisonError::into_inner) = Some(turn);
    Rack::down(&state)?;
    bixi_lab::ensure_programs(PEERS)?;
    let mut config = Config::new(state)?;
    config.cache = Path::new(WORKSPACE).join(".lab/cache");
    add_peers(&mut config.contents);
    let rack = Rack::up(&config)?;
    println!("the rack is up: {}", Acceleration::of_this_machine().name());
    Ok(rack)
}

/// Front ends that are not ours: QEMU with its firmware, DPDK's testpmd with its drivers.
fn add_peers(contents: &mut Contents) {
    contents.programs.extend(find(&["/usr/bin"], "qemu-system-x86_64"));
    contents.programs.extend(find(&["/usr/bin"], "dpdk-testpmd"));
    // testpmd loads its drivers by path: they lie beside it, whatever version their folder here names.
    let drivers =
        std::fs::read_dir("/usr/lib/x86_64-linux-gnu/dpdk").into_iter().flatten().flatten();
    for folder in drivers.map(|entry| entry.path()) {
        for driver in ["librte_net_virtio.so", "librte_mempool_ring.so"] {
            contents.programs.extend(Some(folder.join(driver)).filter(|path| path.exists()));
        }
    }
    let firmware = ["/usr/share/seabios", "/usr/share/qemu"];
    for name in ["bios-256k.bin", "linuxboot_dma.bin", "kvmvapic.bin"] {
        contents.files.extend(find(&firmware, name).map(|file| (file, format!("firmware/{name}"))));
    }
}

fn find(folders: &[&str], name: &str) -> Option<PathBuf> {
    folders.iter().map(|folder| Path::new(folder).join(name)).find(|path| path.exists())
}

/// What the servers' programs logged, and the last the kernels said.
fn logs(rack: &Rack) -> String {
    let mut text = String::new();
    for server in rack.servers() {
        let script = "for f in /run/bixi/log/* /run/bixi/vm/*/vmm.log; do \
                      [ -s \"$f\" ] && echo \"== $f\" && tail -n 40 \"$f\"; done; \
                      echo '== dmesg'; dmesg | tail -n 5";
        let said = server.sh(script).unwrap_or_else(|e| e.to_string());
        text.push_str(&format!("---- server-{}\n{said}\n", server.number()));
    }
    text
}
