//! One request under way on a file: a state machine that says which operation comes next.
//!
//! ```text
//!            ┌────────────── more to do ──────────────┐
//!  Ready ────┼─► Direct ──────────────────────────────┤
//!            ├─► Waiting ─► Load ─► Store ────────────┤   (Load, Store: through an aligned buffer;
//!            ├─► Hole ────────────────────────────────┤    a read has no Store, an aligned write no Load)
//!            └─► Sync ─► Done ◄──── nothing left ─────┘
//! ```
//!
//! [`Slot::step`] is given the result of the last operation and returns the next; it does no I/O itself. Short
//! transfers go on where they ended, a request larger than a buffer goes through in windows, a write-zeroes is cut
//! into what the file system can do as a whole and the ragged ends, which are written. Invariants: at most one
//! operation of a slot is under way; an error ends the request with `VIRTIO_BLK_S_IOERR` and nothing more is done for
//! it; [`Stage::can_become`] holds at each change.

use super::bounce::{BOUNCE_SIZE, Bounce, BouncePool, ZEROES_SIZE, gather, scatter};
use super::points::AFTER_LOAD;
use super::ranges::{BLOCK, PIECE, Span};
use super::request::{Ranges, STATUS_ERROR, STATUS_OK};
use crate::disk::layer::{Abilities, Access};
use bixi_offload::failpoint::hit;

/// Pieces of guest memory that a slot holds itself; a request with more borrows a [`Chunk`].
const INLINE: usize = 8;
/// The most pieces of one request. More than `seg_max` allows, since a piece may be cut at the border of a memory region.
pub const PIECES: usize = 256;

/// Room for the pieces of a request with many.
pub type Chunk = Box<[libc::iovec; PIECES]>;

/// No piece.
pub const NO_PIECE: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Disk to guest.
    Read,
    /// Guest to disk.
    Write,
    /// All acknowledged writes to the medium.
    Flush,
    /// Blocks are given back.
    Discard,
    /// Blocks become zeroes.
    WriteZeroes,
}

impl Task {
    /// Whether it changes blocks.
    pub fn changes(self) -> bool {
        matches!(self, Self::Write | Self::Discard | Self::WriteZeroes)
    }
}

/// Where a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Nothing is under way.
    Ready,
    /// The kernel moves bytes between the file and the guest.
    Direct,
    /// No aligned buffer is free.
    Waiting,
    /// An aligned buffer is read from the file.
    Load,
    /// An aligned buffer is written to the file.
    Store,
    /// A hole is punched, or a range zeroed, by the file system.
    Hole,
    /// The file is flushed.
    Sync,
    /// The answer is known.
    Done,
}

impl Stage {
    /// Whether `next` may follow.
    pub fn can_become(self, next: Self) -> bool {
        use Stage::{Direct, Done, Hole, Load, Ready, Store, Sync, Waiting};
        match self {
            Ready => matches!(next, Direct | Waiting | Load | Store | Hole | Sync | Done),
            Waiting => matches!(next, Load | Store | Done),
            Load => matches!(next, Store | Ready | Done),
            Direct | Store | Hole => matches!(next, Ready | Done),
            Sync => next == Done,
            Done => next == Ready,
        }
    }
}

/// An operation for the kernel.
#[derive(Debug, Clone, Copy)]
pub enum Operation {
    /// `preadv`.
    Read {
        /// The pieces, in the slot.
        pieces: *const libc::iovec,
        /// How many.
        count: u32,
        /// Where in the file.
        offset: u64,
    },
    /// `pwritev`.
    Write {
        /// The pieces, in the slot.
        pieces: *const libc::iovec,
        /// How many.
        count: u32,
        /// Where in the file.
        offset: u64,
        /// Whether it is on the medium when it completes.
        durable: bool,
    },
    /// `fallocate`, the file's size kept.
    Punch(Span),
    /// `fallocate`, the file's size kept.
    Zero(Span),
    /// `fdatasync`.
    Flush,
}

/// What comes next for a slot.
#[derive(Debug, Clone, Copy)]
pub enum Next {
    /// This operation; its result goes to the next [`Slot::step`].
    Run(Operation),
    /// Nothing until an aligned buffer is free.
    Wait,
    /// Nothing until the blocks of [`Slot::span`] are held; those of this span are of no more use.
    Lock(Span),
    /// The request is answered.
    Done,
}

