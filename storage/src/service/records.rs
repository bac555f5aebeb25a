//! What was promised, on a medium that outlives the process: one file per attachment in the state directory.
//!
//! A file `<disk id>.attachment` is a frame (see `disk::envelope`) with magic `BIXIATCH` around the payload of an
//! attachment (see [`AttachmentState`]): numbered fields, a version, untrusted when read. The directory is meant to be
//! on tmpfs: an attachment outlives the process and not the machine. Beside what was asked for, it holds what the
//! device offers, so that a process which starts anew can answer front ends before it has looked at any disk, and in
//! the same words.

use crate::disk::DiskId;
use crate::disk::durable;
use crate::disk::envelope;
use crate::engine::config::Shape;
use bixi_api::state::Payload;
use bixi_api::storage::{DiskAttach, DiskLimits};
use bixi_offload::rate::{BadRate, Limiter};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The end of a record's file name.
const SUFFIX: &str = ".attachment";
const MAGIC: &[u8; 8] = b"BIXIATCH";
const FRAME_VERSION: u32 = 1;

/// The kind of an attachment's payload.
pub const KIND: &str = "disk-attachment";
/// The newest version of it that this release knows.
pub const VERSION: u32 = 1;

/// An attachment as it travels.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AttachmentState {
    /// The disk's id.
    #[prost(string, tag = "1")]
    pub id: String,
    /// The placement's epoch.
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    /// Where the process listens.
    #[prost(bytes = "vec", tag = "3")]
    pub socket: Vec<u8>,
    /// Request queues offered.
    #[prost(uint32, tag = "4")]
    pub queues: u32,
    /// Whether writes are refused.
    #[prost(bool, tag = "5")]
    pub read_only: bool,
    /// Whether the front end's memory must be sealed.
    #[prost(bool, tag = "6")]
    pub require_sealed: bool,
    /// The disk's size in bytes.
    #[prost(uint64, tag = "7")]
    pub size: u64,
    /// Whether discard is offered.
    #[prost(bool, tag = "8")]
    pub discard: bool,
    /// Whether write-zeroes is offered.
    #[prost(bool, tag = "9")]
    pub write_zeroes: bool,
    /// Whether write-zeroes may deallocate.
    #[prost(bool, tag = "10")]
    pub zeroes_may_unmap: bool,
    /// Requests a second, if they are limited.
    #[prost(uint64, optional, tag = "11")]
    pub iops: Option<u64>,
    /// Bytes a second, if they are limited.
    #[prost(uint64, optional, tag = "12")]
    pub bytes_per_second: Option<u64>,
}

/// An attachment as it was promised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The disk.
    pub id: DiskId,
    /// What was asked for.
    pub attach: DiskAttach,
    /// What is offered.
    pub shape: Shape,
}

impl Record {
    /// The record as it travels.
    pub fn payload(&self) -> Payload {
        use std::os::unix::ffi::OsStrExt;
        let state = AttachmentState {
            id: self.id.to_string(),
            epoch: self.attach.epoch,
            socket: self.attach.socket.as_os_str().as_bytes().to_vec(),
            queues: self.attach.queues.into(),
            read_only: self.attach.read_only,
            require_sealed: self.attach.require_sealed,
            size: self.shape.size,
            discard: self.shape.discard,
            write_zeroes: self.shape.write_zeroes,
            zeroes_may_unmap: self.shape.zeroes_may_unmap,
            iops: self.attach.limits.iops,
            bytes_per_second: self.attach.limits.bytes_per_second,
        };
        Payload::new(KIND, VERSION, &state)
    }

    /// Reads a payload; everything in it is checked as if the operator had asked for it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_payload(payload: &Payload) -> Result<Self, String> {
        use std::os::unix::ffi::OsStringExt;
        let state: AttachmentState = payload.read(KIND, VERSION).map_err(|e| e.to_string())?;
        let id: DiskId = state.id.parse().map_err(|e| format!("{e}"))?;
        let queues = u16::try_from(state.queues).map_err(|_| "too many queues".to_owned())?;
        let socket = PathBuf::from(std::ffi::OsString::from_vec(state.socket));
        let attach = DiskAttach {
            epoch: state.epoch,
            socket,
            queues,
            read_only: state.read_only,
            require_sealed: state.require_sealed,
            limits: DiskLimits { iops: state.iops, bytes_per_second: state.bytes_per_second },
        };
        check(&attach).map_err(|(_, message)| message)?;
        let shape = Shape {
            size: state.size,
            queues,
            read_only: state.read_only,
            discard: state.discard,
            write_zeroes: state.write_zeroes,
            zeroes_may_unmap: state.zeroes_may_unmap,
        };
        if shape.size == 0 || !shape.size.is_multiple_of(512) {
            return Err(format!("a disk of {} bytes", shape.size));
        }
        Ok(Self { id, attach, shape })
    }
}

/// The longest path that a UNIX socket can have, in bytes; with room for the name it is made under.
const SOCKET_PATH: usize = 96;

