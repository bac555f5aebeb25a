//! `bixi-lab`: brings a rack up, looks at it, logs in to it, takes it down. The same program is the rack's supervisor,
//! the servers' agent and the guests' load generator.

use bixi_lab::{Config, Rack, Result, ServerState, load, stream};
use clap::{Parser, Subcommand};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// A virtual rack: real Linux servers with real KVM inside QEMU, and two networks between them.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    /// The folder that holds everything of the rack [default: .lab beside the workspace]
    #[arg(long, global = true, value_name = "DIR")]
    state: Option<PathBuf>,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Build and start a rack; it stays up
    Up {
        /// How many servers
        #[arg(long, default_value_t = 2)]
        servers: usize,
        /// Memory of each server, in MiB
        #[arg(long, default_value_t = 1536)]
        memory: u32,
        /// The system they boot instead of the rack's own: a folder made by `bixi image build debian`
        #[arg(long, value_name = "DIR")]
        system: Option<PathBuf>,
    },
    /// Show the rack and its servers
    Status,
    /// Run a command in a server, or log in to it
    Shell {
        /// 1, 2, … or server-1, server-2, …
        server: String,
        /// The command; a login shell unless given
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Attach to the serial console of a server, or of a guest in it; Ctrl-] leaves
    Console {
        /// 1, 2, … or server-1, server-2, …
        server: String,
        /// The guest's id, or the path of its console socket in the server
        guest: Option<String>,
    },
    /// Copy the binaries of the last build into the running servers
    Push,
    /// End the rack and remove what it left
    Down,
    /// Put verified load on a block device (in a guest)
    Load {
        /// The device
        device: PathBuf,
        /// For how long, in seconds
        #[arg(long, default_value_t = 10)]
        seconds: u64,
        /// Only the first blocks of 4 KiB
        #[arg(long)]
        blocks: Option<u64>,
        /// Requests in flight
        #[arg(long, default_value_t = 4)]
        threads: u64,
        /// Where the pseudo-random numbers begin
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Only read and print the checksum
        #[arg(long)]
        digest: bool,
    },
    /// Send a verified TCP stream (in a guest)
    Send {
        /// Address and port of the receiver
        to: std::net::SocketAddr,
        /// For how long, in seconds
        #[arg(long, default_value_t = 10)]
        seconds: u64,
    },
    /// Receive one verified TCP stream (in a guest)
    Receive {
        /// The port to listen on
        port: u16,
    },
    /// Serve the lab (in a server)
    #[command(hide = true)]
    ServerAgent,
    /// Be the rack
    #[command(hide = true)]
    Supervise {
        plan: PathBuf,
        #[arg(long)]
        inside: bool,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match act(arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("bixi-lab: {error}");
            ExitCode::FAILURE
        }
    }
}

