//! Imports a disk image: a file of a stranger becomes a raw, sparse, digested disk.
//!
//! ```text
//! raw    ──┐                    ┌─► disk.raw, sparse
//! qcow2  ──┴─ pieces in order ──┴─► SHA-256
//! ```
//!
//! Invariants: the source is read once from front to back and in pieces; nothing that it names is opened; a disk larger
//! than the caller allows is refused before anything is written; what fails leaves nothing behind.

use crate::bundle::{self, Boot, Bundle, Disk, FileEntry, Manifest};
use crate::digest::Sha256;
use crate::error::{Attempt, Error, Result};
use crate::qcow2;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The disk's file in a bundle.
const DISK: &str = "disk.raw";
/// Zeros are left out in pieces of this size: what file systems keep holes by.
const BLOCK: usize = 4096;
/// Bytes that are read, or digested as zeros, at once.
const PIECE: usize = 1 << 20;

/// The form of an image file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The disk's bytes as they are.
    Raw,
    /// QEMU's.
    Qcow2,
}

/// What an image file was found to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// The form it had.
    pub format: Format,
    /// Bytes of the disk.
    pub bytes: u64,
    /// Bytes of the disk that were written: all others are holes.
    pub written: u64,
    /// The disk's SHA-256, in hexadecimal.
    pub sha256: String,
}

/// What looks like a disk and must not be taken for a raw one.
const FOREIGN: &[(usize, &[u8], &str)] = &[
    (0, b"KDMV", "VMDK: convert it with `qemu-img convert -O qcow2`"),
    (0, b"# Disk DescriptorFile", "VMDK: convert it with `qemu-img convert -O qcow2`"),
    (0, b"vhdxfile", "VHDX: convert it with `qemu-img convert -O qcow2`"),
    (0, b"conectix", "VHD: convert it with `qemu-img convert -O qcow2`"),
    (64, b"\x7f\x10\xda\xbe", "VDI: convert it with `qemu-img convert -O qcow2`"),
    (0, b"QED\0", "QED: convert it with `qemu-img convert -O qcow2`"),
    (0, b"\x1f\x8b", "compressed with gzip: unpack it first"),
    (0, b"\xfd7zXZ\0", "compressed with xz: unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd: unpack it first"),
    (0, b"BZh", "compressed with bzip2: unpack it first"),
    (0, b"PK\x03\x04", "a zip archive: unpack it first"),
    (0, b"LUKS\xba\xbe", "encrypted with LUKS: decrypt it first"),
];

/// The form of the image that begins with `head`; 512 bytes are enough.
///
/// # Errors
/// It has a form that is not imported; the error says what to do.
pub fn detect(head: &[u8]) -> Result<Format, String> {
    if head.starts_with(&qcow2::MAGIC) {
        return Ok(Format::Qcow2);
    }
    let is = |(at, magic, _): &&(usize, &[u8], &str)| {
        head.get(*at..).is_some_and(|rest| rest.starts_with(magic))
    };
    match FOREIGN.iter().find(is) {
        Some((_, _, what)) => Err(format!("it is {what}")),
        None => Ok(Format::Raw),
    }
}

/// Imports `source` as the system disk of a bundle in `folder`, booted by firmware. `limit` is the most bytes that the
/// disk may have; `progress` hears how many of how many bytes are done.
///
/// # Errors
/// The file is no image that can be imported, is too large, or something cannot be read or written.
pub fn import(
    source: &Path,
    folder: &Path,
    name: &str,
    limit: u64,
    progress: impl FnMut(u64, u64),
) -> Result<(Bundle, Imported)> {
    let mut manifest = Manifest::new(name, "imported", Boot::Firmware);
    manifest.disk = Some(Disk { file: DISK.to_owned() });
    let mut imported = None;
    bundle::build_beside(folder, |unfinished| {
        let done = convert(source, &unfinished.join(DISK), limit, progress)?;
        let entry = FileEntry { bytes: done.bytes, sha256: done.sha256.clone() };
        manifest.files.insert(DISK.to_owned(), entry);
        imported = Some(done);
        bundle::write_manifest(unfinished, &manifest)
    })?;
    let imported = imported.ok_or_else(|| Error::Refused("nothing was imported".to_owned()))?;
    Ok((Bundle { folder: folder.to_owned(), manifest }, imported))
}

