//! Conversations with front ends: those of QEMU, DPDK and our own, random ones, and their hand-over in the middle.

use super::codec::{
    Area, Config, HEADER_LEN, Header, InflightArea, Reply, Request as R, VringAddr, VringFd,
    VringState, protocol,
};
use super::fuzz::{self, Token, World, offer};
use super::*;
use crate::memory::RegionDescriptor;
use proptest::prelude::*;
use std::sync::Arc;

const FEATURES: u64 = 0x1_3000_0000;

fn token(n: u32) -> Token {
    Arc::new(n)
}

fn region(n: u64) -> RegionDescriptor {
    RegionDescriptor { guest_addr: n << 30, size: 1 << 30, user_addr: n << 32, mmap_offset: 0 }
}

fn state(index: u32, num: u32) -> VringState {
    VringState { index, num }
}

fn addr(index: u32, place: u64, flags: u32) -> VringAddr {
    VringAddr {
        index,
        flags,
        descriptors: place,
        available: place + 0x1000,
        used: place + 0x2000,
        log: 0x4000,
    }
}

fn ring(index: u8) -> VringFd {
    VringFd { index, has_fd: true }
}

impl World {
    fn request(&mut self, request: &R, need_reply: bool, fds: Vec<Token>) {
        let bytes = request.encode(need_reply);
        self.bytes(&bytes, fds);
    }

    fn bytes(&mut self, bytes: &[u8], fds: Vec<Token>) {
        let Some((head, payload)) = bytes.split_first_chunk::<HEADER_LEN>() else { return };
        let Ok(header) = Header::parse(head) else { return };
        let header = Header { size: payload.len() as u32, ..header };
        self.feed(Event::Message { header, payload: payload.to_vec(), fds });
    }

    /// A request that must be acknowledged, and is done with when this returns.
    fn acked(&mut self, request: &R, fds: Vec<Token>) -> u64 {
        self.request(request, true, fds);
        self.settle();
        self.last_u64(request)
    }

    fn last_u64(&mut self, request: &R) -> u64 {
        match self.last(request) {
            Reply::U64(n) => n,
            other => panic!("{other:?}"),
        }
    }

    fn last(&mut self, request: &R) -> Reply {
        let (bytes, _) = self.sent.pop().expect("a reply");
        assert!(self.sent.is_empty(), "one reply and not two");
        let (head, payload) = bytes.split_first_chunk::<HEADER_LEN>().unwrap();
        Reply::decode(request.code(), &Header::parse(head).unwrap(), payload).unwrap()
    }

    fn ask(&mut self, request: &R) -> u64 {
        self.request(request, false, Vec::new());
        self.settle();
        self.last_u64(request)
    }

    /// A ring stands still, at `base`.
    fn stopped(&mut self, index: u16, base: u16) {
        assert!(self.stopping.remove(&index).is_some());
        self.feed(Event::RingStopped { index, base });
    }

    /// A request without an acknowledgement.
    fn tell(&mut self, request: &R, fds: Vec<Token>) {
        self.request(request, false, fds);
        self.settle();
        assert!(self.sent.is_empty() && self.ended.is_none(), "{request:?}: {:?}", self.ended);
    }

    fn negotiate(&mut self) {
        let features = self.ask(&R::GetFeatures);
        assert_eq!(features, self.offer.features | FEATURE_LOG_ALL | FEATURE_PROTOCOL_FEATURES);
        let bits = self.ask(&R::GetProtocolFeatures);
        self.tell(&R::SetProtocolFeatures(bits), vec![]);
        self.tell(&R::SetOwner, vec![]);
        self.tell(&R::SetFeatures(FEATURES | FEATURE_PROTOCOL_FEATURES), vec![]);
    }

    fn describe_ring(&mut self, index: u32) {
        self.tell(&R::SetVringNum(state(index, 128)), vec![]);
        self.tell(&R::SetVringBase(state(index, 5)), vec![]);
        self.tell(&R::SetVringAddr(addr(index, 0x10000, 0)), vec![]);
    }

