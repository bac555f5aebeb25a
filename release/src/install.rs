//! Releases on a machine: `/usr/lib/bixi/VERSION/`, and which of them is in use.
//!
//! ```text
//!   /usr/lib/bixi/.new.RANDOM/   being written ──rename──► /usr/lib/bixi/VERSION/{bin,units,manifest.json,manifest.sig}
//!   /usr/lib/bixi/current        ──► VERSION, replaced by rename
//!   /usr/bin/bixi…               ──► ../lib/bixi/current/bin/bixi…
//! ```
//!
//! Invariants: what has a version's name is whole, on disk, and never changed; `current` names one that is; a death
//! between any two steps leaves the old or the new in use, and what the dead one left is removed by the next.

use crate::bundle::{MANIFEST, Reader, SIGNATURE, copy};
use crate::error::{ReleaseError, Result, damaged, system};
use crate::key::{PublicKey, Trusted};
use crate::manifest::{MAX_MANIFEST, MAX_SIGNATURE, Manifest, Signed, is_version};
use rustix::fs::{FlockOperation, flock};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

const CURRENT: &str = "current";
const LOCK: &str = ".lock";
/// What is not finished begins with this.
const UNFINISHED: &str = ".new.";

/// A step of an installation, after which a test may let the process die.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Begun,
    File,
    Written,
    Named,
    Switched,
    Linked,
}

type Hook<'a> = &'a mut dyn FnMut(Step) -> Result;

/// The releases of a machine.
#[derive(Debug, Clone)]
pub struct Releases {
    root: PathBuf,
}

/// A release that is installed.
#[derive(Debug, Clone)]
pub struct Installed {
    /// The version.
    pub version: String,
    /// Whether it is the one in use.
    pub current: bool,
    /// What its manifest says, if that can be read; it is not checked here.
    pub manifest: Option<Manifest>,
}

/// What has become of an installation.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// What was signed.
    pub signed: Signed,
    /// Whether this version was there already.
    pub was_there: bool,
}

