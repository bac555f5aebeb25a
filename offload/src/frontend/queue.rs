//! The driver's side of a split ring (virtio 1.2, 2.7), for whoever plays the guest: tests and load generators.
//!
//! ```text
//!   prepare ──► push ──► publish ──► kick        descriptors, then the available ring, then its index, then the eventfd
//!      ▲          ▲                   │
//!      │          └──── take ◄────────┘          the used ring
//!      └───── release ───┘
//! ```
//!
//! [`DriverQueue::add`] is *prepare* and *push*, and *take* then releases by itself. A load generator prepares its chains once
//! and only pushes and takes: no descriptor is written again, nothing is allocated, no system call is made while the device polls.
//!
//! Invariants: a head is in the available ring at most once at a time. What the device writes is checked: a head that is not in
//! flight is a [`BrokenDevice`], never an index out of bounds.

use super::arena::GuestArena;
use super::shell::RingFds;
use super::types::Ring;
use crate::memory::GuestMemory;
use crate::ring::{FEATURE_EVENT_IDX, SharedFd};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};
use std::time::Instant;

/// The chain goes on at `next`.
pub const DESC_NEXT: u16 = 1;
/// The device may write the buffer.
pub const DESC_WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub const DESC_INDIRECT: u16 = 4;

/// A buffer of a chain: its guest address and length, and whether the device writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Its guest address.
    pub addr: u64,
    /// Its size in bytes.
    pub len: u32,
    /// Whether the device writes it; else it reads.
    pub writable: bool,
}

impl Buffer {
    /// For the device to read.
    #[must_use]
    pub fn readable(addr: u64, len: u32) -> Self {
        Self { addr, len, writable: false }
    }

    /// For the device to write.
    #[must_use]
    pub fn writable(addr: u64, len: u32) -> Self {
        Self { addr, len, writable: true }
    }

    fn flags(&self) -> u16 {
        if self.writable { DESC_WRITE } else { 0 }
    }
}

/// A chain that the device has used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// The chain's head.
    pub head: u16,
    /// Bytes that the device says it wrote.
    pub len: u32,
}

/// The device used a chain that it was not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the device used the chain {0}, which was not in flight")]
pub struct BrokenDevice(pub u32);

/// What is known of a head.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Head {
    /// Not the head of a chain.
    #[default]
    Free,
    /// Written, and not in the available ring.
    Prepared,
    /// In flight.
    Pushed,
    /// In flight, and released when the device has used it.
    PushedOnce,
}

/// The driver's side of a split ring. See the module's text.
#[derive(Debug)]
pub struct DriverQueue {
    /// Keeps the areas below mapped.
    memory: Arc<GuestMemory>,
    ring: Ring,
    mask: u16,
    event_idx: bool,
    areas: Areas,
    heads: Vec<Head>,
    /// The descriptor behind each in its chain, or itself at the chain's end. Not read back from memory.
    next: Vec<u16>,
    free: Vec<u16>,
    /// Guest address of one indirect table per descriptor, if indirect chains are in use.
    tables: Option<u64>,
    avail_idx: u16,
    published: u16,
    used_idx: u16,
    fds: RingFds,
}

/// The most buffers of an indirect chain.
pub const TABLE_ENTRIES: u16 = 256;

/// The areas of the ring, mapped here.
#[derive(Debug, Clone, Copy)]
struct Areas {
    desc: *mut u8,
    avail: *mut u8,
    used: *mut u8,
}

// SAFETY: pointers into shared memory that any thread may access; all accesses are atomic.
unsafe impl Send for Areas {}

impl Areas {
    /// `avail` word `at`: 0 flags, 1 index, 2.. entries, and behind them used_event.
    #[inline(always)]
    fn avail(&self, at: usize) -> &AtomicU16 {
        // SAFETY: `at` is below size + 3, which `DriverQueue::new` allocated, aligned to 2 by the same.
        unsafe { AtomicU16::from_ptr(self.avail.cast::<u16>().add(at)) }
    }

    /// `used` half-word `at`: 0 flags, 1 index.
    #[inline(always)]
    fn used(&self, at: usize) -> &AtomicU16 {
        // SAFETY: `at` is below 4 * size + 3, which `DriverQueue::new` allocated, aligned to 4 by the same.
        unsafe { AtomicU16::from_ptr(self.used.cast::<u16>().add(at)) }
    }

