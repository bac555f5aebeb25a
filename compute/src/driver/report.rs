//! What the owner tells about its VM: description and statistics.

use crate::boot::files;
use crate::memory::GuestRam;
use crate::vcpu::thread::VcpuThread;
use bixi_api::compute::{VcpuStatistics, VmConfig, VmStatistics};
use bixi_api::file::FileSource;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Duration;

/// The kernel tells less than this about a process.
const STATUS_LIMIT: usize = 8192;

/// The counters of a VM.
pub(super) fn statistics(
    config: &VmConfig,
    ram: &GuestRam,
    vcpus: &[VcpuThread],
    uptime: Option<Duration>,
) -> VmStatistics {
    let vcpus = vcpus
        .iter()
        .map(|vcpu| VcpuStatistics { index: vcpu.index(), exits: vcpu.exits().snapshot() });
    VmStatistics {
        uptime_ns: uptime.map_or(0, |uptime| u64::try_from(uptime.as_nanos()).unwrap_or(u64::MAX)),
        overhead_bytes: logged(overhead_bytes(&config.host.status)),
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

/// Resident memory of this process but for its mappings of shared memory, guest memory above all.
///
/// What it leaves out beside the guest is small: in-flight records, dirty logs, and this program's text where that lies
/// on a RAM disk. Going through the mappings would tell them apart, and cost a look at each of the guest's pages.
fn overhead_bytes(source: &FileSource) -> io::Result<u64> {
    let file = match source {
        FileSource::Path(path) => File::open(path)?,
        FileSource::Fd(fd) => files::duplicate(*fd)?,
    };
    let mut text = [0; STATUS_LIMIT];
    // From the start, wherever an inherited descriptor stands.
    let length = file.read_at(&mut text, 0)?;
    Ok(sum_overhead(&String::from_utf8_lossy(&text[..length])))
}

/// Adds up what is resident of private memory and of files. The kernel counts shared memory apart.
fn sum_overhead(status: &str) -> u64 {
    let counted = |line: &str| {
        let kib = line.strip_prefix("RssAnon:").or_else(|| line.strip_prefix("RssFile:"))?;
        kib.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    status.lines().filter_map(counted).sum::<u64>() << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_is_not_overhead() {
        let text = "VmRSS:\t    4108 kB\nRssAnon:\t       4 kB\nRssFile:\t       8 kB\n\
                    RssShmem:\t    4096 kB\nVmData:\t      99 kB\n";
        assert_eq!(sum_overhead(text), 12 << 10);
    }

    #[test]
    fn touching_guest_memory_does_not_count() {
        use vm_memory::{Bytes, GuestAddress};
        let ram = GuestRam::new(64 << 20, bixi_api::compute::PageSize::Small).unwrap();
        let status = bixi_api::compute::HostFiles::default().status;
        let before = overhead_bytes(&status).unwrap();
        ram.memory().write_slice(&vec![1; 48 << 20], GuestAddress(0)).unwrap();
        assert!(ram.resident_bytes().unwrap() >= 48 << 20);
        let after = overhead_bytes(&status).unwrap();
        assert!(before > 100 << 10 && after < before + (40 << 20), "{before} {after}");
    }
}
