//! What is said to and by `bixi-storage`.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /v1/storage` | | [`StorageDescription`] |
//! | `GET /v1/disks` | | `[`[`DiskDescription`]`]` |
//! | `POST /v1/disks` | [`DiskCreate`] | [`DiskDescription`] |
//! | `GET /v1/disks/{id}` | | [`DiskDescription`] |
//! | `DELETE /v1/disks/{id}` | | `null`; ends the creation of a disk that is being made |
//! | `PUT /v1/disks/{id}/attachment` | [`DiskAttach`] | [`DiskDescription`] |
//! | `DELETE /v1/disks/{id}/attachment` | | [`DiskDescription`] |

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The process as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct StorageDescription {
    /// The release of the process that answers.
    pub release: String,
    /// Its process id.
    pub pid: u32,
    /// Disks it knows.
    pub disks: usize,
    /// Disks it serves now.
    pub attached: usize,
}

/// A new raw disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct DiskCreate {
    /// The disk's id: a prefix, `-` and 20 letters or digits, for example `d-0123456789abcdefghij`.
    pub id: String,
    /// Its size in bytes, a multiple of 512; that of `image` unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// A raw image whose bytes the disk begins with; zeroes unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<PathBuf>,
}

/// Serve a disk on a vhost-user socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct DiskAttach {
    /// The placement's epoch. A lower one than the disk has seen is refused; the same attachment again is no change.
    pub epoch: u64,
    /// Where the process listens.
    pub socket: PathBuf,
    /// Request queues offered, 1 to 64.
    #[serde(default = "default_queues")]
    pub queues: u16,
    /// Whether writes are refused.
    #[serde(default)]
    pub read_only: bool,
    /// Whether the front end's memory must be sealed against shrinking; on for VMs, off for foreign front ends.
    #[serde(default = "yes")]
    pub require_sealed: bool,
    /// What it may do at most; nothing is limited unless told. The same attachment with other limits changes them while
    /// it goes on.
    #[serde(default, skip_serializing_if = "DiskLimits::is_none")]
    pub limits: DiskLimits,
}

/// What a disk may do at most. A request over a limit waits; a tenth of what is given for a second may come at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct DiskLimits {
    /// Reads, writes, discards and write-zeroes a second. A flush is free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iops: Option<u64>,
    /// Bytes read and written a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
}

impl DiskLimits {
    /// Nothing is limited.
    pub const NONE: Self = Self { iops: None, bytes_per_second: None };

    /// Whether nothing is limited.
    pub fn is_none(&self) -> bool {
        *self == Self::NONE
    }
}

fn default_queues() -> u16 {
    4
}

fn yes() -> bool {
    true
}

/// A disk as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DiskDescription {
    /// The disk's id.
    pub id: String,
    /// Its size in bytes.
    pub size: u64,
    /// The highest epoch it has seen.
    pub epoch: u64,
    /// How it is served, if it is.
    pub attachment: Option<AttachmentDescription>,
    /// How far its creation is, while it is being made; size and epoch are 0 until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creation: Option<DiskCreation>,
    /// Why it cannot be used, if it cannot: size and epoch are 0 where its files are unusable. An attached disk has one
    /// when a flush failed; its writes fail until it is attached anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
}

/// How far the creation of a disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DiskCreation {
    /// Bytes of the image gone through.
    pub done: u64,
    /// Bytes of the image.
    pub total: u64,
}

/// How a disk is served now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct AttachmentDescription {
    /// What was asked for.
    pub attach: DiskAttach,
    /// Whether this process holds the writer lock; until then rings stand still.
    pub locked: bool,
    /// What the writer lock is waited for, while it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<String>,
    /// Whether a front end is connected.
    pub connected: bool,
    /// Why the last session was ended by this side, if it was.
    pub last_fault: Option<String>,
    /// Counters since the process started.
    pub statistics: DiskStatistics,
}

/// Counters of a disk since the process started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DiskStatistics {
    /// Read requests completed.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Write requests completed.
    pub writes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Flushes completed.
    pub flushes: u64,
    /// Discards and write-zeroes completed.
    pub discards: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Requests taken over from a dead process's in-flight record.
    pub replayed: u64,
    /// Requests that waited because of the disk's limits.
    #[serde(default)]
    pub limited: u64,
}
