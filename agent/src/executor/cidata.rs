//! The NoCloud disk: a small ISO 9660 image labelled `cidata`, with Joliet names.
//!
//! ```text
//! sector 16 primary descriptor │ 17 Joliet descriptor │ 18 end │ 19-20 path tables, 21-22 Joliet's │ 23 root │ 24 Joliet's root │ 25… files
//! ```

use super::Fault;
use bixi_api::agent::Cidata;

const SECTOR: usize = 2048;
const PRIMARY_ROOT: u32 = 23;
const JOLIET_ROOT: u32 = 24;
const FIRST_FILE: u32 = 25;
/// The most bytes of all files.
const LIMIT: usize = 4 << 20;

/// A file of the disk.
struct File<'a> {
    /// As the plain standard has it.
    plain: &'static str,
    name: &'static str,
    bytes: &'a [u8],
    sector: u32,
}

/// The bytes of the disk.
pub(super) fn image(cidata: &Cidata) -> Result<Vec<u8>, Fault> {
    let mut texts = vec![
        ("META_DAT.;1", "meta-data", cidata.meta_data.as_str()),
        ("USER_DAT.;1", "user-data", cidata.user_data.as_str()),
    ];
    if let Some(config) = &cidata.network_config {
        // Directories are sorted by name.
        texts.insert(1, ("NETWORK_.;1", "network-config", config));
    }
    let size: usize = texts.iter().map(|(_, _, text)| text.len()).sum();
    if size > LIMIT {
        let message = format!("user data and the rest of cidata have {size} bytes.");
        return Err(Fault::new("CidataTooLarge", message, format!("Give at most {LIMIT}.")));
    }
    let mut sector = FIRST_FILE;
    let mut files = Vec::new();
    for (plain, name, text) in texts {
        files.push(File { plain, name, bytes: text.as_bytes(), sector });
        sector += text.len().div_ceil(SECTOR).max(1) as u32;
    }
    let mut disk = vec![0; sector as usize * SECTOR];
    put(&mut disk, 16, &descriptor(false, sector));
    put(&mut disk, 17, &descriptor(true, sector));
    put(&mut disk, 18, b"\xffCD001\x01");
    for (at, root) in [(19, PRIMARY_ROOT), (21, JOLIET_ROOT)] {
        put(&mut disk, at, &path_table(root.to_le_bytes(), 1_u16.to_le_bytes()));
        put(&mut disk, at + 1, &path_table(root.to_be_bytes(), 1_u16.to_be_bytes()));
    }
    for (root, joliet) in [(PRIMARY_ROOT, false), (JOLIET_ROOT, true)] {
        let mut entries = entry(b"\0", root, SECTOR as u32, true);
        entries.extend(entry(b"\x01", root, SECTOR as u32, true));
        for file in &files {
            let name = if joliet { wide(file.name) } else { file.plain.as_bytes().to_vec() };
            entries.extend(entry(&name, file.sector, file.bytes.len() as u32, false));
        }
        put(&mut disk, root, &entries);
    }
    for file in &files {
        put(&mut disk, file.sector, file.bytes);
    }
    Ok(disk)
}

fn put(disk: &mut [u8], sector: u32, bytes: &[u8]) {
    let at = sector as usize * SECTOR;
    if let Some(place) = disk.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

/// A number in both byte orders.
fn both32(value: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&value.to_le_bytes());
    bytes[4..].copy_from_slice(&value.to_be_bytes());
    bytes
}

fn both16(value: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (value.to_le_bytes(), value.to_be_bytes());
    [a, b, c, d]
}

fn wide(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_be_bytes).collect()
}

/// A directory's entry.
fn entry(name: &[u8], sector: u32, size: u32, directory: bool) -> Vec<u8> {
    let mut bytes = vec![0, 0];
    bytes.extend(both32(sector));
    bytes.extend(both32(size));
    // 1 January 2000; the same content gives the same disk.
    bytes.extend([100, 1, 1, 0, 0, 0, 0]);
    bytes.extend([if directory { 2 } else { 0 }, 0, 0]);
    bytes.extend(both16(1));
    bytes.push(name.len() as u8);
    bytes.extend(name);
    if bytes.len() % 2 == 1 {
        bytes.push(0);
    }
    bytes[0] = bytes.len() as u8;
    bytes
}

