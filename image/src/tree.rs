//! A file tree that does not exist yet: what goes into an initial RAM file system or onto a read-only disk.
//!
//! Called by [`crate::tiny`] and the lab. A tree is a map from relative names to nodes, so that
//! adding a thing twice is no change and the result has one order.

use crate::cpio::Archive;
use crate::error::{Attempt, Error, Result};
use crate::host;
use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::BufWriter;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Debug, Clone)]
enum Node {
    Directory,
    File { source: PathBuf, mode: u32 },
    Bytes { data: Vec<u8>, mode: u32 },
    Symlink(String),
    CharacterDevice(u32, u32),
}

/// A file tree to be written somewhere.
#[derive(Debug, Default, Clone)]
pub struct Tree {
    nodes: BTreeMap<String, Node>,
}

impl Tree {
    /// An empty tree.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a folder and those above it.
    pub fn directory(&mut self, name: &str) -> &mut Self {
        let mut end = 0;
        while let Some(at) = name[end..].find('/') {
            end += at;
            self.nodes.entry(name[..end].to_owned()).or_insert(Node::Directory);
            end += 1;
        }
        self.nodes.entry(name.to_owned()).or_insert(Node::Directory);
        self
    }

    /// Adds a copy of a file of this machine.
    pub fn file(&mut self, name: &str, source: impl Into<PathBuf>, mode: u32) -> &mut Self {
        self.put(name, Node::File { source: source.into(), mode })
    }

    /// Adds a file with this content.
    pub fn bytes(&mut self, name: &str, data: impl Into<Vec<u8>>, mode: u32) -> &mut Self {
        self.put(name, Node::Bytes { data: data.into(), mode })
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, name: &str, target: &str) -> &mut Self {
        self.put(name, Node::Symlink(target.to_owned()))
    }

    /// Adds a character device with this major and minor number. Only for archives.
    pub fn character_device(&mut self, name: &str, major: u32, minor: u32) -> &mut Self {
        self.put(name, Node::CharacterDevice(major, minor))
    }

    /// Adds a program of this machine with its shared libraries: all in one folder, or where they are here.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub fn program(
        &mut self,
        name: &str,
        source: &Path,
        folder: Option<&str>,
    ) -> Result<&mut Self> {
        self.file(name, source, 0o755);
        for library in libraries(source)? {
            let file = library.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let inside = match folder {
                Some(folder) => format!("{folder}/{file}"),
                None => library.to_string_lossy().trim_start_matches('/').to_owned(),
            };
            self.file(&inside, &library, 0o755);
        }
        Ok(self)
    }

    /// A number that changes when the tree would be another: names, modes, contents, and of copied files size and time.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub fn fingerprint(&self) -> Result<u64> {
        let mut hasher = DefaultHasher::new();
        for (name, node) in &self.nodes {
            name.hash(&mut hasher);
            match node {
                Node::Directory => 0.hash(&mut hasher),
                Node::File { source, mode } => {
                    let meta =
                        fs::metadata(source).attempt(|| format!("read {}", source.display()))?;
                    (1, mode, source, meta.len(), meta.mtime(), meta.mtime_nsec())
                        .hash(&mut hasher);
                }
                Node::Bytes { data, mode } => (2, mode, data).hash(&mut hasher),
                Node::Symlink(target) => (3, target).hash(&mut hasher),
                Node::CharacterDevice(major, minor) => (4, major, minor).hash(&mut hasher),
            }
        }
        Ok(hasher.finish())
    }

    /// Writes the tree as a cpio archive for the kernel.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub fn write_archive(&self, to: &Path) -> Result<()> {
        let wrong = || format!("write {}", to.display());
        let out = BufWriter::new(fs::File::create(to).attempt(wrong)?);
        let mut archive = Archive::new(out);
        for (name, node) in &self.nodes {
            match node {
                Node::Directory => archive.directory(name, 0o755),
                Node::File { source, mode } => {
                    let data = fs::read(source).attempt(|| format!("read {}", source.display()))?;
                    archive.file(name, *mode, &data)
                }
                Node::Bytes { data, mode } => archive.file(name, *mode, data),
                Node::Symlink(target) => archive.symlink(name, target),
                Node::CharacterDevice(major, minor) => {
                    archive.character_device(name, 0o600, (*major, *minor))
                }
            }
            .attempt(wrong)?;
        }
        archive.finish().attempt(wrong)?;
        Ok(())
    }

    /// Writes the tree as a read-only ext4 image.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub fn write_ext4(&self, to: &Path) -> Result<()> {
        let staging = to.with_extension("staging");
        let result = self.write_folder(&staging).and_then(|bytes| {
            // An eighth more than the contents, and room for the inode tables.
            let size = (bytes + bytes / 8 + (16 << 20)).next_multiple_of(1 << 20);
            make_ext4(to, size, Some(&staging))
        });
        // Whatever happened, the staging folder has no further use.
        let _ = fs::remove_dir_all(&staging);
        result
    }

    fn write_folder(&self, root: &Path) -> Result<u64> {
        let mut bytes = 0;
        fs::create_dir_all(root).attempt(|| format!("make {}", root.display()))?;
        for (name, node) in &self.nodes {
            let path = root.join(name);
            let wrong = || format!("write {}", path.display());
            match node {
                Node::Directory => fs::create_dir_all(&path).attempt(wrong)?,
                Node::File { source, mode } => {
                    bytes += fs::copy(source, &path).attempt(wrong)?;
                    let mode = fs::Permissions::from_mode(*mode);
                    fs::set_permissions(&path, mode).attempt(wrong)?;
                }
                Node::Bytes { data, mode } => {
                    bytes += data.len() as u64;
                    fs::write(&path, data).attempt(wrong)?;
                    let mode = fs::Permissions::from_mode(*mode);
                    fs::set_permissions(&path, mode).attempt(wrong)?;
                }
                Node::Symlink(target) => {
                    std::os::unix::fs::symlink(target, &path).attempt(wrong)?;
                }
                Node::CharacterDevice(..) => {
                    return Err(Error::Unfit(format!("{name}: a disk carries no device nodes")));
                }
            }
        }
        Ok(bytes)
    }

    fn put(&mut self, name: &str, node: Node) -> &mut Self {
        if let Some((parent, _)) = name.rsplit_once('/') {
            self.directory(parent);
        }
        self.nodes.insert(name.to_owned(), node);
        self
    }
}

