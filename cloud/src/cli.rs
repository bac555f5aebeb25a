//! The command line: `bixi-cloud serve`.
//!
//! Exit status: 0 done, 1 failed, 2 wrong usage.

use crate::serve::{Settings, serve};
use crate::service::Place;
use crate::tls::Lives;
use clap::{Parser, Subcommand};
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// The control plane of Bixi.
#[derive(Debug, Parser)]
#[command(
    name = "bixi-cloud",
    version,
    after_help = "Exit status: 0 done; 1 failed; 2 wrong usage."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the cloud until told to end (SIGTERM).
    Serve(Arguments),
}

#[derive(Debug, clap::Args)]
struct Arguments {
    /// Directory of the state: the store, the authority, the operator's token, images.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/bixi/cloud")]
    state: PathBuf,
    /// HTTPS for operators, agents and tenants.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:7443")]
    listen: SocketAddr,
    /// HTTP for tenants, whose programs may not know the authority: requests are signed, answers are not secret.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen_http: Option<SocketAddr>,
    /// Names and addresses by which the cloud is reached from outside; the first is in join tokens, the machine's own
    /// name unless told.
    #[arg(long, value_name = "NAME")]
    name: Vec<String>,
    /// The region that tenants see.
    #[arg(long, value_name = "ID", default_value = "cn-local")]
    region: String,
    /// The region's zone.
    #[arg(long, value_name = "ID", default_value = "cn-local-a")]
    zone: String,
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let Command::Serve(arguments) = Cli::parse().command;
    let filter = EnvFilter::try_from_env("BIXI_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours);
    log.with_writer(std::io::stderr).init();
    let settings = Settings {
        state: arguments.state,
        listen: arguments.listen,
        listen_http: arguments.listen_http,
        names: arguments.name,
        place: Place { region: arguments.region, zone: arguments.zone },
        lives: Lives::default(),
    };
    match serve(&settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bixi-cloud: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
