//! Runs one program for one connection.
//!
//! One loop waits for everything at once: the connection, the program's output, room in its input, its end and its time
//! limit. The program leads its own process group; the group is killed when its time is up and, unless it *stays*, when
//! the connection ends. When the program ends, what it has written is sent, and whoever it left behind keeps running.

use crate::wire::{self, Answer, Assembler, Ended, Kind, Run};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use rustix::termios::Winsize;
use std::fs;
use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Input the program has not taken yet, beyond which the connection is not read.
const INPUT_LIMIT: usize = 1 << 20;

/// A program's three streams as this end holds them; a terminal is input and output at once.
struct Streams {
    input: Option<OwnedFd>,
    output: Option<OwnedFd>,
    error: Option<OwnedFd>,
}

struct Session<'a> {
    stream: &'a TcpStream,
    group: Pid,
    streams: Streams,
    frames: Assembler,
    pending: Vec<u8>,
    input_ended: bool,
    /// Whether the other end is still there.
    connected: bool,
}

/// Runs the program to its end and reports it.
pub(super) fn run(stream: &TcpStream, run: &Run) -> io::Result<()> {
    let (mut child, streams) = start(run)?;
    let group = Pid::from_child(&child);
    let pidfd = pidfd_open(group, PidfdFlags::empty())?;
    let started = Answer::Started { pid: group.as_raw_nonzero().get() };
    wire::send_message(&mut { stream }, &started)?;
    let mut session = Session {
        stream,
        group,
        streams,
        frames: Assembler::default(),
        pending: Vec::new(),
        input_ended: false,
        connected: true,
    };
    let deadline = run.limit_ms.map(|ms| Instant::now() + Duration::from_millis(ms));
    let late = session.serve(&pidfd, deadline, run.stays)?;
    let status = child.wait()?;
    if !session.connected {
        return Ok(());
    }
    let ended = Ended { code: status.code(), signal: status.signal(), late };
    wire::send_message(&mut { stream }, &Answer::Ended(ended))
}

