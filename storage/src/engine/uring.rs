//! One worker's io_uring.
//!
//! Completions are found by polling while the worker is busy: a look at shared memory says whether the kernel has
//! something, and only then a system call runs it. When the worker is about to sleep, [`Uring::arm`] lets an eventfd
//! announce the next completion; the worker's epoll waits on it.
//!
//! Invariants: made and used on one thread (SINGLE_ISSUER); every operation is pushed by a slot that has no other
//! one under way, so that neither ring can overflow; an operation that `submit` could not hand over stays in the ring
//! and is handed over later, its buffers untouched until its completion came.

use io_uring::squeue::Entry;
use io_uring::{IoUring, cqueue, types};
use rustix::event::EventfdFlags;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{Ordering, fence};

/// Files that may be registered at once; a disk beyond is reached by its plain descriptor.
const FILES: u32 = 256;

/// Threads that the kernel may use for what it cannot do without waiting: flushes, holes, buffered I/O.
const WAITERS: u32 = 16;

/// The operation's place in a file table, or its descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileRef {
    /// Index in the table of registered files.
    Registered(u32),
    /// Plain descriptor.
    Plain(RawFd),
}

/// One worker's ring.
pub struct Uring {
    /// Not dropped while operations are under way: their buffers belong to guests and to this worker's memory.
    ring: ManuallyDrop<IoUring>,
    event: OwnedFd,
    /// Operations pushed whose completion was not reaped yet.
    in_flight: usize,
    /// Whether the eventfd announces completions now.
    armed: bool,
    /// Which places of the file table are taken; empty where there is no table.
    files: Vec<bool>,
    /// Whether the last submission was refused, so that a failure is told once and not for ever.
    refused: bool,
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uring").field("in_flight", &self.in_flight).finish_non_exhaustive()
    }
}

impl Uring {
    /// A ring for up to `operations` at once, on this thread.
    ///
    /// # Errors
    /// The kernel refuses; `kernel.io_uring_disabled` may be why.
    pub fn new(operations: u32) -> io::Result<Self> {
        let ring = build(operations).map_err(|e| {
            io::Error::new(
                e.kind(),
                format!("io_uring is not available ({e}): look at sysctl kernel.io_uring_disabled"),
            )
        })?;
        let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        ring.submitter().register_eventfd(event.as_raw_fd())?;
        // Optional, each: a kernel without them works, only less well.
        let _ = ring.submitter().register_iowq_max_workers(&mut [WAITERS, WAITERS]);
        let table = ring.submitter().register_files_sparse(FILES).is_ok();
        let files = vec![false; if table { FILES as usize } else { 0 }];
        let ring = ManuallyDrop::new(ring);
        let mut ring = Self { ring, event, in_flight: 0, armed: false, files, refused: false };
        ring.ring.completion().disable_eventfd();
        Ok(ring)
    }

    /// Lets the kernel's helper threads run on these processors only, so that they do not fight with polling workers.
    pub fn keep_waiters_on(&self, processors: &[usize]) {
        // SAFETY: an all-zero cpu_set_t is the empty set.
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        for &processor in processors.iter().filter(|p| **p < libc::CPU_SETSIZE as usize) {
            // SAFETY: the index is inside the set.
            unsafe { libc::CPU_SET(processor, &mut set) };
        }
        if !processors.is_empty() {
            let _ = self.ring.submitter().register_iowq_aff(&set);
        }
    }

    /// Registers a file; where that cannot be, its plain descriptor does the same, slower.
    pub fn add_file(&mut self, descriptor: RawFd) -> FileRef {
        let Some(free) = self.files.iter().position(|taken| !taken) else {
            return FileRef::Plain(descriptor);
        };
        match self.ring.submitter().register_files_update(free as u32, &[descriptor]) {
            Ok(_) => {
                self.files[free] = true;
                FileRef::Registered(free as u32)
            }
            Err(_) => FileRef::Plain(descriptor),
        }
    }

    /// Forgets a file that no operation under way uses.
    pub fn remove_file(&mut self, file: FileRef) {
        if let FileRef::Registered(index) = file
            && self.ring.submitter().register_files_update(index, &[-1]).is_ok()
        {
            self.files[index as usize] = false;
        }
    }

