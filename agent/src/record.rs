//! What the agent has written down about an instance: one small file each, read when the agent starts again.
//!
//! Invariants: a record is on the disk before anything is done that it allows (a start above all); numbers of fields are
//! never used again; a record that cannot be read makes its instance untouchable, never forgotten.

use crate::durable;
use bixi_api::agent::{DesiredInstance, Ending, LedgerEntry, PhaseTime};
use bixi_api::state::{Payload, PayloadError};
use prost::Message;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

const KIND: &str = "agent-instance";
const VERSION: u32 = 1;

/// Everything that outlives the agent about one instance.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Record {
    /// The highest epoch accepted.
    pub epoch: u64,
    /// The start that was made last: epoch and boot generation.
    pub started: (u64, u64),
    /// What was accepted last; what is attached and what is to be removed follows from it.
    pub definition: Option<DesiredInstance>,
    /// The VMM that was started last and whose end has not been written down.
    pub run: Option<Run>,
    /// How it ended last.
    pub ended: Option<Ending>,
    /// Whether all of it was removed.
    pub deleted: bool,
    /// The user that its VMM runs as: the agent's first plus this.
    pub slot: u32,
    /// The last entry of the ledger.
    pub ledger_sequence: u64,
    /// Entries that no report has carried yet.
    pub ledger: Vec<LedgerEntry>,
    /// The phases of the last start.
    pub phases: Vec<PhaseTime>,
}

/// A VMM process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Its number.
    pub pid: i32,
    /// Its start time.
    pub start: u64,
    /// The server's boot in which these mean something.
    pub boot_id: String,
}

/// As it lies on the disk.
#[derive(Clone, PartialEq, Message)]
struct Stored {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(uint64, tag = "2")]
    epoch: u64,
    #[prost(uint64, tag = "3")]
    started_epoch: u64,
    #[prost(uint64, tag = "4")]
    started_boot: u64,
    /// JSON, as the cloud sent it.
    #[prost(bytes = "vec", tag = "5")]
    definition: Vec<u8>,
    #[prost(message, optional, tag = "6")]
    run: Option<StoredRun>,
    /// JSON.
    #[prost(bytes = "vec", tag = "7")]
    ended: Vec<u8>,
    #[prost(bool, tag = "8")]
    deleted: bool,
    #[prost(uint32, tag = "9")]
    slot: u32,
    #[prost(uint64, tag = "10")]
    ledger_sequence: u64,
    /// JSON.
    #[prost(bytes = "vec", tag = "11")]
    ledger: Vec<u8>,
    /// JSON.
    #[prost(bytes = "vec", tag = "12")]
    phases: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct StoredRun {
    #[prost(int32, tag = "1")]
    pid: i32,
    #[prost(uint64, tag = "2")]
    start: u64,
    #[prost(string, tag = "3")]
    boot_id: String,
}

/// Why a record cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file system refuses.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was to be done.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The bytes are no record of this release.
    #[error("{} is damaged, or was written by a newer release", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl RecordError {
    /// Whether the file system is full.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Io { source, .. }
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

/// All records, in one directory.
#[derive(Debug, Clone)]
pub struct Records {
    directory: PathBuf,
}