/// Makes a sparse image of `size` bytes with an ext4 file system, filled from `folder`.
///
/// # Errors
/// `mkfs.ext4` is not there or fails.
pub fn make_ext4(image: &Path, size: u64, folder: Option<&Path>) -> Result<()> {
    let wrong = || format!("make {}", image.display());
    fs::File::create(image).and_then(|f| f.set_len(size)).attempt(wrong)?;
    let mut mkfs = host::program("mkfs.ext4");
    mkfs.args(["-q", "-F", "-m", "0", "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1"]);
    if let Some(folder) = folder {
        mkfs.args(["-O", "^has_journal", "-d"]).arg(folder);
    }
    host::run(mkfs.arg(image))?;
    Ok(())
}

/// The shared libraries of a program and its loader, as `ldd` finds them.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd")
        .arg(program)
        .env("LC_ALL", "C")
        .output()
        .attempt(|| "run ldd".to_owned())?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() || text.contains("statically linked") {
        // A static program has none; `ldd` says so on its standard error.
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for line in text.lines() {
        if line.contains("not found") {
            return Err(Error::Unfit(format!("{} lacks a library:{line}", program.display())));
        }
        if let Some(path) = line.split_whitespace().find(|word| word.starts_with('/')) {
            found.push(PathBuf::from(path));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_brings_its_loader_and_libc() {
        let mut tree = Tree::new();
        tree.program("bin/self", &std::env::current_exe().unwrap(), None).unwrap();
        assert!(tree.nodes.keys().any(|name| name.ends_with("libc.so.6")), "{:?}", tree.nodes);
        assert!(tree.nodes.keys().any(|name| name.contains("ld-linux")));
        assert!(matches!(tree.nodes.get("bin"), Some(Node::Directory)));
        assert!(tree.nodes.keys().all(|name| !name.starts_with('/')));
    }

    #[test]
    fn the_fingerprint_follows_the_contents() {
        let mut one = Tree::new();
        one.bytes("etc/a", "x", 0o644);
        let mut two = one.clone();
        assert_eq!(one.fingerprint().unwrap(), two.fingerprint().unwrap());
        two.bytes("etc/a", "y", 0o644);
        assert_ne!(one.fingerprint().unwrap(), two.fingerprint().unwrap());
    }
}
