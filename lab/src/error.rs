//! What can go wrong with a rack, said so that the reader knows the next step.

use std::path::PathBuf;
use std::time::Duration;

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why the lab could not do something.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("cannot {action}: {source}")]
    System {
        /// What was attempted.
        action: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A program of this machine ended badly.
    #[error("`{command}` failed: {output}")]
    Program {
        /// The command line.
        command: String,
        /// The end of what it wrote.
        output: String,
    },
    /// The machine lacks something the lab needs.
    #[error("{0}")]
    Unfit(String),
    /// An image cannot be built.
    #[error(transparent)]
    Image(#[from] bixi_image::Error),
    /// There is no rack to talk to.
    #[error("no rack is up in {}: start one with `bixi-lab up`", state.display())]
    Down {
        /// The state folder.
        state: PathBuf,
    },
    /// A rack is there already.
    #[error("a rack is already up in {}: end it with `bixi-lab down`", state.display())]
    Up {
        /// The state folder.
        state: PathBuf,
    },
    /// The rack's supervisor refused or died.
    #[error("the rack: {0}")]
    Rack(String),
    /// A server's agent refused or died.
    #[error("server-{server}: {message}")]
    Server {
        /// The server's number.
        server: usize,
        /// What is wrong.
        message: String,
    },
    /// Something did not happen in time.
    #[error("{what} did not happen within {after:?}")]
    Deadline {
        /// What was waited for.
        what: String,
        /// For how long.
        after: Duration,
    },
    /// A file that should have a known format does not.
    #[error("{}: {message}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
}

/// Says what was attempted when a system call fails.
pub(crate) trait Attempt<T> {
    /// Wraps the error with what was attempted, as in "cannot `action`: …".
    fn attempt(self, action: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<std::io::Error>> Attempt<T> for std::result::Result<T, E> {
    fn attempt(self, action: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| Error::System { action: action(), source: e.into() })
    }
}
