//! One function per parser of bytes that others wrote, for the fuzzer and for a test that gives each some thousands of
//! inputs.

use crate::event::Events;
use crate::output::cell;
use bixi_api::ecs::{EcsRefusal, Images, InstanceTypes, Instances, Page, TaskAttribute, Tasks};

/// A stream of events: it is the same in whatever pieces it comes.
pub fn events(data: &[u8]) {
    let Some((size, stream)) = data.split_first() else { return };
    let (mut whole, mut parts) = (Events::default(), Events::default());
    let Ok(expected) = whole.feed(stream) else { return };
    let pieces = stream.chunks(usize::from(*size).max(1));
    let got: Vec<String> = pieces.filter_map(|piece| parts.feed(piece).ok()).flatten().collect();
    assert_eq!(got, expected);
}

/// An answer of the cloud: it is read or refused, and none of it commands a terminal.
pub fn answer(data: &[u8]) {
    let _ = serde_json::from_slice::<EcsRefusal>(data);
    let _ = serde_json::from_slice::<TaskAttribute>(data);
    let _ = serde_json::from_slice::<InstanceTypes>(data);
    let _ = serde_json::from_slice::<Images>(data).map(Page::items);
    let _ = serde_json::from_slice::<Tasks>(data).map(Page::items);
    for one in serde_json::from_slice::<Instances>(data).map(Page::items).unwrap_or_default() {
        assert!(!cell(&one.instance_name).contains(char::is_control));
    }
    assert!(!cell(&String::from_utf8_lossy(data)).contains(char::is_control));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_input_breaks_a_parser() {
        let seeds: [&[u8]; 3] = [
            b"\x03id: 1\ndata: {\"a\":1}\n\n: alive\n\ndata: x\r\n\r\n",
            br#"{"TotalCount":1,"Instances":{"Instance":[{"InstanceName":"\u001b[2J"}]}}"#,
            br#"{"Code":"X","Message":"Y","RequestId":"R"}"#,
        ];
        let mut random = 0x2545_f491_4f6c_dd1d_u64;
        for round in 0..6_000 {
            let mut data = seeds[round % seeds.len()].to_vec();
            for _ in 0..round % 5 {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let at = usize::try_from(random >> 8).unwrap_or(0) % data.len();
                data[at] = (random & 0xff) as u8;
            }
            events(&data);
            answer(&data);
        }
    }
}