/// One request under way.
#[derive(Debug)]
pub struct Slot {
    /// What it does.
    pub task: Task,
    /// Its status, once done.
    pub status: u8,
    /// Whether it is on the medium when it is answered: for drivers that know no flush.
    pub durable: bool,
    /// The blocks it changes; of ranges, the piece under way.
    pub span: Span,
    stage: Stage,
    /// Where the part under way begins in the file, and how much of it is left.
    offset: u64,
    left: u64,
    inline: [libc::iovec; INLINE],
    chunk: Option<Chunk>,
    first: usize,
    count: usize,
    ranges: Option<Box<Ranges>>,
    range: usize,
    /// How far the range under way is done.
    position: u64,
    bounce: Option<Bounce>,
    /// The aligned part of the file that the buffer stands for, and how much of it went through.
    window: Span,
    moved: u64,
    /// The buffer's first byte, and what is left of it as a piece.
    buffer_start: *mut u8,
    buffer: libc::iovec,
}

impl Default for Slot {
    fn default() -> Self {
        Self {
            task: Task::Flush,
            status: STATUS_OK,
            durable: false,
            span: Span::default(),
            stage: Stage::Done,
            offset: 0,
            left: 0,
            inline: [NO_PIECE; INLINE],
            chunk: None,
            first: 0,
            count: 0,
            ranges: None,
            range: 0,
            position: 0,
            bounce: None,
            window: Span::default(),
            moved: 0,
            buffer_start: std::ptr::null_mut(),
            buffer: NO_PIECE,
        }
    }
}

impl Slot {
    /// Begins a request without data of the guest's.
    pub fn begin(&mut self, task: Task, span: Span, durable: bool) {
        self.task = task;
        self.status = STATUS_OK;
        self.durable = durable;
        self.span = span;
        self.offset = span.start;
        self.left = match task {
            Task::Read | Task::Write => span.len(),
            _ => 0,
        };
        (self.first, self.count, self.range, self.position) = (0, 0, 0, 0);
        self.become_stage(Stage::Ready);
    }

    /// Gives the request the room for more pieces than it holds itself.
    pub fn lend_chunk(&mut self, chunk: Chunk) {
        self.chunk = Some(chunk);
    }

    /// Gives the request its ranges; its span is the first piece of them then.
    pub fn lend_ranges(&mut self, ranges: Box<Ranges>) {
        self.ranges = Some(ranges);
        let _ = self.next_piece();
    }

    /// Makes the next piece of the ranges the span; false if all of them are done.
    fn next_piece(&mut self) -> bool {
        while let Some((range, _)) = self.current_range() {
            if self.position < range.end {
                let end = range.end.min((self.position / PIECE + 1) * PIECE);
                self.span = Span { start: self.position, end };
                return true;
            }
            self.range += 1;
            self.position = 0;
        }
        self.position = u64::MAX;
        false
    }

    /// Ends the request, wherever it is but with an operation under way; what was lent is used no more.
    pub fn take_back(&mut self) -> (Option<Chunk>, Option<Box<Ranges>>) {
        self.stage = Stage::Done;
        (self.chunk.take(), self.ranges.take())
    }

    /// How many pieces fit without a chunk.
    pub const fn inline_pieces() -> usize {
        INLINE
    }

    /// What a failed operation of this result says about earlier writes: the error number if it means that some of
    /// them may be lost. That is any failed flush; and a durable write's unless the write itself was refused.
    pub fn lost_writes(&self, result: i32) -> Option<i32> {
        use libc::{EAGAIN, EDQUOT, EFAULT, EFBIG, EINTR, EINVAL, ENOMEM, ENOSPC};
        let lost = match (self.waits_for_medium(), -result) {
            (false, _) | (_, ..=0 | EINTR | EAGAIN) => false,
            (_, EDQUOT | EFAULT | EFBIG | EINVAL | ENOMEM | ENOSPC) => self.stage == Stage::Sync,
            _ => true,
        };
        lost.then_some(-result)
    }

    /// How many bytes a request with ranges got on by an operation with this result.
    pub fn worked_on(&self, operation: &Operation, result: i32) -> u64 {
        match operation {
            Operation::Punch(span) | Operation::Zero(span) if result >= 0 => span.len(),
            Operation::Write { .. } if self.task == Task::WriteZeroes => result.max(0) as u64,
            _ => 0,
        }
    }

    /// Whether the operation under way is one that ends on the medium.
    pub fn waits_for_medium(&self) -> bool {
        match self.stage {
            Stage::Sync => true,
            Stage::Direct | Stage::Store => self.durable && self.writes(),
            _ => false,
        }
    }

