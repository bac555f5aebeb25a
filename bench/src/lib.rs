//! Side-by-side benchmarks: ours and the peers on the same machine, with the same load, in alternation.
//!
//! | module | what it is for |
//! |---|---|
//! | [`report`] | the figures as JSON and as a table; one schema for all benchmarks |
//! | [`rounds`] | runs ours and the peers in turns, throws disturbed runs away |
//! | [`setup`] | cores, huge pages, packages, processes: taken and given back |
//! | [`load`] | what a load generator needs: a clock, a histogram |
//! | [`first_light`], [`delivery`], [`disk`], [`network`], [`control`] | the benchmarks |
//!
//! Invariants: a benchmark leaves nothing behind, whatever way it ends (a process, a socket, a huge page); it talks to
//! nobody beyond the loopback interface; a peer that cannot run is named with the reason, never left out.

// The progress of a benchmark is for people to read.
#![allow(clippy::print_stdout)]

pub mod control;
pub mod delivery;
pub mod disk;
pub mod error;
pub mod first_light;
pub mod load;
pub mod network;
pub mod report;
pub mod rounds;
pub mod setup;

pub use error::BenchError;

use report::Report;

/// How thorough a benchmark is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Effort {
    /// Undisturbed runs of each side.
    pub runs: u32,
    /// Seconds of load before figures are taken.
    pub warm_up: f64,
    /// Seconds of load in which they are.
    pub measured: f64,
}

impl Effort {
    /// What a figure in a release note takes.
    pub const FULL: Self = Self { runs: 3, warm_up: 1.0, measured: 3.0 };
    /// What a look takes.
    pub const QUICK: Self = Self { runs: 3, warm_up: 0.3, measured: 0.7 };
}

/// The benchmarks there are.
pub const NAMES: &[&str] = &["first-light", "delivery", "disk", "network", "control"];

/// Runs the benchmark `name`.
///
/// # Errors
/// There is none of that name, or ours could not run. A peer that cannot run is no error.
pub fn run(name: &str, effort: Effort) -> Result<Report, BenchError> {
    let rows = match name {
        "first-light" => first_light::run(effort)?,
        "delivery" => delivery::run(effort)?,
        "disk" => disk::run(effort)?,
        "network" => network::run(effort)?,
        "control" => control::run(effort)?,
        _ => return Err(BenchError::Unknown { name: name.to_owned() }),
    };
    Ok(Report::new(name, rows))
}
