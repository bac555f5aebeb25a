//! A real `bixi-storage` process and a guest that writes, reads back and never forgives.
#![allow(dead_code, reason = "each test program uses a part of it")]

pub mod guest;
pub mod mount;
pub mod plain;

use bixi_api::client::{ClientError, ControlClient};
use bixi_api::storage::{DiskAttach, DiskCreate, DiskDescription, DiskLimits};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The disk of most tests.
pub const DISK: &str = "d-0123456789abcdefghij";
/// Everything takes less time than this, or has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A process and its directories.
pub struct Rig {
    child: Option<Child>,
    directory: tempfile::TempDir,
    root: PathBuf,
    arguments: Vec<String>,
    runtime: tokio::runtime::Runtime,
}

impl Rig {
    /// Directories of its own, with the disks in `root` or among them. Nothing runs yet.
    pub fn new(root: Option<&Path>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = root.map_or_else(|| directory.path().join("root"), Path::to_owned);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let arguments = vec!["--workers".to_owned(), "2".to_owned()];
        Self { child: None, directory, root, arguments, runtime }
    }

    /// A second process on the same disks, with sockets and state of its own.
    pub fn beside(&self) -> Self {
        Self::new(Some(&self.root))
    }

    /// How many workers it has; two unless told.
    pub fn workers(&mut self, workers: &str) {
        self.arguments[1] = workers.to_owned();
    }

    /// More arguments of `serve`.
    pub fn argue(&mut self, arguments: &[&str]) {
        self.arguments.extend(arguments.iter().map(|&argument| argument.to_owned()));
    }

    /// A path among the directories.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Where the disks are.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Starts the process, to die at `failpoint` if one is named, and does not wait for it.
    pub fn launch(&mut self, failpoint: Option<&str>) {
        assert!(self.child.is_none());
        let mut command = Command::new(env!("CARGO_BIN_EXE_bixi-storage"));
        command.arg("serve").arg("--root").arg(&self.root);
        command.arg("--state").arg(self.path("state")).arg("--control").arg(self.path("control"));
        command.args(&self.arguments).stdin(Stdio::null());
        if let Some(point) = failpoint {
            command.env("BIXI_FAILPOINT", point);
        }
        let log = std::fs::File::options().create(true).append(true).open(self.path("log"));
        command.stderr(log.unwrap()).env("BIXI_LOG", "info");
        self.child = Some(command.spawn().unwrap());
    }

    /// Starts the process and waits until it answers.
    pub fn start(&mut self) {
        self.launch(None);
        let deadline = Instant::now() + PATIENCE;
        // Who asks too early may still reach the socket of a process that is being killed, and hear nothing.
        let client = self.client().with_deadline(Duration::from_millis(500));
        let ask = || self.runtime.block_on(client.get::<serde_json::Value>("/v1/storage")).err();
        while let Some(error) = ask() {
            assert!(!matches!(error, ClientError::Refused(_)), "{error}");
            assert!(Instant::now() < deadline, "it does not answer: {}", self.log());
            let child = self.child.as_ref().map(Child::id);
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.unwrap_or(0)));
            let ended = stat.is_ok_and(|stat| stat.contains(") Z "));
            assert!(!ended, "it has ended: {}", self.log());
            std::thread::yield_now();
        }
    }

    /// Kills the process and sees it dead.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Sends SIGKILL and does not wait.
    pub fn kill_only(&mut self) -> Child {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child
    }

    /// Ends the process in good order; its exit status.
    pub fn end(&mut self) -> Option<i32> {
        let mut child = self.child.take().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        child.wait().unwrap().code()
    }

    /// Whether the process has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        let ended = self.child.as_mut().is_some_and(|c| c.try_wait().unwrap().is_some());
        if ended {
            self.child = None;
        }
        ended
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn client(&self) -> ControlClient {
        ControlClient::new(self.path("control")).with_deadline(PATIENCE)
    }

    pub fn get<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.runtime.block_on(self.client().get(path))
    }

    /// Makes a disk of zeroes.
    pub fn create(&self, id: &str, size: u64) {
        let create = DiskCreate { id: id.to_owned(), size: Some(size), image: None };
        let made = self.runtime.block_on(self.client().post("/v1/disks", &create));
        let _: DiskDescription = made.unwrap();
    }

    /// Attaches a disk at the socket `<id>.sock`.
    pub fn attach(&self, id: &str, epoch: u64) -> Result<DiskDescription, ClientError> {
        self.attach_as(id, &self.attachment(id, epoch))
    }

    /// What [`Rig::attach`] asks for.
    pub fn attachment(&self, id: &str, epoch: u64) -> DiskAttach {
        let socket = self.socket(id);
        DiskAttach {
            epoch,
            socket,
            queues: 2,
            read_only: false,
            require_sealed: true,
            limits: DiskLimits::NONE,
        }
    }

    pub fn attach_as(&self, id: &str, attach: &DiskAttach) -> Result<DiskDescription, ClientError> {
        self.runtime.block_on(self.client().put(&format!("/v1/disks/{id}/attachment"), attach))
    }

    pub fn detach(&self, id: &str) -> Result<DiskDescription, ClientError> {
        self.runtime.block_on(self.client().delete(&format!("/v1/disks/{id}/attachment")))
    }

    pub fn delete(&self, id: &str) -> Result<(), ClientError> {
        self.runtime.block_on(self.client().delete(&format!("/v1/disks/{id}")))
    }

    pub fn show(&self, id: &str) -> DiskDescription {
        self.get(&format!("/v1/disks/{id}")).unwrap()
    }

    /// Where front ends of a disk connect.
    pub fn socket(&self, id: &str) -> PathBuf {
        self.path(&format!("{id}.sock"))
    }

    /// Runs the command line of the product; exit status and output.
    pub fn run(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bixi-storage"));
        let output = command.args(arguments).stdin(Stdio::null()).output().unwrap();
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of the process\n{}", self.log());
        }
        self.kill();
    }
}

/// The code of a refusal.
pub fn code<T: std::fmt::Debug>(answer: Result<T, ClientError>) -> String {
    match answer {
        Err(ClientError::Refused(refusal)) => refusal.code,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

/// Waits for a condition.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::yield_now();
    }
}

/// Numbers that repeat.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }
}
