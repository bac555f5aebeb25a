//! Input on its way to the guest: as fast as the guest reads, and no byte is lost.

use super::stream::Stream;
use crate::board::serial::Serial;
use std::io;
use std::sync::Arc;

/// The key that leaves a terminal: `Ctrl-]`.
pub(super) const LEAVE: u8 = 0x1d;
/// What is read at once.
const CHUNK: usize = 256;
/// What is held on its way at most. More than a chunk, so that an operator who has typed much to a guest that reads
/// nothing is still heard when he leaves.
const HELD: usize = 4096;

/// Why a source of input has no more.
#[derive(Debug)]
pub(super) enum End {
    /// The other side closed it, and the guest has everything.
    Closed,
    /// The operator typed [`LEAVE`].
    Left,
}

/// Carries input from `source` to the guest until it ends. `leaves` is whether [`LEAVE`] is a command.
///
/// While the guest's receive FIFO is full, what was read is held; while that is full too, nothing is read.
pub(super) async fn carry(source: &Stream, serial: &Arc<Serial>, leaves: bool) -> io::Result<End> {
    let mut chunk = [0; CHUNK];
    let mut held: Vec<u8> = Vec::new();
    let mut closed = false;
    loop {
        let room = serial.room().notified();
        tokio::pin!(room);
        // Registered before the offer, so that a read of the guest in between wakes.
        room.as_mut().enable();
        held.drain(..serial.offer(&held));
        if closed && held.is_empty() {
            return Ok(End::Closed);
        }
        let read = tokio::select! {
            read = source.read(&mut chunk), if !closed && held.len() < HELD => read?,
            () = room, if !held.is_empty() => continue,
        };
        let bytes = &chunk[..read];
        if leaves && bytes.contains(&LEAVE) {
            return Ok(End::Left);
        }
        closed = bytes.is_empty();
        held.extend_from_slice(bytes);
    }
}
