//! The process that is a rack: it owns the namespaces, the network and the servers' QEMU processes.
//!
//! It is the first process of a PID namespace of its own and the only one that keeps the rack's network namespace
//! alive, so that however it ends, the kernel ends every QEMU and frees the network. Its standard input is a pipe from
//! whoever started it: when that ends before it was told to stay, the rack ends too.
//!
//! Files outlive it only inside the rack's folder, where the next `up` or `down` removes them.

mod machine;
mod network;

use crate::error::{Attempt, Error, Result};
use crate::plan::{
    Ask, Event, Places, Plan, Say, ServerState, ServerStatus, Status, management_address,
    underlay_address,
};
use crate::socket;
use crate::wire;
use machine::Machine;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::net::sockopt;
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Told on standard input, it makes the supervisor outlive its starter.
pub(crate) const STAY: u8 = b's';

/// Enters new namespaces and starts the supervisor proper as their first process.
///
/// # Errors
/// When the kernel refuses the namespaces.
pub fn enter(plan: &Path) -> Result<()> {
    let flags = UnshareFlags::NEWPID | UnshareFlags::NEWNET | UnshareFlags::NEWNS;
    // SAFETY: `FILES` is not among the flags, so no thread can see descriptors of another table.
    unsafe { unshare_unsafe(flags) }.attempt(|| "make the rack's namespaces".to_owned())?;
    let own = std::env::current_exe().attempt(|| "find this program".to_owned())?;
    // This process is not in the new PID namespace, its child is. It has no further use: the child is not waited for.
    let mut child = Command::new(own);
    child.arg("supervise").arg("--inside").arg(plan);
    child.spawn().attempt(|| "start the supervisor".to_owned())?;
    Ok(())
}

/// Runs the rack until it is told to end, or its starter is gone.
///
/// # Errors
/// When the rack cannot be started; the reason is told to the starter too.
pub fn supervise(plan: &Path) -> Result<()> {
    let result = start(plan);
    if let Err(error) = &result {
        report(&Event::Failed { message: error.to_string() });
    }
    result
}

fn start(plan: &Path) -> Result<()> {
    let text = fs::read(plan).attempt(|| format!("read {}", plan.display()))?;
    let plan: Plan = serde_json::from_slice(&text)
        .map_err(|e| Error::Format { path: plan.to_owned(), message: e.to_string() })?;
    let places = Places { folder: plan.folder.clone() };
    // Without a session of its own, the starter's Ctrl-C would reach the servers.
    rustix::process::setsid().attempt(|| "start a session".to_owned())?;
    let lock = fs::File::create(places.lock()).attempt(|| "make the rack's lock".to_owned())?;
    rustix::fs::fcntl_lock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| Error::Up { state: places.folder.clone() })?;
    let own = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", own).attempt(|| "detach the mounts".to_owned())?;
    mount("proc", "/proc", "proc", MountFlags::empty(), None)
        .attempt(|| "mount /proc".to_owned())?;
    network::build(plan.servers)?;
    let listener = socket::listen(&places.socket()).attempt(|| "listen".to_owned())?;

    let rack = Arc::new(Rack {
        servers: (0..plan.servers).map(|_| Server::default()).collect(),
        plan,
        places,
        ending: AtomicBool::new(false),
    });
    let guard = rack.clone();
    std::thread::spawn(move || guard.follow_starter());
    let boot = rack.clone();
    std::thread::spawn(move || boot.boot());
    for stream in listener.incoming().flatten() {
        let rack = rack.clone();
        std::thread::spawn(move || {
            // Who asks and goes away is not answered.
            let _ = rack.answer(&stream);
        });
    }
    drop(lock);
    Ok(())
}

/// Tells the starter; one who is gone is not told.
fn report(event: &Event) {
    let mut line = serde_json::to_vec(event).unwrap_or_default();
    line.push(b'\n');
    let mut out = io::stdout().lock();
    let _ = out.write_all(&line).and_then(|()| out.flush());
}

