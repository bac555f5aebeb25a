//! A virtio-blk request as the driver wrote it (virtio 1.2, section 5.2.6).
//!
//! ```text
//! readable: type u32 | reserved u32 | sector u64 | data of a write …
//! writable:                       data of a read … | status u8
//! ```
//!
//! Nothing is assumed about how these bytes are cut into descriptors. Invariants: [`parse`] reads every byte of the
//! guest once and never panics; what it returns lies wholly inside the disk, and nothing of a request is done before
//! all of it was checked.

use super::config::{FEATURE_DISCARD, FEATURE_WRITE_ZEROES};
use super::ranges::Span;
use bixi_offload::rate::Cost;
use bixi_offload::ring::{Chain, Segments};

/// Bytes of the unit in which positions are counted, whatever the block size.
pub const SECTOR: u64 = 512;
/// The most ranges of one discard or write-zeroes request.
pub const RANGES: usize = 32;
/// The longest range of a discard, in bytes.
pub const DISCARD_LIMIT: u64 = 1 << 30;
/// The longest range of a write-zeroes, in bytes: less, since it may have to be written out.
pub const ZEROES_LIMIT: u64 = 128 << 20;

/// VIRTIO_BLK_S_OK.
pub const STATUS_OK: u8 = 0;
/// VIRTIO_BLK_S_IOERR.
pub const STATUS_ERROR: u8 = 1;
/// VIRTIO_BLK_S_UNSUPP.
pub const STATUS_UNSUPPORTED: u8 = 2;

const TYPE_READ: u32 = 0;
const TYPE_WRITE: u32 = 1;
const TYPE_FLUSH: u32 = 4;
const TYPE_GET_ID: u32 = 8;
const TYPE_DISCARD: u32 = 11;
const TYPE_WRITE_ZEROES: u32 = 13;

const HEADER: usize = 16;
const RANGE: usize = 16;
/// VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP.
const FLAG_UNMAP: u32 = 1;

/// What bounds the requests of a disk.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Its size in bytes.
    pub size: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// The virtio features that were negotiated.
    pub features: u64,
}

/// What a request wants.
#[derive(Debug)]
pub enum Operation<'a> {
    /// Bytes of the disk into these bytes of the guest.
    Read(u64, Segments<'a>),
    /// These bytes of the guest onto the disk.
    Write(u64, Segments<'a>),
    /// All that was acknowledged onto the medium.
    Flush,
    /// These ranges are of no more use.
    Discard(Ranges),
    /// These ranges are to be zeroes.
    WriteZeroes(Ranges),
    /// The serial number into these bytes.
    GetId(Segments<'a>),
    /// Nothing: the request is refused with this status.
    Refuse(u8),
}

impl Operation<'_> {
    /// What it costs its disk, where that is limited. As in the clouds whose limits these are, a flush moves nothing and
    /// is free.
    pub fn cost(&self) -> Cost {
        match self {
            Self::Read(_, data) | Self::Write(_, data) => {
                Cost { operations: 1, bytes: data.len() as u64 }
            }
            Self::Discard(_) | Self::WriteZeroes(_) => Cost { operations: 1, bytes: 0 },
            Self::Flush | Self::GetId(_) | Self::Refuse(_) => Cost::default(),
        }
    }
}

/// A request.
#[derive(Debug)]
pub struct Request<'a> {
    /// What it wants.
    pub operation: Operation<'a>,
    /// Where its status goes: one byte. Empty if the driver left no room for one.
    pub status: Segments<'a>,
    /// What is reported as written: all that is writable, whatever was written of it. Drivers do not look at it.
    pub writable: u32,
}

/// The ranges of a discard or write-zeroes request.
#[derive(Debug, Clone, Copy)]
pub struct Ranges {
    spans: [Span; RANGES],
    unmap: u32,
    count: usize,
}

impl Ranges {
    const NONE: Self = Self { spans: [Span { start: 0, end: 0 }; RANGES], unmap: 0, count: 0 };

    /// The range number `index` and whether it may be deallocated.
    pub fn get(&self, index: usize) -> Option<(Span, bool)> {
        (index < self.count).then(|| (self.spans[index], self.unmap >> index & 1 != 0))
    }

