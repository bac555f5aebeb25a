//! The tiny image: Debian's own kernel, unmodified, as bzImage and as the ELF inside it, and an initial RAM file system
//! with busybox and the virtio drivers. It boots in a second and is made in a few.
//!
//! It takes its network from DHCP and, told `bixi.configure` on its command line, its name and user data from a
//! [cidata](crate::cidata) disk, else from the metadata server; it says `bixi-guest: ready` on its console. The lab's guests are this image with the lab's load generator.

use crate::bundle::{Boot, Bundle, Manifest};
use crate::cache::Cache;
use crate::error::Result;
use crate::host;
use crate::kernel::Kernel;
use crate::tree::Tree;
use std::path::{Path, PathBuf};

/// What guests load: the cloud kernel has its virtio drivers as modules, and the file system of a cidata disk too.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio-rng",
    "button",
    "evdev",
    "vfat",
    "nls_cp437",
    "nls_ascii",
];
/// What the kernel is told when nobody says anything else: its console, the reset that every hypervisor knows, and that
/// the guest is an instance, which is told its name.
const COMMAND_LINE: &str = "console=ttyS0 reboot=k panic=-1 bixi.configure";

/// The files of the tiny image, in a cache.
#[derive(Debug, Clone)]
pub struct Tiny {
    /// The kernel's release.
    pub release: String,
    /// The bzImage.
    pub kernel: PathBuf,
    /// The same kernel as an ELF file with a PVH entry.
    pub elf: PathBuf,
    /// The initial RAM file system.
    pub initrd: PathBuf,
}

impl Tiny {
    /// Builds what is not in the cache, with `programs` of this machine (where they go, and where they are) inside.
    ///
    /// # Errors
    /// Debian's packages cannot be had, or a program lacks a library.
    pub fn build(cache: &Cache, programs: &[(&str, &Path)]) -> Result<Self> {
        host::ensure_programs(&[
            ("ldd", "libc-bin"),
            ("strip", "binutils"),
            ("lz4", "lz4"),
            ("xz", "xz-utils"),
            ("zstd", "zstd"),
        ])?;
        let kernel = Kernel::debian(cache)?;
        let mut tree = Tree::new();
        tree.file("bin/busybox", busybox(cache)?, 0o755)
            .symlink("bin/sh", "busybox")
            .bytes("init", include_str!("../init/guest.sh"), 0o755)
            .bytes("bin/configure", include_str!("../init/guest.configure"), 0o755)
            .bytes("bin/lease", include_str!("../init/guest.lease"), 0o755)
            .bytes("etc/inittab", include_str!("../init/guest.inittab"), 0o644)
            .bytes("etc/acpi/PWRF/00000080", "#!/bin/sh\nsync\npoweroff -f\n", 0o755)
            .bytes("etc/passwd", "root::0:0:root:/:/bin/sh\n", 0o644)
            .bytes("etc/group", "root:x:0:\n", 0o644)
            .character_device("dev/console", 5, 1);
        kernel.add_modules(&mut tree, MODULES)?;
        for (name, program) in programs {
            tree.program(name, &stripped(cache, program)?, None)?;
        }
        let key = format!("{:016x}", tree.fingerprint()?);
        let initrd = cache.entry("guest", &key, |path| tree.write_archive(path))?;
        let elf = kernel.elf(cache)?;
        Ok(Self { release: kernel.release, kernel: kernel.image, elf, initrd })
    }

    /// Puts the image into `folder`, which is made, as a bundle.
    ///
    /// # Errors
    /// The folder is there already, or cannot be written.
    pub fn write_bundle(&self, folder: &Path) -> Result<Bundle> {
        let boot = Boot::Direct {
            kernel: "vmlinuz".to_owned(),
            initrd: "initrd".to_owned(),
            command_line: COMMAND_LINE.to_owned(),
        };
        let manifest = Manifest::new("tiny", &format!("Debian {}", self.release), boot);
        let files = [("vmlinuz", self.kernel.as_path()), ("initrd", self.initrd.as_path())];
        Bundle::write(folder, manifest, &files)
    }
}

/// Debian's statically linked busybox.
///
/// # Errors
/// apt cannot get it.
pub fn busybox(cache: &Cache) -> Result<PathBuf> {
    let folder = cache.entry("busybox", "debian-static", |folder| {
        host::unpack_package("busybox-static", folder)
    })?;
    let usual = folder.join("bin/busybox");
    Ok(if usual.exists() { usual } else { folder.join("usr/bin/busybox") })
}

/// A program without its debug information, which would only cost memory where it goes.
///
/// # Errors
/// It cannot be read, or `strip` fails.
pub fn stripped(cache: &Cache, program: &Path) -> Result<PathBuf> {
    let mut tree = Tree::new();
    let key = format!("{:016x}", tree.file("x", program, 0o755).fingerprint()?);
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    // The name comes first, so that no program's kind begins as another's does: `bixi` and `bixi-cloud`.
    cache.entry(&format!("{name}.stripped"), &key, |path| {
        host::run(host::program("strip").arg("--strip-debug").arg("-o").arg(path).arg(program))?;
        Ok(())
    })
}
