//! Compute virtualization: one thin process per VM.
//!
//! The library behind `bixi-vmm`. It holds KVM, the vCPUs, guest memory, the board and the virtio front ends; it holds
//! no disk format and no packet logic, and opens no network connection.
//!
//! Who calls whom, from the top: [`driver`] owns the VM's state and is its only writer; it builds a
//! [`machine`] of [`kvm`], [`memory`], the [`board`], its devices and [`vcpu`]s. vCPU threads call devices through [`bus`]; devices interrupt the guest
//! through [`interrupts`].

pub mod acpi;
pub mod board;
pub mod boot;
pub mod bus;
pub mod command;
pub mod config;
pub mod console;
pub mod device;
pub mod doorbell;
pub mod driver;
pub mod failure;
#[doc(hidden)]
pub mod fuzz;
pub mod inherited;
pub mod interrupts;
pub mod jail;
pub mod kvm;
pub mod log_limit;
pub mod machine;
pub mod memory;
#[doc(hidden)]
pub mod microguest;
pub mod pci;
pub mod seccomp;
pub mod vcpu;
pub mod virtio;
