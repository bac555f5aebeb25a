//! Reads qcow2 images (QEMU's docs/interop/qcow2.txt), versions 2 and 3, as far as a stranger's image may go.
//!
//! Refused by name: encryption, backing files and external data files (they would make us open what the image names),
//! compression other than deflate, and extended L2 entries.
//!
//! Invariants: [`Header::parse`], [`Header::l1_entry`] and [`Header::l2_entry`] are pure and take any bytes; no offset is
//! followed before it was compared with the file's length; at most one L2 table and one cluster are held; a cluster of
//! plain data that is named more often than the file has clusters ends the reading, so that a small file cannot become a
//! large one that way.

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// What every qcow2 file begins with.
pub const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Bytes of a header that are looked at.
pub const HEADER: usize = 112;
/// The largest L1 table, in entries, as QEMU has it.
const L1_LIMIT: u32 = (32 << 20) / 8;
/// Offsets in L1 and L2 entries.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;

/// Incompatible features.
mod feature {
    pub const DIRTY: u64 = 1;
    pub const CORRUPT: u64 = 1 << 1;
    pub const EXTERNAL_DATA: u64 = 1 << 2;
    pub const COMPRESSION: u64 = 1 << 3;
    pub const EXTENDED_L2: u64 = 1 << 4;
}

/// What of a header is needed to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the disk.
    pub size: u64,
    cluster_bits: u32,
    l1_entries: u32,
    l1_offset: u64,
    version: u32,
}

/// Where a cluster's content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cluster {
    /// Nowhere: zeros.
    Zero,
    /// In the file at this offset.
    Data(u64),
    /// Compressed, in these bytes of the file at most.
    Compressed {
        /// Where they begin.
        offset: u64,
        /// How many there are at most.
        length: usize,
    },
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_be_bytes(*b))
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u64::from_be_bytes(*b))
}

impl Header {
    /// Reads the header at the beginning of a file: its first [`HEADER`] bytes, or all of a shorter one.
    ///
    /// # Errors
    /// What is wrong with it or cannot be read here, as a sentence.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes.get(..4) != Some(&MAGIC) {
            return Err("it is no qcow2 image".to_owned());
        }
        let version = be32(bytes, 4);
        let least = match version {
            2 => 72,
            3 => 104,
            _ => return Err(format!("it is qcow2 version {version}, and 2 and 3 are known")),
        };
        if bytes.len() < least {
            return Err("its header is cut".to_owned());
        }
        if be64(bytes, 8) != 0 {
            return Err("it has a backing file, which would not come along: flatten it first \
                        with `qemu-img convert -O qcow2`"
                .to_owned());
        }
        if be32(bytes, 32) != 0 {
            return Err("it is encrypted: decrypt it first with `qemu-img convert`".to_owned());
        }
        check_features(if version == 3 { be64(bytes, 72) } else { 0 }, bytes)?;
        let header = Self {
            size: be64(bytes, 24),
            cluster_bits: be32(bytes, 20),
            l1_entries: be32(bytes, 36),
            l1_offset: be64(bytes, 40),
            version,
        };
        if !(9..=21).contains(&header.cluster_bits) {
            return Err(format!("its clusters have 2^{} bytes", header.cluster_bits));
        }
        let covered = header.size.div_ceil(header.l2_reach());
        if header.l1_entries > L1_LIMIT || u64::from(header.l1_entries) < covered {
            return Err("its first table does not fit its size".to_owned());
        }
        if !header.l1_offset.is_multiple_of(header.cluster()) {
            return Err("its first table is at an odd place".to_owned());
        }
        Ok(header)
    }

    /// Bytes of a cluster.
    pub fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bytes of the disk that one L2 table is about.
    pub fn l2_reach(&self) -> u64 {
        self.cluster() * (self.cluster() / 8)
    }

    /// Where the L2 table of an L1 entry is; none if there is none.
    ///
    /// # Errors
    /// The entry is wrong.
    pub fn l1_entry(&self, entry: u64) -> Result<Option<u64>, String> {
        let offset = entry & OFFSET;
        if !offset.is_multiple_of(self.cluster()) {
            return Err("a table is at an odd place".to_owned());
        }
        Ok((offset != 0).then_some(offset))
    }

    /// Where the cluster of an L2 entry is.
    ///
    /// # Errors
    /// The entry is wrong.
    pub fn l2_entry(&self, entry: u64) -> Result<Cluster, String> {
        if entry & COMPRESSED != 0 {
            let bits = 62 - (self.cluster_bits - 8);
            let offset = entry & ((1 << bits) - 1);
            let sectors = entry >> bits & ((1 << (62 - bits)) - 1);
            let length = (sectors + 1) * 512 - offset % 512;
            return Ok(Cluster::Compressed { offset, length: length as usize });
        }
        let offset = entry & OFFSET;
        if self.version >= 3 && entry & ZERO != 0 || offset == 0 {
            return Ok(Cluster::Zero);
        }
        if !offset.is_multiple_of(self.cluster()) {
            return Err("a cluster is at an odd place".to_owned());
        }
        Ok(Cluster::Data(offset))
    }
}

