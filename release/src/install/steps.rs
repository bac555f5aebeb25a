//! One installation, step after step; see the drawing above.

use super::files::{create, make_directory, random, sync, write};
use super::{CURRENT, Outcome, Releases, UNFINISHED};
use crate::bundle::{MANIFEST, Reader, SIGNATURE};
use crate::error::{ReleaseError, Result, system};
use crate::key::Trusted;
use crate::manifest::{Manifest, Signed};
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// A step of an installation, after which a test may let the process die.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Begun,
    File,
    Written,
    Named,
    Switched,
    Linked,
}

pub(super) type Hook<'a> = &'a mut dyn FnMut(Step) -> Result;

impl Releases {
    /// Installs a bundle and takes its version into use. A version that is there already is checked instead.
    ///
    /// # Errors
    /// The bundle is refused, the version is there with other content, or the machine stands against it. What was in use
    /// before still is, unless the error says otherwise.
    pub fn install(&self, bundle: impl Read, trusted: &Trusted) -> Result<Outcome> {
        self.install_by_steps(bundle, trusted, &mut |_| Ok(()))
    }

    pub(super) fn install_by_steps(
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
        match self.check_files(&reader.signed().manifest) {
            Err(ReleaseError::Damaged(what)) => Err(ReleaseError::Damaged(format!(
                "version {version} is installed, but {what}: install another version, \
                 `bixi release remove {version}`, then install it again"
            ))),
            checked => checked.and_then(|()| reader.finish()),
        }
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
}