    pub(super) fn push(&mut self, span: Span, unmap: bool) {
        self.spans[self.count] = span;
        self.unmap |= u32::from(unmap) << self.count;
        self.count += 1;
    }
}

impl Default for Ranges {
    fn default() -> Self {
        Self::NONE
    }
}

/// Reads a request.
#[inline]
pub fn parse<'a>(chain: &Chain<'a>, limits: &Limits) -> Request<'a> {
    let (readable, writable) = (chain.readable(), chain.writable());
    let length = writable.len();
    // A driver that left no room for a status cannot be told anything; nothing is done for it.
    let Some((room, status)) = length.checked_sub(1).and_then(|data| writable.split_at(data))
    else {
        return Request {
            operation: Operation::Refuse(STATUS_ERROR),
            status: writable,
            writable: 0,
        };
    };
    let operation = operation(&readable, room, limits).unwrap_or_else(Operation::Refuse);
    Request { operation, status, writable: length as u32 }
}

#[inline]
fn operation<'a>(
    readable: &Segments<'a>,
    room: Segments<'a>,
    limits: &Limits,
) -> Result<Operation<'a>, u8> {
    let header: [u8; HEADER] = readable.read_array().ok_or(STATUS_ERROR)?;
    let [kind @ .., _, _, _, _, _, _, _, _, _, _, _, _] = header;
    let [.., s0, s1, s2, s3, s4, s5, s6, s7] = header;
    let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    let data = || readable.split_at(HEADER).map(|(_, data)| data).ok_or(STATUS_ERROR);
    match u32::from_le_bytes(kind) {
        TYPE_READ => Ok(Operation::Read(limits.place(sector, room.len() as u64)?.start, room)),
        TYPE_WRITE if limits.read_only => Err(STATUS_ERROR),
        TYPE_WRITE => {
            let data = data()?;
            Ok(Operation::Write(limits.place(sector, data.len() as u64)?.start, data))
        }
        TYPE_FLUSH => Ok(Operation::Flush),
        TYPE_GET_ID => Ok(Operation::GetId(room)),
        TYPE_DISCARD if limits.features & FEATURE_DISCARD != 0 => {
            limits.ranges(&data()?, DISCARD_LIMIT, 0).map(Operation::Discard)
        }
        TYPE_WRITE_ZEROES if limits.features & FEATURE_WRITE_ZEROES != 0 => {
            limits.ranges(&data()?, ZEROES_LIMIT, FLAG_UNMAP).map(Operation::WriteZeroes)
        }
        _ => Err(STATUS_UNSUPPORTED),
    }
}

impl Limits {
    /// Where `length` bytes from `sector` on lie, if that is whole sectors inside the disk.
    #[inline]
    fn place(&self, sector: u64, length: u64) -> Result<Span, u8> {
        let start = sector.checked_mul(SECTOR).ok_or(STATUS_ERROR)?;
        let end = start.checked_add(length).ok_or(STATUS_ERROR)?;
        if end > self.size || !length.is_multiple_of(SECTOR) {
            return Err(STATUS_ERROR);
        }
        Ok(Span { start, end })
    }

    /// The ranges in `data`: { sector u64, sectors u32, flags u32 } each.
    fn ranges(&self, data: &Segments<'_>, limit: u64, known_flags: u32) -> Result<Ranges, u8> {
        if self.read_only || data.is_empty() || !data.len().is_multiple_of(RANGE) {
            return Err(STATUS_ERROR);
        }
        if data.len() / RANGE > RANGES {
            return Err(STATUS_ERROR);
        }
        let mut ranges = Ranges::default();
        let mut bytes = [0; RANGES * RANGE];
        let length = data.read(&mut bytes);
        let (entries, _) = bytes[..length].as_chunks::<RANGE>();
        for entry in entries {
            let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, f0, f1, f2, f3] = *entry;
            let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
            let length = u64::from(u32::from_le_bytes([n0, n1, n2, n3])) * SECTOR;
            let flags = u32::from_le_bytes([f0, f1, f2, f3]);
            if flags & !known_flags != 0 {
                return Err(STATUS_UNSUPPORTED);
            }
            if length > limit {
                return Err(STATUS_ERROR);
            }
            ranges.push(self.place(sector, length)?, flags & FLAG_UNMAP != 0);
        }
        Ok(ranges)
    }
}
