//! What a vCPU says about itself: the host's supported CPUID, made true for this VM.
//!
//! KVM reports what it can give on this host; topology, ids and what we withhold are ours. All vCPUs are cores of one
//! socket without threads, and a vCPU's APIC id is its index.
//!
//! Nested virtualization is withheld: its state does not travel yet, and a guest must not depend on what would be lost.

use super::{KvmError, Refused};
use crate::kvm::host::Host;
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};

/// `CPUID.1:ECX` bits.
const VMX: u32 = 1 << 5;
const X2APIC: u32 = 1 << 21;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// `CPUID.1:EDX`: several logical processors in the package.
const HTT: u32 = 1 << 28;
/// `CPUID.80000001:ECX` bits of AMD.
const CMP_LEGACY: u32 = 1 << 1;
const SVM: u32 = 1 << 2;
const SKINIT: u32 = 1 << 12;
/// `CPUID.4` and `CPUID.8000001D`: a subleaf's cache level and the field that counts who shares it.
const CACHE_LEVEL_SHIFT: u32 = 5;
const CACHE_SHARING: u32 = 0xfff << 14;
const CORES_IN_PACKAGE: u32 = 0x3f << 26;
/// A leaf whose subleaves are told apart by ECX.
const SIGNIFICANT_INDEX: u32 = kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX;

/// The CPUID of a VM, before a vCPU's own id is filled in.
#[derive(Debug, Clone)]
pub struct CpuidTemplate {
    entries: Vec<kvm_cpuid_entry2>,
    vcpus: u32,
}

impl CpuidTemplate {
    /// What `host` supports, for a VM of `vcpus` vCPUs.
    ///
    /// # Errors
    /// KVM does not say what it supports.
    pub fn new(host: &Host, vcpus: u8) -> Result<Self, KvmError> {
        let supported = host
            .kvm()
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .refused("say which CPUID it supports")?;
        Ok(Self::from_supported(supported.as_slice(), vcpus, host.capabilities().tsc_deadline))
    }

    fn from_supported(supported: &[kvm_cpuid_entry2], vcpus: u8, tsc_deadline: bool) -> Self {
        let mut template = Self { entries: supported.to_vec(), vcpus: u32::from(vcpus.max(1)) };
        template.set_features(tsc_deadline);
        template.set_caches();
        template.set_topology();
        template
    }

    /// Bits needed for an APIC id.
    fn id_bits(&self) -> u32 {
        self.vcpus.next_power_of_two().trailing_zeros()
    }

    fn leaf(&mut self, function: u32) -> Option<&mut kvm_cpuid_entry2> {
        self.entries.iter_mut().find(|e| e.function == function && e.index == 0)
    }

    fn set_features(&mut self, tsc_deadline: bool) {
        let vcpus = self.vcpus;
        if let Some(leaf) = self.leaf(1) {
            leaf.ecx = (leaf.ecx | HYPERVISOR) & !(VMX | TSC_DEADLINE);
            if tsc_deadline {
                leaf.ecx |= TSC_DEADLINE;
            }
            leaf.edx &= !HTT;
            if vcpus > 1 {
                leaf.edx |= HTT;
            }
            leaf.ebx = (leaf.ebx & 0xffff) | (vcpus.next_power_of_two() << 16);
        }
        if let Some(leaf) = self.leaf(0x8000_0001) {
            leaf.ecx &= !(SVM | SKINIT | CMP_LEGACY);
            if vcpus > 1 {
                leaf.ecx |= CMP_LEGACY;
            }
        }
        if let Some(leaf) = self.leaf(0x8000_000a) {
            (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0, 0);
        }
    }

    /// Caches of levels 1 and 2 belong to one core, those above to all.
    fn set_caches(&mut self) {
        let last = self.vcpus.next_power_of_two() - 1;
        for leaf in self.entries.iter_mut().filter(|e| matches!(e.function, 4 | 0x8000_001d)) {
            if leaf.eax & 0x1f == 0 {
                continue;
            }
            let shared = (leaf.eax >> CACHE_LEVEL_SHIFT) & 7 >= 3;
            leaf.eax &= !CACHE_SHARING;
            if shared {
                leaf.eax |= last << 14;
            }
            if leaf.function == 4 {
                leaf.eax = (leaf.eax & !CORES_IN_PACKAGE) | (last << 26);
            }
        }
    }

    fn set_topology(&mut self) {
        let (vcpus, bits) = (self.vcpus, self.id_bits());
        if let Some(leaf) = self.leaf(0x8000_0008) {
            leaf.ecx = (leaf.ecx & !0xf0ff) | (vcpus - 1) | (bits << 12);
        }
        let highest = self.leaf(0).map_or(0, |leaf| leaf.eax);
        for function in [0xb, 0x1f] {
            self.entries.retain(|e| e.function != function);
            if highest < function {
                continue;
            }
            // Level 1 counts threads of a core, level 2 cores of a package, then the list ends.
            for (index, shift, count, level) in [(0, 0, 1, 1), (1, bits, vcpus, 2), (2, 0, 0, 0)] {
                self.entries.push(kvm_cpuid_entry2 {
                    function,
                    index,
                    flags: SIGNIFICANT_INDEX,
                    eax: shift,
                    ebx: count,
                    ecx: (level << 8) | index,
                    ..Default::default()
                });
            }
        }
    }

