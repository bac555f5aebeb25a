//! This process's terminal in raw mode, for `shell` and `console`.

use crate::server::copy_promptly;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// `Ctrl-]` leaves a console.
const LEAVE: u8 = 0x1d;

/// A terminal in raw mode; dropping it puts it back.
#[derive(Debug)]
pub(crate) struct Terminal {
    before: Termios,
    gone: Arc<AtomicBool>,
}

impl Terminal {
    /// Puts this process's terminal into raw mode; `None` if its input is no terminal.
    pub fn raw() -> Option<Self> {
        let input = io::stdin();
        if !isatty(input.as_fd()) {
            return None;
        }
        let before = tcgetattr(input.as_fd()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(input.as_fd(), OptionalActions::Flush, &raw).ok()?;
        Some(Self { before, gone: Arc::default() })
    }

    /// Rows and columns.
    pub fn size(&self) -> (u16, u16) {
        size()
    }

    /// Calls back when the size has changed. A look twice a second needs no signal handler and no unsafe code.
    pub fn on_resize(&self, act: impl Fn((u16, u16)) + Send + 'static) {
        let gone = self.gone.clone();
        let mut last = size();
        std::thread::spawn(move || {
            while !gone.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(500));
                let now = size();
                if now != last {
                    last = now;
                    act(now);
                }
            }
        });
    }
}

impl Terminal {
    /// Puts the terminal back.
    pub fn restore(&self) {
        self.gone.store(true, Ordering::Relaxed);
        // A terminal that is gone needs no repair.
        let _ = tcsetattr(io::stdin().as_fd(), OptionalActions::Flush, &self.before);
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.restore();
    }
}

fn size() -> (u16, u16) {
    tcgetwinsize(io::stdin().as_fd()).map_or((24, 80), |size| (size.ws_row, size.ws_col))
}

/// Carries this process's input and output to and from a console until it ends or `Ctrl-]` is typed.
pub(crate) fn attach<S: Read + Write + Send + 'static>(mut from: S, mut to: S) -> io::Result<()> {
    let terminal = Terminal::raw().map(Arc::new);
    let typing = terminal.clone();
    std::thread::spawn(move || {
        let mut buffer = [0; 1024];
        while let Ok(n @ 1..) = io::stdin().read(&mut buffer) {
            let typed = &buffer[..n];
            let end = typed.iter().position(|b| typing.is_some() && *b == LEAVE);
            if to.write_all(&typed[..end.unwrap_or(n)]).and_then(|()| to.flush()).is_err() {
                break;
            }
            if let (Some(_), Some(terminal)) = (end, &typing) {
                terminal.restore();
                eprintln!();
                // The other direction is blocked in a read and has nothing to finish.
                std::process::exit(0);
            }
        }
    });
    let result = copy_promptly(&mut from, &mut io::stdout());
    if let Some(terminal) = terminal {
        terminal.restore();
    }
    result
}
