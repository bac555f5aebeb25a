//! The ring against the model driver: nothing lost, nothing doubled, whatever the order, the shape or the crash.

use super::model::{BASE, Buffer, Device, Driver, Plan, REGION, log, record};
use super::*;
use crate::failpoint::{Point, simulated};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

const BOTH: u64 = FEATURE_EVENT_IDX | FEATURE_INDIRECT;

fn simple(readable: u32, writable: u32) -> Plan {
    let buffers =
        vec![Buffer { len: readable, write: false }, Buffer { len: writable, write: true }];
    Plan { buffers, indirect: false, direct: 0 }
}

fn plan() -> impl Strategy<Value = Plan> {
    let lens = || prop::collection::vec(prop_oneof![Just(0), 1..80u32, Just(3000)], 0..5);
    (lens(), lens(), any::<bool>(), 0..4usize).prop_map(|(read, write, indirect, direct)| {
        let buffer = |write| move |len| Buffer { len, write };
        let mut buffers: Vec<_> = read.into_iter().map(buffer(false)).collect();
        buffers.extend(write.into_iter().map(buffer(true)));
        if buffers.is_empty() {
            buffers.push(Buffer { len: 1, write: true });
        }
        Plan { buffers, indirect, direct }
    })
}

#[derive(Debug, Clone)]
enum Op {
    Add(Plan),
    Take(usize),
    GiveBack(usize),
    Complete(usize),
    Publish,
    Reap,
    UsedEvent(u16),
    Suppress(bool),
    Kicks(bool),
    Crash(Point, u32),
    Restart,
}

fn op(crashes: bool) -> BoxedStrategy<Op> {
    let orderly = prop_oneof![
        8 => plan().prop_map(Op::Add),
        5 => (1..9usize).prop_map(Op::Take),
        1 => (0..4usize).prop_map(Op::GiveBack),
        6 => any::<usize>().prop_map(Op::Complete),
        4 => Just(Op::Publish),
        3 => Just(Op::Reap),
        1 => any::<u16>().prop_map(Op::UsedEvent),
        1 => any::<bool>().prop_map(Op::Suppress),
        1 => any::<bool>().prop_map(Op::Kicks),
    ];
    if !crashes {
        return orderly.boxed();
    }
    prop_oneof![
        30 => orderly,
        2 => (prop::sample::select(&Point::RING[..]), 1..6u32)
            .prop_map(|(point, count)| Op::Crash(point, count)),
        1 => Just(Op::Restart),
    ]
    .boxed()
}

/// What the device and the driver did, for the final count.
#[derive(Debug, Default)]
struct Tally {
    added: BTreeSet<u64>,
    carried_out: BTreeSet<u64>,
    used: Vec<u64>,
}

/// Does one operation that may unwind in the middle.
fn apply(op: &Op, driver: &mut Driver, device: &mut Device, tally: &mut Tally) {
    match op {
        Op::Add(plan) => {
            let before = driver.available;
            if let Some(id) = driver.add(plan) {
                tally.added.insert(id);
                assert!(device.queue.has_work());
                let _ = driver.must_kick(before);
            }
        }
        Op::Take(max) => {
            let ids = device.take(driver, *max);
            tally.carried_out.extend(ids);
        }
        Op::GiveBack(n) => {
            let n = *n;
            let give = n.min(device.batch.len());
            // Only the tail of the last batch, and only if none of it was completed.
            let tail: Vec<u16> =
                device.batch.chains(&driver.memory).map(|c| c.head()).collect::<Vec<_>>()
                    [device.batch.len() - give..]
                    .to_vec();
            let end = device.pending.len();
            let untouched = end >= give
                && device.pending[end - give..].iter().map(|p| p.0).eq(tail.iter().copied());
            if untouched {
                device.queue.give_back(&mut device.batch, give);
                device.pending.truncate(end - give);
            }
        }
        Op::Complete(which) => {
            if !device.pending.is_empty() {
                device.complete(which % device.pending.len());
                // A batch of which something is completed cannot be given back.
                device.batch.taken = 0;
            }
        }
        Op::Publish => {
            let _ = device.queue.publish();
        }
        Op::Reap => tally.used.extend(driver.reap()),
        Op::UsedEvent(event) if driver.features & FEATURE_EVENT_IDX != 0 => {
            driver.set_used_event(*event);
        }
        Op::Suppress(suppress) => driver.suppress_calls(*suppress),
        Op::Kicks(false) => device.queue.kicks_off(),
        Op::Kicks(true) => {
            let more = device.queue.kicks_on();
            assert_eq!(more, device.queue.has_work());
        }
        Op::UsedEvent(_) | Op::Crash(..) | Op::Restart => {}
    }
}

