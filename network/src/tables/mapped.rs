//! A file of 64-byte records, mapped.
//!
//! ```text
//! 0      magic (8)  version (4)  records (4)  seed (16)  crc32c of the 32 bytes before (4)
//! 4096   record 0 … record n-1
//! ```
//!
//! The file is sparse. tmpfs gives a page when it is first written, and a full tmpfs answers such a write in a mapping with
//! SIGBUS: so whoever writes a record asks for its page first ([`Mapped::reserve`]), and can be refused.
//!
//! Invariants: the mapping has room for the header and `records` records; nothing here makes a Rust reference to a
//! record but as atomic words, because another process may read the file meanwhile; the record's first word is its check,
//! written last. Used by [`super::lease`] and by the engine's flow cache.

use super::TableError;
use rustix::fs::{SeekFrom, seek};
use rustix::mm::{MapFlags, ProtFlags};
use std::fs::{File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::atomic::Ordering::{self, Relaxed};
use std::sync::atomic::{AtomicU64, fence};

/// Bytes of a record: one cache line.
pub const RECORD: usize = 64;
/// 64-bit words of a record.
pub const WORDS: usize = RECORD / 8;
/// Bytes before the first record: a page, so that records are aligned however they are mapped.
const HEADER: usize = 4096;
/// Records in a page.
const PAGE_RECORDS: usize = 4096 / RECORD;
/// Bytes of the header that mean something.
const HEADER_USED: usize = 36;

/// One record: eight words, the check word first.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Record(pub [AtomicU64; WORDS]);

/// What kind of table a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// The first eight bytes of the file.
    pub magic: [u8; 8],
    /// The version of the records' layout.
    pub version: u32,
    /// How many records there are.
    pub records: u32,
}

/// An open table.
#[derive(Debug)]
pub struct Mapped {
    start: NonNull<u8>,
    layout: Layout,
    seed: [u64; 2],
    file: File,
    path: PathBuf,
    /// A bit for each page of records that the file really has.
    pages: Box<[AtomicU64]>,
}

