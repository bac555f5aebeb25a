//! One server of a rack, as a test or a command sees it: run programs, move files, reach its sockets.
//!
//! Every operation has a deadline; a server that hangs ends a test, it does not hang it.

use crate::error::{Attempt, Error, Result};
use crate::forward::Forward;
use crate::link::Link;
use crate::plan::{Places, management_address, underlay_address};
use crate::process::{Output, Process};
use crate::wire::{self, Answer, Kind, Request, Run};
use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a small operation may take.
const OPERATION_LIMIT: Duration = Duration::from_secs(60);

/// How long a command may take unless told otherwise.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// How an agent introduces itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// Since the server's kernel started.
    pub uptime: Duration,
    /// Whether it has `/dev/kvm`.
    pub kvm: bool,
    /// Processes that run beside the server's own.
    pub processes: usize,
}

/// A server of a rack. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Server {
    number: usize,
    link: Link,
}

impl Server {
    pub(crate) fn new(number: usize, link: Link) -> Self {
        Self { number, link }
    }

    /// Its number, from 1.
    #[must_use]
    pub fn number(&self) -> usize {
        self.number
    }

    /// Its address on the management network.
    #[must_use]
    pub fn management(&self) -> Ipv4Addr {
        management_address(self.number)
    }

    /// Its address on the underlay network.
    #[must_use]
    pub fn underlay(&self) -> Ipv4Addr {
        underlay_address(self.number)
    }

    /// Asks the agent how the server is.
    ///
    /// # Errors
    /// When the server does not answer.
    pub fn hello(&self) -> Result<Hello> {
        let mut stream = self.open(&Request::Hello)?;
        match self.receive(&mut stream)? {
            Answer::Hello { uptime_ms, kvm, processes } => {
                Ok(Hello { uptime: Duration::from_millis(uptime_ms), kvm, processes })
            }
            other => Err(self.unexpected(&other)),
        }
    }

    /// A command to run.
    pub fn command(&self, program: impl Into<String>) -> Command<'_> {
        let run = Run { words: vec![program.into()], ..Run::default() };
        Command { server: self, run, input: Vec::new(), limit: Some(COMMAND_LIMIT) }
    }

    /// Runs a shell script and gives what it wrote; an exit code other than 0 is an error that shows its output.
    ///
    /// # Errors
    /// When the server does not answer or the script fails.
    pub fn sh(&self, script: &str) -> Result<String> {
        let output = self.command("sh").arg("-c").arg(script).run()?;
        if output.success() {
            return Ok(output.text());
        }
        Err(self.error(format!("`{script}` {}", output.describe())))
    }

    /// Writes a file.
    ///
    /// # Errors
    /// When the server does not answer or cannot write it.
    pub fn put(&self, contents: &[u8], path: impl AsRef<Path>, mode: u32) -> Result<()> {
        let path = path.as_ref().to_owned();
        let mut stream = self.open(&Request::Put { path, mode })?;
        let sent = contents
            .chunks(64 << 10)
            .try_for_each(|chunk| wire::send(&mut stream, Kind::Data, chunk))
            .and_then(|()| wire::send(&mut stream, Kind::End, &[]));
        // The agent says why it stopped reading, if it did.
        match self.receive(&mut stream) {
            Ok(Answer::Done) => sent.attempt(|| "send a file".to_owned()),
            Ok(other) => Err(self.unexpected(&other)),
            Err(error) => Err(error),
        }
    }

    /// Copies a file of this machine into the server.
    ///
    /// # Errors
    /// When the file cannot be read, the server does not answer or cannot write it.
    pub fn put_file(&self, source: &Path, path: impl AsRef<Path>, mode: u32) -> Result<()> {
        let contents = std::fs::read(source).attempt(|| format!("read {}", source.display()))?;
        self.put(&contents, path, mode)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// When the server does not answer or cannot read it.
    pub fn get(&self, path: impl AsRef<Path>) -> Result<Vec<u8>> {
        let mut stream = self.open(&Request::Get { path: path.as_ref().to_owned() })?;
        self.expect_done(&mut stream)?;
        let mut contents = Vec::new();
        loop {
            match wire::receive(&mut stream).map_err(|e| self.error(e.to_string()))? {
                Some((Kind::Data, bytes)) => contents.extend_from_slice(&bytes),
                Some((Kind::End, _)) => return Ok(contents),
                _ => return Err(self.error(format!("{} broke off", path.as_ref().display()))),
            }
        }
    }

    /// A connection to a UNIX stream socket of the server.
    ///
    /// # Errors
    /// When the server does not answer or nobody listens there.
    pub fn connect(&self, path: impl AsRef<Path>) -> Result<TcpStream> {
        let mut stream = self.open(&Request::Connect { path: path.as_ref().to_owned() })?;
        self.expect_done(&mut stream)?;
        stream.set_read_timeout(None).attempt(|| "set a socket's time limit".to_owned())?;
        Ok(stream)
    }

    /// Ends every process that is not the server's own and empties `/run/bixi`, `/scratch` and `/tmp`.
    ///
    /// # Errors
    /// When the server does not answer or a process does not end.
    pub fn reset(&self) -> Result<()> {
        let mut stream = self.open(&Request::Reset)?;
        self.expect_done(&mut stream)
    }

    /// Brings a UNIX stream socket of the server to a path of this machine.
    ///
    /// # Errors
    /// When no socket can be made here.
    pub fn forward(&self, path: impl AsRef<Path>) -> Result<Forward> {
        Forward::new(self, &self.link.state, path.as_ref())
    }

    /// Carries this process's terminal to and from a UNIX stream socket of the server; `Ctrl-]` leaves.
    ///
    /// # Errors
    /// When the server does not answer or nobody listens there.
    pub fn attach_socket(&self, path: impl AsRef<Path>) -> Result<()> {
        let stream = self.connect(path)?;
        let share = stream.try_clone().attempt(|| "share a connection".to_owned())?;
        crate::terminal::attach(stream, share).attempt(|| "carry the console".to_owned())
    }

    /// Carries this process's terminal to and from the server's own console; `Ctrl-]` leaves.
    ///
    /// # Errors
    /// When the server has no console.
    pub fn attach_console(&self) -> Result<()> {
        let path = Places::new(&self.link.state).server(self.number).join("console.sock");
        let wrong = || format!("open the console of server-{}", self.number);
        let stream = crate::socket::connect(&path).attempt(wrong)?;
        let share = stream.try_clone().attempt(wrong)?;
        crate::terminal::attach(stream, share).attempt(wrong)
    }

    pub(crate) fn open(&self, request: &Request) -> Result<TcpStream> {
        let mut stream = self.link.connect(self.number)?;
        stream
            .set_read_timeout(Some(OPERATION_LIMIT))
            .and_then(|()| stream.set_write_timeout(Some(OPERATION_LIMIT)))
            .and_then(|()| wire::send_message(&mut stream, request))
            .map_err(|e| self.error(format!("its agent broke off: {e}")))?;
        Ok(stream)
    }

    pub(crate) fn receive(&self, stream: &mut TcpStream) -> Result<Answer> {
        match wire::receive_message(stream) {
            Ok(Answer::Failed { message }) => Err(self.error(message)),
            Ok(answer) => Ok(answer),
            Err(e) => Err(self.error(format!("its agent does not answer: {e}"))),
        }
    }

    fn expect_done(&self, stream: &mut TcpStream) -> Result<()> {
        match self.receive(stream)? {
            Answer::Done => Ok(()),
            other => Err(self.unexpected(&other)),
        }
    }

    pub(crate) fn error(&self, message: String) -> Error {
        Error::Server { server: self.number, message }
    }

    pub(crate) fn unexpected(&self, answer: &Answer) -> Error {
        self.error(format!("unexpected answer {answer:?}"))
    }
}

