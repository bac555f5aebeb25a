//! A private folder for sockets and logs, gone with its owner.

use crate::BenchError;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The folder of one run.
#[derive(Debug)]
pub struct Folder(TempDir);

impl Folder {
    /// A fresh one. Short, since the path of a socket has at most 107 bytes.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn new() -> Result<Self, BenchError> {
        let made = tempfile::Builder::new().prefix("bench-").tempdir();
        made.map(Self).map_err(BenchError::system("make a folder"))
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// A file in it.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}
