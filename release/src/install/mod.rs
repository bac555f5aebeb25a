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

mod check;
mod files;
mod steps;

use crate::bundle::{MANIFEST, SIGNATURE};
use crate::error::{ReleaseError, Result, damaged, system};
use crate::key::{PublicKey, Trusted};
use crate::manifest::{MAX_MANIFEST, MAX_SIGNATURE, Manifest, Signed, is_version};
use files::{make_directory, names, random, remove, sync, write};
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

const CURRENT: &str = "current";
const LOCK: &str = ".lock";
/// What is not finished begins with this.
const UNFINISHED: &str = ".new.";

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
}

#[cfg(test)]
mod tests;
