//! A UNIX socket of a server, brought to this machine: whoever connects here is connected there.
//!
//! So a client written for a socket's path, as the control clients of `bixi-api` are, works on a server of the rack.

use crate::error::{Attempt, Result};
use crate::plan::Places;
use crate::server::{Server, copy_promptly};
use crate::socket;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

static NEXT: AtomicU64 = AtomicU64::new(0);

/// A forwarded socket; it goes when this is dropped.
#[derive(Debug)]
pub struct Forward {
    path: PathBuf,
    file: PathBuf,
    _folder: OwnedFd,
    gone: Arc<AtomicBool>,
}

impl Forward {
    pub(crate) fn new(server: &Server, state: &Path, remote: &Path) -> Result<Self> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = Places::new(state).folder;
        let name = format!("forward-{}-{number}.sock", std::process::id());
        let file = folder.join(&name);
        let wrong = || format!("forward {}", remote.display());
        let listener = socket::listen(&file).attempt(wrong)?;
        let handle = socket::open_folder(&folder).attempt(wrong)?;
        let path = socket::through(&handle).join(&name);
        let gone = Arc::new(AtomicBool::new(false));
        let (ended, server, remote) = (gone.clone(), server.clone(), remote.to_owned());
        std::thread::spawn(move || {
            for local in listener.incoming().flatten() {
                if ended.load(Ordering::SeqCst) {
                    break;
                }
                let (server, remote) = (server.clone(), remote.clone());
                // Whoever connected sees the connection end if the server's socket is not there.
                std::thread::spawn(move || carry(&server, &remote, local));
            }
        });
        Ok(Self { path, file, _folder: handle, gone })
    }

    /// Where to connect, in this process only.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::SeqCst);
        // One last connection wakes the listening thread.
        let _ = socket::connect(&self.file);
        let _ = std::fs::remove_file(&self.file);
    }
}

fn carry(server: &Server, remote: &Path, mut local: UnixStream) {
    let Ok(mut far) = server.connect(remote) else { return };
    let (Ok(mut from), Ok(mut to)) = (local.try_clone(), far.try_clone()) else { return };
    let other = std::thread::spawn(move || {
        let _ = copy_promptly(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
    let _ = copy_promptly(&mut far, &mut local);
    let _ = local.shutdown(Shutdown::Both);
    let _ = other.join();
}
