//! Some bytes of a guest, for as long as its memory is pinned.
//!
//! Invariants: a `GuestBytes` lies wholly inside one live mapping; nothing here makes a Rust reference to guest bytes,
//! because the guest may change them at any time; every access is checked against the length.

use std::marker::PhantomData;

/// `len` bytes of guest memory, pinned for `'m`.
#[derive(Debug, Clone, Copy)]
pub struct GuestBytes<'m> {
    start: *mut u8,
    len: usize,
    memory: PhantomData<&'m super::GuestMemory>,
}

// SAFETY: shared memory may be accessed from any thread; `'m` keeps it mapped.
unsafe impl Send for GuestBytes<'_> {}

impl<'m> GuestBytes<'m> {
    /// # Safety
    /// The `len` bytes at `start` must lie inside one mapping that lives for `'m`.
    #[inline]
    pub(crate) unsafe fn new(start: *mut u8, len: usize) -> Self {
        Self { start, len, memory: PhantomData }
    }

    /// Size in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no byte.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address of the first byte here, for a system call that reads or writes guest memory (`iovec`, io_uring).
    ///
    /// Whoever passes it to something that outlives `'m` holds the `Arc` of the memory until that is done.
    #[inline]
    pub fn as_ptr(&self) -> *mut u8 {
        self.start
    }

    /// The same as an `iovec`, under the same condition as [`GuestBytes::as_ptr`].
    #[inline]
    pub fn iovec(&self) -> libc::iovec {
        libc::iovec { iov_base: self.start.cast(), iov_len: self.len }
    }

    /// `len` bytes from `offset` on, if they are there.
    #[inline]
    pub fn slice(&self, offset: usize, len: usize) -> Option<GuestBytes<'m>> {
        if offset > self.len || len > self.len - offset {
            return None;
        }
        // SAFETY: inside the range of `self`.
        Some(unsafe { GuestBytes::new(self.start.add(offset), len) })
    }

    /// Reads into all of `to` from `offset` on. False, and nothing read, if there are not as many bytes.
    #[inline]
    #[must_use]
    pub fn read(&self, offset: usize, to: &mut [u8]) -> bool {
        let Some(from) = self.slice(offset, to.len()) else { return false };
        // SAFETY: `from` is mapped for its length; `to` is our own memory, which guest memory never overlaps. A guest
        // that writes meanwhile gives us a mix of bytes, all of which are valid u8.
        unsafe { std::ptr::copy_nonoverlapping(from.start, to.as_mut_ptr(), to.len()) };
        true
    }

    /// Reads `N` bytes at `offset`.
    #[inline]
    pub fn read_array<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.read(offset, &mut bytes).then_some(bytes)
    }

    /// Writes all of `from` at `offset`. False, and nothing written, if there is no room for it.
    #[inline]
    #[must_use]
    pub fn write(&self, offset: usize, from: &[u8]) -> bool {
        let Some(to) = self.slice(offset, from.len()) else { return false };
        // SAFETY: `to` is mapped for its length; `from` is our own memory, which guest memory never overlaps.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.start, from.len()) };
        true
    }

    /// Sets `len` bytes at `offset` to `value`. False, and nothing written, if there are not as many.
    #[must_use]
    pub fn fill(&self, offset: usize, len: usize, value: u8) -> bool {
        let Some(to) = self.slice(offset, len) else { return false };
        // SAFETY: `to` is mapped for its length.
        unsafe { std::ptr::write_bytes(to.start, value, len) };
        true
    }

    /// Copies the beginning of `from` over the beginning of `self`, as much as both have; returns how much.
    ///
    /// The two may overlap: a guest may give one buffer to two queues.
    #[inline]
    pub fn copy_from(&self, from: &GuestBytes<'_>) -> usize {
        let len = self.len.min(from.len);
        // SAFETY: both are mapped for `len` bytes; `copy` allows overlap.
        unsafe { std::ptr::copy(from.start, self.start, len) };
        len
    }

    /// Asks the processor to fetch the first line, without waiting.
    #[inline]
    pub fn prefetch(&self) {
        crate::memory::prefetch(self.start);
    }
}
