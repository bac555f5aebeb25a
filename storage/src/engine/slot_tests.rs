//! Requests against a simulated file that does what a real one may: short transfers, interruptions, refusals.

use super::*;
use proptest::prelude::*;

const SIZE: usize = 1 << 20;

/// A file in memory that checks alignment as direct I/O does.
struct Simulated {
    bytes: Vec<u8>,
    abilities: Abilities,
    /// Decides on the next result; not random for the test's own sake, but repeatable.
    seed: u64,
    operations: usize,
}

impl Simulated {
    fn chance(&mut self, of: u64) -> bool {
        self.seed = self.seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.seed >> 33).is_multiple_of(of)
    }

    fn run(&mut self, operation: &Operation) -> i32 {
        self.operations += 1;
        if self.chance(6) {
            return if self.chance(2) { -libc::EINTR } else { -libc::EAGAIN };
        }
        match *operation {
            Operation::Read { pieces, count, offset } => {
                self.transfer(pieces, count, offset, false)
            }
            Operation::Write { pieces, count, offset, .. } => {
                self.transfer(pieces, count, offset, true)
            }
            Operation::Punch(span) if self.abilities.punch_hole() => self.zero(span),
            Operation::Zero(span) if self.chance(3) => {
                let _ = span;
                -libc::EOPNOTSUPP
            }
            Operation::Zero(span) => self.zero(span),
            Operation::Punch(_) => -libc::EOPNOTSUPP,
            Operation::Flush => 0,
        }
    }

    fn zero(&mut self, span: Span) -> i32 {
        assert!(
            !span.is_empty() && span.start.is_multiple_of(BLOCK) && span.end.is_multiple_of(BLOCK),
            "{span:?}"
        );
        self.bytes[span.start as usize..span.end as usize].fill(0);
        0
    }

    fn transfer(
        &mut self,
        pieces: *const libc::iovec,
        count: u32,
        offset: u64,
        write: bool,
    ) -> i32 {
        // SAFETY: a slot's operation names its own pieces.
        let pieces = unsafe { std::slice::from_raw_parts(pieces, count as usize) };
        let mut whole: usize = pieces.iter().map(|piece| piece.iov_len).sum();
        assert!(whole > 0 && offset as usize + whole <= SIZE);
        if let Access::Direct { memory, offset: unit } = self.abilities.access() {
            let (memory, unit) = (memory as usize, unit as usize);
            let aligned = |p: &libc::iovec| {
                (p.iov_base as usize).is_multiple_of(memory) && p.iov_len.is_multiple_of(unit)
            };
            assert!(pieces.iter().all(aligned) && (offset as usize).is_multiple_of(unit));
            if whole > unit && self.chance(3) {
                whole = (whole / 2).next_multiple_of(unit);
            }
        } else if whole > 1 && self.chance(3) {
            whole /= 2;
        }
        let at = offset as usize;
        let file = &mut self.bytes[at..at + whole];
        // SAFETY: the pieces lie in the test's guest memory or in the slot's buffer, the file is another vector.
        let moved = unsafe {
            match write {
                true => gather(pieces, file.as_mut_ptr(), whole),
                false => scatter(pieces, file.as_ptr(), whole),
            }
        };
        moved as i32
    }
}

fn finish(slot: &mut Slot, file: &mut Simulated, pool: &mut BouncePool) {
    let mut result = None;
    for _ in 0..100_000 {
        // SAFETY: the pieces lie in the test's guest memory.
        match unsafe { slot.step(result, &file.abilities, pool) } {
            Next::Run(operation) => result = Some(file.run(&operation)),
            Next::Done => return,
            Next::Lock(_) => result = None,
            Next::Wait => panic!("there are buffers enough for one request"),
        }
    }
    panic!("a request that does not end");
}

fn accesses() -> impl Strategy<Value = Access> {
    prop_oneof![
        Just(Access::Buffered),
        Just(Access::Direct { memory: 512, offset: 512 }),
        Just(Access::Direct { memory: 4, offset: 512 }),
        Just(Access::Direct { memory: 512, offset: 4096 }),
        Just(Access::Direct { memory: 4096, offset: 4096 }),
    ]
}

/// How the bytes of a request lie in guest memory: lengths, and whether the next piece begins at a page.
type Cuts = Vec<(usize, bool)>;

fn pieces(guest: &mut [u8], length: usize, cuts: &Cuts) -> Vec<(usize, usize)> {
    let (mut at, mut left) = (1usize, length);
    let mut pieces = Vec::new();
    for &(cut, page) in cuts {
        at = if page { at.next_multiple_of(4096) } else { at };
        let part = cut.min(left);
        if part > 0 {
            pieces.push((at, part));
        }
        at += part + 3;
        left -= part;
    }
    if left > 0 {
        pieces.push((at.next_multiple_of(512), left));
    }
    assert!(pieces.last().is_none_or(|(at, len)| at + len <= guest.len()));
    pieces
}

