//! What can go wrong with an image, said so that the reader knows the next step.

use std::path::PathBuf;

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an image cannot be built, read or written.
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
    /// The machine lacks something that is needed.
    #[error("{0}")]
    Unfit(String),
    /// A file that should have a known format does not.
    #[error("{}: {message}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// What was asked for cannot be.
    #[error("{0}")]
    Refused(String),
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
