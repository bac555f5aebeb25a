//! An image bundle: a folder with a manifest and the files that it names.
//!
//! ```text
//! FOLDER/manifest.json   what it is, how it boots, and of each file its length and SHA-256
//! FOLDER/vmlinuz …       the files
//! ```
//!
//! Invariants: a bundle appears whole or not at all (it is written beside its place and renamed); a manifest names files
//! of its own folder only, and [`Bundle::verify`] finds any that is not what the manifest says.

use crate::digest;
use crate::error::{Attempt, Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// The layout of this release's manifests.
const FORMAT: u32 = 1;
/// No manifest is larger, in bytes.
const MANIFEST_LIMIT: u64 = 1 << 20;
const MANIFEST: &str = "manifest.json";

/// What an image is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Manifest {
    /// The layout of this text.
    pub format: u32,
    /// A short name.
    pub name: String,
    /// For people: the system and its version.
    pub description: String,
    /// The processors it runs on, as Linux names them.
    pub architecture: String,
    /// How it boots.
    pub boot: Boot,
    /// The system disk, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Disk>,
    /// Each file of the bundle.
    pub files: BTreeMap<String, FileEntry>,
}

/// How an image boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "kebab-case", deny_unknown_fields)]
pub enum Boot {
    /// The hypervisor loads the kernel itself.
    Direct {
        /// The file of the bzImage.
        kernel: String,
        /// The file of the initial RAM file system.
        initrd: String,
        /// The kernel's command line.
        command_line: String,
    },
    /// The firmware finds a boot loader on the disk.
    Firmware,
}

/// A system disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Disk {
    /// The file of its content, raw.
    pub file: String,
}

/// A file of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct FileEntry {
    /// Its length in bytes.
    pub bytes: u64,
    /// Its SHA-256, in hexadecimal.
    pub sha256: String,
}

impl Manifest {
    /// A manifest without files, for this machine's kind of processor.
    pub fn new(name: &str, description: &str, boot: Boot) -> Self {
        Self {
            format: FORMAT,
            name: name.to_owned(),
            description: description.to_owned(),
            architecture: std::env::consts::ARCH.to_owned(),
            boot,
            disk: None,
            files: BTreeMap::new(),
        }
    }

    /// Reads a manifest.
    ///
    /// # Errors
    /// What is wrong with it, as a sentence.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Layout {
            format: u32,
        }
        // The layout is looked at first, so that a later one is called that and no mistake.
        let Layout { format } = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        if format != FORMAT {
            return Err(format!("it has format {format}, and this release reads {FORMAT}"));
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        if let Some(bad) = manifest.files.keys().find(|name| !is_plain(name)) {
            return Err(format!("`{bad}` is no name of a file in the bundle"));
        }
        let named = match &manifest.boot {
            Boot::Direct { kernel, initrd, .. } => vec![kernel, initrd],
            Boot::Firmware if manifest.disk.is_none() => {
                return Err("it boots from a disk and has none".to_owned());
            }
            Boot::Firmware => vec![],
        };
        let disk = manifest.disk.as_ref().map(|disk| &disk.file);
        match named.into_iter().chain(disk).find(|name| !manifest.files.contains_key(*name)) {
            Some(missing) => Err(format!("it does not describe its file `{missing}`")),
            None => Ok(manifest),
        }
    }
}

/// Whether a name is that of a file in the bundle's own folder.
fn is_plain(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    !name.is_empty()
        && name.len() <= 128
        && name.bytes().all(plain)
        && !name.starts_with('.')
        && name != MANIFEST
}

/// A bundle in a folder.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// Where it is.
    pub folder: PathBuf,
    /// What it is.
    pub manifest: Manifest,
}

impl Bundle {
    /// Writes a bundle of copies of these files; `manifest` says everything but the files.
    ///
    /// # Errors
    /// The folder is there already, or something cannot be read or written; nothing stays then.
    pub fn write(folder: &Path, mut manifest: Manifest, files: &[(&str, &Path)]) -> Result<Self> {
        build_beside(folder, |unfinished| {
            for (name, source) in files {
                let entry = copy_file(source, &unfinished.join(name))?;
                manifest.files.insert((*name).to_owned(), entry);
            }
            write_manifest(unfinished, &manifest)
        })?;
        Ok(Self { folder: folder.to_owned(), manifest })
    }

    /// Opens a bundle and checks its manifest, not yet the files.
    ///
    /// # Errors
    /// There is none, or its manifest is wrong.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(MANIFEST);
        let wrong = || format!("read {}: is {} an image bundle?", path.display(), folder.display());
        let mut bytes = Vec::new();
        let file = File::open(&path).attempt(wrong)?;
        file.take(MANIFEST_LIMIT).read_to_end(&mut bytes).attempt(wrong)?;
        let manifest = Manifest::decode(&bytes).map_err(|message| Error::Format {
            path,
            message: format!("not a manifest: {message}"),
        })?;
        Ok(Self { folder: folder.to_owned(), manifest })
    }

    /// Where a file of the bundle is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Reads every file and compares it with the manifest.
    ///
    /// # Errors
    /// A file is missing or not what the manifest says.
    pub fn verify(&self) -> Result<()> {
        for (name, entry) in &self.manifest.files {
            let path = self.path(name);
            let wrong = || format!("read {}", path.display());
            let file = File::open(&path).attempt(wrong)?;
            let (sha256, bytes) = digest::copy(file, |_| Ok(())).attempt(wrong)?;
            if (FileEntry { bytes, sha256 }) != *entry {
                let message = "it is not what the manifest says: get the image anew".to_owned();
                return Err(Error::Format { path, message });
            }
        }
        Ok(())
    }
}

