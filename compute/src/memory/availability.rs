//! Whether the host has the memory that a guest is to have.
//!
//! Ordinary memory is compared with what the kernel calls available, and with the limit of the process's control group;
//! huge pages with the pool's free ones. Memory may go to somebody else afterwards, but most who start a VM that cannot
//! fit are told so at once.

use bixi_api::compute::PageSize;
use std::path::Path;

/// The host has too little memory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Shortage {
    /// Too little ordinary memory.
    #[error(
        "memory.size asks for {wanted} bytes, this host has {available} available: free some, or give the guest less"
    )]
    Memory {
        /// Bytes asked for.
        wanted: u64,
        /// Bytes available.
        available: u64,
    },
    /// The control group allows less.
    #[error(
        "memory.size asks for {wanted} bytes, this process's control group allows {limit}: raise memory.max, or give the guest less"
    )]
    ControlGroup {
        /// Bytes asked for.
        wanted: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// Too few free huge pages.
    #[error(
        "memory.pages asks for {wanted} pages of {kib} KiB, this host has {free} free: write the number to {file}, or use other pages"
    )]
    HugePages {
        /// Pages asked for.
        wanted: u64,
        /// Free pages that nobody has reserved.
        free: u64,
        /// Their size.
        kib: u64,
        /// Where an operator sets their number.
        file: String,
    },
}

/// Checks that the host has `size` bytes of `pages`.
///
/// Where the kernel does not say, there is nothing to check.
///
/// # Errors
/// It has less.
pub fn check(size: u64, pages: PageSize) -> Result<(), Shortage> {
    match pages {
        PageSize::Small => check_ordinary(size, Path::new("/")),
        PageSize::Huge2M => check_huge(size, 2048, Path::new("/")),
        PageSize::Huge1G => check_huge(size, 1 << 20, Path::new("/")),
    }
}

fn check_ordinary(wanted: u64, root: &Path) -> Result<(), Shortage> {
    if let Some(available) = available(root)
        && wanted > available
    {
        return Err(Shortage::Memory { wanted, available });
    }
    match control_group_limit(root) {
        Some(limit) if wanted > limit => Err(Shortage::ControlGroup { wanted, limit }),
        _ => Ok(()),
    }
}

fn available(root: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

fn control_group_limit(root: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let group = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let file = root.join("sys/fs/cgroup").join(group).join("memory.max");
    // `max` is no number and no limit.
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

fn check_huge(size: u64, kib: u64, root: &Path) -> Result<(), Shortage> {
    let folder = format!("sys/kernel/mm/hugepages/hugepages-{kib}kB");
    let number = |name: &str| -> Option<u64> {
        let text = std::fs::read_to_string(root.join(&folder).join(name)).ok()?;
        text.trim().parse().ok()
    };
    // A pool that does not exist has no page.
    let free = number("free_hugepages").unwrap_or(0);
    let free = free.saturating_sub(number("resv_hugepages").unwrap_or(0));
    let wanted = size.div_ceil(kib << 10);
    if wanted > free {
        let file = format!("/{folder}/nr_hugepages");
        return Err(Shortage::HugePages { wanted, free, kib, file });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn what_the_kernel_says_is_compared() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(check_ordinary(u64::MAX, root.path()), Ok(()), "nothing is said");
        write("proc/meminfo", "MemTotal: 9 kB\nMemAvailable:    1024 kB\n");
        assert_eq!(check_ordinary(1 << 20, root.path()), Ok(()));
        let short = check_ordinary((1 << 20) + 1, root.path());
        assert!(matches!(short, Err(Shortage::Memory { available: 1_048_576, .. })));
        write("proc/self/cgroup", "0::/a/b\n");
        write("sys/fs/cgroup/a/b/memory.max", "max\n");
        assert_eq!(check_ordinary(8192, root.path()), Ok(()));
        write("sys/fs/cgroup/a/b/memory.max", "4096\n");
        assert!(matches!(
            check_ordinary(8192, root.path()),
            Err(Shortage::ControlGroup { limit: 4096, .. })
        ));
        let huge = "sys/kernel/mm/hugepages/hugepages-2048kB";
        assert!(check_huge(1, 2048, root.path()).is_err());
        write(&format!("{huge}/free_hugepages"), "5\n");
        write(&format!("{huge}/resv_hugepages"), "2\n");
        assert_eq!(check_huge(6 << 20, 2048, root.path()), Ok(()));
        let error = check_huge(8 << 20, 2048, root.path()).unwrap_err().to_string();
        assert!(error.contains("4 pages of 2048 KiB, this host has 3 free"), "{error}");
    }
}
