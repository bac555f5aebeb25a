//! The disk of an installed system, in a file.
//!
//! ```text
//! sector 0        boot.img, and the protective partition table
//!        34       GPT
//!        2,048    BIOS boot partition: GRUB's core.img           1 MiB
//!        4,096    EFI system partition: EFI/BOOT/BOOTX64.EFI    64 MiB
//!        135,168  root, ext4; the last, so that it can grow with the disk
//! ```
//!
//! Invariant: both of GRUB's images find the root by its label and are told nothing else.

use super::{COMMAND_LINE, inside};
use crate::error::{Attempt, Error, Result};
use crate::host;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const SECTOR: u64 = 512;
const BIOS_BOOT: u64 = 2048;
const EFI: u64 = 4096;
const EFI_SECTORS: u64 = 131_072;
const ROOT: u64 = EFI + EFI_SECTORS;
/// Bytes of the disk: what is installed, and room for the first boot.
const DISK_BYTES: u64 = 2 << 30;
/// Sectors that the GPT's copy has at the end, rounded up to a whole MiB.
const TAIL: u64 = 2048;

/// What GRUB has inside: it loads no module from the disk.
const GRUB_MODULES: &[&str] = &[
    "part_gpt",
    "ext2",
    "normal",
    "linux",
    "search",
    "search_label",
    "configfile",
    "serial",
    "terminal",
    "echo",
    "test",
    "all_video",
];

/// How GRUB finds its menu.
const GRUB_EARLY: &str = "search --no-floppy --label root --set=root
set prefix=($root)/boot/grub
configfile $prefix/grub.cfg
";

/// Writes the disk of the system in the folder `root`, which gets GRUB's files.
///
/// # Errors
/// A program fails, or something cannot be written.
pub fn write(root: &Path, disk: &Path) -> Result<()> {
    super::write(root, "boot/grub/grub.cfg", &menu())?;
    super::write(root, "boot/grub/early.cfg", GRUB_EARLY)?;
    let bios = grub_image(root, "i386-pc", &["biosdisk"])?;
    let efi = grub_image(root, "x86_64-efi", &["fat", "efi_gop"])?;
    partition(disk)?;
    write_bios_boot(root, &bios, disk)?;
    write_efi(&efi, disk)?;
    write_root(root, disk)
}

/// What the disk is made by, as a text that changes with it.
pub fn recipe() -> String {
    format!("{} {GRUB_EARLY} {GRUB_MODULES:?} {DISK_BYTES}", menu())
}

fn menu() -> String {
    format!(
        "serial --unit=0 --speed=115200
terminal_input console serial
terminal_output console serial
set timeout=1
menuentry 'Debian' {{
	search --no-floppy --label root --set=root
	linux /vmlinuz {COMMAND_LINE}
	initrd /initrd.img
}}
"
    )
}

fn partition(disk: &Path) -> Result<()> {
    let wrong = || format!("make {}", disk.display());
    File::create(disk).and_then(|file| file.set_len(DISK_BYTES)).attempt(wrong)?;
    let root = DISK_BYTES / SECTOR - ROOT - TAIL;
    // The types: BIOS boot, EFI system (UEFI 2.10, table 5.7), and x86-64 root (Discoverable Partitions Specification).
    let layout = format!(
        "label: gpt\n\
         start={BIOS_BOOT}, size={}, type=21686148-6449-6E6F-744E-656564454649\n\
         start={EFI}, size={EFI_SECTORS}, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B\n\
         start={ROOT}, size={root}, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709\n",
        EFI - BIOS_BOOT
    );
    let script = Beside::write(disk, "layout", layout.as_bytes())?;
    let script_file = File::open(&script.0).attempt(wrong)?;
    host::run(host::program("sfdisk").arg("-q").arg(disk).stdin(script_file)).map(drop)
}

/// Makes one of GRUB's images in the new system; its bytes.
fn grub_image(root: &Path, platform: &str, more: &[&str]) -> Result<Vec<u8>> {
    let name = format!("/boot/grub/{platform}.img");
    let mut arguments = vec!["grub-mkimage", "-O", platform, "-o", &name, "-p", "/boot/grub"];
    arguments.extend(["-c", "/boot/grub/early.cfg"]);
    arguments.extend(GRUB_MODULES.iter().chain(more));
    inside(root, &arguments)?;
    let path = root.join(&name[1..]);
    let bytes = fs::read(&path).attempt(|| format!("read {}", path.display()))?;
    fs::remove_file(&path).attempt(|| format!("remove {}", path.display()))?;
    Ok(bytes)
}

