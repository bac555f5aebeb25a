//! Chains that were taken from a queue, flattened into checked segments.
//!
//! Invariants: every segment lies inside one mapping of the memory that [`Batch::chains`] asks for; a batch is emptied
//! by each `take`, and its storage is made once.

use super::{MAX_INDIRECT, MAX_QUEUE_SIZE};
use crate::memory::{GuestBytes, GuestMemory};
use std::marker::PhantomData;

/// One run of guest bytes.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Segment {
    pub start: *mut u8,
    pub len: u32,
}

/// One chain of a batch.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Entry {
    pub head: u16,
    /// Number of readable segments.
    pub readable: u16,
    /// Number of writable segments, which follow the readable ones.
    pub writable: u16,
    /// Index of the first segment.
    pub first: u32,
    pub readable_bytes: u32,
    pub writable_bytes: u32,
}

/// Room for the chains of one `take`. Made once per worker and used for all its queues.
#[derive(Debug)]
pub struct Batch {
    pub(super) entries: Box<[Entry]>,
    pub(super) segments: Box<[Segment]>,
    pub(super) taken: usize,
    /// Whether the chains were a dead process's.
    pub(super) recovered: bool,
    /// The memory that the segments point into; only compared, never dereferenced.
    pub(super) memory: *const GuestMemory,
}

// SAFETY: the pointers are only used together with a borrow of the memory that they point into (`chains`).
unsafe impl Send for Batch {}

impl Batch {
    /// Room for up to `max` chains at once.
    pub fn new(max: usize) -> Self {
        let max = max.max(1);
        // The longest legal chain fits whatever stands before it; memory that is never used is never touched.
        let longest = usize::from(MAX_QUEUE_SIZE) + usize::from(MAX_INDIRECT);
        let segments = Box::new_zeroed_slice(max * 4 + longest);
        Self {
            entries: vec![Entry::default(); max].into(),
            // SAFETY: a null pointer and a length of 0 are a valid Segment, and its padding may be anything.
            segments: unsafe { segments.assume_init() },
            taken: 0,
            recovered: false,
            memory: std::ptr::null(),
        }
    }

    /// Chains in the batch.
    #[inline]
    pub fn len(&self) -> usize {
        self.taken
    }

    /// Whether no chain was taken.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.taken == 0
    }

    /// Whether these are chains that a dead process had in flight: they may have been carried out once already.
    pub fn is_recovered(&self) -> bool {
        self.recovered
    }

    /// The chains, in the order in which the driver made them available.
    ///
    /// `memory` is the memory of the queue that the batch was taken from ([`super::SplitQueue::memory`]). With any
    /// other there are no chains.
    #[inline(always)]
    pub fn chains<'a>(
        &'a self,
        memory: &'a GuestMemory,
    ) -> impl ExactSizeIterator<Item = Chain<'a>> {
        let taken = if std::ptr::eq(self.memory, memory) { self.taken } else { 0 };
        self.entries[..taken].iter().map(move |entry| Chain {
            entry,
            segments: &self.segments,
            memory: PhantomData,
        })
    }

    /// Chain number `index`, if there is one and `memory` is that of the queue.
    #[inline(always)]
    pub fn chain<'a>(&'a self, memory: &'a GuestMemory, index: usize) -> Option<Chain<'a>> {
        if index >= self.taken || !std::ptr::eq(self.memory, memory) {
            return None;
        }
        Some(Chain { entry: &self.entries[index], segments: &self.segments, memory: PhantomData })
    }
}

/// One chain: what the driver wants to tell us, and the room it gives for an answer.
#[derive(Debug, Clone, Copy)]
pub struct Chain<'a> {
    entry: &'a Entry,
    segments: &'a [Segment],
    memory: PhantomData<&'a GuestMemory>,
}

impl<'a> Chain<'a> {
    /// The chain's name towards [`super::SplitQueue::complete`].
    #[inline(always)]
    pub fn head(&self) -> u16 {
        self.entry.head
    }

    /// The bytes that the driver wrote for us.
    #[inline(always)]
    pub fn readable(&self) -> Segments<'a> {
        let first = self.entry.first as usize;
        let segments = &self.segments[first..first + usize::from(self.entry.readable)];
        Segments { segments, skip: 0, len: self.entry.readable_bytes, memory: PhantomData }
    }

    /// The bytes that we may write.
    #[inline(always)]
    pub fn writable(&self) -> Segments<'a> {
        let first = self.entry.first as usize + usize::from(self.entry.readable);
        let segments = &self.segments[first..first + usize::from(self.entry.writable)];
        Segments { segments, skip: 0, len: self.entry.writable_bytes, memory: PhantomData }
    }
}

