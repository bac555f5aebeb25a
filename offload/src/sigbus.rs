//! Containment of SIGBUS: a front end that takes shared memory away breaks its own session and nothing else.
//!
//! A mapping of somebody else's file is registered here for as long as it exists. When an access inside it faults
//! with SIGBUS (the file was truncated, a huge page cannot be had, memory failed), the handler puts anonymous zero
//! pages over the whole mapping, marks the session's [`Watch`] broken and writes to the process's [`alarm`]; the
//! interrupted access then goes on and reads zeroes. A fault anywhere else takes the default action.
//!
//! ```text
//! slot:  free ──claim──► changing ──► live ──fault──► live, healed
//!          ▲                │ (odd)    │ (even, range not empty)
//!          └────changing◄───┴──────────┘ unregister
//! ```
//!
//! Invariants: the handler takes no lock, allocates nothing and calls nothing but `mmap`, `write`, `sigaction` and
//! `raise`. Chunks of slots are only ever added, never freed, so that it can walk them at any time. A slot that is
//! changing belongs to a mapping that nobody uses yet or any more, so the handler may skip it.
//!
//! Callers: [`crate::memory::Mapping`] registers; the card's runtime listens to [`alarm`] and ends broken sessions.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{
    AtomicBool, AtomicI32, AtomicPtr, AtomicU32, AtomicUsize, Ordering, fence,
};
use std::sync::{Arc, OnceLock};

/// Whether one session's memory is still whole.
#[derive(Debug, Default)]
pub struct Watch {
    broken: AtomicBool,
}

impl Watch {
    /// A watch over memory that is whole.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Whether an access faulted: the session must end.
    #[inline]
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }
}

/// An eventfd that is written to whenever a watch breaks. One per process: whoever waits for it does so edge-triggered
/// and never reads it, so that all who wait are woken.
///
/// # Errors
/// The handler cannot be installed.
pub fn alarm() -> io::Result<BorrowedFd<'static>> {
    install().map(|alarm| alarm.as_fd())
}

/// Keeps a range registered.
#[derive(Debug)]
pub(crate) struct Guard {
    slot: &'static Slot,
    /// What the slot points to.
    _watch: Arc<Watch>,
}

/// Registers `range`, whole pages of one mapping that nobody uses yet, until the guard is dropped.
pub(crate) fn guard(range: Range<usize>, watch: Arc<Watch>) -> io::Result<Guard> {
    install()?;
    let slot = claim();
    slot.change(range, Arc::as_ptr(&watch).cast_mut());
    Ok(Guard { slot, _watch: watch })
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.slot.change(0..0, std::ptr::null_mut());
        self.slot.taken.store(false, Ordering::Release);
    }
}

/// One registered range.
#[derive(Debug)]
struct Slot {
    taken: AtomicBool,
    /// Odd while the fields below change.
    version: AtomicU32,
    start: AtomicUsize,
    end: AtomicUsize,
    watch: AtomicPtr<Watch>,
}

impl Slot {
    const fn free() -> Self {
        Self {
            taken: AtomicBool::new(false),
            version: AtomicU32::new(0),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            watch: AtomicPtr::new(std::ptr::null_mut()),
        }
    }

