//! A front end that waits: for tests and load generators, which play VMM and guest at once.
//!
//! [`Client`] drives a [`Shell`] with poll(2) in the caller's thread: it reconnects and replays only while one of its methods
//! runs. [`Keeper`] gives it a thread, so that a test may sit in its queues while back ends come and go.

use super::arena::GuestArena;
use super::queue::DriverQueue;
use super::shell::{Notice, Shell, Target};
use super::types::{Activation, ActivationError, Down, FrontConfig, LogArea, Probe, Ring};
use crate::memory::GuestMemory;
use crate::ring::SharedFd;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What did not come about.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The deadline came first.
    #[error("the back end was not {what} in time{}", .why.as_ref().map(|why| format!(": {why}")).unwrap_or_default())]
    Late {
        /// What was waited for.
        what: &'static str,
        /// Why the last back end was left, if one was.
        why: Option<Down>,
    },
    /// The rings cannot be.
    #[error(transparent)]
    Activation(#[from] ActivationError),
    /// The kernel refused.
    #[error("cannot wait for the back end")]
    System(#[from] io::Error),
}

/// A blocking front end. See the module's text.
#[derive(Debug)]
pub struct Client {
    shell: Shell,
    /// Counts of what was told, and the last of each.
    seen: Seen,
}

/// What a client has been told so far.
#[derive(Debug, Default)]
struct Seen {
    probe: Option<Probe>,
    running: u64,
    stopped: Vec<Vec<(u16, Option<u16>)>>,
    memory_in_force: bool,
    log_in_force: bool,
    calls_in_force: u64,
    config_changes: u64,
    downs: Vec<Down>,
}

impl Client {
    /// A client for the back end at `path` that shares the memory of `arena`. Nothing is sent before the first wait.
    #[must_use]
    pub fn new(config: FrontConfig, path: &Path, arena: &GuestArena) -> Self {
        Self::with_target(config, Target::Path(path.to_owned()), arena)
    }

    /// The same for any target.
    #[must_use]
    pub fn with_target(config: FrontConfig, target: Target, arena: &GuestArena) -> Self {
        let memory = Arc::clone(arena.memory());
        let read_used = Box::new(move |ring: &Ring| used_idx(&memory, ring));
        let mut shell = Shell::new(config, target, read_used);
        shell.set_memory(arena.regions());
        Self::around(shell)
    }

    /// A client around a shell that is set up already.
    #[must_use]
    pub fn around(shell: Shell) -> Self {
        Self { shell, seen: Seen::default() }
    }

    /// The shell, to be used otherwise.
    #[must_use]
    pub fn into_shell(self) -> Shell {
        self.shell
    }

    /// The shell beneath.
    #[must_use]
    pub fn shell(&self) -> &Shell {
        &self.shell
    }

    /// What the newest back end said of itself.
    #[must_use]
    pub fn probed(&self) -> Option<&Probe> {
        self.seen.probe.as_ref()
    }

    /// Whether a back end is at work on the rings.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.shell.session().is_running()
    }

    /// How often a back end has taken up the rings.
    #[must_use]
    pub fn starts(&self) -> u64 {
        self.seen.running
    }

    /// Why each back end was left, oldest first.
    #[must_use]
    pub fn downs(&self) -> &[Down] {
        &self.seen.downs
    }

    /// How often the configuration space changed at run time.
    #[must_use]
    pub fn config_changes(&self) -> u64 {
        self.seen.config_changes
    }

    /// The in-flight record, if the back end gave one.
    #[must_use]
    pub fn record(&self) -> Option<&SharedFd> {
        self.shell.record()
    }

    /// Waits for a back end that says what it is.
    ///
    /// # Errors
    /// None came in time.
    pub fn probe(&mut self, within: Duration) -> Result<Probe, ClientError> {
        self.wait("reached", within, |client| client.seen.probe.is_some())?;
        Ok(self.seen.probe.clone().unwrap_or_default())
    }

    /// Activates the device with these queues as they are, from where the device is to begin, and waits until a
    /// back end has taken them up.
    ///
    /// # Errors
    /// The rings cannot be, or no back end took them up in time.
    pub fn activate(
        &mut self,
        features: u64,
        queues: &[&DriverQueue],
        within: Duration,
    ) -> Result<(), ClientError> {
        let rings = queues.iter().map(|queue| queue.ring()).collect();
        self.activate_rings(features, rings, queues, within)
    }

    /// As [`Client::activate`], with other bases or some rings disabled.
    ///
    /// # Errors
    /// As [`Client::activate`].
    pub fn activate_rings(
        &mut self,
        features: u64,
        rings: Vec<Ring>,
        queues: &[&DriverQueue],
        within: Duration,
    ) -> Result<(), ClientError> {
        let activation = Activation::new(features, rings)?;
        let fds: BTreeMap<_, _> =
            queues.iter().map(|queue| (queue.ring().index, queue.fds().clone())).collect();
        if activation.rings().iter().any(|ring| !fds.contains_key(&ring.index)) {
            return Err(io::Error::from(io::ErrorKind::InvalidInput).into());
        }
        self.shell.activate(activation, fds);
        self.wait_running(within)
    }

    /// Waits until a back end is at work on the rings.
    ///
    /// # Errors
    /// None is in time.
    pub fn wait_running(&mut self, within: Duration) -> Result<(), ClientError> {
        self.wait("at work on the rings", within, Self::is_running)
    }

    /// Waits until a back end has taken up the rings for the `starts`-th time.
    ///
    /// # Errors
    /// None has in time.
    pub fn wait_starts(&mut self, starts: u64, within: Duration) -> Result<(), ClientError> {
        self.wait("back at work on the rings", within, |client| client.seen.running >= starts)
    }

    /// Stops the rings; for each the base, or `None` for its used index.
    ///
    /// # Errors
    /// The kernel refuses to wait. A back end that does not stop in time is cut off, and that is no error.
    pub fn deactivate(
        &mut self,
        resumable: bool,
        within: Duration,
    ) -> Result<Vec<(u16, Option<u16>)>, ClientError> {
        let before = self.seen.stopped.len();
        self.shell.deactivate(resumable, within);
        let patience = within + Duration::from_secs(5);
        self.wait("stopped", patience, |client| client.seen.stopped.len() > before)?;
        Ok(self.seen.stopped.last().cloned().unwrap_or_default())
    }

    /// Enables or disables a ring and waits until the back end knows.
    ///
    /// # Errors
    /// It does not in time.
    pub fn enable_ring(
        &mut self,
        index: u16,
        enabled: bool,
        within: Duration,
    ) -> Result<(), ClientError> {
        self.shell.enable_ring(index, enabled);
        self.wait_steady(within)
    }

    /// Gives the queue a fresh call eventfd and waits until the old one is not used any more.
    ///
    /// # Errors
    /// It is still in use after that time, or there is no fresh one.
    pub fn replace_call(
        &mut self,
        queue: &mut DriverQueue,
        within: Duration,
    ) -> Result<(), ClientError> {
        let before = self.seen.calls_in_force;
        let call = queue.replace_call()?;
        self.shell.replace_call(queue.ring().index, call);
        self.wait("calling the new eventfd", within, |client| client.seen.calls_in_force > before)
    }

    /// Shares these regions from now on, and waits until the back end uses no others.
    ///
    /// # Errors
    /// It still does after that time.
    pub fn set_memory(
        &mut self,
        regions: Vec<(super::Region, SharedFd)>,
        within: Duration,
    ) -> Result<(), ClientError> {
        self.seen.memory_in_force = false;
        self.shell.set_memory(regions);
        self.wait("done with the old memory", within, |client| client.seen.memory_in_force)
    }

    /// Has the back end log written pages, or not, and waits until it does.
    ///
    /// # Errors
    /// It does not in time.
    pub fn set_log(
        &mut self,
        log: Option<(LogArea, SharedFd)>,
        within: Duration,
    ) -> Result<(), ClientError> {
        self.seen.log_in_force = false;
        self.shell.set_log(log);
        self.wait("logging as asked", within, |client| client.seen.log_in_force)
    }

    /// Waits until nothing is outstanding between the two sides.
    ///
    /// # Errors
    /// Something is after that time.
    pub fn wait_steady(&mut self, within: Duration) -> Result<(), ClientError> {
        self.wait("steady", within, |client| client.shell.session().is_steady())
    }

    /// Cuts the connection as if the back end had died; the next wait connects anew.
    pub fn cut(&mut self) {
        self.shell.cut();
        self.note();
    }

    /// Handles what is there, without waiting.
    ///
    /// # Errors
    /// The kernel refuses to say what is there.
    pub fn pump(&mut self) -> io::Result<()> {
        self.turn(Duration::ZERO, None)
    }

    /// Waits until `done`.
    ///
    /// # Errors
    /// It is not within that time.
    pub fn wait(
        &mut self,
        what: &'static str,
        within: Duration,
        mut done: impl FnMut(&Self) -> bool,
    ) -> Result<(), ClientError> {
        let deadline = Instant::now() + within;
        loop {
            if done(self) {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ClientError::Late { what, why: self.seen.downs.last().cloned() });
            }
            self.turn(left, None)?;
        }
    }

    /// Waits at most `longest` for anything to happen (or for `waker`), and handles it.
    fn turn(&mut self, longest: Duration, waker: Option<&OwnedFd>) -> io::Result<()> {
        let due = self.shell.deadline().map(|due| due.saturating_duration_since(Instant::now()));
        let wait = due.map_or(longest, |due| due.min(longest));
        let wait = Timespec::try_from(wait).map_err(io::Error::other)?;
        {
            let mut fds: Vec<_> = Vec::with_capacity(3);
            for (fd, write) in self.shell.sources() {
                let flags = if write { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
                fds.push(PollFd::from_borrowed_fd(fd, flags));
            }
            fds.extend(waker.map(|waker| PollFd::new(waker, PollFlags::IN)));
            match poll(&mut fds, Some(&wait)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        self.shell.turn();
        self.note();
        Ok(())
    }

    fn note(&mut self) {
        while let Some(notice) = self.shell.next_notice() {
            let seen = &mut self.seen;
            match notice {
                Notice::Probed(probe) => seen.probe = Some(probe),
                Notice::ConfigChanged(config) => {
                    seen.config_changes += 1;
                    if let Some(probe) = &mut seen.probe {
                        probe.config = config;
                    }
                }
                Notice::Running => seen.running += 1,
                Notice::Stopped { bases } => seen.stopped.push(bases),
                Notice::MemoryInForce => seen.memory_in_force = true,
                Notice::LogInForce => seen.log_in_force = true,
                Notice::CallInForce { .. } => seen.calls_in_force += 1,
                Notice::Down(down) => seen.downs.push(down),
            }
        }
    }

    /// Gives the client a thread, in which it reconnects whatever its owner is doing.
    ///
    /// # Errors
    /// No thread or no eventfd to be had.
    pub fn keep(self) -> io::Result<Keeper> {
        let waker = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (orders, inbox) = mpsc::channel();
        let thread = {
            let waker = Arc::clone(&waker);
            std::thread::Builder::new()
                .name("front-end".to_owned())
                .spawn(move || self.serve(&inbox, &waker))?
        };
        Ok(Keeper { orders: Some(orders), waker, thread: Some(thread) })
    }

    fn serve(mut self, inbox: &mpsc::Receiver<Order>, waker: &OwnedFd) -> Self {
        loop {
            match inbox.try_recv() {
                Ok(order) => order(&mut self),
                Err(mpsc::TryRecvError::Disconnected) => return self,
                Err(mpsc::TryRecvError::Empty) => {
                    if self.turn(Duration::from_secs(3600), Some(waker)).is_err() {
                        return self;
                    }
                    let _ = rustix::io::read(waker, &mut [0u8; 8]);
                }
            }
        }
    }
}

type Order = Box<dyn FnOnce(&mut Client) + Send>;

/// A [`Client`] in a thread of its own.
#[derive(Debug)]
pub struct Keeper {
    orders: Option<mpsc::Sender<Order>>,
    waker: Arc<OwnedFd>,
    thread: Option<JoinHandle<Client>>,
}

impl Keeper {
    /// Does something with the client, in its thread, and waits for the result. `None` if the thread has ended.
    pub fn with<R: Send + 'static>(
        &self,
        order: impl FnOnce(&mut Client) -> R + Send + 'static,
    ) -> Option<R> {
        let (answer, result) = mpsc::channel();
        let order: Order = Box::new(move |client| _ = answer.send(order(client)));
        self.orders.as_ref()?.send(order).ok()?;
        self.wake();
        result.recv().ok()
    }

    /// Takes the client out of its thread. `None` if the thread has panicked.
    #[must_use]
    pub fn release(mut self) -> Option<Client> {
        self.end()
    }

    fn wake(&self) {
        let _ = rustix::io::write(&self.waker, &1u64.to_ne_bytes());
    }

    fn end(&mut self) -> Option<Client> {
        self.orders = None;
        self.wake();
        self.thread.take()?.join().ok()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// used.idx of a ring in `memory`.
fn used_idx(memory: &GuestMemory, ring: &Ring) -> u16 {
    let bytes = memory.get(ring.used, 4);
    bytes.and_then(|bytes| bytes.read_array(2)).map_or(0, u16::from_le_bytes)
}
