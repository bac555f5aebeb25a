//! The processes of a server that are not its own, and the reset that ends them.

use rustix::process::{Pid, Signal};
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

/// Folders that a reset empties.
const CLEARED: &[&str] = &["/run/bixi", "/scratch", "/tmp"];

/// The parent of all threads of the kernel.
const KERNEL_THREADS: i32 = 2;

/// Milliseconds since the server's kernel started.
pub(super) fn uptime_ms() -> u64 {
    let text = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds: f64 = text.split(' ').next().and_then(|s| s.parse().ok()).unwrap_or_default();
    // An uptime is positive and far below 2^53 milliseconds.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let milliseconds = (seconds * 1000.0) as u64;
    milliseconds
}

/// Processes that are neither the kernel's, nor the first one, nor this one, nor the shell of the serial port.
pub(super) fn foreign() -> Vec<i32> {
    let own = std::process::id();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|e| e.file_name().to_string_lossy().parse::<i32>().ok())
        .filter(|pid| *pid != 1 && u32::try_from(*pid) != Ok(own) && is_foreign(*pid))
        .collect()
}

fn is_foreign(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name before the parenthesis may contain anything; after it come the state and the parent.
    let parent = stat.rsplit(") ").next().and_then(|s| s.split(' ').nth(1)).unwrap_or_default();
    if stat.is_empty() || pid == KERNEL_THREADS || parent == KERNEL_THREADS.to_string() {
        return false;
    }
    // A process whose first thread is dead has no command line, while its others may still run and hold its files; and
    // one that nobody has waited for still bears its name. Both count until they are gone.
    let Ok(command) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    let console = parent == "1"
        && (command.starts_with(b"/bin/sh\0") || command.starts_with(b"/sbin/getty\0"));
    !console
}

/// Kills all foreign processes, waits for their end, and clears the folders they wrote to.
pub(super) fn reset() -> io::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let rest = foreign();
        if rest.is_empty() {
            break;
        }
        for pid in &rest {
            if let Some(pid) = Pid::from_raw(*pid) {
                // It may have ended by itself meanwhile.
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
        if Instant::now() > deadline {
            return Err(io::Error::other(format!("these processes do not end: {rest:?}")));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    for folder in CLEARED {
        clear(Path::new(folder))?;
    }
    // Huge pages a test reserved go back; a kernel without them has no such file.
    let _ = fs::write("/proc/sys/vm/nr_hugepages", "0");
    Ok(())
}

fn clear(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|n| n == "lost+found") {
            continue;
        }
        let result = match path.symlink_metadata()?.is_dir() {
            true => fs::remove_dir_all(&path),
            false => fs::remove_file(&path),
        };
        result.map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
    }
    Ok(())
}
