//! A rack leaves nothing behind, whatever way it ends; and what it offers while it lives.

// A failed step of a test is a failed test; what is skipped is said on standard output.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use bixi_lab::{Config, Contents, Rack, ServerState};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const LAB: &str = env!("CARGO_BIN_EXE_bixi-lab");

/// Downloads are shared with the other racks of this checkout.
const CACHE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../.lab/cache");

/// A state folder of its own for each test; `None` says that this machine cannot run a rack.
fn state(name: &str) -> Option<PathBuf> {
    if fs::metadata("/proc/self").is_ok_and(|m| m.uid() != 0) {
        println!("SKIPPED: a rack needs root");
        return None;
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("rack-{name}"));
    Rack::down(&folder).unwrap();
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    Some(folder.canonicalize().unwrap())
}

fn config(state: &Path) -> Config {
    Config {
        cache: CACHE.into(),
        servers: 1,
        memory_mib: 512,
        scratch_gib: 1,
        contents: Contents::default(),
        lab: LAB.into(),
        ..Config::new(state).unwrap()
    }
}

/// Processes of this machine that name the state folder or work in it, this one left out.
fn processes(state: &Path) -> Vec<String> {
    let own = std::process::id().to_string();
    let needle = state.to_string_lossy().into_owned();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        if pid == own || pid.parse::<u32>().is_err() {
            continue;
        }
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let folder = fs::read_link(entry.path().join("cwd")).unwrap_or_default();
        if command.contains(&needle) || folder.starts_with(state) {
            found.push(format!("{pid}: {command}"));
        }
    }
    found
}

/// The network namespaces that any process of this machine is in.
fn namespaces() -> BTreeSet<u64> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|e| Some(fs::metadata(e.path().join("ns/net")).ok()?.ino())).collect()
}

