//! What is installed, held against its manifest.

use super::Releases;
use super::files::names;
use crate::bundle::{MANIFEST, SIGNATURE, copy};
use crate::error::{Result, damaged, system};
use crate::manifest::Manifest;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

impl Releases {
    /// Every file is as the manifest says, and there is no other.
    pub(super) fn check_files(&self, manifest: &Manifest) -> Result {
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
