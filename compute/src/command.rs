//! The command line: run a VM, check a configuration, talk to a running VM.

use crate::config::{self, Checked};
use crate::driver;
use crate::failure::{CODES, Failure};
use crate::inherited;
use bixi_api::client::ControlClient;
use bixi_api::compute::{VmDescription, VmStatistics};
use bixi_offload::log_sink::{LogFlush, LogSink};
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::PathBuf;
use tracing::level_filters::LevelFilter;

/// Runs one virtual machine.
#[derive(Debug, Parser)]
#[command(name = "bixi-vmm", version, after_help = CODES, args_conflicts_with_subcommands = true)]
pub struct Arguments {
    #[command(flatten)]
    run: RunArguments,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Args)]
struct RunArguments {
    /// The VM's configuration, as JSON
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check the configuration and do nothing
    #[arg(long, requires = "config")]
    check: bool,
    /// Log to standard error from this level on
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log: Level,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Level {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Talk to a running VM by its control socket
    Ctl {
        /// The control socket
        socket: PathBuf,
        /// What to ask
        #[arg(value_enum)]
        request: Ask,
        /// How to print the answer
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        output: Format,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Ask {
    /// What the VM is
    Describe,
    /// Let the vCPUs run for the first time
    Start,
    /// Let everything stand still
    Pause,
    /// Go on
    Resume,
    /// Press the power button: the guest shuts down if it listens
    PowerButton,
    /// Reset the machine
    Reset,
    /// End the VM at once
    Stop,
    /// What the VM has done
    Statistics,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    Table,
    Json,
}

impl Arguments {
    /// Does what the command line asks for.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn run(self) -> Result<(), Failure> {
        inherited::record();
        match (self.command, self.run) {
            (Some(Command::Ctl { socket, request, output }), _) => {
                runtime()?.block_on(ask(&ControlClient::new(socket), request, output))
            }
            (None, RunArguments { config: Some(path), check, log }) => {
                let _flush = start_logging(log)?;
                let checked = config::read(&path)?;
                if check {
                    return Ok(print(&format!("{}: the configuration is good\n", path.display()))?);
                }
                run_vm(checked)
            }
            (None, RunArguments { config: None, .. }) => {
                let mut command = <Self as clap::CommandFactory>::command();
                let complaint = "give --config FILE, or a subcommand";
                command.error(clap::error::ErrorKind::MissingRequiredArgument, complaint).exit()
            }
        }
    }
}

fn run_vm(checked: Checked) -> Result<(), Failure> {
    raise_descriptor_limit();
    let runtime = runtime()?;
    // Device tasks are spawned by constructors that expect a runtime around them.
    Ok(runtime.block_on(driver::run(checked))?)
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// Each virtqueue has two eventfds, and a large VM has thousands: the customary soft limit is too low for it.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

fn start_logging(level: Level) -> io::Result<LogFlush> {
    let level = match level {
        Level::Off => LevelFilter::OFF,
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => LevelFilter::TRACE,
    };
    let terminal = rustix::termios::isatty(io::stderr());
    let (sink, flush) = LogSink::to_stderr()?;
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(terminal)
        .with_writer(move || sink.clone())
        .init();
    Ok(flush)
}

async fn ask(client: &ControlClient, request: Ask, format: Format) -> Result<(), Failure> {
    let put = async |path: &str| client.put::<VmDescription>(path, &()).await;
    let description = match request {
        Ask::Statistics => {
            let statistics: VmStatistics = client.get("/v1/vm/statistics").await?;
            return Ok(show(&statistics, format, statistics_table)?);
        }
        Ask::Describe => client.get("/v1/vm").await?,
        Ask::Start => put("/v1/vm/start").await?,
        Ask::Pause => put("/v1/vm/pause").await?,
        Ask::Resume => put("/v1/vm/resume").await?,
        Ask::PowerButton => put("/v1/vm/power-button").await?,
        Ask::Reset => put("/v1/vm/reset").await?,
        Ask::Stop => put("/v1/vm/stop").await?,
    };
    Ok(show(&description, format, description_table)?)
}

fn show<T: Serialize>(value: &T, format: Format, table: fn(&T) -> String) -> io::Result<()> {
    match format {
        Format::Table => print(&table(value)),
        Format::Json => {
            let mut text = serde_json::to_string_pretty(value)?;
            text.push('\n');
            print(&text)
        }
    }
}

/// Prints to standard output; a reader that went away is no error.
fn print(text: &str) -> io::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        Ok(other) => other.to_string(),
        Err(_) => String::new(),
    }
}

fn description_table(vm: &VmDescription) -> String {
    let mut text = String::new();
    let memory = vm.config.memory.size >> 20;
    let rows = [
        ("id", vm.id.clone()),
        ("state", word(&vm.state)),
        ("board", vm.config.board.clone()),
        ("vcpus", vm.config.cpus.count.to_string()),
        ("memory", format!("{memory} MiB in {} pages", word(&vm.config.memory.pages))),
        ("kernel", vm.config.boot.kernel.to_string()),
        ("release", vm.release.clone()),
        ("pid", vm.pid.to_string()),
    ];
    for (name, value) in rows {
        let _ = writeln!(text, "{name:<10} {value}");
    }
    if !vm.devices.is_empty() {
        let _ = writeln!(
            text,
            "\n{:<20} {:<12} {:<8} {:<10} {:<11} DRIVER",
            "DEVICE", "KIND", "ADDRESS", "BACK END", "RECONNECTS"
        );
    }
    for device in &vm.devices {
        let back_end = if device.connected { "connected" } else { "away" };
        let driver = if device.driver_ok { "ok" } else { "-" };
        let _ = writeln!(
            text,
            "{:<20} {:<12} {:<8} {back_end:<10} {:<11} {driver}",
            device.id, device.kind, device.address, device.reconnects
        );
    }
    text
}

fn statistics_table(vm: &VmStatistics) -> String {
    let mut text = String::new();
    let (seconds, rest) = (vm.uptime_ns / 1_000_000_000, vm.uptime_ns % 1_000_000_000);
    let _ = writeln!(text, "{:<16} {seconds}.{:03} s", "uptime", rest / 1_000_000);
    let _ = writeln!(text, "{:<16} {} KiB", "overhead", vm.overhead_bytes >> 10);
    let _ = writeln!(text, "{:<16} {} KiB", "guest resident", vm.guest_resident_bytes >> 10);
    let _ = writeln!(text, "\n{:<6} {:<14} COUNT", "VCPU", "EXIT");
    for vcpu in &vm.vcpus {
        for (name, count) in &vcpu.exits {
            let _ = writeln!(text, "{:<6} {name:<14} {count}", vcpu.index);
        }
    }
    text
}
