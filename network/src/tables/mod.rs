//! What must outlive the process: files of fixed-size records on tmpfs, mapped into memory.
//!
//! ```text
//! STATE/flows/PORT.EPOCH     one 64-byte record per flow        engine::flow
//! STATE/leases/PORT.EPOCH    one 64-byte record per lease       tables::lease
//! ```
//!
//! A process that is killed leaves its stores in the files. Each record has a check word that is cleared before the
//! record changes and written after it, so that a kill between the two leaves a record whose check word does not fit:
//! it is *torn*, and whoever opens the file next empties it and counts it. Nothing is ever flushed: a file that a host's
//! crash takes away was of use to that host's guests only.
//!
//! Invariants: a file is found by its port's id and epoch, and one of another layout, size or name is never used; only
//! the worker that owns the port writes, anybody may read. Called by the driver, which opens and removes files, and by
//! the engine.

pub mod lease;
pub mod mapped;

use std::io;
use std::path::{Path, PathBuf};

/// Which table of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// The flow cache.
    Flows,
    /// The DHCP leases.
    Leases,
}

impl Table {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Flows, Self::Leases];

    /// Its folder in the state directory.
    pub fn folder(self) -> &'static str {
        match self {
            Self::Flows => "flows",
            Self::Leases => "leases",
        }
    }

    /// Where the table of `port` at `epoch` is under the state directory.
    pub fn path(self, state: &Path, port: &str, epoch: u64) -> PathBuf {
        state.join(self.folder()).join(format!("{port}.{epoch}"))
    }
}

/// Why a table cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {}: see that the state directory is a writable tmpfs with room", path.display())]
pub struct TableError {
    /// What was tried.
    pub what: &'static str,
    /// The file.
    pub path: PathBuf,
    /// What the kernel said.
    pub source: io::Error,
}

/// Removes every table that `is_live` does not know, by port id and epoch; returns how many.
///
/// # Errors
/// The state directory cannot be read. A file that is gone already is none.
pub fn remove_dead(state: &Path, is_live: impl Fn(&str, u64) -> bool) -> Result<usize, TableError> {
    let mut removed = 0;
    for table in Table::ALL {
        let folder = state.join(table.folder());
        let failed = |what, path: &Path| {
            let path = path.to_owned();
            move |source| TableError { what, path, source }
        };
        std::fs::create_dir_all(&folder).map_err(failed("create", &folder))?;
        for entry in std::fs::read_dir(&folder).map_err(failed("read", &folder))? {
            let entry = entry.map_err(failed("read", &folder))?;
            let name = entry.file_name();
            let key = name.to_str().and_then(|name| name.rsplit_once('.'));
            let key = key.and_then(|(port, epoch)| Some((port, epoch.parse().ok()?)));
            if key.is_some_and(|(port, epoch)| is_live(port, epoch)) {
                continue;
            }
            match std::fs::remove_file(entry.path()) {
                Ok(()) => removed += 1,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(failed("remove", &entry.path())(e)),
            }
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tables_of_live_ports_stay() {
        let state = tempfile::tempdir().unwrap();
        assert_eq!(remove_dead(state.path(), |_, _| true).unwrap(), 0);
        for name in ["eni-1.7", "eni-1.6", "eni-2.1", "junk", "eni-1.x"] {
            std::fs::write(state.path().join("flows").join(name), b"").unwrap();
        }
        let live = |port: &str, epoch| port == "eni-1" && epoch == 7;
        assert_eq!(remove_dead(state.path(), live).unwrap(), 4);
        assert!(Table::Flows.path(state.path(), "eni-1", 7).exists());
    }
}
