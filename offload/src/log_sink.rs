//! Where a process logs to: standard error, without ever waiting for whoever reads it.
//!
//! A vCPU or a worker that logs must not stand still because the other end of a pipe is full. So a line is put into a
//! queue of bounded length, and a thread of its own writes it. When the queue is full the line is dropped and counted,
//! and the count is written once there is room again.
//!
//! Called by the three processes when they begin to log.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

/// Lines that wait to be written at most.
const QUEUE: usize = 1024;
/// How long the end of a process waits for its last lines to be written.
const PATIENCE: Duration = Duration::from_secs(1);
/// The name of the thread that writes.
const THREAD: &str = "log";

enum Item {
    Line(Vec<u8>),
    /// All before it is written when this is answered.
    Flush(SyncSender<()>),
}

/// The way into the log. Each call of `write` is a line, and succeeds at once.
#[derive(Debug, Clone)]
pub struct LogSink {
    queue: SyncSender<Item>,
    dropped: Arc<AtomicU64>,
}

/// Waits, when it is dropped, for the last lines to be written, though not for ever.
#[derive(Debug)]
pub struct LogFlush(LogSink);

impl LogSink {
    /// Starts to write to standard error. Keep the second value as long as the process is to log.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn to_stderr() -> io::Result<(Self, LogFlush)> {
        Self::to(io::stderr())
    }

    fn to(out: impl Write + Send + 'static) -> io::Result<(Self, LogFlush)> {
        let (queue, lines) = sync_channel(QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&dropped);
        std::thread::Builder::new()
            .name(THREAD.to_owned())
            .spawn(move || write_lines(&lines, &counter, out))?;
        let sink = Self { queue, dropped };
        Ok((sink.clone(), LogFlush(sink)))
    }
}

impl Write for LogSink {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.queue.try_send(Item::Line(line.to_vec())).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for LogFlush {
    fn drop(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        let (answer, answered) = sync_channel(1);
        let mut item = Item::Flush(answer);
        while let Err(TrySendError::Full(again)) = self.0.queue.try_send(item) {
            if Instant::now() >= deadline {
                return;
            }
            item = again;
            std::thread::sleep(Duration::from_millis(1));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        // Late or gone: the lines have no reader.
        let _: Result<(), RecvTimeoutError> = answered.recv_timeout(left);
    }
}

fn write_lines(lines: &Receiver<Item>, dropped: &AtomicU64, mut out: impl Write) {
    while let Ok(item) = lines.recv() {
        // A log that cannot be written has nobody left to tell.
        match item {
            Item::Line(line) => drop(out.write_all(&line)),
            Item::Flush(answer) => drop(answer.send(())),
        }
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let _ = writeln!(out, "{lost} lines were dropped: nobody read the log in time");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Read};

    #[test]
    fn a_log_that_nobody_reads_holds_nobody_up_and_says_what_it_lost() {
        let (read, write) = io::pipe().unwrap();
        let (mut sink, flush) = LogSink::to(write).unwrap();
        // More than a pipe and the queue hold.
        let line = [b'x'; 1023];
        for _ in 0..QUEUE + 200 {
            sink.write_all(&line).unwrap();
            sink.write_all(b"\n").unwrap();
        }
        drop(flush);
        let mut said = BufReader::new(read).lines().map_while(Result::ok);
        let lost = said.find(|line| line.ends_with("nobody read the log in time"));
        assert!(lost.is_some_and(|text| !text.starts_with('0')));
    }

    #[test]
    fn the_last_line_is_written_before_the_end() {
        let (mut read, write) = io::pipe().unwrap();
        let (mut sink, flush) = LogSink::to(write).unwrap();
        sink.write_all(b"the end\n").unwrap();
        drop(flush);
        let mut said = [0; 8];
        read.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"the end\n");
    }
}
