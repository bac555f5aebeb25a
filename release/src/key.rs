//! Keys that sign releases: Ed25519. The private one is PKCS#8 in PEM, the public one a line of text.
//!
//! `bixi-release-key NAME BASE64`, and in `/etc/bixi/release-keys/*.pub` whom a machine trusts. The name is for people; what
//! counts is the key.

use crate::error::{ReleaseError, Result, system};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::str::FromStr;

const PREFIX: &str = "bixi-release-key";
const PEM_TAG: &str = "PRIVATE KEY";
/// No file with a key is larger, in bytes.
const MAX_FILE: u64 = 4096;
/// Length of a public key, in bytes.
const LENGTH: usize = 32;

/// Who made a release: what it is called, and its public key.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    name: String,
    bytes: [u8; LENGTH],
}

impl PublicKey {
    /// What people call it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The key in base64.
    #[must_use]
    pub fn base64(&self) -> String {
        BASE64_STANDARD.encode(self.bytes)
    }

    /// Reads a file with one line.
    ///
    /// # Errors
    /// It cannot be read, or is no such line.
    pub fn read(path: &Path) -> Result<Self> {
        let said = read_small(path)?.parse();
        said.map_err(|e| ReleaseError::Key(format!("{}: {e}", path.display())))
    }

    /// Whether this key has made `signature` over `bytes`.
    pub(crate) fn has_signed(&self, bytes: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, self.bytes).verify(bytes, signature).is_ok()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX} {} {}", self.name, self.base64())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for PublicKey {
    type Err = ReleaseError;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |what| ReleaseError::Key(format!("this is no release key ({what})"));
        let words: Vec<&str> = text.split_whitespace().collect();
        let [PREFIX, name, key] = words[..] else {
            return Err(bad("it is one line: bixi-release-key NAME BASE64"));
        };
        if !is_name(name) {
            return Err(bad("its name is 1 to 64 letters, digits, `.`, `_` or `-`"));
        }
        let bytes = decode(key).ok_or_else(|| bad("its key is 32 bytes in base64"))?;
        Ok(Self { name: name.to_owned(), bytes })
    }
}

/// Whether a key may have this name, which becomes a file's.
fn is_name(name: &str) -> bool {
    let good = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
    (1..=64).contains(&name.len()) && name.bytes().all(good) && !name.starts_with('.')
}

/// Bytes of a length that base64 gives.
pub(crate) fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    BASE64_STANDARD.decode(text).ok()?.try_into().ok()
}

/// A key that makes releases.
pub struct PrivateKey {
    pair: Ed25519KeyPair,
    pkcs8: Vec<u8>,
    public: PublicKey,
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrivateKey").field("public", &self.public).finish_non_exhaustive()
    }
}

impl PrivateKey {
    /// A new key.
    ///
    /// # Errors
    /// The name cannot be one, or the system has no randomness.
    pub fn generate(name: &str) -> Result<Self> {
        let made = Ed25519KeyPair::generate().and_then(|pair| pair.to_pkcs8());
        let document = made.map_err(|_| ReleaseError::Key("no key can be made".to_owned()))?;
        Self::of(document.as_ref(), name)
    }

    /// Reads PKCS#8 in PEM; the key is called as the file is, without its extension.
    ///
    /// # Errors
    /// It cannot be read, or is something else.
    pub fn read(path: &Path) -> Result<Self> {
        let bad = |what: &str| ReleaseError::Key(format!("{}: {what}", path.display()));
        let pem = pem::parse(read_small(path)?).map_err(|e| bad(&e.to_string()))?;
        if pem.tag() != PEM_TAG {
            return Err(bad("this is no PRIVATE KEY in PEM"));
        }
        let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
        Self::of(pem.contents(), name).map_err(|e| bad(&e.to_string()))
    }

