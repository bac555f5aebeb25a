//! What a disk knows about itself: the file `meta` in its directory.
//!
//! The file is a frame (see [`super::envelope`]) with magic `BIXIDISK` around a protocol-buffer message:
//!
//! ```text
//! message Meta  { string id = 1; uint64 size = 2; uint64 epoch = 3; repeated Layer layers = 4; }
//! message Layer { string id = 1; uint32 kind = 2; uint64 size = 3; }
//! ```
//!
//! `layers` is the chain from the lowest to the writable top. This release knows one kind, `1`: a sparse raw file
//! named `<layer id>.raw` whose bytes sit at identity offsets, and one layer per disk; a longer chain is refused, so
//! that a newer release's disk is never half understood. A layer's size may exceed the disk's by less than one block
//! (files are sized to whole blocks). Invariant: what [`Meta::read`] returns is consistent in itself and belongs to
//! the disk it was asked for.

use super::durable;
use super::envelope::{self, EnvelopeError};
use super::id::DiskId;
use std::io;
use std::path::Path;

/// The file's name in the disk's directory.
pub const FILE: &str = "meta";

const MAGIC: &[u8; 8] = b"BIXIDISK";
const VERSION: u32 = 1;

/// Layer files are sized to whole blocks of this many bytes, so that direct I/O reaches every sector.
pub const BLOCK: u64 = 4096;

/// The largest disk, in bytes: what every file system we serve from can hold as one sparse file.
pub const SIZE_LIMIT: u64 = 1 << 50;

/// A sparse raw file.
const KIND_RAW: u32 = 1;

/// What a disk knows about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// Its id.
    pub id: DiskId,
    /// Its size in bytes, a multiple of 512.
    pub size: u64,
    /// The highest epoch it has seen.
    pub epoch: u64,
    /// Its one layer.
    pub layer: Layer,
}

/// One file of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Unique among all layers ever, so that a file of another disk is not taken for this one: letters and digits.
    pub id: String,
    /// The file's size in bytes.
    pub size: u64,
}

impl Layer {
    /// The name of its file in the disk's directory.
    pub fn file_name(&self) -> String {
        format!("{}.raw", self.id)
    }
}