/// Answers everything that is left and checks the count.
fn finish(driver: &mut Driver, device: &mut Device, tally: &mut Tally) {
    loop {
        let taken = device.take(driver, 8);
        tally.carried_out.extend(&taken);
        let nothing_pending = device.pending.is_empty();
        device.complete_all();
        let _ = device.queue.publish();
        tally.used.extend(driver.reap());
        if taken.is_empty() && nothing_pending {
            break;
        }
    }
    assert!(driver.owned.is_empty(), "lost: {:?}", driver.owned);
    let used: BTreeSet<u64> = tally.used.iter().copied().collect();
    assert_eq!(used.len(), tally.used.len(), "used twice");
    assert_eq!(used, tally.added, "used is what was added");
    assert!(used.is_subset(&tally.carried_out), "used without being carried out");
    assert_eq!(device.queue.state().outstanding, 0);
}

fn config() -> ProptestConfig {
    ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn nothing_is_lost_or_doubled(
        size in prop::sample::select(&[1u16, 2, 8, 64][..]),
        features in prop::sample::select(&[0, FEATURE_EVENT_IDX, FEATURE_INDIRECT, BOTH][..]),
        start in prop_oneof![Just(0u16), Just(65530), any::<u16>()],
        with_record in any::<bool>(),
        ops in prop::collection::vec(op(false), 1..80),
    ) {
        let mut driver = Driver::new(size, features, start);
        let mut setup = driver.setup(start);
        setup.inflight = with_record.then(|| record(1, size).queue(0).unwrap());
        let mut device = Device::new(&driver, setup);
        let mut tally = Tally::default();
        for op in &ops {
            apply(op, &mut driver, &mut device, &mut tally);
        }
        finish(&mut driver, &mut device, &mut tally);
    }

    #[test]
    fn a_crash_at_any_point_loses_and_doubles_nothing(
        size in prop::sample::select(&[1u16, 2, 8, 64][..]),
        features in prop::sample::select(&[0, BOTH][..]),
        start in prop_oneof![Just(0u16), Just(65530), any::<u16>()],
        wrong_base in any::<u16>(),
        ops in prop::collection::vec(op(true), 1..120),
    ) {
        let mut driver = Driver::new(size, features, start);
        let map = record(2, size);
        // The front end guesses a base; after the first time it does not matter.
        let setup = |driver: &Driver, base| QueueSetup { inflight: map.queue(1), ..driver.setup(base) };
        let mut device = Device::new(&driver, setup(&driver, start));
        let mut tally = Tally::default();
        for op in &ops {
            if let Op::Crash(point, count) = op {
                simulated::arm(*point, *count);
                continue;
            }
            let run = AssertUnwindSafe(|| apply(op, &mut driver, &mut device, &mut tally));
            match catch_unwind(run) {
                Ok(()) if !matches!(op, Op::Restart) => {}
                Ok(()) => device = Device::new(&driver, setup(&driver, wrong_base)),
                Err(payload) if payload.is::<simulated::Crash>() => {
                    device = Device::new(&driver, setup(&driver, wrong_base));
                }
                Err(payload) => std::panic::resume_unwind(payload),
            }
        }
        simulated::disarm();
        finish(&mut driver, &mut device, &mut tally);
    }

    #[test]
    fn calls_are_exactly_those_the_driver_asked_for(
        start in any::<u16>(),
        batches in prop::collection::vec((1..8usize, any::<u16>(), any::<bool>()), 1..60),
        event_idx in any::<bool>(),
    ) {
        let features = if event_idx { FEATURE_EVENT_IDX } else { 0 };
        let mut driver = Driver::new(16, features, start);
        let mut device = Device::new(&driver, driver.setup(start));
        let mut first = true;
        for (n, event, near) in batches {
            for _ in 0..n {
                driver.add(&simple(1, 1)).unwrap();
            }
            let before = driver.used;
            let event = if near { before.wrapping_add(event % 10) } else { event };
            let after = before.wrapping_add(n as u16);
            let wanted = if event_idx {
                driver.set_used_event(event);
                (0..n as u16).any(|i| before.wrapping_add(i) == event)
            } else {
                driver.suppress_calls(event % 2 == 1);
                event % 2 == 0
            };
            prop_assert_eq!(device.take(&driver, 8).len(), n);
            device.complete_all();
            prop_assert_eq!(device.queue.publish(), wanted || first);
            first = false;
            prop_assert_eq!(driver.reap().len(), n);
            prop_assert_eq!(driver.used, after);
        }
    }

    #[test]
    fn garbage_never_panics_nor_reads_outside(data in prop::collection::vec(any::<u8>(), 0..600)) {
        fuzz::ring(&data);
    }
}

