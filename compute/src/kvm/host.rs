//! `/dev/kvm`, opened and checked: what it must have, what it may lack.
//!
//! Not every KVM is VMX or SVM hardware of the newest kernel. What this VMM cannot do without is checked before
//! anything is built, so that the operator reads one sentence; what it can do without is noted in [`Capabilities`].

use crate::boot::files;
use bixi_api::compute::HostFiles;
use bixi_api::file::FileSource;
use kvm_ioctls::{Cap, Kvm};
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd};

/// KVM on this host.
#[derive(Debug)]
pub struct Host {
    kvm: Kvm,
    capabilities: Capabilities,
}

/// What a KVM may lack; the VMM then does without and says so in its log.
#[derive(Debug, Clone, Copy)]
pub struct Capabilities {
    /// `KVM_KVMCLOCK_CTRL`: a paused guest is told that it was paused, so its watchdogs stay quiet.
    pub kvmclock_ctrl: bool,
    /// The LAPIC timer has TSC-deadline mode.
    pub tsc_deadline: bool,
    /// The guest's TSC can run at a rate other than the host's.
    pub tsc_control: bool,
    /// Extended control registers can be read and set.
    pub xcrs: bool,
    /// Debug registers can be read and set.
    pub debug_registers: bool,
    /// Bytes of one vCPU's XSAVE area; 4,096 where the kernel does not say.
    pub xsave_size: usize,
    /// The most vCPUs a VM may have.
    pub max_vcpus: usize,
    /// The most interrupt routes a VM may have.
    pub irq_routes: usize,
}

/// Why there is no usable KVM.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// There is no such device.
    #[error(
        "this host has no /dev/kvm: enable virtualization in its firmware and load kvm_intel or kvm_amd"
    )]
    Absent,
    /// The device cannot be opened.
    #[error(
        "cannot open /dev/kvm: let this user read and write it, for example by the group `kvm`"
    )]
    Open(#[source] io::Error),
    /// It speaks another interface.
    #[error("/dev/kvm has interface version {0}, this VMM speaks 12")]
    Version(i32),
    /// It lacks something this VMM cannot do without.
    #[error("this host's KVM lacks {0}: use a kernel of 5.10 or newer on x86-64")]
    Lacks(&'static str),
}

/// What every VM here needs, by the name that the kernel's documentation uses.
const NEEDED: [(Cap, &str); 13] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::SetIdentityMapAddr, "KVM_CAP_SET_IDENTITY_MAP_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::PitState2, "KVM_CAP_PIT_STATE2"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

impl Host {
    /// Opens `/dev/kvm` and checks it.
    ///
    /// # Errors
    /// There is none, it cannot be opened, or it lacks something needed.
    pub fn open() -> Result<Self, HostError> {
        Self::open_at(&HostFiles::default().kvm)
    }

    /// Opens KVM where `source` says, and checks it.
    ///
    /// # Errors
    /// As [`Host::open`].
    pub fn open_at(source: &FileSource) -> Result<Self, HostError> {
        let opened = match source {
            FileSource::Path(path) => std::fs::File::options().read(true).write(true).open(path),
            FileSource::Fd(fd) => files::duplicate(*fd),
        };
        let file = opened.map_err(|e| match e.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => HostError::Absent,
            _ => HostError::Open(e),
        })?;
        // SAFETY: the descriptor is open and given up by its owner; of what is no KVM the next call learns so.
        let kvm = unsafe { Kvm::from_raw_fd(file.into_raw_fd()) };
        match kvm.get_api_version() {
            12 => {}
            other => return Err(HostError::Version(other)),
        }
        if let Some((_, name)) = NEEDED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
            return Err(HostError::Lacks(name));
        }
        let capabilities = Capabilities {
            kvmclock_ctrl: kvm.check_extension(Cap::KvmclockCtrl),
            tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
            tsc_control: kvm.check_extension(Cap::TscControl),
            xcrs: kvm.check_extension(Cap::Xcrs),
            debug_registers: kvm.check_extension(Cap::Debugregs),
            xsave_size: usize::try_from(kvm.check_extension_int(Cap::Xsave2))
                .unwrap_or(0)
                .max(4096),
            max_vcpus: kvm.get_max_vcpus(),
            irq_routes: usize::try_from(kvm.check_extension_int(Cap::IrqRouting)).unwrap_or(0),
        };
        tracing::debug!(?capabilities, "KVM is usable");
        Ok(Self { kvm, capabilities })
    }

    /// The device, for calls that this type does not wrap.
    #[must_use]
    pub fn kvm(&self) -> &Kvm {
        &self.kvm
    }

    /// What it has beyond what is needed.
    #[must_use]
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }
}
