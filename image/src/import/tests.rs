//! Images made by hand, and by `qemu-img` where it is.

use super::*;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

const LIMIT: u64 = 1 << 30;

fn quiet(_: u64, _: u64) {}

fn content(length: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..length).map(|n| (n * 7 + n / 251) as u8).collect();
    // Holes in the middle, and at the end.
    bytes[length / 4..length / 2].fill(0);
    bytes[length / 8 * 7..].fill(0);
    bytes
}

fn digest(bytes: &[u8]) -> String {
    let mut digest = Sha256::new();
    digest.update(bytes);
    digest.finish()
}

#[test]
fn a_raw_disk_is_copied_sparse_and_digested() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("disk");
    let bytes = content((4 << 20) + 100);
    fs::write(&source, &bytes).unwrap();
    let mut heard = 0;
    let place = folder.path().join("bundle");
    let (bundle, imported) =
        import(&source, &place, "mine", LIMIT, |done, all| heard = done * 100 / all).unwrap();
    assert_eq!(heard, 100);
    let mut whole = bytes;
    whole.resize(whole.len().next_multiple_of(512), 0);
    assert_eq!((imported.bytes, imported.format), (whole.len() as u64, Format::Raw));
    assert_eq!(imported.sha256, digest(&whole));
    let disk = bundle.path("disk.raw");
    assert!(fs::read(&disk).unwrap() == whole);
    assert!(fs::metadata(&disk).unwrap().blocks() * 512 < 3 << 20, "it has no holes");
    Bundle::open(&place).unwrap().verify().unwrap();
    assert_eq!(bundle.manifest.boot, Boot::Firmware);
}

#[test]
fn what_cannot_be_imported_is_refused_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("disk");
    let attempt = |bytes: &[u8], limit| {
        fs::write(&source, bytes).unwrap();
        let place = folder.path().join("bundle");
        let error = import(&source, &place, "mine", limit, quiet).unwrap_err().to_string();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "{error}");
        error
    };
    assert!(attempt(b"", LIMIT).contains("0 bytes"));
    assert!(attempt(&[1; 4096], 4095).contains("4095"));
    for (at, magic, what) in FOREIGN {
        let mut bytes = vec![0; 1024];
        bytes[*at..*at + magic.len()].copy_from_slice(magic);
        assert!(attempt(&bytes, LIMIT).contains(what), "{what}");
    }
}

/// A small qcow2 image by hand: 64 KiB clusters, header, L1, one L2, two clusters of data.
fn by_hand() -> Vec<u8> {
    const CLUSTER: usize = 65_536;
    let mut bytes = vec![0; CLUSTER * 5];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, &qcow2::MAGIC);
    put(4, &3u32.to_be_bytes());
    put(20, &16u32.to_be_bytes());
    put(24, &(CLUSTER as u64 * 10 - 512).to_be_bytes());
    put(36, &1u32.to_be_bytes());
    put(40, &(CLUSTER as u64).to_be_bytes());
    put(96, &4u32.to_be_bytes());
    put(100, &104u32.to_be_bytes());
    put(CLUSTER, &(CLUSTER as u64 * 2 | 1 << 63).to_be_bytes());
    put(CLUSTER * 2 + 8, &(CLUSTER as u64 * 3 | 1 << 63).to_be_bytes());
    // Said to be zero, whatever is at its place; and the last, of which the disk has a part.
    put(CLUSTER * 2 + 16, &(CLUSTER as u64 * 3 | 1).to_be_bytes());
    put(CLUSTER * 2 + 72, &(CLUSTER as u64 * 4 | 1 << 63).to_be_bytes());
    bytes[CLUSTER * 3..].copy_from_slice(&content(CLUSTER * 2));
    bytes
}

#[test]
fn a_qcow2_image_is_read_as_it_is_laid_out() {
    let folder = tempfile::tempdir().unwrap();
    let (source, to) = (folder.path().join("disk"), folder.path().join("raw"));
    let image = by_hand();
    fs::write(&source, &image).unwrap();
    let imported = convert(&source, &to, LIMIT, quiet).unwrap();
    let read = fs::read(&to).unwrap();
    assert_eq!(read.len(), 65_536 * 10 - 512);
    assert!(read[65_536..131_072] == image[65_536 * 3..65_536 * 4]);
    assert!(read[65_536 * 9..] == image[65_536 * 4..65_536 * 5 - 512]);
    assert!(read[..65_536].iter().chain(&read[131_072..65_536 * 9]).all(|byte| *byte == 0));
    assert_eq!((imported.format, imported.sha256), (Format::Qcow2, digest(&read)));
}

