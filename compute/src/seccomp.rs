//! System calls that the process may make: one filter for each kind of thread.
//!
//! The main thread gets its filter when every file that the configuration names is open and before anything is built, so
//! before any byte of a guest or a neighbour is read; each vCPU thread adds its own, narrower one. A thread's filters all apply, and a new thread inherits its maker's: the main
//! thread's list therefore contains the vCPUs' list ([`Kind::allowed`] sees to it). A call outside the list kills the
//! process; there is no handler that a guest could play with.
//!
//! Invariant: no allowed call is unused. The agent's tests trace a VM through its life and compare; of [`RARE`] calls,
//! which no test can bring about at will, each has its reason here.
//!
//! Called by the driver for the main thread and by `vcpu::thread` for the others.

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use std::collections::BTreeMap;
use std::sync::OnceLock;

/// What a call outside the list leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// The process is killed
    Kill,
    /// The kernel logs it, and it is done
    Log,
    /// There is no filter
    Off,
}

/// Which thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The one with the driver, the devices and the sockets.
    Main,
    /// One that runs a vCPU.
    Vcpu,
}

/// A filter could not be made or installed.
#[derive(Debug, thiserror::Error)]
#[error("cannot confine a thread to its system calls: use a kernel with seccomp, or --seccomp off")]
pub struct SeccompError(#[source] Box<dyn std::error::Error + Send + Sync>);

static MODE: OnceLock<Mode> = OnceLock::new();

/// What every vCPU thread needs.
const VCPU: &[(i64, &str)] = &[
    (libc::SYS_exit, "exit"),
    (libc::SYS_futex, "futex"),
    (libc::SYS_ioctl, "ioctl"),
    (libc::SYS_madvise, "madvise"),
    (libc::SYS_mmap, "mmap"),
    (libc::SYS_mprotect, "mprotect"),
    (libc::SYS_munmap, "munmap"),
    (libc::SYS_ppoll, "ppoll"),
    (libc::SYS_read, "read"),
    (libc::SYS_rt_sigprocmask, "rt_sigprocmask"),
    (libc::SYS_rt_sigreturn, "rt_sigreturn"),
    (libc::SYS_sched_yield, "sched_yield"),
    (libc::SYS_sigaltstack, "sigaltstack"),
    (libc::SYS_write, "write"),
];

/// What the main thread needs beyond that.
const MAIN: &[(i64, &str)] = &[
    (libc::SYS_accept4, "accept4"),
    (libc::SYS_brk, "brk"),
    (libc::SYS_clone3, "clone3"),
    (libc::SYS_close, "close"),
    (libc::SYS_connect, "connect"),
    (libc::SYS_epoll_create1, "epoll_create1"),
    (libc::SYS_epoll_ctl, "epoll_ctl"),
    (libc::SYS_epoll_wait, "epoll_wait"),
    (libc::SYS_eventfd2, "eventfd2"),
    (libc::SYS_exit_group, "exit_group"),
    (libc::SYS_fcntl, "fcntl"),
    (libc::SYS_fstat, "fstat"),
    (libc::SYS_fstatfs, "fstatfs"),
    (libc::SYS_getpid, "getpid"),
    (libc::SYS_getrandom, "getrandom"),
    (libc::SYS_gettid, "gettid"),
    (libc::SYS_lseek, "lseek"),
    (libc::SYS_mremap, "mremap"),
    (libc::SYS_openat, "openat"),
    (libc::SYS_prctl, "prctl"),
    (libc::SYS_pread64, "pread64"),
    (libc::SYS_recvfrom, "recvfrom"),
    (libc::SYS_recvmsg, "recvmsg"),
    (libc::SYS_rseq, "rseq"),
    (libc::SYS_rt_sigaction, "rt_sigaction"),
    (libc::SYS_sched_getaffinity, "sched_getaffinity"),
    (libc::SYS_seccomp, "seccomp"),
    (libc::SYS_sendmsg, "sendmsg"),
    (libc::SYS_sendto, "sendto"),
    (libc::SYS_set_robust_list, "set_robust_list"),
    (libc::SYS_shutdown, "shutdown"),
    (libc::SYS_socket, "socket"),
    (libc::SYS_socketpair, "socketpair"),
    (libc::SYS_statx, "statx"),
    (libc::SYS_tgkill, "tgkill"),
    (libc::SYS_unlink, "unlink"),
    (libc::SYS_writev, "writev"),
];

/// The `ioctl` requests for a terminal. None of them types anything, as `TIOCSTI` would.
const TERMINAL: [u64; 7] = [
    libc::TIOCGWINSZ,
    libc::TCGETS,
    libc::TCGETS2,
    libc::TCSETS,
    libc::TCSETS2,
    libc::TCSETSF,
    libc::TCSETSF2,
];

/// Calls that a life may do without, and why they are allowed: without a warning they would kill a VM one day.
pub const RARE: &[(&str, &str)] = &[
    ("brk", "the main thread's allocator, when it grows"),
    ("getrandom", "the entropy device, once a guest's driver asks it"),
    ("mmap", "a vCPU thread's allocator, when it grows"),
    ("mprotect", "a vCPU thread's allocator, when it grows"),
    ("mremap", "a large buffer that grows"),
    ("ppoll", "a vCPU thread, when a guest's driver programs a device"),
    ("read", "a vCPU thread, when a guest's driver programs a device"),
    ("sendto", "the handler of a signal, which wakes the thread that waits for one"),
    ("sched_yield", "a channel that two threads use in the same instant"),
];

impl Kind {
    /// The calls that a thread of this kind may make.
    pub fn allowed(self) -> impl Iterator<Item = (i64, &'static str)> {
        let more = match self {
            Self::Main => MAIN,
            Self::Vcpu => &[],
        };
        VCPU.iter().chain(more).copied()
    }

    /// The filter. Of `ioctl` only KVM's calls pass, and for the main thread `FIONBIO` and what makes a console's terminal raw
    /// and puts it back ([`TERMINAL`]); of `prctl` what a new thread needs before its own filter.
    fn program(self, otherwise: SeccompAction) -> Result<BpfProgram, seccompiler::BackendError> {
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
            self.allowed().map(|(number, _)| (number, Vec::new())).collect();
        let only = |argument, operator, value| {
            let length = SeccompCmpArgLen::Dword;
            let condition = SeccompCondition::new(argument, length, operator, value)?;
            SeccompRule::new(vec![condition])
        };
        let mut requests = vec![only(1, SeccompCmpOp::MaskedEq(0xff00), 0xae00)?];
        if self == Self::Main {
            for request in [libc::FIONBIO].into_iter().chain(TERMINAL) {
                requests.push(only(1, SeccompCmpOp::Eq, request)?);
            }
            let options = [libc::PR_SET_NAME, libc::PR_SET_NO_NEW_PRIVS];
            let options = options.map(|option| only(0, SeccompCmpOp::Eq, option as u64));
            rules.insert(libc::SYS_prctl, options.into_iter().collect::<Result<_, _>>()?);
        }
        rules.insert(libc::SYS_ioctl, requests);
        let arch = TargetArch::try_from(std::env::consts::ARCH)?;
        SeccompFilter::new(rules, otherwise, SeccompAction::Allow, arch)?.try_into()
    }
}

/// Says what filters do in this process; the first call counts. Unless called, there are none.
pub fn choose(mode: Mode) {
    MODE.get_or_init(|| mode);
}

/// Confines the calling thread for ever.
///
/// # Errors
/// The kernel refuses.
pub fn confine(kind: Kind) -> Result<(), SeccompError> {
    let otherwise = match MODE.get() {
        None | Some(Mode::Off) => return Ok(()),
        Some(Mode::Kill) => SeccompAction::KillProcess,
        Some(Mode::Log) => SeccompAction::Log,
    };
    let program = kind.program(otherwise).map_err(|e| SeccompError(e.into()))?;
    seccompiler::apply_filter(&program).map_err(|e| SeccompError(e.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_compile_and_the_main_threads_contains_the_vcpus() {
        for kind in [Kind::Main, Kind::Vcpu] {
            assert!(!kind.program(SeccompAction::KillProcess).unwrap().is_empty());
        }
        let main: Vec<_> = Kind::Main.allowed().collect();
        assert!(Kind::Vcpu.allowed().all(|call| main.contains(&call)));
        for (at, call) in main.iter().enumerate() {
            assert!(!main[at + 1..].contains(call), "{call:?} twice");
        }
    }
}
