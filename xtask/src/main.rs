//! The developer's commands. Each does all its own set-up and says what it installs.
//!
//! This crate only drives cargo and the programs it builds; what a demo or a rack is lives in `tests/` and `lab/`.

mod bundle;
mod cargo;
mod checks;
mod fuzz;
mod programs;
mod tally;
mod test;

use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// Developer commands of Bixi.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// A cloud of two servers, two instances that talk, and the deaths of all that carries them
    Demo {
        /// End the rack afterwards instead of leaving it running
        #[arg(long)]
        exit: bool,
        /// Write what each step took as JSON
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Unit tests, micro-guest tests, then tests in the rack
    Test {
        /// Also the slow ones
        #[arg(long)]
        all: bool,
        /// Only rack tests whose name contains this
        #[arg(long, value_name = "TEXT")]
        rack: Option<String>,
    },
    /// Format, clippy, dependencies, tests
    Ci,
    /// Build in release and make a signed bundle, for `bixi release install`; prints its path
    Bundle(bundle::Arguments),
    /// Measure side by side with peers
    Bench {
        /// first-light, disk, network, …
        name: String,
        /// Write the figures as JSON
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// Shorter runs, coarser figures
        #[arg(long)]
        quick: bool,
    },
    /// Kill card processes in the rack and bring them back, over and over
    Soak {
        /// For how long
        #[arg(long, default_value_t = 10)]
        minutes: u64,
        /// Write the tally as JSON
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Coverage-guided fuzzing on stable Rust
    Fuzz {
        /// One target; all in turn unless given
        target: Option<String>,
        /// For how long each
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Only list the targets
        #[arg(long)]
        list: bool,
    },
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Demo { exit, json } => programs::demo(exit, json),
        Command::Test { all, rack } => test::test(all, rack.as_deref()),
        Command::Ci => checks::ci(),
        Command::Bundle(arguments) => bundle::bundle(&arguments),
        Command::Bench { name, json, quick } => programs::bench(&name, json, quick),
        Command::Soak { minutes, json } => programs::soak(minutes, json),
        Command::Fuzz { list: true, .. } => fuzz::list(),
        Command::Fuzz { target, seconds, .. } => fuzz::fuzz(target.as_deref(), seconds),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { message }) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Why a command did not succeed, as one line for its user.
#[derive(Debug)]
struct Failure {
    message: String,
}

impl Failure {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into() }
    }
}

type Outcome<T = ()> = Result<T, Failure>;

/// Says what comes next.
fn say(line: &str) {
    eprintln!("xtask: {line}");
}
