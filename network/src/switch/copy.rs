//! Copies of a few dozen bytes between guest memory and ours, without a call.
//!
//! A copy whose length the compiler knows is a few vector moves; one whose length it does not is a call into the C
//! library that costs more than the moves. So a short copy is two of a known length, which may overlap.

use bixi_offload::memory::GuestBytes;

/// Reads all of `to` from `offset` on. False if there are not as many bytes; `to` may have changed then.
#[inline(always)]
pub fn read(from: &GuestBytes<'_>, offset: usize, to: &mut [u8]) -> bool {
    match to.len() {
        64..=128 => read_twice::<64>(from, offset, to),
        32..64 => read_twice::<32>(from, offset, to),
        16..32 => read_twice::<16>(from, offset, to),
        _ => from.read(offset, to),
    }
}

#[inline(always)]
fn read_twice<const N: usize>(from: &GuestBytes<'_>, offset: usize, to: &mut [u8]) -> bool {
    let last = offset + to.len().saturating_sub(N);
    to.first_chunk_mut::<N>().is_some_and(|first| from.read(offset, first))
        && to.last_chunk_mut::<N>().is_some_and(|bytes| from.read(last, bytes))
}

/// Writes all of `from` at `offset`. False if there is no room for it; some of it may be written then.
#[inline(always)]
pub fn write(to: &GuestBytes<'_>, offset: usize, from: &[u8]) -> bool {
    match from.len() {
        64..=128 => write_twice::<64>(to, offset, from),
        32..64 => write_twice::<32>(to, offset, from),
        16..32 => write_twice::<16>(to, offset, from),
        _ => to.write(offset, from),
    }
}

#[inline(always)]
fn write_twice<const N: usize>(to: &GuestBytes<'_>, offset: usize, from: &[u8]) -> bool {
    let last = offset + from.len().saturating_sub(N);
    from.first_chunk::<N>().is_some_and(|first| to.write(offset, first))
        && from.last_chunk::<N>().is_some_and(|bytes| to.write(last, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bixi_offload::frontend::{Backing, GuestArena};

    #[test]
    fn every_length_is_copied_whole_and_nothing_beside_it() {
        let arena = GuestArena::new(0, 4096, Backing::Unsealed).unwrap();
        let guest = arena.memory().get(0, 512).unwrap();
        let pattern: Vec<u8> = (1..=200).collect();
        for length in 0..200 {
            assert!(guest.fill(0, 512, 0));
            assert!(write(&guest, 7, &pattern[..length]));
            let mut all = [0xffu8; 512];
            assert!(guest.read(0, &mut all));
            assert!(all[7..7 + length] == pattern[..length]);
            assert!(all[..7] == [0; 7] && all[7 + length..].iter().all(|byte| *byte == 0));
            let mut back = vec![0; length];
            assert!(read(&guest, 7, &mut back) && back == pattern[..length]);
            assert!(!read(&guest, 513 - length, &mut back) && !write(&guest, 513 - length, &back));
        }
    }
}
