//! What moves a session's bytes, without a runtime of its own: the socket, the descriptors and the deadlines.
//!
//! A [`Shell`] never blocks. Whoever owns it waits until one of its [sources](Shell::sources) is ready or its
//! [deadline](Shell::deadline) has come, then calls [`Shell::turn`] and takes the [notices](Shell::next_notice). `compute`'s devices
//! do so on tokio, [`Client`](super::Client) with poll(2).
//!
//! Invariant: a descriptor is only sent for what the session names now; a region, record or log that the session has dropped is
//! closed here.

use super::connection::{Connection, Lost};
use super::session::FrontSession;
use super::state::RestoreError;
use super::types::{
    Action, Activation, Descriptor, Down, Event, FrontConfig, LogArea, Outgoing, Probe, Region,
    Ring, Timer,
};
use crate::ring::SharedFd;
use bixi_api::state::{Declared, Movable, Payload};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Where the back end listens.
#[derive(Debug)]
pub enum Target {
    /// At this path.
    Path(PathBuf),
    /// At the socket file that this `O_PATH` descriptor names: for a jailed process, which opens nothing by path.
    File(OwnedFd),
    /// It is connected already, and there is no way to connect again.
    Stream(Option<OwnedFd>),
}

/// Messages handled in one turn; a back end that sends on without end must not keep its owner from everything else.
const MESSAGES_PER_TURN: usize = 64;

/// Reads the used index of a ring from guest memory.
pub type ReadUsed = Box<dyn Fn(&Ring) -> u16 + Send>;

/// The eventfds of one ring.
#[derive(Debug, Clone)]
pub struct RingFds {
    /// The driver's notification.
    pub kick: SharedFd,
    /// The device's.
    pub call: SharedFd,
}

/// What the owner of a [`Shell`] is told. See the actions of the same names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// [`Action::Probed`].
    Probed(Probe),
    /// [`Action::ConfigChanged`].
    ConfigChanged(Vec<u8>),
    /// [`Action::Running`].
    Running,
    /// [`Action::Stopped`].
    Stopped {
        /// `(ring, base)`; `None` means the ring's used index.
        bases: Vec<(u16, Option<u16>)>,
    },
    /// [`Action::MemoryInForce`].
    MemoryInForce,
    /// [`Action::LogInForce`].
    LogInForce,
    /// [`Action::CallInForce`].
    CallInForce {
        /// The ring.
        index: u16,
    },
    /// [`Action::Down`].
    Down(Down),
}

/// A session with all it needs to be carried out.
pub struct Shell {
    session: FrontSession,
    target: Target,
    read_used: ReadUsed,
    begun: bool,
    /// Whether the last turn left messages unread, so that another one is due at once.
    unfinished: bool,
    connection: Option<Connection>,
    channel: Option<Connection>,
    link_deadline: Option<Instant>,
    stop_deadline: Option<Instant>,
    memory: BTreeMap<u32, SharedFd>,
    rings: BTreeMap<u16, RingFds>,
    record: Option<SharedFd>,
    log: Option<SharedFd>,
    /// Descriptors that came with the message being handled.
    arrived: Vec<OwnedFd>,
    notices: VecDeque<Notice>,
}

/// The descriptors that go to another process beside a shell's declared state.
#[derive(Debug, Default)]
pub struct Carried {
    /// The connection, if the session can go on in the middle of it.
    pub connection: Option<OwnedFd>,
    /// The back end's channel.
    pub channel: Option<OwnedFd>,
    /// The in-flight record.
    pub record: Option<SharedFd>,
    /// The dirty log.
    pub log: Option<SharedFd>,
}

impl Movable for Shell {
    fn declare(&self) -> Declared {
        self.session.declare()
    }
}

impl fmt::Debug for Shell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shell")
            .field("target", &self.target)
            .field("session", &self.session)
            .finish_non_exhaustive()
    }
}

impl Shell {
    /// A shell that connects at its first [`Shell::turn`]. `read_used` is asked for rings of the activation in force.
    #[must_use]
    pub fn new(config: FrontConfig, target: Target, read_used: ReadUsed) -> Self {
        Self::with_session(FrontSession::new(config), target, read_used)
    }

