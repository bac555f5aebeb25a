//! Named points at which a process can be made to die, for tests of crash recovery.
//!
//! `BIXI_FAILPOINT=name` or `name:count` kills the process with SIGKILL when it passes the point for the first or the
//! `count`th time, if the process's `main` has called [`arm_from_env`]. Unarmed, a point costs one relaxed load.
//!
//! Invariants: a name that no point has is an error at start, never a point that silently does not fire.
//!
//! Callers: [`crate::ring`] has the points of one batch, in order: [`Point::RING`]. Services add their own.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// The variable that [`arm_from_env`] reads.
pub const VARIABLE: &str = "BIXI_FAILPOINT";

/// A point at which the process can die.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    name: &'static str,
    code: u8,
}

impl Point {
    /// Chains are marked in flight; nothing was done with them.
    pub const AFTER_TAKE: Self = Self { name: "ring.after-take", code: 1 };
    /// A chain was processed; its used element is not written.
    pub const BEFORE_USED: Self = Self { name: "ring.before-used", code: 2 };
    /// Used elements are written; used.idx is not.
    pub const AFTER_USED_BEFORE_IDX: Self = Self { name: "ring.after-used-before-idx", code: 3 };
    /// used.idx is published; the heads are still marked in flight.
    pub const AFTER_IDX_BEFORE_CLEAR: Self =
        Self { name: "ring.after-idx-before-inflight-clear", code: 4 };
    /// The heads are not marked any more; the record's used_idx is behind.
    pub const AFTER_CLEAR: Self = Self { name: "ring.after-clear", code: 5 };

    /// The ring's points.
    pub const RING: [Self; 5] = [
        Self::AFTER_TAKE,
        Self::BEFORE_USED,
        Self::AFTER_USED_BEFORE_IDX,
        Self::AFTER_IDX_BEFORE_CLEAR,
        Self::AFTER_CLEAR,
    ];

    /// A point of a service. `code` is 64 or more, and different for each point of a process.
    pub const fn of_service(name: &'static str, code: u8) -> Self {
        assert!(code >= 64, "codes below 64 belong to this library");
        Self { name, code }
    }

    /// The point's name.
    pub const fn name(self) -> &'static str {
        self.name
    }
}

/// The armed point, 0 if none.
static ARMED: AtomicU8 = AtomicU8::new(0);
/// How often it is still passed before the process dies.
static PASSES: AtomicU64 = AtomicU64::new(0);

/// Arms the point that [`VARIABLE`] names, if it is set: one of the ring's or of the service's own. Call it once, from
/// `main`.
///
/// # Errors
/// A value that names no point.
pub fn arm_from_env(service: &[Point]) -> Result<(), String> {
    let Ok(value) = std::env::var(VARIABLE) else { return Ok(()) };
    let points = [&Point::RING[..], service].concat();
    let (point, count) = parse(&value, &points).ok_or_else(|| {
        let names: Vec<_> = points.iter().map(|p| p.name()).collect();
        format!("{VARIABLE}={value} names no point: use NAME or NAME:COUNT, with {names:?}")
    })?;
    tracing::warn!(point = point.name(), count, "this process will kill itself: {VARIABLE} is set");
    PASSES.store(count - 1, Ordering::Relaxed);
    ARMED.store(point.code, Ordering::Relaxed);
    Ok(())
}

fn parse(value: &str, points: &[Point]) -> Option<(Point, u64)> {
    let (name, count) = match value.rsplit_once(':') {
        Some((name, count)) => (name, count.parse().ok().filter(|n| *n > 0)?),
        None => (value, 1),
    };
    Some((*points.iter().find(|point| point.name() == name)?, count))
}

/// Passes a point.
#[inline(always)]
pub fn hit(point: Point) {
    if ARMED.load(Ordering::Relaxed) == point.code {
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
        let own = Point::of_service("service.own", 64);
        let points = [&Point::RING[..], &[own]].concat();
        for point in &points {
            assert_eq!(parse(point.name(), &points), Some((*point, 1)));
            assert_eq!(parse(&format!("{}:17", point.name()), &points), Some((*point, 17)));
        }
        for bad in ["", "ring", "ring.after-take:", "ring.after-take:0", "ring.after-take:-1", ":3"]
        {
            assert_eq!(parse(bad, &points), None, "{bad}");
        }
        assert_eq!(parse("service.own", &Point::RING), None);
    }
}
