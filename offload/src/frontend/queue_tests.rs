//! The driver's side of a ring against the device's, without a session between them.

use super::*;
use crate::ring::{
    Batch, FEATURE_EVENT_IDX, FEATURE_INDIRECT, FEATURE_VERSION_1, Notifiers, QueueLayout,
    QueueSetup, SplitQueue,
};
use proptest::prelude::*;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

fn device(queue: &DriverQueue, features: u64) -> SplitQueue {
    let ring = queue.ring();
    let layout = QueueLayout {
        size: ring.size,
        descriptors: ring.desc,
        available: ring.avail,
        used: ring.used,
    };
    let notifiers = Notifiers {
        kick: Some(queue.fds().kick.clone()),
        call: Some(queue.fds().call.clone()),
        error: None,
        own: false,
    };
    let setup = QueueSetup { layout, features, base: 0, notifiers, inflight: None, log: None };
    SplitQueue::new(Arc::clone(queue.memory()), setup).unwrap()
}

fn pair(size: u16, features: u64) -> (GuestArena, DriverQueue, SplitQueue) {
    let mut arena = GuestArena::new(0x10_0000, 8 << 20, Backing::Unsealed).unwrap();
    let mut queue = DriverQueue::new(&mut arena, 0, size, features).unwrap();
    queue.make_tables(&mut arena).unwrap();
    let device = device(&queue, features);
    (arena, queue, device)
}

const FEATURES: u64 = FEATURE_VERSION_1 | FEATURE_INDIRECT | FEATURE_EVENT_IDX;

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Chains of any shape arrive as they were sent, and come back in any order.
    #[test]
    fn chains_arrive_and_return(
        chains in proptest::collection::vec((1usize..6, any::<u8>(), any::<bool>()), 1..200),
        features in prop_oneof![Just(FEATURES), Just(FEATURES & !FEATURE_EVENT_IDX)],
    ) {
        let (mut arena, mut queue, mut device) = pair(32, features);
        let space = arena.allocate(1 << 16, 64).unwrap();
        let mut expected = HashMap::new();
        let mut batch = Batch::new(32);
        let memory = Arc::clone(device.memory());
        let mut waiting = chains.iter().peekable();
        let mut returned = 0;
        while returned < chains.len() {
            while let Some((count, split, indirect)) = waiting.peek() {
                let buffers: Vec<_> = (0..*count)
                    .map(|at| Buffer {
                        addr: space + at as u64 * 64,
                        len: 1 + u32::from(*split) % 64,
                        writable: at >= usize::from(*split) % (count + 1),
                    })
                    .collect();
                let head = if *indirect { queue.add_indirect(&buffers) } else { queue.add(&buffers) };
                let Some(head) = head else { break };
                expected.insert(head, buffers);
                waiting.next();
            }
            queue.submit();
            let taken = device.take(32, &mut batch).unwrap();
            prop_assert!(taken > 0);
            let mut heads = Vec::new();
            for chain in batch.chains(&memory) {
                let told = |writable| {
                    let buffers = expected[&chain.head()].iter();
                    let sizes = buffers.filter(move |buffer| buffer.writable == writable);
                    sizes.map(|buffer| buffer.len as usize).sum::<usize>()
                };
                prop_assert_eq!(chain.readable().len(), told(false));
                prop_assert_eq!(chain.writable().len(), told(true));
                heads.push(chain.head());
            }
            for head in heads.iter().rev() {
                device.complete(*head, u32::from(*head));
            }
            if device.publish() {
                device.signal();
            }
            let mut back = Vec::new();
            queue.take_all(|used| back.push((used.head, used.len))).unwrap();
            let sent: Vec<_> = heads.iter().rev().map(|head| (*head, u32::from(*head))).collect();
            prop_assert_eq!(&back, &sent);
            returned += back.len();
            for (head, _) in back {
                expected.remove(&head);
            }
        }
        prop_assert_eq!(queue.free(), 32);
    }
}

