//! A vCPU's state as it travels.
//!
//! The structures are the kernel's own, whose layout is part of its interface; the list of model-specific registers is
//! by index, since hosts differ in what they have. A vCPU is saved and restored while it is parked.
//!
//! Order matters when restoring: CPUID before anything whose legal values follow from it, system registers (with the
//! APIC base) before the LAPIC, the TSC before the deadline timer, events and the run state last.

use super::Vcpu;
use crate::device::RestoreError;
use crate::kvm::{KvmError, Refused, msr};
use bixi_api::state::{Declared, Movable, Payload};
use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Xsave, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state,
    kvm_mp_state, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use zerocopy::{FromBytes, IntoBytes};

/// The kind of these payloads.
pub const KIND: &str = "vcpu";
const VERSION: u32 = 1;
/// Bytes of the XSAVE area that every kernel knows.
const XSAVE_BASE: usize = size_of::<kvm_xsave>();
/// No vCPU has more registers than this; a list that is longer is not from us.
const MSR_LIMIT: usize = 4096;

/// A vCPU's state.
#[derive(Clone, PartialEq, prost::Message)]
pub struct VcpuState {
    /// The vCPU's index.
    #[prost(uint32, tag = "1")]
    pub index: u32,
    /// `struct kvm_cpuid_entry2`, each.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub cpuid: Vec<Vec<u8>>,
    /// `struct kvm_regs`.
    #[prost(bytes = "vec", tag = "3")]
    pub regs: Vec<u8>,
    /// `struct kvm_sregs`.
    #[prost(bytes = "vec", tag = "4")]
    pub sregs: Vec<u8>,
    /// The XSAVE area in its standard form.
    #[prost(bytes = "vec", tag = "5")]
    pub xsave: Vec<u8>,
    /// `struct kvm_xcrs`; empty where the host has none.
    #[prost(bytes = "vec", tag = "6")]
    pub xcrs: Vec<u8>,
    /// `struct kvm_debugregs`; empty where the host cannot say.
    #[prost(bytes = "vec", tag = "7")]
    pub debugregs: Vec<u8>,
    /// `struct kvm_lapic_state`.
    #[prost(bytes = "vec", tag = "8")]
    pub lapic: Vec<u8>,
    /// Model-specific registers.
    #[prost(message, repeated, tag = "9")]
    pub msrs: Vec<MsrState>,
    /// `struct kvm_vcpu_events`.
    #[prost(bytes = "vec", tag = "10")]
    pub events: Vec<u8>,
    /// `KVM_MP_STATE_…`.
    #[prost(uint32, tag = "11")]
    pub mp_state: u32,
    /// The rate of the guest's TSC in kHz; 0 where the host cannot say.
    #[prost(uint32, tag = "12")]
    pub tsc_khz: u32,
}

/// One model-specific register.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct MsrState {
    /// Its index.
    #[prost(uint32, tag = "1")]
    pub index: u32,
    /// Its value.
    #[prost(fixed64, tag = "2")]
    pub value: u64,
}

/// The XSAVE area of a processor after power-on: nothing in use, the default control words.
pub(super) fn initial_xsave() -> Vec<u8> {
    let mut area = vec![0; XSAVE_BASE];
    area[..2].copy_from_slice(&0x37f_u16.to_le_bytes());
    area[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
    area
}

/// Reads the XSAVE area; `size` is what the kernel said it needs.
fn xsave(fd: &VcpuFd, size: usize) -> Result<Vec<u8>, kvm_ioctls::Error> {
    if size <= XSAVE_BASE {
        let area = fd.get_xsave()?;
        return Ok(area.region.as_bytes().to_vec());
    }
    let mut area = fam(size)?;
    // SAFETY: the area has the size that the kernel asked for, and no feature was enabled since.
    unsafe { fd.get_xsave2(&mut area) }?;
    let mut bytes = area.as_fam_struct_ref().xsave.region.as_bytes().to_vec();
    bytes.extend_from_slice(area.as_slice().as_bytes());
    bytes.truncate(size);
    Ok(bytes)
}

/// Sets the XSAVE area; `size` is what the kernel said it reads, and `bytes` may be shorter: the rest is not in use.
pub(super) fn set_xsave(fd: &VcpuFd, bytes: &[u8], size: usize) -> Result<(), kvm_ioctls::Error> {
    let mut padded = bytes.to_vec();
    padded.resize(size.max(XSAVE_BASE).next_multiple_of(4), 0);
    let mut area = fam(padded.len())?;
    let words = padded.chunks_exact(4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]]));
    let (base, extra) = {
        let words: Vec<u32> = words.collect();
        let (base, extra) = words.split_at(XSAVE_BASE / 4);
        (base.to_vec(), extra.to_vec())
    };
    // SAFETY: writes the fixed part of the structure, whose length is not touched.
    unsafe { area.as_mut_fam_struct() }.xsave.region.copy_from_slice(&base);
    area.as_mut_slice().copy_from_slice(&extra);
    // SAFETY: the area has at least the size that the kernel reads.
    unsafe { fd.set_xsave2(&area) }
}

