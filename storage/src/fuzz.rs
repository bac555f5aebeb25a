//! One function per parser of untrusted bytes, for the fuzzer and for a test that gives each some thousands of inputs.

use crate::disk::DiskId;
use crate::disk::meta::Meta;
use crate::engine::harness::Harness;
use crate::engine::media::{Media, MemoryMedia, ServedDisk, counters};
use crate::service::records;
use bixi_offload::frontend::Buffer;
use bixi_offload::ring::{FEATURE_EVENT_IDX, FEATURE_INDIRECT, FEATURE_VERSION_1};
use std::cell::RefCell;
use std::sync::Arc;

/// A disk's `meta`: whatever is read back is what was written, or refused.
pub fn meta(data: &[u8]) {
    if let Ok(id) = "d-0123456789abcdefghij".parse::<DiskId>() {
        let _ = Meta::decode(data, &id);
    }
}

/// An attachment record.
pub fn record(data: &[u8]) {
    let _ = records::decode(data);
}

/// A disk id.
pub fn disk_id(data: &[u8]) {
    if let Ok(id) = String::from_utf8_lossy(data).parse::<DiskId>() {
        assert_eq!(id.as_str().len(), id.to_string().len());
        assert!(!id.as_str().contains(['/', '.', '\0']));
    }
}

const SIZE: u64 = 1 << 20;

thread_local! {
    static GUEST: RefCell<Option<(Harness, u64)>> = const { RefCell::new(None) };
}

/// A virtio-blk request with any bytes in any framing: the first bytes say how the rest is cut into descriptors.
/// Whatever it is, it is answered.
pub fn request(data: &[u8]) {
    GUEST.with_borrow_mut(|guest| {
        if guest.is_none() {
            *guest = harness();
        }
        let Some((harness, room)) = guest else { return };
        let Some((cuts, text)) = data.split_at_checked(8) else { return };
        let text = &text[..text.len().min(4096)];
        harness.write(*room, text);
        let mut buffers = Vec::new();
        let mut at = 0;
        for cut in &cuts[..4] {
            let len = usize::from(*cut).min(text.len() - at);
            if len > 0 {
                buffers.push(Buffer::readable(*room + at as u64, len as u32));
            }
            at += len;
        }
        for (index, cut) in cuts[4..].iter().enumerate() {
            let len = u32::from(*cut) << (index * 2);
            if len > 0 {
                buffers.push(Buffer::writable(*room + 8192, len));
            }
        }
        if buffers.is_empty() || harness.queues[0].add(&buffers).is_none() {
            return;
        }
        let turned = harness.turn();
        assert!(matches!(turned, Ok(1)), "not answered: {turned:?}");
        assert!(matches!(harness.queues[0].take(), Ok(Some(_))));
    });
}

fn harness() -> Option<(Harness, u64)> {
    let media = Media::Memory(MemoryMedia::new(SIZE).ok()?);
    let (serial, read_only) = ([b'f'; 20], false);
    let disk = ServedDisk { size: SIZE, serial, read_only, media, counters: counters(1) };
    let features = FEATURE_VERSION_1 | FEATURE_INDIRECT | FEATURE_EVENT_IDX | 1 << 13 | 1 << 14;
    let mut harness = Harness::new(&Arc::new(disk), 4 << 20, 1, 64, features).ok()?;
    let room = harness.allocate(1 << 20, 4096).ok()?;
    Some((harness, room))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_of_inputs_do_no_harm() {
        let mut seed = 1u64;
        let mut byte = || {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) as u8
        };
        for round in 0..8000 {
            let length = usize::from(byte()) * usize::from(byte() % 3);
            let mut data: Vec<u8> = (0..length).map(|_| byte()).collect();
            meta(&data);
            record(&data);
            disk_id(&data);
            if round % 2 == 0 && data.len() > 24 {
                // Requests that are nearly right get further.
                data[0] = data[0].max(16);
                data[8..24].fill(0);
                data[8] = [0, 1, 4, 8, 11, 13][usize::from(byte() % 6)];
                data[16] = byte();
            }
            request(&data);
        }
        let good = [&[16, 0, 0, 0, 255, 0, 0, 0][..], &[0; 16]].concat();
        request(&good);
        assert!(GUEST.with_borrow(Option::is_some), "no request was made");
    }
}
