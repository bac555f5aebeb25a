//! The ring under a driver that writes anything anywhere.

use super::{
    Batch, FEATURE_EVENT_IDX, FEATURE_INDIRECT, InflightMap, Notifiers, QueueLayout, QueueSetup,
    SplitQueue,
};
use crate::memory::{GuestMemory, MappingOptions, PageSize, RegionDescriptor, SharedMemory};
use crate::sigbus::Watch;
use std::os::fd::AsFd;
use std::sync::Arc;

const BASE: u64 = 0x10000;
const REGION: u64 = 64 * 1024;
const SIZE: u16 = 16;

fn memory() -> Option<Arc<GuestMemory>> {
    let options = MappingOptions { require_sealed: true, watch: Watch::new() };
    let files = [0, 1].map(|_| SharedMemory::new("fuzz", REGION, PageSize::Normal).ok());
    let regions: Vec<_> = files
        .iter()
        .flatten()
        .zip([BASE, BASE + REGION])
        .map(|(file, at)| {
            let region =
                RegionDescriptor { guest_addr: at, size: REGION, user_addr: at, mmap_offset: 0 };
            (region, file.as_fd())
        })
        .collect();
    GuestMemory::map(&regions, &options).ok()
}

/// Interprets `data` as writes to the ring's memory and calls of the device's side between them.
///
/// Each step is `op, offset (2 bytes), length, bytes…`; the descriptor table, both rings and the buffers are in the
/// first 64 KiB, so that offsets hit them often.
pub fn ring(data: &[u8]) {
    let Some((&flags, mut data)) = data.split_first() else { return };
    let Some(memory) = memory() else { return };
    let mut batch = Batch::new(usize::from(flags >> 4) + 1);
    let record = (flags & 4 != 0).then(|| InflightMap::create(1, SIZE).ok()).flatten().and_then(
        |(fd, bytes)| {
            let options = MappingOptions { require_sealed: true, watch: Watch::new() };
            InflightMap::map(fd.as_fd(), 0, bytes, 1, SIZE, &options).ok()
        },
    );
    let setup = |base| QueueSetup {
        layout: QueueLayout {
            size: SIZE,
            descriptors: BASE,
            available: BASE + 256,
            used: BASE + 512,
        },
        features: if flags & 1 != 0 { FEATURE_EVENT_IDX } else { 0 }
            | if flags & 2 != 0 { FEATURE_INDIRECT } else { 0 },
        base,
        notifiers: Notifiers::default(),
        inflight: record.as_ref().and_then(|map| map.queue(0)),
        log: None,
    };
    let Ok(mut queue) = SplitQueue::new(Arc::clone(&memory), setup(0)) else { return };
    let mut heads = Vec::new();
    while let [op, low, high, len, rest @ ..] = data {
        let offset = u64::from(u16::from_le_bytes([*low, *high]));
        let (bytes, rest) = rest.split_at(usize::from(*len).min(rest.len()));
        data = rest;
        match op % 8 {
            // Mostly near the ring.
            0..=2 => poke(&memory, BASE + offset % 1024, bytes),
            3 => poke(&memory, BASE + offset, bytes),
            4 => drop(step(&mut queue, &memory, &mut batch, &mut heads, usize::from(*low))),
            5 => {
                if let Some(head) = heads.pop() {
                    queue.complete(head, u32::MAX);
                }
                let _ = queue.publish();
            }
            6 => {
                queue.kicks_off();
                let _ = queue.kicks_on();
            }
            _ => {
                // The process dies, and the next finds what is in memory.
                heads.clear();
                let Ok(next) = SplitQueue::new(Arc::clone(&memory), setup(u16::from(*low))) else {
                    return;
                };
                queue = next;
            }
        }
    }
}

fn poke(memory: &GuestMemory, at: u64, bytes: &[u8]) {
    for (at, byte) in (at..).zip(bytes) {
        if let Some(place) = memory.get(at, 1) {
            let fits = place.write(0, &[*byte]);
            debug_assert!(fits);
        }
    }
}

/// Takes a batch, reads all of its readable bytes and writes all of its writable ones.
fn step(
    queue: &mut SplitQueue,
    memory: &GuestMemory,
    batch: &mut Batch,
    heads: &mut Vec<u16>,
    max: usize,
) -> Option<()> {
    let n = queue.take(max, batch).ok()?;
    assert_eq!(n, batch.len());
    let mut buffer = vec![0; 4096];
    for chain in batch.chains(memory) {
        for piece in chain.readable().iter().take(64) {
            let all = memory.regions().any(|(_, map)| {
                let start = map.as_ptr() as usize;
                let at = piece.as_ptr() as usize;
                at >= start && at + piece.len() <= start + map.len()
            });
            assert!(all, "a piece outside of every mapping");
        }
        chain.readable().read(&mut buffer);
        chain.writable().write(&buffer[..64]);
        chain.writable().copy_from(&chain.readable().slice(0, chain.readable().len().min(4096))?);
        heads.push(chain.head());
    }
    Some(())
}
