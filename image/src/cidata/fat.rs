//! Writes a FAT12 file system the size of a floppy disk (Microsoft's FAT specification 1.03), with long names.
//!
//! ```text
//! sector 0    boot sector            19   root directory, 224 entries
//!        1    FAT, 9 sectors         33   data, 2,847 clusters of a sector each
//!       10    FAT again
//! ```
//!
//! Invariant: the same files give the same bytes; there is no clock and no chance in it.

const SECTOR: usize = 512;
const SECTORS: usize = 2880;
const FAT_SECTORS: usize = 9;
const ROOT_ENTRIES: usize = 224;
const ROOT: usize = 1 + 2 * FAT_SECTORS;
const DATA: usize = ROOT + ROOT_ENTRIES * 32 / SECTOR;
/// Bytes of the disk.
pub const DISK_BYTES: usize = SECTORS * SECTOR;
/// Any fixed disk; in the boot sector and in the first entry of the FAT.
const MEDIA: u8 = 0xf8;
const READ_ONLY: u8 = 0x01;
const LABEL: u8 = 0x08;
/// Marks an entry that holds part of a long name.
const LONG_NAME: u8 = 0x0f;
/// Characters of a long name in one entry.
const LONG_PIECE: usize = 13;
const END_OF_CHAIN: u16 = 0xfff;

/// A disk with this label and these files in its root; none if it does not hold them.
pub fn disk(label: &str, files: &[(&str, &[u8])]) -> Option<Vec<u8>> {
    let mut disk = vec![0; DISK_BYTES];
    disk[..SECTOR].copy_from_slice(&boot_sector(label));
    let mut fat = vec![0u16; 2 + SECTORS - DATA];
    (fat[0], fat[1]) = (0xf00 | u16::from(MEDIA), END_OF_CHAIN);
    let mut root = entry(&padded(label, "")?, LABEL, 0, 0).to_vec();
    let mut next = 2;
    for (index, (name, bytes)) in files.iter().enumerate() {
        let clusters = bytes.len().div_ceil(SECTOR);
        let chain = fat.get_mut(next..next + clusters)?;
        for (at, link) in chain.iter_mut().enumerate() {
            *link = if at + 1 == clusters { END_OF_CHAIN } else { (next + at + 1) as u16 };
        }
        let start = (DATA + next - 2) * SECTOR;
        disk.get_mut(start..start + bytes.len())?.copy_from_slice(bytes);
        // An empty file has no cluster.
        let first = if clusters == 0 { 0 } else { next };
        let short = short_name(name, index)?;
        root.extend(long_name(name, &short));
        root.extend(entry(&short, READ_ONLY, first as u16, u32::try_from(bytes.len()).ok()?));
        next += clusters;
    }
    disk.get_mut(ROOT * SECTOR..DATA * SECTOR)?.get_mut(..root.len())?.copy_from_slice(&root);
    let packed = pack(&fat);
    for copy in 0..2 {
        let start = (1 + copy * FAT_SECTORS) * SECTOR;
        disk.get_mut(start..start + packed.len())?.copy_from_slice(&packed);
    }
    Some(disk)
}

fn boot_sector(label: &str) -> [u8; SECTOR] {
    let mut sector = [0; SECTOR];
    let mut put = |at: usize, bytes: &[u8]| sector[at..at + bytes.len()].copy_from_slice(bytes);
    let half = |value: usize| (value as u16).to_le_bytes();
    // A jump to a loop without end, and a name: some readers want to see both.
    put(0, &[0xeb, 0x3c, 0x90]);
    put(3, b"MSWIN4.1");
    put(11, &half(SECTOR));
    put(13, &[1]);
    put(14, &half(1));
    put(16, &[2]);
    put(17, &half(ROOT_ENTRIES));
    put(19, &half(SECTORS));
    put(21, &[MEDIA]);
    put(22, &half(FAT_SECTORS));
    put(24, &half(18));
    put(26, &half(2));
    put(36, &[0x80, 0, 0x29]);
    put(39, b"bixi");
    put(43, &padded(label, "").unwrap_or([b' '; 11]));
    put(54, b"FAT12   ");
    put(62, &[0xeb, 0xfe]);
    put(510, &[0x55, 0xaa]);
    sector
}

/// A name of eight and three characters, padded with spaces; none if it is longer.
fn padded(base: &str, extension: &str) -> Option<[u8; 11]> {
    let mut name = [b' '; 11];
    let (base, extension) = (base.as_bytes(), extension.as_bytes());
    name.get_mut(..8)?.get_mut(..base.len())?.copy_from_slice(base);
    name.get_mut(8..)?.get_mut(..extension.len())?.copy_from_slice(extension);
    Some(name)
}

/// A short name for a long one, which no other file here has.
fn short_name(name: &str, index: usize) -> Option<[u8; 11]> {
    let beginning: String = name.chars().filter(char::is_ascii_alphanumeric).take(5).collect();
    padded(&format!("{}~{}", beginning.to_ascii_uppercase(), index + 1), "")
}

/// The entries that hold a long name, the last piece first.
fn long_name(name: &str, short: &[u8; 11]) -> Vec<u8> {
    // Where an entry has room for characters.
    const PLACES: [usize; LONG_PIECE] = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];
    let sum = short.iter().fold(0u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte));
    let mut characters: Vec<u16> = name.encode_utf16().collect();
    let pieces = characters.len().div_ceil(LONG_PIECE);
    if characters.len() % LONG_PIECE != 0 {
        characters.push(0);
    }
    characters.resize(pieces * LONG_PIECE, 0xffff);
    let mut entries = Vec::with_capacity(pieces * 32);
    for (index, piece) in characters.chunks(LONG_PIECE).enumerate().rev() {
        let last = if index + 1 == pieces { 0x40 } else { 0 };
        let mut entry = [0; 32];
        entry[0] = (index + 1) as u8 | last;
        (entry[11], entry[13]) = (LONG_NAME, sum);
        for (place, character) in PLACES.iter().zip(piece) {
            entry[*place..place + 2].copy_from_slice(&character.to_le_bytes());
        }
        entries.extend(entry);
    }
    entries
}

fn entry(name: &[u8; 11], attributes: u8, first: u16, length: u32) -> [u8; 32] {
    // The first day that FAT knows: a date of zero is none.
    const DATE: u16 = 1 << 5 | 1;
    let mut entry = [0; 32];
    entry[..11].copy_from_slice(name);
    entry[11] = attributes;
    for at in [16, 18, 24] {
        entry[at..at + 2].copy_from_slice(&DATE.to_le_bytes());
    }
    entry[26..28].copy_from_slice(&first.to_le_bytes());
    entry[28..].copy_from_slice(&length.to_le_bytes());
    entry
}

/// Twelve bits for each link, two links in three bytes.
fn pack(fat: &[u16]) -> Vec<u8> {
    let pair = |pair: &[u16]| {
        let (a, b) = (pair[0], pair.get(1).copied().unwrap_or(0));
        [a as u8, (a >> 8) as u8 | (b << 4) as u8, (b >> 4) as u8]
    };
    fat.chunks(2).flat_map(pair).collect()
}