fn path_table(root: [u8; 4], parent: [u8; 2]) -> Vec<u8> {
    let mut bytes = vec![1, 0];
    bytes.extend(root);
    bytes.extend(parent);
    bytes.extend([0, 0]);
    bytes
}

fn descriptor(joliet: bool, sectors: u32) -> Vec<u8> {
    let mut bytes = vec![if joliet { 2 } else { 1 }];
    bytes.extend(b"CD001\x01\0");
    let padded = |text: &str, length: usize| {
        let mut bytes = if joliet { wide(text) } else { text.as_bytes().to_vec() };
        let blank: &[u8] = if joliet { b"\0 " } else { b" " };
        while bytes.len() < length {
            bytes.extend(blank);
        }
        bytes.truncate(length);
        bytes
    };
    bytes.extend(padded("LINUX", 32));
    bytes.extend(padded("cidata", 32));
    bytes.extend([0; 8]);
    bytes.extend(both32(sectors));
    let mut escapes = [0; 32];
    if joliet {
        escapes[..3].copy_from_slice(b"%/E");
    }
    bytes.extend(escapes);
    bytes.extend(both16(1));
    bytes.extend(both16(1));
    bytes.extend(both16(SECTOR as u16));
    // The path table: its size, and where it is in each byte order.
    let (table, root) = if joliet { (21_u32, JOLIET_ROOT) } else { (19, PRIMARY_ROOT) };
    bytes.extend(both32(10));
    bytes.extend(table.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend((table + 1).to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(entry(b"\0", root, SECTOR as u32, true));
    for length in [128, 128, 128, 128, 37, 37, 37] {
        bytes.extend(padded("", length));
    }
    for _ in 0..4 {
        bytes.extend(b"0000000000000000\0");
    }
    bytes.extend([1, 0]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_says_what_it_is_told_under_the_names_that_cloud_init_looks_for() {
        let cidata = Cidata {
            disk: "d-0123456789abcdefghij".into(),
            meta_data: "instance-id: i-1\n".into(),
            user_data: "#cloud-config\n".repeat(300),
            network_config: Some("version: 2\n".into()),
        };
        let disk = image(&cidata).unwrap();
        assert_eq!(disk.len() % SECTOR, 0);
        assert_eq!(&disk[16 * SECTOR..][..8], b"\x01CD001\x01\0");
        assert_eq!(&disk[16 * SECTOR + 40..][..7], b"cidata ");
        assert_eq!(
            u32::from_be_bytes(disk[16 * SECTOR + 84..][..4].try_into().unwrap()) as usize,
            disk.len() / SECTOR
        );
        // Walk Joliet's root as a reader does.
        let mut found = Vec::new();
        let mut at = JOLIET_ROOT as usize * SECTOR;
        while disk[at] != 0 {
            let word = |offset: usize| {
                u32::from_le_bytes(disk[at + offset..][..4].try_into().unwrap()) as usize
            };
            let name = &disk[at + 33..][..usize::from(disk[at + 32])];
            let units: Vec<u16> = name
                .chunks(2)
                .map(|c| u16::from_be_bytes([c[0], *c.get(1).unwrap_or(&0)]))
                .collect();
            if disk[at + 25] == 0 {
                let text =
                    String::from_utf8(disk[word(2) * SECTOR..][..word(10)].to_vec()).unwrap();
                found.push((String::from_utf16(&units).unwrap(), text));
            }
            at += usize::from(disk[at]);
        }
        let expected = [
            ("meta-data".to_owned(), cidata.meta_data),
            ("network-config".to_owned(), "version: 2\n".to_owned()),
            ("user-data".to_owned(), cidata.user_data),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn too_much_user_data_is_refused() {
        let cidata = Cidata { user_data: "x".repeat(LIMIT + 1), ..Cidata::default() };
        assert!(image(&cidata).unwrap_err().is("CidataTooLarge"));
    }
}