// SAFETY: the mapping is shared memory that lives until drop; all access is through atomics.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// Opens the table at `path`, or makes an empty one. A file of another layout is emptied. The second value says
    /// whether the table was there before.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn open(path: &Path, layout: Layout) -> Result<(Self, bool), TableError> {
        let failed = |what| {
            let path = path.to_owned();
            move |source| TableError { what, path, source }
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(failed("open"))?;
        let length = HEADER as u64 + u64::from(layout.records) * RECORD as u64;
        let known = read_header(&file, layout, length).map_err(failed("read"))?;
        let seed = match known {
            Some(seed) => seed,
            None => make(&file, layout, length).map_err(failed("write"))?,
        };
        // SAFETY: a fresh shared mapping at an address of the kernel's choice, of a file as long as that.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                length as usize,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &file,
                0,
            )
        };
        let start = start.map_err(|e| failed("map")(e.into()))?;
        let start =
            NonNull::new(start.cast()).ok_or_else(|| failed("map")(io::Error::other("null")))?;
        let pages = (layout.records as usize).div_ceil(PAGE_RECORDS).div_ceil(64);
        let pages = (0..pages).map(|_| AtomicU64::new(0)).collect();
        let table = Self { start, layout, seed, file, path: path.to_owned(), pages };
        if known.is_some() {
            table.for_each_written(|index, _| table.note_page(index))?;
        }
        Ok((table, known.is_some()))
    }

    /// Sees to it that record number `index` can be written. False when there is no room for it. A system call for each
    /// page that the file gets, and none after.
    #[inline]
    #[must_use]
    pub fn reserve(&self, index: usize) -> bool {
        let page = index / PAGE_RECORDS;
        let has = self
            .pages
            .get(page / 64)
            .is_some_and(|word| word.load(Relaxed) >> (page % 64) & 1 == 1);
        has || self.make_page(index)
    }

    #[cold]
    fn make_page(&self, index: usize) -> bool {
        if index >= self.len() {
            return false;
        }
        let start = HEADER + index / PAGE_RECORDS * PAGE_RECORDS * RECORD;
        let length = (PAGE_RECORDS * RECORD).min(HEADER + self.len() * RECORD - start);
        let flags = rustix::fs::FallocateFlags::empty();
        let made = rustix::fs::fallocate(&self.file, flags, start as u64, length as u64).is_ok();
        if made {
            self.note_page(index);
        }
        made
    }

    fn note_page(&self, index: usize) {
        let page = index / PAGE_RECORDS;
        if let Some(word) = self.pages.get(page / 64) {
            word.fetch_or(1 << (page % 64), Relaxed);
        }
    }

    /// How many records there are.
    pub fn len(&self) -> usize {
        self.layout.records as usize
    }

    /// Whether there is no record at all.
    pub fn is_empty(&self) -> bool {
        self.layout.records == 0
    }

    /// Two random words, made with the file: they keep a hash of records' keys the same for the file's life.
    pub fn seed(&self) -> [u64; 2] {
        self.seed
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Record number `index`; none past the end. It may be read at any time, and written once it was reserved.
    #[inline]
    pub fn record(&self, index: usize) -> Option<&Record> {
        // SAFETY: the record lies inside the mapping, which lives as long as `self`; it is aligned because the mapping
        // and the header are whole pages; AtomicU64 allows that others write meanwhile.
        (index < self.len()).then(|| unsafe { self.at(index).as_ref() })
    }

    /// Asks the processor to fetch record number `index`, without waiting. Any index is allowed.
    #[inline]
    pub fn prefetch(&self, index: usize) {
        let address = self.start.as_ptr().wrapping_add(HEADER + index * RECORD);
        crate::packet::prefetch(address);
    }

    /// # Safety
    /// `index` is below [`Mapped::len`].
    #[inline]
    unsafe fn at(&self, index: usize) -> NonNull<Record> {
        // SAFETY: inside the mapping, by the caller's promise.
        unsafe { self.start.add(HEADER + index * RECORD).cast() }
    }

    /// Calls `visit` for every record that may not be empty, in order. The holes of a sparse file are skipped without
    /// being read, because reading would fill them.
    ///
    /// # Errors
    /// The kernel cannot say where the holes are.
    pub fn for_each_written(
        &self,
        mut visit: impl FnMut(usize, &Record),
    ) -> Result<(), TableError> {
        let failed = |e: rustix::io::Errno| TableError {
            what: "read",
            path: self.path.clone(),
            source: e.into(),
        };
        let mut at = HEADER as u64;
        loop {
            at = match seek(&self.file, SeekFrom::Data(at)) {
                Ok(at) => at,
                Err(rustix::io::Errno::NXIO) => return Ok(()),
                Err(e) => return Err(failed(e)),
            };
            let end = seek(&self.file, SeekFrom::Hole(at)).map_err(failed)?;
            let first = (at as usize).saturating_sub(HEADER) / RECORD;
            let last = (end as usize).saturating_sub(HEADER).div_ceil(RECORD).min(self.len());
            for index in first..last {
                if let Some(record) = self.record(index) {
                    visit(index, record);
                }
            }
            at = end;
        }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let length = HEADER + self.len() * RECORD;
        // SAFETY: mapped by `open`; no reference to a record outlives `self`.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), length) };
    }
}

impl Record {
    /// Writes the words behind the check word, and the check word `check` of them, such that a process killed at any
    /// instant leaves either the old record, the new one, or one whose check word is zero.
    ///
    /// Only the first `covered` words behind the check word are part of the check; see [`check_of`].
    #[inline]
    pub fn write(&self, words: &[u64; WORDS - 1], covered: usize) {
        self.0[0].store(0, Relaxed);
        // The check word is cleared before any other word changes, …
        fence(Ordering::Release);
        for (to, word) in self.0[1..].iter().zip(words) {
            to.store(*word, Relaxed);
        }
        // … and set after all have.
        self.0[0].store(check_of(&words[..covered.min(words.len())]), Ordering::Release);
    }

