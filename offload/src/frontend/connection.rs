//! Whole messages over a non-blocking stream socket, with descriptors beside them.
//!
//! Invariants: every descriptor that arrives is owned at once, and belongs to the message whose header it came with;
//! one message is read at a time, so that no byte of the next is taken along. A message that the kernel takes only in part
//! is finished before anything else is sent, its descriptors having gone with the first byte.

use super::types::Incoming;
use crate::ring::SharedFd;
use crate::vhost_user::codec::{HEADER_LEN, Header, MAX_FDS};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Bytes waiting for a back end that does not read, before it counts as lost.
const OUTBOX_LIMIT: usize = 1 << 20;

/// The other side is gone, or what it sends is no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lost;

/// A message on its way out.
#[derive(Debug)]
struct Departing {
    bytes: Vec<u8>,
    sent: usize,
    descriptors: Vec<SharedFd>,
}

/// A stream socket that carries vhost-user messages.
#[derive(Debug)]
pub(super) struct Connection {
    socket: OwnedFd,
    outbox: VecDeque<Departing>,
    /// The message being read: its bytes so far, and how many it needs at least.
    partial: Vec<u8>,
    needed: usize,
    arrived: Vec<OwnedFd>,
}

impl Connection {
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            outbox: VecDeque::new(),
            partial: Vec::new(),
            needed: HEADER_LEN,
            arrived: Vec::new(),
        }
    }

    /// The socket, which goes on elsewhere.
    pub fn into_socket(self) -> OwnedFd {
        self.socket
    }

    /// Whether [`Connection::flush`] has something to do once the socket takes bytes again.
    pub fn wants_write(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Whether a message has been read in part.
    pub fn is_mid_message(&self) -> bool {
        !self.partial.is_empty()
    }

    /// Sends a message, now or as soon as the socket takes it.
    pub fn send(&mut self, bytes: Vec<u8>, descriptors: Vec<SharedFd>) -> Result<(), Lost> {
        let waiting: usize = self.outbox.iter().map(|message| message.bytes.len()).sum();
        if waiting > OUTBOX_LIMIT || descriptors.len() > MAX_FDS {
            return Err(Lost);
        }
        self.outbox.push_back(Departing { bytes, sent: 0, descriptors });
        self.flush()
    }

    /// Sends what is waiting, as far as the socket takes it.
    pub fn flush(&mut self) -> Result<(), Lost> {
        while let Some(message) = self.outbox.front_mut() {
            match send_part(self.socket.as_fd(), message) {
                Ok(()) if message.sent == message.bytes.len() => _ = self.outbox.pop_front(),
                Ok(()) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(_) => return Err(Lost),
            }
        }
        Ok(())
    }

    /// Reads the next whole message, if it is there.
    pub fn receive(&mut self) -> Result<Option<(Incoming, Vec<OwnedFd>)>, Lost> {
        loop {
            if self.partial.len() == self.needed {
                let Some(head) = self.partial.first_chunk::<HEADER_LEN>() else { return Err(Lost) };
                let header = Header::parse(head).map_err(|_| Lost)?;
                self.needed = HEADER_LEN + header.size as usize;
                if self.partial.len() == self.needed {
                    let payload = self.partial.split_off(HEADER_LEN);
                    self.partial.clear();
                    self.needed = HEADER_LEN;
                    let descriptors = std::mem::take(&mut self.arrived);
                    let message = Incoming { header, payload, descriptors: descriptors.len() };
                    return Ok(Some((message, descriptors)));
                }
            }
            match self.receive_part() {
                Ok(0) => return Err(Lost),
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(_) => return Err(Lost),
            }
            if self.arrived.len() > MAX_FDS {
                return Err(Lost);
            }
        }
    }

    fn receive_part(&mut self) -> Result<usize, Errno> {
        let at = self.partial.len();
        self.partial.resize(self.needed, 0);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let room = &mut [IoSliceMut::new(&mut self.partial[at..])];
        let got = recvmsg(&self.socket, room, &mut control, flags);
        let bytes = got.as_ref().map_or(0, |got| got.bytes);
        self.partial.truncate(at + bytes);
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.arrived.extend(descriptors);
            }
        }
        got.map(|got| got.bytes)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn send_part(socket: BorrowedFd<'_>, message: &mut Departing) -> Result<(), Errno> {
    let borrowed: Vec<_> =
        message.descriptors.iter().map(|descriptor| descriptor.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(Errno::INVAL);
    }
    let bytes = &[IoSlice::new(&message.bytes[message.sent..])];
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    message.sent += sendmsg(socket, bytes, &mut control, flags)?;
    drop(borrowed);
    message.descriptors.clear();
    Ok(())
}
