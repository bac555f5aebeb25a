//! What the owner tells about its VM: description and statistics.

use crate::memory::GuestRam;
use crate::vcpu::thread::VcpuThread;
use bixi_api::compute::{VcpuStatistics, VmStatistics};
use std::io;
use std::time::Duration;

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

/// Resident memory of this process but for shared memory, which is the guest's (and, a few pages per device, the record
/// of requests in flight). The kernel keeps these sums; walking the guest's mapping instead would hold the address
/// space's lock for as long as the guest is large.
fn overhead_bytes() -> io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let kib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    match (kib("RssAnon:"), kib("RssFile:")) {
        (Some(anonymous), Some(file)) => Ok((anonymous + file) * 1024),
        _ => Err(io::Error::from(io::ErrorKind::InvalidData)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_some_memory() {
        assert!(overhead_bytes().unwrap() > 100 << 10);
    }
}
