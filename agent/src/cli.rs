//! The command line of `bixi-agent`.

use crate::executor::describe;
use crate::identity::Identity;
use crate::jail;
use crate::places::Places;
use crate::points;
use crate::serve::{Settings, serve};
use bixi_api::agent::JoinToken;
use bixi_offload::failpoint;
use std::io::{IsTerminal, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use tracing_subscriber::EnvFilter;

/// VXLAN's own port.
const VXLAN: u16 = 4789;

/// One of these runs on each server. It starts the card (bixi-storage, bixi-network) and the VMs that the cloud places
/// here, watches them, and tells the cloud. When it ends, VMs and card go on; when it starts again, it takes them up.
#[derive(Debug, clap::Parser)]
#[command(
    name = "bixi-agent",
    version,
    after_help = "\
Exit codes: 0 ended in good order, 1 failed, 2 wrong command line.\n\
BIXI_LOG sets what is logged: error, warn, info (the default), debug.\n\n\
A server's first steps:\n  bixi-agent join TOKEN      with a token of `bixi server token`\n  bixi-agent serve"
)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Run the agent of this server
    Serve(ServeArguments),
    /// Make this server one of a cloud's, once
    Join(JoinArguments),
    /// Build a VM's jail and become its VMM; the agent starts this itself
    #[command(hide = true)]
    Jail {
        /// The jail's description
        spec: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
struct ServeArguments {
    /// What outlives a boot of the server: identity, records, images
    #[arg(long, value_name = "DIR", default_value = "/var/lib/bixi/agent")]
    state: PathBuf,
    /// What lives as long as a boot: sockets, logs, the card's state; on tmpfs
    #[arg(long, value_name = "DIR", default_value = "/run/bixi")]
    run: PathBuf,
    /// The disks
    #[arg(long, value_name = "DIR", default_value = "/var/lib/bixi/disks")]
    disks: PathBuf,
    /// Where bixi-vmm, bixi-storage and bixi-network are; beside this program unless told
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// This server's tunnel end point, for networks that reach other servers; port 4789 unless told
    #[arg(long, value_name = "IP[:PORT]", value_parser = endpoint)]
    underlay: Option<SocketAddr>,
    /// First of the users that VMs run as, one each; 4,096 from here on must be free
    #[arg(long, value_name = "UID", default_value_t = 200_000, value_parser = clap::value_parser!(u32).range(1000..2_000_000_000))]
    first_user: u32,
    /// A control group that outlives the agent, for VMs and card processes; `bixi` under /sys/fs/cgroup, for VMs alone, unless told
    #[arg(long, value_name = "DIR")]
    cgroup: Option<PathBuf>,
    /// A further argument for `bixi-storage serve`, for example --storage-argument=--cpus=2,3
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    storage_argument: Vec<String>,
    /// A further argument for `bixi-network serve`, for example --network-argument=--cpu=1
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    network_argument: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct JoinArguments {
    /// The token, from `bixi server token`; `-` reads it from standard input, where no process list shows it
    token: String,
    /// The agent's state directory
    #[arg(long, value_name = "DIR", default_value = "/var/lib/bixi/agent")]
    state: PathBuf,
    /// The server's name in the cloud; its host name unless told
    #[arg(long, value_name = "NAME", value_parser = server_name)]
    name: Option<String>,
}

/// Why the process ends otherwise than well.
#[derive(Debug)]
pub struct Failure {
    /// What is wrong and what to do.
    pub message: String,
    /// The exit code.
    pub status: u8,
}

impl Failure {
    fn of(error: &dyn std::error::Error) -> Self {
        Self { message: describe(error), status: 1 }
    }
}

fn endpoint(text: &str) -> Result<SocketAddr, String> {
    let alone = || text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, VXLAN));
    text.parse().or_else(|_| alone()).map_err(|_| format!("`{text}` is no IP:PORT"))
}

fn server_name(text: &str) -> Result<String, String> {
    let good = |c: u8| c.is_ascii_alphanumeric() || c == b'-';
    match (1..=63).contains(&text.len()) && text.bytes().all(good) {
        true => Ok(text.to_owned()),
        false => Err("give 1 to 63 letters, digits or `-`".to_owned()),
    }
}

impl Arguments {
    /// Does what the command line asks for.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn run(self) -> Result<(), Failure> {
        match self.command {
            // Before anything makes a thread.
            Command::Jail { spec } => jail::run(&spec).map_err(|e| Failure::of(&e)),
            Command::Serve(arguments) => {
                let filter =
                    EnvFilter::try_from_env("BIXI_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
                let colours = std::io::stderr().is_terminal();
                let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours);
                log.with_writer(std::io::stderr).init();
                failpoint::arm_from_env(&points::ALL)
                    .map_err(|message| Failure { message, status: 2 })?;
                serve(&arguments.settings()?).map_err(|e| Failure::of(&e))
            }
            Command::Join(arguments) => join(&arguments),
        }
    }
}

impl ServeArguments {
    fn settings(self) -> Result<Settings, Failure> {
        let programs = match self.programs {
            Some(programs) => programs,
            None => {
                let own = std::env::current_exe().map_err(|e| Failure::of(&e))?;
                own.parent().map(PathBuf::from).unwrap_or_default()
            }
        };
        let places = Places { state: self.state, run: self.run, disks: self.disks, programs };
        Ok(Settings {
            places,
            underlay: self.underlay,
            storage: self.storage_argument,
            network: self.network_argument,
            first_user: self.first_user,
            cgroup: self.cgroup,
        })
    }
}

fn join(arguments: &JoinArguments) -> Result<(), Failure> {
    let text = match arguments.token.as_str() {
        "-" => std::io::read_to_string(std::io::stdin()).map_err(|e| Failure::of(&e))?,
        token => token.to_owned(),
    };
    let token: JoinToken = text.parse().map_err(|e| Failure { status: 2, ..Failure::of(&e) })?;
    let name = match &arguments.name {
        Some(name) => name.clone(),
        None => {
            let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
            let short = host.split('.').next().unwrap_or_default();
            server_name(short).map_err(|e| Failure {
                message: format!("the host name `{host}` cannot be the server's: {e} with --name"),
                status: 2,
            })?
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::of(&e))?;
    let path = arguments.state.join("identity.json");
    let joined = runtime.block_on(Identity::join(&path, &token, &name));
    let identity = joined.map_err(|e| Failure::of(&e))?;
    // A reader that went away is no error.
    let _ = writeln!(
        std::io::stdout(),
        "this server is {} of the cloud at {}; start `bixi-agent serve` now",
        identity.server,
        identity.cloud
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[test]
    fn the_command_line_reads_and_says_what_is_wrong() {
        <Arguments as clap::CommandFactory>::command().debug_assert();
        assert!(
            Arguments::try_parse_from(["bixi-agent", "serve", "--underlay", "10.0.0.1"]).is_ok()
        );
        assert!(Arguments::try_parse_from(["bixi-agent", "serve", "--underlay", "here"]).is_err());
        assert!(Arguments::try_parse_from(["bixi-agent", "join", "x", "--name", "a b"]).is_err());
        let bad =
            Arguments::try_parse_from(["bixi-agent", "join", "x"]).unwrap().run().unwrap_err();
        assert!(bad.status == 2 && bad.message.contains("copy it whole"), "{bad:?}");
    }
}
