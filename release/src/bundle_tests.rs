//! Bundles are read as they were made, and as nothing else.

use super::*;
use proptest::prelude::*;
use std::fs;
use std::process::Command;
use std::sync::OnceLock;

/// A bundle with its key, for tests.
pub(crate) struct Made {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) key: PrivateKey,
    pub(crate) path: PathBuf,
}

/// A small release of `version` whose programs say `text`.
pub(crate) fn bundle(version: &str, text: &str, key: Option<PrivateKey>) -> Made {
    let folder = tempfile::tempdir().unwrap();
    let key = key.unwrap_or_else(|| PrivateKey::generate("tests").unwrap());
    let source = |path: &str, mode, text: String| {
        let file = folder.path().join(path.replace('/', "-"));
        fs::write(&file, text).unwrap();
        Source { path: path.to_owned(), mode, file }
    };
    let sources = [
        source("bin/bixi", Mode::Program, format!("#!/bin/sh\necho {text}\n")),
        source("units/bixi-agent.service", Mode::Data, String::new()),
        source("bin/bixi-agent", Mode::Program, text.repeat(700)),
    ];
    let path = make(&about(version), &sources, &key, folder.path()).unwrap();
    Made { folder, key, path }
}

pub(crate) fn about(version: &str) -> About {
    let architecture = std::env::consts::ARCH.to_owned();
    About { version: version.to_owned(), architecture, commit: Some("abc123".to_owned()) }
}

pub(crate) fn trust(key: &PrivateKey) -> Trusted {
    let mut trusted = Trusted::default();
    trusted.extend([key.public().clone()]);
    trusted
}

fn read(bytes: &[u8], trusted: &Trusted) -> Result<Signed> {
    Reader::open(bytes, trusted)?.finish()
}

/// One bundle for the tests that damage it.
fn shared() -> &'static (Vec<u8>, Trusted, Signed) {
    static SHARED: OnceLock<(Vec<u8>, Trusted, Signed)> = OnceLock::new();
    SHARED.get_or_init(|| {
        let made = bundle("1.0.0", "hello", None);
        let (bytes, trusted) = (fs::read(&made.path).unwrap(), trust(&made.key));
        let signed = read(&bytes, &trusted).unwrap();
        (bytes, trusted, signed)
    })
}

