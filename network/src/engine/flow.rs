//! The flow cache of a port: an exact-match table in a file on tmpfs.
//!
//! ```text
//! tags      one 16-bit tag per record, 16 to a group, in ordinary memory: which records of a group to look at
//! record    check, key (4 words), action, epoch and last use, packets: one cache line in the file
//! ```
//!
//! A look-up touches one line of tags and one record. The tags are made anew from the file when a process starts.
//!
//! Invariants: the table has as many records as it will ever have, so that its size is the port's quota and no port takes
//! another's room; a full group gives up the flow that was used longest ago, among those of the same time the one with
//! the fewest packets, so that a scan pushes itself out first. A record's key and check are written such that a kill
//! leaves it whole or torn (see [`crate::tables::mapped`]); its action is never believed by another process, because a
//! loaded flow's epoch is zero, which is no segment's.
//!
//! Used by one worker; the driver opens and describes it before that.

use super::action::Action;
use super::key::Key;
use crate::state::{FlowState, FlowsState};
use crate::tables::TableError;
use crate::tables::mapped::{Layout, Mapped, Record, RecordState};
use bixi_api::state::{Declared, Movable, Payload};
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;

/// Records in a group: all that a look-up may find a flow in.
const WAYS: usize = 16;
/// Words of a record that its check covers: the key.
const COVERED: usize = 4;
/// Where the words of a record are that change while the flow lives.
const ACTION: usize = 5;
const EPOCH_AND_USE: usize = 6;
const PACKETS: usize = 7;
/// The kind and version of the state as it travels.
const STATE: (&str, u32) = ("network-flows", 1);

/// Flows that a port's table has room for. Twice as many as a busy instance has, since groups fill unevenly.
pub const QUOTA: u32 = 1 << 17;

/// The smallest table: one group.
pub const LEAST: u32 = WAYS as u32;

/// A place in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowIndex(u32);

/// The ways of a group that a flow may be in.
#[derive(Debug, Clone, Copy, Default)]
pub struct Candidates(u16);

/// What a look-up found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// The flow, decided under the epoch asked for.
    Hit(Action),
    /// The flow, decided under another epoch: decide anew and [`FlowTable::decide`].
    Stale(FlowIndex),
    /// Nothing.
    Miss,
}

/// A port's flow cache.
#[derive(Debug)]
pub struct FlowTable {
    table: Mapped,
    tags: Box<[Tags]>,
    /// Shifts a hash down to a group.
    shift: u32,
    flows: u32,
}

#[derive(Debug, Clone, Copy, Default)]
#[repr(C, align(32))]
struct Tags([u16; WAYS]);

impl Tags {
    /// A bit for each way that has `tag`.
    #[inline]
    fn matches(&self, tag: u16) -> u32 {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{
                __m128i, _mm_cmpeq_epi16, _mm_movemask_epi8, _mm_packs_epi16, _mm_set1_epi16,
            };
            // SAFETY: SSE2 is part of the architecture; `Tags` is 32 bytes, aligned to 32, and any bytes are valid.
            unsafe {
                let [low, high]: [__m128i; 2] = std::mem::transmute(*self);
                let wanted = _mm_set1_epi16(tag as i16);
                let equal =
                    _mm_packs_epi16(_mm_cmpeq_epi16(low, wanted), _mm_cmpeq_epi16(high, wanted));
                _mm_movemask_epi8(equal) as u32
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        self.0.iter().enumerate().fold(0, |mask, (way, tag_)| mask | u32::from(*tag_ == tag) << way)
    }
}

/// The tag of a hash: never zero, which stands for an empty record.
#[inline]
fn tag(hash: u64) -> u16 {
    (hash as u16).max(1)
}

impl FlowTable {
    /// Opens the table at `path` with room for `quota` flows, a power of two from [`LEAST`] on. The second value counts
    /// the torn records that were dropped.
    ///
    /// # Errors
    /// The file cannot be used.
    pub fn open(path: &Path, quota: u32) -> Result<(Self, u64), TableError> {
        let records = quota.clamp(LEAST, 1 << 24).next_power_of_two();
        let layout = Layout { magic: *b"BIXIFLOW", version: 1, records };
        let (table, known) = Mapped::open(path, layout)?;
        let groups = records as usize / WAYS;
        let mut flows = Self {
            table,
            tags: vec![Tags::default(); groups].into(),
            shift: 64 - groups.trailing_zeros(),
            flows: 0,
        };
        let torn = if known { flows.load()? } else { 0 };
        Ok((flows, torn))
    }

