//! What is said between the lab and a server's agent: one TCP connection per operation.
//!
//! A frame is a kind, a length and a payload. The first frame of a connection is a [`Request`]; what follows depends on
//! it. Both ends are the same release of this crate, so there is no version.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::path::PathBuf;

/// The agent's TCP port on the management network.
pub(crate) const PORT: u16 = 7007;

/// No frame is longer than this.
pub(crate) const FRAME_LIMIT: usize = 1 << 20;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// A [`Request`] or an [`Answer`].
    Message = 0,
    /// Bytes of standard input, standard output or a file.
    Data = 1,
    /// Bytes of standard error.
    Error = 2,
    /// The end of the data.
    End = 3,
    /// A signal number for the process.
    Signal = 4,
    /// Rows and columns of the terminal.
    Resize = 5,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        use Kind::{Data, End, Error, Message, Resize, Signal};
        [Message, Data, Error, End, Signal, Resize].into_iter().find(|k| *k as u8 == byte)
    }
}

/// What a connection is for.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Answers [`Answer::Hello`].
    Hello,
    /// Runs a program: answers [`Answer::Started`], then data both ways, then [`Answer::Ended`].
    Run(Run),
    /// Writes a file: takes data up to the end, answers [`Answer::Done`].
    Put { path: PathBuf, mode: u32 },
    /// Reads a file: answers [`Answer::Done`], then data up to the end.
    Get { path: PathBuf },
    /// Becomes a connection to a UNIX socket of the server: answers [`Answer::Done`], then raw bytes.
    Connect { path: PathBuf },
    /// Ends every process that is not the server's own and clears its folders: answers [`Answer::Done`].
    Reset,
}

/// A program to run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Run {
    /// The program and its arguments.
    pub words: Vec<String>,
    /// Added to the environment.
    pub environment: Vec<(String, String)>,
    /// The working folder.
    pub folder: Option<PathBuf>,
    /// The process group is killed after so many milliseconds.
    pub limit_ms: Option<u64>,
    /// Standard output and error go to this file instead of the connection.
    pub log: Option<PathBuf>,
    /// Whether it outlives the connection.
    pub stays: bool,
    /// Rows and columns, if it gets a terminal.
    pub terminal: Option<(u16, u16)>,
}

/// What the agent says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// The agent is there.
    Hello { uptime_ms: u64, kvm: bool, processes: usize },
    /// The program runs as this process.
    Started { pid: i32 },
    /// The program has ended.
    Ended(Ended),
    /// It is done.
    Done,
    /// It cannot be done.
    Failed { message: String },
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Its exit code, unless a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether it was killed because its time was up.
    pub late: bool,
}

/// Writes one frame.
pub(crate) fn send(out: &mut impl Write, kind: Kind, payload: &[u8]) -> io::Result<()> {
    let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
    let mut header = [0; 5];
    header[0] = kind as u8;
    header[1..].copy_from_slice(&length.to_le_bytes());
    if payload.len() <= 1400 {
        // One segment for what is small: half the packets of a conversation in small steps.
        let mut whole = header.to_vec();
        whole.extend_from_slice(payload);
        return out.write_all(&whole);
    }
    out.write_all(&header)?;
    out.write_all(payload)
}

/// Writes one message.
pub(crate) fn send_message(out: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    send(out, Kind::Message, &serde_json::to_vec(message)?)
}

/// Reads one frame; `None` when the other end is gone before its first byte.
pub(crate) fn receive(from: &mut impl Read) -> io::Result<Option<(Kind, Vec<u8>)>> {
    let mut header = [0; 5];
    let first = loop {
        match from.read(&mut header[..1]) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => break other?,
        }
    };
    if first == 0 {
        return Ok(None);
    }
    from.read_exact(&mut header[1..])?;
    let (kind, length) = parse_header(header)?;
    let mut payload = vec![0; length];
    from.read_exact(&mut payload)?;
    Ok(Some((kind, payload)))
}

/// Reads one message; the end of the connection is an error here.
pub(crate) fn receive_message<M: DeserializeOwned>(from: &mut impl Read) -> io::Result<M> {
    match receive(from)? {
        Some((Kind::Message, payload)) => Ok(serde_json::from_slice(&payload)?),
        Some((kind, _)) => Err(io::Error::other(format!("expected a message, got {kind:?}"))),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn parse_header(header: [u8; 5]) -> io::Result<(Kind, usize)> {
    let [kind, length @ ..] = header;
    let length = u32::from_le_bytes(length) as usize;
    match Kind::of(kind) {
        Some(kind) if length <= FRAME_LIMIT => Ok((kind, length)),
        _ => Err(io::Error::other("not the lab's protocol")),
    }
}

/// Takes whole frames out of bytes that come in any pieces, for the end that must not block.
#[derive(Debug, Default)]
pub(crate) struct Assembler {
    bytes: Vec<u8>,
}

impl Assembler {
    /// Adds what has come.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame.
    pub fn next(&mut self) -> io::Result<Option<(Kind, Vec<u8>)>> {
        let Some(header) = self.bytes.first_chunk::<5>() else { return Ok(None) };
        let (kind, length) = parse_header(*header)?;
        if self.bytes.len() < 5 + length {
            return Ok(None);
        }
        let payload = self.bytes[5..5 + length].to_vec();
        self.bytes.drain(..5 + length);
        Ok(Some((kind, payload)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_whole_however_they_come_in() {
        let mut bytes = Vec::new();
        send_message(&mut bytes, &Request::Hello).unwrap();
        send(&mut bytes, Kind::Data, &[7; 3000]).unwrap();
        send(&mut bytes, Kind::End, &[]).unwrap();
        let mut assembler = Assembler::default();
        let mut kinds = Vec::new();
        for byte in &bytes {
            assembler.push(&[*byte]);
            while let Some((kind, payload)) = assembler.next().unwrap() {
                kinds.push((kind, payload.len()));
            }
        }
        assert_eq!(kinds, [(Kind::Message, 7), (Kind::Data, 3000), (Kind::End, 0)]);
        let mut reader = &bytes[..];
        assert!(matches!(receive_message(&mut reader).unwrap(), Request::Hello));
    }

    #[test]
    fn nonsense_is_an_error() {
        let mut assembler = Assembler::default();
        assembler.push(&[9, 0, 0, 0, 0]);
        assert!(assembler.next().is_err());
        assert!(receive(&mut &[1u8, 0xff, 0xff, 0xff, 0xff][..]).is_err());
        assert!(receive(&mut &[][..]).unwrap().is_none());
    }
}
