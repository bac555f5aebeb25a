//! What was promised, where it outlives the process: one file per port and per segment in the state directory.
//!
//! ```text
//! STATE/lock          held by the process that owns the directory
//! STATE/ports/ID      crc32c (4 bytes), payload "network-port": what was asked for, or that it was deleted
//! STATE/segments/VNI  crc32c (4 bytes), payload "network-segment"
//! STATE/metadata/ID   crc32c (4 bytes), payload "network-metadata": what the port's guest reads of itself
//! STATE/token-key     what tokens of the metadata server are made with
//! ```
//!
//! Each file is written anew and renamed over the old one: a process killed at any instant leaves the one or the other.
//! Nothing is flushed, because the directory is on tmpfs; on a disk, what a power cut takes is what a reboot ends anyway.
//!
//! Invariant: what is read is checked as if it had been asked for just now; what cannot be used is left where it is and
//! reported, and stops nothing else.

use super::model::{Deleted, Model, WantedMetadata, WantedPort, WantedSegment};
use super::rules;
use crate::metadata::documents::Documents;
use crate::metadata::token::{KEY_LENGTH, Key};
use crate::state::{
    DocumentState, MetadataState, NamedHostState, NamesState, PeerState, PortState, SegmentState,
};
use crate::tables::Table;
use bixi_api::network::{NamedHost, Peer, PortAdd, PortLimits, SegmentConfig, SegmentNames};
use bixi_api::state::{PAYLOAD_LIMIT, Payload};
use prost::Message;
use rustix::fs::FlockOperation;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const PORT: (&str, u32) = ("network-port", 1);
const SEGMENT: (&str, u32) = ("network-segment", 1);
const METADATA: (&str, u32) = ("network-metadata", 1);
/// The end of the name of a file that is still being written; no id or number ends like this.
const UNFINISHED: &str = ".unfinished";
/// How long a starting process waits for its predecessor to be gone.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordsError {
    /// Another process owns it.
    #[error("the state directory {} belongs to a running process: stop it, or give another --state", .0.display())]
    InUse(PathBuf),
    /// The kernel refuses.
    #[error("cannot {what} {}: see that the state directory is writable and has room", path.display())]
    System {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl RecordsError {
    fn system(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::System { what, path, source }
    }
}

/// The state directory, owned by this process.
#[derive(Debug)]
pub struct Records {
    state: PathBuf,
    _lock: File,
}

impl Records {
    /// Owns `state`, which is made if it is not there.
    ///
    /// # Errors
    /// See [`RecordsError`].
    pub fn open(state: &Path) -> Result<Self, RecordsError> {
        let tables = Table::ALL.map(|table| state.join(table.folder()));
        let records = ["ports", "segments", "metadata"].map(|folder| state.join(folder));
        for folder in [state.to_owned()].iter().chain(&records).chain(&tables) {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
            made.map_err(RecordsError::system("create", folder))?;
        }
        let path = state.join("lock");
        let mut options = OpenOptions::new();
        let lock = options.write(true).create(true).truncate(false).mode(0o600).open(&path);
        let lock = lock.map_err(RecordsError::system("open", &path))?;
        let deadline = Instant::now() + LOCK_PATIENCE;
        while let Err(e) = rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            if e != rustix::io::Errno::WOULDBLOCK {
                return Err(RecordsError::system("lock", &path)(e.into()));
            }
            // A killed predecessor keeps its lock until the kernel has taken it apart.
            if Instant::now() > deadline {
                return Err(RecordsError::InUse(state.to_owned()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(Self { state: state.to_owned(), _lock: lock })
    }

    /// The directory.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Whether the directory is in memory, as it should be.
    pub fn is_in_memory(&self) -> bool {
        const TMPFS: i64 = 0x0102_1994;
        rustix::fs::statfs(&self.state).is_ok_and(|found| found.f_type == TMPFS)
    }

    /// Writes a port down.
    ///
    /// # Errors
    /// The file cannot be written; what was there before still is.
    pub fn put_port(&self, id: &str, port: &WantedPort) -> Result<(), RecordsError> {
        self.replace(
            &self.state.join("ports").join(id),
            &Payload::new(PORT.0, PORT.1, &port_state(id, port)),
        )
    }

    /// Writes down that a port was deleted.
    ///
    /// # Errors
    /// As [`Records::put_port`].
    pub fn put_deleted(&self, id: &str, deleted: Deleted) -> Result<(), RecordsError> {
        let Deleted { epoch, at } = deleted;
        let state = PortState {
            id: id.to_owned(),
            epoch,
            deleted: true,
            deleted_at: at,
            ..PortState::default()
        };
        self.replace(&self.state.join("ports").join(id), &Payload::new(PORT.0, PORT.1, &state))
    }

    /// What tokens of the metadata server are made with: made at the first start, the same in every later process.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn token_key(&self) -> Result<Key, RecordsError> {
        let path = self.state.join("token-key");
        if let Ok(bytes) = fs::read(&path)
            && let Ok(key) = bytes.try_into()
        {
            return Ok(Key(key));
        }
        let mut key = [0; KEY_LENGTH];
        aws_lc_rs::rand::fill(&mut key).map_err(|_| {
            RecordsError::system("find random bytes for", &path)(io::Error::other(
                "the source of randomness fails",
            ))
        })?;
        self.replace_bytes(&path, &key)?;
        Ok(Key(key))
    }

    /// Writes the metadata of a port down.
    ///
    /// # Errors
    /// As [`Records::put_port`].
    pub fn put_metadata(&self, id: &str, metadata: &WantedMetadata) -> Result<(), RecordsError> {
        self.replace(&self.state.join("metadata").join(id), &metadata_payload(id, metadata))
    }

    /// Forgets the metadata of a port.
    ///
    /// # Errors
    /// As [`Records::forget_port`].
    pub fn forget_metadata(&self, id: &str) -> Result<(), RecordsError> {
        remove(&self.state.join("metadata").join(id))
    }

    /// Forgets a port altogether.
    ///
    /// # Errors
    /// The file cannot be removed; that there is none is no error.
    pub fn forget_port(&self, id: &str) -> Result<(), RecordsError> {
        remove(&self.state.join("ports").join(id))
    }

    /// Writes a segment down.
    ///
    /// # Errors
    /// As [`Records::put_port`].
    pub fn put_segment(&self, vni: u32, config: &SegmentConfig) -> Result<(), RecordsError> {
        let payload = Payload::new(SEGMENT.0, SEGMENT.1, &segment_state(vni, config));
        self.replace(&self.state.join("segments").join(vni.to_string()), &payload)
    }

    /// Forgets a segment.
    ///
    /// # Errors
    /// As [`Records::forget_port`].
    pub fn forget_segment(&self, vni: u32) -> Result<(), RecordsError> {
        remove(&self.state.join("segments").join(vni.to_string()))
    }

    fn replace(&self, path: &Path, payload: &Payload) -> Result<(), RecordsError> {
        self.replace_bytes(path, &encode(payload))
    }

    fn replace_bytes(&self, path: &Path, bytes: &[u8]) -> Result<(), RecordsError> {
        let mut unfinished = path.as_os_str().to_owned();
        unfinished.push(UNFINISHED);
        let unfinished = PathBuf::from(unfinished);
        let written =
            write_private(&unfinished, bytes).and_then(|()| fs::rename(&unfinished, path));
        if written.is_err() {
            // Best effort: what stays is removed at the next start.
            let _ = fs::remove_file(&unfinished);
        }
        written.map_err(RecordsError::system("write", path))
    }

    /// Reads everything that was promised. `own` is the process's tunnel end point.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn read(&self, own: Option<SocketAddr>) -> Result<Model, RecordsError> {
        let mut model = Model { own, ..Model::default() };
        self.each("ports", |name, payload| {
            let (id, port) = decode_port(payload)?;
            if id != name {
                return Err(format!("it is that of port {id}"));
            }
            match port {
                DecodedPort::Served(port) => drop(model.ports.insert(id, port)),
                DecodedPort::Deleted(deleted) => drop(model.deleted.insert(id, deleted)),
            }
            Ok(())
        })?;
        self.each("segments", |name, payload| {
            let (vni, segment) = decode_segment(payload, own)?;
            if vni.to_string() != name {
                return Err(format!("it is that of segment {vni}"));
            }
            model.segments.insert(vni, segment);
            Ok(())
        })?;
        self.each("metadata", |name, payload| {
            let (id, metadata) = decode_metadata(payload)?;
            if id != name {
                return Err(format!("it is that of port {id}"));
            }
            model.metadata.insert(id, metadata);
            Ok(())
        })?;
        // A process that was killed while it deleted a port may have left its metadata.
        let left: Vec<_> =
            model.metadata.keys().filter(|id| !model.ports.contains_key(*id)).collect();
        for id in left.into_iter().cloned().collect::<Vec<_>>() {
            model.metadata.remove(&id);
            self.forget_metadata(&id)?;
        }
        Ok(model)
    }

    /// Visits every record of a folder and reports those that cannot be used.
    fn each(
        &self,
        folder: &str,
        mut visit: impl FnMut(&str, &Payload) -> Result<(), String>,
    ) -> Result<(), RecordsError> {
        let folder = self.state.join(folder);
        let failed = || RecordsError::system("read", &folder);
        for entry in fs::read_dir(&folder).map_err(failed())? {
            let path = entry.map_err(failed())?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.ends_with(UNFINISHED) {
                remove(&path)?;
                continue;
            }
            let outcome = read_small(&path).map_err(|e| e.to_string()).and_then(|bytes| {
                let payload = decode(&bytes)?;
                visit(&name, &payload)
            });
            if let Err(reason) = outcome {
                tracing::error!(path = %path.display(), reason, "a record cannot be used; not restored");
            }
        }
        Ok(())
    }
}

fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(bytes)
}

fn remove(path: &Path) -> Result<(), RecordsError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(RecordsError::system("remove", path)(e))
        }
        _ => Ok(()),
    }
}