fn wait_until(what: &str, limit: Duration, done: impl Fn() -> bool) {
    let deadline = Instant::now() + limit;
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not happen within {limit:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn assert_gone(state: &Path, namespace: Option<u64>) {
    wait_until("the end of all processes", Duration::from_secs(10), || {
        processes(state).is_empty() && Rack::supervisor(state).is_none()
    });
    if let Some(namespace) = namespace {
        assert!(!namespaces().contains(&namespace), "the network namespace lives on");
    }
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    assert!(!mounts.contains(&*state.to_string_lossy()), "{mounts}");
}

fn kill(pid: i32) {
    let status = Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
    assert!(status.success());
}

#[test]
fn killing_the_supervisor_leaves_nothing_and_up_and_down_clean_what_is_left() {
    let Some(state) = state("supervisor") else { return };
    let rack = Rack::up(&config(&state)).unwrap();
    let status = rack.status().unwrap();
    let namespace = status.network_namespace;
    assert!(namespaces().contains(&namespace));
    assert!(!processes(&state).is_empty());
    kill(Rack::supervisor(&state).unwrap());
    assert_gone(&state, Some(namespace));
    assert!(state.join("rack").exists(), "a killed supervisor cannot clean up: the test is void");
    assert!(rack.status().is_err());
    drop(rack);

    // Make a stale folder again, as `drop` has cleaned it, then use it as if nothing had been.
    fs::create_dir_all(state.join("rack/server-1")).unwrap();
    fs::write(state.join("rack/lock"), "").unwrap();
    let rack = Rack::up(&config(&state)).unwrap();
    assert!(matches!(Rack::up(&config(&state)), Err(bixi_lab::Error::Up { .. })));
    let namespace = rack.status().unwrap().network_namespace;
    rack.leave_up().unwrap();
    assert!(Rack::down(&state).unwrap());
    assert!(!Rack::down(&state).unwrap());
    assert_gone(&state, Some(namespace));
    assert!(!state.join("rack").exists());
}

#[test]
fn killing_the_starter_ends_the_rack_even_while_it_boots() {
    let Some(state) = state("starter") else { return };
    let mut starter = Command::new(LAB)
        .arg("--state")
        .arg(&state)
        .args(["up", "--servers", "1", "--memory", "512"])
        .env("BIXI_LAB_CACHE", CACHE)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("the start of a QEMU", Duration::from_secs(120), || {
        processes(&state).iter().any(|p| p.contains("qemu-system"))
    });
    assert!(starter.try_wait().unwrap().is_none(), "it was up too soon: the test is void");
    starter.kill().unwrap();
    starter.wait().unwrap();
    assert_gone(&state, None);
    assert!(!Rack::down(&state).unwrap());
    assert!(!state.join("rack").exists());
}

#[test]
fn a_server_runs_programs_moves_files_and_is_reset() {
    let Some(state) = state("server") else { return };
    let rack = Rack::up(&config(&state)).unwrap();
    let server = rack.server(1);
    assert!(server.hello().unwrap().kvm, "a server has KVM");
    assert!(rack.server(2).hello().is_err());

    // Programs: exit codes, streams, input, time limits, signals.
    let output = server.command("sh").args(["-c", "cat; echo e >&2; exit 3"]).input("in").run();
    let output = output.unwrap();
    assert_eq!((output.ended.code, output.text().as_str()), (Some(3), "in"));
    assert_eq!(output.error_text(), "e\n");
    assert!(server.sh("false").unwrap_err().to_string().contains("ended with 1"));
    assert!(server.command("/no/such").run().unwrap_err().to_string().contains("/no/such"));
    let late = server.command("sleep").arg("100").limit(Duration::from_millis(200)).run().unwrap();
    assert!(late.ended.late && late.ended.signal == Some(9));
    let large = server.sh("head -c 3000000 /dev/zero | tr '\\0' x").unwrap();
    assert_eq!(large.len(), 3_000_000);
    // A program that leaves another behind, with its output still open, has ended all the same.
    assert_eq!(server.sh("sleep 100 & echo done").unwrap(), "done\n");

    // A spawned program dies with its handle.
    let process = server.command("sh").args(["-c", "echo ready; sleep 1000"]).spawn().unwrap();
    process.wait_for("ready", Duration::from_secs(10)).unwrap();
    let pid = process.pid();
    assert!(server.sh(&format!("kill -0 {pid}")).is_ok());
    drop(process);
    wait_until("the program's end", Duration::from_secs(10), || {
        server.sh(&format!("kill -0 {pid}")).is_err()
    });

    // Files and sockets.
    let contents: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
    server.put(&contents, "/run/bixi/a/b", 0o640).unwrap();
    assert_eq!(server.get("/run/bixi/a/b").unwrap(), contents);
    assert!(server.get("/no/file").unwrap_err().to_string().contains("/no/file"));
    assert!(server.put(b"x", "/proc/no/file", 0o600).is_err());
    assert!(server.connect("/run/bixi/no.sock").is_err());

    // The scratch disk takes O_DIRECT.
    server.sh("dd if=/dev/zero of=/scratch/x bs=4096 count=4 oflag=direct").unwrap();

    // Detached programs outlive their starter, but not a reset.
    let pid = server.command("sleep").arg("1000").detach("/run/bixi/sleep.log").unwrap();
    server.sh(&format!("kill -0 {pid}")).unwrap();
    rack.reset().unwrap();
    assert!(server.sh(&format!("kill -0 {pid}")).is_err());
    assert_eq!(
        server.sh("ls /run/bixi /scratch | grep -v lost+found || true").unwrap().trim(),
        "/run/bixi:\n\n/scratch:"
    );
    assert_eq!(server.hello().unwrap().processes, 0);

    // A dead server is seen, and started anew.
    server.sh("echo c >/proc/sysrq-trigger & sleep 5").unwrap_err();
    wait_until("the server's end", Duration::from_secs(60), || {
        matches!(rack.status().unwrap().servers[0].state, ServerState::Ended(_))
    });
    assert!(server.hello().unwrap_err().to_string().contains("has ended"));
    rack.reset().unwrap();
    assert!(server.hello().unwrap().uptime < Duration::from_secs(60));
    let namespace = rack.status().unwrap().network_namespace;
    drop(rack);
    assert_gone(&state, Some(namespace));
    assert!(!state.join("rack").exists());
}
