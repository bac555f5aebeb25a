//! Virtual CPUs: making them, setting them up, running them, saving them.
//!
//! A [`Vcpu`] is the KVM descriptor with what belongs to it; a [`VcpuThread`](thread::VcpuThread) runs it. The driver
//! makes both and is the only one who gives orders; vCPU threads call devices.

pub mod exits;
mod kick;
pub mod registers;
pub mod state;
pub mod thread;

use crate::kvm::cpuid::CpuidTemplate;
use crate::kvm::{KvmError, Refused, Vm, msr};
use kvm_bindings::{kvm_lapic_state, kvm_mp_state, kvm_run, kvm_sregs, kvm_vcpu_events};
use kvm_ioctls::VcpuFd;
use registers::Entry;
use std::fmt;
use std::sync::Arc;

/// One virtual CPU.
#[derive(Debug)]
pub struct Vcpu {
    pub(crate) fd: VcpuFd,
    vm: Arc<Vm>,
    index: u8,
    power_on: PowerOn,
    /// Every register list that this vCPU saves; shared, since it is the same for all.
    msrs: Arc<[u32]>,
}

/// What KVM gives a fresh vCPU, kept for resets.
#[derive(Debug)]
struct PowerOn {
    sregs: kvm_sregs,
    lapic: kvm_lapic_state,
    events: kvm_vcpu_events,
    mp_state: kvm_mp_state,
    msrs: Arc<[msr::Msr]>,
}

/// Why a vCPU cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Failure(String);

impl Failure {
    fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

impl Vcpu {
    /// Makes the vCPUs of `vm`, all in the state after power-on.
    ///
    /// # Errors
    /// KVM refuses a step.
    pub fn create_all(
        vm: &Arc<Vm>,
        cpuid: &CpuidTemplate,
        count: u8,
        msrs: &Arc<[u32]>,
    ) -> Result<Vec<Self>, KvmError> {
        let mut vcpus = Vec::with_capacity(usize::from(count));
        let mut power_on_msrs: Option<Arc<[msr::Msr]>> = None;
        for index in 0..count {
            let fd = vm.fd().create_vcpu(u64::from(index)).refused("create a vCPU")?;
            fd.set_cpuid2(&cpuid.for_vcpu(index)?).refused("set a vCPU's CPUID")?;
            let values = match &power_on_msrs {
                Some(values) => Arc::clone(values),
                None => {
                    let values: Arc<[_]> = msr::read(&fd, msrs)?.into();
                    power_on_msrs.insert(values).clone()
                }
            };
            let power_on = PowerOn {
                sregs: fd.get_sregs().refused("read a vCPU's registers")?,
                lapic: fd.get_lapic().refused("read a vCPU's interrupt controller")?,
                events: fd.get_vcpu_events().refused("read a vCPU's events")?,
                mp_state: fd.get_mp_state().refused("read a vCPU's state")?,
                msrs: values,
            };
            let msrs = Arc::clone(msrs);
            vcpus.push(Self { fd, vm: Arc::clone(vm), index, power_on, msrs });
        }
        Ok(vcpus)
    }

    /// The index, which is the APIC id.
    #[must_use]
    pub fn index(&self) -> u8 {
        self.index
    }

    /// The descriptor, for calls that this type does not wrap.
    #[must_use]
    pub fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// Sets a fresh or freshly reset vCPU up to begin at `entry`: the first one runs, the others wait to be started.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn boot(&self, entry: &Entry) -> Result<(), KvmError> {
        for refused in msr::write(&self.fd, &msr::at_boot())? {
            tracing::debug!(vcpu = self.index, ?refused, "a boot register is not there");
        }
        registers::set_local_interrupts(&self.fd)?;
        if self.index == 0 {
            registers::enter_at(&self.fd, entry)?;
        }
        Ok(())
    }

    /// Back to the state after power-on.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn reset(&self) -> Result<(), KvmError> {
        let fd = &self.fd;
        let registers = kvm_bindings::kvm_regs { rflags: 2, rip: 0xfff0, ..Default::default() };
        fd.set_mp_state(self.power_on.mp_state).refused("reset a vCPU's state")?;
        fd.set_regs(&registers).refused("reset a vCPU's registers")?;
        fd.set_sregs(&self.power_on.sregs).refused("reset a vCPU's system registers")?;
        state::set_xsave(fd, &state::initial_xsave(), self.vm.capabilities().xsave_size)
            .refused("reset a vCPU's floating-point state")?;
        if self.vm.capabilities().debug_registers {
            let registers =
                kvm_bindings::kvm_debugregs { dr6: 0xffff_0ff0, dr7: 0x400, ..Default::default() };
            fd.set_debug_regs(&registers).refused("reset a vCPU's debug registers")?;
        }
        fd.set_lapic(&self.power_on.lapic).refused("reset a vCPU's interrupt controller")?;
        // The counter goes on, as it does through a warm reset of many a PC, and what is measured against it goes with
        // it: nothing in the guest's memory or in KVM jumps.
        let mut msrs = self.power_on.msrs.to_vec();
        msrs.retain(|msr| msr.index != msr::TSC);
        msr::order(&mut msrs);
        for refused in msr::write(fd, &msrs)? {
            tracing::debug!(vcpu = self.index, ?refused, "a register cannot be reset");
        }
        fd.set_vcpu_events(&self.power_on.events).refused("reset a vCPU's events")
    }

    /// Tells the guest, if it uses kvmclock, that it was stopped, so that its watchdogs do not count the pause.
    pub fn told_of_pause(&self) {
        if self.vm.capabilities().kvmclock_ctrl {
            // EINVAL: this guest does not use kvmclock, and there is nobody to tell.
            let _ = self.fd.kvmclock_ctrl();
        }
    }

    /// The shared page of this vCPU.
    fn run_page(&mut self) -> *mut kvm_run {
        self.fd.get_kvm_run()
    }

    /// Bytes of one item of the port access that KVM just returned: a string instruction moves several at once.
    fn io_item_size(&mut self) -> usize {
        let run = self.fd.get_kvm_run();
        // SAFETY: the caller has just got a port exit, for which the kernel fills this member of the union; any bit
        // pattern is a valid value of it.
        usize::from(unsafe { run.__bindgen_anon_1.io.size })
    }

    fn internal_error(&mut self) -> Failure {
        let run = self.fd.get_kvm_run();
        // SAFETY: the caller has just got an internal error, for which the kernel fills this member of the union; any
        // bit pattern is a valid value of it.
        let internal = unsafe { run.__bindgen_anon_1.internal };
        let reason = match internal.suberror {
            kvm_bindings::KVM_INTERNAL_ERROR_EMULATION => "an instruction it cannot emulate",
            kvm_bindings::KVM_INTERNAL_ERROR_SIMUL_EX => "an exception while delivering another",
            kvm_bindings::KVM_INTERNAL_ERROR_DELIVERY_EV => "an event it cannot deliver",
            kvm_bindings::KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "an unexpected exit",
            _ => "an internal error",
        };
        let place = match (self.fd.get_regs(), self.fd.get_sregs()) {
            (Ok(regs), Ok(sregs)) => {
                format!("at {:#06x}:{:#x}", sregs.cs.selector, regs.rip)
            }
            _ => "at an unknown place".to_owned(),
        };
        let words = internal.data.get(..internal.ndata.min(4) as usize).unwrap_or_default();
        Failure::new(format!(
            "KVM met {reason} (suberror {}) {place}: {words:x?}",
            internal.suberror
        ))
    }
}

impl fmt::Display for Vcpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vCPU {}", self.index)
    }
}