    /// Entry `at` of the used ring: the head, then the length.
    #[inline(always)]
    fn element(&self, at: usize) -> (u32, u32) {
        // SAFETY: `at` is below size; the entries begin at byte 4 of an area aligned to 4.
        unsafe {
            let element = self.used.add(4).cast::<u32>().add(at * 2);
            let head = AtomicU32::from_ptr(element).load(Ordering::Relaxed);
            (head, AtomicU32::from_ptr(element.add(1)).load(Ordering::Relaxed))
        }
    }

    fn descriptor(&self, at: usize, addr: u64, len: u32, flags: u16, next: u16) {
        // SAFETY: `at` is below size in a table aligned to 16.
        unsafe { write_descriptor(self.desc.add(at * 16), addr, len, flags, next) }
    }
}

/// # Safety
/// 16 mapped bytes at `to`, aligned to 8.
unsafe fn write_descriptor(to: *mut u8, addr: u64, len: u32, flags: u16, next: u16) {
    let word = u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48;
    // SAFETY: promised by the caller.
    unsafe {
        AtomicU64::from_ptr(to.cast()).store(addr.to_le(), Ordering::Relaxed);
        AtomicU64::from_ptr(to.add(8).cast()).store(word.to_le(), Ordering::Relaxed);
    }
}

impl DriverQueue {
    /// A ring of `size` entries (a power of two) in fresh memory of `arena`, for the queue `index` of a device that
    /// has acknowledged `features`.
    ///
    /// # Errors
    /// No room in the arena, or no eventfds.
    pub fn new(arena: &mut GuestArena, index: u16, size: u16, features: u64) -> io::Result<Self> {
        if !size.is_power_of_two() || size > super::types::RING_SIZE_LIMIT {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let n = u64::from(size);
        // On lines of their own, so that the two sides do not share one by accident.
        let mut area = |len: u64| arena.allocate(len, 128).ok_or(io::ErrorKind::OutOfMemory);
        let (desc, avail, used) = (area(n * 16)?, area(n * 2 + 6)?, area(n * 8 + 6)?);
        let ring = Ring { index, size, desc, avail, used, base: 0, enabled: true };
        Self::at(Arc::clone(arena.memory()), ring, features)
    }

    /// A ring in memory that is zero there.
    fn at(memory: Arc<GuestMemory>, ring: Ring, features: u64) -> io::Result<Self> {
        let n = u64::from(ring.size);
        let find = |addr: u64, len: u64| {
            let bytes = memory.get(addr, len).ok_or(io::ErrorKind::InvalidInput)?;
            io::Result::Ok(bytes.as_ptr())
        };
        let areas = Areas {
            desc: find(ring.desc, n * 16)?,
            avail: find(ring.avail, n * 2 + 6)?,
            used: find(ring.used, n * 8 + 6)?,
        };
        let fresh = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map(Arc::new);
        let fds = RingFds { kick: fresh()?, call: fresh()? };
        Ok(Self {
            memory,
            mask: ring.size - 1,
            event_idx: features & FEATURE_EVENT_IDX != 0,
            areas,
            heads: vec![Head::Free; usize::from(ring.size)],
            next: (0..ring.size).collect(),
            free: (0..ring.size).rev().collect(),
            tables: None,
            avail_idx: 0,
            published: 0,
            used_idx: 0,
            fds,
            ring,
        })
    }

    /// The ring for an activation.
    #[must_use]
    pub fn ring(&self) -> Ring {
        self.ring
    }

    /// The same, enabled or not, to begin at `base`.
    #[must_use]
    pub fn ring_at(&self, base: u16, enabled: bool) -> Ring {
        Ring { base, enabled, ..self.ring }
    }

    /// Its eventfds.
    #[must_use]
    pub fn fds(&self) -> &RingFds {
        &self.fds
    }

    /// Another call eventfd; the old one is closed when the session has let go of it.
    ///
    /// # Errors
    /// No eventfd to be had.
    pub fn replace_call(&mut self) -> io::Result<SharedFd> {
        let fresh = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        self.fds.call = Arc::new(fresh);
        Ok(self.fds.call.clone())
    }

    /// The memory its buffers are in.
    #[must_use]
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Makes room for indirect chains of up to [`TABLE_ENTRIES`] buffers, one per descriptor.
    ///
    /// # Errors
    /// No room in the arena.
    pub fn make_tables(&mut self, arena: &mut GuestArena) -> io::Result<()> {
        let len = u64::from(self.ring.size) * u64::from(TABLE_ENTRIES) * 16;
        self.tables = Some(arena.allocate(len, 4096).ok_or(io::ErrorKind::OutOfMemory)?);
        Ok(())
    }

    /// Chains in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        usize::from(self.avail_idx.wrapping_sub(self.used_idx))
    }