/// The archive of these members, whatever they are.
fn archive(members: &[(&[u8; BLOCK], &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (head, content) in members {
        bytes.extend_from_slice(*head);
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    }
    bytes.extend(END);
    bytes
}

#[test]
fn a_bundle_comes_back_and_the_systems_tar_unpacks_it() {
    let made = bundle("1.0.0", "hello", None);
    let mut reader = Reader::open(File::open(&made.path).unwrap(), &trust(&made.key)).unwrap();
    assert_eq!(reader.signed().manifest.version, "1.0.0");
    let mut seen = Vec::new();
    while let Some(entry) = reader.entry().cloned() {
        let mut content = Vec::new();
        reader.copy_to(&mut content, Path::new("memory")).unwrap();
        assert_eq!(content.len() as u64, entry.size);
        seen.push(entry.path);
    }
    assert_eq!(seen, ["bin/bixi", "bin/bixi-agent", "units/bixi-agent.service"]);
    reader.finish().unwrap();
    let out = made.folder.path().join("out");
    fs::create_dir(&out).unwrap();
    let mut tar = Command::new("tar");
    assert!(tar.arg("-xf").arg(&made.path).arg("-C").arg(&out).status().unwrap().success());
    let said = Command::new(out.join("bin/bixi")).output().unwrap().stdout;
    assert_eq!(said, b"hello\n");
}

#[test]
fn another_key_is_refused_with_what_to_do() {
    let (bytes, _, signed) = shared();
    let other = trust(&PrivateKey::generate("tests").unwrap());
    let said = read(bytes, &other).unwrap_err().to_string();
    assert!(said.contains(&signed.key.base64()) && said.contains("--trust FILE"), "{said}");
}

#[test]
fn a_trusted_key_claimed_by_another_signer_is_refused() {
    let (_, trusted, signed) = shared();
    let thief = PrivateKey::generate("thief").unwrap();
    let forged = Signed::make(signed.manifest.clone(), &thief).unwrap();
    let text = String::from_utf8(forged.signature).unwrap();
    let claimed = text.replace(&thief.public().base64(), &signed.key.base64());
    let refused = Signed::check(forged.bytes, claimed.into_bytes(), trusted).unwrap_err();
    assert!(refused.to_string().contains("not what the key tests has signed"), "{refused}");
}

#[test]
fn links_further_files_and_missing_ones_are_refused() {
    let key = PrivateKey::generate("tests").unwrap();
    let entry = |path: &str, content: &[u8]| {
        let (sha256, size) = copy(content, io::sink()).unwrap();
        Entry { path: path.to_owned(), mode: Mode::Program, size, sha256 }
    };
    let files = vec![entry("bin/a", b"aa"), entry("bin/b", b"")];
    let (version, architecture) = ("1.0.0".to_owned(), "x86_64".to_owned());
    let manifest = Manifest { format: FORMAT, version, architecture, commit: None, files };
    let signed = Signed::make(manifest, &key).unwrap();
    let member = |name, content: &[u8]| header(name, 0o644, content.len() as u64);
    let (first, second) = (
        (&member(MANIFEST, &signed.bytes), signed.bytes.as_slice()),
        (&member(SIGNATURE, &signed.signature), signed.signature.as_slice()),
    );
    let (a, b) = (header("bin/a", 0o755, 2), header("bin/b", 0o755, 0));
    let mut link = header("bin/b", 0o755, 0);
    // A symbolic link to the root, with a right checksum.
    link[156] = b'2';
    link[157] = b'/';
    let sum: u32 =
        (0..BLOCK).map(|at| if (148..156).contains(&at) { 32 } else { u32::from(link[at]) }).sum();
    link[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let trusted = trust(&key);
    let good = archive(&[first, second, (&a, b"aa"), (&b, b"")]);
    read(&good, &trusted).unwrap();
    let escape = header("../../bin/b", 0o755, 0);
    for (what, bad) in [
        ("a link", archive(&[first, second, (&a, b"aa"), (&link, b"")])),
        ("another path", archive(&[first, second, (&a, b"aa"), (&escape, b"")])),
        ("one more", archive(&[first, second, (&a, b"aa"), (&b, b""), (&b, b"")])),
        ("one less", archive(&[first, second, (&a, b"aa")])),
        ("another order", archive(&[first, second, (&b, b""), (&a, b"aa")])),
        ("other content", archive(&[first, second, (&a, b"ab"), (&b, b"")])),
        ("no signature", archive(&[first, (&a, b"aa"), (&b, b"")])),
        ("the signature first", archive(&[second, first, (&a, b"aa"), (&b, b"")])),
        ("more behind", [good.as_slice(), &[0]].concat()),
        ("nothing", Vec::new()),
    ] {
        assert!(read(&bad, &trusted).is_err(), "{what}");
    }
}

#[test]
fn a_manifest_without_bounds_takes_no_memory() {
    let head = header(MANIFEST, 0o644, 7 << 30);
    let said = read(&head, &Trusted::default()).unwrap_err().to_string();
    assert!(said.contains("are the most"), "{said}");
}

#[test]
fn a_file_that_is_not_there_makes_no_bundle() {
    let folder = tempfile::tempdir().unwrap();
    let key = PrivateKey::generate("k").unwrap();
    let file = folder.path().join("absent");
    let source = Source { path: "bin/bixi".to_owned(), mode: Mode::Program, file };
    assert!(make(&about("1.0.0"), &[source], &key, folder.path()).is_err());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_flipped_bit_anywhere_is_refused(at: prop::sample::Index, bit in 0..8) {
        let (bytes, trusted, _) = shared();
        let mut bytes = bytes.clone();
        let at = at.index(bytes.len());
        bytes[at] ^= 1_u8 << bit;
        prop_assert!(read(&bytes, trusted).is_err(), "byte {at}, bit {bit}");
    }

    #[test]
    fn a_bundle_that_is_cut_anywhere_is_refused(at: prop::sample::Index) {
        let (bytes, trusted, _) = shared();
        prop_assert!(read(&bytes[..at.index(bytes.len())], trusted).is_err());
    }
}