impl Session<'_> {
    /// Serves until the program has ended; whether its time was up.
    fn serve(&mut self, end: &OwnedFd, deadline: Option<Instant>, stays: bool) -> io::Result<bool> {
        let mut late = false;
        loop {
            let wait = match deadline {
                Some(at) if !late => Some(at.saturating_duration_since(Instant::now())),
                _ => None,
            };
            if self.poll(end, wait)? {
                self.drain()?;
                return Ok(late);
            }
            if deadline.is_some_and(|at| Instant::now() >= at) && !late {
                late = true;
                self.kill();
            }
            if !self.connected && !stays {
                self.kill();
            }
        }
    }

    /// Waits once and does what can be done; whether the program has ended.
    fn poll(&mut self, end: &OwnedFd, wait: Option<Duration>) -> io::Result<bool> {
        let (mut ended, mut readable, mut writable) = (false, [false; 3], false);
        {
            let sources = [
                (self.connected && self.pending.len() < INPUT_LIMIT).then_some(self.stream.as_fd()),
                self.streams.output.as_ref().map(AsFd::as_fd),
                self.streams.error.as_ref().map(AsFd::as_fd),
            ];
            let mut fds = vec![PollFd::new(end, PollFlags::IN)];
            let mut order = Vec::new();
            for (index, source) in sources.iter().enumerate() {
                if let Some(fd) = source {
                    fds.push(PollFd::from_borrowed_fd(*fd, PollFlags::IN));
                    order.push(index);
                }
            }
            let input = self.streams.input.as_ref().filter(|_| !self.pending.is_empty());
            if let Some(input) = input {
                fds.push(PollFd::new(input, PollFlags::OUT));
            }
            let wait = wait.map(|w| Timespec {
                tv_sec: w.as_secs().cast_signed(),
                tv_nsec: w.subsec_nanos().into(),
            });
            match poll(&mut fds, wait.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
            ended |= !fds[0].revents().is_empty();
            for (slot, index) in order.iter().enumerate() {
                readable[*index] = !fds[slot + 1].revents().is_empty();
            }
            writable |= input.is_some() && fds.last().is_some_and(|fd| !fd.revents().is_empty());
        }
        if readable[0] {
            self.take_frames()?;
        }
        if readable[1] {
            self.forward_output()?;
        }
        if readable[2] {
            self.forward_error()?;
        }
        if writable {
            self.feed();
        }
        Ok(ended)
    }

    /// Sends what the ended program has left in its streams.
    fn drain(&mut self) -> io::Result<()> {
        while self.forward_output()? {}
        while self.forward_error()? {}
        Ok(())
    }

    fn forward_output(&mut self) -> io::Result<bool> {
        forward(self.stream, &mut self.connected, Kind::Data, &mut self.streams.output)
    }

    fn forward_error(&mut self) -> io::Result<bool> {
        forward(self.stream, &mut self.connected, Kind::Error, &mut self.streams.error)
    }

    fn take_frames(&mut self) -> io::Result<()> {
        let mut buffer = [0; 16 << 10];
        match rustix::io::read(self.stream, &mut buffer) {
            Ok(0) => self.connected = false,
            Ok(n) => self.frames.push(&buffer[..n]),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(_) => self.connected = false,
        }
        while let Some((kind, payload)) = self.frames.next()? {
            match kind {
                Kind::Data => self.pending.extend_from_slice(&payload),
                Kind::End => self.input_ended = true,
                Kind::Signal => self.signal(&payload),
                Kind::Resize => self.resize(&payload),
                Kind::Message | Kind::Error => {
                    return Err(io::Error::other(format!("{kind:?} is not for a program")));
                }
            }
        }
        self.feed();
        Ok(())
    }

    /// Gives the program as much of its input as it takes.
    fn feed(&mut self) {
        while let Some(input) = &self.streams.input {
            if self.pending.is_empty() {
                break;
            }
            match rustix::io::write(input, &self.pending) {
                Ok(n) => drop(self.pending.drain(..n)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                // The program has closed its input: what is left has no reader.
                Err(_) => self.streams.input = None,
            }
        }
        if self.streams.input.is_none() {
            self.pending.clear();
        } else if self.input_ended {
            self.streams.input = None;
        }
    }

    fn signal(&self, payload: &[u8]) {
        let number = payload.first_chunk().map(|b| i32::from_le_bytes(*b));
        if let Some(signal) = number.and_then(Signal::from_named_raw) {
            // The group may have ended meanwhile.
            let _ = kill_process_group(self.group, signal);
        }
    }

    fn kill(&self) {
        // The group may have ended meanwhile.
        let _ = kill_process_group(self.group, Signal::KILL);
    }

    fn resize(&self, payload: &[u8]) {
        if let ([r0, r1, c0, c1], Some(terminal)) = (payload, &self.streams.input) {
            let size = (u16::from_le_bytes([*r0, *r1]), u16::from_le_bytes([*c0, *c1]));
            // Only a terminal has a size.
            let _ = set_size(terminal.as_fd(), size);
        }
    }
}

/// Sends what one stream has; whether there may be more.
fn forward(
    mut to: &TcpStream,
    connected: &mut bool,
    kind: Kind,
    from: &mut Option<OwnedFd>,
) -> io::Result<bool> {
    let Some(fd) = from else { return Ok(false) };
    let mut buffer = [0; 32 << 10];
    match rustix::io::read(&*fd, &mut buffer) {
        // A terminal whose last program is gone reports an input/output error.
        Ok(0) | Err(Errno::IO) => {
            *from = None;
            Ok(false)
        }
        Ok(n) => {
            // Whoever is gone does not need it, and the program must not be held up.
            *connected = *connected && wire::send(&mut to, kind, &buffer[..n]).is_ok();
            Ok(true)
        }
        Err(Errno::AGAIN) => Ok(false),
        Err(Errno::INTR) => Ok(true),
        Err(e) => Err(e.into()),
    }
}

fn start(run: &Run) -> io::Result<(Child, Streams)> {
    let (program, arguments) =
        run.words.split_first().ok_or_else(|| io::Error::other("no program is named"))?;
    let mut command = Command::new(program);
    command.args(arguments).envs(run.environment.iter().map(|(k, v)| (k, v)));
    if let Some(folder) = &run.folder {
        command.current_dir(folder);
    }
    let spawn = |command: &mut Command| {
        command.spawn().map_err(|e| io::Error::new(e.kind(), format!("{program}: {e}")))
    };
    if let Some(size) = run.terminal {
        return on_terminal(command, size, spawn);
    }
    command.stdin(Stdio::piped()).process_group(0);
    match &run.log {
        Some(path) => {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            let log = fs::OpenOptions::new().create(true).append(true).open(path)?;
            command.stdout(log.try_clone()?).stderr(log);
        }
        None => {
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
        }
    }
    let mut child = spawn(&mut command)?;
    let streams = Streams {
        input: child.stdin.take().map(OwnedFd::from),
        output: child.stdout.take().map(OwnedFd::from),
        error: child.stderr.take().map(OwnedFd::from),
    };
    for fd in [&streams.input, &streams.output, &streams.error].into_iter().flatten() {
        do_not_block(fd)?;
    }
    Ok((child, streams))
}

fn on_terminal(
    mut command: Command,
    size: (u16, u16),
    spawn: impl Fn(&mut Command) -> io::Result<Child>,
) -> io::Result<(Child, Streams)> {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let name = ptsname(&ours, Vec::new())?;
    let theirs = rustix::fs::open(
        name.as_c_str(),
        OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    set_size(theirs.as_fd(), size)?;
    command
        .stdin(theirs.try_clone()?)
        .stdout(theirs.try_clone()?)
        .stderr(theirs)
        .env("TERM", "xterm-256color");
    // SAFETY: between fork and exec only two system calls are made, which neither allocate nor take a lock.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            rustix::process::ioctl_tiocsctty(BorrowedFd::borrow_raw(0))?;
            Ok(())
        });
    }
    let child = spawn(&mut command)?;
    // The other side of the terminal must be closed here, or its end is never seen.
    drop(command);
    do_not_block(&ours)?;
    let streams = Streams { input: Some(ours.try_clone()?), output: Some(ours), error: None };
    Ok((child, streams))
}

fn set_size(terminal: BorrowedFd<'_>, (rows, columns): (u16, u16)) -> io::Result<()> {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(rustix::termios::tcsetwinsize(terminal, size)?)
}

fn do_not_block(fd: &OwnedFd) -> io::Result<()> {
    let flags = fcntl_getfl(fd)?;
    Ok(fcntl_setfl(fd, flags | OFlags::NONBLOCK)?)
}
