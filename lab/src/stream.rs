//! A TCP stream with proof: what arrives is what was sent, and the longest silence is known.
//!
//! Runs inside guests as `bixi-lab receive PORT` and `bixi-lab send ADDRESS`. Each eight bytes of the stream follow from
//! their position, so the receiver needs nothing from the sender to find the first wrong byte.

use crate::error::{Attempt, Result};
use serde::{Deserialize, Serialize};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// Words of the stream that are made or checked at once.
const WORDS: u64 = 4096;

/// What one side of a stream has seen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Report {
    /// Bytes sent or received.
    pub bytes: u64,
    /// The longest time without progress, in milliseconds.
    pub longest_ms: u64,
    /// Where the first wrong byte is.
    pub wrong_at: Option<u64>,
}

impl Report {
    fn progress(&mut self, bytes: usize, since: &mut Instant) {
        let silence = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.longest_ms = self.longest_ms.max(silence);
        self.bytes += bytes as u64;
        *since = Instant::now();
    }
}

/// Sends for a while, as fast as the other side takes it.
///
/// # Errors
/// When the connection cannot be made or breaks.
pub fn send(to: SocketAddr, time: Duration) -> Result<Report> {
    let wrong = || format!("send to {to}");
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(30)).attempt(wrong)?;
    let mut report = Report::default();
    let (start, mut since) = (Instant::now(), Instant::now());
    while start.elapsed() < time {
        let piece = piece(report.bytes / 8);
        stream.write_all(&piece).attempt(wrong)?;
        report.progress(piece.len(), &mut since);
    }
    Ok(report)
}

/// Receives one stream to its end.
///
/// # Errors
/// When the port cannot be listened on or the connection breaks.
pub fn receive(port: u16) -> Result<Report> {
    let wrong = || format!("receive on port {port}");
    let listener = TcpListener::bind(("0.0.0.0", port)).attempt(wrong)?;
    receive_from(&listener)
}

fn receive_from(listener: &TcpListener) -> Result<Report> {
    let wrong = || "receive a stream".to_owned();
    let (mut stream, _) = listener.accept().attempt(wrong)?;
    let mut report = Report::default();
    let mut since = Instant::now();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = match stream.read(&mut buffer) {
            Ok(0) => return Ok(report),
            Ok(count) => count,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => return Err(e).attempt(wrong),
        };
        if report.wrong_at.is_none() {
            report.wrong_at = first_wrong(report.bytes, &buffer[..count]);
        }
        report.progress(count, &mut since);
    }
}

/// The word at a position of the stream.
fn word(position: u64) -> [u8; 8] {
    // An odd factor: no two positions have the same word.
    (position + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()
}

fn piece(first: u64) -> Vec<u8> {
    (first..first + WORDS).flat_map(word).collect()
}

fn first_wrong(start: u64, bytes: &[u8]) -> Option<u64> {
    let places = start..start + bytes.len() as u64;
    let right = |at: u64| word(at / 8)[(at % 8) as usize];
    places.zip(bytes).find(|(at, byte)| right(*at) != **byte).map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_arrives_as_it_was_sent() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let receiver = std::thread::spawn(move || receive_from(&listener).unwrap());
        let sent = send(to, Duration::from_millis(30)).unwrap();
        let received = receiver.join().unwrap();
        assert!(sent.bytes > 0);
        assert_eq!((received.bytes, received.wrong_at), (sent.bytes, None));
    }

    #[test]
    fn a_wrong_byte_is_found_where_it_is() {
        let mut bytes = piece(0);
        assert_eq!(first_wrong(0, &bytes), None);
        assert_eq!(first_wrong(5, &bytes[5..]), None);
        bytes[77] ^= 1;
        assert_eq!(first_wrong(0, &bytes), Some(77));
    }
}
