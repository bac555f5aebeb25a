//! A program that runs in a server for as long as the test or the demo wants, and can be killed and started again.

use crate::error::{Failure, Result};
use crate::wait_for;
use bixi_lab::{Ended, Process, Server};
use std::path::PathBuf;
use std::time::Duration;

/// An emulated server is slow to end a program.
const END_LIMIT: Duration = Duration::from_secs(30);

/// Whether a program lives as long as its handle here, or on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lease {
    /// It is killed when its handle is dropped.
    Handle,
    /// It stays until somebody ends it.
    Own,
}

/// The program, and its process if it runs.
#[derive(Debug)]
pub struct Daemon {
    server: Server,
    name: &'static str,
    arguments: Vec<String>,
    lease: Lease,
    process: Option<Process>,
    pid: i32,
}

impl Daemon {
    /// A program of `/usr/bin` with its arguments; it does not run yet.
    #[must_use]
    pub fn new(server: &Server, name: &'static str, arguments: Vec<String>, lease: Lease) -> Self {
        Self { server: server.clone(), name, arguments, lease, process: None, pid: 0 }
    }

    /// Starts it, with variables in its environment.
    ///
    /// # Errors
    /// When the server cannot start it.
    pub fn start_with(&mut self, environment: &[(&str, &str)]) -> Result<()> {
        let mut command = self.server.command(format!("/usr/bin/{}", self.name));
        command = command.args(&self.arguments);
        if let Ok(level) = std::env::var("BIXI_LOG") {
            command = command.env("BIXI_LOG", &level);
        }
        for (name, value) in environment {
            command = command.env(name, value);
        }
        match self.lease {
            Lease::Handle => {
                let process = command.spawn_logged(self.log())?;
                self.pid = process.pid();
                self.process = Some(process);
            }
            Lease::Own => self.pid = command.detach(self.log())?,
        }
        Ok(())
    }

    /// Starts it and waits until it answers `ask`; an end of it ends the waiting.
    ///
    /// # Errors
    /// When that does not happen in time; what it logged is told.
    pub fn start_until<T>(
        &mut self,
        environment: &[(&str, &str)],
        limit: Duration,
        mut ask: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        self.start_with(environment)?;
        let ready = wait_for(&format!("the start of {}", self.name), limit, || {
            if let Some(ended) = self.process.as_ref().and_then(Process::ended) {
                // Waiting longer would not help.
                return Ok(Some(Err(Failure::new(format!("{} ended: {ended:?}", self.name)))));
            }
            Ok(ask()?.map(Ok))
        });
        ready
            .flatten()
            .map_err(|failure| Failure::new(format!("{failure}; its log: {}", self.logged())))
    }

    /// Kills it with SIGKILL and waits until it is gone.
    ///
    /// # Errors
    /// When it does not end.
    pub fn kill(&mut self) -> Result<()> {
        match &mut self.process {
            Some(process) => process.kill().map(drop)?,
            None => {
                let pid = self.pid;
                self.server.sh(&format!("kill -9 {pid}"))?;
                wait_for("the end of a process", END_LIMIT, || {
                    let gone = self.server.sh(&format!("! kill -0 {pid} 2>/dev/null"));
                    Ok(gone.ok().map(drop))
                })?;
            }
        }
        self.process = None;
        Ok(())
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    /// When it does not end in time, or was not started with a handle.
    pub fn wait_end(&mut self, limit: Duration) -> Result<Ended> {
        match &self.process {
            Some(process) => Ok(process.wait(limit)?),
            None => Err(Failure::new("a process without a handle cannot be waited for")),
        }
    }

    /// Its process id in the server.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The end of its log.
    #[must_use]
    pub fn logged(&self) -> String {
        let log = self.log();
        let tail = self.server.command("tail").args(["-n", "30"]).arg(log.to_string_lossy()).run();
        tail.map_or_else(|e| e.to_string(), |output| output.text())
    }

    fn log(&self) -> PathBuf {
        PathBuf::from(format!("/run/bixi/log/{}.log", self.name))
    }
}