    /// A shell around a restored session that is not connected.
    #[must_use]
    pub fn with_session(session: FrontSession, target: Target, read_used: ReadUsed) -> Self {
        Self {
            session,
            target,
            read_used,
            begun: false,
            unfinished: false,
            connection: None,
            channel: None,
            // The first try is due at once.
            link_deadline: Some(Instant::now()),
            stop_deadline: None,
            memory: BTreeMap::new(),
            rings: BTreeMap::new(),
            record: None,
            log: None,
            arrived: Vec::new(),
            notices: VecDeque::new(),
        }
    }

    /// Ends this shell and gives what another one is [assembled](Shell::assemble) from. The back end notices nothing.
    #[must_use]
    pub fn dismantle(mut self) -> (Declared, Carried) {
        let declared = self.session.declare();
        let whole =
            |connection: &Connection| !connection.is_mid_message() && !connection.wants_write();
        let steady =
            self.session.is_steady() && self.connection.iter().chain(&self.channel).all(whole);
        let mut carried =
            Carried { record: self.record.take(), log: self.log.take(), ..Carried::default() };
        if steady {
            carried.connection = self.connection.take().map(Connection::into_socket);
            carried.channel = self.channel.take().map(Connection::into_socket);
        }
        (declared, carried)
    }

    /// Makes a shell from what another one declared and carried. The memory's files and the rings' eventfds are those of
    /// the new process; the owner follows up with [`Shell::replace_call`] for each ring whose call eventfd is another one.
    ///
    /// # Errors
    /// A state that does not decode, or lacks a descriptor it needs.
    pub fn assemble(
        config: FrontConfig,
        target: Target,
        read_used: ReadUsed,
        payload: &Payload,
        carried: Carried,
        memory: BTreeMap<u32, SharedFd>,
        rings: BTreeMap<u16, RingFds>,
    ) -> Result<Self, RestoreError> {
        let session = FrontSession::restore(config, payload, carried.connection.is_some())?;
        session.check_descriptors(
            carried.record.is_some(),
            carried.log.is_some(),
            |slot| memory.contains_key(&slot),
            |ring| rings.contains_key(&ring),
        )?;
        let mut shell = Self::with_session(session, target, read_used);
        if shell.session.is_connected() {
            shell.begun = true;
            shell.link_deadline = None;
            shell.connection = carried.connection.map(Connection::new);
            shell.channel = carried.channel.map(Connection::new);
        }
        (shell.record, shell.log) = (carried.record, carried.log);
        (shell.memory, shell.rings) = (memory, rings);
        Ok(shell)
    }

    /// The session as it is.
    #[must_use]
    pub fn session(&self) -> &FrontSession {
        &self.session
    }

    /// The in-flight record, if the back end gave one.
    #[must_use]
    pub fn record(&self) -> Option<&SharedFd> {
        self.record.as_ref()
    }

    /// What to wait for: readable always, writable if the flag says so. Changes with every turn.
    pub fn sources(&self) -> impl Iterator<Item = (BorrowedFd<'_>, bool)> {
        let connections = self.connection.iter().chain(self.channel.iter());
        connections.map(|connection| (connection.as_fd(), connection.wants_write()))
    }

