//! The packet engine: what is to be done with a frame. No ring, socket or thread is known here.
//!
//! ```text
//!            ┌────────── key ──────────► flow cache ── hit ──► Action
//! frame ── parse                            │ miss, or decided under an older epoch
//!            └──► layer ► layer ► layer ────┴──► Action, remembered
//! ```
//!
//! [`policy`] walks its layers for the first packet of a flow and gives an [`action::Action`]; [`flow`] remembers it
//! under the packet's exact key. What the layers know is an immutable snapshot ([`view`]), told by the driver; each
//! segment in it has an epoch, and a remembered action of another epoch is decided anew when its next packet comes.
//! Nothing is learnt from packets.
//!
//! Invariants: an action depends only on the key and the segment's view, so that a remembered one is the one that would
//! be decided; a port's flows take room from no other port. Called by [`crate::switch`].

pub mod action;
pub mod flow;
pub mod key;
pub mod names;
pub mod policy;
pub mod view;
