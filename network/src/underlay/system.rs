//! `sendmmsg` and `recvmmsg`: many messages in one system call, each perhaps many datagrams.
//!
//! Invariants: every pointer that the kernel is given is made in the function that calls it, from arrays that live through
//! the call; only as many messages are looked at as the kernel says it filled, and only as many bytes of each.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::ptr;

/// Messages in one system call.
pub const BATCH: usize = 64;
/// Bytes of a received message: as many as the kernel puts together.
pub const MESSAGE: usize = 65_536;
/// Messages received in one system call.
pub const RECEIVED: usize = 32;

/// Bytes of a control message before its value.
const CONTROL_HEADER: usize = size_of::<libc::cmsghdr>();

/// One control message with one number: UDP_SEGMENT going out (16 bits), UDP_GRO coming in (32 bits).
#[derive(Clone, Copy)]
#[repr(C)]
struct Control {
    header: libc::cmsghdr,
    value: [u8; 8],
}

/// A socket address as the kernel has it.
#[derive(Clone, Copy)]
#[repr(C)]
union Name {
    family: libc::sa_family_t,
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

/// A message to send.
#[derive(Debug, Clone)]
pub struct SendMessage {
    /// Where to.
    pub to: SocketAddr,
    /// All its datagrams: a part of the bytes given to [`SendBatch::send`].
    pub bytes: Range<usize>,
    /// Bytes of each datagram but the last, if there are several.
    pub segment: Option<u16>,
}

/// Messages for one `sendmmsg`.
pub struct SendBatch {
    headers: [libc::mmsghdr; BATCH],
    pieces: [libc::iovec; BATCH],
    names: [Name; BATCH],
    controls: [Control; BATCH],
    ranges: [(usize, usize); BATCH],
    len: usize,
}

impl SendBatch {
    /// Room for [`BATCH`] messages.
    pub fn new() -> Box<Self> {
        // SAFETY: all of it is plain data for which zeroes are valid: null pointers, zero lengths, zero numbers.
        unsafe { Box::<Self>::new_zeroed().assume_init() }
    }

    /// How many messages there are.
    pub fn count(&self) -> usize {
        self.len
    }

    /// Forgets all messages.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Adds a message, if there is room.
    pub fn add(&mut self, message: &SendMessage) {
        let at = self.len;
        if at >= BATCH {
            return;
        }
        self.len += 1;
        self.ranges[at] = (message.bytes.start, message.bytes.end);
        let header = &mut self.headers[at].msg_hdr;
        header.msg_namelen = encode(message.to, &mut self.names[at]);
        header.msg_controllen = 0;
        if let Some(segment) = message.segment {
            let control = &mut self.controls[at];
            control.header.cmsg_len = CONTROL_HEADER + size_of::<u16>();
            control.header.cmsg_level = libc::SOL_UDP;
            control.header.cmsg_type = libc::UDP_SEGMENT;
            control.value[..2].copy_from_slice(&segment.to_ne_bytes());
            header.msg_controllen = size_of::<Control>();
        }
    }

    /// Sends the messages from `first` on, whose bytes are in `arena`; returns how many were sent, at least one.
    ///
    /// # Errors
    /// Message `first` was refused: nothing was sent.
    pub fn send(&mut self, socket: &UdpSocket, arena: &[u8], first: usize) -> io::Result<usize> {
        for at in first..self.len {
            let (start, end) = self.ranges[at];
            let bytes = arena.get(start..end).unwrap_or(&[]);
            // The kernel only reads a message that it sends.
            let iov_base = bytes.as_ptr().cast_mut().cast();
            self.pieces[at] = libc::iovec { iov_base, iov_len: bytes.len() };
        }
        let names = self.names.as_mut_ptr();
        let pieces = self.pieces.as_mut_ptr();
        let controls = self.controls.as_mut_ptr();
        for (at, header) in self.headers[..self.len].iter_mut().enumerate().skip(first) {
            let header = &mut header.msg_hdr;
            header.msg_name = names.wrapping_add(at).cast();
            header.msg_iov = pieces.wrapping_add(at);
            header.msg_iovlen = 1;
            let has_control = header.msg_controllen != 0;
            let control = controls.wrapping_add(at).cast();
            header.msg_control = if has_control { control } else { ptr::null_mut() };
        }
        let count = (self.len - first.min(self.len)) as libc::c_uint;
        let headers = self.headers[first.min(self.len)..].as_mut_ptr();
        // SAFETY: `count` headers from `first` on are filled, each pointing to one name, one piece and at most one control
        // message of this batch; the pieces point into `arena`. All of it lives through the call.
        let done = unsafe {
            libc::sendmmsg(
                socket.as_raw_fd(),
                headers,
                count,
                libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
            )
        };
        if done > 0 { Ok(done as usize) } else { Err(io::Error::last_os_error()) }
    }
}

/// Messages of one `recvmmsg`.
pub struct ReceiveBatch {
    headers: [libc::mmsghdr; RECEIVED],
    pieces: [libc::iovec; RECEIVED],
    names: [Name; RECEIVED],
    controls: [Control; RECEIVED],
    bytes: Box<[u8]>,
    len: usize,
}

/// A message that was received.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// Who sent it.
    pub from: Option<IpAddr>,
    /// All its datagrams; empty if it did not fit.
    pub bytes: &'a [u8],
    /// Bytes of each datagram but the last; not zero.
    pub segment: usize,
}