/// A queue with one chain that the test spoils.
fn one_chain(spoil: impl FnOnce(&Driver)) -> RingError {
    let mut driver = Driver::new(8, BOTH, 0);
    driver.add(&simple(16, 16)).unwrap();
    spoil(&driver);
    let mut device = Device::new(&driver, driver.setup(0));
    let error = device.queue.take(8, &mut device.batch).unwrap_err();
    assert!(device.batch.is_empty());
    // The queue stays broken, and says why.
    assert_eq!(device.queue.take(8, &mut device.batch), Err(error));
    error
}

fn descriptor(driver: &Driver, index: u64, addr: u64, len: u32, flags: u16, next: u16) {
    let at = driver.layout().descriptors + 16 * index;
    driver.put(at, &addr.to_le_bytes());
    driver.put(at + 8, &len.to_le_bytes());
    driver.put(at + 12, &flags.to_le_bytes());
    driver.put(at + 14, &next.to_le_bytes());
}

#[test]
fn each_broken_rule_has_its_error() {
    let buffer = BASE + 0x60000;
    let error = one_chain(|d| d.put(d.layout().available + 2, &9u16.to_le_bytes()));
    assert!(matches!(error, RingError::AvailableIndex { ahead: 9, .. }), "{error}");
    let error = one_chain(|d| d.put(d.layout().available + 4, &8u16.to_le_bytes()));
    assert_eq!(error, RingError::DescriptorIndex { index: 8, size: 8 });
    let error = one_chain(|d| descriptor(d, 0, buffer, 4, 1, 0));
    assert_eq!(error, RingError::ChainLength { head: 0 });
    let error = one_chain(|d| descriptor(d, 0, buffer, 4, 1, 8));
    assert_eq!(error, RingError::DescriptorIndex { index: 8, size: 8 });
    let error = one_chain(|d| {
        descriptor(d, 0, buffer, 4, 3, 1);
        descriptor(d, 1, buffer, 4, 0, 0);
    });
    assert_eq!(error, RingError::Order { head: 0 });
    for (addr, len) in [(BASE - 1, 4), (BASE + 2 * REGION - 3, 4), (u64::MAX - 1, 2), (u64::MAX, 1)]
    {
        let error = one_chain(|d| descriptor(d, 0, addr, len, 0, 0));
        assert_eq!(error, RingError::Address { head: 0, addr, len });
    }
    let error = one_chain(|d| descriptor(d, 0, buffer, 32, 4 | 1, 1));
    assert_eq!(error, RingError::Indirect { head: 0 });
    for len in [0, 15, 24, 16 * 1025] {
        let error = one_chain(|d| descriptor(d, 0, buffer, len, 4, 0));
        assert_eq!(error, RingError::IndirectLength { head: 0, len });
    }
    // An indirect table that has one: the table is the descriptor table itself.
    let error = one_chain(|d| descriptor(d, 0, d.layout().descriptors, 16, 4, 0));
    assert_eq!(error, RingError::Indirect { head: 0 });
    // Two entries that point to each other.
    let error = one_chain(|d| {
        descriptor(d, 4, buffer, 1, 1, 1);
        descriptor(d, 5, buffer, 1, 1, 0);
        descriptor(d, 0, d.layout().descriptors + 64, 32, 4, 0);
    });
    assert_eq!(error, RingError::ChainLength { head: 0 });
    let error = one_chain(|d| {
        descriptor(d, 4, buffer, 1, 1, 2);
        descriptor(d, 0, d.layout().descriptors + 64, 32, 4, 0);
    });
    assert_eq!(error, RingError::DescriptorIndex { index: 2, size: 2 });
}

