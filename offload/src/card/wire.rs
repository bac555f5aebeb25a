//! Whole messages over a UNIX stream socket, with descriptors beside them, never blocking.
//!
//! Invariants: every descriptor that arrives is owned at once, so that none leaks whatever happens next; it belongs to
//! the message whose header it came with. A peer that does not read its replies is at fault: nothing is queued.

use crate::ring::SharedFd;
use crate::vhost_user::codec::{HEADER_LEN, Header, MAX_FDS};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use tokio::io::unix::AsyncFd;

/// A message of the front end.
#[derive(Debug)]
pub(super) struct Message {
    pub header: Header,
    pub payload: Vec<u8>,
    pub fds: Vec<SharedFd>,
}

/// Reads one message. `None` means that the peer closed the connection between two messages.
///
/// Not cancel-safe: what was read of a message is lost with the future.
pub(super) async fn read_message(socket: &AsyncFd<UnixStream>) -> io::Result<Option<Message>> {
    let mut fds = Vec::new();
    let mut head = [0; HEADER_LEN];
    if !fill(socket, &mut head, &mut fds).await? {
        return Ok(None);
    }
    let header = Header::parse(&head).map_err(io::Error::other)?;
    let mut payload = vec![0; header.size as usize];
    if !fill(socket, &mut payload, &mut fds).await? && header.size > 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(Message { header, payload, fds: fds.into_iter().map(Arc::new).collect() }))
}

/// Fills `room`. False if the connection was closed before its first byte.
async fn fill(
    socket: &AsyncFd<UnixStream>,
    room: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> io::Result<bool> {
    let mut at = 0;
    while at < room.len() {
        let mut ready = socket.readable().await?;
        match ready.try_io(|socket| receive(socket.get_ref().as_fd(), &mut room[at..], fds)) {
            Ok(Ok(0)) if at == 0 => return Ok(false),
            Ok(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(Ok(n)) => at += n,
            Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
            Ok(Err(e)) => return Err(e),
            Err(_would_block) => {}
        }
    }
    Ok(true)
}

fn receive(socket: BorrowedFd<'_>, room: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let got = recvmsg(socket, &mut [IoSliceMut::new(room)], &mut control, flags)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if fds.len() > MAX_FDS {
        return Err(io::Error::other(format!("more than {MAX_FDS} descriptors with one message")));
    }
    Ok(got.bytes)
}

/// Sends `bytes` whole, descriptors with the first of them.
pub(super) fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[SharedFd]) -> io::Result<()> {
    let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(|fd| fd.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(io::Error::other("too many descriptors for one message"));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let sent = loop {
        match sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    };
    if sent < bytes.len() {
        return Err(io::Error::new(io::ErrorKind::WouldBlock, "the peer does not read"));
    }
    Ok(())
}