/// What `grub-bios-setup` does, on a file: boot.img in the first sector says where core.img is, whose own first sector
/// says where the rest of it is (GRUB's `grub-core/boot/i386/pc/boot.S` and `diskboot.S`).
fn write_bios_boot(root: &Path, core: &[u8], disk: &Path) -> Result<()> {
    const KERNEL_SECTOR: usize = 0x5c;
    const DRIVE_CHECK: usize = 0x66;
    const TABLE: usize = 440;
    const BLOCK_LIST: usize = 512 - 12;
    let path = root.join("usr/lib/grub/i386-pc/boot.img");
    let mut boot = fs::read(&path).attempt(|| format!("read {}", path.display()))?;
    let mut core = core.to_vec();
    let sectors = core.len().div_ceil(SECTOR as usize);
    if boot.len() != 512 || core.len() < 1024 || sectors as u64 > EFI - BIOS_BOOT {
        return Err(Error::Unfit("GRUB's images are not as they were in Debian 12".to_owned()));
    }
    boot[KERNEL_SECTOR..][..8].copy_from_slice(&BIOS_BOOT.to_le_bytes());
    // The drive that the firmware names is believed.
    boot[DRIVE_CHECK..][..2].copy_from_slice(&[0x90, 0x90]);
    core[BLOCK_LIST..][..8].copy_from_slice(&(BIOS_BOOT + 1).to_le_bytes());
    core[BLOCK_LIST + 8..][..2].copy_from_slice(&(sectors as u16 - 1).to_le_bytes());
    let wrong = || format!("write {}", disk.display());
    let file = File::options().write(true).open(disk).attempt(wrong)?;
    file.write_all_at(&boot[..TABLE], 0).attempt(wrong)?;
    file.write_all_at(&core, BIOS_BOOT * SECTOR).attempt(wrong)
}

/// The EFI system partition is made in a file of its own, since mtools does not take its place inside another for granted.
fn write_efi(program: &[u8], disk: &Path) -> Result<()> {
    let program = Beside::write(disk, "efi", program)?;
    let volume = Beside::write(disk, "fat", &[])?;
    let wrong = || format!("write {}", volume.0.display());
    let file = File::options().read(true).write(true).open(&volume.0).attempt(wrong)?;
    file.set_len(EFI_SECTORS * SECTOR).attempt(wrong)?;
    host::run(host::program("mkfs.vfat").args(["-F", "32", "-n", "EFI"]).arg(&volume.0))?;
    let mtool = |name: &str| {
        let mut tool = host::program(name);
        tool.arg("-i").arg(&volume.0);
        tool
    };
    host::run(mtool("mmd").args(["::/EFI", "::/EFI/BOOT"]))?;
    host::run(mtool("mcopy").arg(&program.0).arg("::/EFI/BOOT/BOOTX64.EFI"))?;
    let bytes = fs::read(&volume.0).attempt(wrong)?;
    let wrong = || format!("write {}", disk.display());
    let disk = File::options().write(true).open(disk).attempt(wrong)?;
    disk.write_all_at(&bytes, EFI * SECTOR).attempt(wrong)
}

fn write_root(root: &Path, disk: &Path) -> Result<()> {
    let offset = format!("offset={},lazy_itable_init=1", ROOT * SECTOR);
    let kibibytes = (DISK_BYTES / SECTOR - ROOT - TAIL) / 2;
    let mut mkfs = host::program("mkfs.ext4");
    mkfs.args(["-q", "-F", "-L", "root", "-E", &offset, "-d"]).arg(root).arg(disk);
    host::run(mkfs.arg(format!("{kibibytes}k"))).map(drop)
}

/// A file beside the disk that goes with this value.
struct Beside(PathBuf);

impl Beside {
    fn write(disk: &Path, ending: &str, bytes: &[u8]) -> Result<Self> {
        let path = disk.with_extension(ending);
        fs::write(&path, bytes).attempt(|| format!("write {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // The folder it is in goes too when the build fails.
        let _ = fs::remove_file(&self.0);
    }
}
