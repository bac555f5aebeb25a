//! Writes a `newc` cpio archive, the form the Linux kernel unpacks as its initial RAM file system.
//!
//! Called by [`crate::tree`]. Archives may be concatenated: the kernel unpacks one after the other, a later file
//! replaces an earlier one of the same name.

use std::io::{self, Write};

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;

/// An archive being written. Entries are owned by root; names are relative, without a leading `/`.
#[derive(Debug)]
pub struct Archive<W> {
    out: W,
    written: u64,
    inode: u32,
}

impl<W: Write> Archive<W> {
    /// An empty archive that goes to `out`.
    pub fn new(out: W) -> Self {
        Self { out, written: 0, inode: 1 }
    }

    /// Adds a folder.
    pub fn directory(&mut self, name: &str, mode: u32) -> io::Result<()> {
        self.entry(name, DIRECTORY | mode, (0, 0), &[])
    }

    /// Adds a file.
    pub fn file(&mut self, name: &str, mode: u32, data: &[u8]) -> io::Result<()> {
        self.entry(name, REGULAR | mode, (0, 0), data)
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, name: &str, target: &str) -> io::Result<()> {
        self.entry(name, SYMLINK | 0o777, (0, 0), target.as_bytes())
    }

    /// Adds a character device.
    pub fn character_device(&mut self, name: &str, mode: u32, id: (u32, u32)) -> io::Result<()> {
        self.entry(name, CHARACTER | mode, id, &[])
    }

    /// Ends the archive, padded so that another may follow.
    pub fn finish(mut self) -> io::Result<W> {
        self.inode = 0;
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        self.pad(512)?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), data: &[u8]) -> io::Result<()> {
        let size = u32::try_from(data.len())
            .map_err(|_| io::Error::other(format!("{name} is too large for a cpio archive")))?;
        let links = if mode & DIRECTORY != 0 { 2 } else { 1 };
        let (major, minor) = device;
        let fields = [
            self.inode,
            mode,
            0,
            0,
            links,
            0,
            size,
            0,
            0,
            major,
            minor,
            u32::try_from(name.len() + 1).map_err(io::Error::other)?,
            0,
        ];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        self.inode += 1;
        self.put(header.as_bytes())?;
        self.put(name.as_bytes())?;
        self.put(&[0])?;
        self.pad(4)?;
        self.put(data)?;
        self.pad(4)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn pad(&mut self, to: u64) -> io::Result<()> {
        let missing = self.written.next_multiple_of(to) - self.written;
        self.put(&vec![0; usize::try_from(missing).map_err(io::Error::other)?])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_the_layout_the_kernel_reads() {
        let mut archive = Archive::new(Vec::new());
        archive.directory("bin", 0o755).unwrap();
        archive.file("bin/x", 0o644, b"hello").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 512, 0);
        assert_eq!(&bytes[..14], b"07070100000001");
        // The first entry: 110 bytes of header, "bin\0", padded to 4.
        let second = (110usize + 4).next_multiple_of(4);
        assert_eq!(&bytes[second..second + 6], b"070701");
        let data = second + (110usize + 6).next_multiple_of(4);
        assert_eq!(&bytes[data..data + 5], b"hello");
        assert_eq!(&bytes[data + 8..data + 14], b"070701");
    }
}