    /// A session with rings 0 and 1 running.
    fn two_rings() -> Self {
        let mut world = Self::new();
        world.negotiate();
        world.tell(&R::SetMemTable(vec![region(0), region(4)]), vec![token(1), token(2)]);
        for index in 0..2 {
            world.describe_ring(index);
            world.tell(&R::SetVringKick(ring(index as u8)), vec![token(10 + index)]);
            world.tell(&R::SetVringCall(ring(index as u8)), vec![token(20 + index)]);
            world.tell(&R::SetVringEnable(state(index, 1)), vec![]);
        }
        assert_eq!(world.running.len(), 2);
        world
    }
}

#[test]
fn qemu_starts_migrates_and_stops_a_block_device() {
    let mut world = World::new();
    world.negotiate();
    assert_eq!(world.ask(&R::GetQueueNum), 3);
    assert_eq!(world.ask(&R::GetMaxMemSlots), 509);
    // The device realizes: it sets call descriptors before anything of the ring is known.
    world.tell(&R::SetVringCall(ring(0)), vec![token(1)]);
    let config = R::GetConfig(Config { offset: 0, flags: 0, bytes: vec![0; 96] });
    world.request(&config, false, vec![]);
    let Reply::Config(read) = world.last(&config) else { panic!() };
    assert_eq!(read.bytes[..60], (0..60).collect::<Vec<u8>>());
    assert_eq!(read.bytes[60..], [0; 36]);
    // It starts.
    let area = InflightArea { area: Area { size: 0, offset: 0 }, queues: 1, queue_size: 128 };
    let get = R::GetInflightFd(area);
    world.request(&get, false, vec![]);
    world.settle();
    assert_eq!(world.sent[0].1, 1, "the record's file comes along");
    let Reply::Inflight(made) = world.last(&get) else { panic!() };
    assert_eq!((made.queues, made.queue_size, made.area.size), (1, 128, 4096));
    world.tell(&R::SetInflightFd(made), vec![token(3)]);
    world.tell(&R::SetFeatures(FEATURES | FEATURE_PROTOCOL_FEATURES), vec![]);
    assert_eq!(world.acked(&R::SetMemTable(vec![region(0)]), vec![token(2)]), 0);
    world.describe_ring(0);
    world.tell(&R::SetVringKick(ring(0)), vec![token(4)]);
    world.tell(&R::SetVringCall(ring(0)), vec![token(5)]);
    assert!(world.running.is_empty(), "with protocol features a ring begins disabled");
    world.tell(&R::SetVringEnable(state(0, 1)), vec![]);
    let setup = &world.running[&0];
    assert_eq!((setup.size, setup.base, setup.features), (128, 5, FEATURES));
    assert_eq!((setup.kick.as_deref(), setup.call.as_deref()), (Some(&4), Some(&5)));
    // A migration begins: the log is set, and turned on by features and addresses while the ring runs.
    let log = R::SetLogBase(Area { size: 4096, offset: 0 });
    world.request(&log, false, vec![token(6)]);
    world.settle();
    assert_eq!(world.last_u64(&log), 0);
    world.tell(&R::SetFeatures(FEATURES | FEATURE_PROTOCOL_FEATURES | FEATURE_LOG_ALL), vec![]);
    world.tell(&R::SetVringAddr(addr(0, 0x10000, 1)), vec![]);
    assert_eq!(world.running.len(), 1, "it runs on");
    assert_eq!(world.logs[&0], (true, Some(0x4000)));
    // It stops: the base comes back when the ring stands still.
    let get = R::GetVringBase(state(0, 0));
    world.request(&get, false, vec![]);
    assert!(world.sent.is_empty() && !world.session.wants_message());
    world.stopped(0, 77);
    assert_eq!(world.last(&get), Reply::VringState(state(0, 77)));
    // It starts again only with a new kick descriptor.
    world.tell(&R::SetVringEnable(state(0, 1)), vec![]);
    assert!(world.running.is_empty());
}

