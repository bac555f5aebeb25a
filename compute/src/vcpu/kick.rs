//! How a vCPU is called out of the guest: a signal whose handler sets `immediate_exit`.
//!
//! A signal alone could be lost between the thread's last look at its orders and `KVM_RUN`. The handler runs on the
//! vCPU's own thread and writes the flag that makes the next, or the present, `KVM_RUN` return, so that whenever the
//! signal arrives, the thread comes to look.

use kvm_bindings::kvm_run;
use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::OnceLock;

thread_local! {
    /// The `kvm_run` page of the vCPU that this thread runs, or null. Initialized as a constant and without destructor,
    /// so that the signal handler reads it without allocating.
    static RUN: Cell<*mut kvm_run> = const { Cell::new(ptr::null_mut()) };
}

fn signal() -> i32 {
    libc::SIGRTMIN()
}

extern "C" fn on_kick(_: i32) {
    let run = RUN.get();
    if !run.is_null() {
        // SAFETY: `RUN` holds the kernel's page of a vCPU that this very thread keeps mapped until it clears `RUN`
        // (see `Registration`). The byte is shared with the kernel; a volatile store is all the access it needs.
        unsafe { ptr::addr_of_mut!((*run).immediate_exit).write_volatile(1) };
    }
}

/// Installs the handler, once per process and before any thread that may be kicked.
pub(super) fn install() -> io::Result<()> {
    static DONE: OnceLock<Option<i32>> = OnceLock::new();
    let failed = DONE.get_or_init(|| {
        // SAFETY: an all-zero sigaction is a valid value; every field that matters is set below.
        let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        action.sa_sigaction = on_kick as extern "C" fn(i32) as usize;
        // SAFETY: the handler is async-signal-safe (it reads a thread-local constant cell and stores one byte), and the
        // pointers are to live values.
        let result = unsafe { libc::sigaction(signal(), &action, ptr::null_mut()) };
        (result != 0).then(|| io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL))
    });
    failed.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
}

/// This thread runs the vCPU of that page and takes kicks, until dropped.
#[derive(Debug)]
pub(super) struct Registration(());

impl Registration {
    /// Makes the calling thread the target of kicks for `run`, blocks every other signal on it, and lets kicks in.
    ///
    /// # Safety
    /// `run` must stay mapped until the registration is dropped, which must happen on this thread.
    pub(super) unsafe fn new(run: *mut kvm_run) -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: `set` is initialized by sigfillset before it is read.
        let result = unsafe {
            libc::sigfillset(set.as_mut_ptr());
            libc::sigdelset(set.as_mut_ptr(), signal());
            libc::pthread_sigmask(libc::SIG_SETMASK, set.as_ptr(), ptr::null_mut())
        };
        if result != 0 {
            return Err(io::Error::from_raw_os_error(result));
        }
        RUN.set(run);
        Ok(Self(()))
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        RUN.set(ptr::null_mut());
    }
}

/// Kicks the thread. It must not have been joined, and [`install`] must have been called.
pub(super) fn kick<T>(thread: &std::thread::JoinHandle<T>) {
    use std::os::unix::thread::JoinHandleExt;
    // SAFETY: the handle is not joined, so the thread id is valid even if the thread has ended. The handler is installed,
    // so the signal does nothing to a thread that runs no vCPU.
    unsafe { libc::pthread_kill(thread.as_pthread_t(), signal()) };
}