/// A command to run in a server.
#[derive(Debug)]
pub struct Command<'a> {
    server: &'a Server,
    run: Run,
    input: Vec<u8>,
    limit: Option<Duration>,
}

impl Command<'_> {
    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, word: impl Into<String>) -> Self {
        self.run.words.push(word.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<W: Into<String>>(mut self, words: impl IntoIterator<Item = W>) -> Self {
        self.run.words.extend(words.into_iter().map(Into::into));
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.run.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Runs it in this folder.
    #[must_use]
    pub fn folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.run.folder = Some(folder.into());
        self
    }

    /// Gives it this to read.
    #[must_use]
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = bytes.into();
        self
    }

    /// Kills it and its process group after this time; 60 seconds unless told, for ever when spawned.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// When the server does not answer or the program cannot be started. Its exit code is not looked at.
    pub fn run(mut self) -> Result<Output> {
        let limit = self.limit.unwrap_or(COMMAND_LIMIT);
        self.run.limit_ms = Some(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX));
        let input = std::mem::take(&mut self.input);
        let mut process = Process::start(self.server, &self.run)?;
        process.write(&input)?;
        process.end_input()?;
        // The agent kills the program in time; more is waited only for a server that hangs.
        process.wait_with_output(limit + OPERATION_LIMIT)
    }

    /// Starts it and lets it run; it is killed when the [`Process`] is dropped. Its output is kept there.
    ///
    /// # Errors
    /// When the server does not answer or the program cannot be started.
    pub fn spawn(self) -> Result<Process> {
        let mut process = Process::start(self.server, &self.run)?;
        process.write(&self.input)?;
        Ok(process)
    }

    /// Like [`Self::spawn`], with its output appended to a file of the server.
    ///
    /// # Errors
    /// When the server does not answer or the program cannot be started.
    pub fn spawn_logged(mut self, log: impl Into<PathBuf>) -> Result<Process> {
        self.run.log = Some(log.into());
        self.spawn()
    }

    /// Starts it for good, with its output in a file of the server: it outlives this process. Returns its id.
    ///
    /// # Errors
    /// When the server does not answer or the program cannot be started.
    pub fn detach(mut self, log: impl Into<PathBuf>) -> Result<i32> {
        self.run.log = Some(log.into());
        self.run.stays = true;
        Ok(Process::start(self.server, &self.run)?.leave())
    }

    /// Runs it on this process's terminal, if there is one, and gives its exit code.
    ///
    /// # Errors
    /// When the server does not answer or the program cannot be started.
    pub fn interact(mut self) -> Result<i32> {
        let terminal = crate::terminal::Terminal::raw();
        self.run.terminal = terminal.as_ref().map(crate::terminal::Terminal::size);
        let process = Process::start(self.server, &self.run)?;
        process.interact(terminal.as_ref())
    }
}

/// Copies a stream's bytes to a writer until it ends, without holding any back.
pub(crate) fn copy_promptly(from: &mut impl io::Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = [0; 16 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => to.write_all(&buffer[..n]).and_then(|()| to.flush())?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}
