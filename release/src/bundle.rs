//! A bundle as a file: `manifest.json`, `manifest.sig`, then the files in the manifest's order, as one tar archive.
//!
//! Invariants: reading needs no more memory than a manifest and one piece; every byte of the archive is either covered by
//! the signature, or compared with the only one that it can be.

use crate::archive::{BLOCK, header, padding, size_in};
use crate::error::{ReleaseError, Result, damaged, system};
use crate::key::{PrivateKey, Trusted};
use crate::manifest::{Entry, FORMAT, MAX_MANIFEST, MAX_SIGNATURE, Manifest, Mode, Signed};
use aws_lc_rs::digest::{Context, SHA256};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// The manifest's name, in a bundle and where it is installed.
pub const MANIFEST: &str = "manifest.json";
/// The signature's name.
pub const SIGNATURE: &str = "manifest.sig";

/// The two blocks that end an archive.
const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];
const PIECE: usize = 256 << 10;

/// A file that goes into a bundle.
#[derive(Debug, Clone)]
pub struct Source {
    /// Its path in the release.
    pub path: String,
    /// Its mode there.
    pub mode: Mode,
    /// Where it is now.
    pub file: PathBuf,
}

/// What a bundle is made of, but for its files.
#[derive(Debug, Clone)]
pub struct About {
    /// The version.
    pub version: String,
    /// The processor's architecture.
    pub architecture: String,
    /// The commit, if it is known.
    pub commit: Option<String>,
}

/// Makes the bundle of `sources`, signs it and writes it into the directory `output`; gives its path.
///
/// # Errors
/// A file cannot be read or written, changes meanwhile, or cannot be of a release.
pub fn make(about: &About, sources: &[Source], key: &PrivateKey, output: &Path) -> Result<PathBuf> {
    let mut sources = sources.to_vec();
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    let files = sources.iter().map(measure).collect::<Result<_>>()?;
    let About { version, architecture, commit } = about.clone();
    let manifest = Manifest { format: FORMAT, version, architecture, commit, files };
    let signed = Signed::make(manifest, key)?;
    let path = output.join(format!("bixi-{}-{}.tar", about.version, about.architecture));
    let unfinished = path.with_extension("tar.new");
    let written = File::create(&unfinished).map_err(system("make", &unfinished)).and_then(|file| {
        write(&signed, &sources, &file)?;
        file.sync_all().map_err(system("write", &unfinished))?;
        std::fs::rename(&unfinished, &path).map_err(system("name", &path))
    });
    if written.is_err() {
        // What is told is why it could not be written.
        let _ = std::fs::remove_file(&unfinished);
    }
    written.map(|()| path)
}

fn measure(source: &Source) -> Result<Entry> {
    let file = File::open(&source.file).map_err(system("open", &source.file))?;
    let (sha256, size) = copy(file, io::sink()).map_err(system("read", &source.file))?;
    Ok(Entry { path: source.path.clone(), mode: source.mode, size, sha256 })
}

fn write(signed: &Signed, sources: &[Source], to: impl Write) -> Result {
    let mut to = io::BufWriter::with_capacity(PIECE, to);
    let failed = |source| ReleaseError::System { action: "write the bundle".to_owned(), source };
    for (name, bytes) in [(MANIFEST, &signed.bytes), (SIGNATURE, &signed.signature)] {
        let size = bytes.len() as u64;
        let head = header(name, Mode::Data.bits(), size);
        let mut all = || {
            to.write_all(&head)?;
            to.write_all(bytes)?;
            to.write_all(&END[..padding(size)])
        };
        all().map_err(failed)?;
    }
    for (entry, source) in signed.manifest.files.iter().zip(sources) {
        let file = File::open(&source.file).map_err(system("open", &source.file))?;
        to.write_all(&header(&entry.path, entry.mode.bits(), entry.size)).map_err(failed)?;
        let copied = copy(file, &mut to).map_err(system("bundle", &source.file))?;
        if copied != (entry.sha256.clone(), entry.size) {
            return damaged(format!("{} has changed meanwhile", source.file.display()));
        }
        to.write_all(&END[..padding(entry.size)]).map_err(failed)?;
    }
    to.write_all(&END).and_then(|()| to.flush()).map_err(failed)
}