fn fam(size: usize) -> Result<Xsave, kvm_ioctls::Error> {
    let extra = size.saturating_sub(XSAVE_BASE).div_ceil(4);
    Xsave::new(extra).map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))
}

impl Vcpu {
    fn save(&self) -> Result<VcpuState, KvmError> {
        let fd = &self.fd;
        let capabilities = self.vm.capabilities();
        // The run state first: KVM settles what is pending, which changes what is read after it.
        let mp_state = fd.get_mp_state().refused("read a vCPU's state")?.mp_state;
        let cpuid = fd.get_cpuid2(KVM_MAX_CPUID_ENTRIES).refused("read a vCPU's CPUID")?;
        let msrs = msr::read(fd, &self.msrs)?;
        Ok(VcpuState {
            index: u32::from(self.index),
            cpuid: cpuid.as_slice().iter().map(|leaf| leaf.as_bytes().to_vec()).collect(),
            regs: fd.get_regs().refused("read a vCPU's registers")?.as_bytes().to_vec(),
            sregs: fd.get_sregs().refused("read a vCPU's system registers")?.as_bytes().to_vec(),
            xsave: xsave(fd, capabilities.xsave_size)
                .refused("read a vCPU's floating-point state")?,
            xcrs: match capabilities.xcrs {
                true => fd.get_xcrs().refused("read a vCPU's XCRs")?.as_bytes().to_vec(),
                false => Vec::new(),
            },
            debugregs: match capabilities.debug_registers {
                true => fd
                    .get_debug_regs()
                    .refused("read a vCPU's debug registers")?
                    .as_bytes()
                    .to_vec(),
                false => Vec::new(),
            },
            lapic: fd
                .get_lapic()
                .refused("read a vCPU's interrupt controller")?
                .as_bytes()
                .to_vec(),
            msrs: msrs.iter().map(|m| MsrState { index: m.index, value: m.value }).collect(),
            events: fd.get_vcpu_events().refused("read a vCPU's events")?.as_bytes().to_vec(),
            mp_state,
            tsc_khz: fd.get_tsc_khz().unwrap_or(0),
        })
    }

    /// Takes over the state of the same vCPU of another VM. This one has not run.
    ///
    /// # Errors
    /// The state is malformed, of another vCPU, or this host cannot take it.
    pub fn restore(&self, payload: &Payload) -> Result<(), RestoreError> {
        let state: VcpuState = payload.read(KIND, VERSION)?;
        let decoded = Decoded::new(&state, self.index)?;
        let kernel = |error: KvmError| RestoreError::Kernel {
            device: self.to_string(),
            what: error.what.to_owned(),
            source: error.source,
        };
        self.set_decoded(&state, &decoded).map_err(kernel)?;
        let refused = self.set_msrs(&state).map_err(kernel)?;
        if let Some(refused) = refused.first() {
            let what = format!("register {:#x} with {:#x}", refused.index, refused.value);
            return Err(RestoreError::Value { device: self.to_string(), what });
        }
        let fd = &self.fd;
        fd.set_vcpu_events(&decoded.events).refused("set a vCPU's events").map_err(kernel)?;
        let mp_state = kvm_mp_state { mp_state: state.mp_state };
        fd.set_mp_state(mp_state).refused("set a vCPU's state").map_err(kernel)
    }

