//! The process as its starter sees it: exit codes, what is said, what is left behind, the control socket.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

use bixi_api::client::{ClientError, ControlClient};
use bixi_api::compute::{VmDescription, VmState, VmStatistics};
use bixi_compute::microguest;
use serde_json::{Value, json};
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(30);

fn vmm() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bixi-vmm"));
    command.stdin(Stdio::null());
    command
}

/// Writes a configuration that `change` has changed; its kernel spins for ever.
fn configure(folder: &Path, change: impl FnOnce(&mut Value)) -> std::path::PathBuf {
    let kernel = folder.join("kernel");
    std::fs::write(&kernel, spinning_kernel()).unwrap();
    let mut config = json!({
        "id": "i-1",
        "memory": {"size": 64 << 20},
        "boot": {"kernel": {"path": kernel}},
        "rng": false,
        "console": {"socket": {"path": folder.join("console")}},
        "control": {"path": folder.join("control")},
    });
    change(&mut config);
    let path = folder.join("vm.json");
    std::fs::write(&path, config.to_string()).unwrap();
    path
}

/// A PVH kernel whose two instructions count and jump back.
fn spinning_kernel() -> Vec<u8> {
    let mut image = vec![0; 64];
    image[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
    image[18] = 62;
    image[32] = 64;
    image[54] = 56;
    image[56] = 2;
    let mut segment = |kind: u32, offset: u64, address: u64, len: u64| {
        let mut header = [0; 56];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        for (at, value) in [(8, offset), (24, address), (32, len), (40, len)] {
            header[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        image.extend_from_slice(&header);
    };
    segment(1, 200, 0x10_0000, 3);
    segment(4, 176, 0, 20);
    image.extend_from_slice(&[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0]);
    image.extend_from_slice(b"Xen\0");
    image.extend_from_slice(&0x10_0000_u32.to_le_bytes());
    image.resize(200, 0);
    // inc eax; jmp back
    image.extend_from_slice(&[0x40, 0xeb, 0xfd]);
    image
}

fn run(path: &Path) -> (i32, String) {
    let mut command = vmm();
    command.arg("--config").arg(path).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let deadline = Instant::now() + DEADLINE;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() >= deadline {
            child.kill().unwrap();
            let (_, text) = said(&child.wait_with_output().unwrap());
            panic!("it runs, and should refuse: {text}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    said(&child.wait_with_output().unwrap())
}

fn said(output: &Output) -> (i32, String) {
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn left_behind(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name());
    let mut names: Vec<_> = names.map(|n| n.to_string_lossy().into_owned()).collect();
    names.retain(|name| name != "kernel" && name != "vm.json");
    names
}

#[test]
fn each_mistake_has_its_code_and_leaves_nothing_behind() {
    type Change = fn(&mut Value);
    let mut cases: Vec<(i32, &str, Change)> = vec![
        (2, "unknown field `colour`", |v| v["colour"] = 1.into()),
        (2, "cpus.count is 65", |v| v["cpus"] = json!({"count": 65})),
        (2, "console is 77: give the number of a descriptor", |v| {
            v["console"] = json!({"socket": {"fd": 77}});
        }),
        (2, "are both", |v| v["console"] = json!({"socket": v["control"]})),
    ];
    if microguest::host().is_some() {
        cases.extend::<[(i32, &str, Change); 5]>([
            (3, "kernel /none does not exist", |v| v["boot"]["kernel"] = json!({"path": "/none"})),
            (3, "initrd /none does not exist", |v| v["boot"]["initrd"] = json!({"path": "/none"})),
            // The most that the board has room for, in pages that hosts are short of.
            (5, "this host has", |v| v["memory"] = json!({"size": 511_u64 << 30, "pages": "1g"})),
            (6, "/nowhere/control", |v| v["control"] = json!({"path": "/nowhere/control"})),
            (7, "neither a bzImage nor an ELF", |v| {
                v["boot"]["kernel"] = json!({"path": "/etc/passwd"});
            }),
        ]);
    }
    for (code, words, change) in cases {
        let folder = tempfile::tempdir().unwrap();
        let (got, text) = run(&configure(folder.path(), change));
        assert!(got == code && text.contains(words), "{got} {text}\nis not {code} {words}");
        assert_eq!(left_behind(folder.path()), Vec::<String>::new());
    }
    let (code, text) = run(Path::new("/none.json"));
    assert!(code == 3 && text.contains("/none.json does not exist"), "{text}");
    assert_eq!(vmm().output().unwrap().status.code(), Some(2));
    assert_eq!(vmm().arg("--colour").output().unwrap().status.code(), Some(2));
}

#[test]
fn a_check_only_checks() {
    let folder = tempfile::tempdir().unwrap();
    let path = configure(folder.path(), |_| {});
    let output = vmm().arg("--config").arg(&path).arg("--check").output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(left_behind(folder.path()), Vec::<String>::new());
}

/// A running VMM that is killed if its test fails.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    fn start(path: &Path) -> Self {
        let mut command = vmm();
        command.arg("--config").arg(path).stderr(Stdio::piped());
        Self(command.spawn().unwrap())
    }

    fn code(&mut self) -> Option<i32> {
        let deadline = Instant::now() + DEADLINE;
        while Instant::now() < deadline {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        None
    }
}

async fn wait_for(client: &ControlClient, state: VmState) -> VmDescription {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let described = client.get::<VmDescription>("/v1/vm").await;
        match described {
            Ok(described) if described.state == state => return described,
            other => assert!(Instant::now() < deadline, "not {state:?} in time: {other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn put(client: &ControlClient, what: &str) -> Result<VmState, ClientError> {
    let described: VmDescription = client.put(&format!("/v1/vm/{what}"), &()).await?;
    Ok(described.state)
}

#[tokio::test]
async fn a_vm_is_driven_by_its_control_socket() {
    if microguest::host().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = configure(folder.path(), |v| v["autostart"] = json!(false));
    let mut vmm = Running::start(&path);
    let client = ControlClient::new(folder.path().join("control"));
    let described = wait_for(&client, VmState::Built).await;
    assert_eq!(described.id, "i-1");
    let refused = put(&client, "pause").await;
    let Err(ClientError::Refused(error)) = refused else { panic!("{refused:?}") };
    assert_eq!((error.code.as_str(), error.hint.as_str()), ("WrongState", "Start it first."));
    assert_eq!(put(&client, "start").await.unwrap(), VmState::Running);
    assert_eq!(put(&client, "start").await.unwrap(), VmState::Running, "once more is no change");
    for _ in 0..50 {
        assert_eq!(put(&client, "pause").await.unwrap(), VmState::Paused);
        assert_eq!(put(&client, "resume").await.unwrap(), VmState::Running);
    }
    assert_eq!(put(&client, "reset").await.unwrap(), VmState::Running);
    assert_eq!(put(&client, "pause").await.unwrap(), VmState::Paused);
    assert_eq!(put(&client, "reset").await.unwrap(), VmState::Paused);
    assert_eq!(put(&client, "resume").await.unwrap(), VmState::Running);
    assert_eq!(put(&client, "power-button").await.unwrap(), VmState::Running);
    let statistics: VmStatistics = client.get("/v1/vm/statistics").await.unwrap();
    assert!(statistics.uptime_ns > 0 && statistics.overhead_bytes > 0);
    assert!(statistics.guest_resident_bytes < 64 << 20);
    // A vCPU that was called back before its thread woke had nothing to interrupt.
    assert!(statistics.vcpus[0].exits["interrupted"] > 0);
    assert_eq!(put(&client, "stop").await.unwrap(), VmState::Stopped);
    assert_eq!(vmm.code(), Some(0));
    assert_eq!(left_behind(folder.path()), Vec::<String>::new());
}

#[tokio::test]
async fn a_signal_ends_it_in_good_order_and_a_second_one_finds_its_socket_taken() {
    if microguest::host().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = configure(folder.path(), |_| {});
    let mut first = Running::start(&path);
    let client = ControlClient::new(folder.path().join("control"));
    wait_for(&client, VmState::Running).await;
    let (code, text) = run(&path);
    assert!(code == 6 && text.contains("is in use by a running process"), "{code} {text}");
    wait_for(&client, VmState::Running).await;
    let pid = rustix::process::Pid::from_child(&first.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(first.code(), Some(0));
    assert_eq!(left_behind(folder.path()), Vec::<String>::new());
}

#[tokio::test]
async fn while_its_back_end_is_away_it_can_be_asked_and_stopped() {
    if microguest::host().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("disk");
    let path = configure(folder.path(), |v| {
        v["disks"] = json!([{"id": "d-1", "socket": {"path": socket}}]);
    });
    let mut vmm = Running::start(&path);
    let client = ControlClient::new(folder.path().join("control"));
    let described = wait_for(&client, VmState::Described).await;
    assert_eq!(described.config.disks[0].address.as_deref(), Some("2/1"));
    let refused = put(&client, "start").await;
    assert!(matches!(refused, Err(ClientError::Refused(_))), "{refused:?}");
    assert_eq!(put(&client, "stop").await.unwrap(), VmState::Stopped);
    assert_eq!(vmm.code(), Some(0));
    assert_eq!(left_behind(folder.path()), Vec::<String>::new());
}

/// A pseudo-terminal: the end that a person would sit at, and the one that a process gets.
fn open_terminal() -> (OwnedFd, OwnedFd) {
    let (mut ours, mut theirs) = (-1, -1);
    let (name, modes, size) = (std::ptr::null_mut(), std::ptr::null(), std::ptr::null());
    // SAFETY: both numbers are written, the optional arguments are absent.
    let result = unsafe { libc::openpty(&mut ours, &mut theirs, name, modes, size) };
    assert_eq!(result, 0);
    // SAFETY: the call has just made them, and nobody else has them.
    unsafe { (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) }
}

#[test]
fn the_terminal_is_raw_while_the_vm_runs_and_as_before_afterwards() {
    use rustix::termios::{LocalModes, tcgetattr};
    if microguest::host().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = configure(folder.path(), |v| v["console"] = "terminal".into());
    let (ours, theirs) = open_terminal();
    let modes = || tcgetattr(&ours).unwrap().local_modes;
    let before = tcgetattr(&ours).unwrap();
    assert!(before.local_modes.contains(LocalModes::ICANON | LocalModes::ECHO));
    // It ends by the operator's key and by a signal: either way the terminal comes back.
    for way in 0..2 {
        let mut command = vmm();
        command.arg("--config").arg(&path).stderr(Stdio::null());
        command.stdin(theirs.try_clone().unwrap()).stdout(theirs.try_clone().unwrap());
        let mut vmm = Running(command.spawn().unwrap());
        let deadline = Instant::now() + DEADLINE;
        while modes().contains(LocalModes::ICANON) {
            assert!(Instant::now() < deadline, "the terminal does not become raw");
            std::thread::sleep(Duration::from_millis(5));
        }
        match way {
            0 => assert_eq!(rustix::io::write(&ours, b"typed\x1d").unwrap(), 6),
            _ => {
                let pid = rustix::process::Pid::from_child(&vmm.0);
                rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
            }
        }
        assert_eq!(vmm.code(), Some(0));
        assert_eq!(modes(), before.local_modes);
        assert_eq!(tcgetattr(&ours).unwrap().input_modes, before.input_modes);
    }
}
