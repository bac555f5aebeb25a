//! What a guest boots: Debian's own kernel, unmodified, as bzImage and as the ELF inside it, and an initial RAM file
//! system with busybox, the virtio drivers and the lab's load generator.
//!
//! In a server the files are `/opt/guest/bzImage`, `/opt/guest/vmlinux` and `/opt/guest/initrd`.

use crate::cache::Cache;
use crate::error::Result;
use crate::kernel::Kernel;
use crate::server_image::{add_modules, stripped};
use crate::tree::Tree;
use std::path::{Path, PathBuf};

/// What guests load: the cloud kernel has its virtio drivers as modules.
const MODULES: &[&str] =
    &["virtio_pci", "virtio_blk", "virtio_net", "virtio-rng", "button", "evdev"];

/// The files of a guest, in the cache of this machine.
#[derive(Debug, Clone)]
pub struct GuestImage {
    /// The kernel's release.
    pub release: String,
    /// The bzImage.
    pub kernel: PathBuf,
    /// The same kernel as an ELF file with a PVH entry.
    pub elf: PathBuf,
    /// The initial RAM file system.
    pub initrd: PathBuf,
}

impl GuestImage {
    pub(crate) fn build(
        cache: &Cache,
        kernel: &Kernel,
        busybox: &Path,
        lab: &Path,
    ) -> Result<Self> {
        let mut tree = Tree::new();
        tree.file("bin/busybox", busybox, 0o755)
            .symlink("bin/sh", "busybox")
            .bytes("init", include_str!("../init/guest.sh"), 0o755)
            .bytes("bin/lease", include_str!("../init/guest.lease"), 0o755)
            .bytes("etc/inittab", include_str!("../init/guest.inittab"), 0o644)
            .bytes("etc/acpi/PWRF/00000080", "#!/bin/sh\nsync\npoweroff -f\n", 0o755)
            .bytes("etc/passwd", "root::0:0:root:/:/bin/sh\n", 0o644)
            .bytes("etc/group", "root:x:0:\n", 0o644)
            .character_device("dev/console", 5, 1);
        add_modules(&mut tree, kernel, MODULES)?;
        tree.program("bin/bixi-lab", &stripped(cache, lab)?, None)?;
        let key = format!("{:016x}", tree.fingerprint()?);
        let initrd = cache.entry("guest", &key, |path| tree.write_archive(path))?;
        Ok(Self {
            release: kernel.release.clone(),
            kernel: kernel.image.clone(),
            elf: kernel.elf(cache)?,
            initrd,
        })
    }
}