/// Writes the disk in `source` to the new file `to`, raw and sparse.
///
/// # Errors
/// See [`import`].
pub fn convert(
    source: &Path,
    to: &Path,
    limit: u64,
    progress: impl FnMut(u64, u64),
) -> Result<Imported> {
    let format_error = |message: String| Error::Format { path: source.to_owned(), message };
    let reads = || format!("read {}", source.display());
    let file = File::open(source).attempt(reads)?;
    let mut head = Vec::new();
    (&file).take(512).read_to_end(&mut head).attempt(reads)?;
    let format = detect(&head).map_err(format_error)?;
    let length = file.metadata().attempt(reads)?.len();
    let reader = match format {
        Format::Raw => None,
        // Whatever it says is about the format: reading itself was tried just now.
        Format::Qcow2 => Some(qcow2::Reader::new(&file).map_err(|e| format_error(e.to_string()))?),
    };
    let size = reader.as_ref().map_or(length, qcow2::Reader::size);
    // Disks have whole sectors.
    let bytes = size.checked_next_multiple_of(512).unwrap_or(u64::MAX);
    if size == 0 || bytes > limit {
        return Err(format_error(format!("its disk has {size} bytes: 1 to {limit} are possible")));
    }
    let writes = || format!("write {}: see that there is room", to.display());
    let out =
        File::create_new(to).and_then(|out| out.set_len(bytes).map(|()| out)).attempt(writes)?;
    let mut sink =
        Sink { out, digest: Sha256::new(), at: 0, bytes, written: 0, progress, failed: false };
    let done = match reader {
        Some(reader) => reader.read(|length, content| sink.take(length, content)),
        None => read_raw(&file, |content| sink.take(content.len() as u64, Some(content))),
    };
    let whole = done.and_then(|()| sink.take(bytes.saturating_sub(sink.at), None));
    match whole {
        Err(source) if sink.failed => return Err(Error::System { action: writes(), source }),
        Err(error) => return Err(format_error(error.to_string())),
        Ok(()) => {}
    }
    sink.out.sync_all().attempt(writes)?;
    Ok(Imported { format, bytes, written: sink.written, sha256: sink.digest.finish() })
}

fn read_raw(file: &File, mut give: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    loop {
        match file.read_at(&mut piece, at) {
            Ok(0) => return Ok(()),
            Ok(n) => {
                give(&piece[..n])?;
                at += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Where the disk goes.
struct Sink<P> {
    out: File,
    digest: Sha256,
    at: u64,
    bytes: u64,
    written: u64,
    progress: P,
    /// Whether what failed was the writing.
    failed: bool,
}

impl<P: FnMut(u64, u64)> Sink<P> {
    /// Takes the next `length` bytes, which are zeros unless there is content.
    fn take(&mut self, length: u64, content: Option<&[u8]>) -> io::Result<()> {
        if self.at + length > self.bytes {
            return Err(io::Error::other("it grew while it was read"));
        }
        match content {
            Some(content) => {
                self.digest.update(content);
                self.write(content).inspect_err(|_| self.failed = true)?;
            }
            None => self.digest_zeros(length),
        }
        self.at += length;
        (self.progress)(self.at, self.bytes);
        Ok(())
    }

    fn digest_zeros(&mut self, length: u64) {
        static ZEROS: [u8; PIECE] = [0; PIECE];
        let mut left = length;
        while left > 0 {
            let piece = left.min(PIECE as u64);
            self.digest.update(&ZEROS[..piece as usize]);
            left -= piece;
        }
    }

    /// Writes what is not zero.
    fn write(&mut self, content: &[u8]) -> io::Result<()> {
        let (mut start, mut at) = (0, 0);
        for block in content.chunks(BLOCK) {
            let end = at + block.len();
            if block.iter().all(|byte| *byte == 0) {
                self.write_at(&content[start..at], start)?;
                start = end;
            }
            at = end;
        }
        self.write_at(&content[start..], start)
    }

    fn write_at(&mut self, bytes: &[u8], offset: usize) -> io::Result<()> {
        self.written += bytes.len() as u64;
        self.out.write_all_at(bytes, self.at + offset as u64)
    }
}

#[cfg(test)]
mod tests;