    /// The words behind the check word.
    #[inline]
    pub fn read(&self) -> [u64; WORDS - 1] {
        std::array::from_fn(|i| self.0[i + 1].load(Relaxed))
    }

    /// What the record is.
    pub fn state(&self, covered: usize) -> RecordState {
        let check = self.0[0].load(Ordering::Acquire);
        let words = self.read();
        match check {
            0 if words == [0; WORDS - 1] => RecordState::Empty,
            0 => RecordState::Torn,
            check if check == check_of(&words[..covered.min(words.len())]) => RecordState::Whole,
            _ => RecordState::Torn,
        }
    }

    /// Makes it empty.
    pub fn clear(&self) {
        for word in &self.0 {
            word.store(0, Ordering::Release);
        }
    }
}

/// What a record is found to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordState {
    /// Never written, or cleared.
    Empty,
    /// Written whole.
    Whole,
    /// Being written when its process died, or damaged.
    Torn,
}

/// The check word of these words: their CRC-32C, with a bit set so that it is never zero.
pub fn check_of(words: &[u64]) -> u64 {
    let crc = words.iter().fold(0, |crc, word| crc32c::crc32c_append(crc, &word.to_le_bytes()));
    u64::from(crc) | 1 << 32
}

/// The seed of a file that has this layout and length; none when it has not.
fn read_header(file: &File, layout: Layout, length: u64) -> io::Result<Option<[u64; 2]>> {
    let mut header = [0; HEADER_USED];
    if file.metadata()?.len() != length {
        return Ok(None);
    }
    file.read_exact_at(&mut header, 0)?;
    Ok(decode_header(&header, layout))
}

/// The seed in a header that has this layout.
pub(crate) fn decode_header(header: &[u8; HEADER_USED], layout: Layout) -> Option<[u64; 2]> {
    let (body, crc) = header.split_first_chunk::<32>()?;
    let seed = [
        u64::from_le_bytes(*body[16..].first_chunk()?),
        u64::from_le_bytes(*body[24..].first_chunk()?),
    ];
    let fits = crc == crc32c::crc32c(body).to_le_bytes() && *body == encode_header(layout, seed);
    fits.then_some(seed)
}

fn encode_header(layout: Layout, seed: [u64; 2]) -> [u8; 32] {
    let mut body = [0; 32];
    body[..8].copy_from_slice(&layout.magic);
    body[8..12].copy_from_slice(&layout.version.to_le_bytes());
    body[12..16].copy_from_slice(&layout.records.to_le_bytes());
    body[16..24].copy_from_slice(&seed[0].to_le_bytes());
    body[24..].copy_from_slice(&seed[1].to_le_bytes());
    body
}

