//! What the owner tells about its VM: description and statistics.

use crate::memory::GuestRam;
use crate::vcpu::thread::VcpuThread;
use bixi_api::compute::{VcpuStatistics, VmStatistics};
use std::io;
use std::time::Duration;

/// How the kernel names the mappings of [`GuestRam`].
const GUEST_MAPPING: &str = "/memfd:guest ";

/// The counters of a VM.
pub(super) fn statistics(
    ram: &GuestRam,
    vcpus: &[VcpuThread],
    uptime: Option<Duration>,
) -> VmStatistics {
    let vcpus = vcpus
        .iter()
        .map(|vcpu| VcpuStatistics { index: vcpu.index(), exits: vcpu.exits().snapshot() });
    VmStatistics {
        uptime_ns: uptime.map_or(0, |uptime| u64::try_from(uptime.as_nanos()).unwrap_or(u64::MAX)),
        overhead_bytes: logged(overhead_bytes()),
        guest_resident_bytes: logged(ram.resident_bytes()),
        vcpus: vcpus.collect(),
    }
}

fn logged(figure: io::Result<u64>) -> u64 {
    figure.unwrap_or_else(|error| {
        tracing::warn!(%error, "the kernel does not tell this process's memory");
        0
    })
}

/// Resident memory of this process but for its mappings of guest memory.
///
/// The kernel's sums cannot tell guest memory from other shared memory (on a RAM disk even this program's text is
/// shared memory), so the mappings are gone through. That costs a look at each of the guest's pages and is for an
/// operator's question, not for every second.
fn overhead_bytes() -> io::Result<u64> {
    Ok(sum_overhead(&std::fs::read_to_string("/proc/self/smaps")?))
}

/// Adds up the `Rss` lines of all mappings but those of guest memory.
fn sum_overhead(smaps: &str) -> u64 {
    let mut is_guest = false;
    let mut kib = 0_u64;
    for line in smaps.lines() {
        if let Some(rss) = line.strip_prefix("Rss:") {
            let rss: u64 = rss.trim().trim_end_matches(" kB").parse().unwrap_or(0);
            kib += if is_guest { 0 } else { rss };
        } else if line.split_once(' ').is_some_and(|(range, _)| range.contains('-')) {
            // The first line of a mapping: range, permissions, …, path.
            is_guest = line.contains(GUEST_MAPPING);
        }
    }
    kib << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_is_not_overhead() {
        let text = "55d0-55d1 r-xp 0 fe:00 1 /usr/bin/x\nSize: 9 kB\nRss:   8 kB\n\
                    7f00-7f99 rw-s 0 00:01 2 /memfd:guest (deleted)\nRss:  4096 kB\nPss: 1 kB\n\
                    7ffc-7ffd rw-p 0 00:00 0 [stack]\nRss: 4 kB\n";
        assert_eq!(sum_overhead(text), 12 << 10);
    }

    #[test]
    fn touching_guest_memory_does_not_count() {
        use vm_memory::{Bytes, GuestAddress};
        let ram = GuestRam::new(64 << 20, bixi_api::compute::PageSize::Small).unwrap();
        let before = overhead_bytes().unwrap();
        ram.memory().write_slice(&vec![1; 48 << 20], GuestAddress(0)).unwrap();
        assert!(ram.resident_bytes().unwrap() >= 48 << 20);
        let after = overhead_bytes().unwrap();
        assert!(before > 100 << 10 && after < before + (40 << 20), "{before} {after}");
    }
}