    fn change(&self, range: Range<usize>, watch: *mut Watch) {
        self.version.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.start.store(range.start, Ordering::Relaxed);
        self.end.store(range.end, Ordering::Relaxed);
        self.watch.store(watch, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.version.fetch_add(1, Ordering::Relaxed);
    }

    /// The range and watch, if `addr` is in it. Called by the handler.
    fn find(&self, addr: usize) -> Option<(Range<usize>, *mut Watch)> {
        let before = self.version.load(Ordering::SeqCst);
        let range = self.start.load(Ordering::SeqCst)..self.end.load(Ordering::SeqCst);
        let watch = self.watch.load(Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let whole = before.is_multiple_of(2) && self.version.load(Ordering::SeqCst) == before;
        (whole && range.contains(&addr)).then_some((range, watch))
    }
}

const CHUNK: usize = 64;

/// Some slots, and where there are more.
#[derive(Debug)]
struct Chunk {
    slots: [Slot; CHUNK],
    next: AtomicPtr<Chunk>,
}

impl Chunk {
    const fn new() -> Self {
        Self { slots: [const { Slot::free() }; CHUNK], next: AtomicPtr::new(std::ptr::null_mut()) }
    }

    fn next(&self) -> Option<&'static Chunk> {
        // SAFETY: chunks behind the first are leaked boxes, never freed; null is none.
        unsafe { self.next.load(Ordering::Acquire).as_ref() }
    }
}

static FIRST: Chunk = Chunk::new();

/// Takes a free slot, from a new chunk if need be.
fn claim() -> &'static Slot {
    let mut chunk: &'static Chunk = &FIRST;
    loop {
        for slot in &chunk.slots {
            if !slot.taken.swap(true, Ordering::Acquire) {
                return slot;
            }
        }
        if let Some(next) = chunk.next() {
            chunk = next;
            continue;
        }
        let fresh = Box::into_raw(Box::new(Chunk::new()));
        let null = std::ptr::null_mut();
        if chunk.next.compare_exchange(null, fresh, Ordering::AcqRel, Ordering::Acquire).is_err() {
            // SAFETY: made above, and nobody else has seen it.
            drop(unsafe { Box::from_raw(fresh) });
        }
    }
}

/// The alarm's descriptor for the handler; -1 before the handler is installed.
static ALARM: AtomicI32 = AtomicI32::new(-1);

/// Installs the handler, once per process, and makes the alarm.
fn install() -> io::Result<&'static OwnedFd> {
    static INSTALLED: OnceLock<Result<OwnedFd, i32>> = OnceLock::new();
    let made = INSTALLED.get_or_init(|| {
        use rustix::event::{EventfdFlags, eventfd};
        let alarm = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| e.raw_os_error())?;
        ALARM.store(alarm.as_raw_fd(), Ordering::SeqCst);
        // SAFETY: an all-zero sigaction is a valid value: no flags, an empty mask, the default handler.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: `handler` has the signature that SA_SIGINFO asks for and is async-signal-safe.
        if unsafe { libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL));
        }
        Ok(alarm)
    });
    made.as_ref().map_err(|code| io::Error::from_raw_os_error(*code))
}

