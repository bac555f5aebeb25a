//! The root directory: finds disks, reads their `meta`, raises epochs, deletes.
//!
//! Invariants: a directory named by a [`DiskId`] is a whole disk (it gets the name as the last step of its creation
//! and loses it as the first step of its deletion); an epoch only grows; one damaged disk does not hinder another.

use super::durable::{self, UNFINISHED};
use super::id::DiskId;
use super::layer::{LayerError, LayerFile};
use super::lock::{self, Holder, MetaGuard};
use super::meta::{Meta, MetaError};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// All disks under one root directory. Cheap to copy; holds nothing open.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// Why something cannot be done with a disk.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no such disk.
    #[error("there is no disk {0}")]
    NotFound(DiskId),
    /// A disk of this id is there already.
    #[error("disk {0} is there already")]
    Exists(DiskId),
    /// Somebody else has the disk's writer lock.
    #[error("disk {id} is in use by {holder}")]
    InUse {
        /// The disk.
        id: DiskId,
        /// Who has it.
        holder: Holder,
    },
    /// The disk has seen a higher epoch.
    #[error("epoch {asked} of disk {id} is stale: it has seen {seen}")]
    Stale {
        /// The disk.
        id: DiskId,
        /// The epoch that came.
        asked: u64,
        /// The highest it has seen.
        seen: u64,
    },
    /// Its `meta` cannot be used.
    #[error("disk {id} cannot be used: {source}")]
    Meta {
        /// The disk.
        id: DiskId,
        /// What is wrong.
        source: MetaError,
    },
    /// Its layer cannot be used.
    #[error("disk {id} cannot be used: {source}")]
    Layer {
        /// The disk.
        id: DiskId,
        /// What is wrong.
        source: LayerError,
    },
    /// What was asked for makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The image cannot be read.
    #[error("image {} cannot be used: {why}", path.display())]
    Image {
        /// The image.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Its creation was ended.
    #[error("the creation of disk {0} was ended")]
    Cancelled(DiskId),
    /// The file system refused.
    #[error("disk {id}: cannot {what}: {source}")]
    Io {
        /// The disk.
        id: DiskId,
        /// What was being done.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl StoreError {
    /// Whether the file system is full.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Io { source, .. }
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

/// Makes an error of [`StoreError::Io`] for `map_err`.
pub(super) fn io_error(id: &DiskId, what: &'static str) -> impl FnOnce(io::Error) -> StoreError {
    let id = id.clone();
    move |source| StoreError::Io { id, what, source }
}

impl Store {
    /// The store under `root`. Looks at nothing yet.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The store under `root`, prepared.
    ///
    /// # Errors
    /// As [`Store::prepare`].
    pub fn open(root: &Path) -> io::Result<Self> {
        let store = Self::new(root);
        store.prepare()?;
        Ok(store)
    }

    /// Makes the root directory if it is not there, and removes what unfinished work left in it, but not what another
    /// process is working on.
    ///
    /// # Errors
    /// The directory cannot be made or read.
    pub fn prepare(&self) -> io::Result<()> {
        // Asked first, because making it waits for a file system that takes no writes, even when it is there.
        if !self.root.is_dir() {
            fs::create_dir_all(&self.root)?;
        }
        for entry in fs::read_dir(&self.root)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if !matches!(name.strip_suffix(UNFINISHED).map(DiskId::from_str), Some(Ok(_))) {
                continue;
            }
            match remove_unfinished(&path) {
                Ok(true) => tracing::info!(path = %path.display(), "removed an unfinished disk"),
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "cannot remove an unfinished disk");
                }
            }
        }
        Ok(())
    }

    /// The directory of a disk.
    pub fn directory(&self, id: &DiskId) -> PathBuf {
        self.root.join(id.as_str())
    }

    /// The directory of a disk while it is being made or deleted.
    pub(super) fn unfinished(&self, id: &DiskId) -> PathBuf {
        self.root.join(format!("{id}{UNFINISHED}"))
    }

    /// The root directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The ids of all disks, in order, whole or damaged.
    ///
    /// # Errors
    /// The root directory cannot be read.
    pub fn ids(&self) -> io::Result<Vec<DiskId>> {
        let mut ids = Vec::new();
        for entry in fs::read_dir(&self.root)? {
            let entry = entry?;
            if let Ok(id) = entry.file_name().to_string_lossy().parse()
                && entry.file_type()?.is_dir()
            {
                ids.push(id);
            }
        }
        ids.sort();
        Ok(ids)
    }

    /// What a disk knows about itself.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] or [`StoreError::Meta`].
    pub fn meta(&self, id: &DiskId) -> Result<Meta, StoreError> {
        let directory = self.directory(id);
        if !directory.is_dir() {
            return Err(StoreError::NotFound(id.clone()));
        }
        Meta::read(&directory, id).map_err(|source| StoreError::Meta { id: id.clone(), source })
    }

    /// Opens the disk's layer; does not lock it.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn open_layer(&self, meta: &Meta) -> Result<LayerFile, StoreError> {
        let (name, size) = (meta.layer.file_name(), meta.layer.size);
        LayerFile::open(&self.directory(&meta.id), &name, size)
            .map_err(|source| StoreError::Layer { id: meta.id.clone(), source })
    }

    /// Raises the disk's epoch to `epoch`, durably. A lower one than it has seen is refused, the same changes nothing.
    ///
    /// # Errors
    /// [`StoreError::Stale`] and what reading and writing give.
    pub fn raise_epoch(&self, id: &DiskId, epoch: u64) -> Result<Meta, StoreError> {
        let directory = self.directory(id);
        let _guard = MetaGuard::take(&directory).map_err(io_error(id, "guard its meta"))?;
        let mut meta = self.meta(id)?;
        if epoch < meta.epoch {
            return Err(StoreError::Stale { id: id.clone(), asked: epoch, seen: meta.epoch });
        }
        if epoch > meta.epoch {
            meta.epoch = epoch;
            meta.write(&directory).map_err(io_error(id, "write its meta"))?;
        }
        Ok(meta)
    }

    /// Deletes a disk that nobody uses, damaged or whole.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::InUse`], and what the file system says. After an error the disk is
    /// either untouched or gone from the list.
    pub fn delete(&self, id: &DiskId) -> Result<(), StoreError> {
        let directory = self.directory(id);
        if !directory.is_dir() {
            return Err(StoreError::NotFound(id.clone()));
        }
        // Held until the name is gone, so that nobody can begin to use the disk meanwhile.
        let _locks = self.lock_all(id, &directory)?;
        let unfinished = self.unfinished(id);
        remove_unfinished(&unfinished).map_err(io_error(id, "clear the way for its deletion"))?;
        fs::rename(&directory, &unfinished).map_err(io_error(id, "take its name away"))?;
        durable::sync_directory(&self.root).map_err(io_error(id, "flush the root directory"))?;
        fs::remove_dir_all(&unfinished).map_err(io_error(id, "remove its files"))
    }

    pub(super) fn lock_all(&self, id: &DiskId, directory: &Path) -> Result<Vec<File>, StoreError> {
        let mut locks = Vec::new();
        for entry in fs::read_dir(directory).map_err(io_error(id, "read its directory"))? {
            let entry = entry.map_err(io_error(id, "read its directory"))?;
            if !entry.file_name().to_string_lossy().ends_with(".raw") {
                continue;
            }
            let file = File::options().read(true).write(true).open(entry.path());
            let file = file.map_err(io_error(id, "open its layer"))?;
            if !lock::try_lock(&file).map_err(io_error(id, "lock its layer"))? {
                let holder = Holder::look(directory);
                return Err(StoreError::InUse { id: id.clone(), holder });
            }
            locks.push(file);
        }
        Ok(locks)
    }
}