    /// Descriptors that are free.
    #[must_use]
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Writes a chain into free descriptors and gives its head; `None` without enough of them or without a buffer.
    pub fn prepare(&mut self, buffers: &[Buffer]) -> Option<u16> {
        if buffers.is_empty() || buffers.len() > self.free.len() {
            return None;
        }
        let first = self.free.len() - buffers.len();
        let taken = self.free.split_off(first);
        // The stack's top first, so that a fresh queue counts upwards.
        let mut taken = taken.into_iter().rev().peekable();
        let head = *taken.peek()?;
        for buffer in buffers {
            let at = taken.next()?;
            let next = taken.peek().copied();
            let flags = buffer.flags() | if next.is_some() { DESC_NEXT } else { 0 };
            self.next[usize::from(at)] = next.unwrap_or(at);
            let at = usize::from(at);
            self.areas.descriptor(at, buffer.addr, buffer.len, flags, next.unwrap_or(0));
        }
        self.heads[usize::from(head)] = Head::Prepared;
        Some(head)
    }

    /// As [`DriverQueue::prepare`], as one descriptor that leads to a table. Needs [`DriverQueue::make_tables`].
    pub fn prepare_indirect(&mut self, buffers: &[Buffer]) -> Option<u16> {
        if buffers.is_empty() || buffers.len() > usize::from(TABLE_ENTRIES) {
            return None;
        }
        let head = *self.free.last()?;
        let len = u64::from(TABLE_ENTRIES) * 16;
        let table = self.tables? + u64::from(head) * len;
        let bytes = self.memory.get(table, len)?;
        for (at, buffer) in buffers.iter().enumerate() {
            let more = at + 1 < buffers.len();
            let flags = buffer.flags() | if more { DESC_NEXT } else { 0 };
            let next = if more { at as u16 + 1 } else { 0 };
            // SAFETY: the table is inside `bytes`, and aligned to 4096.
            unsafe {
                write_descriptor(bytes.as_ptr().add(at * 16), buffer.addr, buffer.len, flags, next);
            }
        }
        self.free.pop();
        self.areas.descriptor(
            usize::from(head),
            table,
            buffers.len() as u32 * 16,
            DESC_INDIRECT,
            0,
        );
        self.next[usize::from(head)] = head;
        self.heads[usize::from(head)] = Head::Prepared;
        Some(head)
    }

    /// Puts a prepared chain into the available ring. The device sees it after [`DriverQueue::publish`].
    ///
    /// # Panics
    /// The head is not prepared: a mistake of the caller, not of the device.
    #[inline]
    pub fn push(&mut self, head: u16) {
        let state = &mut self.heads[usize::from(head)];
        assert!(*state == Head::Prepared, "head {head} is not prepared");
        *state = Head::Pushed;
        self.push_raw(head);
    }

    /// Puts any number into the available ring, as a hostile driver might.
    #[inline]
    pub fn push_raw(&mut self, head: u16) {
        let at = usize::from(self.avail_idx & self.mask);
        self.areas.avail(2 + at).store(head.to_le(), Ordering::Relaxed);
        self.avail_idx = self.avail_idx.wrapping_add(1);
    }

    /// Writes any descriptor, as a hostile driver might.
    pub fn write_descriptor(&mut self, at: u16, addr: u64, len: u32, flags: u16, next: u16) {
        self.areas.descriptor(usize::from(at & self.mask), addr, len, flags, next);
    }

    /// Writes any available index, as a hostile driver might.
    pub fn write_avail_idx(&mut self, idx: u16) {
        self.areas.avail(1).store(idx.to_le(), Ordering::Release);
    }

    /// Prepares and pushes a chain that is released when it has been used.
    pub fn add(&mut self, buffers: &[Buffer]) -> Option<u16> {
        let head = self.prepare(buffers)?;
        self.push(head);
        self.heads[usize::from(head)] = Head::PushedOnce;
        Some(head)
    }

    /// As [`DriverQueue::add`], through a table.
    pub fn add_indirect(&mut self, buffers: &[Buffer]) -> Option<u16> {
        let head = self.prepare_indirect(buffers)?;
        self.push(head);
        self.heads[usize::from(head)] = Head::PushedOnce;
        Some(head)
    }

    /// Shows the device what was pushed. Returns whether it wants a kick.
    #[inline]
    #[must_use]
    pub fn publish(&mut self) -> bool {
        let old = self.published;
        self.published = self.avail_idx;
        self.areas.avail(1).store(self.avail_idx.to_le(), Ordering::Release);
        // The index must be visible before the device's wish is read, or both sides wait for each other.
        fence(Ordering::SeqCst);
        if self.event_idx {
            let event = self.areas.used(2 + usize::from(self.ring.size) * 4);
            let event = u16::from_le(event.load(Ordering::Relaxed));
            // virtio 1.2, 2.7.7: the event index lies among those just published.
            return self.avail_idx.wrapping_sub(event).wrapping_sub(1)
                < self.avail_idx.wrapping_sub(old);
        }
        u16::from_le(self.areas.used(0).load(Ordering::Relaxed)) & 1 == 0
    }

