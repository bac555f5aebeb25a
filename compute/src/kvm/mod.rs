//! What this crate asks of KVM for the VM as a whole: slots, events, interrupt lines, clocks.
//!
//! [`Vm`] is shared by reference: the driver, the interrupt table and devices call it; every method is one or two
//! system calls and safe from any thread.

pub mod chips;
pub mod cpuid;
pub mod host;
pub mod msr;

use crate::memory::GuestRam;
use host::{Capabilities, Host};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use std::io;
use std::sync::Arc;
use vmm_sys_util::eventfd::EventFd;

/// Where an event listens: `Pio(port)` or `Mmio(guest address)`.
pub use kvm_ioctls::IoEventAddress as IoAddress;

/// Why KVM does not do what was asked.
#[derive(Debug, thiserror::Error)]
#[error("KVM refused to {what}")]
pub struct KvmError {
    /// What was asked, as a verb.
    pub what: &'static str,
    /// What the kernel said.
    pub source: io::Error,
}

/// Turns a KVM error number into a [`KvmError`].
pub(crate) trait Refused<T> {
    fn refused(self, what: &'static str) -> Result<T, KvmError>;
}

impl<T> Refused<T> for Result<T, kvm_ioctls::Error> {
    fn refused(self, what: &'static str) -> Result<T, KvmError> {
        self.map_err(|e| KvmError { what, source: e.into() })
    }
}

/// One virtual machine.
#[derive(Debug)]
pub struct Vm {
    fd: VmFd,
    capabilities: Capabilities,
    /// Held so that the mappings behind the slots outlive the VM.
    ram: Arc<GuestRam>,
}

impl Vm {
    /// A VM with `ram` in its slots, the in-kernel interrupt controllers and the timer, and no vCPU yet.
    ///
    /// # Errors
    /// KVM refuses a step; the error names it.
    pub fn new(host: &Host, ram: Arc<GuestRam>) -> Result<Self, KvmError> {
        let fd = host.kvm().create_vm().refused("create a VM")?;
        fd.set_identity_map_address(0xfeff_c000).refused("place the identity map")?;
        fd.set_tss_address(0xfeff_d000).refused("place the task state segment")?;
        fd.create_irq_chip().refused("create the interrupt controllers")?;
        let pit = kvm_bindings::kvm_pit_config {
            flags: kvm_bindings::KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        };
        fd.create_pit2(pit).refused("create the timer")?;
        for (slot, region) in (0..).zip(ram.regions()) {
            let slot = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.guest_address,
                memory_size: region.size,
                userspace_addr: region.host_address,
            };
            // SAFETY: the range is a mapping of `ram`, which `self` keeps alive for as long as the VM lives; regions
            // do not overlap.
            unsafe { fd.set_user_memory_region(slot) }.refused("map guest memory")?;
        }
        Ok(Self { fd, capabilities: *host.capabilities(), ram })
    }

    /// The descriptor, for calls that this type does not wrap.
    #[must_use]
    pub fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// What this host's KVM has beyond what is needed.
    #[must_use]
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// The memory in the VM's slots.
    #[must_use]
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// From now on a guest's write of `len` bytes to `address` signals `event` without an exit to user space.
    ///
    /// `len` is 1, 2, 4 or 8 with a `datamatch`, which the written value must equal; without one, `len` must be 0 and
    /// writes of any length count.
    ///
    /// # Errors
    /// KVM refuses, for example because the address is taken.
    pub fn register_ioevent(
        &self,
        event: &EventFd,
        address: &IoEventAddress,
        len: u32,
        datamatch: Option<u64>,
    ) -> Result<(), KvmError> {
        match (len, datamatch) {
            (0, None) => self.fd.register_ioevent(event, address, NoDatamatch),
            (1, Some(value)) => self.fd.register_ioevent(event, address, value as u8),
            (2, Some(value)) => self.fd.register_ioevent(event, address, value as u16),
            (4, Some(value)) => self.fd.register_ioevent(event, address, value as u32),
            (8, Some(value)) => self.fd.register_ioevent(event, address, value),
            _ => Err(kvm_ioctls::Error::new(libc::EINVAL)),
        }
        .refused("signal an event on a guest's write")
    }

    /// Undoes [`Vm::register_ioevent`], which got the same arguments.
    ///
    /// # Errors
    /// KVM knows no such event.
    pub fn unregister_ioevent(
        &self,
        event: &EventFd,
        address: &IoEventAddress,
        len: u32,
        datamatch: Option<u64>,
    ) -> Result<(), KvmError> {
        match (len, datamatch) {
            (0, None) => self.fd.unregister_ioevent(event, address, NoDatamatch),
            (1, Some(value)) => self.fd.unregister_ioevent(event, address, value as u8),
            (2, Some(value)) => self.fd.unregister_ioevent(event, address, value as u16),
            (4, Some(value)) => self.fd.unregister_ioevent(event, address, value as u32),
            (8, Some(value)) => self.fd.unregister_ioevent(event, address, value),
            _ => Err(kvm_ioctls::Error::new(libc::EINVAL)),
        }
        .refused("stop signalling an event on a guest's write")
    }
}