impl ReceiveBatch {
    /// Room for [`RECEIVED`] messages.
    pub fn new() -> Box<Self> {
        // SAFETY: zeroes are valid for all of it but the bytes, which are written before anything reads or drops them.
        let mut batch = unsafe {
            let mut batch = Box::<Self>::new_zeroed();
            let bytes = vec![0; RECEIVED * MESSAGE].into_boxed_slice();
            (&raw mut (*batch.as_mut_ptr()).bytes).write(bytes);
            batch.assume_init()
        };
        batch.len = 0;
        batch
    }

    /// Receives what the socket has, as much as there is room for, in place of what was here. Returns how many messages;
    /// none when there is nothing, or the socket has an error to tell, which concerns some datagram sent earlier.
    pub fn receive(&mut self, socket: &UdpSocket) -> usize {
        self.len = 0;
        let bytes = self.bytes.as_mut_ptr();
        let pieces = self.pieces.as_mut_ptr();
        let names = self.names.as_mut_ptr();
        let controls = self.controls.as_mut_ptr();
        for (at, header) in self.headers.iter_mut().enumerate() {
            let iov_base = bytes.wrapping_add(at * MESSAGE).cast();
            // SAFETY: `at` is below the length of `pieces`.
            unsafe { pieces.add(at).write(libc::iovec { iov_base, iov_len: MESSAGE }) };
            let header = &mut header.msg_hdr;
            header.msg_name = names.wrapping_add(at).cast();
            header.msg_namelen = size_of::<Name>() as libc::socklen_t;
            header.msg_iov = pieces.wrapping_add(at);
            header.msg_iovlen = 1;
            header.msg_control = controls.wrapping_add(at).cast();
            header.msg_controllen = size_of::<Control>();
            header.msg_flags = 0;
        }
        let headers = self.headers.as_mut_ptr();
        // SAFETY: every header points to one name, one piece of MESSAGE bytes and room for one control message, all of
        // this batch and its own; all of it lives through the call.
        let done = unsafe {
            let wait = ptr::null_mut();
            libc::recvmmsg(socket.as_raw_fd(), headers, RECEIVED as u32, libc::MSG_DONTWAIT, wait)
        };
        self.len = usize::try_from(done).unwrap_or(0).min(RECEIVED);
        self.len
    }

    /// Message number `at` of those received.
    pub fn message(&self, at: usize) -> Option<Message<'_>> {
        let header = self.headers[..self.len].get(at)?;
        let length = (header.msg_len as usize).min(MESSAGE);
        let truncated = header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
        let bytes = if truncated { &[] } else { &self.bytes[at * MESSAGE..][..length] };
        let control = &self.controls[at];
        let joined = header.msg_hdr.msg_controllen >= CONTROL_HEADER + size_of::<i32>()
            && control.header.cmsg_level == libc::SOL_UDP
            && control.header.cmsg_type == libc::UDP_GRO;
        let size = control.value.first_chunk::<4>().map_or(0, |n| i32::from_ne_bytes(*n));
        let segment = usize::try_from(size).ok().filter(|size| joined && *size > 0);
        let from = decode(&self.names[at], header.msg_hdr.msg_namelen);
        Some(Message { from, bytes, segment: segment.unwrap_or(MESSAGE) })
    }
}