/// Makes `file` an empty table of this layout.
fn make(file: &File, layout: Layout, length: u64) -> io::Result<[u64; 2]> {
    let [low, high] = [0u8, 1].map(|word| RandomState::new().hash_one(word));
    let body = encode_header(layout, [low, high]);
    // The header comes last: a process killed before leaves a file that is made anew.
    file.set_len(0)?;
    file.set_len(length)?;
    let mut header = [0; HEADER_USED];
    header[..32].copy_from_slice(&body);
    header[32..].copy_from_slice(&crc32c::crc32c(&body).to_le_bytes());
    file.write_all_at(&header, 0)?;
    Ok([low, high])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LAYOUT: Layout = Layout { magic: *b"BIXITEST", version: 1, records: 4096 };

    #[test]
    fn what_is_written_is_found_again_and_holes_are_skipped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table");
        let (table, known) = Mapped::open(&path, LAYOUT).unwrap();
        assert!(!known);
        assert!(table.reserve(7) && table.reserve(4095) && !table.reserve(4096));
        table.record(7).unwrap().write(&[1, 2, 3, 4, 5, 6, 7], 4);
        table.record(4095).unwrap().write(&[9; 7], 7);
        assert!(table.record(4096).is_none());
        let seed = table.seed();
        drop(table);
        let (table, known) = Mapped::open(&path, LAYOUT).unwrap();
        assert!(known && table.seed() == seed);
        let mut whole = Vec::new();
        let mut visited = 0;
        table
            .for_each_written(|i, r| {
                visited += 1;
                if r.state(if i == 7 { 4 } else { 7 }) == RecordState::Whole {
                    whole.push(i);
                }
            })
            .unwrap();
        assert_eq!(whole, [7, 4095]);
        assert!(visited < 4096, "holes were visited");
    }

    #[test]
    fn a_file_of_another_layout_or_length_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table");
        let newer = Layout { version: 2, ..LAYOUT };
        for other in [newer, Layout { records: 8, ..LAYOUT }, LAYOUT] {
            let (table, known) = Mapped::open(&path, other).unwrap();
            assert!(!known, "{other:?}");
            assert_eq!(table.record(3).unwrap().state(7), RecordState::Empty);
            assert!(table.reserve(3));
            table.record(3).unwrap().write(&[1; 7], 7);
        }
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[0xff], 20).unwrap();
        assert!(!Mapped::open(&path, LAYOUT).unwrap().1, "a damaged header was believed");
    }

    #[test]
    fn a_kill_at_any_store_leaves_the_old_the_new_or_a_torn_record() {
        // `write` stores nine times; a kill after the first n of them is simulated word by word.
        let old = [1u64, 2, 3, 4, 5, 6, 7];
        let new = [11u64, 12, 13, 14, 15, 16, 17];
        let record = Record(Default::default());
        for stores in 0..=9 {
            record.write(&old, 7);
            if stores > 0 {
                record.0[0].store(0, Relaxed);
            }
            for (i, word) in new.iter().enumerate().take((stores as usize).saturating_sub(1)) {
                record.0[i + 1].store(*word, Relaxed);
            }
            if stores == 9 {
                record.0[0].store(check_of(&new), Relaxed);
            }
            let expected =
                if matches!(stores, 0 | 9) { RecordState::Whole } else { RecordState::Torn };
            assert_eq!(record.state(7), expected, "after {stores} stores");
        }
        record.clear();
        assert_eq!(record.state(7), RecordState::Empty);
    }

    #[test]
    fn a_full_file_system_refuses_and_kills_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path();
        let mount = |arguments: &[&str]| {
            std::process::Command::new("mount").args(arguments).arg(target).output()
        };
        let mounted = mount(&["-t", "tmpfs", "-o", "size=64k", "tmpfs"]);
        if !mounted.is_ok_and(|output| output.status.success()) {
            println!("skipped a_full_file_system_refuses_and_kills_nobody: cannot mount a tmpfs");
            return;
        }
        let (table, _) = Mapped::open(&target.join("table"), LAYOUT).unwrap();
        let mut written = 0;
        for index in 0..4096 {
            if table.reserve(index) {
                table.record(index).unwrap().write(&[index as u64; 7], 7);
                written += 1;
            }
        }
        drop(table);
        let unmounted = std::process::Command::new("umount").arg(target).status().unwrap();
        assert!(unmounted.success());
        // 64 KiB are 16 pages, of which the header has one and the directory none.
        assert!((10 * 64..16 * 64).contains(&written), "{written}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_state_and_never_a_panic(words: [u64; 8], covered in 0usize..20, header: [u8; 18]) {
            let record = Record(words.map(AtomicU64::new));
            let _ = record.state(covered);
            let mut bytes = [0; HEADER_USED];
            bytes[..18].copy_from_slice(&header);
            prop_assert_eq!(decode_header(&bytes, LAYOUT), None);
        }
    }
}