extern "C" fn handler(_signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: errno of this thread, which the interrupted code may be about to read.
    let errno = unsafe { *libc::__errno_location() };
    // SAFETY: the kernel passes a valid siginfo, and for faults (positive codes) si_addr is set.
    let (fault, addr) = unsafe { ((*info).si_code > 0, (*info).si_addr() as usize) };
    if !fault || !heal(addr) {
        default_action();
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// Puts zero pages over the mapping that has `addr`, if one is registered.
fn heal(addr: usize) -> bool {
    let mut chunk: &'static Chunk = &FIRST;
    loop {
        for slot in &chunk.slots {
            let Some((range, watch)) = slot.find(addr) else { continue };
            // SAFETY: the range is one whole live mapping (its owner registers it before use and forgets it after), so
            // replacing it takes nothing from anybody else. The access that faulted is to this mapping, so its owner
            // is alive and with it the watch.
            unsafe {
                let healed = libc::mmap(
                    range.start as *mut libc::c_void,
                    range.end - range.start,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
                    -1,
                    0,
                );
                if healed == libc::MAP_FAILED {
                    return false;
                }
                (*watch).broken.store(true, Ordering::SeqCst);
                let one = 1u64;
                libc::write(ALARM.load(Ordering::SeqCst), (&raw const one).cast(), 8);
            }
            return true;
        }
        match chunk.next() {
            Some(next) => chunk = next,
            None => return false,
        }
    }
}

/// A fault that is nobody's: the process dies by it, as it would without this module.
fn default_action() {
    // SAFETY: both calls are async-signal-safe; the signal raised here is delivered when the handler returns.
    unsafe {
        libc::signal(libc::SIGBUS, libc::SIG_DFL);
        libc::raise(libc::SIGBUS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{GuestMemory, MappingOptions, RegionDescriptor};
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    const PAGES: u64 = 4;

    fn truncatable() -> (OwnedFd, Arc<GuestMemory>) {
        let file = memfd_create("truncatable", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, PAGES * 4096).unwrap();
        let region = RegionDescriptor {
            guest_addr: 0x10_0000,
            size: PAGES * 4096,
            user_addr: 0,
            mmap_offset: 0,
        };
        let options = MappingOptions { require_sealed: false, watch: Watch::new() };
        let memory = GuestMemory::map(&[(region, file.as_fd())], &options).unwrap();
        (file, memory)
    }

    #[test]
    fn a_file_that_shrinks_breaks_its_own_memory_only() {
        let (file, memory) = truncatable();
        let (_other_file, other) = truncatable();
        let bytes = memory.get(0x10_0000, PAGES * 4096).unwrap();
        assert!(bytes.write(0, b"here") && bytes.write(2 * 4096, b"there"));
        assert!(other.get(0x10_0000, 8).unwrap().write(0, b"other"));
        ftruncate(&file, 4096).unwrap();
        assert!(!memory.is_broken());
        let mut read = [1; 5];
        assert!(bytes.read(2 * 4096, &mut read));
        assert_eq!(read, [0; 5]);
        assert!(memory.is_broken());
        // Whatever comes after reads and writes zero pages.
        assert!(bytes.write(3 * 4096, b"nobody sees this"));
        assert!(!other.is_broken());
        let mut read = [0; 5];
        assert!(other.get(0x10_0000, 8).unwrap().read(0, &mut read));
        assert_eq!(&read, b"other");
    }

    #[test]
    fn a_break_raises_the_alarm() {
        use rustix::event::{Timespec, epoll};
        let waiter = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&waiter, alarm().unwrap(), epoll::EventData::new_u64(0), flags).unwrap();
        let (file, memory) = truncatable();
        let mut events = [epoll::Event { flags, data: epoll::EventData::new_u64(0) }; 1];
        // Breaks of other tests have been told by now, or are told as well.
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let _ = epoll::wait(&waiter, &mut events, Some(&now)).unwrap();
        ftruncate(&file, 0).unwrap();
        assert_eq!(memory.get(0x10_0000, 1).unwrap().read_array(0), Some([0]));
        assert_eq!(epoll::wait(&waiter, &mut events, Some(&now)).unwrap(), 1);
    }

    #[test]
    fn slots_are_used_again_and_grow_beyond_one_chunk() {
        let many: Vec<_> = (0..3 * CHUNK).map(|_| truncatable()).collect();
        for (file, memory) in &many {
            ftruncate(file, 0).unwrap();
            assert!(!memory.is_broken());
            assert_eq!(memory.get(0x10_0000, 1).unwrap().read_array(0), Some([0]));
            assert!(memory.is_broken());
        }
    }

    /// Runs `test` of this binary again with `variable` set, and returns how that process ended.
    fn rerun(test: &str, variable: &str) -> std::process::ExitStatus {
        std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(variable, "1")
            .stderr(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap()
    }

    #[test]
    fn a_fault_elsewhere_still_kills_the_process() {
        use std::os::unix::process::ExitStatusExt;
        const VARIABLE: &str = "BIXI_TEST_STRAY_SIGBUS";
        if std::env::var_os(VARIABLE).is_some() {
            let (_file, _memory) = truncatable();
            let file = memfd_create("stray", MemfdFlags::CLOEXEC).unwrap();
            ftruncate(&file, 4096).unwrap();
            // SAFETY: a fresh mapping, of which one byte is read after its file is empty: the fault is the test.
            unsafe {
                let at = rustix::mm::mmap(
                    std::ptr::null_mut(),
                    4096,
                    rustix::mm::ProtFlags::READ,
                    rustix::mm::MapFlags::SHARED,
                    &file,
                    0,
                )
                .unwrap();
                ftruncate(&file, 0).unwrap();
                std::hint::black_box(at.cast::<u8>().read_volatile());
            }
            std::process::exit(0);
        }
        let name = "sigbus::tests::a_fault_elsewhere_still_kills_the_process";
        assert_eq!(rerun(name, VARIABLE).signal(), Some(libc::SIGBUS));
    }
}
