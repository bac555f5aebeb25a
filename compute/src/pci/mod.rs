//! PCI: the root with configuration mechanism #1, the bridges, the chipset's functions, MSI-X, and the frozen board.
//!
//! ```text
//! vCPU ── 0xCF8/0xCFC ──► root ──► bridge ──► function     registers
//! vCPU ── port or address ──► bus ──► function             regions, where the guest has put them
//! ```
//!
//! The root ([`PciRoot`]) owns bridges and the list of functions. After each write that may change what is decoded it
//! computes, from registers alone, which regions are visible, and moves them on the buses of [`crate::bus`]: a region is
//! visible if its function and the bridge in front pass it, if it lies whole in an aperture of the host bridge, and if no
//! region of a lower path covers part of it. So a BAR moved onto memory, onto the interrupt controllers, onto another
//! BAR or out of the world just disappears, and comes back when it is moved again.
//!
//! Invariants: addresses of functions are paths, bus numbers only live in bridges' registers; the root's lock is taken
//! before a function's lock, never after.

pub mod config;
#[doc(hidden)]
pub mod fuzz;
pub mod i440fx_1;
pub mod msix;

mod assign;
mod bridge;
mod chipset;
mod path;
mod plan;
mod region;
mod root;
mod state;
#[cfg(test)]
mod tests;

pub use assign::AssignError;
pub use path::{PathError, PciPath};
pub use plan::{AddressPlan, PlanError, plan};
pub use region::{Bar, BarKind, PciFunction, Region, Space};
pub use root::{AcpiFacts, Apertures, InsertError, PciRoot};
pub use state::{MsixEntryState, MsixState};
