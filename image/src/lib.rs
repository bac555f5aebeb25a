//! Disk images: built from Debian's own packages, imported from files, and the small disks that configure an instance.
//!
//! ```text
//! build    tiny: kernel, busybox, drivers ──┐
//! debian   mmdebstrap, GRUB, cloud-init ───┤
//! import   raw, qcow2 ── checked, copied ───┴──► bundle: manifest.json with a digest for each file
//! cidata   name, keys, user data ──► a FAT disk that cloud-init and tiny guests read
//! ```
//!
//! Invariants: an image file is untrusted until it was imported: every offset in it is checked before it is followed, and
//! nothing it names is opened; what appears at a path appears whole, and is what its digest says. What is built is made
//! of Debian's packages alone and kept in a [`cache`]. Called by the command line and the cloud; the lab builds its
//! servers and guests with the same parts.

pub mod bundle;
pub mod cache;
pub mod cidata;
mod cpio;
pub mod debian;
mod digest;
mod elf;
mod error;
#[doc(hidden)]
pub mod fuzz;
pub mod host;
pub mod import;
pub mod kernel;
pub mod qcow2;
pub mod tiny;
pub mod tree;

pub use error::{Error, Result};
