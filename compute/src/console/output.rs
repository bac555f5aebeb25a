//! The console's output: the newest 64 KiB, and cursors into it.
//!
//! A vCPU thread writes a byte per exit and never waits; sinks read at their own pace, each with a cursor. A sink that
//! falls more than the ring behind loses the oldest bytes and learns how many.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// What a late-comer still gets to read.
pub const KEPT: usize = 64 << 10;

/// The output of one console, shared by the serial port and its sinks.
#[derive(Debug, Default)]
pub struct Output {
    /// One lock per byte, which is already an exit of the guest: nanoseconds beside a microsecond.
    ring: Mutex<Ring>,
    grown: Notify,
    lost: AtomicU64,
}

/// Bytes `end - bytes.len()..end` of everything ever written.
#[derive(Debug, Default)]
struct Ring {
    bytes: VecDeque<u8>,
    end: u64,
}

/// Where a sink is in everything ever written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cursor(u64);

impl Output {
    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends `bytes`; never waits.
    pub fn write(&self, bytes: &[u8]) {
        let mut ring = self.ring();
        for byte in bytes {
            if ring.bytes.len() == KEPT {
                ring.bytes.pop_front();
            }
            ring.bytes.push_back(*byte);
        }
        ring.end += bytes.len() as u64;
        drop(ring);
        self.grown.notify_waiters();
    }

    /// Copies what follows `cursor` into `buffer` and moves the cursor. Returns the number of bytes copied.
    pub fn read(&self, cursor: &mut Cursor, buffer: &mut [u8]) -> usize {
        let ring = self.ring();
        let start = ring.end - ring.bytes.len() as u64;
        if cursor.0 < start {
            self.lost.fetch_add(start - cursor.0, Ordering::Relaxed);
            cursor.0 = start;
        }
        // The cursor never passes the end, and the difference is at most what is kept.
        let skip = cursor.0.saturating_sub(start) as usize;
        let mut copied = 0;
        for (to, from) in buffer.iter_mut().zip(ring.bytes.iter().skip(skip)) {
            *to = *from;
            copied += 1;
        }
        cursor.0 += copied as u64;
        copied
    }

    /// Waits until there is something after `cursor`, then reads.
    pub async fn next(&self, cursor: &mut Cursor, buffer: &mut [u8]) -> usize {
        loop {
            let grown = self.grown.notified();
            tokio::pin!(grown);
            // Registered before the look, so that a write in between wakes.
            grown.as_mut().enable();
            match self.read(cursor, buffer) {
                0 => grown.await,
                copied => return copied,
            }
        }
    }

    /// Where a sink begins that wants everything kept.
    #[must_use]
    pub fn oldest(&self) -> Cursor {
        let ring = self.ring();
        Cursor(ring.end - ring.bytes.len() as u64)
    }

    /// Whether a sink at `cursor` has everything.
    #[must_use]
    pub fn is_drained(&self, cursor: Cursor) -> bool {
        cursor.0 >= self.ring().end
    }

    /// Bytes that sinks lost because they were too slow, all together.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

/// The serial port's end: `None` where the console is off.
#[derive(Debug, Clone)]
pub struct Writer(pub Option<Arc<Output>>);

impl io::Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(output) = &self.0 {
            output.write(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_sink_loses_the_oldest_and_is_told() {
        let output = Output::default();
        let mut cursor = output.oldest();
        output.write(b"first");
        output.write(&vec![b'x'; KEPT - 1]);
        let mut buffer = [0; 4];
        assert_eq!(output.read(&mut cursor, &mut buffer), 4);
        assert_eq!((&buffer, output.lost()), (b"txxx", 4));
    }

    #[test]
    fn a_late_comer_gets_what_is_kept_and_then_the_rest() {
        let output = Output::default();
        output.write(b"before");
        let mut cursor = output.oldest();
        output.write(b" after");
        let mut buffer = [0; 32];
        assert_eq!(output.read(&mut cursor, &mut buffer), 12);
        assert_eq!(&buffer[..12], b"before after");
        assert!(output.is_drained(cursor));
        assert_eq!((output.read(&mut cursor, &mut buffer), output.lost()), (0, 0));
    }

    #[tokio::test]
    async fn a_waiting_sink_is_woken() {
        let output = Arc::new(Output::default());
        let waiting = Arc::clone(&output);
        let sink = tokio::spawn(async move {
            let mut buffer = [0; 8];
            let copied = waiting.next(&mut Cursor::default(), &mut buffer).await;
            buffer[..copied].to_vec()
        });
        tokio::task::yield_now().await;
        output.write(b"hello");
        assert_eq!(sink.await.unwrap(), b"hello");
    }
}