impl Releases {
    /// The releases of the machine whose root directory is `root`.
    #[must_use]
    pub fn of(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    fn directory(&self) -> PathBuf {
        self.root.join("usr/lib/bixi")
    }

    fn programs(&self) -> PathBuf {
        self.root.join("usr/bin")
    }

    fn place(&self, version: &str) -> PathBuf {
        self.directory().join(version)
    }

    /// Whom the machine trusts.
    ///
    /// # Errors
    /// A key's file cannot be read.
    pub fn trusted(&self) -> Result<Trusted> {
        Trusted::read(&self.keys())
    }

    fn keys(&self) -> PathBuf {
        self.root.join("etc/bixi/release-keys")
    }

    /// Trusts `key` from now on.
    ///
    /// # Errors
    /// Another key has its name, or the file cannot be made.
    pub fn trust(&self, key: &PublicKey) -> Result {
        let path = self.keys().join(format!("{}.pub", key.name()));
        if path.exists() {
            return match PublicKey::read(&path)? == *key {
                true => Ok(()),
                false => Err(ReleaseError::Conflict(format!(
                    "{} is another key: rename it, or remove it if it is to be trusted no more",
                    path.display()
                ))),
            };
        }
        make_directory(&self.keys())?;
        let beside = self.keys().join(format!("{UNFINISHED}{}", random()?));
        write(&beside, 0o644, format!("{key}\n").as_bytes())?;
        fs::rename(&beside, &path).map_err(system("name", &path))?;
        sync(&self.keys())
    }

    /// Installs a bundle and takes its version into use. A version that is there already is checked instead.
    ///
    /// # Errors
    /// The bundle is refused, the version is there with other content, or the machine stands against it. What was in use
    /// before still is, unless the error says otherwise.
    pub fn install(&self, bundle: impl Read, trusted: &Trusted) -> Result<Outcome> {
        self.install_by_steps(bundle, trusted, &mut |_| Ok(()))
    }

    fn install_by_steps(
        &self,
        bundle: impl Read,
        trusted: &Trusted,
        hook: Hook<'_>,
    ) -> Result<Outcome> {
        let reader = Reader::open(bundle, trusted)?;
        let manifest = reader.signed().manifest.clone();
        if manifest.architecture != std::env::consts::ARCH {
            return Err(ReleaseError::Conflict(format!(
                "it is for {}, this machine is {}: take the bundle for that",
                manifest.architecture,
                std::env::consts::ARCH
            )));
        }
        self.check_links(&manifest)?;
        make_directory(&self.directory())?;
        let _lock = self.lock()?;
        self.clean()?;
        let place = self.place(&manifest.version);
        let was_there = fs::symlink_metadata(&place).is_ok();
        let signed = match was_there {
            true => self.same(reader)?,
            false => self.write(reader, &place, hook)?,
        };
        self.switch(&manifest.version)?;
        hook(Step::Switched)?;
        self.link(&manifest)?;
        hook(Step::Linked)?;
        Ok(Outcome { signed, was_there })
    }

    /// Nobody else installs while the file is open.
    fn lock(&self) -> Result<File> {
        let path = self.directory().join(LOCK);
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(system("open", &path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(ReleaseError::Conflict(
                "another bixi installs or removes a release: wait for its end".to_owned(),
            )),
            Err(error) => Err(system("lock", &path)(error.into())),
        }
    }

    /// Removes what an installation that died has left.
    fn clean(&self) -> Result {
        for name in names(&self.directory())? {
            if name.starts_with(UNFINISHED) {
                remove(&self.directory().join(name))?;
            }
        }
        Ok(())
    }

    /// Sees that the version that is there is the very same.
    fn same<R: Read>(&self, reader: Reader<R>) -> Result<Signed> {
        let version = reader.signed().manifest.version.clone();
        let there = self.read_signed(&version)?;
        if there.0 != reader.signed().bytes {
            return Err(ReleaseError::Conflict(format!(
                "version {version} is installed with other content, and a version never changes: give the new one \
                 another version, or `bixi release remove {version}` first if it is not in use"
            )));
        }
        self.check_files(&reader.signed().manifest)?;
        reader.finish()
    }

    fn write<R: Read>(
        &self,
        mut reader: Reader<R>,
        place: &Path,
        hook: Hook<'_>,
    ) -> Result<Signed> {
        let unfinished = self.directory().join(format!("{UNFINISHED}{}", random()?));
        let mut all = || {
            make_directory(&unfinished)?;
            hook(Step::Begun)?;
            for folder in reader.signed().manifest.folders() {
                make_directory(&unfinished.join(folder))?;
            }
            while let Some(entry) = reader.entry().cloned() {
                let path = unfinished.join(&entry.path);
                let mut file = create(&path, entry.mode.bits())?;
                reader.copy_to(&mut file, &path)?;
                file.sync_all().map_err(system("write", &path))?;
                hook(Step::File)?;
            }
            Ok(())
        };
        let written = all();
        let written = written.and_then(|()| {
            let signed = reader.finish()?;
            write(&unfinished.join(MANIFEST), 0o644, &signed.bytes)?;
            write(&unfinished.join(SIGNATURE), 0o644, &signed.signature)?;
            for folder in signed.manifest.folders() {
                sync(&unfinished.join(folder))?;
            }
            sync(&unfinished)?;
            hook(Step::Written)?;
            fs::rename(&unfinished, place).map_err(system("name", place))?;
            sync(&self.directory())?;
            Ok(signed)
        });
        if written.is_err() {
            // What is told is why it could not be written; the next installation removes what stays.
            let _ = fs::remove_dir_all(&unfinished);
        }
        let signed = written?;
        hook(Step::Named)?;
        Ok(signed)
    }

    /// Takes `version` into use.
    fn switch(&self, version: &str) -> Result {
        if self.current()?.as_deref() == Some(version) {
            return Ok(());
        }
        let (link, beside) =
            (self.place(CURRENT), self.directory().join(format!("{UNFINISHED}{}", random()?)));
        symlink(version, &beside).map_err(system("make", &beside))?;
        fs::rename(&beside, &link).map_err(system("replace", &link))?;
        sync(&self.directory())
    }

    fn links<'a>(&self, manifest: &'a Manifest) -> impl Iterator<Item = (PathBuf, PathBuf)> + 'a {
        let programs = self.programs();
        manifest.programs().map(move |name| {
            (programs.join(name), Path::new("../lib/bixi").join(CURRENT).join("bin").join(name))
        })
    }

