//! The UDP sockets of the underlay.
//!
//! Invariants: every socket is non-blocking, closes on exec and forbids fragmentation; a sending socket receives nothing.

use rustix::net::sockopt;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};

/// Sending sockets: source ports for the network below to spread flows over.
pub const SENDERS: usize = 16;
/// Source ports are taken from here on: in the range RFC 7348 names, above the ports that Linux gives away by itself.
const FIRST_PORT: u16 = 61_000;
/// Bytes that may wait in the kernel, each way.
const BUFFER: usize = 8 << 20;

/// The sockets, made before the worker that owns them.
#[derive(Debug)]
pub struct Sockets {
    /// The tunnel end point.
    pub own: SocketAddr,
    /// Where datagrams arrive.
    pub listener: UdpSocket,
    /// What datagrams leave from.
    pub senders: Vec<UdpSocket>,
}

/// Why there is no underlay.
#[derive(Debug, thiserror::Error)]
pub enum UnderlayError {
    /// The end point cannot be bound.
    #[error("cannot bind the tunnel end point {own}: {}", hint(source))]
    Bind {
        /// The end point.
        own: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// A sending socket cannot be had.
    #[error("cannot open a socket to send from {own}")]
    Sender {
        /// The end point.
        own: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The address is none.
    #[error(
        "the tunnel end point {own} {why}: give --underlay an address of this server and a port, as in 192.0.2.1:4789"
    )]
    Address {
        /// The end point.
        own: SocketAddr,
        /// What is wrong.
        why: &'static str,
    },
}

fn hint(e: &io::Error) -> &'static str {
    match e.kind() {
        io::ErrorKind::AddrInUse => "another process has it",
        io::ErrorKind::AddrNotAvailable => "it is no address of this server",
        _ => "the kernel refuses",
    }
}

impl Sockets {
    /// Opens the sockets of the tunnel end point `own`.
    ///
    /// # Errors
    /// See [`UnderlayError`].
    pub fn open(own: SocketAddr) -> Result<Self, UnderlayError> {
        super::check_endpoint(own).map_err(|why| UnderlayError::Address { own, why })?;
        let bind = |source| UnderlayError::Bind { own, source };
        let listener = UdpSocket::bind(own).map_err(bind)?;
        prepare(&listener).map_err(bind)?;
        // Older kernels hand every datagram over by itself.
        let _ = set(&listener, libc::SOL_UDP, libc::UDP_GRO, 1);
        let senders =
            open_senders(own.ip()).map_err(|source| UnderlayError::Sender { own, source })?;
        Ok(Self { own, listener, senders })
    }
}

/// Binds sending sockets to the first free ports of the range.
fn open_senders(ip: IpAddr) -> io::Result<Vec<UdpSocket>> {
    let mut senders = Vec::with_capacity(SENDERS);
    let mut port = FIRST_PORT;
    while senders.len() < SENDERS {
        match UdpSocket::bind((ip, port)) {
            Ok(socket) => {
                prepare(&socket)?;
                receive_nothing(&socket)?;
                senders.push(socket);
            }
            Err(e) if e.kind() == io::ErrorKind::AddrInUse && port < u16::MAX => {}
            Err(e) => return Err(e),
        }
        port = port.saturating_add(1);
    }
    Ok(senders)
}

fn prepare(socket: &UdpSocket) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    // Beyond the system's limit only with the right to it; less room loses packets under bursts, and nothing else.
    let fd = socket.as_fd();
    if sockopt::set_socket_send_buffer_size_force(fd, BUFFER).is_err() {
        let _ = sockopt::set_socket_send_buffer_size(fd, BUFFER);
    }
    if sockopt::set_socket_recv_buffer_size_force(fd, BUFFER).is_err() {
        let _ = sockopt::set_socket_recv_buffer_size(fd, BUFFER);
    }
    // Don't Fragment on every datagram; one that is too big fails instead.
    if socket.local_addr()?.is_ipv4() {
        set(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO)
    } else {
        set(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO)
    }
}

fn set(socket: &UdpSocket, level: i32, name: i32, value: i32) -> io::Result<()> {
    let size = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the option's value is an i32 that lives through the call.
    let done = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), size)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Drops whatever arrives at a sending socket, in the kernel: nobody would read it.
fn receive_nothing(socket: &UdpSocket) -> io::Result<()> {
    // BPF_RET | BPF_K: accept 0 bytes.
    let mut program = [libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0 }];
    let filter = libc::sock_fprog { len: 1, filter: program.as_mut_ptr() };
    let size = size_of::<libc::sock_fprog>() as libc::socklen_t;
    let at: *const libc::sock_fprog = &filter;
    // SAFETY: the program lives through the call, which copies it.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            at.cast(),
            size,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
