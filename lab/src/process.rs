//! A program that runs in a server, seen from here.
//!
//! A thread takes in what comes from the agent, so that the program is never held up; the connection is the program's
//! life line unless it was started to stay.

use crate::error::{Error, Result};
use crate::server::Server;
use crate::terminal::Terminal;
use crate::wire::{self, Answer, Ended, Kind, Request, Run};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What a program wrote and how it ended.
#[derive(Debug, Clone)]
pub struct Output {
    /// How it ended.
    pub ended: Ended,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Whether its exit code is 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.ended.code == Some(0)
    }

    /// Its standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Its standard error as text.
    #[must_use]
    pub fn error_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// How it ended and what it said, for a message.
    #[must_use]
    pub fn describe(&self) -> String {
        let how = match self.ended {
            Ended { late: true, .. } => "did not end in time".to_owned(),
            Ended { code: Some(code), .. } => format!("ended with {code}"),
            Ended { signal, .. } => format!("was ended by signal {}", signal.unwrap_or_default()),
        };
        format!("{how}; output: {}; error: {}", self.text().trim(), self.error_text().trim())
    }
}

#[derive(Debug, Default)]
struct Heard {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    /// How it ended, or why that will not be known.
    end: Option<std::result::Result<Ended, String>>,
}

#[derive(Debug, Default)]
struct Ear {
    heard: Mutex<Heard>,
    changed: Condvar,
}

impl Ear {
    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running program. Dropping it kills the program and its process group.
#[derive(Debug)]
pub struct Process {
    server: Server,
    pid: i32,
    stream: TcpStream,
    ear: Arc<Ear>,
}

impl Process {
    pub(crate) fn start(server: &Server, run: &Run) -> Result<Self> {
        let mut stream = server.open(&Request::Run(run.clone()))?;
        let pid = match server.receive(&mut stream)? {
            Answer::Started { pid } => pid,
            other => return Err(server.unexpected(&other)),
        };
        let ear = Arc::new(Ear::default());
        let mut from = stream
            .set_read_timeout(None)
            .and_then(|()| stream.try_clone())
            .map_err(|e| server.error(e.to_string()))?;
        let theirs = ear.clone();
        std::thread::spawn(move || {
            let end = listen(&mut from, &theirs);
            theirs.heard().end = Some(end);
            theirs.changed.notify_all();
        });
        Ok(Self { server: server.clone(), pid, stream, ear })
    }

