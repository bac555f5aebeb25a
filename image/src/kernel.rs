//! Debian's own cloud kernel, unpacked: the image, its modules in loading order, and the ELF inside the image.
//!
//! Servers and guests run this same kernel, unmodified. Called by [`crate::tiny`] and the lab.

use crate::cache::Cache;
use crate::elf;
use crate::error::{Attempt, Error, Result};
use crate::host;
use crate::tree::Tree;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// A kernel package, unpacked.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// Its release, as `uname -r` says it.
    pub release: String,
    /// The bzImage.
    pub image: PathBuf,
    modules: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
}

impl Kernel {
    /// Debian's cloud kernel, downloaded once.
    ///
    /// # Errors
    /// apt cannot get it, or it is not laid out as expected.
    pub fn debian(cache: &Cache) -> Result<Self> {
        let folder = cache.entry("kernel", "debian-cloud", |folder| {
            let package = host::real_package("linux-image-cloud-amd64", "linux-image-")?;
            host::unpack_package(&package, folder)
        })?;
        Self::open(&folder)
    }

    fn open(folder: &Path) -> Result<Self> {
        let wrong = |message: &str| Error::Format {
            path: folder.to_owned(),
            message: format!("{message}; remove the folder and start again"),
        };
        let boot = folder.join("boot");
        let image = children(&boot)?
            .into_iter()
            .find(|p| name(p).starts_with("vmlinuz-"))
            .ok_or_else(|| wrong("the kernel package has no vmlinuz"))?;
        let release = name(&image).trim_start_matches("vmlinuz-").to_owned();
        let libraries = ["lib/modules", "usr/lib/modules"]
            .iter()
            .map(|p| folder.join(p).join(&release))
            .find(|p| p.is_dir())
            .ok_or_else(|| wrong("the kernel package has no modules"))?;
        let mut modules = BTreeMap::new();
        index(&libraries.join("kernel"), &mut modules)?;
        let builtin = fs::read_to_string(libraries.join("modules.builtin")).unwrap_or_default();
        let builtin = builtin.lines().map(|line| module_name(Path::new(line))).collect();
        Ok(Self { release, image, modules, builtin })
    }

    /// Adds modules and all they need to a tree, and the file that says in which order they load.
    ///
    /// # Errors
    /// The kernel does not have one of them.
    pub fn add_modules(&self, tree: &mut Tree, wanted: &[&str]) -> Result<()> {
        let mut order = String::new();
        for (module, path) in self.modules(wanted)? {
            tree.file(&format!("lib/modules/{module}.ko"), path, 0o644);
            order.push_str(&module);
            order.push('\n');
        }
        tree.bytes("lib/modules/order", order, 0o644);
        Ok(())
    }

    /// These modules and all they need, in an order in which they load.
    fn modules(&self, wanted: &[&str]) -> Result<Vec<(String, PathBuf)>> {
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        for module in wanted {
            self.visit(&module.replace('-', "_"), &mut seen, &mut order)?;
        }
        Ok(order)
    }

    fn visit(
        &self,
        module: &str,
        seen: &mut BTreeSet<String>,
        order: &mut Vec<(String, PathBuf)>,
    ) -> Result<()> {
        if self.builtin.contains(module) || !seen.insert(module.to_owned()) {
            return Ok(());
        }
        let path = self.modules.get(module).ok_or_else(|| {
            Error::Unfit(format!("the kernel {} has no module {module}", self.release))
        })?;
        let contents = fs::read(path).attempt(|| format!("read {}", path.display()))?;
        let needed = elf::module_dependencies(&contents).ok_or_else(|| Error::Format {
            path: path.clone(),
            message: "not a kernel module that can be read".to_owned(),
        })?;
        for other in needed {
            self.visit(&other.replace('-', "_"), seen, order)?;
        }
        order.push((module.to_owned(), path.clone()));
        Ok(())
    }

    /// The ELF kernel inside the image, which a PVH boot enters.
    ///
    /// # Errors
    /// The image is compressed in an unknown way, or the program for it fails.
    pub fn elf(&self, cache: &Cache) -> Result<PathBuf> {
        cache.entry("vmlinux", &self.release, |path| {
            let image =
                fs::read(&self.image).attempt(|| format!("read {}", self.image.display()))?;
            let payload = elf::bzimage_payload(&image).ok_or_else(|| Error::Format {
                path: self.image.clone(),
                message: "not a bzImage".to_owned(),
            })?;
            fs::write(path, decompress(payload, &self.image)?)
                .attempt(|| format!("write {}", path.display()))
        })
    }
}

/// Unpacks a compressed kernel with the program that knows its format.
fn decompress(payload: &[u8], image: &Path) -> Result<Vec<u8>> {
    // The build appends the unpacked size to some formats; the programs may call it garbage.
    let (program, arguments, trailer): (_, &[&str], usize) = match payload {
        [0x02, 0x21, 0x4c, 0x18, ..] => ("lz4", &["-dc"], 4),
        [0xfd, b'7', b'z', b'X', ..] => ("xz", &["-dc", "--single-stream"], 4),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => ("zstd", &["-dc"], 4),
        [0x1f, 0x8b, ..] => ("gzip", &["-dc"], 0),
        _ => {
            return Err(Error::Format {
                path: image.to_owned(),
                message: "the kernel is compressed in a way that is not known here".to_owned(),
            });
        }
    };
    let data = payload[..payload.len() - trailer].to_vec();
    let wrong = || format!("unpack the kernel with {program}");
    let mut child = host::program(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .attempt(wrong)?;
    let mut input = child.stdin.take();
    let feeder = std::thread::spawn(move || input.as_mut().map(|i| i.write_all(&data)));
    let output = child.wait_with_output().attempt(wrong)?;
    // A program that stops reading early has its reason on standard error.
    let _ = feeder.join();
    if output.stdout.starts_with(b"\x7fELF") {
        return Ok(output.stdout);
    }
    Err(Error::Program {
        command: format!("{program} {}", arguments.join(" ")),
        output: host::tail(&String::from_utf8_lossy(&output.stderr)),
    })
}

fn index(folder: &Path, found: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for path in children(folder)? {
        if path.is_dir() {
            index(&path, found)?;
        } else if name(&path).ends_with(".ko") {
            found.insert(module_name(&path), path);
        }
    }
    Ok(())
}

fn children(folder: &Path) -> Result<Vec<PathBuf>> {
    let wrong = || format!("read {}", folder.display());
    let entries = fs::read_dir(folder).attempt(wrong)?;
    entries.map(|e| e.map(|e| e.path()).attempt(wrong)).collect()
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// A module's name: that of its file, with `_` for `-` as the kernel has it.
fn module_name(path: &Path) -> String {
    name(path).trim_end_matches(".ko").replace('-', "_")
}
