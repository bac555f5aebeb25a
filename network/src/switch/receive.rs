//! Gives frames to a guest: into the buffers that its driver made available.
//!
//! Invariants: a frame is given whole or not at all; a driver without mergeable buffers gets one buffer per frame and
//! `num_buffers` = 1; buffers that were taken and not used go back before the batch ends, so that nothing is held between
//! batches; the used index is published once. A driver that has no buffer loses its
//! own frames and stops nobody.

use super::copy;
use super::frame::{Outgoing, Rest, SPARE};
use crate::packet::offload::{HEADER, LEGACY_HEADER, Offload, feature, header_length};
use bixi_offload::memory::{GuestBytes, GuestMemory};
use bixi_offload::ring::{Batch, RingError, SplitQueue};
use std::sync::Arc;

/// The most buffers that one frame may take: a 64 KiB frame in buffers of a small MTU.
pub const MERGE_LIMIT: usize = 128;

/// The header of a frame that leaves nothing to do: one buffer.
const PLAIN: [u8; SPARE] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

/// Before the first take, `used` is above everything.
const NOT_TAKEN: usize = usize::MAX;

/// What a guest received in a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Received {
    /// Frames.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames that found no buffer.
    pub no_buffer: u64,
}

/// One receive queue for the length of a batch.
#[derive(Debug)]
pub struct Receiver<'a> {
    queue: &'a mut SplitQueue,
    buffers: &'a mut Batch,
    memory: Arc<GuestMemory>,
    /// Buffers of the batch that were used.
    used: usize,
    header: usize,
    mergeable: bool,
    received: Received,
    fault: Option<RingError>,
}

impl<'a> Receiver<'a> {
    /// Begins a batch on `queue`. `buffers` has room for [`MERGE_LIMIT`] chains.
    #[inline]
    pub fn new(queue: &'a mut SplitQueue, buffers: &'a mut Batch) -> Self {
        let memory = Arc::clone(queue.memory());
        let features = queue.features();
        Self {
            queue,
            buffers,
            memory,
            used: NOT_TAKEN,
            header: header_length(features),
            mergeable: features & feature::MRG_RXBUF != 0,
            received: Received::default(),
            fault: None,
        }
    }

    /// The features that the driver accepted.
    pub fn features(&self) -> u64 {
        self.queue.features()
    }

