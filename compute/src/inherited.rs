//! Which descriptors this process was started with.
//!
//! A configuration names inherited descriptors by number. A wrong number must not take over one that this process opened
//! for itself, so [`record`] is called before anything is opened, and the configuration's check asks [`is_one`].

use std::collections::BTreeSet;
use std::sync::OnceLock;

/// Looked at where `/proc` cannot tell.
const SCANNED: i32 = 4096;

static INHERITED: OnceLock<BTreeSet<i32>> = OnceLock::new();

/// Remembers the descriptors that are open now; the first call counts.
pub fn record() {
    INHERITED.get_or_init(open_now);
}

/// Whether the process was started with descriptor `fd`. Where nobody has recorded, as in a library's test, every
/// descriptor passes.
#[must_use]
pub fn is_one(fd: i32) -> bool {
    INHERITED.get().is_none_or(|inherited| inherited.contains(&fd))
}

fn open_now() -> BTreeSet<i32> {
    let listed: Vec<i32> = match std::fs::read_dir("/proc/self/fd") {
        Ok(entries) => {
            let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
            names.filter_map(|name| name.parse().ok()).collect()
        }
        Err(_) => (0..SCANNED).collect(),
    };
    // The folder's own descriptor was listed too, and is closed by now.
    listed.into_iter().filter(|fd| is_open(*fd)).collect()
}

fn is_open(fd: i32) -> bool {
    // SAFETY: F_GETFD only asks whether the number names an open descriptor.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn what_is_open_is_found_and_what_is_closed_is_not() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let open = open_now();
        assert!(open.contains(&file.as_raw_fd()));
        assert!(!open.contains(&(1 << 20)));
    }
}
