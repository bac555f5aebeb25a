//! Processes that outlive the agent, told apart from others that got their number later.
//!
//! Invariant: nothing is signalled or waited for by number alone: a [`Watched`] holds a descriptor of the very process whose
//! number and start time were written down.

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use std::io;
use std::os::fd::OwnedFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Which process, for as long as the server is not restarted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Its number.
    pub pid: i32,
    /// When it was started, in the kernel's ticks since boot.
    pub start: u64,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// With this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// It was not this process's child, so nobody says.
    Unknown,
}

impl Identity {
    /// The identity of the process that has this number now, if one does and it lives.
    #[must_use]
    pub fn of(pid: i32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // Behind the name, which is in parentheses and may hold any others, the state comes first and the start 20th.
        let fields = stat.rsplit_once(") ")?.1;
        let mut fields = fields.split(' ');
        let lives = !matches!(fields.next(), Some("Z" | "X"));
        let start = fields.nth(18)?.parse().ok()?;
        lives.then_some(Self { pid, start })
    }
}

/// Lets no descriptor but the standard three pass to the next program: whoever started the agent may have left some open.
///
/// # Errors
/// The kernel is older than 5.11.
pub fn close_inherited() -> io::Result<()> {
    // SAFETY: a system call that marks descriptors and touches no memory.
    match unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as i32) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The server's boot: numbers and start times mean something within one only.
///
/// # Errors
/// The kernel does not say.
pub fn boot_id() -> io::Result<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(text.trim().to_owned())
}

/// A process that is watched.
#[derive(Debug)]
pub struct Watched {
    identity: Identity,
    fd: AsyncFd<OwnedFd>,
}

impl Watched {
    /// Watches the process that `identity` names; `None` if it is gone. Must be called inside a runtime.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn new(identity: Identity) -> io::Result<Option<Self>> {
        let Some(pid) = Pid::from_raw(identity.pid) else { return Ok(None) };
        let fd = match pidfd_open(pid, PidfdFlags::empty()) {
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            opened => opened?,
        };
        // Looked at after the descriptor is held, so that the number cannot have changed hands in between.
        if Identity::of(identity.pid) != Some(identity) {
            return Ok(None);
        }
        // SAFETY: the descriptor is owned by the `AsyncFd`, which alone closes it.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
        Ok(Some(Self { identity, fd }))
    }

    /// Which process it is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Ends the process at once. That it has ended already is no error.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(self.fd.get_ref(), Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Done when the process has ended, all its threads and its descriptors gone.
    pub async fn ended(&self) -> Exit {
        // The descriptor never errs: it is readable once the process has ended.
        let _ = self.fd.readable().await;
        let waited = waitid(
            WaitId::PidFd(std::os::fd::AsFd::as_fd(self.fd.get_ref())),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        );
        match waited {
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => Exit::Code(code),
                (None, Some(signal)) => Exit::Signal(signal),
                (None, None) => Exit::Unknown,
            },
            Ok(None) | Err(_) => Exit::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[tokio::test(flavor = "current_thread")]
    async fn a_process_is_known_by_number_and_start_and_its_end_is_told() {
        #[allow(clippy::zombie_processes, reason = "what is tested waits for it")]
        let child = Command::new("sleep").arg("60").spawn().unwrap();
        let identity = Identity::of(child.id().cast_signed()).unwrap();
        let other = Identity { start: identity.start + 1, ..identity };
        assert!(Watched::new(other).unwrap().is_none(), "the number alone is nothing");
        let watched = Watched::new(identity).unwrap().unwrap();
        watched.kill().unwrap();
        assert_eq!(watched.ended().await, Exit::Signal(9));
        watched.kill().unwrap();
        assert!(Identity::of(identity.pid).is_none());
        assert!(Watched::new(identity).unwrap().is_none());
        assert_eq!(boot_id().unwrap().len(), 36);
    }
}