/// Removes the leftover of a disk's creation or deletion; `false` if there is none or somebody is at work on it.
pub(super) fn remove_unfinished(path: &Path) -> io::Result<bool> {
    let directory = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        opened => opened?,
    };
    match rustix::fs::flock(&directory, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => fs::remove_dir_all(path).map(|()| true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::create::{Progress, Source};
    use super::*;

    fn id(n: u8) -> DiskId {
        format!("d-{n:020}").parse().unwrap()
    }

    fn store() -> (tempfile::TempDir, Store) {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path()).unwrap();
        (root, store)
    }

    #[test]
    fn epochs_only_grow_and_survive() {
        let (_root, store) = store();
        store.create(&id(1), &Source::Zero { size: 4096 }, &Progress::default()).unwrap();
        assert_eq!(store.raise_epoch(&id(1), 5).unwrap().epoch, 5);
        assert_eq!(store.raise_epoch(&id(1), 5).unwrap().epoch, 5);
        let refused = store.raise_epoch(&id(1), 4);
        assert!(matches!(refused, Err(StoreError::Stale { asked: 4, seen: 5, .. })), "{refused:?}");
        assert_eq!(Store::open(store.root()).unwrap().meta(&id(1)).unwrap().epoch, 5);
        assert!(matches!(store.raise_epoch(&id(2), 1), Err(StoreError::Io { .. })));
    }

    #[test]
    fn two_that_raise_an_epoch_do_not_lose_the_higher() {
        let (_root, store) = store();
        store.create(&id(1), &Source::Zero { size: 4096 }, &Progress::default()).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let store = &store;
                scope.spawn(move || {
                    for epoch in (thread..100).step_by(4) {
                        match store.raise_epoch(&id(1), epoch) {
                            Ok(_) | Err(StoreError::Stale { .. }) => {}
                            Err(e) => panic!("{e}"),
                        }
                    }
                });
            }
        });
        assert_eq!(store.meta(&id(1)).unwrap().epoch, 99);
    }

    #[test]
    fn a_disk_in_use_is_not_deleted_and_a_damaged_one_hinders_nobody() {
        let (_root, store) = store();
        for n in 1..=2 {
            store.create(&id(n), &Source::Zero { size: 4096 }, &Progress::default()).unwrap();
        }
        let layer = store.open_layer(&store.meta(&id(1)).unwrap()).unwrap();
        assert!(layer.try_lock().unwrap());
        assert!(matches!(store.delete(&id(1)), Err(StoreError::InUse { .. })));
        drop(layer);

        fs::write(store.directory(&id(1)).join("meta"), b"nonsense").unwrap();
        assert!(matches!(store.meta(&id(1)), Err(StoreError::Meta { .. })));
        assert_eq!(store.ids().unwrap(), [id(1), id(2)]);
        assert_eq!(store.meta(&id(2)).unwrap().size, 4096);

        store.delete(&id(1)).unwrap();
        assert!(matches!(store.delete(&id(1)), Err(StoreError::NotFound(_))));
        assert_eq!(store.ids().unwrap(), [id(2)]);
    }

    #[test]
    fn leftovers_go_at_start_unless_somebody_works_on_them() {
        let (_root, store) = store();
        for n in 1..=2 {
            fs::create_dir(store.unfinished(&id(n))).unwrap();
            fs::write(store.unfinished(&id(n)).join("x.raw"), b"x").unwrap();
        }
        let _work = MetaGuard::take(&store.unfinished(&id(2))).unwrap();
        Store::open(store.root()).unwrap();
        assert!(!store.unfinished(&id(1)).exists());
        assert!(store.unfinished(&id(2)).exists());
        assert!(store.ids().unwrap().is_empty());
    }
}
