//! Load on a block device, with proof: what is written says where it belongs and when it was written, and is read back.
//!
//! Runs inside a guest as `bixi-lab load DEVICE`. Each thread owns a stripe of the device outright: it writes random
//! blocks of it with O_DIRECT, one at a time, remembers each block's newest generation, and now and then reads one back.
//! At the end every block ever written is read again. One error or one wrong byte fails the run. How long the longest
//! single request took is reported: that is the stall a guest sees while its card is away.

use crate::error::{Attempt, Error, Result};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Bytes of one block.
pub const BLOCK: usize = 4096;

/// Blocks that a checksum reads at once.
const CHUNK: usize = 32;

/// What to do to which device.
#[derive(Debug, Clone)]
pub struct Load {
    /// The device.
    pub device: PathBuf,
    /// How many of its blocks, from the first; all unless told.
    pub blocks: Option<u64>,
    /// For how long.
    pub time: Duration,
    /// How many threads, each with one request in flight.
    pub threads: u64,
    /// Where the pseudo-random numbers begin.
    pub seed: u64,
}

/// What was done and seen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Report {
    /// Blocks written.
    pub writes: u64,
    /// Blocks read and compared.
    pub reads: u64,
    /// Flushes.
    pub flushes: u64,
    /// The longest single request, in milliseconds.
    pub longest_ms: u64,
    /// A checksum of what the blocks must hold now.
    pub digest: u64,
    /// The first things that went wrong.
    pub failures: Vec<String>,
}

/// Puts the load on the device.
///
/// # Errors
/// When the device cannot be opened. What goes wrong later is in the report.
pub fn run(load: &Load) -> Result<Report> {
    let (file, blocks) = open(&load.device, load.blocks)?;
    let threads = load.threads.clamp(1, blocks);
    let deadline = Instant::now() + load.time;
    let stripe = blocks / threads;
    let workers: Vec<_> = (0..threads)
        .map(|index| {
            let file = file.try_clone().attempt(|| "share a device".to_owned())?;
            let mut worker = Worker {
                file,
                first: index * stripe,
                generations: vec![0; usize::try_from(stripe).unwrap_or(usize::MAX)],
                random: Random(
                    load.seed.wrapping_add(index).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
                ),
                buffer: Aligned::new(1),
                report: Report::default(),
            };
            Ok(std::thread::spawn(move || {
                worker.work(deadline);
                worker.report
            }))
        })
        .collect::<Result<_>>()?;
    let mut total = Report::default();
    for worker in workers {
        let report =
            worker.join().map_err(|_| Error::Rack("a thread of the load died".to_owned()))?;
        total.writes += report.writes;
        total.reads += report.reads;
        total.flushes += report.flushes;
        total.longest_ms = total.longest_ms.max(report.longest_ms);
        total.failures.extend(report.failures);
    }
    total.digest = digest(&load.device, load.blocks)?;
    Ok(total)
}

/// A checksum of the device's contents, read past every cache of this kernel.
///
/// # Errors
/// When the device cannot be read.
pub fn digest(device: &Path, blocks: Option<u64>) -> Result<u64> {
    let (file, blocks) = open(device, blocks)?;
    let mut buffer = Aligned::new(CHUNK);
    let mut digest = 0_u64;
    for first in (0..blocks).step_by(CHUNK) {
        let count = usize::try_from(blocks - first).unwrap_or(CHUNK).min(CHUNK);
        let bytes = &mut buffer.bytes()[..count * BLOCK];
        file.read_exact_at(bytes, first * BLOCK as u64)
            .attempt(|| format!("read block {first} of {}", device.display()))?;
        for block in bytes.chunks(BLOCK) {
            // Order matters: two blocks that changed places must not cancel out.
            digest = digest.rotate_left(1) ^ checksum(block);
        }
    }
    Ok(digest)
}

fn open(device: &Path, blocks: Option<u64>) -> Result<(File, u64)> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(device)
        .attempt(|| format!("open {}", device.display()))?;
    let size = (&file).seek_end().attempt(|| format!("measure {}", device.display()))?;
    let whole = size / BLOCK as u64;
    let blocks = blocks.unwrap_or(whole).min(whole);
    if blocks == 0 {
        return Err(Error::Unfit(format!("{} holds not one block", device.display())));
    }
    Ok((file, blocks))
}

trait SeekEnd {
    fn seek_end(self) -> std::io::Result<u64>;
}

impl SeekEnd for &File {
    fn seek_end(mut self) -> std::io::Result<u64> {
        // A block device has no length in its metadata.
        std::io::Seek::seek(&mut self, std::io::SeekFrom::End(0))
    }
}

struct Worker {
    file: File,
    first: u64,
    /// The newest generation of each block of the stripe; 0 is never written.
    generations: Vec<u64>,
    random: Random,
    buffer: Aligned,
    report: Report,
}

