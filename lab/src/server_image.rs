//! What a server boots: Debian's kernel, an initial RAM file system with busybox, the agent and kernel modules, our
//! binaries on top of it, and a read-only disk with the guests' files and other programs.
//!
//! The RAM file system is two archives: one that changes rarely and is cached, one with the binaries of the last build.

use crate::error::{Attempt, Result};
use bixi_image::cache::Cache;
use bixi_image::host;
use bixi_image::kernel::Kernel;
use bixi_image::tiny::{Tiny, busybox, stripped};
use bixi_image::tree::Tree;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What servers load; KVM only for the processor they have.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio-rng",
    "kvm-amd",
    "kvm-intel",
    "tun",
    "vhost_net",
    "vxlan",
    "overlay",
];

/// What to put into a server beside its own system.
#[derive(Debug, Clone, Default)]
pub struct Contents {
    /// Programs of the last build, for `/usr/bin`.
    pub binaries: Vec<PathBuf>,
    /// Programs of this machine, for `/opt/bin`, with their libraries.
    pub programs: Vec<PathBuf>,
    /// Files of this machine, and where they go below `/opt`.
    pub files: Vec<(PathBuf, String)>,
}

/// The files that QEMU starts a server from.
#[derive(Debug, Clone)]
pub(crate) struct ServerImage {
    /// The bzImage.
    pub kernel: PathBuf,
    /// The archive that changes rarely.
    pub base: PathBuf,
    /// The archive with our binaries.
    pub binaries: PathBuf,
    /// The read-only disk, mounted at `/opt`.
    pub disk: PathBuf,
}

impl ServerImage {
    /// Builds what is not in the cache. `lab` is the program that becomes the agent.
    pub fn build(cache: &Cache, lab: &Path, contents: &Contents) -> Result<Self> {
        let kernel = Kernel::debian(cache)?;
        let busybox = busybox(cache)?;
        let guest = Tiny::build(cache, &[("bin/bixi-lab", lab)])?;
        Ok(Self {
            base: base(cache, &kernel, &busybox, lab)?,
            binaries: binaries(cache, &contents.binaries)?,
            disk: disk(cache, lab, &guest, contents)?,
            kernel: kernel.image,
        })
    }

    /// Joins the two archives into the one file that QEMU takes.
    pub fn join(&self, to: &Path) -> Result<()> {
        let wrong = || format!("write {}", to.display());
        let mut out = fs::File::create(to).attempt(wrong)?;
        for part in [&self.base, &self.binaries] {
            let mut part = fs::File::open(part).attempt(|| format!("read {}", part.display()))?;
            io::copy(&mut part, &mut out).attempt(wrong)?;
        }
        Ok(())
    }
}

fn base(cache: &Cache, kernel: &Kernel, busybox: &Path, lab: &Path) -> Result<PathBuf> {
    let mut tree = Tree::new();
    tree.file("bin/busybox", busybox, 0o755)
        .symlink("bin/sh", "busybox")
        .bytes("init", include_str!("../init/server.sh"), 0o755)
        .bytes("etc/inittab", include_str!("../init/server.inittab"), 0o644)
        .bytes("etc/passwd", "root::0:0:root:/root:/bin/sh\n", 0o644)
        .bytes("etc/group", "root:x:0:\n", 0o644)
        .directory("root")
        .character_device("dev/console", 5, 1);
    kernel.add_modules(&mut tree, MODULES)?;
    tree.program("bin/bixi-lab", &stripped(cache, lab)?, None)?;
    let key = format!("{:016x}", tree.fingerprint()?);
    Ok(cache.entry("server", &key, |path| tree.write_archive(path))?)
}

fn binaries(cache: &Cache, binaries: &[PathBuf]) -> Result<PathBuf> {
    let mut tree = Tree::new();
    for binary in binaries {
        let name = binary.file_name().unwrap_or_default().to_string_lossy();
        tree.program(&format!("usr/bin/{name}"), &stripped(cache, binary)?, None)?;
    }
    let key = format!("{:016x}", tree.fingerprint()?);
    Ok(cache.entry("binaries", &key, |path| tree.write_archive(path))?)
}

/// The guests' files as an image that a cloud can be given.
fn guest_bundle(cache: &Cache, guest: &Tiny) -> Result<PathBuf> {
    // The archive is named by what is in it, its kernel's modules too.
    let key = guest.initrd.file_name().unwrap_or_default().to_string_lossy();
    Ok(cache.entry("bundle", &key, |path| guest.write_bundle(path).map(drop))?)
}

fn disk(cache: &Cache, lab: &Path, guest: &Tiny, contents: &Contents) -> Result<PathBuf> {
    let mut tree = Tree::new();
    let bundle = guest_bundle(cache, guest)?;
    for name in ["manifest.json", "vmlinuz", "initrd"] {
        tree.file(&format!("guest/tiny/{name}"), bundle.join(name), 0o644);
    }
    tree.symlink("guest/bzImage", "tiny/vmlinuz").symlink("guest/initrd", "tiny/initrd");
    tree.file("guest/vmlinux", &guest.elf, 0o644);
    // A system that is not the rack's own finds its agent there.
    tree.program("bin/bixi-lab", &stripped(cache, lab)?, None)?;
    for program in &contents.programs {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        tree.program(&format!("bin/{name}"), program, Some("lib"))?;
    }
    for (file, name) in &contents.files {
        tree.file(name, file, 0o644);
    }
    let key = format!("{:016x}", tree.fingerprint()?);
    Ok(cache.entry("disk", &key, |path| {
        host::say("writing the servers' disk of programs and guest files");
        tree.write_ext4(path)
    })?)
}
