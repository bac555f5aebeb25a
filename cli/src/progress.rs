//! What is under way, on the standard error stream: one line that changes on a terminal, a line for each change elsewhere.

use crate::output::printable;
use std::io::{self, IsTerminal, Write};

/// A line of progress.
#[derive(Debug)]
pub struct Progress {
    terminal: bool,
    last: String,
}

impl Progress {
    /// Nothing is said yet.
    pub fn new() -> Self {
        Self { terminal: io::stderr().is_terminal(), last: String::new() }
    }

    /// Says how things are, unless that was said already.
    pub fn say(&mut self, text: &str) {
        let text = printable(text).replace('\n', " ");
        if text == self.last {
            return;
        }
        let mut out = io::stderr().lock();
        // Whoever does not read the progress does not need it.
        let _ = if self.terminal { write!(out, "\r\x1b[K{text}") } else { writeln!(out, "{text}") };
        let _ = out.flush();
        self.last = text;
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.terminal && !self.last.is_empty() {
            let _ = writeln!(io::stderr());
        }
    }
}
