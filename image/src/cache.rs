//! Things that are costly to make, kept under a name that says what they were made from.
//!
//! An entry appears whole or not at all: it is built under a temporary name and renamed, by one builder at a time. Older entries of the same
//! kind are removed when a new one is made, so that the folder does not grow with every build.

use crate::error::{Attempt, Result};
use rustix::fs::{FlockOperation, flock};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// How many entries of a kind stay.
const KEPT: usize = 4;

/// A folder of finished things.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// The cache in `root`; the folder is made when needed.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The entry `kind-key`, built by `build` at the path it is given unless it is there. No kind may begin with another
    /// and a dash, since it would be taken for entries of that.
    ///
    /// # Errors
    /// `build` fails, or the folder cannot be written.
    pub fn entry(
        &self,
        kind: &str,
        key: &str,
        build: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let path = self.root.join(format!("{kind}-{key}"));
        if path.exists() {
            touch(&path);
            return Ok(path);
        }
        fs::create_dir_all(&self.root).attempt(|| format!("make {}", self.root.display()))?;
        let turn = self.root.join("turn");
        let turn = fs::File::create(&turn).attempt(|| format!("make {}", turn.display()))?;
        flock(&turn, FlockOperation::LockExclusive).attempt(|| "lock the cache".to_owned())?;
        if path.exists() {
            // Another process, or another thread of this one, has built it while this one waited.
            return Ok(path);
        }
        self.remove_unfinished()?;
        let unfinished = self.root.join(format!(".{kind}-{}", std::process::id()));
        let built = build(&unfinished);
        if built.is_err() {
            let _ = remove(&unfinished);
        }
        built?;
        fs::rename(&unfinished, &path).attempt(|| format!("make {}", path.display()))?;
        self.prune(kind);
        Ok(path)
    }

    /// Removes what killed builders have left: only the one with the turn builds.
    fn remove_unfinished(&self) -> Result<()> {
        let wrong = || format!("read {}", self.root.display());
        for entry in fs::read_dir(&self.root).attempt(wrong)? {
            let entry = entry.attempt(wrong)?;
            if entry.file_name().to_string_lossy().starts_with('.') {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Removes all but the newest entries of a kind. What cannot be removed stays: it costs only room.
    fn prune(&self, kind: &str) {
        let prefix = format!("{kind}-");
        let Ok(entries) = fs::read_dir(&self.root) else { return };
        let mut found: Vec<(SystemTime, PathBuf)> = entries
            .flatten()
            .filter(|e| e.file_name().to_string_lossy().starts_with(&prefix))
            .filter_map(|e| Some((e.metadata().ok()?.accessed().ok()?, e.path())))
            .collect();
        found.sort();
        let surplus = found.len().saturating_sub(KEPT);
        for (_, path) in &found[..surplus] {
            let _ = remove(path);
        }
    }
}

/// The time of last use decides which entries stay; that of change goes into fingerprints.
fn touch(path: &Path) {
    let now = fs::FileTimes::new().set_accessed(SystemTime::now());
    // An entry that cannot be touched goes earlier: it costs only time.
    let _ = fs::File::open(path).and_then(|f| f.set_times(now));
}

fn remove(path: &Path) -> Result<()> {
    let result = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match result {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.attempt(|| format!("remove {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("bixi-cache-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        folder
    }

    #[test]
    fn an_entry_is_built_once_and_a_failed_build_leaves_nothing() {
        let folder = scratch("once");
        let cache = Cache::new(&folder);
        fs::create_dir_all(folder.join(".y-1/left-by-a-killed-builder")).unwrap();
        let failed = cache.entry("x", "1", |path| {
            fs::write(path, "half").unwrap();
            Err(crate::Error::Unfit("no".into()))
        });
        assert!(failed.is_err());
        assert!(!folder.join(format!(".x-{}", std::process::id())).exists());
        assert!(!folder.join(".y-1").exists());
        for _ in 0..2 {
            let mut built = false;
            let path = cache
                .entry("x", "1", |path| {
                    built = true;
                    fs::write(path, "whole").attempt(String::new)
                })
                .unwrap();
            assert_eq!(fs::read(path).unwrap(), b"whole");
            assert!(built || folder.join("x-1").exists());
        }
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn old_entries_go() {
        let folder = scratch("old");
        let cache = Cache::new(&folder);
        for n in 0..10 {
            cache.entry("x", &n.to_string(), |p| fs::write(p, "").attempt(String::new)).unwrap();
        }
        assert_eq!(fs::read_dir(&folder).unwrap().count(), KEPT + 1);
        fs::remove_dir_all(folder).unwrap();
    }
}