#[test]
fn a_qcow2_image_that_lies_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("disk");
    let attempt = |bytes: &[u8]| {
        fs::write(&source, bytes).unwrap();
        let to = folder.path().join("raw");
        let _ = fs::remove_file(&to);
        convert(&source, &to, LIMIT, quiet).unwrap_err().to_string()
    };
    let with = |at: usize, value: &[u8]| {
        let mut image = by_hand();
        image[at..at + value.len()].copy_from_slice(value);
        image
    };
    const L2: usize = 65_536 * 2;
    for (at, value, says) in [
        (4, &4u32.to_be_bytes()[..], "version 4"),
        (8, &1u64.to_be_bytes(), "backing file"),
        (20, &8u32.to_be_bytes(), "2^8"),
        (20, &22u32.to_be_bytes(), "2^22"),
        (24, &u64::MAX.to_be_bytes(), "first table"),
        (32, &1u32.to_be_bytes(), "encrypted"),
        (32, &2u32.to_be_bytes(), "encrypted"),
        (36, &0u32.to_be_bytes(), "first table"),
        (36, &u32::MAX.to_be_bytes(), "first table"),
        (40, &512u64.to_be_bytes(), "odd place"),
        (40, &(65_536u64 << 30).to_be_bytes(), "behind its end"),
        (72, &2u64.to_be_bytes(), "corrupt"),
        (72, &4u64.to_be_bytes(), "another file"),
        (72, &16u64.to_be_bytes(), "features"),
        (72, &(1u64 << 40).to_be_bytes(), "features"),
        (65_536, &512u64.to_be_bytes(), "odd place"),
        (65_536, &(65_536u64 * 5).to_be_bytes(), "behind its end"),
        (L2, &(65_536u64 * 5).to_be_bytes(), "behind its end"),
        (L2, &(65_536u64 + 512).to_be_bytes(), "odd place"),
        (L2, &(1u64 << 62 | 65_536).to_be_bytes(), "damaged"),
        (L2, &u64::MAX.to_be_bytes(), "behind its end"),
    ] {
        let error = attempt(&with(at, value));
        assert!(error.contains(says), "{at}: {error}, and not {says}");
    }
    // One cluster named ten times is more than five clusters of a file can be.
    let mut image = by_hand();
    for entry in 0..10 {
        let at = L2 + entry * 8;
        image[at..at + 8].copy_from_slice(&(65_536u64 * 3).to_be_bytes());
    }
    assert!(attempt(&image).contains("more than once"));
    assert!(attempt(&by_hand()[..80]).contains("cut"));
    assert!(attempt(&by_hand()[..65_536 * 2 + 100]).contains("cut"));
}

/// What `qemu-img` writes is read as it was, in every form that it may have.
#[test]
fn what_qemu_img_writes_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let qemu_img = |arguments: &[&str]| {
        let output =
            Command::new("qemu-img").current_dir(folder.path()).args(arguments).output()?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        io::Result::Ok(())
    };
    if qemu_img(&["--version"]).is_err() {
        println!("SKIPPED: what_qemu_img_writes_is_read: no qemu-img (apt-get install qemu-utils)");
        return;
    }
    let bytes = content(9 << 20);
    fs::write(at("raw"), &bytes).unwrap();
    for (name, options) in [
        ("plain", &["-o", "compat=1.1"][..]),
        ("old", &["-o", "compat=0.10"]),
        ("packed", &["-c"]),
        ("packed-small", &["-c", "-o", "cluster_size=512"]),
        ("large", &["-o", "cluster_size=2M"]),
        ("packed-large", &["-c", "-o", "cluster_size=2M"]),
    ] {
        let convert_ = [&["convert", "-f", "raw", "-O", "qcow2"], options, &["raw", name]].concat();
        qemu_img(&convert_).unwrap();
        let imported = convert(&at(name), &at(&format!("{name}.raw")), LIMIT, quiet).unwrap();
        assert_eq!(imported.sha256, digest(&bytes), "{name}");
        assert!(imported.written < 7 << 20, "{name}: {}", imported.written);
    }
    let refused = |name: &str| convert(&at(name), &at("x"), LIMIT, quiet).unwrap_err().to_string();
    qemu_img(&["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "raw", "over"]).unwrap();
    assert!(refused("over").contains("backing file"));
    let secret =
        ["--object", "secret,id=s,data=x", "-o", "encrypt.format=luks,encrypt.key-secret=s"];
    let create = [&["create", "-q", "-f", "qcow2"], &secret[..], &["secret", "1M"]].concat();
    qemu_img(&create).unwrap();
    assert!(refused("secret").contains("encrypted"));
    for format in ["vmdk", "vdi", "vhdx", "qed"] {
        qemu_img(&["convert", "-f", "raw", "-O", format, "raw", format]).unwrap();
        assert!(refused(format).contains("convert it"), "{format}");
    }
}
