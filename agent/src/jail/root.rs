//! The root of a jail: empty, read-only, with one directory in it.

use super::{Attempt, Result};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{
    MountFlags, MountPropagationFlags, mount, mount_bind, mount_bind_recursive, mount_change,
    mount_remount,
};
use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;

/// Builds the root at `place` in this process's own mount namespace; `cards` is the directory that is seen in it.
pub(super) fn build(place: &Path, cards: &Path) -> Result<OwnedFd> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change(c"/", private).attempt("keep mounts to itself")?;
    leave_rootfs(place)?;
    let closed = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let inside = place.join(super::CARDS.trim_start_matches('/'));
    mount(c"none", place, c"tmpfs", closed, c"size=16k,nr_inodes=8,mode=0755")
        .attempt("mount an empty root")?;
    fs::create_dir(&inside).attempt("make a directory in it")?;
    mount_bind(cards, &inside).attempt("mount the card sockets")?;
    // Sockets can be connected to on a read-only mount; nothing can be made there.
    mount_remount(&inside, MountFlags::BIND | MountFlags::RDONLY | closed, c"")
        .attempt("close the card sockets' directory")?;
    mount_remount(place, MountFlags::RDONLY | closed, c"").attempt("close the empty root")?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(place, flags, Mode::empty()).attempt("open the empty root")
}

/// A server that runs from its initial RAM disk has a root that cannot be changed: it is seen through a second mount of itself then.
fn leave_rootfs(place: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").attempt("read the mounts")?;
    if !is_rootfs(&mounts) {
        return Ok(());
    }
    mount_bind_recursive(c"/", place).attempt("mount the root again")?;
    rustix::process::chroot(place).attempt("go to the second mount of the root")?;
    rustix::process::chdir(c"/").attempt("go to the root")
}

/// Whether the root is the kernel's own first file system.
fn is_rootfs(mounts: &str) -> bool {
    let mut root = mounts.lines().filter(|line| line.split(' ').nth(4) == Some("/"));
    // What is mounted last is seen. The type is behind the separator.
    let kind = root.next_back().and_then(|line| line.split_once(" - "));
    kind.is_none_or(|(_, rest)| rest.starts_with("rootfs "))
}

#[cfg(test)]
mod tests {
    use super::is_rootfs;

    #[test]
    fn the_first_file_system_is_told_from_one_mounted_over_it() {
        let first = "1 1 0:2 / / rw - rootfs none rw\n21 1 0:4 / /proc rw - proc proc rw";
        assert!(is_rootfs(first));
        let over = format!("{first}\n30 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw");
        assert!(!is_rootfs(&over));
        assert!(is_rootfs(""), "a root that no line names");
    }
}