/// A run of bytes scattered over guest memory, seen as one.
#[derive(Debug, Clone, Copy)]
pub struct Segments<'a> {
    segments: &'a [Segment],
    /// Bytes of the first segment that do not belong to the run.
    skip: u32,
    /// Bytes in all.
    len: u32,
    memory: PhantomData<&'a GuestMemory>,
}

impl<'a> Segments<'a> {
    /// Bytes in all.
    #[inline]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether there is no byte.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The contiguous pieces, none empty.
    #[inline(always)]
    pub fn iter(&self) -> Pieces<'a> {
        Pieces { rest: *self }
    }

    /// The first contiguous piece; empty if there is no byte.
    #[inline]
    pub fn first(&self) -> GuestBytes<'a> {
        self.iter().next().unwrap_or_else(|| {
            // SAFETY: no byte is named.
            unsafe { GuestBytes::new(std::ptr::NonNull::dangling().as_ptr(), 0) }
        })
    }

    /// The first `at` bytes and the rest, if there are as many.
    #[inline(always)]
    pub fn split_at(&self, at: usize) -> Option<(Self, Self)> {
        if at > self.len() {
            return None;
        }
        let mut skip = self.skip as usize + at;
        let mut index = 0;
        while index < self.segments.len() && skip >= self.segments[index].len as usize {
            skip -= self.segments[index].len as usize;
            index += 1;
        }
        let front = Self { len: at as u32, ..*self };
        let back = Self {
            segments: &self.segments[index..],
            skip: skip as u32,
            len: self.len - at as u32,
            memory: PhantomData,
        };
        Some((front, back))
    }

    /// `len` bytes from `offset` on, if they are there.
    #[inline]
    pub fn slice(&self, offset: usize, len: usize) -> Option<Self> {
        Some(self.split_at(offset)?.1.split_at(len)?.0)
    }

    /// Reads the beginning into `to`, as much as both have; returns how much.
    #[inline]
    pub fn read(&self, to: &mut [u8]) -> usize {
        let mut done = 0;
        for piece in self.iter() {
            let n = piece.len().min(to.len() - done);
            let fits = piece.read(0, &mut to[done..done + n]);
            debug_assert!(fits);
            done += n;
            if done == to.len() {
                break;
            }
        }
        done
    }

    /// Reads the first `N` bytes, if there are as many.
    #[inline]
    pub fn read_array<const N: usize>(&self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        (self.read(&mut bytes) == N).then_some(bytes)
    }

    /// Writes `from` over the beginning, as much as both have; returns how much.
    #[inline]
    pub fn write(&self, from: &[u8]) -> usize {
        let mut done = 0;
        for piece in self.iter() {
            let n = piece.len().min(from.len() - done);
            let fits = piece.write(0, &from[done..done + n]);
            debug_assert!(fits);
            done += n;
            if done == from.len() {
                break;
            }
        }
        done
    }

    /// Copies the beginning of `from` over the beginning, as much as both have; returns how much.
    #[inline]
    pub fn copy_from(&self, from: &Segments<'_>) -> usize {
        let mut done = 0;
        let (mut source, mut target) = (from.iter(), self.iter());
        let (mut from, mut to) = (source.next(), target.next());
        while let (Some(a), Some(b)) = (from, to) {
            let n = b.copy_from(&a);
            done += n;
            from = if n == a.len() { source.next() } else { a.slice(n, a.len() - n) };
            to = if n == b.len() { target.next() } else { b.slice(n, b.len() - n) };
        }
        done
    }
}

/// The contiguous pieces of [`Segments`].
#[derive(Debug, Clone)]
pub struct Pieces<'a> {
    rest: Segments<'a>,
}

impl<'a> Iterator for Pieces<'a> {
    type Item = GuestBytes<'a>;

    #[inline(always)]
    fn next(&mut self) -> Option<GuestBytes<'a>> {
        let (first, others) = self.rest.segments.split_first()?;
        let len = (first.len - self.rest.skip).min(self.rest.len);
        if len == 0 {
            return None;
        }
        // SAFETY: the segment was checked when it was taken, `skip` + `len` stays inside it, and the memory is
        // borrowed for 'a.
        let piece =
            unsafe { GuestBytes::new(first.start.add(self.rest.skip as usize), len as usize) };
        self.rest.segments = others;
        self.rest.skip = 0;
        self.rest.len -= len;
        Some(piece)
    }
}