    /// Adds a piece of guest memory; false if there is no room for it.
    #[inline]
    pub fn add_piece(&mut self, piece: libc::iovec) -> bool {
        let count = self.count;
        if let Some(last) = count.checked_sub(1) {
            let last = &mut self.pieces_mut()[last];
            if last.iov_base as usize + last.iov_len == piece.iov_base as usize {
                last.iov_len += piece.iov_len;
                return true;
            }
        }
        match self.pieces_mut().get_mut(count) {
            Some(free) => *free = piece,
            None => return false,
        }
        self.count += 1;
        true
    }

    /// The bytes that the request moves, for the counters.
    pub fn bytes(&self) -> u64 {
        self.span.len()
    }

    fn pieces_mut(&mut self) -> &mut [libc::iovec] {
        match &mut self.chunk {
            Some(chunk) => &mut chunk[..],
            None => &mut self.inline,
        }
    }

    fn pieces(&self) -> &[libc::iovec] {
        let all: &[libc::iovec] = match &self.chunk {
            Some(chunk) => &chunk[..],
            None => &self.inline,
        };
        &all[self.first..self.count]
    }

    fn become_stage(&mut self, next: Stage) {
        debug_assert!(self.stage.can_become(next), "{:?} to {next:?}", self.stage);
        self.stage = next;
    }

    /// Says what comes next. `result` is that of the operation which this slot had under way, if it had one.
    ///
    /// # Safety
    /// The pieces name mapped guest memory.
    pub unsafe fn step(
        &mut self,
        result: Option<i32>,
        abilities: &Abilities,
        pool: &mut BouncePool,
    ) -> Next {
        if let Some(result) = result {
            if let Some(again) = self.again(result, abilities) {
                return again;
            }
            // SAFETY: promised by the caller.
            if let Some(next) = unsafe { self.finished(result, abilities, pool) } {
                return next;
            }
        }
        // SAFETY: promised by the caller.
        unsafe { self.plan(abilities, pool) }
    }

    /// The same operation once more, where the kernel was only interrupted.
    fn again(&mut self, result: i32, abilities: &Abilities) -> Option<Next> {
        if !matches!(-result, libc::EINTR | libc::EAGAIN) {
            return None;
        }
        Some(Next::Run(match self.stage {
            Stage::Direct => self.direct(),
            Stage::Load | Stage::Store => self.buffered(),
            Stage::Hole => self.hole(abilities)?,
            _ => Operation::Flush,
        }))
    }

    /// Takes note of a finished operation. Returns the next one if that follows at once.
    ///
    /// # Safety
    /// As [`Slot::step`].
    unsafe fn finished(
        &mut self,
        result: i32,
        abilities: &Abilities,
        pool: &mut BouncePool,
    ) -> Option<Next> {
        if result < 0 {
            return self.failed(-result, abilities, pool);
        }
        match self.stage {
            Stage::Direct | Stage::Load | Stage::Store if result == 0 => Some(self.fail(pool)),
            Stage::Direct => {
                self.consume(result as u64);
                self.become_stage(Stage::Ready);
                None
            }
            Stage::Load | Stage::Store => {
                self.moved += result as u64;
                if self.moved < self.window.len() {
                    return Some(Next::Run(self.buffered()));
                }
                // SAFETY: promised by the caller.
                unsafe { self.window_moved(pool) }
            }
            Stage::Hole => {
                self.position = self.hole_end();
                self.become_stage(Stage::Ready);
                None
            }
            _ => Some(self.done()),
        }
    }

    fn failed(&mut self, error: i32, abilities: &Abilities, pool: &mut BouncePool) -> Option<Next> {
        if self.stage == Stage::Hole && matches!(error, libc::EOPNOTSUPP | libc::ENOSYS) {
            match self.hole(abilities) {
                Some(Operation::Punch(_)) => abilities.punch_hole_unsupported(),
                _ => abilities.zero_range_unsupported(),
            }
            self.become_stage(Stage::Ready);
            return None;
        }
        tracing::debug!(error, task = ?self.task, stage = ?self.stage, "disk I/O failed");
        Some(self.fail(pool))
    }

    fn fail(&mut self, pool: &mut BouncePool) -> Next {
        self.status = STATUS_ERROR;
        self.release_buffer(pool);
        self.done()
    }

    fn done(&mut self) -> Next {
        self.become_stage(Stage::Done);
        Next::Done
    }

