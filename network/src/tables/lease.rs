//! The DHCP leases of a port: what its guest was told, and until when.
//!
//! Invariant: there is at most one whole record per address. A lease is a record, not a right: the port's address is
//! the port's whether or not anybody asked for it. Written by the worker that owns the port, read by the driver.

use super::TableError;
use super::mapped::{Layout, Mapped, RecordState};
use crate::address::Mac;
use crate::state::{LeaseState, LeasesState};
use bixi_api::state::{Declared, Movable, Payload};
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The records of one port: a guest has one address by DHCP, and may have had others before.
const RECORDS: u32 = 64;
const LAYOUT: Layout = Layout { magic: *b"BIXILEAS", version: 1, records: RECORDS };
/// Words of a record that its check covers: all.
const COVERED: usize = 7;
/// The kind and version of the state as it travels.
const STATE: (&str, u32) = ("network-leases", 1);

/// What a guest was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// The address it got.
    pub address: Ipv4Addr,
    /// Its hardware address.
    pub mac: Mac,
    /// When it was given or renewed, in seconds since 1970.
    pub given: u64,
    /// When it ends unless renewed, in seconds since 1970.
    pub until: u64,
}

/// The leases of one port.
#[derive(Debug)]
pub struct Leases {
    table: Mapped,
}

/// The time of day in seconds since 1970.
pub fn seconds_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

impl Leases {
    /// Opens the leases at `path`; the second value counts the torn records that were dropped.
    ///
    /// # Errors
    /// The file cannot be used.
    pub fn open(path: &Path) -> Result<(Self, u64), TableError> {
        let (table, _) = Mapped::open(path, LAYOUT)?;
        // All of them at once: a record is looked at before it is written, and on a full tmpfs even a look at a page
        // that the file does not have is fatal.
        if !(0..table.len()).all(|index| table.reserve(index)) {
            let source = std::io::Error::from(std::io::ErrorKind::StorageFull);
            return Err(TableError { what: "find room for", path: path.to_owned(), source });
        }
        let mut torn = 0;
        table.for_each_written(|_, record| {
            if record.state(COVERED) == RecordState::Torn {
                record.clear();
                torn += 1;
            }
        })?;
        Ok((Self { table }, torn))
    }

    /// All leases.
    pub fn list(&self) -> Vec<Lease> {
        let records = (0..self.table.len()).filter_map(|i| self.table.record(i));
        records
            .filter(|record| record.state(COVERED) == RecordState::Whole)
            .map(|record| decode(&record.read()))
            .collect()
    }

    /// Writes that the guest with `mac` has `address` for `seconds` from `now` on.
    pub fn give(&self, address: Ipv4Addr, mac: Mac, now: u64, seconds: u32) {
        let lease = Lease { address, mac, given: now, until: now.saturating_add(seconds.into()) };
        if let Some(index) = self.find(address).or_else(|| self.oldest())
            && self.table.reserve(index)
            && let Some(record) = self.table.record(index)
        {
            record.write(&encode(&lease), COVERED);
        }
    }

    /// Ends the lease of `address`.
    pub fn end(&self, address: Ipv4Addr) {
        if let Some(record) = self.find(address).and_then(|index| self.table.record(index)) {
            record.clear();
        }
    }

    fn find(&self, address: Ipv4Addr) -> Option<usize> {
        (0..self.table.len()).find(|i| {
            self.table.record(*i).is_some_and(|record| {
                record.state(COVERED) == RecordState::Whole
                    && decode(&record.read()).address == address
            })
        })
    }

    /// An empty record, else the one given longest ago.
    fn oldest(&self) -> Option<usize> {
        let given = |i: &usize| {
            self.table.record(*i).map_or(u64::MAX, |record| match record.state(COVERED) {
                RecordState::Whole => decode(&record.read()).given,
                RecordState::Empty | RecordState::Torn => 0,
            })
        };
        (0..self.table.len()).min_by_key(given)
    }
}

impl Movable for Leases {
    fn declare(&self) -> Declared {
        let leases = self.list().into_iter().map(|lease| LeaseState {
            address: lease.address.into(),
            mac: lease.mac.bits(),
            given: lease.given,
            until: lease.until,
        });
        let state = LeasesState { leases: leases.collect() };
        Declared::State(Payload::new(STATE.0, STATE.1, &state))
    }
}

fn encode(lease: &Lease) -> [u64; 7] {
    [u32::from(lease.address).into(), lease.mac.bits(), lease.given, lease.until, 0, 0, 0]
}

fn decode(words: &[u64; 7]) -> Lease {
    Lease {
        address: Ipv4Addr::from(words[0] as u32),
        mac: Mac::from_bits(words[1]),
        given: words[2],
        until: words[3],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

    #[test]
    fn a_lease_is_found_after_the_process_died_and_a_torn_one_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("eni-1.1");
        let (leases, torn) = Leases::open(&path).unwrap();
        assert_eq!(torn, 0);
        let (a, b) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        leases.give(a, MAC, 1000, 60);
        leases.give(b, MAC, 1001, 60);
        leases.give(a, MAC, 1010, 60);
        // As a kill inside `give` leaves it.
        leases.table.record(1).unwrap().0[0].store(0, std::sync::atomic::Ordering::Relaxed);
        drop(leases);
        let (leases, torn) = Leases::open(&path).unwrap();
        assert_eq!(torn, 1);
        assert_eq!(leases.list(), [Lease { address: a, mac: MAC, given: 1010, until: 1070 }]);
        leases.end(a);
        assert_eq!(leases.list(), []);
        assert_eq!(Leases::open(&path).unwrap().1, 0);
    }

    #[test]
    fn a_full_table_forgets_the_oldest() {
        let folder = tempfile::tempdir().unwrap();
        let (leases, _) = Leases::open(&folder.path().join("eni-1.1")).unwrap();
        for i in 0..=RECORDS {
            leases.give(Ipv4Addr::from(i), MAC, u64::from(i) + 1, 60);
        }
        let list = leases.list();
        assert_eq!(list.len(), RECORDS as usize);
        assert!(list.iter().all(|lease| lease.address != Ipv4Addr::from(0)));
    }
}
