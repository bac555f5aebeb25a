//! This machine: what a rack needs of it, and what its processor can do.

use crate::error::{Error, Result};
use bixi_image::host::Needed;
use std::fs;

/// What every rack needs on this machine.
pub const RACK_PROGRAMS: &[Needed] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("ip", "iproute2"),
    ("mkfs.ext4", "e2fsprogs"),
    ("ldd", "libc-bin"),
    ("strip", "binutils"),
    ("lz4", "lz4"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
];

/// How servers get their processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acceleration {
    /// QEMU's translator, with an emulated AMD SVM: any machine.
    Emulated,
    /// Hardware virtualization handed on to the servers.
    Nested,
}

impl Acceleration {
    /// What this machine can do.
    #[must_use]
    pub fn of_this_machine() -> Self {
        let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let nested = ["kvm_amd", "kvm_intel"].iter().any(|module| {
            fs::read_to_string(format!("/sys/module/{module}/parameters/nested"))
                .is_ok_and(|value| matches!(value.trim(), "1" | "Y"))
        });
        // A software KVM opens too, but shows no processor flag and has no nested virtualization to hand on.
        let hardware = flags.lines().any(|l| {
            l.starts_with("flags") && l.split_whitespace().any(|f| f == "vmx" || f == "svm")
        });
        let opens = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
        if hardware && nested && opens { Self::Nested } else { Self::Emulated }
    }

    /// QEMU's arguments for it.
    pub(crate) fn arguments(self) -> [&'static str; 4] {
        match self {
            Self::Emulated => ["-accel", "tcg,thread=multi", "-cpu", "EPYC-Rome,+svm,+npt"],
            Self::Nested => ["-accel", "kvm", "-cpu", "host"],
        }
    }

    /// In words.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Emulated => "emulated (TCG with AMD SVM)",
            Self::Nested => "nested hardware virtualization",
        }
    }
}

/// Refuses to go on without root, or on a machine that is not x86.
pub(crate) fn check() -> Result<()> {
    if std::env::consts::ARCH != "x86_64" {
        return Err(Error::Unfit("the rack runs on x86-64 machines only".to_owned()));
    }
    if !rustix::process::geteuid().is_root() {
        return Err(Error::Unfit(
            "the rack needs root: it makes network namespaces and TAP devices; \
             run the same command as root"
                .to_owned(),
        ));
    }
    Ok(())
}