    fn set_decoded(&self, state: &VcpuState, decoded: &Decoded) -> Result<(), KvmError> {
        let fd = &self.fd;
        let capabilities = self.vm.capabilities();
        fd.set_cpuid2(&decoded.cpuid).refused("set a vCPU's CPUID")?;
        if state.tsc_khz != 0 && capabilities.tsc_control {
            fd.set_tsc_khz(state.tsc_khz).refused("set the rate of a vCPU's clock")?;
        }
        fd.set_regs(&decoded.regs).refused("set a vCPU's registers")?;
        fd.set_sregs(&decoded.sregs).refused("set a vCPU's system registers")?;
        if let Some(xcrs) = &decoded.xcrs {
            fd.set_xcrs(xcrs).refused("set a vCPU's XCRs")?;
        }
        set_xsave(fd, &state.xsave, capabilities.xsave_size)
            .refused("set a vCPU's floating-point state")?;
        if let Some(registers) = &decoded.debugregs {
            fd.set_debug_regs(registers).refused("set a vCPU's debug registers")?;
        }
        fd.set_lapic(&decoded.lapic).refused("set a vCPU's interrupt controller")
    }

    /// Returns what this host refuses, but for registers that were zero: they are not there and were not used.
    fn set_msrs(&self, state: &VcpuState) -> Result<Vec<msr::Msr>, KvmError> {
        let msrs = state.msrs.iter().map(|m| msr::Msr { index: m.index, value: m.value });
        let mut msrs: Vec<_> = msrs.collect();
        msr::order(&mut msrs);
        let mut refused = msr::write(&self.fd, &msrs)?;
        refused.retain(|msr| msr.value != 0);
        Ok(refused)
    }
}

/// The kernel's structures, read from bytes of the right length.
struct Decoded {
    cpuid: CpuId,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xcrs: Option<kvm_xcrs>,
    debugregs: Option<kvm_debugregs>,
    lapic: kvm_lapic_state,
    events: kvm_vcpu_events,
}

impl Decoded {
    fn new(state: &VcpuState, index: u8) -> Result<Self, RestoreError> {
        let wrong = |what: &str| RestoreError::Value {
            device: format!("vCPU {index}"),
            what: what.to_owned(),
        };
        if state.index != u32::from(index) {
            return Err(wrong("another vCPU's index"));
        }
        if state.msrs.len() > MSR_LIMIT || state.xsave.len() < XSAVE_BASE {
            return Err(wrong("an impossible number of registers"));
        }
        let leaves: Option<Vec<_>> =
            state.cpuid.iter().map(|leaf| kvm_cpuid_entry2::read_from_bytes(leaf).ok()).collect();
        let leaves = leaves.ok_or_else(|| wrong("CPUID leaves of another layout"))?;
        let cpuid = CpuId::from_entries(&leaves).map_err(|_| wrong("too many CPUID leaves"))?;
        Ok(Self {
            cpuid,
            regs: read(&state.regs).ok_or_else(|| wrong("registers of another layout"))?,
            sregs: read(&state.sregs).ok_or_else(|| wrong("system registers of another layout"))?,
            xcrs: optional(&state.xcrs).map_err(|()| wrong("XCRs of another layout"))?,
            debugregs: optional(&state.debugregs)
                .map_err(|()| wrong("debug registers of another layout"))?,
            lapic: read(&state.lapic)
                .ok_or_else(|| wrong("an interrupt controller of another layout"))?,
            events: read(&state.events).ok_or_else(|| wrong("events of another layout"))?,
        })
    }
}

fn read<T: FromBytes>(bytes: &[u8]) -> Option<T> {
    T::read_from_bytes(bytes).ok()
}

fn optional<T: FromBytes>(bytes: &[u8]) -> Result<Option<T>, ()> {
    if bytes.is_empty() { Ok(None) } else { read(bytes).map(Some).ok_or(()) }
}

impl Movable for Vcpu {
    fn declare(&self) -> Declared {
        match self.save() {
            Ok(state) => Declared::State(Payload::new(KIND, VERSION, &state)),
            Err(error) => Declared::NotMovable(format!("{self}: {error}: {}", error.source)),
        }
    }
}