#[test]
fn dpdk_virtio_user_without_protocol_features_runs_at_once() {
    let mut world = World::new();
    world.ask(&R::GetFeatures);
    world.tell(&R::SetOwner, vec![]);
    for index in 0..2 {
        world.tell(&R::SetVringCall(ring(index)), vec![token(1)]);
    }
    world.tell(&R::SetFeatures(FEATURES), vec![]);
    let regions: Vec<_> = (0..8).map(region).collect();
    world.tell(&R::SetMemTable(regions), (0..8).map(token).collect());
    for index in 0..2 {
        world.tell(&R::SetVringNum(state(index, 256)), vec![]);
        world.tell(&R::SetVringBase(state(index, 0)), vec![]);
        world.tell(&R::SetVringAddr(addr(index, 0x10000, 0)), vec![]);
        assert!(!world.running.contains_key(&(index as u16)));
        world.tell(&R::SetVringKick(VringFd { index: index as u8, has_fd: false }), vec![]);
        let setup = &world.running[&(index as u16)];
        assert_eq!(setup.kick, None, "it polls");
    }
    let get = R::GetVringBase(state(1, 0));
    world.request(&get, false, vec![]);
    world.settle();
    assert_eq!(world.last(&get), Reply::VringState(state(1, 0)));
    assert_eq!(world.running.len(), 1);
}

#[test]
fn a_change_of_memory_stops_the_rings_and_starts_them_where_they_were() {
    let mut world = World::two_rings();
    world.request(&R::SetMemTable(vec![region(0)]), true, vec![token(3)]);
    assert!(world.running.is_empty(), "nothing runs while the memory changes");
    world.stopped(1, 11);
    assert!(world.asked.is_empty(), "one still runs");
    world.stopped(0, 10);
    assert!(matches!(world.asked[0], Action::MapMemory(ref regions) if regions.len() == 1));
    assert!(world.sent.is_empty());
    world.settle();
    assert_eq!(world.last_u64(&R::SetMemTable(vec![])), 0);
    assert_eq!((world.running[&0].base, world.running[&1].base), (10, 11));
}

#[test]
fn memory_that_cannot_be_mapped_is_refused_and_the_old_stays() {
    let mut world = World::two_rings();
    world.request(&R::AddMemReg(region(2)), true, vec![token(3)]);
    while !world.stopping.is_empty() {
        world.answer(true);
    }
    world.answer(false);
    assert_eq!(world.last_u64(&R::AddMemReg(region(2))), 1);
    assert_eq!(world.running.len(), 2, "they run on in the memory there was");
    // The slots are those of before: what was refused cannot be removed, what was there can.
    assert_eq!(world.acked(&R::RemMemReg(region(1)), vec![]), 1);
    assert_eq!(world.acked(&R::AddMemReg(region(8)), vec![token(3)]), 0);
    assert_eq!(world.acked(&R::RemMemReg(region(8)), vec![]), 0);
    assert_eq!(world.acked(&R::RemMemReg(region(0)), vec![]), 0);
    assert_eq!(world.acked(&R::RemMemReg(region(4)), vec![]), 0);
    assert!(world.running.is_empty(), "without memory nothing can run");
    assert_eq!(world.acked(&R::AddMemReg(region(4)), vec![token(3)]), 0);
    assert_eq!(world.running.len(), 2);
    // A front end that does not wait for an answer would go on with memory that is not there.
    world.request(&R::AddMemReg(region(2)), false, vec![token(3)]);
    while !world.stopping.is_empty() {
        world.answer(true);
    }
    world.answer(false);
    assert_eq!(world.ended.as_deref(), Some("not today"));
}

#[test]
fn a_region_added_twice_goes_when_it_was_removed_twice() {
    let mut world = World::two_rings();
    assert_eq!(world.acked(&R::AddMemReg(region(0)), vec![token(3)]), 0);
    assert!(world.asked.is_empty() && world.running.len() == 2, "it is there already");
    assert_eq!(world.acked(&R::RemMemReg(region(0)), vec![]), 0);
    assert_eq!(world.running.len(), 2, "it is still claimed once");
    assert_eq!(world.acked(&R::RemMemReg(region(0)), vec![]), 0);
    assert_eq!(world.acked(&R::RemMemReg(region(0)), vec![]), 1);
}