    /// The CPUID of the vCPU whose APIC id is `id`.
    ///
    /// # Errors
    /// More leaves than KVM takes.
    pub fn for_vcpu(&self, id: u8) -> Result<CpuId, KvmError> {
        let id = u32::from(id);
        let mut entries = self.entries.clone();
        for leaf in &mut entries {
            match leaf.function {
                1 => leaf.ebx = (leaf.ebx & 0x00ff_ffff) | (id << 24),
                0xb | 0x1f => leaf.edx = id,
                0x8000_001e => (leaf.eax, leaf.ebx, leaf.ecx) = (id, id & 0xff, 0),
                _ => {}
            }
        }
        CpuId::from_entries(&entries).map_err(|_| KvmError {
            what: "hold that many CPUID leaves",
            source: std::io::Error::from_raw_os_error(libc::E2BIG),
        })
    }

    /// How many bits a guest-physical address has: `CPUID.80000008:EAX`, 36 where that leaf is missing.
    #[must_use]
    pub fn physical_bits(&self) -> u8 {
        let leaf = self.entries.iter().find(|e| e.function == 0x8000_0008);
        leaf.map_or(36, |leaf| (leaf.eax & 0xff) as u8).clamp(32, 52)
    }

    /// Whether the vCPUs have x2APIC.
    #[must_use]
    pub fn has_x2apic(&self) -> bool {
        self.entries.iter().any(|e| e.function == 1 && e.ecx & X2APIC != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = registers;
        kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
    }

    fn template(vcpus: u8) -> CpuidTemplate {
        let supported = [
            entry(0, 0, [0x1f, 0, 0, 0]),
            entry(1, 0, [0, 0x0702_0800, VMX, 0]),
            entry(4, 0, [0x1c00_4121, 0, 0, 0]),
            entry(4, 3, [0x1c03_c163, 0, 0, 0]),
            entry(0xb, 0, [1, 2, 0x100, 0]),
            entry(0xb, 7, [1, 2, 0x100, 0]),
            entry(0x8000_0001, 0, [0, 0, SVM | CMP_LEGACY, 0]),
            entry(0x8000_0008, 0, [0x3030, 0, 0x7001, 0]),
            entry(0x8000_000a, 0, [1, 2, 3, 4]),
            entry(0x8000_001e, 0, [0; 4]),
        ];
        CpuidTemplate::from_supported(&supported, vcpus, true)
    }

    fn find(entries: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        let found =
            entries.as_slice().iter().filter(|e| (e.function, e.index) == (function, index));
        let found: Vec<_> = found.collect();
        assert_eq!(found.len(), 1, "leaf {function:#x}.{index}");
        *found[0]
    }

    #[test]
    fn one_vcpu_is_one_core() {
        let entries = template(1).for_vcpu(0).unwrap();
        let leaf = find(&entries, 1, 0);
        assert_eq!((leaf.ebx >> 16, leaf.edx & HTT), (1, 0));
        assert_eq!(find(&entries, 0x8000_0001, 0).ecx & CMP_LEGACY, 0);
        let core = find(&entries, 0xb, 1);
        assert_eq!((core.eax, core.ebx, core.ecx), (0, 1, 0x201));
    }

    #[test]
    fn topology_follows_the_number_of_vcpus() {
        let entries = template(5).for_vcpu(3).unwrap();
        let leaf = find(&entries, 1, 0);
        assert_eq!((leaf.ebx >> 24, (leaf.ebx >> 16) & 0xff, leaf.edx & HTT), (3, 8, HTT));
        for function in [0xb, 0x1f] {
            let core = find(&entries, function, 1);
            assert_eq!((core.eax, core.ebx, core.ecx, core.edx), (3, 5, 0x201, 3));
        }
        assert_eq!(find(&entries, 4, 0).eax >> 14, 7 << 12, "level 1 belongs to one core");
        assert_eq!(find(&entries, 4, 3).eax >> 14, (7 << 12) | 7, "level 3 to all");
        assert_eq!(find(&entries, 0x8000_0008, 0).ecx & 0xf0ff, 0x3004);
        assert_eq!(find(&entries, 0x8000_001e, 0).eax, 3);
    }

    #[test]
    fn nested_virtualization_is_withheld_and_the_hypervisor_shown() {
        let entries = template(2).for_vcpu(0).unwrap();
        let leaf = find(&entries, 1, 0);
        assert_eq!(leaf.ecx, HYPERVISOR | TSC_DEADLINE);
        assert_eq!(find(&entries, 0x8000_0001, 0).ecx, CMP_LEGACY);
        assert_eq!(find(&entries, 0x8000_000a, 0).eax, 0);
        assert_eq!(template(2).physical_bits(), 0x30);
    }
}
