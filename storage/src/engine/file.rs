//! Requests under way on files, on one worker: slots, the ring that carries them, and who waits for what.
//!
//! A request gets a slot with everything it needs ([`FileEngine::start`]), or is refused for want of room, and then
//! stays in its virtqueue. A request that changes blocks waits, behind others of its queue, until nobody else changes
//! them. [`FileEngine::turn`] moves everything on; [`FileEngine::next_finished`] gives answers, each of which must be
//! published and then released ([`FileEngine::release`]), which frees its blocks. Invariant: blocks are held from
//! before the first operation until after the answer was published; of a request with ranges, those of one piece at a
//! time, and none while it waits for the next.
//!
//! On a file system in memory an operation never waits, so it runs in place: one system call per request, and half
//! the cost of handing it to a kernel thread and back. A long discard or write-zeroes lets others have turns between.

use super::bounce::BouncePool;
use super::media::{FileMedia, Media, ServedDisk};
use super::points::{AFTER_COMPLETION, AFTER_SUBMIT};
use super::ranges::{Span, Waiter};
use super::request::{Ranges, STATUS_ERROR};
use super::slot::{Chunk, NO_PIECE, Next, Operation, PIECES, Slot, Task};
use super::uring::{self, FileRef, Uring, operation};
use crate::disk::layer::Access;
use bixi_offload::failpoint::hit;
use bixi_offload::ring::Segments;
use io_uring::opcode;
use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// Requests that may be under way on one worker.
pub const SLOTS: usize = 1024;
/// Of these, requests with many pieces.
const CHUNKS: usize = 64;
/// Of these, requests with ranges.
const RANGED: usize = 64;

/// Bytes after which zeroing or discarding in place lets others have their turn.
const TURN: u64 = 1 << 20;

const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

/// What the engine must know of a request beside what it does.
#[derive(Debug, Clone, Copy)]
pub struct Ticket {
    /// The queue's place on the worker.
    pub queue: usize,
    /// The chain.
    pub head: u16,
    /// Where the status byte goes.
    pub status: *mut u8,
    /// What is reported as written.
    pub writable: u32,
}

/// A request for a file.
#[derive(Debug)]
pub enum Work<'a> {
    /// Bytes between the file, from an offset on, and the guest.
    Move(Task, u64, Segments<'a>),
    /// Discard or write-zeroes.
    Ranges(Task, &'a Ranges),
    /// All acknowledged writes to the medium.
    Flush,
}

/// Why a request was not started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotStarted {
    /// No room now: leave it in its queue.
    Full,
    /// It has more pieces than any honest request.
    TooManyPieces,
}

/// A request that is answered.
#[derive(Debug)]
pub struct Finished {
    /// For [`FileEngine::release`].
    pub slot: u16,
    /// What the service told about it.
    pub ticket: Ticket,
    /// What it did.
    pub task: Task,
    /// Its status.
    pub status: u8,
    /// The bytes it moved.
    pub bytes: u64,
}

/// A file in use on this worker.
#[derive(Debug)]
struct OpenFile {
    disk: Arc<ServedDisk>,
    reference: FileRef,
}

impl OpenFile {
    fn media(&self) -> Option<&FileMedia> {
        match &self.disk.media {
            Media::File(media) => Some(media),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Place {
    ticket: Ticket,
    file: usize,
    /// Its place among those that wait for blocks.
    waiter: Waiter,
}

/// All requests under way on one worker's files.
#[derive(Debug)]
pub struct FileEngine {
    ring: Uring,
    files: Vec<Option<OpenFile>>,
    slots: Box<[Slot]>,
    places: Box<[Place]>,
    free: Vec<u16>,
    chunks: Vec<Chunk>,
    #[expect(
        clippy::vec_box,
        reason = "boxes are lent to slots, which moves a pointer and not a kilobyte"
    )]
    ranges: Vec<Box<Ranges>>,
    pool: BouncePool,
    /// Requests that wait for an aligned buffer.
    waiting: VecDeque<u16>,
    /// Requests that wait for their blocks, by queue.
    parked: Vec<VecDeque<u16>>,
    /// Requests with ranges that wait for the blocks of their next piece.
    between: VecDeque<u16>,
    /// Requests in place that have had their turn, each with the result of its last operation.
    yielded: VecDeque<(u16, i32)>,
    /// How many requests wait for blocks in all.
    parked_count: usize,
    finished: VecDeque<u16>,
}

impl FileEngine {
    /// An engine for this thread.
    ///
    /// # Errors
    /// There is no io_uring.
    pub fn new() -> io::Result<Self> {
        let ticket = Ticket { queue: 0, head: 0, status: std::ptr::null_mut(), writable: 0 };
        Ok(Self {
            ring: Uring::new(SLOTS as u32)?,
            files: Vec::new(),
            slots: (0..SLOTS).map(|_| Slot::default()).collect(),
            places: vec![Place { ticket, file: 0, waiter: Waiter::default() }; SLOTS].into(),
            free: (0..SLOTS as u16).rev().collect(),
            chunks: (0..CHUNKS).map(|_| Box::new([NO_PIECE; PIECES])).collect(),
            ranges: (0..RANGED).map(|_| Box::default()).collect(),
            pool: BouncePool::new(),
            waiting: VecDeque::with_capacity(SLOTS),
            parked: Vec::new(),
            between: VecDeque::with_capacity(RANGED),
            yielded: VecDeque::with_capacity(RANGED),
            parked_count: 0,
            finished: VecDeque::with_capacity(SLOTS),
        })
    }