#[test]
fn good_chains_before_a_bad_one_are_not_given_out() {
    let mut driver = Driver::new(8, 0, 0);
    driver.add(&simple(4, 4)).unwrap();
    driver.add(&simple(4, 4)).unwrap();
    descriptor(&driver, 2, u64::MAX, 4, 0, 0);
    let map = record(1, 8);
    let setup = QueueSetup { inflight: map.queue(0), ..driver.setup(0) };
    let mut device = Device::new(&driver, setup);
    device.queue.take(8, &mut device.batch).unwrap_err();
    assert!(device.batch.is_empty() && device.queue.outstanding() == 0);
    let setup = QueueSetup { inflight: map.queue(0), ..driver.setup(0) };
    assert_eq!(Device::new(&driver, setup).queue.recovered(), 0);
}

#[test]
fn a_driver_that_does_not_wait_for_its_answers_is_stopped() {
    let mut driver = Driver::new(4, 0, 0);
    for _ in 0..2 {
        driver.add(&simple(1, 1)).unwrap();
    }
    let mut device = Device::new(&driver, driver.setup(0));
    device.take(&driver, 8);
    device.complete_all();
    // Two are completed and not published: three more cannot be available in a queue of four.
    driver.put(driver.layout().available + 2, &5u16.to_le_bytes());
    let error = device.queue.take(8, &mut device.batch).unwrap_err();
    assert!(matches!(error, RingError::AvailableIndex { outstanding: 2, ahead: 3, .. }), "{error}");
}

#[test]
fn areas_must_be_inside_one_region_and_aligned() {
    let driver = Driver::new(8, BOTH, 0);
    let try_with = |change: &dyn Fn(&mut QueueLayout)| {
        let mut setup = driver.setup(0);
        change(&mut setup.layout);
        SplitQueue::new(Arc::clone(&driver.memory), setup).unwrap_err()
    };
    let edge = BASE + REGION;
    assert_eq!(try_with(&|l| l.size = 0), RingError::Size(0));
    assert_eq!(try_with(&|l| l.size = 7), RingError::Size(7));
    assert!(matches!(try_with(&|l| l.descriptors += 8), RingError::Alignment { align: 16, .. }));
    assert!(matches!(try_with(&|l| l.available += 1), RingError::Alignment { align: 2, .. }));
    assert!(matches!(try_with(&|l| l.used += 2), RingError::Alignment { align: 4, .. }));
    assert!(matches!(try_with(&|l| l.descriptors = edge - 16 * 7), RingError::Area { .. }));
    assert!(matches!(try_with(&|l| l.available = edge - 20), RingError::Area { .. }));
    assert!(matches!(try_with(&|l| l.used = edge - 68), RingError::Area { .. }));
    assert!(matches!(try_with(&|l| l.used = u64::MAX - 3), RingError::Area { .. }));
}

#[test]
fn a_batch_without_room_leaves_the_rest_for_the_next() {
    let mut driver = Driver::new(64, 0, 0);
    let long =
        Plan { buffers: vec![Buffer { len: 1, write: true }; 10], indirect: false, direct: 0 };
    for _ in 0..6 {
        driver.add(&long).unwrap();
    }
    let mut device = Device::new(&driver, driver.setup(0));
    let room = device.batch.segments.len();
    device.batch.segments = std::mem::take(&mut device.batch.segments)[..25].into();
    let mut seen = Vec::new();
    while device.queue.has_work() {
        let ids = device.take(&driver, 8);
        assert_eq!(ids.len(), 2, "of {room} segments 25 are left: room for two chains of ten");
        seen.extend(ids);
    }
    device.complete_all();
    let _ = device.queue.publish();
    assert_eq!(seen, driver.reap());
}

