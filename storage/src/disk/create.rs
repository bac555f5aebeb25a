//! Making a disk: empty, or from a raw image.
//!
//! A disk is made under the name `<id>.unfinished` and gets its own name as the last step, when all of it is on the
//! medium. Whatever ends the work before (an error, a full file system, kill -9) leaves nothing that looks like a
//! disk. Called on a thread of its own: an image may take minutes.

use super::durable;
use super::id::DiskId;
use super::lock::MetaGuard;
use super::meta::{self, Layer, Meta};
use super::store::{Store, StoreError, io_error, remove_unfinished};
use rustix::fs::{Advice, RenameFlags, SeekFrom};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Bytes copied between two looks at the progress; also the buffer.
const STEP: usize = 1 << 20;

/// A run of zeroes of this many bytes is not written, so that the copy is as sparse as it can be.
const GRAIN: usize = 64 << 10;

/// What a disk begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Zeroes.
    Zero {
        /// The disk's size in bytes.
        size: u64,
    },
    /// The bytes of a raw image, then zeroes.
    Image {
        /// A file or block device.
        path: PathBuf,
        /// The disk's size in bytes; the image's, rounded up to a sector, unless told.
        size: Option<u64>,
    },
}

/// How far a creation is. Shared between the thread that works and whoever looks.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    total: AtomicU64,
    cancelled: AtomicBool,
}

impl Progress {
    /// Bytes of the image gone through, and its size; both 0 for an empty disk.
    pub fn get(&self) -> (u64, u64) {
        (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed))
    }

    /// Ends the creation soon, as if it had never begun.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    fn set(&self, done: u64) {
        self.done.store(done, Ordering::Relaxed);
    }

    fn check(&self, id: &DiskId) -> Result<(), StoreError> {
        match self.cancelled.load(Ordering::Relaxed) {
            true => Err(StoreError::Cancelled(id.clone())),
            false => Ok(()),
        }
    }
}

impl Store {
    /// Makes the disk `id`.
    ///
    /// # Errors
    /// See [`StoreError`]; nothing is left then.
    pub fn create(
        &self,
        id: &DiskId,
        source: &Source,
        progress: &Progress,
    ) -> Result<Meta, StoreError> {
        let (size, image) = measure(source)?;
        let directory = self.directory(id);
        if directory.exists() {
            return Err(StoreError::Exists(id.clone()));
        }
        let unfinished = self.unfinished(id);
        remove_unfinished(&unfinished).map_err(io_error(id, "remove an unfinished one"))?;
        match fs::create_dir(&unfinished) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                return Err(StoreError::Exists(id.clone()));
            }
            made => made.map_err(io_error(id, "make its directory"))?,
        }
        let made = self.fill(id, size, image, progress);
        if made.is_err() {
            // Best effort: what stays is removed at the next start.
            let _ = fs::remove_dir_all(&unfinished);
        }
        made
    }

    fn fill(
        &self,
        id: &DiskId,
        size: u64,
        image: Option<Image>,
        progress: &Progress,
    ) -> Result<Meta, StoreError> {
        let unfinished = self.unfinished(id);
        // Tells the start of another process that somebody is at work here.
        let _guard = MetaGuard::take(&unfinished).map_err(io_error(id, "guard its directory"))?;
        let layer = Layer { id: layer_id(), size: meta::layer_size(size) };
        let path = unfinished.join(layer.file_name());
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(io_error(id, "make its layer"))?;
        if let Some(image) = image {
            image.copy_to(id, &file, progress)?;
        }
        file.set_len(layer.size).map_err(io_error(id, "size its layer"))?;
        file.sync_all().map_err(io_error(id, "flush its layer"))?;
        // The disk is served past the page cache, where the copy is of no more use. Only advice: failure is no loss.
        let _ = rustix::fs::fadvise(&file, 0, None, Advice::DontNeed);

        let meta = Meta { id: id.clone(), size, epoch: 0, layer };
        meta.write(&unfinished).map_err(io_error(id, "write its meta"))?;
        progress.check(id)?;
        self.give_name(id, &unfinished)?;
        if let Err(error) = durable::sync_directory(self.root()) {
            self.take_name_back(id, &unfinished);
            return Err(io_error(id, "flush the root directory")(error));
        }
        Ok(meta)
    }

    /// Makes a disk that nobody may count on unfinished again, for the caller to remove and to make anew. Best effort:
    /// where even this fails, or another process uses the disk already, it stays, whole but for its name's durability.
    fn take_name_back(&self, id: &DiskId, unfinished: &Path) {
        let directory = self.directory(id);
        let (cwd, flags) = (rustix::fs::CWD, RenameFlags::NOREPLACE);
        // Held until the name is gone, so that nobody can begin to use the disk meanwhile.
        let taken = self.lock_all(id, &directory).map_err(|error| error.to_string());
        let renamed = taken.and_then(|_locks| {
            rustix::fs::renameat_with(cwd, &directory, cwd, unfinished, flags)
                .map_err(|error| error.to_string())
        });
        if let Err(error) = renamed {
            tracing::error!(disk = %id, error, "a disk that could not be made durable stays: delete it");
        }
    }

    fn give_name(&self, id: &DiskId, unfinished: &Path) -> Result<(), StoreError> {
        let (cwd, to) = (rustix::fs::CWD, self.directory(id));
        match rustix::fs::renameat_with(cwd, unfinished, cwd, &to, RenameFlags::NOREPLACE) {
            Err(rustix::io::Errno::EXIST) => Err(StoreError::Exists(id.clone())),
            renamed => renamed.map_err(|e| io_error(id, "give it its name")(e.into())),
        }
    }
}