    /// Keeps the kernel's helper threads on these processors.
    pub fn keep_waiters_on(&self, processors: &[usize]) {
        self.ring.keep_waiters_on(processors);
    }

    /// What becomes readable when a completion came after [`FileEngine::arm`].
    pub fn event(&self) -> BorrowedFd<'_> {
        self.ring.event()
    }

    /// Takes a disk's file into use; its number. `None` if the disk is not in a file.
    pub fn open(&mut self, disk: &Arc<ServedDisk>) -> Option<usize> {
        let Media::File(media) = &disk.media else { return None };
        let reference = self.ring.add_file(media.layer.descriptor());
        let file = OpenFile { disk: Arc::clone(disk), reference };
        let free = self.files.iter().position(Option::is_none);
        let index = free.unwrap_or(self.files.len());
        match free {
            Some(index) => self.files[index] = Some(file),
            None => self.files.push(Some(file)),
        }
        Some(index)
    }

    /// Lets go of a file that no request uses.
    pub fn close(&mut self, file: usize) {
        if let Some(file) = self.files.get_mut(file).and_then(Option::take) {
            self.ring.remove_file(file.reference);
        }
    }

    /// Makes room for the requests of a queue that wait for their blocks.
    pub fn add_queue(&mut self, queue: usize) {
        while self.parked.len() <= queue {
            self.parked.push(VecDeque::new());
        }
        // Once per queue, so that parking a request allocates nothing.
        self.parked[queue].reserve(SLOTS);
    }

    /// How many requests may be started now.
    pub fn room(&self) -> usize {
        self.free.len()
    }

    /// Starts a request.
    ///
    /// # Errors
    /// See [`NotStarted`]; nothing was begun then.
    ///
    /// # Safety
    /// The guest memory that the request names stays mapped until the request was released.
    pub unsafe fn start(
        &mut self,
        ticket: Ticket,
        file: usize,
        durable: bool,
        work: &Work<'_>,
    ) -> Result<(), NotStarted> {
        let id = *self.free.last().ok_or(NotStarted::Full)?;
        let slot = &mut self.slots[usize::from(id)];
        match work {
            Work::Flush => slot.begin(Task::Flush, Span::default(), durable),
            Work::Ranges(task, ranges) => {
                let mut room = self.ranges.pop().ok_or(NotStarted::Full)?;
                *room = **ranges;
                slot.begin(*task, Span::default(), durable);
                slot.lend_ranges(room);
            }
            Work::Move(task, offset, data) => {
                let span = Span { start: *offset, end: *offset + data.len() as u64 };
                slot.begin(*task, span, durable);
                // SAFETY: the iterator's pieces are mapped; the caller keeps them so.
                let filled = fill(slot, data, &mut self.chunks);
                if let Err(reason) = filled {
                    self.take_back(id);
                    return Err(reason);
                }
            }
        }
        self.free.pop();
        self.places[usize::from(id)] = Place { ticket, file, waiter: Waiter::default() };
        if !self.slots[usize::from(id)].task.changes() {
            self.drive(id, None);
        } else if !self.parked[ticket.queue].is_empty() || !self.lock(id) {
            self.parked[ticket.queue].push_back(id);
            self.parked_count += 1;
        } else {
            self.drive(id, None);
        }
        Ok(())
    }

