//! What a bundle holds, as its maker has signed it.

use crate::archive::MAX_NAME;
use crate::error::{ReleaseError, Result, damaged};
use crate::key::{PrivateKey, PublicKey, Trusted, decode};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The form of bundle that this release reads and makes.
pub const FORMAT: u32 = 1;
/// No manifest is larger, in bytes.
pub const MAX_MANIFEST: u64 = 1 << 20;
/// No signature's file is larger, in bytes.
pub const MAX_SIGNATURE: u64 = 512;
/// No release has more files.
const MAX_FILES: usize = 1024;
/// No release is larger, in bytes.
const MAX_TOTAL: u64 = 4 << 30;
/// Folders that a release may have.
const FOLDERS: [&str; 2] = ["bin", "units"];
const SIGNATURE: &str = "bixi-signature";

/// What a bundle holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// The version: it begins with a digit.
    pub version: String,
    /// The processor's architecture, as Rust and `uname -m` call it.
    pub architecture: String,
    /// The commit it was built from, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// The files, in the order of their paths, which is the order in the bundle.
    pub files: Vec<Entry>,
}

/// A file of a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Entry {
    /// Where it is in the release: `FOLDER/NAME`.
    pub path: String,
    /// Who may do what.
    pub mode: Mode,
    /// Its size in bytes.
    pub size: u64,
    /// SHA-256 of its content, in lower-case hexadecimal.
    pub sha256: String,
}

/// The modes that files of a release have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// A program.
    #[serde(rename = "0755")]
    Program,
    /// Anything else.
    #[serde(rename = "0644")]
    Data,
}

impl Mode {
    /// The bits.
    #[must_use]
    pub fn bits(self) -> u32 {
        match self {
            Self::Program => 0o755,
            Self::Data => 0o644,
        }
    }
}

/// Whether a release may have this version, which becomes a directory's name.
#[must_use]
pub fn is_version(version: &str) -> bool {
    let good = |c: u8| c.is_ascii_alphanumeric() || b".+~_-".contains(&c);
    (1..=64).contains(&version.len())
        && version.starts_with(|c: char| c.is_ascii_digit())
        && version.bytes().all(good)
}

fn is_plain(path: &str) -> bool {
    let good = |c: u8| c.is_ascii_alphanumeric() || b"._-@".contains(&c);
    let name = |name: &str| !name.is_empty() && !name.starts_with('.') && name.bytes().all(good);
    let split = path.split_once('/');
    path.len() <= MAX_NAME
        && split.is_some_and(|(folder, file)| FOLDERS.contains(&folder) && name(file))
}

fn is_word(text: &str, most: usize) -> bool {
    let good = |c: u8| c.is_ascii_alphanumeric() || c == b'_';
    (1..=most).contains(&text.len()) && text.bytes().all(good)
}

impl Manifest {
    /// Reads a manifest whose signature was checked.
    ///
    /// # Errors
    /// It is of another form, or names what no release has.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Form {
            format: u32,
        }
        let bad = |e: serde_json::Error| ReleaseError::Damaged(format!("its manifest: {e}"));
        let Form { format } = serde_json::from_slice(bytes).map_err(bad)?;
        if format != FORMAT {
            return damaged(format!(
                "it is of form {format}, this bixi reads form {FORMAT}: take the bixi of that release to install it"
            ));
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(bad)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Whether this can be a release.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result {
        let Self { version, architecture, commit, files, .. } = self;
        if !is_version(version) {
            return damaged(format!(
                "{version:?} is no version: it begins with a digit, like 1.2.3"
            ));
        }
        if !is_word(architecture, 32) || commit.as_ref().is_some_and(|id| !is_word(id, 64)) {
            return damaged("its architecture or commit is no word");
        }
        if files.is_empty() || files.len() > MAX_FILES {
            return damaged(format!("it has {} files", files.len()));
        }
        let mut total = 0_u64;
        for file in files {
            let digits = file.sha256.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
            if !is_plain(&file.path) || file.sha256.len() != 64 || !digits {
                return damaged(format!("{:?} cannot be a file of a release", file.path));
            }
            total = total.saturating_add(file.size);
        }
        if total > MAX_TOTAL {
            return damaged(format!("its files have {total} bytes"));
        }
        if files.windows(2).any(|pair| pair[0].path >= pair[1].path) {
            return damaged("its files are not in order");
        }
        Ok(())
    }

    /// Names of the programs.
    pub fn programs(&self) -> impl Iterator<Item = &str> {
        self.files.iter().filter_map(|file| file.path.strip_prefix("bin/"))
    }

    /// The folders of its files.
    pub(crate) fn folders(&self) -> BTreeSet<&str> {
        self.files.iter().filter_map(|file| Some(file.path.split_once('/')?.0)).collect()
    }
}