    /// Makes the tags from the file; returns how many torn records were dropped.
    fn load(&mut self) -> Result<u64, TableError> {
        let (seed, shift) = (self.table.seed(), self.shift);
        let (tags, flows) = (&mut self.tags, &mut self.flows);
        let mut torn = 0;
        self.table.for_each_written(|index, record| {
            let hash = key_of(record).hash(seed);
            match record.state(COVERED) {
                RecordState::Empty => {}
                // A whole record in a group that no look-up of its key would search is damage, too.
                RecordState::Whole if group(hash, shift) == index / WAYS => {
                    record.0[EPOCH_AND_USE].fetch_and(!0xffff_ffff, Relaxed);
                    tags[index / WAYS].0[index % WAYS] = tag(hash);
                    *flows += 1;
                }
                RecordState::Whole | RecordState::Torn => {
                    record.clear();
                    torn += 1;
                }
            }
        })?;
        Ok(torn)
    }

    /// How many flows there are.
    pub fn len(&self) -> usize {
        self.flows as usize
    }

    /// Whether there is no flow.
    pub fn is_empty(&self) -> bool {
        self.flows == 0
    }

    /// The hash of a key in this table.
    #[inline]
    pub fn hash(&self, key: &Key) -> u64 {
        key.hash(self.table.seed())
    }

    /// Which records may hold a flow with this hash; the processor is asked for the first, without waiting.
    #[inline(always)]
    pub fn look(&self, hash: u64) -> Candidates {
        let group = group(hash, self.shift);
        let mask = self.tags[group].matches(tag(hash));
        if mask != 0 {
            self.table.prefetch(group * WAYS + mask.trailing_zeros() as usize);
        }
        Candidates(mask as u16)
    }

    /// Looks a flow up among the candidates that [`FlowTable::look`] named, and notes a packet of it seen at `now` if it is
    /// there. A flow that came since is a miss.
    #[inline(always)]
    pub fn find(
        &mut self,
        key: &Key,
        hash: u64,
        Candidates(mut ways): Candidates,
        epoch: u32,
        now: u32,
    ) -> Found {
        let group = group(hash, self.shift);
        while ways != 0 {
            let index = group * WAYS + ways.trailing_zeros() as usize;
            ways &= ways - 1;
            let Some(record) = self.table.record(index) else { continue };
            if !has_key(record, key) {
                continue;
            }
            record.0[PACKETS].store(record.0[PACKETS].load(Relaxed) + 1, Relaxed);
            let decided = record.0[EPOCH_AND_USE].load(Relaxed) as u32;
            record.0[EPOCH_AND_USE].store(epoch_and_use(decided, now), Relaxed);
            return match Action::from_word(record.0[ACTION].load(Relaxed)) {
                Some(action) if decided == epoch => Found::Hit(action),
                _ => Found::Stale(FlowIndex(index as u32)),
            };
        }
        Found::Miss
    }

    /// Remembers what was decided anew for a stale flow. An action that cannot be remembered ends the flow.
    pub fn decide(&mut self, index: FlowIndex, action: Action, epoch: u32, now: u32) {
        let index = index.0 as usize;
        let Some(record) = self.table.record(index) else { return };
        if let Some(word) = action.to_word() {
            record.0[ACTION].store(word, Relaxed);
            record.0[EPOCH_AND_USE].store(epoch_and_use(epoch, now), Relaxed);
        } else {
            record.clear();
            self.tags[index / WAYS].0[index % WAYS] = 0;
            self.flows -= 1;
        }
    }