/// Why a disk's `meta` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MetaError {
    /// It cannot be read.
    #[error("its meta cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It is damaged or not ours.
    #[error("its meta cannot be used: {0}")]
    Envelope(#[from] EnvelopeError),
    /// It belongs to another disk.
    #[error("its meta belongs to {0}")]
    Foreign(String),
    /// A value makes no sense.
    #[error("its meta cannot be used: {0}")]
    Nonsense(&'static str),
    /// It has what only a newer release understands.
    #[error("its meta has {0}, which this release does not know: use a newer release")]
    Newer(&'static str),
}

#[derive(Clone, PartialEq, prost::Message)]
struct MetaState {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(uint64, tag = "2")]
    size: u64,
    #[prost(uint64, tag = "3")]
    epoch: u64,
    #[prost(message, repeated, tag = "4")]
    layers: Vec<LayerState>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct LayerState {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(uint32, tag = "2")]
    kind: u32,
    #[prost(uint64, tag = "3")]
    size: u64,
}

impl Meta {
    /// Reads the `meta` of the disk `id` from its directory.
    ///
    /// # Errors
    /// See [`MetaError`].
    pub fn read(directory: &Path, id: &DiskId) -> Result<Self, MetaError> {
        let limit = envelope::BODY_LIMIT + 64;
        Self::decode(&durable::read_small(&directory.join(FILE), limit)?, id)
    }

    /// Writes the `meta` into the disk's directory, durably.
    ///
    /// # Errors
    /// Whatever the file system says; the old `meta` then still stands.
    pub fn write(&self, directory: &Path) -> io::Result<()> {
        durable::replace(&directory.join(FILE), &self.encode())
    }

    fn encode(&self) -> Vec<u8> {
        let layer = LayerState { id: self.layer.id.clone(), kind: KIND_RAW, size: self.layer.size };
        let state = MetaState {
            id: self.id.to_string(),
            size: self.size,
            epoch: self.epoch,
            layers: vec![layer],
        };
        envelope::seal(MAGIC, VERSION, &state)
    }

    /// Reads the bytes of a `meta` file that should be that of `id`.
    ///
    /// # Errors
    /// See [`MetaError`].
    pub fn decode(bytes: &[u8], id: &DiskId) -> Result<Self, MetaError> {
        let state: MetaState = envelope::open(MAGIC, VERSION, bytes)?;
        if state.id != id.as_str() {
            return Err(MetaError::Foreign(state.id.chars().take(64).collect()));
        }
        if state.size == 0 || !state.size.is_multiple_of(512) || state.size > SIZE_LIMIT {
            return Err(MetaError::Nonsense("its size is no multiple of 512 in the legal range"));
        }
        let layer = match <[LayerState; 1]>::try_from(state.layers) {
            Ok([layer]) => layer,
            Err(layers) if layers.is_empty() => return Err(MetaError::Nonsense("it has no layer")),
            Err(_) => return Err(MetaError::Newer("several layers")),
        };
        if layer.kind != KIND_RAW {
            return Err(MetaError::Newer("another kind of layer"));
        }
        if !(1..=64).contains(&layer.id.len())
            || !layer.id.bytes().all(|b| b.is_ascii_alphanumeric())
        {
            return Err(MetaError::Nonsense("a layer's id is not letters and digits"));
        }
        if layer.size != layer_size(state.size) {
            return Err(MetaError::Nonsense("the layer's size does not fit the disk's"));
        }
        Ok(Self {
            id: id.clone(),
            size: state.size,
            epoch: state.epoch,
            layer: Layer { id: layer.id, size: layer.size },
        })
    }
}

/// The size of the layer file of a disk of `size` bytes.
pub fn layer_size(size: u64) -> u64 {
    size.next_multiple_of(BLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> DiskId {
        "d-0123456789abcdefghij".parse().unwrap()
    }

    fn meta() -> Meta {
        let layer = Layer { id: "abc".into(), size: 8192 };
        Meta { id: id(), size: 4608, epoch: 7, layer }
    }

    #[test]
    fn what_is_written_is_read() {
        let directory = tempfile::tempdir().unwrap();
        meta().write(directory.path()).unwrap();
        assert_eq!(Meta::read(directory.path(), &id()).unwrap(), meta());
    }

    #[test]
    fn every_corrupt_byte_is_refused() {
        let good = meta().encode();
        for at in 0..good.len() {
            for change in [0x01, 0x80, 0xff] {
                let mut bad = good.clone();
                bad[at] ^= change;
                assert!(Meta::decode(&bad, &id()).is_err(), "byte {at}");
            }
            assert!(Meta::decode(&good[..at], &id()).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_foreign_or_newer_meta_says_so() {
        let other = "d-00000000000000000000".parse().unwrap();
        assert!(matches!(Meta::decode(&meta().encode(), &other), Err(MetaError::Foreign(_))));
        let layer = LayerState { id: "abc".into(), kind: 1, size: 8192 };
        let state = MetaState {
            id: id().to_string(),
            size: 4608,
            epoch: 1,
            layers: vec![layer.clone(), layer.clone()],
        };
        let read = |state: &MetaState| Meta::decode(&envelope::seal(MAGIC, 1, state), &id());
        assert!(matches!(read(&state), Err(MetaError::Newer("several layers"))));
        for bad in [
            MetaState { layers: vec![], ..state.clone() },
            MetaState { size: 0, layers: vec![layer.clone()], ..state.clone() },
            MetaState { size: 100, layers: vec![layer.clone()], ..state.clone() },
            MetaState { size: u64::MAX - 511, layers: vec![layer.clone()], ..state.clone() },
            MetaState {
                layers: vec![LayerState { id: "../x".into(), ..layer.clone() }],
                ..state.clone()
            },
            MetaState { layers: vec![LayerState { size: 4096, ..layer.clone() }], ..state.clone() },
            MetaState { layers: vec![LayerState { kind: 2, ..layer }], ..state },
        ] {
            assert!(read(&bad).is_err(), "{bad:?}");
        }
    }
}