    /// Gives a frame to the guest that leaves nothing to do, if it fits one piece of memory: a head behind [`SPARE`] bytes,
    /// and `rest` bytes that `fill` puts where it is told. False, and nothing given, if it does not.
    #[inline(always)]
    #[must_use]
    pub fn give_simple(
        &mut self,
        head: &[u8],
        rest: usize,
        more: usize,
        fill: impl FnOnce(GuestBytes<'_>) -> bool,
    ) -> bool {
        if !self.has_buffer(more + 1) {
            return false;
        }
        let Some(chain) = self.buffers.chain(&self.memory, self.used) else { return false };
        let room = chain.writable().first();
        let frame = &head[SPARE..];
        let need = self.header + frame.len() + rest;
        if room.len() < need {
            return false;
        }
        // Written one after the other: a frame that is read right behind a header that was written just now would wait
        // for the header's stores.
        let given = match self.header {
            HEADER => copy::write(&room, HEADER, frame) && room.write(0, &PLAIN),
            _ => copy::write(&room, LEGACY_HEADER, frame) && room.write(0, &PLAIN[..LEGACY_HEADER]),
        };
        let copied = rest == 0 || room.slice(need - rest, rest).is_some_and(fill);
        if !given || !copied {
            return false;
        }
        self.queue.complete(chain.head(), need as u32);
        self.used += 1;
        self.count(need);
        true
    }

    /// Gives `frame` to the guest, with `offload` left to it, which it accepts. `more` frames will follow, as far as is
    /// known.
    #[inline]
    pub fn give(&mut self, frame: Outgoing<'_>, offload: &Offload, more: usize) {
        let need = self.header + frame.length();
        if !self.has_buffer(more + 1) {
            self.received.no_buffer += 1;
            return;
        }
        let Some(chain) = self.buffers.chain(&self.memory, self.used) else { return };
        let room = chain.writable();
        if room.len() < need {
            return self.give_merged(frame, offload, need);
        }
        let head = self.with_header(frame.head, offload, 1);
        room.write(head);
        if frame.rest.length() != 0
            && let Some((_, room)) = room.split_at(head.len())
        {
            frame.rest.copy_to_guest(&room);
        }
        self.queue.complete(chain.head(), need as u32);
        self.used += 1;
        self.count(need);
    }

    /// Writes the header before a head, as long as this driver wants it; gives both.
    #[inline]
    fn with_header<'h>(&self, head: &'h mut [u8], offload: &Offload, buffers: u16) -> &'h [u8] {
        let start = SPARE - self.header;
        head[start..SPARE].copy_from_slice(&offload.write(buffers)[..self.header]);
        &head[start..]
    }

    #[inline]
    fn count(&mut self, need: usize) {
        self.received.frames += 1;
        self.received.bytes += (need - self.header) as u64;
    }

    /// Whether there is a buffer; takes up to `wanted` more when there is none.
    #[inline]
    fn has_buffer(&mut self, wanted: usize) -> bool {
        if self.used < self.buffers.len() {
            return true;
        }
        self.take(wanted) > 0
    }

    fn take(&mut self, wanted: usize) -> usize {
        if self.fault.is_some() {
            return 0;
        }
        self.used = 0;
        self.queue.take(wanted, self.buffers).unwrap_or_else(|error| {
            self.fault = Some(error);
            // Nothing of what the batch may hold now was taken.
            self.used = NOT_TAKEN;
            0
        })
    }

    /// Gives a frame that one buffer does not hold.
    #[cold]
    fn give_merged(&mut self, frame: Outgoing<'_>, offload: &Offload, need: usize) {
        let Some(count) = self.gather(need) else {
            self.received.no_buffer += 1;
            return;
        };
        let mut head = self.with_header(frame.head, offload, count as u16);
        let mut rest = frame.rest;
        let mut left = need;
        for _ in 0..count {
            let Some(chain) = self.buffers.chain(&self.memory, self.used) else { return };
            let room = chain.writable();
            let here = room.len().min(left);
            let of_head = head.len().min(here);
            room.write(&head[..of_head]);
            if let Some(behind) = room.slice(of_head, here - of_head) {
                rest.copy_to_guest(&behind);
            }
            (head, rest) = (&head[of_head..], rest.skip(here - of_head));
            left -= here;
            self.queue.complete(chain.head(), here as u32);
            self.used += 1;
        }
        debug_assert!(
            head.is_empty() && matches!(rest, Rest::Guest(_) | Rest::Ours(_)) && left == 0
        );
        self.count(need);
    }

    /// How many buffers, from the next on, hold `need` bytes. None when there are not enough, or may not be merged.
    fn gather(&mut self, need: usize) -> Option<usize> {
        if !self.mergeable {
            return None;
        }
        let count = |this: &Self| {
            let mut room = 0;
            (this.used..this.buffers.len())
                .position(|i| {
                    let chain = this.buffers.chain(&this.memory, i);
                    room += chain.map_or(0, |chain| chain.writable().len());
                    room >= need
                })
                .map(|last| last + 1)
        };
        if let Some(count) = count(self) {
            return Some(count);
        }
        // A batch's buffers must be seen together: give back those that are left and take as many as may be merged.
        let left = self.buffers.len() - self.used;
        self.queue.give_back(self.buffers, left);
        if self.take(MERGE_LIMIT) <= left {
            return None;
        }
        count(self)
    }

    /// Ends the batch: gives back what was not used, and shows the rest to the driver. Whether it wants a call is to be asked
    /// once the whole burst is done.
    ///
    /// # Errors
    /// What the driver did wrong; what the guest received until then is told too.
    #[inline]
    pub fn finish(self) -> (Received, Result<(), RingError>) {
        let left = self.buffers.len().saturating_sub(self.used);
        if left > 0 {
            self.queue.give_back(self.buffers, left);
        }
        self.queue.reveal();
        (self.received, self.fault.map_or(Ok(()), Err))
    }
}