    /// Remembers a new flow, if its action can be remembered and there is room; returns whether another flow had to go.
    pub fn insert(&mut self, key: &Key, hash: u64, action: Action, epoch: u32, now: u32) -> bool {
        let Some(word) = action.to_word() else { return false };
        let group = group(hash, self.shift);
        // Packets of one flow that were looked up together all miss; the first of them has been here.
        if let Found::Hit(_) = self.find(key, hash, self.look(hash), epoch, now) {
            return false;
        }
        let free = self.tags[group].matches(0);
        let way = if free != 0 { free.trailing_zeros() as usize } else { self.victim(group, now) };
        // A system call for a page that no flow has used yet: 2,048 of them in the life of a table, none after.
        if !self.table.reserve(group * WAYS + way) {
            return false;
        }
        let Some(record) = self.table.record(group * WAYS + way) else { return false };
        let [a, b, c, d] = key.0;
        record.write(&[a, b, c, d, word, epoch_and_use(epoch, now), 1], COVERED);
        self.tags[group].0[way] = tag(hash);
        self.flows += u32::from(free != 0);
        free == 0
    }

    /// The way of a full group whose flow goes.
    fn victim(&self, group: usize, now: u32) -> usize {
        let worth = |way: &usize| {
            self.table.record(group * WAYS + way).map(|record| {
                let idle = now.wrapping_sub((record.0[EPOCH_AND_USE].load(Relaxed) >> 32) as u32);
                (std::cmp::Reverse(idle), record.0[PACKETS].load(Relaxed))
            })
        };
        (0..WAYS).min_by_key(worth).unwrap_or(0)
    }
}

impl Movable for FlowTable {
    fn declare(&self) -> Declared {
        let mut flows = Vec::with_capacity(self.len());
        let listed = self.table.for_each_written(|_, record| {
            if record.state(COVERED) == RecordState::Whole {
                let packets = record.0[PACKETS].load(Relaxed);
                flows.push(FlowState { key: key_of(record).0.to_vec(), packets });
            }
        });
        match listed {
            Ok(()) => Declared::State(Payload::new(STATE.0, STATE.1, &FlowsState { flows })),
            Err(e) => Declared::NotMovable(e.to_string()),
        }
    }
}

#[inline]
fn group(hash: u64, shift: u32) -> usize {
    // A table of one group shifts all bits out.
    hash.checked_shr(shift).unwrap_or(0) as usize
}

#[inline]
fn key_of(record: &Record) -> Key {
    Key(std::array::from_fn(|i| record.0[i + 1].load(Relaxed)))
}

/// Whether the record has this key. Word by word, so that nothing is put together only to be compared.
#[inline(always)]
fn has_key(record: &Record, key: &Key) -> bool {
    let differs = |i: usize| record.0[i + 1].load(Relaxed) ^ key.0[i];
    differs(0) | differs(1) | differs(2) | differs(3) == 0
}

#[inline]
fn epoch_and_use(epoch: u32, now: u32) -> u64 {
    u64::from(epoch) | u64::from(now) << 32
}

#[cfg(test)]
mod tests {
    use super::super::view::PortIndex;
    use super::*;

    fn key(n: u64) -> Key {
        Key([n, 2, 3, 4])
    }

    fn local(n: u16) -> Action {
        Action::Local(PortIndex(n))
    }

    struct Fixture {
        _folder: tempfile::TempDir,
        path: std::path::PathBuf,
        table: FlowTable,
    }

    fn fixture(quota: u32) -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("eni-1.1");
        let (table, torn) = FlowTable::open(&path, quota).unwrap();
        assert_eq!(torn, 0);
        Fixture { _folder: folder, path, table }
    }

    impl FlowTable {
        fn find_key(&mut self, key: &Key, epoch: u32, now: u32) -> Found {
            let hash = self.hash(key);
            let candidates = self.look(hash);
            self.find(key, hash, candidates, epoch, now)
        }

        fn insert_key(&mut self, key: &Key, action: Action, epoch: u32, now: u32) -> bool {
            self.insert(key, self.hash(key), action, epoch, now)
        }
    }

    #[test]
    fn a_change_of_epoch_asks_for_a_new_decision_once() {
        let mut f = fixture(1024);
        assert_eq!(f.table.find_key(&key(1), 5, 0), Found::Miss);
        f.table.insert_key(&key(1), local(7), 5, 0);
        assert_eq!(f.table.find_key(&key(1), 5, 0), Found::Hit(local(7)));
        let Found::Stale(index) = f.table.find_key(&key(1), 6, 0) else { panic!() };
        f.table.decide(index, local(8), 6, 0);
        assert_eq!(f.table.find_key(&key(1), 6, 0), Found::Hit(local(8)));
        let Found::Stale(index) = f.table.find_key(&key(1), 7, 0) else { panic!() };
        f.table.decide(index, Action::Drop(crate::engine::action::Reason::Spoofed), 7, 0);
        assert_eq!(f.table.find_key(&key(1), 7, 0), Found::Miss);
        assert!(f.table.is_empty());
    }

