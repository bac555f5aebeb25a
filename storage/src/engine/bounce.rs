//! Aligned buffers for what direct I/O refuses, and the copying between them and guest memory.
//!
//! A fixed number of buffers is set aside when the worker starts (address space only: a page costs memory once it is
//! used). A request that needs one while all are taken waits its turn. Invariant: a [`Bounce`] is held by one request
//! at a time, from before an operation uses it until after its completion.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// Bytes of one buffer: a larger request goes through in several steps.
pub const BOUNCE_SIZE: usize = 128 << 10;
/// Bytes of zeroes there are in one piece, for write-zeroes where the file system cannot do it.
pub const ZEROES_SIZE: usize = 64 << 10;

const BUFFERS: usize = 32;

/// A buffer of [`BOUNCE_SIZE`] bytes, aligned to a page.
#[derive(Debug)]
pub struct Bounce(u16);

/// All buffers of a worker.
#[derive(Debug)]
pub struct BouncePool {
    memory: NonNull<u8>,
    free: Vec<u16>,
}

impl Default for BouncePool {
    fn default() -> Self {
        Self::new()
    }
}

impl BouncePool {
    const LAYOUT: Layout = match Layout::from_size_align(BUFFERS * BOUNCE_SIZE + ZEROES_SIZE, 4096)
    {
        Ok(layout) => layout,
        Err(_) => panic!("a constant that makes no layout"),
    };

    /// Sets the buffers aside.
    pub fn new() -> Self {
        // SAFETY: the layout has a size.
        let memory = unsafe { alloc_zeroed(Self::LAYOUT) };
        let Some(memory) = NonNull::new(memory) else { handle_alloc_error(Self::LAYOUT) };
        Self { memory, free: (0..BUFFERS as u16).rev().collect() }
    }

    /// A buffer, if one is free.
    pub fn take(&mut self) -> Option<Bounce> {
        self.free.pop().map(Bounce)
    }

    /// Gives a buffer back.
    pub fn give(&mut self, bounce: Bounce) {
        self.free.push(bounce.0);
    }

    /// Whether a buffer is free.
    pub fn has_free(&self) -> bool {
        !self.free.is_empty()
    }

    /// The first byte of a buffer.
    pub fn start(&self, bounce: &Bounce) -> *mut u8 {
        // SAFETY: a handle's number is below BUFFERS, so the offset is inside the allocation.
        unsafe { self.memory.as_ptr().add(usize::from(bounce.0) * BOUNCE_SIZE) }
    }

    /// [`ZEROES_SIZE`] bytes that nobody ever writes.
    pub fn zeroes(&self) -> *mut u8 {
        // SAFETY: the zeroes lie behind the buffers in the same allocation.
        unsafe { self.memory.as_ptr().add(BUFFERS * BOUNCE_SIZE) }
    }
}

impl Drop for BouncePool {
    fn drop(&mut self) {
        if self.free.len() == BUFFERS {
            // SAFETY: allocated with this layout; no buffer is held, so nothing points into it.
            unsafe { dealloc(self.memory.as_ptr(), Self::LAYOUT) };
        }
        // With a buffer held, an operation may still use it: then the memory stays until the process ends.
    }
}

/// Copies the beginning of what `pieces` name to `to`, `length` bytes at most; returns how many.
///
/// # Safety
/// Each piece names mapped memory; `length` bytes at `to` are the caller's alone and not part of any piece.
pub unsafe fn gather(pieces: &[libc::iovec], to: *mut u8, length: usize) -> usize {
    let mut done = 0;
    for piece in pieces {
        let part = piece.iov_len.min(length - done);
        // SAFETY: the caller promises both sides; `done + part <= length`.
        unsafe { std::ptr::copy_nonoverlapping(piece.iov_base.cast::<u8>(), to.add(done), part) };
        done += part;
        if done == length {
            break;
        }
    }
    done
}

/// Copies `length` bytes at `from` over the beginning of what `pieces` name; returns how many had room.
///
/// # Safety
/// As for [`gather`].
pub unsafe fn scatter(pieces: &[libc::iovec], from: *const u8, length: usize) -> usize {
    let mut done = 0;
    for piece in pieces {
        let part = piece.iov_len.min(length - done);
        // SAFETY: the caller promises both sides; `done + part <= length`.
        unsafe { std::ptr::copy_nonoverlapping(from.add(done), piece.iov_base.cast::<u8>(), part) };
        done += part;
        if done == length {
            break;
        }
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_apart_and_come_back() {
        let mut pool = BouncePool::new();
        let mut held: Vec<Bounce> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(held.len(), BUFFERS);
        assert!(!pool.has_free());
        let mut starts: Vec<usize> = held.iter().map(|b| pool.start(b) as usize).collect();
        starts.sort_unstable();
        assert!(starts.iter().all(|start| start % 4096 == 0));
        assert!(starts.windows(2).all(|pair| pair[1] - pair[0] >= BOUNCE_SIZE));
        assert!(pool.zeroes() as usize >= starts[BUFFERS - 1] + BOUNCE_SIZE);
        pool.give(held.remove(0));
        assert!(pool.take().is_some_and(|bounce| {
            held.push(bounce);
            true
        }));
        held.into_iter().for_each(|bounce| pool.give(bounce));
    }

    #[test]
    fn pieces_are_gathered_and_scattered() {
        let mut guest = *b"abcdefgh";
        let base = guest.as_mut_ptr();
        let piece = |at: usize, len| libc::iovec {
            // SAFETY: inside the array.
            iov_base: unsafe { base.add(at) }.cast(),
            iov_len: len,
        };
        let pieces = [piece(6, 2), piece(0, 0), piece(0, 3)];
        let mut to = [0u8; 8];
        // SAFETY: the pieces lie in `guest`, the buffer is another array.
        unsafe {
            assert_eq!(gather(&pieces, to.as_mut_ptr(), 8), 5);
            assert_eq!(&to[..5], b"ghabc");
            assert_eq!(gather(&pieces, to.as_mut_ptr(), 1), 1);
            assert_eq!(scatter(&pieces, b"VWXYZ".as_ptr(), 4), 4);
        }
        assert_eq!(&guest, b"XYcdefVW");
    }
}