    /// Its process id in the server.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Gives it something to read.
    ///
    /// # Errors
    /// When the server is gone.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        for chunk in bytes.chunks(64 << 10) {
            self.send(Kind::Data, chunk)?;
        }
        Ok(())
    }

    /// Tells it that there is no more to read.
    ///
    /// # Errors
    /// When the server is gone.
    pub fn end_input(&mut self) -> Result<()> {
        self.send(Kind::End, &[])
    }

    /// Sends a signal to its process group.
    ///
    /// # Errors
    /// When the server is gone.
    pub fn signal(&mut self, number: i32) -> Result<()> {
        self.send(Kind::Signal, &number.to_le_bytes())
    }

    /// Kills it with SIGKILL and waits for its end.
    ///
    /// # Errors
    /// When the server is gone or the process does not end.
    pub fn kill(&mut self) -> Result<Ended> {
        self.signal(9)?;
        self.wait(Duration::from_secs(30))
    }

    /// Whether and how it has ended.
    #[must_use]
    pub fn ended(&self) -> Option<Ended> {
        self.ear.heard().end.as_ref().and_then(|end| end.as_ref().ok().copied())
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end in time, or the server is gone.
    pub fn wait(&self, limit: Duration) -> Result<Ended> {
        let heard = self.ear.heard();
        let (heard, _) = self
            .ear
            .changed
            .wait_timeout_while(heard, limit, |h| h.end.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        match &heard.end {
            Some(Ok(ended)) => Ok(*ended),
            Some(Err(reason)) => Err(self.server.error(reason.clone())),
            None => Err(Error::Deadline {
                what: format!("the end of process {} of server-{}", self.pid, self.server.number()),
                after: limit,
            }),
        }
    }

    /// Waits until its standard output contains `text`, and gives all of it.
    ///
    /// # Errors
    /// When that does not happen in time; the error shows what it wrote instead.
    pub fn wait_for(&self, text: &str, limit: Duration) -> Result<String> {
        let missing =
            |h: &mut Heard| h.end.is_none() && !String::from_utf8_lossy(&h.stdout).contains(text);
        let heard = self.ear.heard();
        let (heard, _) = self
            .ear
            .changed
            .wait_timeout_while(heard, limit, missing)
            .unwrap_or_else(PoisonError::into_inner);
        let said = String::from_utf8_lossy(&heard.stdout).into_owned();
        if said.contains(text) {
            return Ok(said);
        }
        let errors = String::from_utf8_lossy(&heard.stderr).into_owned();
        let what = format!("{text:?} of process {} (it said {said:?}, {errors:?})", self.pid);
        Err(Error::Deadline { what, after: limit })
    }

    /// Waits for its end and gives what it wrote.
    ///
    /// # Errors
    /// When it does not end in time, or the server is gone.
    pub fn wait_with_output(self, limit: Duration) -> Result<Output> {
        let ended = self.wait(limit)?;
        let mut heard = self.ear.heard();
        Ok(Output {
            ended,
            stdout: std::mem::take(&mut heard.stdout),
            stderr: std::mem::take(&mut heard.stderr),
        })
    }

    /// Lets it go: it was started to stay.
    pub(crate) fn leave(self) -> i32 {
        self.pid
    }

    /// Carries this process's input and output until the program ends; gives its exit code.
    pub(crate) fn interact(self, terminal: Option<&Terminal>) -> Result<i32> {
        let mut to = self.stream.try_clone().map_err(|e| self.server.error(e.to_string()))?;
        let resize = self.stream.try_clone().map_err(|e| self.server.error(e.to_string()))?;
        if let Some(terminal) = terminal {
            terminal.on_resize(move |(rows, columns)| {
                let mut payload = rows.to_le_bytes().to_vec();
                payload.extend(columns.to_le_bytes());
                // A program that has ended has no use for a size.
                let _ = wire::send(&mut &resize, Kind::Resize, &payload);
            });
        }
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n) = io::stdin().read(&mut buffer) {
                let kind = if n == 0 { Kind::End } else { Kind::Data };
                if wire::send(&mut to, kind, &buffer[..n]).is_err() || n == 0 {
                    break;
                }
            }
        });
        loop {
            let (out, err, end) = {
                let heard = self.ear.heard();
                let mut heard = self
                    .ear
                    .changed
                    .wait_while(heard, |h| {
                        h.end.is_none() && h.stdout.is_empty() && h.stderr.is_empty()
                    })
                    .unwrap_or_else(PoisonError::into_inner);
                let out = std::mem::take(&mut heard.stdout);
                (out, std::mem::take(&mut heard.stderr), heard.end.clone())
            };
            // A reader who has gone away does not end the program.
            let _ = io::stdout().write_all(&out).and_then(|()| io::stdout().flush());
            let _ = io::stderr().write_all(&err);
            match end {
                None => {}
                Some(Ok(ended)) => {
                    return Ok(ended.code.unwrap_or(128 + ended.signal.unwrap_or_default()));
                }
                Some(Err(reason)) => return Err(self.server.error(reason)),
            }
        }
    }

    fn send(&mut self, kind: Kind, payload: &[u8]) -> Result<()> {
        match wire::send(&mut self.stream, kind, payload) {
            Ok(()) => Ok(()),
            // It has ended; whoever waits for it learns how.
            Err(_) if self.ear.heard().end.is_some() => Ok(()),
            Err(e) => Err(self.server.error(format!("its agent broke off: {e}"))),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The agent kills the program when its life line is cut; a program that stays is not watched.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

fn listen(from: &mut TcpStream, ear: &Ear) -> std::result::Result<Ended, String> {
    loop {
        match wire::receive(from) {
            Ok(Some((Kind::Data, bytes))) => ear.heard().stdout.extend_from_slice(&bytes),
            Ok(Some((Kind::Error, bytes))) => ear.heard().stderr.extend_from_slice(&bytes),
            Ok(Some((Kind::Message, bytes))) => {
                return match serde_json::from_slice(&bytes) {
                    Ok(Answer::Ended(ended)) => Ok(ended),
                    Ok(Answer::Failed { message }) => Err(message),
                    Ok(other) => Err(format!("unexpected answer {other:?}")),
                    Err(e) => Err(e.to_string()),
                };
            }
            Ok(Some((kind, _))) => return Err(format!("unexpected {kind:?}")),
            Ok(None) => return Err("its agent broke off".to_owned()),
            Err(e) => return Err(format!("its agent broke off: {e}")),
        }
        ear.changed.notify_all();
    }
}
