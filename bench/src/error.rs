//! Why a benchmark did not come about.

use std::io;
use std::path::PathBuf;

/// Why a benchmark, or one side of it, could not run.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// No such benchmark.
    #[error("there is no benchmark `{name}`; there are: {}", crate::NAMES.join(", "))]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// The machine is too small.
    #[error(
        "two processor cores are needed, one for the server and one for the load; this process may use {has}"
    )]
    Cores {
        /// Cores this process may use.
        has: usize,
    },
    /// A program of ours is missing.
    #[error("{} is not there: build the workspace in release first, or use `cargo xtask bench`", .0.display())]
    NotBuilt(PathBuf),
    /// A program could not be had.
    #[error(
        "{program} is missing and the package {package} could not be installed; install it by hand"
    )]
    Package {
        /// The program.
        program: String,
        /// The Debian package that has it.
        package: String,
    },
    /// Not enough huge pages.
    #[error(
        "{wanted} huge pages of 2 MiB are needed and the kernel gave {got}: free memory and run again"
    )]
    HugePages {
        /// Pages needed.
        wanted: u64,
        /// Pages there are.
        got: u64,
    },
    /// Root is needed.
    #[error("{0} needs root")]
    Root(&'static str),
    /// A process ended, or did not come up.
    #[error("{program} did not {what}; it said:\n{said}")]
    Process {
        /// The program.
        program: String,
        /// What it should have done.
        what: &'static str,
        /// The end of what it printed.
        said: String,
    },
    /// The load found an answer that is wrong.
    #[error("the load generator got a wrong answer: {0}")]
    Wrong(String),
    /// No answer came.
    #[error("the server has stopped answering: {0}")]
    Silent(String),
    /// The front end could not be set up.
    #[error(transparent)]
    FrontEnd(#[from] bixi_offload::frontend::ClientError),
    /// Memory for the load could not be had.
    #[error(transparent)]
    Memory(#[from] bixi_offload::memory::MemoryError),
    /// A control socket refused.
    #[error(transparent)]
    Control(#[from] bixi_api::client::ClientError),
    /// The rack failed.
    #[error(transparent)]
    Rack(#[from] bixi_lab::Error),
    /// The user ended it.
    #[error("interrupted")]
    Interrupted,
    /// The kernel refused.
    #[error("cannot {what}")]
    System {
        /// What was tried.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl BenchError {
    /// For `map_err`.
    pub fn system<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        move |source| Self::System { what: what.into(), source: source.into() }
    }
}