    /// What becomes readable when a completion came while armed.
    pub fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Operations whose completion was not reaped yet.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Queues an operation; [`Uring::turn`] hands it to the kernel.
    ///
    /// # Safety
    /// All that the operation points to stays valid and in place until its completion was reaped.
    #[inline]
    pub unsafe fn push(&mut self, entry: &Entry) {
        loop {
            // SAFETY: promised by the caller.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                self.in_flight += 1;
                return;
            }
            // Full only after a submission was refused for want of memory: try again until there is some.
            self.submit();
        }
    }

    /// Hands over what was pushed and lets the kernel finish what it has, if there is either.
    #[inline]
    pub fn turn(&mut self) {
        if self.armed {
            self.disarm();
        }
        let submission = self.ring.submission();
        if !submission.is_empty() || submission.taskrun() || submission.cq_overflow() {
            drop(submission);
            self.submit();
        }
    }

    fn submit(&mut self) {
        // What is not taken stays in the ring; the next turn tries again.
        let refusal = self.ring.submitter().submit().err();
        let refusal = refusal.filter(|e| e.raw_os_error() != Some(libc::EINTR));
        if let Some(error) = &refusal
            && !self.refused
        {
            tracing::warn!(%error, "io_uring does not take operations now; trying again");
        }
        self.refused = refusal.is_some();
    }

    /// The next completion: its user data and result.
    #[inline]
    pub fn reap(&mut self) -> Option<(u64, i32)> {
        let entry: cqueue::Entry = self.ring.completion().next()?;
        self.in_flight = self.in_flight.saturating_sub(1);
        Some((entry.user_data(), entry.result()))
    }

    /// Lets the eventfd announce the next completion. True if there is something to do now.
    pub fn arm(&mut self) -> bool {
        if self.in_flight == 0 {
            return false;
        }
        self.armed = true;
        let completion = self.ring.completion();
        completion.enable_eventfd();
        // The kernel adds its work first and looks at the flag then; we do it the other way round.
        fence(Ordering::SeqCst);
        let completed = !completion.is_empty();
        drop(completion);
        let submission = self.ring.submission();
        let waiting = !submission.is_empty() || submission.taskrun() || submission.cq_overflow();
        drop(submission);
        if completed || waiting {
            self.disarm();
        }
        completed || waiting
    }

    fn disarm(&mut self) {
        self.armed = false;
        self.ring.completion().disable_eventfd();
        // Nothing to read is as good.
        let _ = rustix::io::read(&self.event, &mut [0u8; 8]);
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        if self.in_flight == 0 {
            // SAFETY: dropped once, here, and not used after.
            unsafe { ManuallyDrop::drop(&mut self.ring) };
        }
        // Otherwise the ring stays until the process ends: closing it would not stop the operations under way.
    }
}

fn build(operations: u32) -> io::Result<IoUring> {
    let entries = operations.next_power_of_two();
    let newest = IoUring::builder()
        .setup_cqsize(entries * 2)
        .setup_submit_all()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .build(entries);
    let older = || {
        IoUring::builder()
            .setup_cqsize(entries * 2)
            .setup_coop_taskrun()
            .setup_taskrun_flag()
            .build(entries)
    };
    let oldest = || IoUring::builder().setup_cqsize(entries * 2).build(entries);
    newest.or_else(|_| older()).or_else(|_| oldest())
}

/// Makes an operation for a registered or a plain file.
macro_rules! operation {
    ($file:expr, |$fd:ident| $operation:expr) => {
        match $file {
            $crate::engine::uring::FileRef::Registered(index) => {
                let $fd = io_uring::types::Fixed(index);
                $operation
            }
            $crate::engine::uring::FileRef::Plain(descriptor) => {
                let $fd = io_uring::types::Fd(descriptor);
                $operation
            }
        }
    };
}
pub(crate) use operation;

/// `fdatasync`.
pub fn flush(file: FileRef) -> Entry {
    let flags = types::FsyncFlags::DATASYNC;
    operation!(file, |fd| io_uring::opcode::Fsync::new(fd).flags(flags).build())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use std::os::unix::fs::FileExt;

    fn read(ring: &mut Uring, file: FileRef, iov: &libc::iovec) {
        let entry = operation!(file, |fd| io_uring::opcode::Readv::new(fd, iov, 1).build());
        // SAFETY: the test keeps iov and its buffer until the completion came.
        unsafe { ring.push(&entry.user_data(7)) };
    }

    fn wait(ring: &Uring) -> bool {
        let limit = Timespec { tv_sec: 10, tv_nsec: 0 };
        poll(&mut [PollFd::new(&ring.event(), PollFlags::IN)], Some(&limit)).unwrap() == 1
    }

    #[test]
    fn a_completion_wakes_a_sleeper_and_a_busy_one_sees_it() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"content", 0).unwrap();
        let mut ring = Uring::new(8).unwrap();
        let registered = ring.add_file(file.as_raw_fd());
        assert!(matches!(registered, FileRef::Registered(_)));
        for file in [registered, FileRef::Plain(file.as_raw_fd())] {
            for sleep in [true, false] {
                let mut buffer = [0u8; 7];
                let iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: 7 };
                assert!(!ring.arm(), "nothing under way: nothing to wait for");
                read(&mut ring, file, &iov);
                assert_eq!(ring.in_flight(), 1);
                assert!(ring.arm(), "not handed over yet");
                ring.turn();
                let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
                let result = loop {
                    if let Some(result) = ring.reap() {
                        break result;
                    }
                    if sleep && !ring.arm() {
                        assert!(wait(&ring));
                    }
                    ring.turn();
                    assert!(std::time::Instant::now() < deadline);
                };
                assert_eq!(result, (7, 7));
                assert_eq!(&buffer, b"content");
                assert_eq!(ring.in_flight(), 0);
            }
        }
        ring.remove_file(registered);
        assert_eq!(ring.add_file(file.as_raw_fd()), registered, "its place is free again");
    }

    #[test]
    fn helper_threads_can_be_kept_off_a_processor() {
        let ring = Uring::new(8).unwrap();
        ring.keep_waiters_on(&[]);
        ring.keep_waiters_on(&[0, 1 << 20]);
    }
}
