//! The Debian image: Debian 12 with its cloud kernel, cloud-init and OpenSSH, on a disk that boots by BIOS and by UEFI.
//!
//! Packages come from Debian's mirror by `mmdebstrap`, which needs root for the owners of the files. Everything is written
//! into files of the bundle: no loop device, no mount, nothing of this machine changes.
//!
//! Invariants: no instance shares with another what must be its own (machine id, host keys); the kernel that the hypervisor
//! loads is the one on the disk.

mod disk;
#[cfg(test)]
mod tests;

use crate::bundle::{self, Boot, Bundle, Disk, FileEntry, Manifest};
use crate::cache::Cache;
use crate::digest::{self, Sha256};
use crate::error::{Attempt, Error, Result};
use crate::host;
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

const DISK: &str = "disk.raw";
const KERNEL: &str = "vmlinuz";
const INITRD: &str = "initrd.img";

/// What a kernel is told that the hypervisor loads itself: no more than GRUB tells it.
const COMMAND_LINE: &str = "root=LABEL=root ro quiet console=tty0 console=ttyS0,115200";

/// What is installed beside what is essential.
const PACKAGES: &[&str] = &[
    "ca-certificates",
    "cloud-guest-utils",
    "cloud-init",
    "dbus",
    "gdisk",
    "grub-efi-amd64-bin",
    "grub-pc-bin",
    "grub2-common",
    "iproute2",
    "iputils-ping",
    "kmod",
    "less",
    "linux-image-cloud-amd64",
    "openssh-server",
    "procps",
    "sudo",
    "systemd-resolved",
    "systemd-sysv",
    "udev",
    "vim-tiny",
];

const FSTAB: &str = "LABEL=root / ext4 defaults 0 1\nLABEL=EFI /boot/efi vfat umask=0077 0 1\n";
/// There are no locales to choose from.
const CLOUD: &str = "datasource_list: [NoCloud, AliYun, None]\nlocale: C.UTF-8\n";

/// Builds the image as a bundle in `folder`.
///
/// # Errors
/// This is not root, a program or a package cannot be had, or something cannot be written; nothing stays then.
pub fn build(folder: &Path) -> Result<Bundle> {
    if !rustix::process::geteuid().is_root() {
        let reason = "files of a Debian system belong to several users: build it as root";
        return Err(Error::Unfit(reason.to_owned()));
    }
    if std::env::consts::ARCH != "x86_64" {
        return Err(Error::Unfit("the Debian image is built on x86-64 machines only".to_owned()));
    }
    host::ensure_programs(&[
        ("mmdebstrap", "mmdebstrap"),
        ("sfdisk", "fdisk"),
        ("mkfs.ext4", "e2fsprogs"),
        ("mkfs.vfat", "dosfstools"),
        ("mcopy", "mtools"),
    ])?;
    let boot = Boot::Direct {
        kernel: KERNEL.to_owned(),
        initrd: INITRD.to_owned(),
        command_line: COMMAND_LINE.to_owned(),
    };
    let mut manifest = Manifest::new("debian-12", "Debian 12 (bookworm)", boot);
    manifest.disk = Some(Disk { file: DISK.to_owned() });
    bundle::build_beside(folder, |unfinished| {
        let root = unfinished.join("root");
        install(&root)?;
        configure(&root)?;
        host::say("writing the disk");
        disk::write(&root, &unfinished.join(DISK))?;
        for name in [KERNEL, INITRD] {
            // Debian keeps both as links of the newest.
            let wrong = || format!("copy {name} out of the new system");
            fs::copy(root.join(name), unfinished.join(name)).attempt(wrong)?;
        }
        fs::remove_dir_all(&root).attempt(|| format!("remove {}", root.display()))?;
        for name in [DISK, KERNEL, INITRD] {
            let path = unfinished.join(name);
            let wrong = || format!("read {}", path.display());
            let file = File::open(&path).attempt(wrong)?;
            let (sha256, bytes) = digest::copy(&file, |_| Ok(())).attempt(wrong)?;
            file.sync_all().attempt(wrong)?;
            manifest.files.insert(name.to_owned(), FileEntry { bytes, sha256 });
        }
        bundle::write_manifest(unfinished, &manifest)
    })?;
    Ok(Bundle { folder: folder.to_owned(), manifest })
}

/// The image, built unless it is in the cache already.
///
/// # Errors
/// See [`build`].
pub fn cached(cache: &Cache) -> Result<Bundle> {
    let recipe = format!("{PACKAGES:?} {FSTAB} {CLOUD} {}", disk::recipe());
    let mut digest = Sha256::new();
    digest.update(recipe.as_bytes());
    let folder = cache.entry("debian", &digest.finish()[..16], |path| build(path).map(drop))?;
    Bundle::open(&folder)
}

fn install(root: &Path) -> Result<()> {
    host::say("installing Debian 12 with mmdebstrap: a few minutes");
    let include = format!("--include={}", PACKAGES.join(","));
    let mut mmdebstrap = host::program("mmdebstrap");
    mmdebstrap.args(["--quiet", "--mode=root", "--variant=minbase", &include]);
    // Documentation in many languages is not what a server is for; licences stay.
    mmdebstrap.args(["--dpkgopt=path-exclude=/usr/share/man/*"]);
    mmdebstrap.args(["--dpkgopt=path-exclude=/usr/share/locale/*"]);
    host::run(mmdebstrap.arg("bookworm").arg(root)).map(drop)
}

fn write(root: &Path, name: &str, text: &str) -> Result<()> {
    let path = root.join(name);
    let wrong = || format!("write {}", path.display());
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).attempt(wrong)?;
    }
    fs::write(&path, text).attempt(wrong)
}

/// Runs a program of the new system in it.
fn inside(root: &Path, arguments: &[&str]) -> Result<()> {
    host::run(Command::new("chroot").arg(root).args(arguments).env("LC_ALL", "C")).map(drop)
}

/// Makes of an installed system one that each instance makes its own.
fn configure(root: &Path) -> Result<()> {
    write(root, "etc/fstab", FSTAB)?;
    write(root, "etc/hostname", "debian\n")?;
    write(root, "etc/hosts", "127.0.0.1 localhost\n::1 localhost\n")?;
    // Empty and not missing: systemd makes one at the first boot.
    write(root, "etc/machine-id", "")?;
    write(root, "etc/cloud/cloud.cfg.d/90_datasources.cfg", CLOUD)?;
    fs::create_dir_all(root.join("boot/efi")).attempt(|| "make /boot/efi".to_owned())?;
    inside(root, &["systemctl", "enable", "-q", "systemd-networkd", "systemd-resolved"])?;
    // Two instances must not have the same: cloud-init makes new ones.
    inside(root, &["sh", "-c", "rm -f /etc/ssh/ssh_host_*_key* /var/log/*.log /etc/resolv.conf"])?;
    inside(root, &["ln", "-s", "/run/systemd/resolve/stub-resolv.conf", "/etc/resolv.conf"])
}