impl Records {
    /// The records in `directory`, which is made if it is not there.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(directory: &Path) -> Result<Self, RecordError> {
        std::fs::create_dir_all(directory).map_err(|source| RecordError::Io {
            what: "make",
            path: directory.to_owned(),
            source,
        })?;
        Ok(Self { directory: directory.to_owned() })
    }

    fn path(&self, id: &str) -> PathBuf {
        self.directory.join(id)
    }

    /// Reads every record; of a damaged one the reason.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn all(&self) -> Result<BTreeMap<String, Result<Record, RecordError>>, RecordError> {
        let io = |source| RecordError::Io { what: "read", path: self.directory.clone(), source };
        let mut all = BTreeMap::new();
        for entry in std::fs::read_dir(&self.directory).map_err(io)? {
            let name = entry.map_err(io)?.file_name().to_string_lossy().into_owned();
            // What has a dot is unfinished: an id has none.
            if !name.contains('.') {
                let record = self.read(&name);
                all.insert(name, record);
            }
        }
        Ok(all)
    }

    fn read(&self, id: &str) -> Result<Record, RecordError> {
        let path = self.path(id);
        let bytes = std::fs::read(&path).map_err(|source| RecordError::Io {
            what: "read",
            path: path.clone(),
            source,
        })?;
        decode(&bytes, id).map_err(|source| RecordError::Damaged { path, source })
    }

    /// Writes a record down, durably.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn write(&self, id: &str, record: &Record) -> Result<(), RecordError> {
        let path = self.path(id);
        let encoded = encode(record, id).map_err(io::Error::other);
        encoded.and_then(|bytes| durable::write(&path, &bytes)).map_err(|source| RecordError::Io {
            what: "write",
            path,
            source,
        })
    }

    /// Forgets an instance.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn remove(&self, id: &str) -> Result<(), RecordError> {
        let path = self.path(id);
        durable::remove(&path).map_err(|source| RecordError::Io { what: "remove", path, source })
    }
}

fn json(value: &impl serde::Serialize) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(value)
}

fn encode(record: &Record, id: &str) -> Result<Vec<u8>, serde_json::Error> {
    let stored = Stored {
        id: id.to_owned(),
        epoch: record.epoch,
        started_epoch: record.started.0,
        started_boot: record.started.1,
        definition: json(&record.definition)?,
        run: record.run.clone().map(|Run { pid, start, boot_id }| StoredRun {
            pid,
            start,
            boot_id,
        }),
        ended: json(&record.ended)?,
        deleted: record.deleted,
        slot: record.slot,
        ledger_sequence: record.ledger_sequence,
        ledger: json(&record.ledger)?,
        phases: json(&record.phases)?,
    };
    Ok(Payload::new(KIND, VERSION, &stored).encode_to_vec())
}

fn decode(bytes: &[u8], id: &str) -> Result<Record, Box<dyn std::error::Error + Send + Sync>> {
    let payload = Payload::decode(bytes)?;
    let stored: Stored = payload.read(KIND, VERSION).map_err(|e: PayloadError| e)?;
    if stored.id != id {
        return Err(format!("it is the record of {}", stored.id).into());
    }
    Ok(Record {
        epoch: stored.epoch,
        started: (stored.started_epoch, stored.started_boot),
        definition: serde_json::from_slice(&stored.definition)?,
        run: stored.run.map(|StoredRun { pid, start, boot_id }| Run { pid, start, boot_id }),
        ended: serde_json::from_slice(&stored.ended)?,
        deleted: stored.deleted,
        slot: stored.slot,
        ledger_sequence: stored.ledger_sequence,
        ledger: serde_json::from_slice(&stored.ledger)?,
        phases: serde_json::from_slice(&stored.phases)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_and_a_damaged_one_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::open(folder.path()).unwrap();
        let record = Record {
            epoch: 7,
            started: (7, 2),
            run: Some(Run { pid: 9, start: 11, boot_id: "b".into() }),
            ended: Some(Ending::PoweredOff),
            slot: 3,
            ledger: vec![LedgerEntry {
                sequence: 1,
                at: 5,
                cause: "storage-restart".into(),
                milliseconds: 4,
            }],
            ..Record::default()
        };
        records.write("i-1", &record).unwrap();
        assert_eq!(records.all().unwrap()["i-1"].as_ref().unwrap(), &record);
        std::fs::copy(folder.path().join("i-1"), folder.path().join("i-2")).unwrap();
        std::fs::write(folder.path().join("i-3"), b"nonsense").unwrap();
        std::fs::write(folder.path().join("i-4.new"), b"half").unwrap();
        let all = records.all().unwrap();
        assert_eq!(all.len(), 3);
        assert!(matches!(all["i-2"], Err(RecordError::Damaged { .. })), "another's");
        assert!(matches!(all["i-3"], Err(RecordError::Damaged { .. })));
        records.remove("i-1").unwrap();
        assert!(!records.all().unwrap().contains_key("i-1"));
    }
}