impl Worker {
    fn work(&mut self, deadline: Instant) {
        while Instant::now() < deadline && self.report.failures.len() < 5 {
            let index = self.pick();
            self.write(index);
            if self.report.writes.is_multiple_of(16) {
                let index = self.pick();
                self.verify(index);
            }
            if self.report.writes.is_multiple_of(64) {
                self.timed("flush", |file, _| file.sync_data());
                self.report.flushes += 1;
            }
        }
        self.timed("flush", |file, _| file.sync_data());
        self.report.flushes += 1;
        for index in 0..self.generations.len() {
            self.verify(index);
        }
    }

    fn pick(&mut self) -> usize {
        let count = self.generations.len() as u64;
        usize::try_from(self.random.next() % count).unwrap_or_default()
    }

    fn write(&mut self, index: usize) {
        let block = self.first + index as u64;
        let generation = self.generations[index] + 1;
        fill(self.buffer.bytes(), block, generation);
        if self.timed("write", |file, bytes| file.write_all_at(bytes, block * BLOCK as u64)) {
            self.generations[index] = generation;
            self.report.writes += 1;
        }
    }

    fn verify(&mut self, index: usize) {
        let generation = self.generations[index];
        if generation == 0 {
            return;
        }
        let block = self.first + index as u64;
        if !self.timed("read", |file, bytes| file.read_exact_at(bytes, block * BLOCK as u64)) {
            return;
        }
        self.report.reads += 1;
        let mut expected = [0; BLOCK];
        fill(&mut expected, block, generation);
        if self.buffer.bytes() != expected {
            let found: Vec<u64> = self.buffer.bytes()[..16].chunks(8).map(word).collect();
            self.fail(format!("block {block} should have generation {generation}, has {found:?}"));
        }
    }

    fn timed(
        &mut self,
        what: &str,
        act: impl FnOnce(&File, &mut [u8]) -> std::io::Result<()>,
    ) -> bool {
        let start = Instant::now();
        let result = act(&self.file, self.buffer.bytes());
        let took = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.report.longest_ms = self.report.longest_ms.max(took);
        if let Err(error) = &result {
            self.fail(format!("{what}: {error}"));
        }
        result.is_ok()
    }

    fn fail(&mut self, failure: String) {
        if self.report.failures.len() < 5 {
            self.report.failures.push(failure);
        }
    }
}

/// A block that says where it belongs and when it was written, in every word.
fn fill(bytes: &mut [u8], block: u64, generation: u64) {
    for (index, chunk) in bytes.chunks_exact_mut(16).enumerate() {
        chunk[..8].copy_from_slice(&(block ^ ((index as u64) << 48)).to_le_bytes());
        chunk[8..].copy_from_slice(&generation.to_le_bytes());
    }
}

fn word(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |b| u64::from_le_bytes(*b))
}

/// FNV-1a over words: quick and good enough to see a change.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.chunks(8).map(word).fold(0xcbf2_9ce4_8422_2325, |hash: u64, word| {
        (hash ^ word).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// A xorshift generator: the run is the same for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Blocks at an address that O_DIRECT accepts.
struct Aligned {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl Aligned {
    fn new(blocks: usize) -> Self {
        let length = blocks * BLOCK;
        let memory = vec![0; length + BLOCK];
        let start = memory.as_ptr().align_offset(BLOCK);
        Self { memory, start, length }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(name: &str) -> PathBuf {
        // Not in /tmp, which may be a tmpfs without O_DIRECT.
        let path = std::env::current_exe()
            .unwrap()
            .with_file_name(format!("load-{name}-{}", std::process::id()));
        File::create(&path).unwrap().set_len(64 * BLOCK as u64).unwrap();
        path
    }

    fn load(device: &Path) -> Load {
        Load {
            device: device.to_owned(),
            blocks: None,
            time: Duration::from_millis(50),
            threads: 2,
            seed: 1,
        }
    }

    #[test]
    fn a_good_device_passes_and_has_the_digest_it_says() {
        let device = image("good");
        let report = run(&load(&device)).unwrap();
        assert!(report.writes > 0 && report.reads > 0, "{report:?}");
        assert_eq!(report.failures, Vec::<String>::new());
        assert_eq!(report.digest, digest(&device, None).unwrap());
        std::fs::remove_file(device).unwrap();
    }

    #[test]
    fn a_lost_write_is_found() {
        let device = image("lost");
        let (file, _) = open(&device, None).unwrap();
        let mut worker = Worker {
            file,
            first: 0,
            generations: vec![0; 4],
            random: Random(1),
            buffer: Aligned::new(1),
            report: Report::default(),
        };
        worker.write(2);
        worker.verify(2);
        assert!(worker.report.failures.is_empty());
        worker.generations[2] += 1;
        worker.verify(2);
        assert!(worker.report.failures[0].contains("block 2"), "{:?}", worker.report);
        std::fs::remove_file(device).unwrap();
    }
}
