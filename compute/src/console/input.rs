//! Input on its way to the guest: as fast as the guest reads, and no byte is lost.

use super::stream::Stream;
use crate::board::serial::Serial;
use std::io;
use std::sync::Arc;

/// The key that leaves a terminal: `Ctrl-]`.
pub(super) const LEAVE: u8 = 0x1d;
/// What is read at once; no more is ever held on its way.
const CHUNK: usize = 256;

/// Gives the guest all of `bytes`, waiting while its receive FIFO is full.
async fn give(serial: &Serial, mut bytes: &[u8]) {
    loop {
        let room = serial.room().notified();
        tokio::pin!(room);
        // Registered before the offer, so that a read of the guest in between wakes.
        room.as_mut().enable();
        let taken = serial.offer(bytes);
        bytes = &bytes[taken..];
        if bytes.is_empty() {
            return;
        }
        room.await;
    }
}

/// Why a source of input has no more.
#[derive(Debug)]
pub(super) enum End {
    /// The other side closed it.
    Closed,
    /// The operator typed [`LEAVE`].
    Left,
}

/// Carries input from `source` to the guest until it ends. `leaves` is whether [`LEAVE`] is a command.
pub(super) async fn carry(source: &Stream, serial: &Arc<Serial>, leaves: bool) -> io::Result<End> {
    let mut chunk = [0; CHUNK];
    loop {
        let read = source.read(&mut chunk).await?;
        let bytes = &chunk[..read];
        if bytes.is_empty() {
            return Ok(End::Closed);
        }
        match bytes.iter().position(|byte| leaves && *byte == LEAVE) {
            None => give(serial, bytes).await,
            Some(at) => {
                give(serial, &bytes[..at]).await;
                return Ok(End::Left);
            }
        }
    }
}