#[test]
fn prepared_chains_come_round_again() {
    let (mut arena, mut queue, mut device) = pair(64, FEATURES);
    let space = arena.allocate(4096, 64).unwrap();
    let heads: Vec<_> = (0..16)
        .map(|_| {
            queue.prepare(&[Buffer::readable(space, 16), Buffer::writable(space, 512)]).unwrap()
        })
        .collect();
    let mut batch = Batch::new(64);
    let memory = Arc::clone(device.memory());
    for _ in 0..10_000 {
        heads.iter().for_each(|head| queue.push(*head));
        queue.submit();
        assert_eq!(device.take(64, &mut batch).unwrap(), 16);
        batch.chains(&memory).for_each(|chain| device.complete(chain.head(), 1));
        let _ = device.publish();
        assert_eq!(queue.take_all(|used| assert!(heads.contains(&used.head))), Ok(16));
    }
    heads.iter().for_each(|head| queue.release(*head));
    assert_eq!(queue.free(), 64);
}

/// Neither side misses the other's notification: each sleeps whenever it has nothing to do.
#[test]
fn no_notification_is_lost_between_two_sleepers() {
    for features in [FEATURES, FEATURES & !FEATURE_EVENT_IDX] {
        let (mut arena, mut queue, mut device) = pair(8, features);
        let space = arena.allocate(4096, 64).unwrap();
        const TOTAL: usize = 20_000;
        let thread = std::thread::spawn(move || {
            let mut batch = Batch::new(8);
            let memory = Arc::clone(device.memory());
            let mut done = 0;
            while done < TOTAL {
                let taken = device.take(8, &mut batch).unwrap();
                batch.chains(&memory).for_each(|chain| device.complete(chain.head(), 0));
                done += taken;
                if taken > 0 {
                    if device.publish() {
                        device.signal();
                    }
                } else if !device.kicks_on() {
                    let kick = device.notifiers().kick.clone().unwrap();
                    let timeout = rustix::event::Timespec { tv_sec: 20, tv_nsec: 0 };
                    let mut fds =
                        [rustix::event::PollFd::new(&*kick, rustix::event::PollFlags::IN)];
                    assert_eq!(
                        rustix::event::poll(&mut fds, Some(&timeout)).unwrap(),
                        1,
                        "a kick is lost"
                    );
                    let _ = rustix::io::read(&*kick, &mut [0u8; 8]);
                }
            }
        });
        let (mut sent, mut returned) = (0, 0);
        while returned < TOTAL {
            while sent < TOTAL && queue.add(&[Buffer::writable(space, 8)]).is_some() {
                sent += 1;
            }
            queue.submit();
            assert!(
                queue.wait(Instant::now() + Duration::from_secs(20)).unwrap(),
                "a call is lost"
            );
            returned += queue.take_all(|_| ()).unwrap();
        }
        thread.join().unwrap();
    }
}

#[test]
fn a_device_that_uses_what_it_was_not_given_is_found_out() {
    let (_arena, mut queue, mut device) = pair(8, FEATURES);
    let head = queue.add(&[Buffer::writable(0x10_0000, 8)]).unwrap();
    queue.submit();
    let mut batch = Batch::new(8);
    device.take(8, &mut batch).unwrap();
    device.complete(head, 0);
    let _ = device.publish();
    assert_eq!(queue.take(), Ok(Some(Used { head, len: 0 })));
    // The used ring is the device's to write: the same head again, and one that is out of range.
    for wrong in [u32::from(head), 4000] {
        let used = queue.memory().get(queue.ring().used, 4 + 8 * 8).unwrap();
        assert!(used.write(4 + 8, &wrong.to_le_bytes()) && used.write(2, &2u16.to_le_bytes()));
        assert_eq!(queue.take(), Err(BrokenDevice(wrong)));
    }
}
