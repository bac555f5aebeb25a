//! Releases: one signed file for each version and architecture, and how it comes onto a machine.
//!
//! ```text
//!   programs, units ──► bundle::make ──► bixi-VERSION-ARCH.tar ──► bundle::Reader ──► install::Releases
//!                          │ signs                                    │ checks            │
//!                       key::PrivateKey                           key::Trusted     /usr/lib/bixi/VERSION/
//! ```
//!
//! Invariants: nothing of a bundle is believed before the signature over its manifest is, by a key that the machine trusts;
//! a bundle's bytes follow from its manifest and its files, so no byte of it can be another; a version is installed whole or
//! not at all, and never changed. `bixi release` and `cargo xtask bundle` (by the program `bixi-bundle`) call this.

pub mod archive;
pub mod bundle;
pub mod error;
#[doc(hidden)]
pub mod fuzz;
pub mod install;
pub mod key;
pub mod manifest;
pub mod product;

pub use error::ReleaseError;
