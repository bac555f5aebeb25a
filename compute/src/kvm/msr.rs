//! Model-specific registers: which there are, what they are at power-on, and how they are read and set in one go.
//!
//! KVM sets or reads a list up to the first register it refuses. Which registers a vCPU has depends on its CPUID and on
//! the kernel, so [`read`] skips what cannot be read and says what it skipped.

use super::{KvmError, Refused};
use crate::kvm::host::Host;
use kvm_bindings::{KVM_MAX_MSR_ENTRIES, Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

/// The time-stamp counter: set last, after everything that depends on it.
pub const TSC: u32 = 0x10;
/// When the LAPIC timer fires: must be set after [`TSC`], or the timer sticks.
pub const TSC_DEADLINE: u32 = 0x6e0;
const APIC_BASE: u32 = 0x1b;
const TSC_ADJUST: u32 = 0x3b;
const MISC_ENABLE: u32 = 0x1a0;
const MTRR_DEFAULT_TYPE: u32 = 0x2ff;
/// x2APIC registers, which the LAPIC's state holds.
const X2APIC: std::ops::Range<u32> = 0x800..0x900;
/// KVM's own registers lie here and in `0x11..=0x12`.
const KVM_CUSTOM: std::ops::Range<u32> = 0x4b56_4d00..0x4b56_4e00;
const KVM_WALL_CLOCK: u32 = 0x11;
const KVM_SYSTEM_TIME: u32 = 0x12;

/// One register and its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Msr {
    /// Its index.
    pub index: u32,
    /// Its value.
    pub value: u64,
}

/// The registers that make up a vCPU's state on this host.
///
/// KVM's list ends early on some kernels (registers of the custom range are missing), so those that a guest may have
/// set are added; [`read`] skips them where they do not exist.
///
/// # Errors
/// KVM does not give its list.
pub fn list(host: &Host) -> Result<Vec<u32>, KvmError> {
    let list = host.kvm().get_msr_index_list().refused("list its registers")?;
    let mut indices = list.as_slice().to_vec();
    indices.retain(|index| !X2APIC.contains(index) && *index != APIC_BASE);
    indices.extend([TSC, KVM_WALL_CLOCK, KVM_SYSTEM_TIME]);
    indices.extend(KVM_CUSTOM.take(10));
    // The fixed and variable memory-type ranges and their default are not in KVM's list.
    indices.extend([0x250, 0x258, 0x259]);
    indices.extend(0x268..=0x26f);
    indices.extend(0x200..0x210);
    indices.push(MTRR_DEFAULT_TYPE);
    indices.sort_unstable();
    indices.dedup();
    Ok(indices)
}

/// What Linux expects of a PC when it is entered without firmware.
#[must_use]
pub fn at_boot() -> [Msr; 2] {
    [
        // Fast string operations on.
        Msr { index: MISC_ENABLE, value: 1 },
        // Memory types on, write-back by default.
        Msr { index: MTRR_DEFAULT_TYPE, value: (1 << 11) | 6 },
    ]
}

/// Reads `indices`; those that the vCPU does not have are left out.
///
/// # Errors
/// KVM refuses the call itself.
pub fn read(fd: &VcpuFd, indices: &[u32]) -> Result<Vec<Msr>, KvmError> {
    let mut values = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let (now, later) = rest.split_at(rest.len().min(KVM_MAX_MSR_ENTRIES));
        let entries: Vec<_> =
            now.iter().map(|index| kvm_msr_entry { index: *index, ..Default::default() }).collect();
        let mut msrs = wrap(&entries)?;
        let done = fd.get_msrs(&mut msrs).refused("read registers")?.min(now.len());
        let read = msrs.as_slice().iter().take(done);
        values.extend(read.map(|e| Msr { index: e.index, value: e.data }));
        // The register after the last one read is the one KVM refused.
        rest = if done == now.len() { later } else { &rest[done + 1..] };
    }
    Ok(values)
}

/// Sets `msrs` in their order. Returns those that the vCPU refused.
///
/// # Errors
/// KVM refuses the call itself.
pub fn write(fd: &VcpuFd, msrs: &[Msr]) -> Result<Vec<Msr>, KvmError> {
    let mut refused = Vec::new();
    let mut rest = msrs;
    while !rest.is_empty() {
        let (now, later) = rest.split_at(rest.len().min(KVM_MAX_MSR_ENTRIES));
        let entries: Vec<_> = now
            .iter()
            .map(|msr| kvm_msr_entry { index: msr.index, data: msr.value, ..Default::default() })
            .collect();
        let done = fd.set_msrs(&wrap(&entries)?).refused("set registers")?.min(now.len());
        refused.extend(now.get(done));
        rest = if done == now.len() { later } else { &rest[done + 1..] };
    }
    Ok(refused)
}

/// Puts `msrs` into the order in which they may be set: the TSC's adjustment, the TSC, then the rest, and the deadline
/// timer last. A deadline that is set before the TSC it is measured against never fires or fires at once.
pub fn order(msrs: &mut [Msr]) {
    msrs.sort_by_key(|msr| match msr.index {
        TSC_ADJUST => 0,
        TSC => 1,
        TSC_DEADLINE => 3,
        _ => 2,
    });
}

fn wrap(entries: &[kvm_msr_entry]) -> Result<Msrs, KvmError> {
    Msrs::from_entries(entries).map_err(|_| KvmError {
        what: "hold that many registers",
        source: std::io::Error::from_raw_os_error(libc::E2BIG),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deadline_comes_after_the_counter_it_is_measured_against() {
        let msr = |index| Msr { index, value: 0 };
        let mut msrs = [msr(TSC_DEADLINE), msr(0xc000_0080), msr(TSC), msr(TSC_ADJUST)];
        order(&mut msrs);
        assert_eq!(msrs.map(|m| m.index), [TSC_ADJUST, TSC, 0xc000_0080, TSC_DEADLINE]);
    }
}
