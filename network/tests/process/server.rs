//! `bixi-network` as a child process.

use bixi_api::client::{ClientError, ControlClient};
use bixi_api::error::ApiError;
use bixi_api::network::{PortAdd, PortDescription, PortLimits, PortStatistics, SegmentConfig};
use serde::de::DeserializeOwned;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Everything here is done in milliseconds; a machine under load may take longer.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_bixi-network");

/// A running process and its folder.
pub struct Server {
    pub folder: tempfile::TempDir,
    child: Child,
    extra: Vec<String>,
    namespace: Option<String>,
}

/// Waits until `done` gives something.
pub fn wait_for<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A folder on tmpfs where there is one.
pub fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.unwrap()
}

impl Server {
    pub fn start(extra: &[&str]) -> Self {
        Self::start_in(None, extra)
    }

    /// Starts a process, in a network namespace if one is named.
    pub fn start_in(namespace: Option<&str>, extra: &[&str]) -> Self {
        let folder = folder();
        let namespace = namespace.map(str::to_owned);
        let extra: Vec<String> = extra.iter().map(|argument| (*argument).to_owned()).collect();
        let child = spawn(folder.path(), namespace.as_deref(), &extra);
        let server = Self { folder, child, extra, namespace };
        server.wait_ready();
        server
    }

    fn wait_ready(&self) {
        wait_for("the control socket", || {
            self.get::<bixi_api::network::NetworkDescription>("/v1/network").ok()
        });
    }

    /// Ends the process as a crash would, and waits until it is gone.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to end; its exit status.
    pub fn terminate(&mut self) -> std::process::ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.child.wait().unwrap()
    }

    /// Starts it again with the same command line.
    pub fn restart(&mut self) {
        self.child = spawn(self.folder.path(), self.namespace.as_deref(), &self.extra);
        self.wait_ready();
    }

    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn ask<T>(&self, ask: impl AsyncFnOnce(ControlClient) -> T) -> T {
        let client = ControlClient::new(self.path("control"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(ask(client))
    }

    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.ask(async |client| client.get(path).await)
    }

    pub fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl serde::Serialize,
    ) -> Result<T, ClientError> {
        self.ask(async |client| client.put(path, body).await)
    }

    pub fn delete(&self, path: &str) -> Result<(), ClientError> {
        self.ask(async |client| client.delete(path).await)
    }

    /// Adds port number `n` of segment 7.
    pub fn add_port(&self, n: u8, queue_pairs: u16) -> PathBuf {
        let add = self.port(n, queue_pairs);
        self.put::<PortDescription>(&format!("/v1/ports/p{n}"), &add).unwrap();
        add.socket
    }

    /// Port number `n` of segment 7.
    pub fn port(&self, n: u8, queue_pairs: u16) -> PortAdd {
        PortAdd {
            epoch: 1,
            socket: self.path(&format!("p{n}.sock")),
            segment: 7,
            mac: format!("02:00:00:00:00:{n:02x}"),
            ipv4: vec![Ipv4Addr::new(10, 0, 0, n)],
            queue_pairs,
            require_sealed: false,
            limits: PortLimits::NONE,
        }
    }

    pub fn describe(&self, n: u8) -> PortDescription {
        self.get(&format!("/v1/ports/p{n}")).unwrap()
    }

    pub fn statistics(&self, n: u8) -> PortStatistics {
        self.describe(n).statistics
    }

    /// Runs a subcommand against it.
    pub fn command(&self, arguments: &[&str]) -> Output {
        let control = self.path("control");
        Command::new(PROGRAM).args(arguments).arg("--control").arg(control).output().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(folder: &Path, namespace: Option<&str>, extra: &[String]) -> Child {
    let mut command = match namespace {
        None => Command::new(PROGRAM),
        Some(namespace) => {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", namespace, PROGRAM]);
            command
        }
    };
    let log =
        std::fs::OpenOptions::new().create(true).append(true).open(folder.join("log")).unwrap();
    command
        .arg("serve")
        .arg("--state")
        .arg(folder.join("state"))
        .arg("--control")
        .arg(folder.join("control"))
        .args(extra)
        .stdin(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}

/// Segment 7 as the tests use it, without peers.
pub fn segment() -> SegmentConfig {
    SegmentConfig {
        generation: 1,
        network: Ipv4Addr::new(10, 0, 0, 0),
        prefix_len: 24,
        gateway: Some(Ipv4Addr::new(10, 0, 0, 254)),
        dns: vec![Ipv4Addr::new(10, 0, 0, 253)],
        mtu: 1450,
        peers: vec![],
        names: None,
    }
}

/// The refusal that a request met.
pub fn refused<T: std::fmt::Debug>(result: Result<T, ClientError>) -> ApiError {
    match result {
        Err(ClientError::Refused(error)) => error,
        other => panic!("expected a refusal, got {other:?}"),
    }
}
