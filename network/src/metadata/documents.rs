//! The documents of a port: a tree of paths.
//!
//! Invariants: a path is a document or a folder, not both; what is below `latest` is below each of [`ALIASES`] too; the
//! whole is bounded. Made by [`crate::service`] of what the controller told, read by [`super::http`].

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bixi_api::network::Document;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

/// The version below which the controller gives its documents.
const LATEST: &str = "latest";
/// Names under which guests ask for the same: the version of Alibaba's interface.
const ALIASES: [&str; 1] = ["2016-01-01"];
/// The most documents of a port.
pub const COUNT_LIMIT: usize = 512;
/// The most bytes of one document: user data has 16 KiB at Alibaba, 64 KiB at its most generous peers.
pub const DOCUMENT_LIMIT: usize = 64 << 10;
/// The most bytes of all documents of a port.
pub const TOTAL_LIMIT: usize = 512 << 10;
/// The longest path, in bytes.
const PATH_LENGTH: usize = 256;

/// The documents of a port.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Documents(BTreeMap<String, Arc<[u8]>>);

impl fmt::Debug for Documents {
    /// What is in them is the tenant's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// What is at a path.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// A document.
    Document(Arc<[u8]>),
    /// A folder: its entries, one in a line, folders with a `/` behind.
    Folder(String),
    /// Nothing.
    Nothing,
}

impl Documents {
    /// The documents that a request tells.
    ///
    /// # Errors
    /// What is wrong with them, as a sentence.
    pub fn decode(told: &BTreeMap<String, Document>) -> Result<Self, String> {
        let content = |(path, document): (&String, &Document)| {
            let bytes = match document {
                Document::Text(text) => text.clone().into_bytes(),
                Document::Base64(text) => STANDARD
                    .decode(text)
                    .map_err(|e| format!("the document {path} is no base64: {e}."))?,
            };
            Ok((path.clone(), bytes))
        };
        Self::new(told.iter().map(content).collect::<Result<Vec<_>, String>>()?)
    }

    /// These documents.
    ///
    /// # Errors
    /// What is wrong with them, as a sentence.
    pub fn new(all: Vec<(String, Vec<u8>)>) -> Result<Self, String> {
        if all.len() > COUNT_LIMIT {
            return Err(format!("{} documents: {COUNT_LIMIT} are possible.", all.len()));
        }
        let total: usize = all.iter().map(|(_, bytes)| bytes.len()).sum();
        if total > TOTAL_LIMIT {
            return Err(format!("the documents have {total} bytes: {TOTAL_LIMIT} are possible."));
        }
        let mut documents = BTreeMap::new();
        for (path, bytes) in all {
            check_path(&path)?;
            if bytes.len() > DOCUMENT_LIMIT {
                let length = bytes.len();
                return Err(format!(
                    "the document {path} has {length} bytes: {DOCUMENT_LIMIT} are possible."
                ));
            }
            documents.insert(path, bytes.into());
        }
        let documents = Self(documents);
        let twice = documents.0.keys().find(|path| documents.below(path).next().is_some());
        match twice {
            Some(path) => Err(format!("{path} cannot be a document and a folder.")),
            None => Ok(documents),
        }
    }

    /// Each document with its path.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Arc<[u8]>)> {
        self.0.iter().map(|(path, bytes)| (path.as_str(), bytes))
    }

    /// Paths below a folder, without it.
    fn below<'a>(&'a self, folder: &str) -> impl Iterator<Item = &'a str> + use<'a> {
        let folder = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let range = self.0.range(folder.clone()..);
        range.map_while(move |(path, _)| path.strip_prefix(folder.as_str()))
    }

    /// What is at `path`, which a guest asked for.
    pub fn find(&self, path: &str) -> Found {
        let mut parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        if let Some(first) = parts.first_mut()
            && ALIASES.contains(first)
        {
            *first = LATEST;
        }
        let path = parts.join("/");
        let path = path.as_str();
        if let Some(bytes) = self.0.get(path) {
            return Found::Document(Arc::clone(bytes));
        }
        let mut entries: BTreeSet<String> = self
            .below(path)
            .map(|below| match below.split_once('/') {
                Some((folder, _)) => format!("{folder}/"),
                None => below.to_owned(),
            })
            .collect();
        if path.is_empty() && entries.contains("latest/") {
            entries.extend(ALIASES.map(|alias| format!("{alias}/")));
        }
        if entries.is_empty() {
            return Found::Nothing;
        }
        Found::Folder(entries.into_iter().collect::<Vec<_>>().join("\n"))
    }
}