    fn release_buffer(&mut self, pool: &mut BouncePool) {
        if let Some(bounce) = self.bounce.take() {
            pool.give(bounce);
        }
    }

    /// Decides on the next operation. The stage is `Ready` or `Waiting`.
    ///
    /// # Safety
    /// As [`Slot::step`].
    unsafe fn plan(&mut self, abilities: &Abilities, pool: &mut BouncePool) -> Next {
        if self.left == 0
            && let Some(next) = self.next_part(abilities, pool)
        {
            return next;
        }
        if self.stage != Stage::Waiting && self.is_aligned(abilities.access()) {
            self.become_stage(Stage::Direct);
            return Next::Run(self.direct());
        }
        // SAFETY: promised by the caller.
        unsafe { self.begin_window(abilities.access(), pool) }
    }

    /// All of the present part is done: the end, or another part. `None` if that part is a write.
    fn next_part(&mut self, abilities: &Abilities, pool: &BouncePool) -> Option<Next> {
        match self.task {
            Task::Read | Task::Write => return Some(self.done()),
            Task::Flush => {}
            Task::Discard | Task::WriteZeroes => {
                while self.position < self.span.end {
                    if let Some(operation) = self.hole(abilities) {
                        self.become_stage(Stage::Hole);
                        return Some(Next::Run(operation));
                    }
                    if self.task == Task::WriteZeroes {
                        self.write_zeroes(pool.zeroes());
                        return None;
                    }
                    // Less than a block of it is left, or no hole can be punched: a discard is only a hint.
                    self.position = self.span.end;
                }
                let done = self.span;
                if self.next_piece() {
                    return Some(Next::Lock(done));
                }
                if !self.durable || self.status != STATUS_OK {
                    return Some(self.done());
                }
            }
        }
        self.become_stage(Stage::Sync);
        Some(Next::Run(Operation::Flush))
    }

    /// The range under way, if one is; sets its position when it begins.
    fn current_range(&mut self) -> Option<(Span, bool)> {
        let (span, unmap) = self.ranges.as_ref()?.get(self.range)?;
        self.position = self.position.max(span.start);
        Some((span, unmap))
    }

    /// What the file system can do for the piece under way as a whole: whole blocks only.
    fn hole(&mut self, abilities: &Abilities) -> Option<Operation> {
        let ((_, unmap), span) = (self.current_range()?, self.span);
        let blocks = match self.task {
            Task::Discard => self.position.next_multiple_of(BLOCK),
            _ => self.position,
        };
        let end = span.end - span.end % BLOCK;
        if !blocks.is_multiple_of(BLOCK) || blocks >= end {
            return None;
        }
        let whole = Span { start: blocks, end };
        match self.task {
            Task::Discard => abilities.punch_hole().then_some(Operation::Punch(whole)),
            _ if unmap && abilities.punch_hole() => Some(Operation::Punch(whole)),
            _ => abilities.zero_range().then_some(Operation::Zero(whole)),
        }
    }

    /// Where the piece under way is when its hole is done.
    fn hole_end(&self) -> u64 {
        self.position.max(self.span.end - self.span.end % BLOCK)
    }

    /// Makes the next part of the piece under way a write of zeroes: up to the next block, or whole blocks where the
    /// file system cannot zero them itself.
    fn write_zeroes(&mut self, zeroes: *mut u8) {
        let span = self.span;
        let ragged = !self.position.is_multiple_of(BLOCK) || span.end - self.position < BLOCK;
        let end = match ragged {
            true => span.end.min((self.position + 1).next_multiple_of(BLOCK)),
            false => {
                let whole = span.end - span.end % BLOCK;
                whole.min(self.position + (INLINE * ZEROES_SIZE) as u64)
            }
        };
        (self.offset, self.left) = (self.position, end - self.position);
        (self.first, self.count) = (0, 0);
        let mut rest = self.left as usize;
        while rest > 0 {
            let part = rest.min(ZEROES_SIZE);
            self.inline[self.count] = libc::iovec { iov_base: zeroes.cast(), iov_len: part };
            self.count += 1;
            rest -= part;
        }
        self.position = end;
    }

    fn is_aligned(&self, access: Access) -> bool {
        let Access::Direct { memory, offset } = access else { return true };
        let (memory, offset) = (u64::from(memory) - 1, u64::from(offset) - 1);
        let pieces = self.pieces().iter().fold((0, 0), |(bases, lengths), piece| {
            (bases | piece.iov_base as u64, lengths | piece.iov_len as u64)
        });
        (self.offset | self.left | pieces.1) & offset == 0 && pieces.0 & memory == 0
    }