fn act(arguments: Arguments) -> Result<ExitCode> {
    let state = arguments.state.unwrap_or_else(default_state);
    match arguments.action {
        Action::Up { servers, memory, system } => up(state, servers, memory, system)?,
        Action::Status => status(state)?,
        Action::Shell { server, command } => return shell(state, &server, command),
        Action::Console { server, guest } => {
            let server = Rack::find(state)?.server(number(&server)?);
            match guest {
                None => server.attach_console()?,
                Some(guest) => server.attach_socket(console_path(&guest))?,
            }
        }
        Action::Push => push(state)?,
        Action::Down => {
            let was_up = Rack::down(&state)?;
            bixi_lab::say(if was_up { "the rack is down" } else { "no rack was up" });
        }
        Action::Load { device, seconds, blocks, threads, seed, digest } => {
            let time = Duration::from_secs(seconds);
            return put_load(&load::Load { device, blocks, time, threads, seed }, digest);
        }
        Action::Send { to, seconds } => {
            return told(&stream::send(to, Duration::from_secs(seconds))?);
        }
        Action::Receive { port } => return told(&stream::receive(port)?),
        Action::ServerAgent => bixi_lab::serve_agent()?,
        Action::Supervise { plan, inside: false } => bixi_lab::enter_rack(&plan)?,
        Action::Supervise { plan, inside: true } => bixi_lab::supervise_rack(&plan)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// `.lab` in the nearest folder above that has one or is a workspace; else here.
fn default_state() -> PathBuf {
    let here = std::env::current_dir().unwrap_or_default();
    let found = here.ancestors().find(|f| f.join(".lab").is_dir() || f.join("Cargo.lock").exists());
    found.unwrap_or(&here).join(".lab")
}

/// `2` and `server-2` are the same server.
fn number(name: &str) -> Result<usize> {
    let digits = name.strip_prefix("server-").unwrap_or(name);
    digits.parse().map_err(|_| {
        bixi_lab::Error::Unfit(format!("{name:?} is no server: say 1 or server-1, 2 or server-2"))
    })
}

/// Where a guest's console is, as `cargo xtask demo` and the tests lay it out.
fn console_path(guest: &str) -> PathBuf {
    if guest.starts_with('/') {
        return guest.into();
    }
    PathBuf::from(format!("/run/bixi/vm/{guest}/console.sock"))
}

fn up(state: PathBuf, servers: usize, memory: u32, system: Option<PathBuf>) -> Result<()> {
    let config = Config { servers, memory_mib: memory, system, ..Config::new(state)? };
    match Rack::up(&config) {
        Ok(rack) => rack.leave_up()?,
        Err(bixi_lab::Error::Up { state }) => {
            let there = Rack::find(&state)?.status()?.servers.len();
            if there != servers {
                return Err(bixi_lab::Error::Up { state });
            }
            bixi_lab::say("the rack is up already; `bixi-lab push` copies the last build into it");
        }
        Err(error) => return Err(error),
    }
    status(config.state)
}

fn status(state: PathBuf) -> Result<()> {
    let rack = Rack::find(&state)?;
    let status = rack.status()?;
    let mut text = format!(
        "rack in {}: supervisor {}, {}\n{:<10} {:<9} {:<12} {:<12} {:>8} {:>5} {:>9}\n",
        state.display(),
        Rack::supervisor(&state).unwrap_or_default(),
        status.acceleration,
        "server",
        "state",
        "management",
        "underlay",
        "uptime",
        "kvm",
        "processes"
    );
    for server in status.servers {
        let word = match &server.state {
            ServerState::Starting => "starting",
            ServerState::Up => "up",
            ServerState::Ended(_) => "ended",
        };
        let hello = (server.state == ServerState::Up)
            .then(|| rack.server(server.number).hello().ok())
            .flatten();
        let (uptime, kvm, processes) = hello.map_or_else(Default::default, |h| {
            let kvm = if h.kvm { "yes" } else { "no" };
            (format!("{} s", h.uptime.as_secs()), kvm, h.processes.to_string())
        });
        text.push_str(&format!(
            "server-{:<3} {:<9} {:<12} {:<12} {:>8} {:>5} {:>9}\n",
            server.number, word, server.management, server.underlay, uptime, kvm, processes
        ));
        if let ServerState::Ended(words) = server.state {
            text.push_str(&format!("           {words}\n"));
        }
    }
    print(&text);
    Ok(())
}

fn shell(state: PathBuf, server: &str, mut command: Vec<String>) -> Result<ExitCode> {
    if command.is_empty() {
        command = vec!["/bin/sh".to_owned(), "-l".to_owned()];
    }
    let server = Rack::find(state)?.server(number(server)?);
    let code = server.command(command.remove(0)).args(command).interact()?;
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
}

fn push(state: PathBuf) -> Result<()> {
    let rack = Rack::find(&state)?;
    for binary in Config::new(&state)?.contents.binaries {
        let name = binary.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for server in rack.servers() {
            server.put_file(&binary, format!("/usr/bin/{name}"), 0o755)?;
        }
        bixi_lab::say(&format!("copied {}", binary.display()));
    }
    Ok(())
}

fn put_load(load: &load::Load, digest: bool) -> Result<ExitCode> {
    if digest {
        print(&format!("{}\n", load::digest(&load.device, load.blocks)?));
        return Ok(ExitCode::SUCCESS);
    }
    let report = load::run(load)?;
    print(&format!("{}\n", serde_json::to_string(&report).unwrap_or_default()));
    Ok(if report.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn told(report: &stream::Report) -> Result<ExitCode> {
    print(&format!("{}\n", serde_json::to_string(report).unwrap_or_default()));
    Ok(if report.wrong_at.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(text: &str) {
    // A reader who has gone away has seen enough.
    let _ = std::io::stdout().write_all(text.as_bytes());
}