/// A manifest that a trusted key has signed.
#[derive(Debug, Clone)]
pub struct Signed {
    /// What it says.
    pub manifest: Manifest,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The signature's file.
    pub signature: Vec<u8>,
    /// Who has signed it.
    pub key: PublicKey,
}

impl Signed {
    /// Signs a manifest.
    ///
    /// # Errors
    /// It cannot be a release.
    pub fn make(manifest: Manifest, key: &PrivateKey) -> Result<Self> {
        manifest.check()?;
        let text = serde_json::to_vec_pretty(&manifest);
        let bytes = text.map_err(|e| ReleaseError::Damaged(format!("the manifest: {e}")))?;
        if bytes.len() as u64 > MAX_MANIFEST {
            return damaged("the manifest is too large");
        }
        let public = key.public();
        let made = BASE64_STANDARD.encode(key.sign(&bytes));
        let signature = format!("{SIGNATURE} {} {made}\n", public.base64()).into_bytes();
        Ok(Self { manifest, bytes, signature, key: public.clone() })
    }

    /// Believes `bytes` if a trusted key has signed them.
    ///
    /// # Errors
    /// None has, or they are no manifest.
    pub fn check(bytes: Vec<u8>, signature: Vec<u8>, trusted: &Trusted) -> Result<Self> {
        let read = || {
            let line = std::str::from_utf8(&signature).ok()?.strip_suffix('\n')?;
            let mut words = line.strip_prefix(SIGNATURE)?.strip_prefix(' ')?.split(' ');
            let both = (decode::<32>(words.next()?)?, decode::<64>(words.next()?)?);
            words.next().is_none().then_some(both)
        };
        let Some((claimed, made)) = read() else { return damaged("its signature is damaged") };
        let Some(key) = trusted.find(&claimed) else {
            return Err(ReleaseError::Untrusted { key: BASE64_STANDARD.encode(claimed) });
        };
        if !key.has_signed(&bytes, &made) {
            return damaged(format!("its manifest is not what the key {} has signed", key.name()));
        }
        let manifest = Manifest::parse(&bytes)?;
        let key = key.clone();
        Ok(Self { manifest, bytes, signature, key })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn entry(path: &str) -> Entry {
        let sha256 = "0".repeat(64);
        Entry { path: path.to_owned(), mode: Mode::Data, size: 0, sha256 }
    }

    fn manifest(paths: &[&str]) -> Manifest {
        let files = paths.iter().map(|path| entry(path)).collect();
        let (version, architecture) = ("1.2.3".to_owned(), "x86_64".to_owned());
        Manifest { format: FORMAT, version, architecture, commit: None, files }
    }

    #[test]
    fn only_plain_relative_paths_are_files_of_a_release() {
        manifest(&["bin/bixi", "units/a@.service"]).check().unwrap();
        for bad in [
            "/bin/bixi",
            "bin/../x",
            "bin/.x",
            "bin",
            "bin/",
            "bin//x",
            "bin/a/b",
            "etc/passwd",
            "../bin/x",
            "bin/x y",
            "bin/\u{e9}",
            "",
            "manifest.json",
        ] {
            assert!(manifest(&[bad]).check().is_err(), "{bad}");
        }
        assert!(manifest(&[&format!("bin/{}", "x".repeat(100))]).check().is_err());
        assert!(manifest(&["bin/b", "bin/a"]).check().is_err(), "out of order");
        assert!(manifest(&["bin/a", "bin/a"]).check().is_err(), "twice");
        assert!(manifest(&[]).check().is_err(), "nothing");
    }

    #[test]
    fn versions_are_names_of_directories() {
        for good in ["0.1.0", "1.2.3-rc.1+deb12", "2~beta"] {
            assert!(is_version(good), "{good}");
        }
        for bad in ["", "current", ".1", "1/2", "1 2", "v1", &"1".repeat(65)] {
            assert!(!is_version(bad), "{bad}");
        }
    }

    #[test]
    fn sizes_are_bounded_and_another_form_says_what_to_do() {
        let mut large = manifest(&["bin/a", "bin/b"]);
        large.files[0].size = u64::MAX;
        large.files[1].size = 2;
        assert!(large.check().is_err());
        let newer = br#"{"format":2,"sets":[]}"#;
        let said = Manifest::parse(newer).unwrap_err().to_string();
        assert!(said.contains("form 2") && said.contains("take the bixi"), "{said}");
        let unknown = serde_json::to_string(&manifest(&["bin/a"])).unwrap();
        assert!(Manifest::parse(unknown.as_bytes()).is_ok());
        let unknown = unknown.replacen('{', r#"{"more":1,"#, 1);
        assert!(Manifest::parse(unknown.as_bytes()).is_err());
    }
}