/// SHA-256 and size of all that `from` has, which goes to `to`.
pub(crate) fn copy(mut from: impl Read, mut to: impl Write) -> io::Result<(String, u64)> {
    let mut digest = Context::new(&SHA256);
    let (mut piece, mut size) = (vec![0; PIECE], 0);
    loop {
        match from.read(&mut piece) {
            Ok(0) => {
                let digest = digest.finish();
                let digits = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
                return Ok((digits, size));
            }
            Ok(n) => {
                digest.update(&piece[..n]);
                to.write_all(&piece[..n])?;
                size += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// A bundle that is being read. Its signature has been checked; each file is checked as it is copied, and only
/// [`finish`](Self::finish) says that all is well.
#[derive(Debug)]
pub struct Reader<R> {
    from: R,
    signed: Signed,
    next: usize,
}

impl<R: Read> Reader<R> {
    /// Reads manifest and signature.
    ///
    /// # Errors
    /// It is no bundle, or no trusted key has signed it.
    pub fn open(mut from: R, trusted: &Trusted) -> Result<Self> {
        let bytes = small(&mut from, MANIFEST, MAX_MANIFEST)?;
        let signature = small(&mut from, SIGNATURE, MAX_SIGNATURE)?;
        Ok(Self { from, signed: Signed::check(bytes, signature, trusted)?, next: 0 })
    }

    /// What was signed.
    pub fn signed(&self) -> &Signed {
        &self.signed
    }

    /// The file that comes next, if one does.
    pub fn entry(&self) -> Option<&Entry> {
        self.signed.manifest.files.get(self.next)
    }

    /// Copies the next file, if there is one. On an error, whatever has been written is worth nothing.
    ///
    /// # Errors
    /// The bundle is damaged, or `to` cannot be written, which is called `name` then.
    pub fn copy_to(&mut self, to: impl Write, name: &Path) -> Result {
        let Some(entry) = self.signed.manifest.files.get(self.next) else { return Ok(()) };
        let expected = header(&entry.path, entry.mode.bits(), entry.size);
        if block(&mut self.from, &entry.path)? != expected {
            return damaged(format!("the bundle has something else where {} belongs", entry.path));
        }
        let mut guarded = Guarded { to, failed: None };
        let copied = copy((&mut self.from).take(entry.size), &mut guarded);
        if let Some(source) = guarded.failed {
            return Err(system("write", name)(source));
        }
        let (sha256, size) = copied.map_err(unreadable)?;
        if size != entry.size {
            return damaged(format!("the bundle ends within {}", entry.path));
        }
        if sha256 != entry.sha256 {
            return damaged(format!("{} is not what was signed", entry.path));
        }
        zeros(&mut self.from, padding(size))?;
        self.next += 1;
        Ok(())
    }

    /// Reads the rest and sees that there is no more, and no less, than was signed.
    ///
    /// # Errors
    /// There is.
    pub fn finish(mut self) -> Result<Signed> {
        while self.entry().is_some() {
            self.copy_to(io::sink(), Path::new(""))?;
        }
        zeros(&mut self.from, END.len())?;
        match self.from.read(&mut [0]).map_err(unreadable)? {
            0 => Ok(self.signed),
            _ => damaged("the bundle goes on behind its end"),
        }
    }
}

/// Tells failures to write from failures to read.
struct Guarded<W> {
    to: W,
    failed: Option<io::Error>,
}

impl<W: Write> Write for Guarded<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.to.write(bytes) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                self.failed = Some(error);
                Err(io::ErrorKind::Other.into())
            }
            other => other,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

fn unreadable(source: io::Error) -> ReleaseError {
    match source.kind() {
        io::ErrorKind::UnexpectedEof => ReleaseError::Damaged("the bundle is cut off".to_owned()),
        _ => ReleaseError::System { action: "read the bundle".to_owned(), source },
    }
}

fn block(from: &mut impl Read, name: &str) -> Result<[u8; BLOCK]> {
    let mut block = [0; BLOCK];
    match from.read_exact(&mut block) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            damaged(format!("the bundle ends before {name}"))
        }
        read => read.map(|()| block).map_err(unreadable),
    }
}

fn zeros(from: &mut impl Read, count: usize) -> Result {
    let mut bytes = [0; END.len()];
    let bytes = &mut bytes[..count];
    from.read_exact(bytes).map_err(unreadable)?;
    match bytes.iter().all(|byte| *byte == 0) {
        true => Ok(()),
        false => damaged("the bundle has bytes between its files"),
    }
}

/// One of the two members whose size is not known before.
fn small(from: &mut impl Read, name: &str, most: u64) -> Result<Vec<u8>> {
    let read = block(from, name)?;
    let size = size_in(&read).filter(|size| read == header(name, Mode::Data.bits(), *size));
    let Some(size) = size else {
        return damaged(format!("this is no bundle of Bixi: it has no {name} where that belongs"));
    };
    if size > most {
        return damaged(format!("its {name} has {size} bytes; {most} are the most"));
    }
    let mut bytes = Vec::new();
    from.take(size).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 != size {
        return damaged(format!("the bundle ends within {name}"));
    }
    zeros(from, padding(size))?;
    Ok(bytes)
}

/// Reads `data` as what follows a signed manifest.
pub(crate) fn after(signed: Signed, data: &[u8]) {
    let _ = Reader { from: data, signed, next: 0 }.finish();
}

#[cfg(test)]
#[path = "bundle_tests.rs"]
pub(crate) mod tests;