    /// Notifies the device.
    pub fn kick(&self) {
        let _ = rustix::io::write(&self.fds.kick, &1u64.to_ne_bytes());
    }

    /// Publishes, and kicks if the device wants it.
    pub fn submit(&mut self) {
        if self.publish() {
            self.kick();
        }
    }

    /// The used index in memory: where a back end that takes over begins.
    #[inline]
    #[must_use]
    pub fn used_idx(&self) -> u16 {
        u16::from_le(self.areas.used(1).load(Ordering::Acquire))
    }

    /// Takes all chains used since the last time, oldest first; returns how many.
    ///
    /// # Errors
    /// The device used what it was not given; those before it have been taken.
    #[inline]
    pub fn take_all(&mut self, mut take: impl FnMut(Used)) -> Result<usize, BrokenDevice> {
        let until = self.used_idx();
        let count = until.wrapping_sub(self.used_idx);
        for _ in 0..count {
            take(self.take_one()?);
        }
        Ok(usize::from(count))
    }

    /// Takes the oldest chain used since the last time, if there is one.
    ///
    /// # Errors
    /// The device used what it was not given.
    pub fn take(&mut self) -> Result<Option<Used>, BrokenDevice> {
        if self.used_idx() == self.used_idx {
            return Ok(None);
        }
        self.take_one().map(Some)
    }

    #[inline]
    fn take_one(&mut self) -> Result<Used, BrokenDevice> {
        let (head, len) = self.areas.element(usize::from(self.used_idx & self.mask));
        let (head, len) = (u32::from_le(head), u32::from_le(len));
        let state = self.heads.get_mut(head as usize).ok_or(BrokenDevice(head))?;
        match *state {
            Head::Pushed => *state = Head::Prepared,
            Head::PushedOnce => self.release_chain(head as u16),
            Head::Free | Head::Prepared => return Err(BrokenDevice(head)),
        }
        self.used_idx = self.used_idx.wrapping_add(1);
        Ok(Used { head: head as u16, len })
    }

    /// Frees a prepared chain's descriptors.
    pub fn release(&mut self, head: u16) {
        if self.heads.get(usize::from(head)) == Some(&Head::Prepared) {
            self.release_chain(head);
        }
    }

    fn release_chain(&mut self, head: u16) {
        self.heads[usize::from(head)] = Head::Free;
        let (mut at, first) = (head, self.free.len());
        loop {
            self.free.push(at);
            let next = self.next[usize::from(at)];
            if next == at {
                break;
            }
            at = next;
        }
        // The same descriptors come again in the same order.
        self.free[first..].reverse();
    }

    /// Asks the device not to call.
    pub fn calls_off(&mut self) {
        if self.event_idx {
            // As far away as can be; the device would have to use 65,535 chains to get there.
            self.set_used_event(self.used_idx.wrapping_sub(1));
        } else {
            self.areas.avail(0).store(1u16.to_le(), Ordering::Relaxed);
        }
    }

    /// Asks the device to call with the next chain it uses. Returns whether one has been used meanwhile.
    pub fn calls_on(&mut self) -> bool {
        if self.event_idx {
            self.set_used_event(self.used_idx);
        } else {
            self.areas.avail(0).store(0, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        self.used_idx() != self.used_idx
    }

    fn set_used_event(&self, event: u16) {
        let at = 2 + usize::from(self.ring.size);
        self.areas.avail(at).store(event.to_le(), Ordering::Relaxed);
    }

    /// Sleeps until the device has used a chain or `deadline` has come; then whether it has.
    ///
    /// # Errors
    /// The kernel refuses to wait.
    pub fn wait(&mut self, deadline: Instant) -> io::Result<bool> {
        while !self.calls_on() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(self.used_idx() != self.used_idx);
            }
            let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
            let mut fds = [PollFd::from_borrowed_fd(self.fds.call.as_fd(), PollFlags::IN)];
            match poll(&mut fds, Some(&timeout)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => _ = self.drain_call(),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(true)
    }

    /// Whether the device has called since the last time.
    pub fn drain_call(&self) -> bool {
        rustix::io::read(&self.fds.call, &mut [0u8; 8]).is_ok()
    }
}
