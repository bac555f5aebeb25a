//! `bixi-bench NAME`: measures ours and the peers in one run.

use bixi_bench::setup::interrupt;
use bixi_bench::{Effort, NAMES};
use clap::Parser;
use std::path::PathBuf;
use std::process::ExitCode;

/// Side-by-side benchmarks.
#[derive(Parser)]
#[command(name = "bixi-bench", version)]
struct Arguments {
    /// Which benchmark
    #[arg(value_parser = clap::builder::PossibleValuesParser::new(NAMES))]
    name: String,
    /// Write the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Shorter runs, coarser figures
    #[arg(long)]
    quick: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    interrupt::listen();
    let effort = if arguments.quick { Effort::QUICK } else { Effort::FULL };
    let report = match bixi_bench::run(&arguments.name, effort) {
        Ok(report) => report,
        Err(error) => return fail(&error),
    };
    #[allow(clippy::print_stdout)] // the table is what the program is for
    {
        println!("\n{report}");
    }
    let Some(path) = arguments.json else { return ExitCode::SUCCESS };
    let written = serde_json::to_vec_pretty(&report)
        .map_err(std::io::Error::other)
        .and_then(|json| std::fs::write(&path, json));
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: cannot write {}: {error}", path.display());
            ExitCode::FAILURE
        }
    }
}

fn fail(error: &dyn std::error::Error) -> ExitCode {
    eprint!("error: {error}");
    let mut source = error.source();
    while let Some(error) = source {
        eprint!(": {error}");
        source = error.source();
    }
    eprintln!();
    ExitCode::FAILURE
}