    #[test]
    fn a_flow_is_remembered_once_however_many_of_its_packets_missed() {
        let mut f = fixture(1024);
        for _ in 0..3 {
            f.table.insert_key(&key(1), local(7), 5, 0);
        }
        assert_eq!(f.table.len(), 1);
    }

    #[test]
    fn answers_and_drops_take_no_room() {
        let mut f = fixture(1024);
        f.table.insert_key(&key(1), Action::Answer(crate::engine::action::Answer::Dhcp), 1, 0);
        assert!(f.table.is_empty());
    }

    #[test]
    fn a_scan_pushes_itself_out_and_old_flows_live_on() {
        let mut f = fixture(256);
        for n in 0..32 {
            f.table.insert_key(&key(n), local(1), 1, 10);
            for _ in 0..9 {
                f.table.find_key(&key(n), 1, 10);
            }
        }
        let mut evicted = 0u32;
        for n in 1000..21_000 {
            let now = 10 + (n - 1000) as u32 / 1000;
            evicted += u32::from(f.table.insert_key(&key(n), local(1), 1, now));
            if n % 100 == 0 {
                for old in 0..32 {
                    f.table.find_key(&key(old), 1, now);
                }
            }
        }
        assert!(f.table.len() <= 256 && evicted > 19_000);
        for n in 0..32 {
            assert_eq!(f.table.find_key(&key(n), 1, 30), Found::Hit(local(1)), "flow {n} went");
        }
    }

    #[test]
    fn half_the_quota_fits_without_any_eviction_to_speak_of() {
        let mut f = fixture(1 << 14);
        let evicted: u32 =
            (0..1 << 13).map(|n| u32::from(f.table.insert_key(&key(n), local(1), 1, 0))).sum();
        assert!(evicted < 20, "{evicted}");
    }

    #[test]
    fn flows_outlive_their_process_are_decided_anew_and_torn_ones_are_dropped() {
        let mut f = fixture(1024);
        for n in 0..10 {
            f.table.insert_key(&key(n), local(1), 3, 0);
        }
        // As a kill inside an insert leaves it: the check word cleared, the key half written.
        let hash = f.table.hash(&key(4));
        let start = group(hash, f.table.shift) * WAYS;
        let index = (start..start + WAYS)
            .find(|i| key_of(f.table.table.record(*i).unwrap()) == key(4))
            .unwrap();
        f.table.table.record(index).unwrap().0[0].store(0, Relaxed);
        f.table.table.record(index).unwrap().0[2].store(99, Relaxed);
        drop(f.table);

        let (mut table, torn) = FlowTable::open(&f.path, 1024).unwrap();
        assert_eq!((torn, table.len()), (1, 9));
        assert_eq!(table.find_key(&key(4), 3, 0), Found::Miss);
        assert!(matches!(table.find_key(&key(5), 3, 0), Found::Stale(_)));
        let Declared::State(payload) = table.declare() else { panic!() };
        let state: FlowsState = payload.read(STATE.0, STATE.1).unwrap();
        assert_eq!(state.flows.len(), 9);
        let packets = state.flows.iter().find(|f| f.key[0] == 5).unwrap().packets;
        assert_eq!(packets, 2);
    }

    #[test]
    fn a_table_of_one_group_works() {
        let mut f = fixture(1);
        for n in 0..40 {
            f.table.insert_key(&key(n), local(n as u16), 1, n as u32);
            assert_eq!(f.table.find_key(&key(n), 1, n as u32), Found::Hit(local(n as u16)));
        }
        assert_eq!(f.table.len(), 16);
    }

    #[test]
    fn a_record_is_one_line() {
        assert_eq!(size_of::<Record>(), 64);
        assert_eq!(size_of::<Tags>(), 32);
    }
}
