//! The container of a bundle: a tar archive in the one form that follows from names, modes and sizes.
//!
//! Invariant: there is exactly one header for a file, so a reader makes the header that it expects and compares; it reads no
//! field of an archive but the size of the first member. What is made is plain POSIX ustar, which any `tar` lists and unpacks.

/// The unit of a tar archive, in bytes.
pub const BLOCK: usize = 512;
/// The longest name of a member, in bytes.
pub const MAX_NAME: usize = 100;

/// Where the size is in a header: eleven octal digits.
const SIZE: std::ops::Range<usize> = 124..135;
const CHECKSUM: std::ops::Range<usize> = 148..156;

/// The header of a regular file of root's. The name has at most [`MAX_NAME`] bytes, the size is below 8 GiB.
#[must_use]
pub fn header(name: &str, mode: u32, size: u64) -> [u8; BLOCK] {
    let mut header = [0; BLOCK];
    let mut put = |at: usize, text: &[u8]| header[at..at + text.len()].copy_from_slice(text);
    put(0, &name.as_bytes()[..name.len().min(MAX_NAME)]);
    put(100, format!("{:07o}", mode & 0o7777).as_bytes());
    put(108, b"0000000");
    put(116, b"0000000");
    put(SIZE.start, format!("{:011o}", size & 0o77_777_777_777).as_bytes());
    put(136, b"00000000000");
    put(CHECKSUM.start, b"        ");
    put(156, b"0");
    put(257, b"ustar\0");
    put(263, b"00");
    put(265, b"root");
    put(297, b"root");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

/// The size that a header tells, if that is a number.
#[must_use]
pub fn size_in(header: &[u8; BLOCK]) -> Option<u64> {
    let digits = std::str::from_utf8(&header[SIZE]).ok()?;
    u64::from_str_radix(digits, 8).ok()
}

/// How many zeros follow `size` bytes of a member.
#[must_use]
pub fn padding(size: u64) -> usize {
    let over = (size % BLOCK as u64) as usize;
    (BLOCK - over) % BLOCK
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn sizes_come_back_and_padding_fills_the_block() {
        for size in [0, 1, 511, 512, 513, 1 << 30] {
            assert_eq!(size_in(&header("a/b", 0o644, size)), Some(size));
            assert_eq!((size + padding(size) as u64) % BLOCK as u64, 0);
        }
    }

    #[test]
    fn the_systems_tar_lists_it() {
        let mut tar = Command::new("tar")
            .args(["--list", "--verbose", "--utc", "--file=-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut archive = header("bin/bixi", 0o755, 3).to_vec();
        archive.extend(b"abc");
        archive.resize(BLOCK * 4, 0);
        tar.stdin.take().unwrap().write_all(&archive).unwrap();
        let said = String::from_utf8(tar.wait_with_output().unwrap().stdout).unwrap();
        assert!(said.starts_with("-rwxr-xr-x root/root") && said.ends_with("bin/bixi\n"), "{said}");
    }
}
