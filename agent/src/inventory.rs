//! What this server has.

use crate::places::Places;
use bixi_api::agent::{Inventory, KvmKind};
use std::fs;
use std::net::SocketAddr;

/// What does not change while the agent runs.
#[derive(Debug, Clone)]
pub struct Fixed {
    /// This server's tunnel end point.
    pub underlay: Option<SocketAddr>,
    /// What it lacks.
    pub lacks: Vec<String>,
    /// The server's boot.
    pub boot_id: String,
}

/// Looks at the server as it is now.
#[must_use]
pub fn look(places: &Places, fixed: &Fixed) -> Inventory {
    let (disk, disk_free) = room(places);
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    Inventory {
        cores: std::thread::available_parallelism().map_or(1, |n| n.get() as u32),
        memory: meminfo_bytes(&meminfo, "MemTotal:").unwrap_or(0),
        memory_free: memory_available().unwrap_or(0),
        kvm: kvm(&cpuinfo),
        cpu: field(&cpuinfo, "model name").unwrap_or_default().to_owned(),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        boot_id: fixed.boot_id.clone(),
        disk,
        disk_free,
        underlay: fixed.underlay,
        architecture: architecture(&rustix::system::uname().machine().to_string_lossy()),
        lacks: fixed.lacks.clone(),
    }
}

/// What `uname -m` says, as images and types write it.
fn architecture(machine: &str) -> String {
    match machine {
        "aarch64" => "arm64".to_owned(),
        other => other.to_owned(),
    }
}

/// Memory that is available, in bytes; where the kernel does not say, nothing is known.
#[must_use]
pub fn memory_available() -> Option<u64> {
    meminfo_bytes(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")
}

fn meminfo_bytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim())
}

fn kvm(cpuinfo: &str) -> KvmKind {
    let usable = fs::File::options().read(true).write(true).open("/dev/kvm").is_ok();
    let has = |name| field(cpuinfo, "flags").is_some_and(|f| f.split(' ').any(|flag| flag == name));
    match (usable, has("vmx"), has("svm")) {
        (false, ..) => KvmKind::None,
        (true, true, _) => KvmKind::Vmx,
        (true, _, true) => KvmKind::Svm,
        (true, false, false) => KvmKind::Software,
    }
}

/// Size and free room of the file system of the disks.
fn room(places: &Places) -> (u64, u64) {
    match rustix::fs::statvfs(&places.disks) {
        Ok(stat) => (stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize),
        Err(_) => (0, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_texts_are_read() {
        assert_eq!(
            meminfo_bytes("MemTotal:   7 kB\nMemAvailable: 3 kB\n", "MemAvailable:"),
            Some(3072)
        );
        assert_eq!(meminfo_bytes("MemTotal: many", "MemTotal:"), None);
        let cpuinfo = "model name\t: A CPU\nflags\t\t: fpu svm\n";
        assert_eq!(field(cpuinfo, "model name"), Some("A CPU"));
        assert_ne!(kvm(cpuinfo), KvmKind::Vmx);
        assert_eq!(
            (architecture("aarch64"), architecture("x86_64")),
            ("arm64".into(), "x86_64".into())
        );
    }
}
