//! What a virtio-blk device offers: feature bits and the configuration space (virtio 1.2, sections 5.2.3 and 5.2.4).
//!
//! Only what the engine behind a disk can do is offered. What is offered is written down with the attachment and stays
//! the same while it lasts, because a front end that comes back finds a changed device unusable.

use super::request::{DISCARD_LIMIT, RANGES, SECTOR, ZEROES_LIMIT};
use bixi_offload::ring::{FEATURE_EVENT_IDX, FEATURE_INDIRECT, FEATURE_VERSION_1};

/// VIRTIO_BLK_F_SEG_MAX: the most segments of a request are told.
pub const FEATURE_SEG_MAX: u64 = 1 << 2;
/// VIRTIO_BLK_F_RO: the disk cannot be written.
pub const FEATURE_READ_ONLY: u64 = 1 << 5;
/// VIRTIO_BLK_F_BLK_SIZE: the block size is told.
pub const FEATURE_BLOCK_SIZE: u64 = 1 << 6;
/// VIRTIO_BLK_F_FLUSH: there is a flush. A driver that does not acknowledge it gets writes that are durable at once.
pub const FEATURE_FLUSH: u64 = 1 << 9;
/// VIRTIO_BLK_F_TOPOLOGY: the physical block size is told.
pub const FEATURE_TOPOLOGY: u64 = 1 << 10;
/// VIRTIO_BLK_F_MQ: the number of queues is told.
pub const FEATURE_QUEUES: u64 = 1 << 12;
/// VIRTIO_BLK_F_DISCARD.
pub const FEATURE_DISCARD: u64 = 1 << 13;
/// VIRTIO_BLK_F_WRITE_ZEROES.
pub const FEATURE_WRITE_ZEROES: u64 = 1 << 14;

/// Bytes of the configuration space: all that virtio 1.3 names, of which we leave the last fields zero.
const CONFIG_SIZE: usize = 96;

/// The most data segments of a request. Two descriptors less than the smallest ring in use, so that a driver without
/// indirect descriptors can have a request of that size.
pub const SEGMENTS: u32 = 126;

/// Blocks of the file systems we serve from, as a power of two of 512-byte sectors: 4 KiB.
const PHYSICAL_BLOCK_EXPONENT: u8 = 3;

/// What is offered, apart from the disk's contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// The size in bytes.
    pub size: u64,
    /// Request queues.
    pub queues: u16,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether discard is offered.
    pub discard: bool,
    /// Whether write-zeroes is offered.
    pub write_zeroes: bool,
    /// Whether write-zeroes may deallocate.
    pub zeroes_may_unmap: bool,
}

impl Shape {
    /// The virtio feature bits.
    pub fn features(&self) -> u64 {
        let always = FEATURE_SEG_MAX
            | FEATURE_BLOCK_SIZE
            | FEATURE_FLUSH
            | FEATURE_TOPOLOGY
            | FEATURE_QUEUES
            | FEATURE_INDIRECT
            | FEATURE_EVENT_IDX
            | FEATURE_VERSION_1;
        let when = |condition: bool, feature| if condition { feature } else { 0 };
        always
            | when(self.read_only, FEATURE_READ_ONLY)
            | when(self.discard && !self.read_only, FEATURE_DISCARD)
            | when(self.write_zeroes && !self.read_only, FEATURE_WRITE_ZEROES)
    }

    /// The bytes of the configuration space.
    pub fn config(&self) -> Vec<u8> {
        let block = 1u32 << PHYSICAL_BLOCK_EXPONENT;
        let mut config = vec![0; CONFIG_SIZE];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &(self.size / SECTOR).to_le_bytes());
        put(12, &SEGMENTS.to_le_bytes());
        put(20, &(SECTOR as u32).to_le_bytes());
        put(24, &[PHYSICAL_BLOCK_EXPONENT, 0]);
        put(26, &(block as u16).to_le_bytes());
        put(34, &self.queues.to_le_bytes());
        if self.features() & FEATURE_DISCARD != 0 {
            put(36, &((DISCARD_LIMIT / SECTOR) as u32).to_le_bytes());
            put(40, &(RANGES as u32).to_le_bytes());
            put(44, &block.to_le_bytes());
        }
        if self.features() & FEATURE_WRITE_ZEROES != 0 {
            put(48, &((ZEROES_LIMIT / SECTOR) as u32).to_le_bytes());
            put(52, &(RANGES as u32).to_le_bytes());
            put(56, &[u8::from(self.zeroes_may_unmap)]);
        }
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape {
        size: (1 << 40) + 512,
        queues: 5,
        read_only: false,
        discard: true,
        write_zeroes: true,
        zeroes_may_unmap: true,
    };

    #[test]
    fn the_configuration_space_has_every_value_in_its_place() {
        let config = SHAPE.config();
        let word = |at: usize| u32::from_le_bytes(config[at..at + 4].try_into().unwrap());
        assert_eq!(u64::from(word(0)) | u64::from(word(4)) << 32, (1 << 31) + 1, "capacity");
        assert_eq!(word(8), 0, "size_max: not offered");
        assert_eq!(word(12), 126, "seg_max");
        assert_eq!(word(16), 0, "geometry: not offered");
        assert_eq!(word(20), 512, "blk_size");
        assert_eq!(config[24..28], [3, 0, 8, 0], "physical blocks of 4 KiB, aligned");
        assert_eq!(word(32), 5 << 16, "no write cache toggle; num_queues at 34");
        assert_eq!(word(36), 1 << 21, "max_discard_sectors");
        assert_eq!(word(40), 32, "max_discard_seg");
        assert_eq!(word(44), 8, "discard granularity of 4 KiB");
        assert_eq!(word(48), 1 << 18, "max_write_zeroes_sectors");
        assert_eq!(word(52), 32, "max_write_zeroes_seg");
        assert_eq!(config[56..], [&[1][..], &[0; 39]].concat(), "may unmap, then nothing");
    }

    #[test]
    fn only_what_the_engine_can_do_is_offered() {
        let all = SHAPE.features();
        assert_eq!(all, 0x1_3000_7644);
        let plain = Shape { discard: false, write_zeroes: false, ..SHAPE };
        assert_eq!(plain.features(), all & !(FEATURE_DISCARD | FEATURE_WRITE_ZEROES));
        assert_eq!(plain.config()[36..], [0; 60]);
        let read_only = Shape { read_only: true, ..SHAPE };
        assert_eq!(read_only.features(), plain.features() | FEATURE_READ_ONLY);
    }
}