/// 128 random bits as letters and digits.
fn layer_id() -> String {
    use std::hash::{BuildHasher, RandomState};
    // SipHash keyed by the kernel's random numbers: 64 bits that nobody has seen, twice.
    (0..2u64).map(|word| format!("{:016x}", RandomState::new().hash_one(word))).collect()
}

struct Image {
    path: PathBuf,
    file: File,
    size: u64,
}

/// The size of the disk to be, and the image if there is one.
fn measure(source: &Source) -> Result<(u64, Option<Image>), StoreError> {
    let (size, image) = match source {
        Source::Zero { size } => (*size, None),
        Source::Image { path, size } => {
            let image = Image::open(path)?;
            let size = size.unwrap_or(image.size.next_multiple_of(512));
            if size < image.size {
                return Err(StoreError::Image {
                    path: path.clone(),
                    why: format!("it has {} bytes, more than the disk's {size}", image.size),
                });
            }
            (size, Some(image))
        }
    };
    if size == 0 || size % 512 != 0 || size > meta::SIZE_LIMIT {
        let limit = meta::SIZE_LIMIT;
        return Err(StoreError::Invalid(format!(
            "a disk of {size} bytes cannot be made: its size is a multiple of 512 from 512 to {limit}"
        )));
    }
    Ok((size, image))
}

impl Image {
    fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |why: String| StoreError::Image { path: path.to_owned(), why };
        // Not to hang on a pipe that nobody writes.
        let mut options = OpenOptions::new();
        let file = options.read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let file = file.map_err(|e| failed(e.to_string()))?;
        let kind = file.metadata().map_err(|e| failed(e.to_string()))?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(failed("it is neither a file nor a block device".into()));
        }
        let size = rustix::fs::seek(&file, SeekFrom::End(0)).map_err(|e| failed(e.to_string()))?;
        if size == 0 {
            return Err(failed("it is empty".into()));
        }
        if size > meta::SIZE_LIMIT {
            return Err(failed(format!("it has {size} bytes")));
        }
        Ok(Self { path: path.to_owned(), file, size })
    }

    fn failed(&self, why: impl ToString) -> StoreError {
        StoreError::Image { path: self.path.clone(), why: why.to_string() }
    }

    fn copy_to(&self, id: &DiskId, layer: &File, progress: &Progress) -> Result<(), StoreError> {
        progress.total.store(self.size, Ordering::Relaxed);
        // Where the file system can share the bytes, there is nothing to copy.
        if rustix::fs::ioctl_ficlone(layer, &self.file).is_ok() {
            progress.set(self.size);
            return Ok(());
        }
        let mut buffer = vec![0; STEP];
        let mut at = 0;
        while let Some((from, to)) = self.next_data(at) {
            at = from;
            while at < to {
                progress.set(at);
                progress.check(id)?;
                let length = (to - at).min(STEP as u64) as usize;
                let part = &mut buffer[..length];
                self.file.read_exact_at(part, at).map_err(|e| self.failed(e))?;
                write_sparse(layer, part, at).map_err(io_error(id, "write its layer"))?;
                at += length as u64;
            }
        }
        progress.set(self.size);
        Ok(())
    }

    /// The next run of data at or behind `at`. Where a file system does not tell, all is data.
    fn next_data(&self, at: u64) -> Option<(u64, u64)> {
        if at >= self.size {
            return None;
        }
        let from = match rustix::fs::seek(&self.file, SeekFrom::Data(at)) {
            Ok(from) => from,
            Err(rustix::io::Errno::NXIO) => return None,
            Err(_) => return Some((at, self.size)),
        };
        let to = rustix::fs::seek(&self.file, SeekFrom::Hole(from)).unwrap_or(self.size);
        (from < self.size).then_some((from, to.min(self.size)))
    }
}

