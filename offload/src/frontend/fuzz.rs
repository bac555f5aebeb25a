//! Entry point for fuzzing: any bytes from a back end, in any order with anything the driver or the shell does.

use super::*;
use crate::vhost_user::codec::Header;
use bixi_api::state::{Declared, Movable, Payload};
use std::time::Duration;

/// Feeds a session with events made from `data`.
pub fn front_session(data: &[u8]) {
    let config =
        FrontConfig { features: !0, config_len: 16, channel: true, ..FrontConfig::default() };
    let mut session = FrontSession::new(config.clone());
    let mut out = Vec::new();
    session.step(Event::Begin, &mut out);
    let mut rest = data;
    while let Some((&code, tail)) = rest.split_first() {
        rest = tail;
        let event = event(code, &mut rest, &out);
        out.clear();
        session.step(event, &mut out);
        if code == 255
            && let Declared::State(payload) = session.declare()
            && let Ok(restored) = FrontSession::restore(config.clone(), &payload, true)
        {
            session = restored;
        }
    }
}

/// Restores a session from arbitrary bytes, and has it go on.
pub fn front_state(data: &[u8]) {
    let payload = Payload { kind: KIND.to_owned(), version: VERSION, bytes: data.to_vec() };
    let config = FrontConfig { features: !0, config_len: 16, ..FrontConfig::default() };
    for connected in [false, true] {
        if let Ok(mut session) = FrontSession::restore(config.clone(), &payload, connected) {
            let mut out = Vec::new();
            session.step(Event::Begin, &mut out);
            session.step(Event::Memory(Vec::new()), &mut out);
            session.step(Event::Deactivate { resumable: true, within: Duration::ZERO }, &mut out);
            session.step(Event::Disconnected, &mut out);
        }
    }
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> &'a [u8] {
    let (head, tail) = rest.split_at(len.min(rest.len()));
    *rest = tail;
    head
}

fn event(code: u8, rest: &mut &[u8], last: &[Action]) -> Event {
    let byte = |rest: &mut &[u8]| take(rest, 1).first().copied().unwrap_or(0);
    match code {
        0 => Event::Connected { used: vec![(u16::from(byte(rest)), u16::from(byte(rest)))] },
        1 => Event::ConnectFailed,
        2 => Event::Disconnected,
        3 => Event::Deadline(if byte(rest) & 1 == 0 { Timer::Link } else { Timer::Stop }),
        4 => Event::Deactivate { resumable: byte(rest) & 1 == 0, within: Duration::from_secs(1) },
        5 => Event::EnableRing { index: byte(rest).into(), enabled: byte(rest) & 1 == 0 },
        6 => Event::CallReplaced { index: byte(rest).into() },
        7 => Event::Memory((0..byte(rest) & 15).map(|slot| region(slot.into())).collect()),
        8 => Event::Log((byte(rest) & 1 == 0).then_some(LogArea { size: 4096, offset: 0 })),
        9 => match activation(byte(rest)) {
            Ok(activation) => Event::Activate(activation),
            Err(_) => Event::Begin,
        },
        10 => Event::ChannelMessage(incoming(byte(rest).into(), byte(rest).into(), rest)),
        // Whatever was asked last is answered, so that the later stages are reached.
        11..128 => match last.iter().find_map(asked) {
            Some(request) => Event::Message(incoming(request, 5, rest)),
            None => Event::Message(incoming(u32::from(code), 5, rest)),
        },
        _ => Event::Message(incoming(byte(rest).into(), byte(rest).into(), rest)),
    }
}

fn asked(action: &Action) -> Option<u32> {
    match action {
        Action::Send(message) => Some(message.request.code().into()),
        _ => None,
    }
}

fn incoming(request: u32, flags: u32, rest: &mut &[u8]) -> Incoming {
    let len = take(rest, 1).first().map_or(0, |len| usize::from(len & 31));
    let descriptors = len & 1;
    let payload = take(rest, len).to_vec();
    let header = Header { request, flags, size: payload.len() as u32 };
    Incoming { header, payload, descriptors }
}

fn region(slot: u32) -> Region {
    Region { slot, guest_addr: u64::from(slot) << 20, size: 1 << 20, mmap_offset: 0 }
}

fn activation(byte: u8) -> Result<Activation, ActivationError> {
    let ring = |index: u8| Ring {
        index: index.into(),
        size: 1 << (byte & 7),
        desc: 0x1000,
        avail: 0x2000,
        used: 0x3000,
        base: byte.into(),
        enabled: byte & 8 == 0,
    };
    Activation::new(1 << 32, (0..byte & 3).map(ring).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_bytes_break_a_session(data in proptest::collection::vec(any::<u8>(), 0..400)) {
            super::front_session(&data);
        }

        #[test]
        fn no_bytes_break_a_restored_session(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            super::front_state(&data);
        }
    }
}