struct Rack {
    plan: Plan,
    places: Places,
    servers: Vec<Server>,
    ending: AtomicBool,
}

#[derive(Default)]
struct Server {
    life: Mutex<Life>,
    changed: Condvar,
}

struct Life {
    state: ServerState,
    machine: Option<Machine>,
}

impl Default for Life {
    fn default() -> Self {
        Self { state: ServerState::Starting, machine: None }
    }
}

impl Server {
    fn life(&self) -> MutexGuard<'_, Life> {
        // A thread that panicked has not left the state half changed: every change is one assignment.
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Rack {
    /// Ends the rack when the starter's pipe ends before it said that the rack stays.
    fn follow_starter(&self) {
        let mut byte = [0];
        if !matches!(io::stdin().read(&mut byte), Ok(1) if byte[0] == STAY) {
            self.end();
        }
    }

    /// Starts all servers and tells when they are up.
    fn boot(self: &Arc<Self>) {
        let started = Instant::now();
        let waits: Vec<_> = (1..=self.plan.servers)
            .map(|number| {
                let rack = self.clone();
                std::thread::spawn(move || {
                    rack.start_server(number)?;
                    let seconds = started.elapsed().as_secs_f64();
                    report(&Event::Up { server: number, seconds });
                    Ok::<(), Error>(())
                })
            })
            .collect();
        for wait in waits {
            let result = wait.join().unwrap_or_else(|_| Err(Error::Rack("a thread died".into())));
            if let Err(error) = result {
                report(&Event::Failed { message: error.to_string() });
                self.end();
            }
        }
        report(&Event::Ready);
    }

    /// Starts a server and waits until its agent answers.
    fn start_server(self: &Arc<Self>, number: usize) -> Result<()> {
        let server = self.server(number)?;
        let (machine, watch) = Machine::start(&self.plan, &self.places.server(number), number)?;
        {
            let mut life = server.life();
            life.state = ServerState::Starting;
            life.machine = Some(machine);
        }
        let rack = self.clone();
        std::thread::spawn(move || {
            let last_words = watch.wait();
            if let Ok(server) = rack.server(number) {
                server.life().state = ServerState::Ended(last_words);
                server.changed.notify_all();
            }
        });
        self.await_agent(number)?;
        let mut life = server.life();
        if life.state == ServerState::Starting {
            life.state = ServerState::Up;
        }
        Ok(())
    }

    fn await_agent(&self, number: usize) -> Result<()> {
        let limit = self.plan.boot_limit();
        let deadline = Instant::now() + limit;
        loop {
            if let ServerState::Ended(words) = &self.server(number)?.life().state {
                let message = format!("it ended while it booted: {words}");
                return Err(Error::Server { server: number, message });
            }
            if let Ok(stream) = agent(number, Duration::from_millis(300))
                && greet(&stream).is_ok()
            {
                return Ok(());
            }
            if Instant::now() > deadline {
                let message = self.last_words(number);
                return Err(Error::Server {
                    server: number,
                    message: format!("no answer {limit:?} after its start: {message}"),
                });
            }
            // Bounded by the deadline above; there is nothing to wait on before the server listens.
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn last_words(&self, number: usize) -> String {
        machine::last_words(&self.places.server(number))
    }

    fn server(&self, number: usize) -> Result<&Server> {
        number.checked_sub(1).and_then(|index| self.servers.get(index)).ok_or_else(|| {
            Error::Rack(format!("there is no server-{number}, only {}", self.servers.len()))
        })
    }

    fn answer(self: &Arc<Self>, mut stream: &UnixStream) -> io::Result<()> {
        let ask: Ask = wire::receive_message(&mut stream)?;
        let failed = |error: Error| Say::Failed { message: error.to_string() };
        match ask {
            Ask::Status => wire::send_message(&mut stream, &Say::Status(self.status())),
            Ask::Connect { server } => match self.connect(server) {
                Ok(connection) => {
                    wire::send_message(&mut stream, &Say::Done)?;
                    socket::send_descriptor(stream, &connection)
                }
                Err(error) => wire::send_message(&mut stream, &failed(error)),
            },
            Ask::Restart { server } => {
                let say = self.restart(server).map_or_else(failed, |()| Say::Done);
                wire::send_message(&mut stream, &say)
            }
            Ask::Down => {
                wire::send_message(&mut stream, &Say::Done)?;
                self.end()
            }
        }
    }

    fn connect(&self, number: usize) -> Result<TcpStream> {
        match &self.server(number)?.life().state {
            ServerState::Up => {}
            ServerState::Starting => {
                return Err(Error::Server { server: number, message: "it still boots".into() });
            }
            ServerState::Ended(words) => {
                let message = format!("it has ended: {words}");
                return Err(Error::Server { server: number, message });
            }
        }
        agent(number, Duration::from_secs(20)).map_err(|e| Error::Server {
            server: number,
            message: format!(
                "its agent cannot be reached: {e}; {}; {}",
                self.last_words(number),
                machine::registers(&self.places.server(number)),
            ),
        })
    }

    fn restart(self: &Arc<Self>, number: usize) -> Result<()> {
        let server = self.server(number)?;
        let machine = server.life().machine.take();
        if let Some(machine) = machine {
            machine.kill();
            let life = server.life();
            let lives = |life: &mut Life| !matches!(life.state, ServerState::Ended(_));
            let wait = server.changed.wait_timeout_while(life, Duration::from_secs(20), lives);
            let (life, time) = wait.unwrap_or_else(PoisonError::into_inner);
            drop(life);
            if time.timed_out() {
                return Err(Error::Rack(format!("the QEMU of server-{number} does not end")));
            }
        }
        self.start_server(number)
    }

    fn status(&self) -> Status {
        let namespace = fs::metadata("/proc/self/ns/net").map(|m| m.ino()).unwrap_or_default();
        let servers = self.servers.iter().enumerate().map(|(index, server)| ServerStatus {
            number: index + 1,
            state: server.life().state.clone(),
            management: management_address(index + 1),
            underlay: underlay_address(index + 1),
        });
        Status {
            acceleration: self.plan.acceleration.clone(),
            network_namespace: namespace,
            servers: servers.collect(),
        }
    }

    /// Ends every server, removes the rack's files and ends this process.
    fn end(&self) -> ! {
        if self.ending.swap(true, Ordering::SeqCst) {
            // Another thread is at it and ends the process.
            loop {
                std::thread::park();
            }
        }
        for server in &self.servers {
            if let Some(machine) = server.life().machine.take() {
                machine.kill();
            }
        }
        // What cannot be removed, the next `up` or `down` removes.
        let _ = fs::remove_dir_all(&self.places.folder);
        std::process::exit(0);
    }
}

fn agent(number: usize, limit: Duration) -> io::Result<TcpStream> {
    let address = SocketAddr::from((management_address(number), wire::PORT));
    let deadline = Instant::now() + limit;
    let stream = loop {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        match TcpStream::connect_timeout(&address, left) {
            // An emulated server on a busy machine may stand still for seconds: the kernel here gives up its address
            // after three, which says nothing about the server.
            Err(e) if e.kind() == io::ErrorKind::HostUnreachable && Instant::now() < deadline => {}
            other => break other?,
        }
    };
    stream.set_nodelay(true)?;
    // A server that has died sends no farewell: whoever talks with it learns it after 17 seconds.
    sockopt::set_socket_keepalive(&stream, true)?;
    sockopt::set_tcp_keepidle(&stream, Duration::from_secs(5))?;
    sockopt::set_tcp_keepintvl(&stream, Duration::from_secs(3))?;
    sockopt::set_tcp_keepcnt(&stream, 4)?;
    sockopt::set_tcp_user_timeout(&stream, 17_000)?;
    Ok(stream)
}

fn greet(mut stream: &TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    wire::send_message(&mut stream, &wire::Request::Hello)?;
    wire::receive_message::<wire::Answer>(&mut stream)?;
    Ok(())
}
