//! `bixi-agent`: the agent of one server.

use bixi_agent::cli::Arguments;
use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    match Arguments::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("bixi-agent: {}", failure.message);
            ExitCode::from(failure.status)
        }
    }
}