fn check_path(path: &str) -> Result<(), String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:@=+,".contains(&byte);
    let part = |part: &str| !part.is_empty() && part.bytes().all(plain) && !part.starts_with("..");
    let first = path.split('/').next().unwrap_or_default();
    if path.len() <= PATH_LENGTH && path.split('/').all(part) && !ALIASES.contains(&first) {
        return Ok(());
    }
    let shown: String = path.chars().take(PATH_LENGTH).collect();
    Err(format!(
        "`{shown}` is no document's path: write `latest/meta-data/instance-id`, up to {PATH_LENGTH} letters, \
         digits and -._~:@=+, between single slashes."
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn documents(all: &[(&str, &str)]) -> Result<Documents, String> {
        let own = |(path, text): &(&str, &str)| ((*path).to_owned(), text.as_bytes().to_vec());
        Documents::new(all.iter().map(own).collect())
    }

    #[test]
    fn documents_and_folders_are_found_under_every_version() {
        let tree = documents(&[
            ("latest/meta-data/instance-id", "i-1"),
            ("latest/meta-data/public-keys/0/openssh-key", "ssh"),
            ("latest/user-data", "#!/bin/sh"),
            ("nocloud/meta-data", "instance-id: i-1"),
        ])
        .unwrap();
        let id = Found::Document(b"i-1"[..].into());
        for version in ["latest", "/latest", "2016-01-01", "/2016-01-01/"] {
            assert_eq!(tree.find(&format!("{version}/meta-data/instance-id")), id, "{version}");
            let folder = Found::Folder("meta-data/\nuser-data".into());
            assert_eq!(tree.find(version), folder, "{version}");
        }
        let meta = Found::Folder("instance-id\npublic-keys/".into());
        assert_eq!(tree.find("/latest/meta-data/"), meta);
        assert_eq!(tree.find("/"), Found::Folder("2016-01-01/\nlatest/\nnocloud/".into()));
        for nothing in ["/x", "/latest/user-data/x", "/2016-01-01/x", "/latest/meta", "/late"] {
            assert_eq!(tree.find(nothing), Found::Nothing, "{nothing}");
        }
        assert_eq!(Documents::default().find("/latest"), Found::Nothing);
    }

    #[test]
    fn what_cannot_be_a_tree_is_refused() {
        assert!(documents(&[("a", ""), ("a/b", "")]).unwrap_err().contains("folder"));
        assert!(documents(&[("a", ""), ("a-b", ""), ("ab", "")]).is_ok());
        for path in ["", "/a", "a/", "a//b", "a b", "a/../b", "ä", "2016-01-01/x", "a?b"] {
            assert!(documents(&[(path, "")]).unwrap_err().contains("path"), "{path}");
        }
        assert!(Documents::new(vec![("a".into(), vec![0; DOCUMENT_LIMIT + 1])]).is_err());
        let many = |count, size| (0..count).map(move |n| (format!("d/{n}"), vec![0; size]));
        assert!(Documents::new(many(COUNT_LIMIT + 1, 0).collect()).is_err());
        assert!(Documents::new(many(9, DOCUMENT_LIMIT).collect()).is_err());
        let told = [("a".to_owned(), Document::Base64("!".into()))].into();
        assert!(Documents::decode(&told).is_err());
        let told = [("a".to_owned(), Document::Base64("AAE=".into()))].into();
        let decoded = Documents::decode(&told).unwrap();
        assert_eq!(decoded.find("a"), Found::Document([0, 1][..].into()));
    }
}