    /// When the next turn is due even if nothing is ready.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        if self.unfinished {
            return Some(Instant::now());
        }
        match (self.link_deadline, self.stop_deadline) {
            (Some(link), Some(stop)) => Some(link.min(stop)),
            (one, other) => one.or(other),
        }
    }

    /// The next notice, oldest first.
    pub fn next_notice(&mut self) -> Option<Notice> {
        self.notices.pop_front()
    }

    /// See [`FrontSession::require_rings`].
    pub fn require_rings(&mut self, rings: u16) {
        self.session.require_rings(rings);
    }

    /// Does all that can be done without waiting.
    pub fn turn(&mut self) {
        let now = Instant::now();
        if self.link_deadline.take_if(|deadline| *deadline <= now).is_some() {
            let begun = std::mem::replace(&mut self.begun, true);
            self.step(if begun { Event::Deadline(Timer::Link) } else { Event::Begin });
        }
        if self.stop_deadline.take_if(|deadline| *deadline <= now).is_some() {
            self.step(Event::Deadline(Timer::Stop));
        }
        if self.connection.as_mut().is_some_and(|connection| connection.flush().is_err()) {
            self.step(Event::Disconnected);
        }
        self.unfinished = true;
        for _ in 0..MESSAGES_PER_TURN {
            if !self.read_one() {
                self.unfinished = false;
                break;
            }
        }
    }

    /// Reads a message and handles it; false if there is none.
    fn read_one(&mut self) -> bool {
        match self.connection.as_mut().map(Connection::receive) {
            Some(Ok(Some((message, descriptors)))) => {
                self.handle(Event::Message(message), descriptors);
                return true;
            }
            Some(Err(Lost)) => {
                self.step(Event::Disconnected);
                return true;
            }
            Some(Ok(None)) | None => {}
        }
        match self.channel.as_mut().map(Connection::receive) {
            Some(Ok(Some((message, descriptors)))) => {
                self.handle(Event::ChannelMessage(message), descriptors);
                return true;
            }
            // A back end may close its channel and serve on.
            Some(Err(Lost)) => self.channel = None,
            Some(Ok(None)) | None => {}
        }
        false
    }

    /// All of guest memory from now on, each region with its file.
    pub fn set_memory(&mut self, regions: Vec<(Region, SharedFd)>) {
        self.memory = regions.iter().map(|(region, file)| (region.slot, file.clone())).collect();
        self.step(Event::Memory(regions.into_iter().map(|(region, _)| region).collect()));
    }

    /// The driver is ready: `fds` has the eventfds of each ring of the activation. A ring without them keeps the activation
    /// from being sent.
    pub fn activate(&mut self, activation: Activation, fds: BTreeMap<u16, RingFds>) {
        debug_assert!(activation.rings().iter().all(|ring| fds.contains_key(&ring.index)));
        self.rings = fds;
        self.step(Event::Activate(activation));
    }

    /// See [`Event::Deactivate`]; answered by [`Notice::Stopped`].
    pub fn deactivate(&mut self, resumable: bool, within: Duration) {
        self.step(Event::Deactivate { resumable, within });
    }

    /// See [`Event::EnableRing`].
    pub fn enable_ring(&mut self, index: u16, enabled: bool) {
        self.step(Event::EnableRing { index, enabled });
    }

    /// Another call eventfd for a ring; answered by [`Notice::CallInForce`].
    pub fn replace_call(&mut self, index: u16, call: SharedFd) {
        if let Some(fds) = self.rings.get_mut(&index) {
            fds.call = call;
            self.step(Event::CallReplaced { index });
        }
    }

    /// Where to log written pages, if anywhere; answered by [`Notice::LogInForce`].
    pub fn set_log(&mut self, log: Option<(LogArea, SharedFd)>) {
        let (area, file) = log.unzip();
        self.log = file;
        self.step(Event::Log(area));
    }

    /// Cuts the connection, as if the back end had.
    pub fn cut(&mut self) {
        if self.connection.is_some() {
            self.step(Event::Disconnected);
        }
    }

    /// Cuts the connection, since this back end is of no use, and is in no hurry to try the next.
    pub fn refuse(&mut self) {
        self.session.slow_down();
        self.cut();
    }

    fn handle(&mut self, event: Event, descriptors: Vec<OwnedFd>) {
        self.arrived = descriptors;
        self.step(event);
        self.arrived.clear();
    }

    /// Steps the session and does what it says, until nothing more comes of it.
    fn step(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        let mut actions = Vec::new();
        while let Some(event) = events.pop_front() {
            if event == Event::Disconnected {
                self.disconnect();
            }
            self.session.step(event, &mut actions);
            for action in actions.drain(..) {
                events.extend(self.act(action));
            }
        }
    }

    /// Does one thing; what comes of it at once is the next event.
    fn act(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Connect => return Some(self.connect()),
            Action::Disconnect => self.disconnect(),
            Action::Send(message) => return self.send(&message),
            Action::SendOnChannel(bytes) => {
                let channel = self.channel.as_mut();
                if channel.is_some_and(|channel| channel.send(bytes, Vec::new()).is_err()) {
                    self.channel = None;
                }
            }
            Action::Arm(Timer::Link, after) => self.link_deadline = Some(Instant::now() + after),
            Action::Arm(Timer::Stop, after) => self.stop_deadline = Some(Instant::now() + after),
            Action::Disarm(Timer::Link) => self.link_deadline = None,
            Action::Disarm(Timer::Stop) => self.stop_deadline = None,
            Action::KeepRecord => self.record = self.arrived.pop().map(Arc::new),
            Action::DropRecord => self.record = None,
            Action::Nudge { index } => self.nudge(index),
            Action::Probed(probe) => self.notices.push_back(Notice::Probed(probe)),
            Action::ConfigChanged(config) => self.notices.push_back(Notice::ConfigChanged(config)),
            Action::Running => self.notices.push_back(Notice::Running),
            Action::Stopped { bases } => self.notices.push_back(Notice::Stopped { bases }),
            Action::MemoryInForce => self.notices.push_back(Notice::MemoryInForce),
            Action::LogInForce => self.notices.push_back(Notice::LogInForce),
            Action::CallInForce { index } => self.notices.push_back(Notice::CallInForce { index }),
            Action::Down(down) => self.notices.push_back(Notice::Down(down)),
        }
        None
    }

    fn connect(&mut self) -> Event {
        match open(&mut self.target) {
            Ok(socket) => {
                self.connection = Some(Connection::new(socket));
                let rings = self.session.activation().map_or(&[][..], Activation::rings);
                let used = rings.iter().map(|ring| (ring.index, (self.read_used)(ring)));
                Event::Connected { used: used.collect() }
            }
            // Not there yet, or its queue of connections is full: both pass.
            Err(_) => Event::ConnectFailed,
        }
    }

    fn disconnect(&mut self) {
        self.connection = None;
        self.channel = None;
    }

    fn send(&mut self, message: &Outgoing) -> Option<Event> {
        // Behind a loss in the same step there is nobody to send to.
        self.connection.as_ref()?;
        let mut descriptors = Vec::with_capacity(message.descriptors.len());
        for name in &message.descriptors {
            match self.descriptor(*name) {
                Some(descriptor) => descriptors.push(descriptor),
                None => return Some(self.lost()),
            }
        }
        let sent = self.connection.as_mut()?.send(message.encode(), descriptors);
        sent.is_err().then(|| self.lost())
    }

    /// The connection failed; nothing more goes through it.
    fn lost(&mut self) -> Event {
        self.disconnect();
        Event::Disconnected
    }

    fn descriptor(&mut self, name: Descriptor) -> Option<SharedFd> {
        match name {
            Descriptor::Memory(slot) => self.memory.get(&slot).cloned(),
            Descriptor::Kick(index) => self.rings.get(&index).map(|fds| fds.kick.clone()),
            Descriptor::Call(index) => self.rings.get(&index).map(|fds| fds.call.clone()),
            Descriptor::Record => self.record.clone(),
            Descriptor::Log => self.log.clone(),
            Descriptor::Channel => {
                let (ours, theirs) = rustix::net::socketpair(
                    AddressFamily::UNIX,
                    SocketType::STREAM,
                    SocketFlags::CLOEXEC,
                    None,
                )
                .ok()?;
                self.channel = Some(Connection::new(ours));
                Some(Arc::new(theirs))
            }
        }
    }

    /// Notifies both sides of a ring once. An eventfd whose counter is full has been signalled already.
    fn nudge(&self, index: u16) {
        if let Some(fds) = self.rings.get(&index) {
            for eventfd in [&fds.kick, &fds.call] {
                let _ = rustix::io::write(eventfd, &1u64.to_ne_bytes());
            }
        }
    }
}

/// Connects without waiting: on a UNIX socket there is nothing to wait for but room in the listener's queue.
fn open(target: &mut Target) -> Result<OwnedFd, rustix::io::Errno> {
    let path = match target {
        Target::Stream(stream) => return stream.take().ok_or(rustix::io::Errno::NOTCONN),
        Target::Path(path) => path.clone(),
        // A socket file cannot be opened, but a path that leads to it can be connected to.
        Target::File(file) => PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())),
    };
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &address)?;
    Ok(socket)
}