fn read_small(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(PAYLOAD_LIMIT as u64 + 64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn encode(payload: &Payload) -> Vec<u8> {
    let body = payload.encode_to_vec();
    [&crc32c::crc32c(&body).to_le_bytes()[..], &body].concat()
}

/// Reads the bytes of a record's file.
///
/// # Errors
/// What is wrong with them.
pub fn decode(bytes: &[u8]) -> Result<Payload, String> {
    let (crc, body) = bytes.split_first_chunk::<4>().ok_or("it is cut")?;
    if crc32c::crc32c(body).to_le_bytes() != *crc {
        return Err("its checksum is wrong".to_owned());
    }
    Payload::decode(body).map_err(|e| e.to_string())
}

/// A port of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DecodedPort {
    /// It is to be served.
    Served(WantedPort),
    /// Only its epoch is remembered.
    Deleted(Deleted),
}

/// A port as it travels.
pub fn port_state(id: &str, port: &WantedPort) -> PortState {
    let add = &port.add;
    PortState {
        id: id.to_owned(),
        epoch: add.epoch,
        deleted: false,
        socket: add.socket.as_os_str().as_bytes().to_vec(),
        segment: add.segment,
        mac: port.mac.bits(),
        ipv4: add.ipv4.iter().map(|address| u32::from(*address)).collect(),
        queue_pairs: add.queue_pairs.into(),
        require_sealed: add.require_sealed,
        deleted_at: 0,
        packets_per_second: add.limits.packets_per_second,
        bits_per_second: add.limits.bits_per_second,
    }
}

/// A port as a payload.
pub fn port_payload(id: &str, port: &WantedPort) -> Payload {
    Payload::new(PORT.0, PORT.1, &port_state(id, port))
}

/// Reads a port and its id back.
///
/// # Errors
/// What is wrong with it.
pub fn decode_port(payload: &Payload) -> Result<(String, DecodedPort), String> {
    let state: PortState = payload.read(PORT.0, PORT.1).map_err(|e| e.to_string())?;
    rules::check_id(&state.id).map_err(|(_, message)| message)?;
    if state.deleted {
        let deleted = Deleted { epoch: state.epoch, at: state.deleted_at };
        return Ok((state.id, DecodedPort::Deleted(deleted)));
    }
    let mac = crate::address::Mac::from_bits(state.mac);
    let add = PortAdd {
        epoch: state.epoch,
        socket: OsString::from_vec(state.socket).into(),
        segment: state.segment,
        mac: mac.to_string(),
        ipv4: state.ipv4.into_iter().map(Into::into).collect(),
        queue_pairs: u16::try_from(state.queue_pairs).map_err(|_| "too many queues")?,
        require_sealed: state.require_sealed,
        limits: PortLimits {
            packets_per_second: state.packets_per_second,
            bits_per_second: state.bits_per_second,
        },
    };
    rules::check_port(&add).map_err(|(_, message)| message)?;
    Ok((state.id, DecodedPort::Served(WantedPort { add, mac })))
}

/// The metadata of a port as a payload.
pub fn metadata_payload(id: &str, metadata: &WantedMetadata) -> Payload {
    let document = |(path, bytes): (&str, &std::sync::Arc<[u8]>)| DocumentState {
        path: path.to_owned(),
        bytes: bytes.to_vec(),
    };
    let state = MetadataState {
        port: id.to_owned(),
        generation: metadata.generation,
        tokens_required: metadata.tokens_required,
        documents: metadata.documents.iter().map(document).collect(),
    };
    Payload::new(METADATA.0, METADATA.1, &state)
}

/// Reads the metadata of a port and its id back.
///
/// # Errors
/// What is wrong with it.
pub fn decode_metadata(payload: &Payload) -> Result<(String, WantedMetadata), String> {
    let state: MetadataState = payload.read(METADATA.0, METADATA.1).map_err(|e| e.to_string())?;
    rules::check_id(&state.port).map_err(|(_, message)| message)?;
    let documents = state.documents.into_iter().map(|document| (document.path, document.bytes));
    let wanted = WantedMetadata {
        generation: state.generation,
        tokens_required: state.tokens_required,
        documents: Documents::new(documents.collect())?,
    };
    Ok((state.port, wanted))
}

fn segment_state(vni: u32, config: &SegmentConfig) -> SegmentState {
    let peers = config.peers.iter().map(|peer| PeerState {
        mac: peer.mac.parse().unwrap_or(crate::address::Mac::default()).bits(),
        ipv4: peer.ipv4.into(),
        endpoint: peer.endpoint.to_string(),
    });
    SegmentState {
        vni,
        generation: config.generation,
        network: config.network.into(),
        prefix_len: config.prefix_len.into(),
        gateway: config.gateway.map(Into::into),
        dns: config.dns.iter().map(|address| u32::from(*address)).collect(),
        mtu: config.mtu.into(),
        peers: peers.collect(),
        names: config.names.as_ref().map(names_state),
    }
}

fn names_state(names: &SegmentNames) -> NamesState {
    let host =
        |host: &NamedHost| NamedHostState { name: host.name.clone(), ipv4: host.ipv4.into() };
    NamesState {
        servers: names.servers.iter().map(|address| u32::from(*address)).collect(),
        domain: names.domain.clone(),
        hosts: names.hosts.iter().map(host).collect(),
    }
}

fn names_of(state: NamesState) -> SegmentNames {
    let host = |host: NamedHostState| NamedHost { name: host.name, ipv4: host.ipv4.into() };
    SegmentNames {
        servers: state.servers.into_iter().map(Into::into).collect(),
        domain: state.domain,
        hosts: state.hosts.into_iter().map(host).collect(),
    }
}

/// A segment as a payload.
pub fn segment_payload(vni: u32, config: &SegmentConfig) -> Payload {
    Payload::new(SEGMENT.0, SEGMENT.1, &segment_state(vni, config))
}

/// Reads a segment and its number back, for a process with the tunnel end point `own`. Of a process that has none any
/// more, the peers are kept as they were told: their packets are dropped and counted.
///
/// # Errors
/// What is wrong with it.
pub fn decode_segment(
    payload: &Payload,
    own: Option<SocketAddr>,
) -> Result<(u32, WantedSegment), String> {
    let state: SegmentState = payload.read(SEGMENT.0, SEGMENT.1).map_err(|e| e.to_string())?;
    let mut peers = Vec::with_capacity(state.peers.len());
    for peer in &state.peers {
        let endpoint: SocketAddr = peer.endpoint.parse().map_err(|_| "no end point")?;
        let mac = crate::address::Mac::from_bits(peer.mac).to_string();
        peers.push(Peer { mac, ipv4: peer.ipv4.into(), endpoint });
    }
    let config = SegmentConfig {
        generation: state.generation,
        network: state.network.into(),
        prefix_len: u8::try_from(state.prefix_len).map_err(|_| "too long a prefix")?,
        gateway: state.gateway.map(Into::into),
        dns: state.dns.into_iter().map(Into::into).collect(),
        mtu: u16::try_from(state.mtu).map_err(|_| "too large an MTU")?,
        peers,
        names: state.names.map(names_of),
    };
    let family = own.or_else(|| config.peers.first().map(|peer| peer.endpoint));
    let parts = rules::check_segment(state.vni, &config, family).map_err(|(_, message)| message)?;
    Ok((state.vni, WantedSegment { config, parts }))
}

#[cfg(test)]
mod tests {
    use super::super::rules::tests::{port, segment};
    use super::*;
    use proptest::prelude::*;

    fn wanted(n: u8) -> WantedPort {
        let add = port(n);
        let mac = rules::check_port(&add).unwrap();
        WantedPort { add, mac }
    }

    const OWN: Option<SocketAddr> =
        Some(SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), 4789));

    #[test]
    fn what_was_promised_is_read_back_and_damage_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::open(folder.path()).unwrap();
        for n in 1..=3 {
            records.put_port(&format!("eni-{n}"), &wanted(n)).unwrap();
        }
        records.put_deleted("eni-3", Deleted { epoch: 9, at: 77 }).unwrap();
        records.put_segment(7, &segment()).unwrap();
        records.put_segment(8, &segment()).unwrap();
        records.forget_segment(8).unwrap();
        records.forget_segment(8).unwrap();
        fs::write(folder.path().join("ports/eni-4.unfinished"), b"x").unwrap();
        drop(records);

        let records = Records::open(folder.path()).unwrap();
        let model = records.read(OWN).unwrap();
        let ports: Vec<_> =
            model.ports.iter().map(|(id, port)| (id.as_str(), port.clone())).collect();
        assert_eq!(ports, [("eni-1", wanted(1)), ("eni-2", wanted(2))]);
        assert_eq!(model.deleted["eni-3"], Deleted { epoch: 9, at: 77 });
        assert_eq!(model.segments[&7].config, segment());
        assert_eq!(model.segments.len(), 1);
        assert!(!folder.path().join("ports/eni-4.unfinished").exists());
        // A process without underlay keeps what it was told.
        assert_eq!(records.read(None).unwrap().segments[&7].config, segment());

        let path = folder.path().join("ports/eni-1");
        let mut bytes = fs::read(&path).unwrap();
        fs::write(folder.path().join("ports/eni-5"), &bytes).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert_eq!(records.read(OWN).unwrap().ports.len(), 1);
    }

    #[test]
    fn a_segment_that_the_release_before_wrote_down_is_read() {
        /// The message as it was before segments had names.
        #[derive(Clone, PartialEq, prost::Message)]
        struct Before {
            #[prost(uint32, tag = "1")]
            vni: u32,
            #[prost(uint64, tag = "2")]
            generation: u64,
            #[prost(fixed32, tag = "3")]
            network: u32,
            #[prost(uint32, tag = "4")]
            prefix_len: u32,
            #[prost(uint32, tag = "7")]
            mtu: u32,
        }
        let before =
            Before { vni: 7, generation: 3, network: 0x0a00_0000, prefix_len: 24, mtu: 1450 };
        let payload = Payload::new(SEGMENT.0, SEGMENT.1, &before);
        let (vni, read) = decode_segment(&payload, OWN).unwrap();
        let expected = SegmentConfig { gateway: None, peers: vec![], names: None, ..segment() };
        assert_eq!((vni, read.config), (7, expected));
        // And the release before reads what this one writes, but for the names.
        let now: Before = segment_payload(7, &segment()).read(SEGMENT.0, SEGMENT.1).unwrap();
        assert_eq!(now, before);
    }

    #[test]
    fn a_state_directory_has_one_owner() {
        let folder = tempfile::tempdir().unwrap();
        let first = Records::open(folder.path()).unwrap();
        let started = Instant::now();
        assert!(matches!(Records::open(folder.path()), Err(RecordsError::InUse(_))));
        assert!(started.elapsed() >= LOCK_PATIENCE);
        drop(first);
        Records::open(folder.path()).unwrap();
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_record_or_none(bytes in prop::collection::vec(any::<u8>(), 0..200), kind: bool) {
            let payload = decode(&bytes);
            prop_assert!(payload.is_err() || bytes.len() == 4);
            let (kind, version) = if kind { PORT } else { SEGMENT };
            let payload = Payload { kind: kind.to_owned(), version, bytes };
            let _ = decode_port(&payload);
            let _ = decode_segment(&payload, OWN);
        }
    }
}