    /// Nothing of others is where the links go.
    fn check_links(&self, manifest: &Manifest) -> Result {
        for (link, target) in self.links(manifest) {
            let there = match fs::symlink_metadata(&link) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                there => there.map_err(system("look at", &link))?,
            };
            if !there.is_symlink() || fs::read_link(&link).ok().as_ref() != Some(&target) {
                return Err(ReleaseError::Conflict(format!(
                    "{} is there and is not of a release: move it away, for a link to {} goes there",
                    link.display(),
                    target.display()
                )));
            }
        }
        Ok(())
    }

    fn link(&self, manifest: &Manifest) -> Result {
        make_directory(&self.programs())?;
        for (link, target) in self.links(manifest) {
            match symlink(&target, &link) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => made.map_err(system("make", &link))?,
            }
        }
        sync(&self.programs())
    }

    /// The version in use, if one is.
    ///
    /// # Errors
    /// It cannot be learned.
    pub fn current(&self) -> Result<Option<String>> {
        let link = self.place(CURRENT);
        match fs::read_link(&link) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            read => {
                let target = read.map_err(system("read the link", &link))?;
                Ok(target.to_str().filter(|version| is_version(version)).map(str::to_owned))
            }
        }
    }

    /// What is installed, by version.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn list(&self) -> Result<Vec<Installed>> {
        let current = self.current()?;
        let versions = names(&self.directory())?.into_iter().filter(|name| is_version(name));
        let describe = |version: String| {
            let read = self.read_signed(&version).ok();
            let manifest = read.and_then(|(bytes, _)| Manifest::parse(&bytes).ok());
            Installed { current: current.as_ref() == Some(&version), version, manifest }
        };
        Ok(versions.map(describe).collect())
    }

    /// Sees that an installed version is as a trusted key has signed it.
    ///
    /// # Errors
    /// It is not.
    pub fn verify(&self, version: &str, trusted: &Trusted) -> Result<Signed> {
        self.known(version)?;
        let (bytes, signature) = self.read_signed(version)?;
        let signed = Signed::check(bytes, signature, trusted)?;
        if signed.manifest.version != version {
            return damaged(format!("it is version {} in truth", signed.manifest.version));
        }
        self.check_files(&signed.manifest)?;
        Ok(signed)
    }

    /// Removes a version that is not in use.
    ///
    /// # Errors
    /// It is, or is not there.
    pub fn remove(&self, version: &str) -> Result {
        self.known(version)?;
        let _lock = self.lock()?;
        self.clean()?;
        if self.current()?.as_deref() == Some(version) {
            return Err(ReleaseError::Conflict(format!(
                "version {version} is in use: install another one first"
            )));
        }
        // Under its own name it is whole or not there.
        let unfinished = self.directory().join(format!("{UNFINISHED}{}", random()?));
        let place = self.place(version);
        fs::rename(&place, &unfinished).map_err(system("remove", &place))?;
        sync(&self.directory())?;
        remove(&unfinished)
    }

    fn known(&self, version: &str) -> Result {
        match is_version(version) && self.place(version).is_dir() {
            true => Ok(()),
            false => Err(ReleaseError::NotInstalled(version.to_owned())),
        }
    }

    fn read_signed(&self, version: &str) -> Result<(Vec<u8>, Vec<u8>)> {
        let read = |name, most| {
            let path = self.place(version).join(name);
            let mut bytes = Vec::new();
            let file = File::open(&path).map_err(system("open", &path))?;
            file.take(most).read_to_end(&mut bytes).map_err(system("read", &path))?;
            Ok(bytes)
        };
        Ok((read(MANIFEST, MAX_MANIFEST)?, read(SIGNATURE, MAX_SIGNATURE)?))
    }

    /// Every file is as the manifest says, and there is no other.
    fn check_files(&self, manifest: &Manifest) -> Result {
        let place = self.place(&manifest.version);
        let mut expected: BTreeSet<PathBuf> =
            manifest.files.iter().map(|file| place.join(&file.path)).collect();
        expected.extend([MANIFEST, SIGNATURE].map(|name| place.join(name)));
        for file in &manifest.files {
            let path = place.join(&file.path);
            let meta = fs::symlink_metadata(&path).map_err(system("look at", &path))?;
            if !meta.is_file() || meta.permissions().mode() & 0o7777 != file.mode.bits() {
                return damaged(format!(
                    "{} is no file of mode {:o}",
                    path.display(),
                    file.mode.bits()
                ));
            }
            let opened = File::open(&path).map_err(system("open", &path))?;
            let read =
                copy(opened.take(file.size + 1), io::sink()).map_err(system("read", &path))?;
            if read != (file.sha256.clone(), file.size) {
                return damaged(format!("{} is not what was signed", path.display()));
            }
        }
        let folders = manifest.folders();
        for folder in folders.iter().map(|name| place.join(name)).chain([place.clone()]) {
            for name in names(&folder)? {
                let known = folder == place && folders.contains(name.as_str());
                if !known && !expected.contains(&folder.join(&name)) {
                    let path = folder.join(name);
                    return damaged(format!("{} is not of the release", path.display()));
                }
            }
        }
        Ok(())
    }
}

/// Names in a directory, sorted; none if there is no directory.
fn names(directory: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(system("read", directory))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(system("read", directory))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn random() -> Result<String> {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes)
        .map_err(|_| ReleaseError::Key("the system gives no random bytes".to_owned()))?;
    Ok(bytes.map(|byte| format!("{byte:02x}")).concat())
}

/// Makes a directory that all may read, and its parents, whatever this process's mask is.
fn make_directory(path: &Path) -> Result {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        make_directory(parent)?;
    }
    let made = fs::DirBuilder::new().mode(0o755).create(path);
    let made = made.and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)));
    made.map_err(system("make", path))
}

fn create(path: &Path, mode: u32) -> Result<File> {
    let file = File::options().write(true).create_new(true).mode(0o600).open(path);
    let file = file.and_then(|file| {
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        Ok(file)
    });
    file.map_err(system("make", path))
}

fn write(path: &Path, mode: u32, bytes: &[u8]) -> Result {
    let mut file = create(path, mode)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(system("write", path))
}

fn sync(directory: &Path) -> Result {
    File::open(directory).and_then(|file| file.sync_all()).map_err(system("flush", directory))
}

/// Removes what an unfinished installation or removal has left: a directory, or a link.
fn remove(path: &Path) -> Result {
    let removed = match fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir()) {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    };
    removed.map_err(system("remove", path))
}

#[cfg(test)]
#[path = "install_tests.rs"]
mod tests;