#[test]
fn running_rings_refuse_what_only_rings_at_rest_can_take() {
    let mut world = World::two_rings();
    for request in [
        R::SetVringNum(state(0, 64)),
        R::SetVringBase(state(0, 0)),
        R::SetVringNum(state(3, 64)),
        R::SetVringNum(state(2, 100)),
        R::SetVringNum(state(2, 512)),
        R::SetVringNum(state(2, 0)),
        R::SetVringBase(state(2, 0x10000)),
        R::SetVringEnable(state(2, 2)),
        R::SetFeatures(FEATURE_PROTOCOL_FEATURES),
        R::SetFeatures(1 << 50),
        R::SetProtocolFeatures(1 << 16),
        R::SetStatus(4),
        R::SetConfig(Config { offset: 31, flags: 0, bytes: vec![1] }),
        R::SetConfig(Config { offset: u32::MAX, flags: 0, bytes: vec![1] }),
        R::SetMemTable(vec![region(0)]),
        R::SetVringKick(ring(0)),
        R::SetLogBase(Area { size: 1, offset: 0 }),
    ] {
        assert_eq!(world.acked(&request, vec![]), 1, "{request:?}");
    }
    let area = InflightArea { area: Area { size: 64, offset: 0 }, queues: 1, queue_size: 1 };
    assert_eq!(world.acked(&R::SetInflightFd(area), vec![token(1)]), 1);
    assert_eq!(world.running.len(), 2);
    assert_eq!(
        world.acked(&R::SetConfig(Config { offset: 32, flags: 0, bytes: vec![1] }), vec![]),
        0
    );
    world.request(&R::SetVringNum(state(0, 64)), false, vec![]);
    assert!(world.ended.unwrap().contains("while it ran"));
}

#[test]
fn a_request_that_is_not_known_ends_only_a_session_that_does_not_ask() {
    let unknown = |flags| Header { request: 45, flags, size: 0 }.to_bytes();
    let mut world = World::two_rings();
    world.bytes(&unknown(9), vec![token(1), token(2)]);
    assert_eq!(world.sent.pop().unwrap().0[12..], 1u64.to_ne_bytes());
    world.bytes(&unknown(1), vec![]);
    assert!(world.ended.unwrap().contains("45"));
    // A reply is no request.
    let mut world = World::two_rings();
    world.bytes(&Header { request: 1, flags: 13, size: 0 }.to_bytes(), vec![]);
    assert!(world.ended.is_some());
}

#[test]
fn a_moved_ring_and_a_new_kick_restart_it_where_it_was() {
    let mut world = World::two_rings();
    world.request(&R::SetVringAddr(addr(1, 0x50000, 0)), true, vec![]);
    world.stopped(1, 9);
    assert_eq!(world.last_u64(&R::SetVringAddr(addr(1, 0, 0))), 0);
    let setup = &world.running[&1];
    assert_eq!((setup.base, setup.addr.descriptors), (9, 0x50000));
    assert_eq!(world.acked(&R::SetVringKick(ring(1)), vec![token(99)]), 0);
    assert_eq!(world.running[&1].kick.as_deref(), Some(&99));
    assert_eq!(world.acked(&R::SetVringEnable(state(1, 0)), vec![]), 0);
    assert_eq!(world.running.keys().copied().collect::<Vec<_>>(), [0]);
    assert_eq!(world.acked(&R::SetVringEnable(state(1, 1)), vec![]), 0);
    assert_eq!(world.running.len(), 2);
}

#[test]
fn a_reset_device_is_as_if_the_front_end_had_just_connected() {
    let mut world = World::two_rings();
    assert_eq!(world.acked(&R::ResetDevice, vec![]), 0);
    assert!(world.running.is_empty());
    world.tell(&R::SetVringEnable(state(0, 1)), vec![]);
    world.tell(&R::SetVringKick(ring(0)), vec![token(1)]);
    assert!(world.running.is_empty(), "its size and place are forgotten");
    world.describe_ring(0);
    assert_eq!(world.running.len(), 1);
}

#[test]
fn configuration_changes_are_told_where_the_front_end_listens() {
    let mut world = World::two_rings();
    let offer = offer();
    assert_eq!(world.session.step(&offer, Event::ConfigChanged), []);
    world.tell(&R::SetBackendReqFd, vec![token(42)]);
    let header = Header { request: 2, flags: 1, size: 0 }.to_bytes().to_vec();
    let expected = [Action::SendRequest(token(42), header)];
    assert_eq!(world.session.step(&offer, Event::ConfigChanged), expected);
}

