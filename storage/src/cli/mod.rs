//! The command line: `serve` is the process, `disk …` asks it.
//!
//! Exit status: 0 done, 1 refused or failed, 2 wrong usage, 3 the process cannot be reached.

pub mod disk;
pub mod serve;
pub mod size;

use bixi_api::client::ClientError;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

const EXIT: &str =
    "Exit status: 0 done; 1 refused or failed; 2 wrong usage; 3 the process cannot be reached.";

/// Cloud disks, served by vhost-user-blk.
#[derive(Debug, Parser)]
#[command(name = "bixi-storage", version, after_help = EXIT)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve disks until told to end (SIGTERM). Attachments survive the process, however it ends.
    Serve(serve::Arguments),
    /// Ask a running process about disks, or to do something with one.
    Disk(disk::Arguments),
}

/// What a command ended with: a message for the operator and the exit status.
#[derive(Debug)]
struct Failure {
    message: String,
    status: u8,
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
        Command::Disk(arguments) => disk::run(&arguments),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { message, status }) => {
            eprintln!("bixi-storage: {message}");
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
