//! What software must do to a frame where the other side cannot: complete its checksum, cut it.
//!
//! Invariant: what is given on leaves nothing to do that the receiver did not accept.

use super::frame::{Outgoing, Rest, SPARE};
use super::receive::Receiver;
use crate::packet::HEAD;
use crate::packet::offload::Offload;
use crate::packet::segment::Segments;

/// Gives a frame to a guest: as it is if its driver accepts that, else worked on in `staged`.
#[inline]
pub fn give(
    to: &mut Receiver<'_>,
    frame: Outgoing<'_>,
    offload: &Offload,
    more: usize,
    staged: &mut Vec<u8>,
) {
    if offload.is_taken_by(to.features()) {
        return to.give(frame, offload, more);
    }
    frame.stage(staged);
    let Some(cut) = offload.segmentation else {
        offload.complete_checksum(&mut staged[SPARE..]);
        return to.give(Outgoing { head: staged, rest: Rest::NONE }, &Offload::NONE, more);
    };
    let whole = &staged[SPARE..];
    let Some(mut segments) = Segments::new(whole, cut) else { return };
    let expected = whole.len().div_ceil(usize::from(cut.size).max(1));
    let mut head = [0; SPARE + HEAD];
    while let Some(segment) = segments.next_segment() {
        let length = SPARE + segment.header.len();
        head[SPARE..length].copy_from_slice(segment.header);
        let rest = Rest::Ours(&whole[segment.payload]);
        to.give(Outgoing { head: &mut head[..length], rest }, &Offload::NONE, expected);
    }
}