    /// Takes the blocks that a request needs next. Who fails is asked again until it succeeds, as a [`Waiter`] must be:
    /// it is the first of its queue's parked requests, or between its pieces.
    fn lock(&mut self, id: u16) -> bool {
        let place = &mut self.places[usize::from(id)];
        let media = self.files.get(place.file).and_then(|f| f.as_ref()?.media());
        let span = self.slots[usize::from(id)].span;
        media.is_some_and(|media| media.ranges.lock_in_turn(span, &mut place.waiter))
    }

    /// Moves a request on until it waits for something or is answered.
    fn drive(&mut self, id: u16, mut result: Option<i32>) {
        let index = usize::from(id);
        let file = self.places[index].file;
        let file = self.files.get(file).and_then(Option::as_ref);
        let Some((media, reference)) = file.and_then(|f| Some((f.media()?, f.reference))) else {
            // A file is closed only when no request uses it; were it otherwise, the guest gets an error, not silence.
            self.slots[index].status = STATUS_ERROR;
            return self.finished.push_back(id);
        };
        let abilities = media.layer.abilities();
        if result.is_none() && self.slots[index].task != Task::Read && media.flush_fault().is_some()
        {
            self.slots[index].status = STATUS_ERROR;
            return self.finished.push_back(id);
        }
        let mut done = 0;
        loop {
            let slot = &mut self.slots[index];
            if slot.waits_for_medium()
                && let Some(now) = result
            {
                // The kernel tells a lost write to one of the flushes under way only.
                let told = media.flush_fault().map_or(now, |error| now.min(-error));
                let now = media.durable_result(told);
                if let Some(error) = slot.lost_writes(now) {
                    media.flush_failed(error);
                }
                result = Some(now);
            }
            // SAFETY: the pieces are mapped until the request is released, as `start` demands.
            match unsafe { slot.step(result, abilities, &mut self.pool) } {
                Next::Done => return self.finished.push_back(id),
                Next::Wait => return self.waiting.push_back(id),
                Next::Lock(old) => {
                    media.ranges.unlock(old);
                    let waiter = &mut self.places[index].waiter;
                    if !media.ranges.lock_in_turn(slot.span, waiter) {
                        self.parked_count += 1;
                        return self.between.push_back(id);
                    }
                    result = None;
                }
                Next::Run(operation) if abilities.access() == Access::Memory => {
                    let now = run_in_place(&operation, media);
                    done += slot.worked_on(&operation, now);
                    if done >= TURN {
                        return self.yielded.push_back((id, now));
                    }
                    result = Some(now);
                }
                Next::Run(operation) => {
                    let entry = entry(&operation, reference).user_data(u64::from(id));
                    // SAFETY: pieces and buffers are in the slot, the pool or guest memory, none of which moves or
                    // goes before the completion was reaped and the request released.
                    return unsafe { self.ring.push(&entry) };
                }
            }
        }
    }

    /// Hands operations to the kernel and takes what it has finished; returns how many completions came.
    pub fn turn(&mut self) -> usize {
        self.ring.turn();
        if self.ring.in_flight() > 0 {
            hit(AFTER_SUBMIT);
        }
        let mut count = 0;
        for _ in 0..self.yielded.len() {
            let Some((id, result)) = self.yielded.pop_front() else { break };
            self.drive(id, Some(result));
            count += 1;
        }
        while let Some((id, result)) = self.ring.reap() {
            hit(AFTER_COMPLETION);
            self.drive(id as u16, Some(result));
            count += 1;
        }
        while self.pool.has_free()
            && let Some(id) = self.waiting.pop_front()
        {
            self.drive(id, None);
        }
        count
    }

    /// An answer, if there is one.
    pub fn next_finished(&mut self) -> Option<Finished> {
        let id = self.finished.pop_front()?;
        let (slot, place) = (&self.slots[usize::from(id)], &self.places[usize::from(id)]);
        Some(Finished {
            slot: id,
            ticket: place.ticket,
            task: slot.task,
            status: slot.status,
            bytes: slot.bytes(),
        })
    }