/// A request that a front end could send, mostly sensible.
fn request() -> impl Strategy<Value = (R, usize)> {
    let index = || prop_oneof![20 => 0..3u32, 1 => Just(3), 1 => any::<u32>()];
    let pair = move || (index(), 0..3u32).prop_map(|(i, n)| state(i, n));
    let fd = || (0..4u8, any::<bool>()).prop_map(|(index, has_fd)| VringFd { index, has_fd });
    let features = prop::sample::select(
        &[
            0,
            FEATURE_PROTOCOL_FEATURES,
            FEATURE_LOG_ALL,
            FEATURE_LOG_ALL | FEATURE_PROTOCOL_FEATURES,
        ][..],
    );
    let bits =
        prop::sample::select(&[0, u64::MAX, 0xb22b | protocol::MTU, protocol::REPLY_ACK][..]);
    let record = || {
        (1..4u16, 1..300u16).prop_map(|(queues, queue_size)| InflightArea {
            area: Area { size: 4096, offset: 0 },
            queues,
            queue_size,
        })
    };
    prop_oneof![
        1 => Just((R::GetFeatures, 0)),
        3 => features.prop_map(|f| (R::SetFeatures(FEATURES | f), 0)),
        2 => bits.prop_map(|b| (R::SetProtocolFeatures(b), 0)),
        1 => prop::collection::vec(0..9u64, 0..4).prop_map(|r| {
            let n = r.len();
            (R::SetMemTable(r.into_iter().map(region).collect()), n)
        }),
        2 => (0..9u64).prop_map(|n| (R::AddMemReg(region(n)), 1)),
        1 => (0..9u64).prop_map(|n| (R::RemMemReg(region(n)), 0)),
        1 => Just((R::SetLogBase(Area { size: 4096, offset: 0 }), 1)),
        3 => (index(), 0..10u32).prop_map(|(i, n)| (R::SetVringNum(state(i, 1 << n)), 0)),
        3 => (index(), 0..9u64, 0..2u32).prop_map(|(i, a, f)| (R::SetVringAddr(addr(i, a << 16, f)), 0)),
        1 => (index(), 0..70000u32).prop_map(|(i, n)| (R::SetVringBase(state(i, n)), 0)),
        2 => pair().prop_map(|s| (R::GetVringBase(s), 0)),
        4 => fd().prop_map(|r| (R::SetVringKick(r), usize::from(r.has_fd))),
        2 => fd().prop_map(|r| (R::SetVringCall(r), usize::from(r.has_fd))),
        1 => fd().prop_map(|r| (R::SetVringErr(r), usize::from(r.has_fd))),
        5 => pair().prop_map(|s| (R::SetVringEnable(s), 0)),
        1 => record().prop_map(|r| (R::GetInflightFd(r), 0)),
        1 => record().prop_map(|r| (R::SetInflightFd(r), 1)),
        1 => Just((R::ResetDevice, 0)),
        1 => Just((R::SetBackendReqFd, 1)),
        1 => Just((R::SetLogFd, 1)),
        1 => Just((R::NetSetMtu(1500), 0)),
        1 => Just((R::SetStatus(0), 0)),
        1 => (0..40u32).prop_map(|offset| {
            (R::SetConfig(Config { offset, flags: 0, bytes: vec![1] }), 0)
        }),
        1 => (0..400u32, 0..257usize).prop_map(|(offset, n)| {
            (R::GetConfig(Config { offset, flags: 0, bytes: vec![0; n] }), 0)
        }),
    ]
}

/// Whether a request has a reply of its own.
fn is_answered(request: &R) -> bool {
    matches!(
        request,
        R::GetFeatures
            | R::GetVringBase(_)
            | R::GetInflightFd(_)
            | R::GetConfig(_)
            | R::SetLogBase(_)
    )
}

fn config() -> ProptestConfig {
    ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() }
}

type Talk = Vec<((R, usize), bool, bool)>;

fn talk() -> impl Strategy<Value = Talk> {
    // Nearly always with an acknowledgement, or the first refusal would end the session.
    let each = (request(), prop::bool::weighted(0.97), prop::bool::weighted(0.1));
    prop::collection::vec(each, 1..80)
}