fn check_features(features: u64, bytes: &[u8]) -> Result<(), String> {
    use feature::*;
    if features & CORRUPT != 0 {
        return Err("it is marked as corrupt: repair it with `qemu-img check -r all`".to_owned());
    }
    if features & EXTERNAL_DATA != 0 {
        return Err(
            "its data is in another file: bring it together with `qemu-img convert`".to_owned()
        );
    }
    let deflate = features & COMPRESSION == 0 || bytes.get(104).is_none_or(|kind| *kind == 0);
    if !deflate {
        return Err("it is compressed with something else than deflate: convert it with \
                    `qemu-img convert -O qcow2`"
            .to_owned());
    }
    // A dirty image's reference counts may be wrong; they are not read here.
    if features & EXTENDED_L2 != 0 || features & !(DIRTY | COMPRESSION) != 0 {
        return Err("it uses features that are not known here: convert it with \
                    `qemu-img convert -O qcow2`"
            .to_owned());
    }
    Ok(())
}

/// An image that is read from front to back.
#[derive(Debug)]
pub struct Reader<'a> {
    file: &'a File,
    length: u64,
    header: Header,
    /// Clusters of plain data that may still be named.
    plain_left: u64,
}

impl<'a> Reader<'a> {
    /// Opens an image.
    ///
    /// # Errors
    /// It cannot be read, or not here; see [`Header::parse`].
    pub fn new(file: &'a File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        let mut bytes = [0; HEADER];
        let there = bytes.len().min(usize::try_from(length).unwrap_or(HEADER));
        file.read_exact_at(&mut bytes[..there], 0)?;
        let header = Header::parse(&bytes[..there]).map_err(io::Error::other)?;
        let plain_left = length.div_ceil(header.cluster());
        Ok(Self { file, length, header, plain_left })
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.header.size
    }

    /// Gives the whole disk in order, in pieces: their length, and their content if it is not all zeros.
    ///
    /// # Errors
    /// The image is wrong or cannot be read, or `give` fails.
    pub fn read(
        mut self,
        mut give: impl FnMut(u64, Option<&[u8]>) -> io::Result<()>,
    ) -> io::Result<()> {
        let header = self.header.clone();
        let l1 = self.table(header.l1_offset, header.l1_entries as usize)?;
        let mut cluster = vec![0; header.cluster() as usize];
        let mut inflater = Box::<DecompressorOxide>::default();
        let mut at = 0;
        for entry in l1 {
            if at >= header.size {
                break;
            }
            let Some(offset) = header.l1_entry(entry).map_err(io::Error::other)? else {
                let length = header.l2_reach().min(header.size - at);
                give(length, None)?;
                at += length;
                continue;
            };
            for entry in self.table(offset, (header.cluster() / 8) as usize)? {
                if at >= header.size {
                    break;
                }
                let length = header.cluster().min(header.size - at);
                let place = header.l2_entry(entry).map_err(io::Error::other)?;
                if self.fill(place, &mut cluster, &mut inflater)? {
                    give(length, Some(&cluster[..length as usize]))?;
                } else {
                    give(length, None)?;
                }
                at += length;
            }
        }
        Ok(())
    }

    /// Reads a cluster; false if it is all zeros.
    fn fill(
        &mut self,
        place: Cluster,
        cluster: &mut [u8],
        inflater: &mut DecompressorOxide,
    ) -> io::Result<bool> {
        match place {
            Cluster::Zero => return Ok(false),
            Cluster::Data(offset) => {
                let left = self.plain_left.checked_sub(1);
                self.plain_left = left.ok_or_else(|| wrong("it names clusters more than once"))?;
                // The last cluster of a file may be cut: the rest reads as zeros.
                let there = self.there(offset, cluster.len())?;
                self.file.read_exact_at(&mut cluster[..there], offset)?;
                cluster[there..].fill(0);
            }
            Cluster::Compressed { offset, length } => {
                let there = self.there(offset, length)?;
                let mut packed = vec![0; there];
                self.file.read_exact_at(&mut packed, offset)?;
                inflater.init();
                let flags = inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
                let (status, _, done) = decompress(inflater, &packed, cluster, 0, flags);
                // The packed bytes end somewhere in their last sector; a whole cluster is what counts.
                let whole = matches!(status, TINFLStatus::Done | TINFLStatus::HasMoreOutput);
                if !whole || done != cluster.len() {
                    return Err(wrong("a compressed cluster is damaged"));
                }
            }
        }
        Ok(true)
    }

    /// How many of `length` bytes at `offset` the file has.
    fn there(&self, offset: u64, length: usize) -> io::Result<usize> {
        match self.length.checked_sub(offset) {
            None | Some(0) => Err(wrong("it names a place behind its end")),
            Some(there) => Ok(length.min(usize::try_from(there).unwrap_or(length))),
        }
    }

    fn table(&self, offset: u64, entries: usize) -> io::Result<Vec<u64>> {
        let bytes = entries * 8;
        if entries == 0 {
            return Ok(Vec::new());
        }
        if self.there(offset, bytes)? < bytes {
            return Err(wrong("a table of it is cut"));
        }
        let mut table = vec![0; bytes];
        self.file.read_exact_at(&mut table, offset)?;
        Ok((0..entries).map(|index| be64(&table, index * 8)).collect())
    }
}

fn wrong(what: &str) -> io::Error {
    io::Error::other(what.to_owned())
}
