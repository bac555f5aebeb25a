//! One frame on its way: its head in our own memory, its rest still where it came from.
//!
//! Invariant: all that is ever looked at is the head, which was read once into memory that no guest can write; the rest
//! is copied once, from where it came to where it goes.

use bixi_offload::ring::Segments as GuestSegments;

/// Bytes before a frame that every head has room for: the longest virtio-net header.
pub const SPARE: usize = crate::packet::offload::HEADER;
/// The longest frame that any offload can make: an IPv4 packet of 65,535 bytes.
pub const LONGEST: usize = crate::packet::ETHERNET + 65_535;

/// The part of a frame that was not read.
#[derive(Debug, Clone, Copy)]
pub enum Rest<'a> {
    /// In the memory of the guest that sent it.
    Guest(GuestSegments<'a>),
    /// In our own memory.
    Ours(&'a [u8]),
}

impl Rest<'_> {
    /// Nothing.
    pub const NONE: Self = Self::Ours(&[]);

    /// Size in bytes.
    #[inline]
    pub fn length(&self) -> usize {
        match self {
            Self::Guest(segments) => segments.len(),
            Self::Ours(bytes) => bytes.len(),
        }
    }

    /// Copies the beginning to `to`, as much as both have.
    #[inline]
    pub fn copy_to_guest(&self, to: &GuestSegments<'_>) {
        match self {
            Self::Guest(segments) => to.copy_from(segments),
            Self::Ours(bytes) => to.write(bytes),
        };
    }

    /// Copies what there is behind `out`'s last byte.
    pub fn append_to(&self, out: &mut Vec<u8>) {
        match self {
            Self::Guest(segments) => {
                let start = out.len();
                out.resize(start + segments.len(), 0);
                let done = segments.read(&mut out[start..]);
                out.truncate(start + done);
            }
            Self::Ours(bytes) => out.extend_from_slice(bytes),
        }
    }

    /// The same without its first `n` bytes; nothing if there are fewer.
    pub fn skip(&self, n: usize) -> Self {
        match self {
            Self::Guest(segments) => {
                segments.split_at(n).map_or(Self::NONE, |(_, b)| Self::Guest(b))
            }
            Self::Ours(bytes) => Self::Ours(bytes.get(n..).unwrap_or(&[])),
        }
    }
}

/// A frame to give to somebody.
#[derive(Debug)]
pub struct Outgoing<'a> {
    /// [`SPARE`] bytes, then the frame's first bytes.
    pub head: &'a mut [u8],
    /// What follows.
    pub rest: Rest<'a>,
}

impl Outgoing<'_> {
    /// Bytes of the frame.
    #[inline]
    pub fn length(&self) -> usize {
        self.head.len() - SPARE + self.rest.length()
    }

    /// Puts the whole frame behind [`SPARE`] bytes into `out`, which is emptied first.
    pub fn stage(&self, out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(self.head);
        self.rest.append_to(out);
    }
}