    /// An answer was published: its blocks are free, and so is its slot.
    pub fn release(&mut self, id: u16) {
        let (slot, place) = (&self.slots[usize::from(id)], &self.places[usize::from(id)]);
        if slot.task.changes()
            && let Some(media) = self.files.get(place.file).and_then(|f| f.as_ref()?.media())
        {
            media.ranges.unlock(slot.span);
        }
        self.take_back(id);
        self.free.push(id);
    }

    fn take_back(&mut self, id: u16) {
        let (chunk, ranges) = self.slots[usize::from(id)].take_back();
        self.chunks.extend(chunk);
        self.ranges.extend(ranges);
    }

    /// Starts requests whose blocks are free now, in the order of each queue, and goes on with those that are between
    /// two pieces; returns how many.
    pub fn unpark(&mut self) -> usize {
        let mut started = 0;
        for _ in 0..self.between.len() {
            let Some(id) = self.between.pop_front() else { break };
            if self.lock(id) {
                self.parked_count -= 1;
                started += 1;
                self.drive(id, None);
            } else {
                self.between.push_back(id);
            }
        }
        for queue in 0..self.parked.len() {
            if self.parked_count == 0 {
                break;
            }
            while let Some(&id) = self.parked[queue].front()
                && self.lock(id)
            {
                self.parked[queue].pop_front();
                self.parked_count -= 1;
                started += 1;
                self.drive(id, None);
            }
        }
        started
    }

    /// Whether requests wait for something that no eventfd announces: blocks that another worker holds, or their turn.
    pub fn must_poll(&self) -> bool {
        self.parked_count > 0 || !self.yielded.is_empty()
    }

    /// Before sleep: lets the eventfd announce the next completion. True if there is something to do now.
    pub fn arm(&mut self) -> bool {
        self.ring.arm() || !self.finished.is_empty()
    }
}

/// Puts the pieces of `data` into the slot, with a chunk if they are many.
fn fill(slot: &mut Slot, data: &Segments<'_>, chunks: &mut Vec<Chunk>) -> Result<(), NotStarted> {
    if data.iter().nth(Slot::inline_pieces()).is_some() {
        slot.lend_chunk(chunks.pop().ok_or(NotStarted::Full)?);
    }
    match data.iter().all(|piece| slot.add_piece(piece.iovec())) {
        true => Ok(()),
        false => Err(NotStarted::TooManyPieces),
    }
}

fn entry(operation: &Operation, file: FileRef) -> io_uring::squeue::Entry {
    match *operation {
        Operation::Read { pieces, count, offset } => {
            operation!(file, |fd| opcode::Readv::new(fd, pieces, count).offset(offset).build())
        }
        Operation::Write { pieces, count, offset, durable } => {
            let flags = if durable { libc::RWF_DSYNC } else { 0 };
            operation!(file, |fd| {
                opcode::Writev::new(fd, pieces, count).offset(offset).rw_flags(flags).build()
            })
        }
        Operation::Punch(span) => operation!(file, |fd| {
            opcode::Fallocate::new(fd, span.len()).offset(span.start).mode(PUNCH).build()
        }),
        Operation::Zero(span) => operation!(file, |fd| {
            opcode::Fallocate::new(fd, span.len()).offset(span.start).mode(ZERO).build()
        }),
        Operation::Flush => uring::flush(file),
    }
}

/// Does an operation at once: the bytes moved, or a negative error number, as io_uring would say.
fn run_in_place(operation: &Operation, media: &FileMedia) -> i32 {
    let fd = media.layer.descriptor();
    // SAFETY: the descriptor is open; pieces name mapped memory (see `FileEngine::start`) or our own buffers, which
    // stay in place during the call. The kernel checks the rest.
    let result = unsafe {
        match *operation {
            Operation::Read { pieces, count, offset } => {
                libc::preadv(fd, pieces, count as i32, offset as i64)
            }
            Operation::Write { pieces, count, offset, .. } => {
                libc::pwritev(fd, pieces, count as i32, offset as i64)
            }
            Operation::Punch(span) => {
                libc::fallocate(fd, PUNCH, span.start as i64, span.len() as i64) as isize
            }
            Operation::Zero(span) => {
                libc::fallocate(fd, ZERO, span.start as i64, span.len() as i64) as isize
            }
            // The page cache is the medium.
            Operation::Flush => 0,
        }
    };
    match result {
        0.. => i32::try_from(result).unwrap_or(i32::MAX),
        _ => -io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO),
    }
}
