//! The command line: `serve` is the process, everything else asks it.
//!
//! Exit status: 0 done, 1 refused or failed, 2 wrong usage, 3 the process cannot be reached.

pub mod ask;
pub mod port;
pub mod segment;
pub mod serve;
mod show;

use bixi_api::client::ClientError;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

const EXIT: &str =
    "Exit status: 0 done; 1 refused or failed; 2 wrong usage; 3 the process cannot be reached.";

/// Network ports of instances, served by vhost-user-net, and the segments they are in.
#[derive(Debug, Parser)]
#[command(name = "bixi-network", version, after_help = EXIT)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve ports until told to end (SIGTERM). Ports and segments survive the process, however it ends.
    Serve(serve::Arguments),
    /// How a running process is.
    Status(ask::Whom),
    /// Ask a running process about ports, or to serve one or not.
    Port(port::Arguments),
    /// Ask a running process about segments, or tell it of one.
    Segment(segment::Arguments),
}

/// What a command ended with: a message for the operator and the exit status.
#[derive(Debug)]
struct Failure {
    message: String,
    status: u8,
}

impl Failure {
    fn usage(message: impl Into<String>) -> Self {
        Self { message: message.into(), status: 2 }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let status = match error {
            ClientError::Connect { .. } => 3,
            _ => 1,
        };
        let source = std::error::Error::source(&error);
        let cause = source.map(|source| format!(" ({source})")).unwrap_or_default();
        Self { message: format!("{error}{cause}"), status }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self { message: error.to_string(), status: 1 }
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let ended = match Cli::parse().command {
        Command::Serve(arguments) => serve::run(&arguments),
        Command::Status(whom) => ask::block_on(ask::status(&whom)),
        Command::Port(arguments) => ask::block_on(port::run(&arguments)),
        Command::Segment(arguments) => ask::block_on(segment::run(&arguments)),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { message, status }) => {
            eprintln!("bixi-network: {message}");
            ExitCode::from(status)
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