    fn writes(&self) -> bool {
        self.task != Task::Read
    }

    fn direct(&self) -> Operation {
        let pieces = self.pieces();
        self.transfer(pieces.as_ptr(), pieces.len() as u32, self.offset, self.writes())
    }

    fn transfer(
        &self,
        pieces: *const libc::iovec,
        count: u32,
        offset: u64,
        write: bool,
    ) -> Operation {
        match write {
            true => Operation::Write { pieces, count, offset, durable: self.durable },
            false => Operation::Read { pieces, count, offset },
        }
    }

    /// The next aligned part of the request through a buffer.
    ///
    /// # Safety
    /// As [`Slot::step`].
    unsafe fn begin_window(&mut self, access: Access, pool: &mut BouncePool) -> Next {
        let Some(bounce) = pool.take() else {
            if self.stage != Stage::Waiting {
                self.become_stage(Stage::Waiting);
            }
            return Next::Wait;
        };
        let unit = match access {
            Access::Direct { offset, .. } => u64::from(offset),
            _ => 1,
        };
        let start = self.offset - self.offset % unit;
        let end = (self.offset + self.left).next_multiple_of(unit).min(start + BOUNCE_SIZE as u64);
        self.window = Span { start, end };
        self.moved = 0;
        self.buffer_start = pool.start(&bounce);
        self.bounce = Some(bounce);
        let whole = start == self.offset && end <= self.offset + self.left;
        if self.writes() && whole {
            // SAFETY: promised by the caller.
            unsafe { self.fill_buffer() };
            self.become_stage(Stage::Store);
        } else {
            self.become_stage(Stage::Load);
        }
        Next::Run(self.buffered())
    }

    fn buffered(&mut self) -> Operation {
        self.buffer = libc::iovec {
            iov_base: self.buffer_start.wrapping_byte_add(self.moved as usize).cast(),
            iov_len: (self.window.len() - self.moved) as usize,
        };
        self.transfer(&self.buffer, 1, self.window.start + self.moved, self.stage == Stage::Store)
    }

    /// What the window has of the request: how far it begins inside the window, and its length.
    fn window_part(&self) -> (usize, usize) {
        let inside = self.offset - self.window.start;
        (inside as usize, self.left.min(self.window.end - self.offset) as usize)
    }

    /// Puts the guest's bytes into the window's buffer.
    ///
    /// # Safety
    /// As [`Slot::step`].
    unsafe fn fill_buffer(&mut self) {
        let (inside, length) = self.window_part();
        // SAFETY: the pieces are mapped (promised by the caller), and the buffer, held by this slot, has room for the
        // window, of which the part is inside.
        unsafe { gather(self.pieces(), self.buffer_start.add(inside), length) };
    }

    /// A window's last byte went through.
    ///
    /// # Safety
    /// As [`Slot::step`].
    unsafe fn window_moved(&mut self, pool: &mut BouncePool) -> Option<Next> {
        let (inside, length) = self.window_part();
        if self.stage == Stage::Load && self.writes() {
            hit(AFTER_LOAD);
            // SAFETY: promised by the caller.
            unsafe { self.fill_buffer() };
            self.moved = 0;
            self.become_stage(Stage::Store);
            return Some(Next::Run(self.buffered()));
        }
        if self.stage == Stage::Load {
            // SAFETY: as in `fill_buffer`; the guest's pieces have room for what is left of the request.
            unsafe { scatter(self.pieces(), self.buffer_start.add(inside), length) };
        }
        self.consume(length as u64);
        self.release_buffer(pool);
        self.become_stage(Stage::Ready);
        None
    }

    /// Takes the first `bytes` off what is left to do.
    fn consume(&mut self, bytes: u64) {
        let bytes = bytes.min(self.left);
        self.offset += bytes;
        self.left -= bytes;
        let mut rest = bytes as usize;
        while rest > 0 && self.first < self.count {
            let first = self.first;
            let piece = &mut self.pieces_mut()[first];
            let part = piece.iov_len.min(rest);
            piece.iov_base = piece.iov_base.wrapping_byte_add(part);
            piece.iov_len -= part;
            rest -= part;
            if piece.iov_len == 0 {
                self.first += 1;
            }
        }
    }
}

#[cfg(test)]
#[path = "slot_tests.rs"]
mod tests;
