//! `bixi instance console`: this terminal, raw, at the serial port of an instance.

use crate::context::{Context, segment};
use crate::failure::Failure;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};
use std::io::{self, Write};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// `Ctrl-]` leaves.
const LEAVE: u8 = 0x1d;

/// Connects this terminal with the console until either side ends.
pub async fn run(context: &Context, instance: &str) -> Result<(), Failure> {
    let stream = context.operator()?.console(segment(instance)?).await?;
    let (mut from, mut to) = tokio::io::split(stream);
    let raw = Raw::begin()?;
    if raw.0.is_some() {
        eprint!("Ctrl-] leaves.\r\n");
    }
    let typed = async {
        let (mut keys, mut buffer) = (tokio::io::stdin(), [0; 1024]);
        loop {
            let read = keys.read(&mut buffer).await?;
            let left = raw.0.as_ref().and(buffer[..read].iter().position(|key| *key == LEAVE));
            to.write_all(&buffer[..left.unwrap_or(read)]).await?;
            to.flush().await?;
            if left.is_some() {
                return Ok(());
            }
            if read == 0 {
                // A script has said all; what the instance says still comes, until it or the reader ends.
                std::future::pending::<()>().await;
            }
        }
    };
    let shown = async {
        let mut buffer = [0; 4096];
        loop {
            match from.read(&mut buffer).await? {
                0 => return Ok(()),
                read => {
                    let mut out = io::stdout().lock();
                    out.write_all(&buffer[..read]).and_then(|()| out.flush())?;
                }
            }
        }
    };
    let ended: io::Result<()> = tokio::select! {
        ended = typed => ended,
        ended = shown => ended,
    };
    drop(raw);
    match ended {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::system("go on with the console", e))
        }
        _ => Ok(()),
    }
}

/// A terminal in raw mode, until dropped; nothing if the standard input is none.
struct Raw(Option<Termios>);

impl Raw {
    fn begin() -> Result<Self, Failure> {
        let stdin = rustix::stdio::stdin();
        if !isatty(stdin) {
            return Ok(Self(None));
        }
        let failed = |e: rustix::io::Errno| Failure::system("make the terminal raw", e.into());
        let before = tcgetattr(stdin).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin, OptionalActions::Now, &raw).map_err(failed)?;
        Ok(Self(Some(before)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // The terminal is gone if this fails.
            let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, before);
        }
    }
}
