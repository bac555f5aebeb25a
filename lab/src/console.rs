//! A serial console as a test sees it: wait for a text, type a line, run a command and get its output and exit code.
//!
//! A thread takes in all the console says, so that nothing is lost while nobody waits.

use crate::error::{Error, Result};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a shell may take to answer before the line is taken for lost.
const RETYPED_AFTER: Duration = Duration::from_secs(15);

/// Only the end of what is said is kept: more than any command in a test writes.
const KEPT: usize = 4 << 20;

#[derive(Debug, Default)]
struct Said {
    text: Vec<u8>,
    /// How many bytes have been dropped from the front.
    dropped: usize,
    ended: bool,
}

#[derive(Debug, Default)]
struct Ear {
    said: Mutex<Said>,
    changed: Condvar,
}

impl Ear {
    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A console with a shell behind it.
#[derive(Debug)]
pub struct Console {
    name: String,
    to: TcpStream,
    ear: Arc<Ear>,
    /// Up to where waits have looked.
    position: usize,
    commands: u64,
}

impl Console {
    /// A console over a connection to its socket, for example from [`crate::Server::connect`].
    ///
    /// # Errors
    /// When the connection cannot be shared between two threads.
    pub fn new(name: impl Into<String>, stream: TcpStream) -> Result<Self> {
        let name = name.into();
        let mut from = stream.try_clone().map_err(|e| Error::Rack(format!("{name}: {e}")))?;
        let ear = Arc::new(Ear::default());
        let theirs = ear.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = from.read(&mut buffer) {
                let mut said = theirs.said();
                said.text.extend_from_slice(&buffer[..n]);
                let surplus = said.text.len().saturating_sub(KEPT);
                said.text.drain(..surplus);
                said.dropped += surplus;
                drop(said);
                theirs.changed.notify_all();
            }
            theirs.said().ended = true;
            theirs.changed.notify_all();
        });
        Ok(Self { name, to: stream, ear, position: 0, commands: 0 })
    }

    /// Waits until the console says `text`, counted from the end of the last wait; gives all up to its end.
    ///
    /// # Errors
    /// When that does not happen in time or the console ends; the error shows what it said instead.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> Result<String> {
        let (start, wanted) = (self.position, text.as_bytes());
        let find = |said: &Said| {
            let from = start.saturating_sub(said.dropped).min(said.text.len());
            let at = said.text[from..].windows(wanted.len()).position(|w| w == wanted)?;
            Some((from, from + at + wanted.len()))
        };
        let said = self.ear.said();
        let (said, _) = self
            .ear
            .changed
            .wait_timeout_while(said, limit, |said| find(said).is_none() && !said.ended)
            .unwrap_or_else(PoisonError::into_inner);
        if let Some((from, to)) = find(&said) {
            self.position = said.dropped + to;
            return Ok(String::from_utf8_lossy(&said.text[from..to]).into_owned());
        }
        let tail = String::from_utf8_lossy(&said.text[said.text.len().saturating_sub(2000)..]);
        let how = if said.ended { "the console ended" } else { "the console goes on" };
        let what = format!("{text:?} on the console of {} ({how}; last: {tail})", self.name);
        Err(Error::Deadline { what, after: limit })
    }

    /// Types bytes.
    ///
    /// # Errors
    /// When the console is gone.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.to.write_all(bytes).map_err(|e| Error::Rack(format!("console of {}: {e}", self.name)))
    }

    /// Waits for the guest's shell and makes it fit for [`Self::run`].
    ///
    /// # Errors
    /// When no shell answers in time.
    pub fn login(&mut self, limit: Duration) -> Result<()> {
        self.wait_for("bixi-guest: ready", limit)?;
        self.adopt(limit)
    }

    /// Makes a shell that is there already fit for [`Self::run`].
    ///
    /// # Errors
    /// When no shell answers in time.
    pub fn adopt(&mut self, limit: Duration) -> Result<()> {
        // What is typed before the shell has opened its terminal may be thrown away: then it is typed again. Only the answer to
        // the last typed counts, so that no late answer is taken for a command's output.
        let start = Instant::now();
        for attempt in 1.. {
            // The typed line is echoed; what it prints is not in it, so only the shell's answer matches. Then a shell takes
            // over that reads the terminal as a script: it edits no lines, prints no prompt and no word about jobs, and does
            // not take the end of a background job for the end of its input, as busybox's line editing now and then does.
            // Messages of the kernel would break into answers.
            let line = format!(
                "\n stty -echo; dmesg -n 1; echo shell-\"is\"-here-{attempt}.; exec sh $(tty)\n"
            );
            self.send(line.as_bytes())?;
            let left = limit.saturating_sub(start.elapsed());
            match self.wait_for(&format!("shell-is-here-{attempt}."), left.min(RETYPED_AFTER)) {
                Err(Error::Deadline { .. }) if left > RETYPED_AFTER && !self.ended() => {}
                end => return end.map(drop),
            }
        }
        Ok(())
    }

    /// Gives the console a shell for people again, and leaves it.
    ///
    /// # Errors
    /// When no shell answers in time.
    pub fn hand_over(mut self, limit: Duration) -> Result<()> {
        self.skip();
        self.send(b"stty echo; PS1='guest # ' exec sh -l\n")?;
        self.wait_for("guest # ", limit).map(drop)
    }

    /// Runs a command in the guest's shell; its output, both streams, and its exit code.
    ///
    /// # Errors
    /// When it does not end in time or the console ends.
    pub fn run(&mut self, command: &str, limit: Duration) -> Result<(String, i32)> {
        self.commands += 1;
        let mark = format!("command-{}-ended", self.commands);
        self.skip();
        self.send(format!("{{ {command}\n}} 2>&1; echo \"{mark} $?.\"\n").as_bytes())?;
        let said = self.wait_for(&mark, limit)?;
        let code = self.wait_for(".", Duration::from_secs(10))?;
        let code = code.trim_matches(['.', ' ']).parse().map_err(|_| {
            Error::Rack(format!("console of {}: {code:?} is no exit code", self.name))
        })?;
        let output = said.trim_end_matches(&mark).replace("\r\n", "\n");
        Ok((output.trim_matches(['\n', '\r']).to_owned(), code))
    }

    /// Like [`Self::run`]; an exit code other than 0 is an error that shows the output.
    ///
    /// # Errors
    /// When the command fails, does not end in time, or the console ends.
    pub fn sh(&mut self, command: &str, limit: Duration) -> Result<String> {
        match self.run(command, limit)? {
            (output, 0) => Ok(output),
            (output, code) => Err(Error::Rack(format!(
                "in {}: `{command}` ended with {code}: {output}",
                self.name
            ))),
        }
    }

    /// All that was said and is kept.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.ear.said().text).into_owned()
    }

    /// Whether the other end has closed the console.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.ear.said().ended
    }

    /// Later waits begin here.
    fn skip(&mut self) {
        let said = self.ear.said();
        self.position = said.dropped + said.text.len();
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // The listening thread ends with the connection.
        let _ = self.to.shutdown(std::net::Shutdown::Both);
    }
}
