//! Named points at which a process can be made to die, for tests of crash recovery.
//!
//! `BIXI_FAILPOINT=name` or `name:count` kills the process with SIGKILL when it passes the point for the first or the
//! `count`th time, if the process's `main` has called [`arm_from_env`]. Unarmed, a point costs one relaxed load.
//!
//! Invariants: a name that no point has is an error at start, never a point that silently does not fire.
//!
//! Callers: [`crate::ring`] has the points of one batch, in order: [`Point::AfterTake`], [`Point::BeforeUsed`],
//! [`Point::AfterUsedBeforeIdx`], [`Point::AfterIdxBeforeClear`], [`Point::AfterClear`].

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// The variable that [`arm_from_env`] reads.
pub const VARIABLE: &str = "BIXI_FAILPOINT";

/// A point at which the process can die.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Point {
    /// `ring.after-take`: chains are marked in flight; nothing was done with them.
    AfterTake = 1,
    /// `ring.before-used`: a chain was processed; its used element is not written.
    BeforeUsed,
    /// `ring.after-used-before-idx`: used elements are written; used.idx is not.
    AfterUsedBeforeIdx,
    /// `ring.after-idx-before-inflight-clear`: used.idx is published; the heads are still marked in flight.
    AfterIdxBeforeClear,
    /// `ring.after-clear`: the heads are not marked any more; the record's used_idx is behind.
    AfterClear,
}

/// All points, for tests that go through them.
pub const POINTS: [Point; 5] = [
    Point::AfterTake,
    Point::BeforeUsed,
    Point::AfterUsedBeforeIdx,
    Point::AfterIdxBeforeClear,
    Point::AfterClear,
];

impl Point {
    /// The point's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::AfterTake => "ring.after-take",
            Self::BeforeUsed => "ring.before-used",
            Self::AfterUsedBeforeIdx => "ring.after-used-before-idx",
            Self::AfterIdxBeforeClear => "ring.after-idx-before-inflight-clear",
            Self::AfterClear => "ring.after-clear",
        }
    }
}

/// The armed point, 0 if none.
static ARMED: AtomicU8 = AtomicU8::new(0);
/// How often it is still passed before the process dies.
static PASSES: AtomicU64 = AtomicU64::new(0);

/// Arms the point that [`VARIABLE`] names, if it is set. Call it once, from `main`.
///
/// # Errors
/// A value that names no point.
pub fn arm_from_env() -> Result<(), String> {
    let Ok(value) = std::env::var(VARIABLE) else { return Ok(()) };
    let (point, count) = parse(&value).ok_or_else(|| {
        let names: Vec<_> = POINTS.iter().map(|p| p.name()).collect();
        format!("{VARIABLE}={value} names no point: use NAME or NAME:COUNT, with {names:?}")
    })?;
    tracing::warn!(point = point.name(), count, "this process will kill itself: {VARIABLE} is set");
    PASSES.store(count - 1, Ordering::Relaxed);
    ARMED.store(point as u8, Ordering::Relaxed);
    Ok(())
}

fn parse(value: &str) -> Option<(Point, u64)> {
    let (name, count) = match value.rsplit_once(':') {
        Some((name, count)) => (name, count.parse().ok().filter(|n| *n > 0)?),
        None => (value, 1),
    };
    Some((*POINTS.iter().find(|point| point.name() == name)?, count))
}

/// Passes a point.
#[inline(always)]
pub fn hit(point: Point) {
    if ARMED.load(Ordering::Relaxed) == point as u8 {
        die();
    }
    #[cfg(test)]
    simulated::hit(point);
}

#[cold]
fn die() {
    let passed = PASSES.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
    if passed.is_err() {
        // SIGKILL and not abort: nothing of ours may run after it, no handler and no unwinding.
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

/// Dying inside one test: the thread unwinds, and what it had in private memory is lost.
#[cfg(test)]
pub(crate) mod simulated {
    use super::Point;
    use std::cell::Cell;

    thread_local! {
        static ARMED: Cell<Option<(Point, u32)>> = const { Cell::new(None) };
    }

    /// What the unwinding carries.
    #[derive(Debug)]
    pub(crate) struct Crash;

    /// The thread dies at the `count`th pass of `point`; 1 is the next.
    pub(crate) fn arm(point: Point, count: u32) {
        ARMED.set(Some((point, count)));
    }

    /// It does not die any more. Returns whether it was still to die.
    pub(crate) fn disarm() -> bool {
        ARMED.take().is_some()
    }

    pub(super) fn hit(point: Point) {
        match ARMED.get() {
            Some((armed, 1)) if armed == point => {
                ARMED.set(None);
                std::panic::resume_unwind(Box::new(Crash));
            }
            Some((armed, n)) if armed == point => ARMED.set(Some((armed, n - 1))),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_counts_are_read_and_nonsense_is_refused() {
        for point in POINTS {
            assert_eq!(parse(point.name()), Some((point, 1)));
            assert_eq!(parse(&format!("{}:17", point.name())), Some((point, 17)));
        }
        for bad in ["", "ring", "ring.after-take:", "ring.after-take:0", "ring.after-take:-1", ":3"]
        {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