/// Whether what was asked for can be: a code and what is wrong.
///
/// # Errors
/// See above.
pub fn check(attach: &DiskAttach) -> Result<(), (&'static str, String)> {
    if !(1..=64).contains(&attach.queues) {
        return Err(("BadQueues", format!("{} queues: 1 to 64 are possible.", attach.queues)));
    }
    let socket = &attach.socket;
    if !socket.is_absolute() || socket.file_name().is_none() {
        let shown = socket.display();
        return Err(("BadSocket", format!("the socket `{shown}` is not an absolute path.")));
    }
    if socket.as_os_str().len() > SOCKET_PATH {
        let shown = socket.display();
        return Err((
            "BadSocket",
            format!("the socket {shown} has a path of more than {SOCKET_PATH} bytes."),
        ));
    }
    limiter(&attach.limits)
        .map(drop)
        .map_err(|bad| ("BadLimit", format!("{bad}; a rate that is left out is not limited.")))
}

/// What holds a disk to these limits, if there are any.
///
/// # Errors
/// A rate that cannot be.
pub fn limiter(limits: &DiskLimits) -> Result<Option<Limiter>, BadRate> {
    Limiter::new(limits.iops, limits.bytes_per_second)
}

/// The state directory.
#[derive(Debug, Clone)]
pub struct Records {
    directory: PathBuf,
}

impl Records {
    /// The records in `directory`, which is made if it is not there.
    ///
    /// # Errors
    /// The directory cannot be made or read.
    pub fn open(directory: &Path) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        durable::sweep(directory)?;
        Ok(Self { directory: directory.to_owned() })
    }

    fn path(&self, id: &DiskId) -> PathBuf {
        self.directory.join(format!("{id}{SUFFIX}"))
    }

    /// Writes an attachment down.
    ///
    /// # Errors
    /// What the file system says; what was there before still is.
    pub fn put(&self, record: &Record) -> io::Result<()> {
        let sealed = envelope::seal(MAGIC, FRAME_VERSION, &record.payload());
        durable::replace(&self.path(&record.id), &sealed)
    }

    /// Forgets an attachment.
    ///
    /// # Errors
    /// What the file system says, but not that there is none.
    pub fn remove(&self, id: &DiskId) -> io::Result<()> {
        match fs::remove_file(self.path(id)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// All attachments. One that cannot be read is left where it is and reported in the log.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn all(&self) -> io::Result<Vec<Record>> {
        let mut records = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let Some(id) = name.strip_suffix(SUFFIX) else { continue };
            match read(&path) {
                Ok(record) if record.id.as_str() == id => records.push(record),
                Ok(_) => {
                    tracing::error!(path = %path.display(), "an attachment record of another disk; not restored")
                }
                Err(error) => {
                    tracing::error!(path = %path.display(), error, "an attachment record cannot be used; not restored")
                }
            }
        }
        records.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(records)
    }
}

fn read(path: &Path) -> Result<Record, String> {
    let bytes = durable::read_small(path, envelope::BODY_LIMIT + 64).map_err(|e| e.to_string())?;
    decode(&bytes)
}

/// Reads the bytes of a record's file.
///
/// # Errors
/// What is wrong with them.
pub fn decode(bytes: &[u8]) -> Result<Record, String> {
    let payload = envelope::open(MAGIC, FRAME_VERSION, bytes).map_err(|e| e.to_string())?;
    Record::from_payload(&payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(n: u8) -> Record {
        let attach = DiskAttach {
            epoch: 9,
            socket: "/run/bixi/disk".into(),
            queues: 4,
            read_only: false,
            require_sealed: true,
            limits: DiskLimits { iops: Some(u64::from(n)).filter(|n| *n > 0), ..DiskLimits::NONE },
        };
        let shape = Shape {
            size: 4096,
            queues: 4,
            read_only: false,
            discard: true,
            write_zeroes: true,
            zeroes_may_unmap: false,
        };
        Record { id: format!("d-{n:020}").parse().unwrap(), attach, shape }
    }

    #[test]
    fn records_survive_and_damaged_ones_are_left_out() {
        let directory = tempfile::tempdir().unwrap();
        let records = Records::open(directory.path()).unwrap();
        for n in 0..3 {
            records.put(&record(n)).unwrap();
        }
        records.remove(&record(1).id).unwrap();
        records.remove(&record(1).id).unwrap();
        let again = Records::open(directory.path()).unwrap();
        assert_eq!(again.all().unwrap(), [record(0), record(2)]);

        let path = records.path(&record(0).id);
        let mut bytes = fs::read(&path).unwrap();
        fs::write(records.path(&record(3).id), &bytes).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert_eq!(again.all().unwrap(), [record(2)]);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let attach = record(0).attach;
        let limits = |iops, bytes_per_second| DiskLimits { iops, bytes_per_second };
        assert!(check(&attach).is_ok());
        for bad in [
            DiskAttach { queues: 0, ..attach.clone() },
            DiskAttach { queues: 65, ..attach.clone() },
            DiskAttach { socket: "disk".into(), ..attach.clone() },
            DiskAttach { socket: "/".into(), ..attach.clone() },
            DiskAttach { socket: format!("/{}", "x".repeat(99)).into(), ..attach.clone() },
            DiskAttach { limits: limits(Some(0), None), ..attach.clone() },
            DiskAttach { limits: limits(None, Some(u64::MAX)), ..attach.clone() },
        ] {
            assert!(check(&bad).is_err(), "{bad:?}");
            let payload = Record { attach: bad, ..record(0) }.payload();
            assert!(Record::from_payload(&payload).is_err());
        }
        let shape = Shape { size: 100, ..record(0).shape };
        assert!(Record::from_payload(&Record { shape, ..record(0) }.payload()).is_err());
    }
}