/// Lets `build` fill a folder beside `folder` and renames it to there; on failure nothing stays.
pub(crate) fn build_beside(folder: &Path, build: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if folder.exists() {
        let shown = folder.display();
        return Err(Error::Refused(format!(
            "{shown} is there already: remove it, or choose another"
        )));
    }
    let mut unfinished = folder.as_os_str().to_owned();
    unfinished.push(format!(".{}.unfinished", std::process::id()));
    let unfinished = PathBuf::from(unfinished);
    // Of a killed process with the same number.
    let _ = fs::remove_dir_all(&unfinished);
    let wrong = || format!("make {}", folder.display());
    let made = fs::create_dir_all(&unfinished)
        .attempt(wrong)
        .and_then(|()| build(&unfinished))
        .and_then(|()| File::open(&unfinished).and_then(|folder| folder.sync_all()).attempt(wrong))
        .and_then(|()| fs::rename(&unfinished, folder).attempt(wrong));
    if made.is_err() {
        // Best effort: the reason is told.
        let _ = fs::remove_dir_all(&unfinished);
    }
    made
}

/// Writes the manifest of a bundle that is being built.
pub(crate) fn write_manifest(folder: &Path, manifest: &Manifest) -> Result<()> {
    let path = folder.join(MANIFEST);
    let wrong = || format!("write {}", path.display());
    let mut text =
        serde_json::to_vec_pretty(manifest).map_err(std::io::Error::from).attempt(wrong)?;
    text.push(b'\n');
    let mut file = File::create(&path).attempt(wrong)?;
    file.write_all(&text).and_then(|()| file.sync_all()).attempt(wrong)
}

fn copy_file(from: &Path, to: &Path) -> Result<FileEntry> {
    let source = File::open(from).attempt(|| format!("read {}", from.display()))?;
    let wrong = || format!("copy {} to {}", from.display(), to.display());
    let mut file = File::create(to).attempt(wrong)?;
    let (sha256, bytes) = digest::copy(source, |piece| file.write_all(piece)).attempt(wrong)?;
    file.sync_all().attempt(wrong)?;
    Ok(FileEntry { bytes, sha256 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn direct() -> Boot {
        let (kernel, initrd) = ("vmlinuz".into(), "initrd".into());
        Boot::Direct { kernel, initrd, command_line: "console=ttyS0".into() }
    }

    #[test]
    fn a_bundle_is_found_as_it_was_written_and_damage_is_found_too() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        fs::write(&source, b"abc").unwrap();
        let place = folder.path().join("bundle");
        let files = [("vmlinuz", source.as_path()), ("initrd", source.as_path())];
        let written = Bundle::write(&place, Manifest::new("x", "y", direct()), &files).unwrap();
        let read = Bundle::open(&place).unwrap();
        assert_eq!(read.manifest, written.manifest);
        // The digest of "abc" (FIPS 180-2, appendix B.1).
        let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(read.manifest.files["initrd"].sha256, digest);
        read.verify().unwrap();
        let again = Bundle::write(&place, Manifest::new("x", "y", direct()), &files);
        assert!(matches!(again, Err(Error::Refused(_))));
        fs::write(place.join("initrd"), b"abd").unwrap();
        assert!(read.verify().unwrap_err().to_string().contains("initrd"));

        let missing = [("vmlinuz", Path::new("/nowhere"))];
        let other = folder.path().join("other");
        assert!(Bundle::write(&other, Manifest::new("x", "y", direct()), &missing).is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "something stays behind");
    }

    #[test]
    fn a_manifest_that_lies_is_refused() {
        let mut good = Manifest::new("x", "y", direct());
        for name in ["vmlinuz", "initrd"] {
            let entry = FileEntry { bytes: 1, sha256: String::new() };
            good.files.insert(name.into(), entry);
        }
        let decode = |manifest: &Manifest| Manifest::decode(&serde_json::to_vec(manifest).unwrap());
        assert_eq!(decode(&good).unwrap(), good);
        let entry = good.files["initrd"].clone();
        for name in ["../x", "a/b", "", ".x", "manifest.json"] {
            let mut bad = good.clone();
            bad.files.insert(name.into(), entry.clone());
            assert!(decode(&bad).is_err(), "{name}");
        }
        let mut bad = good.clone();
        bad.files.remove("initrd");
        assert!(decode(&bad).unwrap_err().contains("initrd"));
        assert!(decode(&Manifest { boot: Boot::Firmware, ..good.clone() }).is_err());
        let later = decode(&Manifest { format: 2, ..good }).unwrap_err();
        assert!(later.contains("format 2"), "{later}");
        assert!(Manifest::decode(b"{}").is_err());
    }
}
