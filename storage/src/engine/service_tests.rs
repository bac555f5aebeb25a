//! The service driven through real rings on real files.

use super::super::config::{FEATURE_DISCARD, FEATURE_WRITE_ZEROES};
use super::super::harness::{Asked, Data, Harness};
use super::super::media::{FileMedia, counters};
use super::super::request::STATUS_UNSUPPORTED;
use super::*;
use crate::disk::create::{Progress, Source};
use crate::disk::layer::Access;
use crate::disk::store::Store;
use bixi_offload::frontend::Buffer;
use bixi_offload::ring::{FEATURE_EVENT_IDX, FEATURE_INDIRECT, FEATURE_VERSION_1};
use proptest::prelude::*;
use std::path::Path;
use std::time::{Duration, Instant};

const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const ZEROES: u32 = 13;
const FEATURES: u64 = FEATURE_VERSION_1
    | FEATURE_INDIRECT
    | FEATURE_EVENT_IDX
    | FEATURE_FLUSH
    | FEATURE_DISCARD
    | FEATURE_WRITE_ZEROES;
const SIZE: u64 = 8 << 20;

/// A disk of `size` bytes under `root`, reached as `access` says or as it can be.
fn disk(root: &Path, size: u64, access: Option<Access>) -> Arc<ServedDisk> {
    let store = Store::open(root).unwrap();
    let id = "d-0123456789abcdefghij".parse().unwrap();
    let meta = store.create(&id, &Source::Zero { size }, &Progress::default()).unwrap();
    let mut layer = store.open_layer(&meta).unwrap();
    if let Some(access) = access {
        layer = layer.with_access(access);
    }
    let media = Media::File(FileMedia::new(layer));
    let serial = id.serial();
    Arc::new(ServedDisk { size, serial, read_only: false, media, counters: counters(4) })
}

fn run(harness: &mut Harness, count: usize) {
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut used = 0;
    while used < count {
        harness.turn().unwrap();
        for queue in &mut harness.queues {
            used += queue.take_all(|_| {}).unwrap();
        }
        assert!(Instant::now() < deadline, "{used} of {count} requests answered");
    }
}

/// Runs one request and gives its status and data.
fn one(harness: &mut Harness, kind: u32, sector: u64, data: Data<'_>) -> (u8, Vec<u8>) {
    let asked = harness.ask(0, kind, sector, data).unwrap();
    run(harness, 1);
    answer(harness, &asked)
}