#[test]
fn a_batch_read_with_another_memory_is_empty() {
    let mut driver = Driver::new(8, 0, 0);
    driver.add(&simple(4, 4)).unwrap();
    let mut device = Device::new(&driver, driver.setup(0));
    device.take(&driver, 8);
    let other = model::memory();
    assert_eq!(device.batch.chains(&other).len(), 0);
    assert!(device.batch.chain(&other, 0).is_none());
    assert!(device.batch.chain(&driver.memory, 0).is_some());
}

#[test]
fn armed_kicks_are_asked_for_and_a_late_chain_is_seen() {
    for features in [0, FEATURE_EVENT_IDX] {
        let mut driver = Driver::new(8, features, 65534);
        let mut device = Device::new(&driver, driver.setup(65534));
        device.queue.kicks_off();
        let before = driver.available;
        driver.add(&simple(1, 1)).unwrap();
        // An event that was passed once is not asked for again until the index has wrapped.
        assert!(features != 0 || !driver.must_kick(before));
        assert!(device.queue.kicks_on(), "it came before the kick was asked for");
        device.take(&driver, 8);
        assert!(!device.queue.kicks_on());
        let before = driver.available;
        driver.add(&simple(1, 1)).unwrap();
        assert!(driver.must_kick(before));
    }
}

#[test]
fn writes_are_logged_where_they_were_made() {
    let mut driver = Driver::new(8, FEATURE_INDIRECT, 0);
    let plan = Plan {
        buffers: vec![
            Buffer { len: 3000, write: false },
            Buffer { len: 5000, write: true },
            Buffer { len: 3000, write: true },
        ],
        indirect: true,
        direct: 1,
    };
    driver.add(&plan).unwrap();
    let (log, file) = log();
    let mut device = Device::new(&driver, driver.setup(0));
    device.take(&driver, 8);
    // Turned on while the request is in flight: its answer is logged all the same.
    device.queue.set_log(Some(log));
    device.complete_all();
    assert!(file.pages().contains(&(driver.layout().used / 4096)));
    let _ = device.queue.publish();
    let buffers = (BASE + 0x50000 + 3000)..(BASE + 0x50000 + 11000);
    let mut expected: BTreeSet<u64> = (buffers.start / 4096..=(buffers.end - 1) / 4096).collect();
    expected.insert(driver.layout().used / 4096);
    assert_eq!(file.pages(), expected.into_iter().collect::<Vec<_>>());
    driver.reap();
}

#[test]
fn a_front_end_that_shrinks_its_memory_gets_an_error_and_no_crash() {
    use crate::memory::{GuestMemory, RegionDescriptor};
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use std::os::fd::AsFd;
    let file = memfd_create("shrinks", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, 1 << 20).unwrap();
    let region = RegionDescriptor { guest_addr: BASE, size: 1 << 20, user_addr: 0, mmap_offset: 0 };
    let options = model::unsealed_options();
    let memory = GuestMemory::map(&[(region, file.as_fd())], &options).unwrap();
    let driver = Driver::new(8, 0, 0);
    let mut queue = SplitQueue::new(Arc::clone(&memory), driver.setup(0)).unwrap();
    let mut batch = Batch::new(8);
    assert_eq!(queue.take(8, &mut batch), Ok(0));
    ftruncate(&file, 0).unwrap();
    let _ = queue.take(8, &mut batch);
    assert_eq!(queue.take(8, &mut batch), Err(RingError::MemoryGone));
}

#[test]
fn garbage_of_any_kind_in_quantity() {
    // Longer than proptest's, and the same every time.
    let mut x = 0x2545_f491_4f6c_dd1du64;
    let mut next = move || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x
    };
    for _ in 0..3000 {
        let len = (next() % 700) as usize;
        let small = next() % 2 == 0;
        let data: Vec<u8> =
            (0..len).map(|_| if small { (next() % 9) as u8 } else { next() as u8 }).collect();
        fuzz::ring(&data);
    }
}