fn write_sparse(layer: &File, part: &[u8], at: u64) -> io::Result<()> {
    for (index, grain) in part.chunks(GRAIN).enumerate() {
        if grain.iter().any(|byte| *byte != 0) {
            layer.write_all_at(grain, at + (index * GRAIN) as u64)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn id() -> DiskId {
        "d-0123456789abcdefghij".parse().unwrap()
    }

    fn store() -> (tempfile::TempDir, Store) {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(&root.path().join("disks")).unwrap();
        (root, store)
    }

    fn content(store: &Store, meta: &Meta) -> Vec<u8> {
        fs::read(store.directory(&meta.id).join(meta.layer.file_name())).unwrap()
    }

    #[test]
    fn an_empty_disk_takes_no_space() {
        let (_root, store) = store();
        let made = store.create(&id(), &Source::Zero { size: 1 << 40 }, &Progress::default());
        let meta = made.unwrap();
        assert_eq!((meta.size, meta.epoch), (1 << 40, 0));
        assert_eq!(store.meta(&id()).unwrap(), meta);
        let layer = store.directory(&id()).join(meta.layer.file_name());
        assert!(fs::metadata(layer).unwrap().blocks() < 64);
        let again = store.create(&id(), &Source::Zero { size: 512 }, &Progress::default());
        assert!(matches!(again, Err(StoreError::Exists(_))));
    }

    #[test]
    fn an_image_is_copied_with_its_holes() {
        let (root, store) = store();
        let path = root.path().join("image");
        let image = File::create(&path).unwrap();
        image.set_len((40 << 20) + 100).unwrap();
        image.write_all_at(b"begin", 3).unwrap();
        image.write_all_at(&vec![7; 3 << 20], 20 << 20).unwrap();
        image.write_all_at(b"end", (40 << 20) + 90).unwrap();
        let progress = Progress::default();
        let source = Source::Image { path: path.clone(), size: None };
        let meta = store.create(&id(), &source, &progress).unwrap();
        assert_eq!(meta.size, (40 << 20) + 512);
        assert_eq!(progress.get(), ((40 << 20) + 100, (40 << 20) + 100));
        let (mut expected, got) = (fs::read(&path).unwrap(), content(&store, &meta));
        expected.resize(got.len(), 0);
        assert!(expected == got);
        let layer = store.directory(&id()).join(meta.layer.file_name());
        assert!(fs::metadata(layer).unwrap().blocks() * 512 < 5 << 20);
    }

    #[test]
    fn a_creation_that_fails_leaves_nothing() {
        let (root, store) = store();
        let path = root.path().join("image");
        fs::write(&path, [1; 1000]).unwrap();
        let image = |size| Source::Image { path: path.clone(), size };
        for source in [
            Source::Zero { size: 0 },
            Source::Zero { size: 513 },
            Source::Zero { size: u64::MAX - 511 },
            image(Some(512)),
            Source::Image { path: root.path().join("none"), size: None },
            Source::Image { path: root.path().to_owned(), size: None },
            Source::Image { path: "/dev/null".into(), size: None },
        ] {
            assert!(store.create(&id(), &source, &Progress::default()).is_err(), "{source:?}");
        }
        // A file that says it has 4096 bytes and gives fewer: fails in the middle of the copy.
        let short = Path::new("/sys/kernel/mm/transparent_hugepage/enabled");
        if short.exists() {
            let source = Source::Image { path: short.to_owned(), size: None };
            let refused = store.create(&id(), &source, &Progress::default());
            assert!(matches!(refused, Err(StoreError::Image { .. })), "{refused:?}");
        }
        assert_eq!(fs::read_dir(store.root()).unwrap().count(), 0);
        assert!(store.create(&id(), &image(None), &Progress::default()).is_ok());
    }

    #[test]
    fn a_disk_whose_name_is_not_durable_can_be_made_again() {
        let (_root, store) = store();
        let source = Source::Zero { size: 512 };
        let refused = durable::with_failing_sync(store.root(), || {
            store.create(&id(), &source, &Progress::default())
        });
        assert!(matches!(refused, Err(StoreError::Io { .. })), "{refused:?}");
        assert_eq!(fs::read_dir(store.root()).unwrap().count(), 0, "nothing is left");
        let meta = store.create(&id(), &source, &Progress::default()).unwrap();
        assert_eq!(store.meta(&id()).unwrap(), meta);
    }

    #[test]
    fn a_cancelled_creation_never_was() {
        let (root, store) = store();
        let path = root.path().join("image");
        fs::write(&path, vec![1; 3 << 20]).unwrap();
        for source in [Source::Image { path, size: None }, Source::Zero { size: 512 }] {
            let progress = Progress::default();
            progress.cancel();
            let ended = store.create(&id(), &source, &progress);
            assert!(matches!(ended, Err(StoreError::Cancelled(_))), "{ended:?}");
            assert_eq!(fs::read_dir(store.root()).unwrap().count(), 0);
        }
    }

    #[test]
    fn a_creation_replaces_a_dead_one_and_respects_a_live_one() {
        let (_root, store) = store();
        fs::create_dir(store.unfinished(&id())).unwrap();
        fs::write(store.unfinished(&id()).join("x.raw"), b"x").unwrap();
        {
            let _work = MetaGuard::take(&store.unfinished(&id())).unwrap();
            let refused = store.create(&id(), &Source::Zero { size: 512 }, &Progress::default());
            assert!(matches!(refused, Err(StoreError::Exists(_))));
        }
        let meta = store.create(&id(), &Source::Zero { size: 512 }, &Progress::default()).unwrap();
        assert_eq!(content(&store, &meta), [0; 4096]);
    }
}