fn answer(harness: &Harness, asked: &Asked) -> (u8, Vec<u8>) {
    (harness.read(asked.status, 1)[0], harness.read(asked.data, asked.length as usize))
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

/// Places for a disk: where the tests run, and in memory.
fn roots() -> Vec<tempfile::TempDir> {
    let here = tempfile::tempdir().unwrap();
    vec![here, tempfile::tempdir_in("/dev/shm").unwrap()]
}

fn accesses() -> [Option<Access>; 4] {
    [
        None,
        Some(Access::Buffered),
        Some(Access::Direct { memory: 512, offset: 512 }),
        Some(Access::Direct { memory: 4096, offset: 4096 }),
    ]
}

#[test]
fn every_kind_of_request_does_what_it_says() {
    for root in roots() {
        let disk = disk(root.path(), SIZE, None);
        let mut h = Harness::new(&disk, 4 << 20, 1, 64, FEATURES).unwrap();
        let text: Vec<u8> = (0..20480).map(|i| (i / 3) as u8 | 1).collect();
        assert_eq!(one(&mut h, WRITE, 3, Data::Out(&text)).0, STATUS_OK);
        assert_eq!(one(&mut h, FLUSH, 0, Data::In(0)).0, STATUS_OK);
        assert!(one(&mut h, READ, 3, Data::In(20480)) == (STATUS_OK, text.clone()));
        assert_eq!(one(&mut h, READ, 0, Data::In(512)), (STATUS_OK, vec![0; 512]));
        let serial = b"0123456789abcdefghij".to_vec();
        assert_eq!(one(&mut h, GET_ID, 0, Data::In(20)), (STATUS_OK, serial.clone()));
        assert_eq!(one(&mut h, GET_ID, 0, Data::In(7)), (STATUS_OK, serial[..7].to_vec()));

        // Ragged on both sides: head and tail sectors outside of the range stay, all inside are zeroes.
        assert_eq!(one(&mut h, ZEROES, 0, Data::Out(&range(5, 30, 0))).0, STATUS_OK);
        let mut expected = text.clone();
        expected[1024..16384].fill(0);
        assert!(one(&mut h, READ, 3, Data::In(20480)) == (STATUS_OK, expected.clone()));
        assert_eq!(one(&mut h, ZEROES, 0, Data::Out(&range(4, 1, 1))).0, STATUS_OK);
        expected[512..1024].fill(0);
        assert!(one(&mut h, READ, 3, Data::In(20480)) == (STATUS_OK, expected.clone()));
        // A discard that covers no whole block changes nothing; what it covers reads as before or as zeroes.
        assert_eq!(one(&mut h, DISCARD, 0, Data::Out(&range(36, 3, 0))).0, STATUS_OK);
        assert!(one(&mut h, READ, 3, Data::In(20480)) == (STATUS_OK, expected.clone()));
        let two = [range(0, 16, 0), range(0, 16, 0)].concat();
        assert_eq!(one(&mut h, DISCARD, 0, Data::Out(&two)).0, STATUS_OK);
        expected[..13 * 512].fill(0);
        assert!(one(&mut h, READ, 3, Data::In(20480)) == (STATUS_OK, expected));

        let seen = disk.statistics();
        assert_eq!((seen.writes, seen.write_bytes, seen.flushes), (1, 20480, 1));
        assert_eq!((seen.reads, seen.discards, seen.errors), (6, 4, 0));
    }
}

#[test]
fn what_makes_no_sense_is_refused_and_harms_nothing() {
    let root = tempfile::tempdir().unwrap();
    let disk = disk(root.path(), SIZE, None);
    let last = SIZE / 512;
    let mut h = Harness::new(&disk, 4 << 20, 1, 64, FEATURES).unwrap();
    let sector = [1u8; 512];
    for (kind, at, data, status) in [
        (READ, last, Data::In(512), STATUS_ERROR),
        (READ, last - 1, Data::In(1024), STATUS_ERROR),
        (READ, u64::MAX, Data::In(512), STATUS_ERROR),
        (READ, u64::MAX / 512, Data::In(1024), STATUS_ERROR),
        (READ, 0, Data::In(511), STATUS_ERROR),
        (READ, 0, Data::In(0), STATUS_OK),
        (READ, last, Data::In(0), STATUS_OK),
        (WRITE, last, Data::Out(&sector), STATUS_ERROR),
        (WRITE, 0, Data::Out(&sector[..100]), STATUS_ERROR),
        (2, 0, Data::In(512), STATUS_UNSUPPORTED),
        (99, 0, Data::In(512), STATUS_UNSUPPORTED),
        (u32::MAX, 0, Data::Out(&sector), STATUS_UNSUPPORTED),
        (DISCARD, 0, Data::Out(&range(last, 1, 0)), STATUS_ERROR),
        (DISCARD, 0, Data::Out(&range(0, 1, 1)), STATUS_UNSUPPORTED),
        (DISCARD, 0, Data::Out(&range(0, 1, 0)[..15]), STATUS_ERROR),
        (DISCARD, 0, Data::Out(&range(0, u32::MAX, 0)), STATUS_ERROR),
        (DISCARD, 0, Data::Out(&range(0, 1, 0).repeat(33)), STATUS_ERROR),
        (DISCARD, 0, Data::Out(&range(0, 0, 0).repeat(32)), STATUS_OK),
        (ZEROES, 0, Data::Out(&range(u64::MAX, 1, 0)), STATUS_ERROR),
        (ZEROES, 0, Data::Out(&range(0, 1, 2)), STATUS_UNSUPPORTED),
        (ZEROES, 0, Data::Out(&[range(0, 1, 0), range(last, 1, 0)].concat()), STATUS_ERROR),
        (ZEROES, 0, Data::In(16), STATUS_ERROR),
    ] {
        assert_eq!(one(&mut h, kind, at, data).0, status, "type {kind} at sector {at}");
    }
    // Shorter than a header; a header only; no room for a status.
    let at = h.allocate(64, 16).unwrap();
    for buffers in [
        vec![Buffer::readable(at, 15), Buffer::writable(at + 32, 1)],
        vec![Buffer::writable(at + 32, 1)],
        vec![Buffer::readable(at, 16)],
    ] {
        h.write(at, &[0; 16]);
        h.write(at + 32, &[0xee]);
        h.queues[0].add(&buffers).unwrap();
        run(&mut h, 1);
        let told = buffers.iter().any(|buffer| buffer.writable);
        assert_eq!(h.read(at + 32, 1), [if told { STATUS_ERROR } else { 0xee }]);
    }
    assert_eq!(one(&mut h, WRITE, 0, Data::Out(&sector)).0, STATUS_OK);
    assert_eq!(one(&mut h, READ, 0, Data::In(512)), (STATUS_OK, sector.to_vec()));
}

#[test]
fn a_read_only_disk_is_read_only_and_features_that_were_not_taken_do_nothing() {
    let root = tempfile::tempdir().unwrap();
    let mut disk = disk(root.path(), SIZE, None);
    Arc::get_mut(&mut disk).unwrap().read_only = true;
    let mut h = Harness::new(&disk, 4 << 20, 1, 64, FEATURES).unwrap();
    assert_eq!(one(&mut h, WRITE, 0, Data::Out(&[1; 512])).0, STATUS_ERROR);
    assert_eq!(one(&mut h, DISCARD, 0, Data::Out(&range(0, 8, 0))).0, STATUS_ERROR);
    assert_eq!(one(&mut h, ZEROES, 0, Data::Out(&range(0, 8, 0))).0, STATUS_ERROR);
    assert_eq!(one(&mut h, READ, 0, Data::In(512)), (STATUS_OK, vec![0; 512]));
    assert_eq!(one(&mut h, FLUSH, 0, Data::In(0)).0, STATUS_OK);
    let mut h = Harness::new(&disk, 4 << 20, 1, 64, FEATURE_VERSION_1).unwrap();
    assert_eq!(one(&mut h, DISCARD, 0, Data::Out(&range(0, 8, 0))).0, STATUS_UNSUPPORTED);
    assert_eq!(one(&mut h, ZEROES, 0, Data::Out(&range(0, 8, 0))).0, STATUS_UNSUPPORTED);
}

/// Cuts `length` bytes into pieces at random and lays them into guest memory, some of them unaligned.
fn cut(h: &mut Harness, length: u32, cuts: &[(u32, u64)], writable: bool) -> Vec<Buffer> {
    let mut left = length;
    let mut buffers = Vec::new();
    for &(part, gap) in cuts.iter().chain([&(u32::MAX, 0)]) {
        let len = part.min(left);
        if len > 0 {
            let addr = h.allocate(u64::from(len) + gap, 1).unwrap() + gap;
            buffers.push(Buffer { addr, len, writable });
        }
        left -= len;
    }
    buffers
}

fn put(h: &Harness, buffers: &[Buffer], mut bytes: &[u8]) {
    for buffer in buffers {
        let (part, rest) = bytes.split_at(buffer.len as usize);
        h.write(buffer.addr, part);
        bytes = rest;
    }
}

fn get(h: &Harness, buffers: &[Buffer]) -> Vec<u8> {
    buffers.iter().flat_map(|buffer| h.read(buffer.addr, buffer.len as usize)).collect()
}

#[derive(Debug, Clone)]
struct Step {
    write: bool,
    sector: u64,
    sectors: u32,
    cuts: Vec<(u32, u64)>,
    indirect: bool,
    fill: u8,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let cuts = prop::collection::vec((1..6000u32, 0..600u64), 0..12);
    let step = (any::<bool>(), 0..2048u64, 0..120u32, cuts, any::<bool>(), any::<u8>());
    let step = step.prop_map(|(write, sector, sectors, cuts, indirect, fill)| Step {
        write,
        sector,
        sectors,
        cuts,
        indirect,
        fill,
    });
    prop::collection::vec(step, 1..24)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Any framing, aligned or not, through any access: the disk is what a vector of bytes would be.
    #[test]
    fn a_disk_is_a_vector_of_bytes(steps in steps(), access in 0..4usize, shm in any::<bool>()) {
        let root = match shm {
            true => tempfile::tempdir_in("/dev/shm").unwrap(),
            false => tempfile::tempdir().unwrap(),
        };
        let access = if shm { None } else { accesses()[access] };
        let disk = disk(root.path(), SIZE, access);
        let mut model = vec![0u8; SIZE as usize];
        let mut h = Harness::new(&disk, 24 << 20, 1, 256, FEATURES).unwrap();
        h.make_tables().unwrap();
        for step in steps {
            let start = step.sector as usize * 512;
            let length = step.sectors * 512;
            let whole = start..start + length as usize;
            let mut header = [0; 16];
            header[0] = u8::from(step.write);
            header[8..].copy_from_slice(&step.sector.to_le_bytes());
            // The header is cut as the data is: with it for a write, and the status with the data for a read.
            let mut buffers;
            let status;
            if step.write {
                let bytes: Vec<u8> = (0..length).map(|i| (i as u8).wrapping_mul(3) ^ step.fill).collect();
                model[whole].copy_from_slice(&bytes);
                buffers = cut(&mut h, 16 + length, &step.cuts, false);
                put(&h, &buffers, &[&header[..], &bytes].concat());
                status = cut(&mut h, 1, &[], true);
                buffers.extend(&status);
                let added = match step.indirect {
                    true => h.queues[0].add_indirect(&buffers),
                    false => h.queues[0].add(&buffers),
                };
                prop_assert!(added.is_some());
                run(&mut h, 1);
                prop_assert_eq!(get(&h, &status), [STATUS_OK]);
            } else {
                buffers = cut(&mut h, 16, &step.cuts, false);
                put(&h, &buffers, &header);
                status = cut(&mut h, length + 1, &step.cuts, true);
                buffers.extend(&status);
                let added = match step.indirect {
                    true => h.queues[0].add_indirect(&buffers),
                    false => h.queues[0].add(&buffers),
                };
                prop_assert!(added.is_some());
                run(&mut h, 1);
                let got = get(&h, &status);
                prop_assert_eq!(got[length as usize], STATUS_OK);
                prop_assert!(got[..length as usize] == model[whole]);
            }
        }
    }
}

#[test]
fn overlapping_writes_in_flight_end_as_the_last_one() {
    let root = tempfile::tempdir().unwrap();
    let disk = disk(root.path(), SIZE, None);
    let mut h = Harness::new(&disk, 16 << 20, 1, 1024, FEATURES).unwrap();
    // Pairs of writes to one place, and a discard between: each waits for the one before.
    let mut asked = Vec::new();
    for block in 0..64u64 {
        let first = vec![1; 8192];
        asked.push(h.ask(0, WRITE, block * 16, Data::Out(&first)).unwrap());
        asked.push(h.ask(0, DISCARD, 0, Data::Out(&range(block * 16, 16, 0))).unwrap());
        let second = vec![block as u8 + 2; 4096];
        asked.push(h.ask(0, WRITE, block * 16 + 3, Data::Out(&second)).unwrap());
    }
    run(&mut h, asked.len());
    assert!(asked.iter().all(|asked| answer(&h, asked).0 == STATUS_OK));
    for block in 0..64u64 {
        let (_, bytes) = one(&mut h, READ, block * 16, Data::In(8192));
        assert!(bytes[1536..5632].iter().all(|byte| *byte == block as u8 + 2));
        assert!(bytes[..1536].iter().chain(&bytes[5632..]).all(|byte| *byte == 0));
    }
}

#[test]
fn neighbours_in_one_block_lose_nothing_on_two_workers() {
    let root = tempfile::tempdir().unwrap();
    let disk = disk(root.path(), 64 << 10, Some(Access::Direct { memory: 512, offset: 4096 }));
    std::thread::scope(|scope| {
        for worker in 0..2u8 {
            let disk = &disk;
            scope.spawn(move || {
                let mut h = Harness::new(disk, 16 << 20, 1, 256, FEATURES).unwrap();
                for round in 0..12u8 {
                    let value = round * 2 + worker;
                    let mut asked = Vec::new();
                    for sector in (u64::from(worker)..64).step_by(2) {
                        asked.push(h.ask(0, WRITE, sector, Data::Out(&[value; 512])).unwrap());
                    }
                    run(&mut h, asked.len());
                    assert!(asked.iter().all(|asked| answer(&h, asked).0 == STATUS_OK));
                    for sector in (u64::from(worker)..64).step_by(2) {
                        let (status, bytes) = one(&mut h, READ, sector, Data::In(512));
                        assert_eq!((status, bytes), (STATUS_OK, vec![value; 512]), "{sector}");
                    }
                }
            });
        }
    });
}

#[test]
fn discards_of_everything_and_steady_writes_both_go_on() {
    const LARGE: u64 = 600 << 20;
    for root in roots() {
        let disk = disk(root.path(), LARGE, None);
        let mut h = Harness::new(&disk, 16 << 20, 2, 256, FEATURES).unwrap();
        let (header, status, data) = (
            h.allocate(16, 16).unwrap(),
            h.allocate(64, 16).unwrap(),
            h.allocate(4096, 4096).unwrap(),
        );
        // The writer always has 32 writes under way, two of each block: as one ends, the next of its block is there.
        let mut headers = Vec::new();
        for n in 0..32u64 {
            let at = h.allocate(16, 16).unwrap();
            let mut bytes = [0; 16];
            bytes[0] = WRITE as u8;
            bytes[8..].copy_from_slice(&(n / 2 * 8).to_le_bytes());
            h.write(at, &bytes);
            headers.push(at);
        }
        let mut next = 0;
        let mut write = |h: &mut Harness| {
            next = (next + 1) % 32;
            let buffers = [
                Buffer::readable(headers[next], 16),
                Buffer::readable(data, 4096),
                Buffer::writable(status + 1 + (next % 32) as u64, 1),
            ];
            h.queues[0].add(&buffers).unwrap();
        };
        (0..32).for_each(|_| write(&mut h));
        let all: Vec<u8> = (0..32)
            .flat_map(|n| range(LARGE / 512 / 32 * n, (LARGE / 512 / 32) as u32, 0))
            .collect();
        let ranges = h.allocate(512, 16).unwrap();
        h.write(ranges, &all);
        h.write(header, &[&[DISCARD as u8][..], &[0; 15]].concat());
        let discard = [
            Buffer::readable(header, 16),
            Buffer::readable(ranges, 512),
            Buffer::writable(status, 1),
        ];
        let (mut writes, mut discards, mut while_discarding) = (0, 0, 0);
        h.queues[1].add(&discard).unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while discards < 8 {
            h.turn().unwrap();
            let mut used = 0;
            h.queues[0].take_all(|_| used += 1).unwrap();
            writes += used;
            (0..used).for_each(|_| write(&mut h));
            let mut over = 0;
            h.queues[1].take_all(|_| over += 1).unwrap();
            if over > 0 {
                assert_eq!(h.read(status, 1), [STATUS_OK]);
                discards += 1;
                while_discarding += usize::from(writes > 0);
                writes = 0;
                h.queues[1].add(&discard).unwrap();
            }
            assert!(Instant::now() < deadline, "{discards} discards, then {writes} writes");
        }
        assert!(while_discarding > 4, "writes went on during {while_discarding} of 8 discards");
        assert_eq!(disk.statistics().errors, 0);
    }
}

#[test]
fn a_long_write_zeroes_in_memory_leaves_turns_to_others() {
    const LARGE: u64 = 128 << 20;
    let root = tempfile::tempdir_in("/dev/shm").unwrap();
    let disk = disk(root.path(), LARGE, None);
    let mut h = Harness::new(&disk, 16 << 20, 2, 256, FEATURES).unwrap();
    assert_eq!(one(&mut h, WRITE, 77, Data::Out(&[7; 512])).0, STATUS_OK);
    let all = range(0, (LARGE / 512) as u32, 0);
    let zeroes = h.ask(1, ZEROES, 0, Data::Out(&all)).unwrap();
    let mut reads = 0;
    let deadline = Instant::now() + Duration::from_secs(30);
    while h.read(zeroes.status, 1) == [0xee] {
        if reads < 60 {
            let read = h.ask(0, READ, LARGE / 512 - 1, Data::In(512)).unwrap();
            h.turn().unwrap();
            assert_eq!(answer(&h, &read).0, STATUS_OK, "answered in its turn");
            h.queues[0].take_all(|_| reads += 1).unwrap();
        } else {
            h.turn().unwrap();
        }
        assert!(h.service.must_poll() || h.read(zeroes.status, 1) != [0xee], "it would sleep");
        assert!(Instant::now() < deadline);
    }
    assert_eq!(answer(&h, &zeroes).0, STATUS_OK);
    assert!(reads >= 50, "{reads} turns");
    h.queues[1].take_all(|_| {}).unwrap();
    assert_eq!(one(&mut h, READ, 77, Data::In(512)), (STATUS_OK, vec![0; 512]));
}

#[test]
fn a_failed_flush_is_not_forgotten() {
    for (root, features) in
        roots().iter().flat_map(|root| [FEATURES, FEATURES & !FEATURE_FLUSH].map(|f| (root, f)))
    {
        let disk = disk(&root.path().join(features.to_string()), SIZE, None);
        let Media::File(media) = &disk.media else { panic!("a file") };
        let mut h = Harness::new(&disk, 4 << 20, 1, 64, features).unwrap();
        assert_eq!(one(&mut h, WRITE, 0, Data::Out(&[1; 4096])).0, STATUS_OK);
        let failing = if features & FEATURE_FLUSH == 0 { WRITE } else { FLUSH };
        // Interrupted is not failed, and neither is a write for which there was no room.
        media.inject(libc::EINTR);
        assert_eq!(one(&mut h, failing, 0, Data::Out(&[2; 4096])).0, STATUS_OK);
        if failing == WRITE {
            media.inject(libc::ENOSPC);
            assert_eq!(one(&mut h, WRITE, 0, Data::Out(&[3; 4096])).0, STATUS_ERROR);
        }
        assert_eq!(disk.fault(), None);
        media.inject(libc::EIO);
        assert_eq!(one(&mut h, failing, 0, Data::Out(&[4; 4096])).0, STATUS_ERROR);
        assert!(disk.fault().unwrap().contains("attached anew"));
        for (kind, data) in [
            (FLUSH, Data::In(0)),
            (WRITE, Data::Out(&[5; 4096])),
            (WRITE, Data::Out(&[5; 512])),
            (ZEROES, Data::Out(&range(0, 8, 0))),
            (DISCARD, Data::Out(&range(0, 8, 0))),
        ] {
            assert_eq!(one(&mut h, kind, 0, data).0, STATUS_ERROR, "type {kind}");
        }
        let (status, bytes) = one(&mut h, READ, 0, Data::In(512));
        assert_eq!(status, STATUS_OK);
        assert_ne!(bytes[0], 5);
    }
}

#[test]
fn more_requests_than_slots_are_all_answered() {
    let root = tempfile::tempdir().unwrap();
    let disk = disk(root.path(), SIZE, Some(Access::Direct { memory: 4096, offset: 4096 }));
    let mut h = Harness::new(&disk, 32 << 20, 2, 4096, FEATURES).unwrap();
    let mut asked = Vec::new();
    for n in 0..1300u64 {
        for queue in 0..2 {
            // 512 bytes on 4 KiB blocks: each needs a buffer too, of which there are few.
            let place = (n * 2 + queue as u64) % (SIZE / 512);
            asked.push((place, h.ask(queue, WRITE, place, Data::Out(&[n as u8; 512])).unwrap(), n));
        }
    }
    run(&mut h, asked.len());
    for (place, asked, n) in asked.iter().step_by(97) {
        assert_eq!(answer(&h, asked).0, STATUS_OK);
        assert_eq!(one(&mut h, READ, *place, Data::In(512)), (STATUS_OK, vec![*n as u8; 512]));
    }
}

#[test]
fn a_queue_goes_back_when_nothing_of_it_is_under_way() {
    let root = tempfile::tempdir().unwrap();
    let disk = disk(root.path(), SIZE, None);
    let mut h = Harness::new(&disk, 16 << 20, 1, 1024, FEATURES).unwrap();
    let asked: Vec<Asked> =
        (0..128).map(|n| h.ask(0, WRITE, n * 8, Data::Out(&[9; 4096])).unwrap()).collect();
    h.turn().unwrap();
    let slot = QueueSlot(0);
    h.service.detach(slot, &mut h.outbox);
    let late = h.ask(0, READ, 0, Data::In(512)).unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while h.service.queue(slot).is_some() {
        h.turn().unwrap();
        assert!(Instant::now() < deadline);
    }
    let mut used = 0;
    h.queues[0].take_all(|_| used += 1).unwrap();
    let answered = asked.iter().filter(|asked| answer(&h, asked).0 == STATUS_OK).count();
    assert!(used > 0 && used == answered, "{used} used, {answered} answered");
    assert_eq!(answer(&h, &late).0, 0xee, "taken after it was told to let go");
    h.service.command(Command::Forget(DeviceId(7)), &mut h.outbox);
    assert_eq!(Arc::strong_count(&disk), 1, "nothing on the worker keeps the disk");
}

#[test]
fn the_measuring_media_answer_at_once() {
    let memory = Media::Memory(MemoryMedia::new(SIZE).unwrap());
    let served = |media| {
        let (serial, read_only) = ([b'x'; 20], false);
        Arc::new(ServedDisk { size: SIZE, serial, read_only, media, counters: counters(1) })
    };
    let mut h = Harness::new(&served(memory), 4 << 20, 1, 64, FEATURES).unwrap();
    let bytes: Vec<u8> = (0..8192).map(|i| i as u8).collect();
    assert_eq!(one(&mut h, WRITE, 8, Data::Out(&bytes)).0, STATUS_OK);
    assert_eq!(one(&mut h, READ, 8, Data::In(8192)), (STATUS_OK, bytes));
    assert_eq!(one(&mut h, ZEROES, 0, Data::Out(&range(9, 15, 0))).0, STATUS_OK);
    assert_eq!(one(&mut h, READ, 9, Data::In(512)), (STATUS_OK, vec![0; 512]));
    assert_eq!(one(&mut h, READ, SIZE / 512, Data::In(512)).0, STATUS_ERROR);
    assert_eq!(one(&mut h, FLUSH, 0, Data::In(0)).0, STATUS_OK);

    let disk = served(Media::Null);
    let mut h = Harness::new(&disk, 4 << 20, 1, 64, FEATURES).unwrap();
    assert_eq!(one(&mut h, READ, 8, Data::In(4096)).0, STATUS_OK);
    assert_eq!(one(&mut h, WRITE, 8, Data::Out(&[1; 4096])).0, STATUS_OK);
    assert_eq!(disk.statistics().read_bytes, 4096);
}

/// A disk in memory behind `queues` queues, limited to so many requests and bytes a second from now on.
fn limited(queues: u16, iops: Option<u64>, bytes: Option<u64>) -> (Arc<ServedDisk>, Harness) {
    let root = tempfile::tempdir_in("/dev/shm").unwrap();
    let disk = disk(root.path(), SIZE, None);
    let mut h = Harness::new(&disk, 16 << 20, queues, 256, FEATURES).unwrap();
    h.limit(Limiter::new(iops, bytes).unwrap());
    (disk, h)
}

/// Asks for `count` reads of `length` bytes on a queue.
fn read_often(h: &mut Harness, queue: usize, count: usize, length: u32) {
    for _ in 0..count {
        assert!(h.ask(queue, READ, 0, Data::In(length)).is_some());
    }
}

#[test]
fn the_queues_of_a_disk_share_its_limit_evenly() {
    let began = Instant::now();
    let (disk, mut h) = limited(2, Some(200), None);
    read_often(&mut h, 0, 60, 4096);
    read_often(&mut h, 1, 60, 4096);
    let mut came = [0u64; 2];
    while came != [60; 2] {
        h.turn().unwrap();
        for (queue, came) in h.queues.iter_mut().zip(&mut came) {
            queue.take_all(|_| *came += 1).unwrap();
        }
        let most = 20.0 + 200.0 * began.elapsed().as_secs_f64();
        assert!((came[0] + came[1]) as f64 <= most, "{came:?} of {most}");
        assert!(came[0].abs_diff(came[1]) <= 2 * LIMITED_BATCH as u64, "{came:?}");
        assert!(began.elapsed() < Duration::from_secs(30));
    }
    let seen = disk.statistics();
    assert_eq!((seen.reads, seen.errors), (120, 0));
    // Each but those of the burst, unless this thread was away for a while.
    assert!(seen.limited > 0 && seen.limited <= 100, "{} waited", seen.limited);
}

#[test]
fn a_request_larger_than_the_burst_goes_and_is_paid_for_after() {
    let began = Instant::now();
    let (disk, mut h) = limited(1, None, Some(4_000_000));
    read_often(&mut h, 0, 3, 512 << 10);
    run(&mut h, 3);
    let least = Duration::from_secs_f64(2.0 * f64::from(512 << 10) / 4e6);
    assert!(began.elapsed() >= least, "{:?} of {least:?}", began.elapsed());
    assert_eq!(disk.statistics().read_bytes, 3 * (512 << 10));
}

#[test]
fn what_waits_goes_when_the_limit_goes_and_a_flush_waits_for_none() {
    // A byte a second: what waits, waits for hours.
    let (disk, mut h) = limited(2, None, Some(1));
    read_often(&mut h, 0, 5, 4096);
    run(&mut h, 1);
    h.turn().unwrap();
    assert!(h.outbox.take_hold().is_some_and(|until| until > Instant::now()));
    h.ask(1, FLUSH, 0, Data::In(0)).unwrap();
    run(&mut h, 1);
    let seen = disk.statistics();
    assert_eq!((seen.reads, seen.flushes, seen.limited), (1, 1, 1));
    // Nothing of what waits is under way, so that a process may end with it.
    assert_eq!(h.service.declare(), Declared::Stateless);

    h.limit(Limiter::new(Some(1_000_000), None).unwrap());
    run(&mut h, 4);
    h.limit(Limiter::new(None, Some(1)).unwrap());
    read_often(&mut h, 0, 2, 4096);
    run(&mut h, 1);
    h.turn().unwrap();
    h.limit(None);
    run(&mut h, 1);
    assert_eq!(disk.statistics().reads, 7);
}