    fn of(pkcs8: &[u8], name: &str) -> Result<Self> {
        if !is_name(name) {
            return Err(ReleaseError::Key(format!("{name:?} cannot be a key's name")));
        }
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8)
            .map_err(|e| ReleaseError::Key(format!("this is no Ed25519 key in PKCS#8: {e}")))?;
        let bytes = pair.public_key().as_ref().try_into();
        let bytes = bytes.map_err(|_| ReleaseError::Key("its public key is damaged".to_owned()))?;
        let public = PublicKey { name: name.to_owned(), bytes };
        Ok(Self { pair, pkcs8: pkcs8.to_vec(), public })
    }

    /// Its public part.
    #[must_use]
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Writes it to a new file that its owner alone can read.
    ///
    /// # Errors
    /// The file is there, or cannot be made.
    pub fn write(&self, path: &Path) -> Result {
        let text = pem::encode(&pem::Pem::new(PEM_TAG, self.pkcs8.clone()));
        let file = File::options().write(true).create_new(true).mode(0o600).open(path);
        let written = file.and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        });
        written.map_err(system("write", path))
    }

    pub(crate) fn sign(&self, bytes: &[u8]) -> Vec<u8> {
        self.pair.sign(bytes).as_ref().to_vec()
    }
}

/// Whom this machine trusts.
#[derive(Debug, Clone, Default)]
pub struct Trusted(Vec<PublicKey>);

impl Trusted {
    /// Reads every `*.pub` of a directory; that there is none is no error.
    ///
    /// # Errors
    /// A file cannot be read, or is no key.
    pub fn read(directory: &Path) -> Result<Self> {
        let files = match fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            files => files.map_err(system("read", directory))?,
        };
        let mut keys = Self::default();
        for file in files {
            let path = file.map_err(system("read", directory))?.path();
            if path.extension().is_some_and(|extension| extension == "pub") {
                keys.0.push(PublicKey::read(&path)?);
            }
        }
        Ok(keys)
    }

    /// Trusts more, for as long as this is held.
    pub fn extend(&mut self, keys: impl IntoIterator<Item = PublicKey>) {
        self.0.extend(keys);
    }

    /// The trusted key with these bytes.
    pub(crate) fn find(&self, bytes: &[u8; LENGTH]) -> Option<&PublicKey> {
        self.0.iter().find(|key| key.bytes == *bytes)
    }
}

fn read_small(path: &Path) -> Result<String> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_FILE).read_to_string(&mut text));
    read.map_err(system("read", path))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_their_files() {
        let folder = tempfile::tempdir().unwrap();
        let key = PrivateKey::generate("builds-2026").unwrap();
        let path = folder.path().join("builds-2026.pem");
        key.write(&path).unwrap();
        assert!(key.write(&path).is_err(), "a key must not be overwritten");
        let again = PrivateKey::read(&path).unwrap();
        assert_eq!(again.public(), key.public());
        assert!(key.public().has_signed(b"text", &again.sign(b"text")));
        assert!(!key.public().has_signed(b"test", &again.sign(b"text")));
        let line = folder.path().join("builds.pub");
        fs::write(&line, format!("{}\n", key.public())).unwrap();
        assert_eq!(&PublicKey::read(&line).unwrap(), key.public());
        let trusted = Trusted::read(folder.path()).unwrap();
        assert_eq!(trusted.find(&key.public().bytes), Some(key.public()));
        assert!(Trusted::read(&folder.path().join("none")).unwrap().0.is_empty());
    }

    #[test]
    fn what_is_no_key_is_told() {
        let key = PrivateKey::generate("k").unwrap().public().to_string();
        for bad in ["", "bixi-release-key", &key[..key.len() - 4], &key.replace(" k ", " ../k ")] {
            assert!(bad.parse::<PublicKey>().is_err(), "{bad}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("k.pem");
        fs::write(&path, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").unwrap();
        let said = PrivateKey::read(&path).unwrap_err().to_string();
        assert!(said.contains("k.pem") && said.contains("no Ed25519 key"), "{said}");
    }
}
