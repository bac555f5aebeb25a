//! Flattening of one descriptor chain into checked segments.
//!
//! Invariants: each descriptor is read once; a chain of the ring's table has at most as many descriptors as the queue,
//! an indirect one at most [`MAX_INDIRECT`], so that every walk ends; every segment is inside one mapping.

use super::batch::{Entry, Segment};
use super::layout::{Areas, DESCRIPTOR_BYTES, Descriptor, INDIRECT, NEXT, WRITE};
use super::{MAX_INDIRECT, RingError};
use crate::memory::{GuestMemory, Span};

/// Why a walk stopped.
#[derive(Debug)]
pub(super) enum Stop {
    /// The driver broke a rule.
    Broken(RingError),
    /// The batch has no room for the whole chain.
    Full,
}

impl From<RingError> for Stop {
    fn from(error: RingError) -> Self {
        Self::Broken(error)
    }
}

/// Walks the chains of one queue.
#[derive(Debug)]
pub(super) struct Walker<'q> {
    pub areas: Areas,
    pub size: u16,
    pub memory: &'q GuestMemory,
    /// The region that the last translation was in: nearly always also that of the next.
    pub hit: &'q mut Span,
    /// Whether INDIRECT_DESC was negotiated.
    pub indirect: bool,
}

impl Walker<'_> {
    /// Flattens the chain at `entry.head`, which is below the queue's size, into `room`. The segments begin at index
    /// `first` of their batch; returns how many they are.
    ///
    /// The entry is filled in place, field by field: built and then copied, its fields would be read back as one word
    /// right after they were written as several, which stalls the processor for longer than all the rest takes.
    #[inline(always)]
    pub fn walk(
        &mut self,
        entry: &mut Entry,
        room: &mut [Segment],
        first: usize,
    ) -> Result<usize, Stop> {
        let descriptor = self.areas.descriptor(entry.head);
        entry.first = first as u32;
        if descriptor.flags & (NEXT | INDIRECT) == 0
            && descriptor.len != 0
            && let Some(start) = self.hit.find(descriptor.addr, descriptor.len)
            && let Some(slot) = room.first_mut()
        {
            *slot = Segment { start, len: descriptor.len };
            let write = descriptor.flags & WRITE != 0;
            entry.readable = u16::from(!write);
            entry.writable = u16::from(write);
            entry.readable_bytes = if write { 0 } else { descriptor.len };
            entry.writable_bytes = if write { descriptor.len } else { 0 };
            return Ok(1);
        }
        self.walk_long(entry, descriptor, room)
    }

    fn walk_long(
        &mut self,
        entry: &mut Entry,
        descriptor: Descriptor,
        room: &mut [Segment],
    ) -> Result<usize, Stop> {
        let head = entry.head;
        let (mut readable, mut writable) = ((0u16, 0u32), (0u16, 0u32));
        let mut used = 0;
        let (areas, size, memory, indirect) = (self.areas, self.size, self.memory, self.indirect);
        for_each_buffer::<Stop>(areas, size, memory, indirect, head, descriptor, |buffer| {
            let write = buffer.flags & WRITE != 0;
            if !write && writable.0 > 0 {
                return Err(RingError::Order { head }.into());
            }
            let pieces = self.push(head, &buffer, &mut room[used..])?;
            let (count, bytes) = if write { &mut writable } else { &mut readable };
            *count = count.checked_add(pieces as u16).ok_or(RingError::ChainLength { head })?;
            *bytes = bytes.checked_add(buffer.len).ok_or(RingError::ChainBytes { head })?;
            used += pieces;
            Ok(())
        })?;
        (entry.readable, entry.readable_bytes) = readable;
        (entry.writable, entry.writable_bytes) = writable;
        Ok(used)
    }

    /// Translates one buffer. It is one segment, unless it goes over the border of two adjoining regions.
    #[inline]
    fn push(
        &mut self,
        head: u16,
        buffer: &Descriptor,
        room: &mut [Segment],
    ) -> Result<usize, Stop> {
        let (mut addr, mut len) = (buffer.addr, buffer.len);
        let wrong = RingError::Address { head, addr, len };
        let mut used = 0;
        while len > 0 {
            let slot = room.get_mut(used).ok_or(Stop::Full)?;
            if let Some(start) = self.hit.find(addr, len) {
                *slot = Segment { start, len };
                return Ok(used + 1);
            }
            *self.hit = *self.memory.span(addr).ok_or(wrong)?;
            let here = (self.hit.size - (addr - self.hit.guest)).min(u64::from(len)) as u32;
            let start = self.hit.find(addr, here).ok_or(wrong)?;
            *slot = Segment { start, len: here };
            used += 1;
            len -= here;
            if len > 0 {
                addr = addr.checked_add(u64::from(here)).ok_or(wrong)?;
            }
        }
        Ok(used)
    }
}

/// Calls `f` with every buffer of the chain at `head`, whose first descriptor was read already.
pub(super) fn for_each_buffer<E: From<RingError>>(
    areas: Areas,
    size: u16,
    memory: &GuestMemory,
    indirect: bool,
    head: u16,
    first: Descriptor,
    mut f: impl FnMut(Descriptor) -> Result<(), E>,
) -> Result<(), E> {
    let mut descriptor = first;
    let mut left = size;
    while descriptor.flags & INDIRECT == 0 {
        f(descriptor)?;
        if descriptor.flags & NEXT == 0 {
            return Ok(());
        }
        left -= 1;
        if left == 0 {
            return Err(RingError::ChainLength { head }.into());
        }
        if descriptor.next >= size {
            return Err(RingError::DescriptorIndex { index: descriptor.next, size }.into());
        }
        descriptor = areas.descriptor(descriptor.next);
    }
    // Any number of direct descriptors may stand before an indirect one, none behind it (virtio 1.2, 2.7.5.3). Its
    // WRITE flag has no meaning.
    if !indirect || descriptor.flags & NEXT != 0 {
        return Err(RingError::Indirect { head }.into());
    }
    let wrong = RingError::IndirectLength { head, len: descriptor.len };
    if descriptor.len == 0 || !(descriptor.len as usize).is_multiple_of(DESCRIPTOR_BYTES) {
        return Err(wrong.into());
    }
    let entries = u16::try_from(descriptor.len as usize / DESCRIPTOR_BYTES)
        .ok()
        .filter(|n| *n <= MAX_INDIRECT)
        .ok_or(wrong)?;
    let table = memory
        .get(descriptor.addr, u64::from(descriptor.len))
        .ok_or(RingError::Address { head, addr: descriptor.addr, len: descriptor.len })?;
    for_each_indirect(table.as_ptr(), entries, head, f)
}

/// `table` is mapped for `entries` descriptors, of which there is at least one.
fn for_each_indirect<E: From<RingError>>(
    table: *const u8,
    entries: u16,
    head: u16,
    mut f: impl FnMut(Descriptor) -> Result<(), E>,
) -> Result<(), E> {
    let mut index = 0;
    for _ in 0..entries {
        // SAFETY: index < entries: 0 first, compared below.
        let descriptor = unsafe { Descriptor::indirect(table, index) };
        if descriptor.flags & INDIRECT != 0 {
            return Err(RingError::Indirect { head }.into());
        }
        f(descriptor)?;
        if descriptor.flags & NEXT == 0 {
            return Ok(());
        }
        index = descriptor.next;
        if index >= entries {
            return Err(RingError::DescriptorIndex { index, size: entries }.into());
        }
    }
    Err(RingError::ChainLength { head }.into())
}