fn eventfd() -> SharedFd {
    use rustix::event::{EventfdFlags, eventfd};
    // Blocking, as a front end might make it.
    Arc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap())
}

fn count(fd: &SharedFd) -> u64 {
    let mut bytes = [0; 8];
    match rustix::io::read(fd, &mut bytes) {
        Ok(8) => u64::from_ne_bytes(bytes),
        _ => 0,
    }
}

#[test]
fn a_driver_is_called_when_its_ring_starts_and_when_its_call_moves() {
    let mut driver = Driver::new(8, 0, 0);
    let call = eventfd();
    let notifiers = Notifiers { call: Some(Arc::clone(&call)), ..Notifiers::default() };
    let mut device = Device::new(&driver, QueueSetup { notifiers, ..driver.setup(0) });
    assert_eq!(count(&call), 1);
    driver.add(&simple(1, 1)).unwrap();
    device.take(&driver, 8);
    device.complete_all();
    assert!(device.queue.publish());
    device.queue.signal();
    assert_eq!(count(&call), 1);
    let other = eventfd();
    device.queue.set_call(Some(Arc::clone(&other)));
    assert_eq!((count(&call), count(&other)), (0, 1));
    // A counter that is full does not block.
    rustix::io::write(&other, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    device.queue.signal();
    assert_eq!(count(&other), u64::MAX - 1);
}

#[test]
fn a_descriptor_that_could_block_is_no_notifier() {
    let driver = Driver::new(8, 0, 0);
    let (pipe, _write) = rustix::pipe::pipe().unwrap();
    let pipe = Some(Arc::new(pipe));
    let notifiers = Notifiers { kick: pipe.clone(), ..Notifiers::default() };
    let setup = QueueSetup { notifiers, ..driver.setup(0) };
    let error = SplitQueue::new(Arc::clone(&driver.memory), setup).unwrap_err();
    assert_eq!(error, RingError::Notifier("kick"));
    let mut device = Device::new(&driver, driver.setup(0));
    device.queue.set_call(pipe);
    let error = device.queue.take(8, &mut device.batch).unwrap_err();
    assert_eq!(error, RingError::Notifier("call"));
}

#[test]
fn a_queue_that_travels_goes_on_where_it_was() {
    use bixi_api::state::{Declared, Movable};
    let mut driver = Driver::new(8, BOTH, 65534);
    let map = record(1, 8);
    let setup = QueueSetup { inflight: map.queue(0), ..driver.setup(65534) };
    let mut device = Device::new(&driver, setup);
    for _ in 0..4 {
        driver.add(&simple(4, 4)).unwrap();
    }
    assert_eq!(device.take(&driver, 3), [1, 2, 3]);
    device.complete(1);
    let _ = device.queue.publish();
    let Declared::State(payload) = device.queue.declare() else { panic!() };
    let state: QueueState = payload.read("split-queue", 1).unwrap();
    assert_eq!((state.last_available, state.last_used, state.outstanding), (1, 65535, 2));
    assert_eq!(
        QueueSetup::restore(&state, Notifiers::default(), None, None).unwrap_err(),
        RingError::State
    );
    let setup = QueueSetup::restore(&state, Notifiers::default(), map.queue(0), None).unwrap();
    let mut next = Device::new(&driver, setup);
    assert_eq!(next.take(&driver, 8), [1, 3]);
    assert_eq!(next.take(&driver, 8), [4]);
    next.complete_all();
    let _ = next.queue.publish();
    assert_eq!(driver.reap(), [2, 1, 3, 4]);
    // Without a record, what is in flight cannot travel.
    let mut device = Device::new(&driver, driver.setup(next.queue.state().last_available as u16));
    driver.add(&simple(4, 4)).unwrap();
    assert!(matches!(device.queue.declare(), Declared::State(_)));
    device.take(&driver, 8);
    assert!(matches!(device.queue.declare(), Declared::NotMovable(_)));
}