fn lay(slot: &mut Slot, guest: &mut [u8], pieces: &[(usize, usize)]) {
    if pieces.len() > Slot::inline_pieces() {
        slot.lend_chunk(Box::new([NO_PIECE; PIECES]));
    }
    let base = guest.as_mut_ptr();
    for &(at, len) in pieces {
        // SAFETY: inside the guest's memory.
        let iov_base = unsafe { base.add(at) }.cast();
        assert!(slot.add_piece(libc::iovec { iov_base, iov_len: len }));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn bytes_arrive_whatever_the_kernel_does(
        access in accesses(),
        seed in any::<u64>(),
        requests in prop::collection::vec(
            (any::<bool>(), 0..SIZE as u64 / 512, 0..700u64,
             prop::collection::vec((1..70_000usize, any::<bool>()), 0..20)),
            1..8,
        ),
    ) {
        let bytes: Vec<u8> = (0..SIZE).map(|i| (i / 512) as u8 ^ i as u8).collect();
        let mut model = bytes.clone();
        let abilities = Abilities::new(access, true);
        let mut file = Simulated { bytes, abilities, seed, operations: 0 };
        let mut pool = BouncePool::new();
        let mut slot = Slot::default();
        for (write, sector, sectors, cuts) in requests {
            let start = sector * 512;
            let end = (start + sectors * 512).min(SIZE as u64);
            let span = Span { start, end };
            let mut guest = vec![0u8; SIZE * 2 + 200_000];
            let layout = pieces(&mut guest, span.len() as usize, &cuts);
            let range = start as usize..end as usize;
            if write {
                let mut at = start as usize;
                for &(from, len) in &layout {
                    for byte in &mut guest[from..from + len] {
                        *byte = seed.wrapping_add(at as u64 * 7) as u8;
                        model[at] = *byte;
                        at += 1;
                    }
                }
            }
            slot.begin(if write { Task::Write } else { Task::Read }, span, false);
            lay(&mut slot, &mut guest, &layout);
            finish(&mut slot, &mut file, &mut pool);
            prop_assert_eq!(slot.status, STATUS_OK);
            let _ = slot.take_back();
            prop_assert!(file.bytes == model, "the file is not what it should be");
            if !write {
                let got: Vec<u8> =
                    layout.iter().flat_map(|&(at, len)| guest[at..at + len].to_vec()).collect();
                prop_assert!(got == model[range], "the guest got other bytes");
            }
        }
        prop_assert!(std::iter::from_fn(|| pool.take()).count() == 32, "a buffer was kept");
    }

    #[test]
    fn zeroes_are_zero_and_nothing_else_is(
        access in accesses(),
        seed in any::<u64>(),
        punch in any::<bool>(),
        discard in any::<bool>(),
        spans in prop::collection::vec((0..SIZE as u64 / 512, 0..2000u64, any::<bool>()), 1..32),
    ) {
        let bytes: Vec<u8> = (0..SIZE).map(|i| (i % 255) as u8 + 1).collect();
        let mut model = bytes.clone();
        let before = bytes.clone();
        let mut file = Simulated { bytes, abilities: Abilities::new(access, punch), seed, operations: 0 };
        let mut pool = BouncePool::new();
        let mut slot = Slot::default();
        let mut ranges = Ranges::default();
        for (sector, sectors, unmap) in spans {
            let start = sector * 512;
            let span = Span { start, end: (start + sectors * 512).min(SIZE as u64) };
            ranges.push(span, unmap);
            model[span.start as usize..span.end as usize].fill(0);
        }
        let task = if discard { Task::Discard } else { Task::WriteZeroes };
        slot.begin(task, Span::default(), true);
        slot.lend_ranges(Box::new(ranges));
        finish(&mut slot, &mut file, &mut pool);
        prop_assert_eq!(slot.status, STATUS_OK);
        let _ = slot.take_back();
        if discard {
            for (at, byte) in file.bytes.iter().enumerate() {
                let kept = *byte == before[at];
                prop_assert!(kept || (*byte == 0 && model[at] == 0), "byte {}", at);
            }
        } else {
            prop_assert!(file.bytes == model);
        }
    }
}

#[test]
fn ranges_go_piece_by_piece() {
    let mut pool = BouncePool::new();
    let abilities = Abilities::new(Access::Buffered, true);
    let mut ranges = Ranges::default();
    ranges.push(Span { start: 512, end: 512 }, true);
    ranges.push(Span { start: PIECE - BLOCK, end: 2 * PIECE + BLOCK }, true);
    ranges.push(Span { start: 0, end: BLOCK }, true);
    ranges.push(Span { start: 7 * PIECE, end: 7 * PIECE }, true);
    for task in [Task::Discard, Task::WriteZeroes] {
        let mut slot = Slot::default();
        slot.begin(task, Span::default(), false);
        slot.lend_ranges(Box::new(ranges));
        let (mut seen, mut result) = (Vec::new(), None);
        loop {
            // SAFETY: there are no pieces of guest memory.
            match unsafe { slot.step(result.take(), &abilities, &mut pool) } {
                Next::Run(Operation::Punch(span)) => {
                    assert_eq!(span, slot.span, "all that is held, and no more");
                    seen.push(span);
                    result = Some(0);
                }
                Next::Lock(done) => assert_eq!(seen.last(), Some(&done)),
                Next::Done => break,
                other => panic!("{other:?}"),
            }
        }
        let expected = [
            (PIECE - BLOCK, PIECE),
            (PIECE, 2 * PIECE),
            (2 * PIECE, 2 * PIECE + BLOCK),
            (0, BLOCK),
        ];
        assert_eq!(seen, expected.map(|(start, end)| Span { start, end }));
        let _ = slot.take_back();
    }
}

#[test]
fn an_error_ends_the_request_and_frees_its_buffer() {
    let mut pool = BouncePool::new();
    let abilities = Abilities::new(Access::Direct { memory: 4096, offset: 4096 }, true);
    for error in [libc::EIO, libc::ENOSPC, libc::EINVAL, libc::EFAULT] {
        let mut guest = vec![0u8; 8192];
        let mut slot = Slot::default();
        slot.begin(Task::Write, Span { start: 512, end: 1024 }, false);
        lay(&mut slot, &mut guest, &[(1, 512)]);
        // SAFETY: the piece lies in the test's guest memory.
        unsafe {
            assert!(matches!(
                slot.step(None, &abilities, &mut pool),
                Next::Run(Operation::Read { .. })
            ));
            assert!(matches!(slot.step(Some(-error), &abilities, &mut pool), Next::Done));
        }
        assert_eq!(slot.status, STATUS_ERROR);
    }
    assert_eq!(std::iter::from_fn(|| pool.take()).count(), 32);
}

#[test]
fn a_file_that_ends_early_is_an_error_and_not_a_loop() {
    let mut pool = BouncePool::new();
    let mut guest = vec![0u8; 8192];
    for access in [Access::Buffered, Access::Direct { memory: 4096, offset: 4096 }] {
        let abilities = Abilities::new(access, true);
        let mut slot = Slot::default();
        slot.begin(Task::Read, Span { start: 0, end: 4096 }, false);
        lay(&mut slot, &mut guest, &[(1, 4096)]);
        // SAFETY: the piece lies in the test's guest memory.
        unsafe {
            assert!(matches!(slot.step(None, &abilities, &mut pool), Next::Run(_)));
            assert!(matches!(slot.step(Some(0), &abilities, &mut pool), Next::Done));
        }
        assert_eq!(slot.status, STATUS_ERROR);
    }
}

#[test]
fn without_a_buffer_a_request_waits_for_one() {
    let mut pool = BouncePool::new();
    let mut held: Vec<Bounce> = std::iter::from_fn(|| pool.take()).collect();
    let abilities = Abilities::new(Access::Direct { memory: 512, offset: 512 }, true);
    let mut guest = vec![0u8; 8192];
    let mut slot = Slot::default();
    slot.begin(Task::Write, Span { start: 0, end: 512 }, true);
    lay(&mut slot, &mut guest, &[(1, 512)]);
    // SAFETY: the piece lies in the test's guest memory.
    unsafe {
        assert!(matches!(slot.step(None, &abilities, &mut pool), Next::Wait));
        assert!(matches!(slot.step(None, &abilities, &mut pool), Next::Wait));
        pool.give(held.pop().unwrap());
        let next = slot.step(None, &abilities, &mut pool);
        assert!(matches!(next, Next::Run(Operation::Write { durable: true, .. })), "{next:?}");
        assert!(matches!(slot.step(Some(512), &abilities, &mut pool), Next::Done));
    }
    assert_eq!(slot.status, STATUS_OK);
    held.into_iter().for_each(|bounce| pool.give(bounce));
}

#[test]
fn pieces_that_touch_become_one_and_too_many_are_refused() {
    let mut guest = vec![0u8; 1 << 20];
    let mut slot = Slot::default();
    slot.begin(Task::Read, Span { start: 0, end: 1 << 20 }, false);
    lay(&mut slot, &mut guest, &[(0, 512), (512, 512), (2048, 1)]);
    assert_eq!(slot.count, 2);
    let _ = slot.take_back();
    slot.begin(Task::Read, Span { start: 0, end: 1 << 20 }, false);
    slot.lend_chunk(Box::new([NO_PIECE; PIECES]));
    let base = guest.as_mut_ptr();
    let mut add = |at: usize| {
        // SAFETY: inside the guest's memory.
        let iov_base = unsafe { base.add(at * 2) }.cast();
        slot.add_piece(libc::iovec { iov_base, iov_len: 1 })
    };
    assert!((0..PIECES).all(&mut add));
    assert!(!add(PIECES));
}