/// Two rings run, a third does not, and there is room for memory between.
fn opened() -> World {
    World::two_rings()
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn every_request_has_exactly_the_replies_it_asks_for(talk in talk()) {
        let mut world = opened();
        for ((request, fds), need_reply, _) in talk {
            world.request(&request, need_reply, (0..fds as u32).map(token).collect());
            world.settle();
            let replies = std::mem::take(&mut world.sent).len();
            if world.ended.is_some() {
                prop_assert_eq!(replies, 0);
                return Ok(());
            }
            // What was negotiated when the request was done with decides.
            let acks = world.session.protocol & protocol::REPLY_ACK != 0;
            let expected = is_answered(&request) || need_reply && acks;
            prop_assert_eq!(replies, usize::from(expected), "{:?}", request);
            prop_assert!(world.session.wants_message());
        }
    }

    #[test]
    fn a_successor_goes_on_as_if_nothing_had_happened(talk in talk(), in_the_middle in any::<bool>()) {
        let (mut straight, mut moved) = (opened(), opened());
        for ((request, fds), need_reply, hand_over) in talk {
            for world in [&mut straight, &mut moved] {
                world.request(&request, need_reply, (0..fds as u32).map(token).collect());
            }
            straight.settle();
            if hand_over && in_the_middle {
                moved.hand_over();
            }
            moved.settle();
            if hand_over && moved.ended.is_none() {
                moved.hand_over();
                moved.settle();
            }
            prop_assert_eq!(&straight.sent, &moved.sent);
            // Whether the used ring is logged is in `logs`; the setup has what was said when the ring started.
            for world in [&mut straight, &mut moved] {
                world.running.values_mut().for_each(|setup| setup.addr.flags = 0);
            }
            prop_assert_eq!(&straight.running, &moved.running);
            prop_assert_eq!(&straight.logs, &moved.logs);
            prop_assert_eq!(&straight.ended, &moved.ended);
            prop_assert_eq!(straight.session.wants_message(), moved.session.wants_message());
            if straight.ended.is_some() {
                return Ok(());
            }
        }
    }

    #[test]
    fn no_descriptor_is_kept_that_nothing_refers_to(talk in talk()) {
        let mut world = opened();
        let mut given = Vec::new();
        for ((request, fds), need_reply, extra) in talk {
            let fds: Vec<Token> = (0..fds as u32 + u32::from(extra)).map(token).collect();
            given.extend(fds.clone());
            world.request(&request, need_reply, fds);
            world.settle();
            if world.ended.is_some() {
                break;
            }
        }
        let saved = if world.ended.is_none() {
            world.feed(Event::Suspend);
            world.settle();
            world.session.save().map(|(_, fds)| fds)
        } else {
            None
        };
        // What is held is what would be handed over, each once, and what the rings use.
        let held = saved.unwrap_or_default();
        drop(world);
        for fd in &given {
            let known = held.iter().filter(|h| Arc::ptr_eq(h, fd)).count();
            prop_assert_eq!(Arc::strong_count(fd), 1 + known);
        }
    }

    #[test]
    fn any_bytes_at_any_time(data in prop::collection::vec(any::<u8>(), 0..400)) {
        fuzz::session(&data);
        fuzz::codec(&data);
        fuzz::session_state(&data);
    }
}

#[test]
fn any_bytes_in_quantity() {
    let mut x = 0x853c_49e6_748f_ea9bu64;
    let mut next = move || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x
    };
    for _ in 0..5000 {
        let len = (next() % 500) as usize;
        let small = next() % 2 == 0;
        let data: Vec<u8> =
            (0..len).map(|_| if small { (next() % 40) as u8 } else { next() as u8 }).collect();
        fuzz::session(&data);
        fuzz::session_state(&data);
        let mut message = data;
        if message.len() > HEADER_LEN {
            // A good header, so that the payload is looked at.
            let request = u32::from(message[0]) % 46;
            let size = (message.len() - HEADER_LEN) as u32;
            message[..HEADER_LEN].copy_from_slice(&Header { request, flags: 1, size }.to_bytes());
        }
        fuzz::codec(&message);
    }
}
