//! The network stack of Linux as a port's guest: a TAP device in a network namespace, behind a front end of this process.

use crate::guest::Guest;
use crate::namespace::Cable;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// The stack of a namespace, which speaks through a port until this is dropped.
pub struct Tap {
    namespace: String,
    stop: Arc<AtomicBool>,
    pump: Option<JoinHandle<()>>,
}

impl Tap {
    /// Makes side `side` of the cable the guest: 02:00:00:00:00:01, 10.0.0.1/24, its gateway 10.0.0.254.
    pub fn new(cable: &Cable, side: usize, guest: Guest) -> Self {
        let tap = cable.within(side, open);
        for command in [
            "link set guest0 address 02:00:00:00:00:01 mtu 1450",
            "link set guest0 up",
            "addr add 10.0.0.1/24 dev guest0",
            "route add default via 10.0.0.254",
        ] {
            cable.ip(side, command).unwrap();
        }
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let pump = Some(std::thread::spawn(move || carry(tap, guest, &stopped)));
        Self { namespace: cable.side(side).to_owned(), stop, pump }
    }

    /// Runs a command in the guest; what it wrote.
    pub fn run(&self, command: &[&str]) -> (bool, String) {
        let namespace = &self.namespace;
        let output =
            Command::new("ip").args(["netns", "exec", namespace]).args(command).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.pump.take().map(JoinHandle::join);
    }
}

fn open() -> File {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .unwrap();
    let mut request = [0u8; 40];
    request[..6].copy_from_slice(b"guest0");
    let flags = (libc::IFF_TAP | libc::IFF_NO_PI) as u16;
    request[16..18].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, which has 40 bytes; `request` lives until it returns.
    let made = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, request.as_mut_ptr()) };
    assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
    file
}

/// Carries frames both ways until told to stop.
fn carry(mut tap: File, mut guest: Guest, stop: &AtomicBool) {
    let mut frame = [0; 2048];
    while !stop.load(Ordering::Relaxed) {
        let mut moved = false;
        while let Ok(length) = tap.read(&mut frame) {
            guest.send_plain(&frame[..length]);
            moved = true;
        }
        while let Some((_, frame)) = guest.try_receive(0) {
            // What the kernel does not take is lost, as on a wire.
            let _ = tap.write(&frame);
            moved = true;
        }
        if !moved {
            let mut wait = libc::pollfd { fd: tap.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one `pollfd`, which lives until the call returns.
            unsafe { libc::poll(&raw mut wait, 1, 1) };
        }
    }
}