impl fmt::Debug for SendBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendBatch").field("len", &self.len).finish_non_exhaustive()
    }
}

impl fmt::Debug for ReceiveBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReceiveBatch").field("len", &self.len).finish_non_exhaustive()
    }
}

/// Writes an address as the kernel wants it; returns its length.
fn encode(address: SocketAddr, name: &mut Name) -> libc::socklen_t {
    match address {
        SocketAddr::V4(v4) => {
            name.v4 = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from(*v4.ip()).to_be() },
                sin_zero: [0; 8],
            };
            size_of::<libc::sockaddr_in>() as libc::socklen_t
        }
        SocketAddr::V6(v6) => {
            name.v6 = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            };
            size_of::<libc::sockaddr_in6>() as libc::socklen_t
        }
    }
}

/// Reads the address of a sender that the kernel wrote in `len` bytes.
fn decode(name: &Name, len: libc::socklen_t) -> Option<IpAddr> {
    let len = len as usize;
    if len < size_of::<libc::sockaddr_in>() {
        return None;
    }
    // SAFETY: the union is plain data, all of which is initialized (zeroes at first); every variant begins with the
    // family, which says what the kernel wrote, and any bytes are valid for every variant.
    unsafe {
        match i32::from(name.family) {
            libc::AF_INET => Some(Ipv4Addr::from(u32::from_be(name.v4.sin_addr.s_addr)).into()),
            libc::AF_INET6 if len >= size_of::<libc::sockaddr_in6>() => {
                Some(Ipv6Addr::from(name.v6.sin6_addr.s6_addr).to_canonical())
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn pair() -> (UdpSocket, UdpSocket) {
        let make = || UdpSocket::bind("127.0.0.1:0").unwrap();
        let (a, b) = (make(), make());
        b.set_nonblocking(true).unwrap();
        (a, b)
    }

    fn receive(batch: &mut ReceiveBatch, socket: &UdpSocket) -> usize {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let n = batch.receive(socket);
            if n > 0 || Instant::now() > deadline {
                return n;
            }
            std::thread::yield_now();
        }
    }

    #[test]
    fn messages_arrive_as_they_were_sent() {
        let (a, b) = pair();
        let to = b.local_addr().unwrap();
        let arena: Vec<u8> = (0..=255).cycle().take(3000).collect();
        let mut out = SendBatch::new();
        out.add(&SendMessage { to, bytes: 0..100, segment: None });
        out.add(&SendMessage { to, bytes: 100..1350, segment: Some(500) });
        assert_eq!(out.send(&a, &arena, 0).unwrap(), 2);
        let mut got = Vec::new();
        let mut batch = ReceiveBatch::new();
        while got.len() < 4 {
            let n = receive(&mut batch, &b);
            assert_ne!(n, 0, "only {got:?} came");
            for message in (0..n).map(|i| batch.message(i).unwrap()) {
                assert_eq!(message.from, Some("127.0.0.1".parse().unwrap()));
                got.extend(message.bytes.chunks(message.segment).map(<[u8]>::to_vec));
            }
        }
        let expected = [&arena[..100], &arena[100..600], &arena[600..1100], &arena[1100..1350]];
        assert_eq!(got, expected);
        assert_eq!(batch.receive(&b), 0);
        assert!(batch.message(0).is_none());
    }

    #[test]
    fn a_refused_message_says_so_and_the_next_can_be_sent() {
        let (a, b) = pair();
        let mut out = SendBatch::new();
        let nowhere = "[2001:db8::1]:9".parse().unwrap();
        out.add(&SendMessage { to: nowhere, bytes: 0..10, segment: None });
        out.add(&SendMessage { to: b.local_addr().unwrap(), bytes: 0..10, segment: None });
        assert!(out.send(&a, &[1; 10], 0).is_err());
        assert_eq!(out.send(&a, &[1; 10], 1).unwrap(), 1);
        out.clear();
        assert_eq!(out.count(), 0);
    }

    #[test]
    fn addresses_of_both_families() {
        // SAFETY: zeroes are a valid Name.
        let mut name: Name = unsafe { std::mem::zeroed() };
        for text in ["192.0.2.7:4789", "[2001:db8::7]:4789"] {
            let address: SocketAddr = text.parse().unwrap();
            let len = encode(address, &mut name);
            assert_eq!(decode(&name, len), Some(address.ip()));
            assert_eq!(decode(&name, 2), None);
        }
    }
}
