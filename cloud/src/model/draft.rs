//! A transaction in the making: what is to change, and that nothing of what was read has changed meanwhile.

use super::{Record, View};
use crate::store::{Compare, Op, Revision, Txn};
use std::collections::BTreeMap;

/// Changes of records that happen together or not at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Draft {
    compares: BTreeMap<Vec<u8>, Revision>,
    changes: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
}

impl Draft {
    /// Creates or replaces a record, if it is as the view has it.
    pub fn put<R: Record>(&mut self, view: &View, record: &R) {
        self.expect::<R>(view, &record.id());
        self.changes.insert(R::key(&record.id()), Some(record.encode()));
    }

    /// Creates a record under an id that was drawn for it: there is nothing to compare.
    pub fn create<R: Record>(&mut self, record: &R) {
        self.changes.insert(R::key(&record.id()), Some(record.encode()));
    }

    /// Removes a record, if it is as the view has it.
    pub fn delete<R: Record>(&mut self, view: &View, id: &str) {
        self.expect::<R>(view, id);
        self.changes.insert(R::key(id), None);
    }

    /// Holds only if the record is as the view has it, or still does not exist.
    pub fn expect<R: Record>(&mut self, view: &View, id: &str) {
        self.compares.insert(R::key(id), R::table(view).modified(id));
    }

    /// Makes another draft, of other records, part of this one.
    pub fn join(&mut self, other: Self) {
        self.compares.extend(other.compares);
        self.changes.extend(other.changes);
    }

    /// Whether nothing is to change.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Compares and changes together: at most `store::TXN_OPERATIONS` go into one transaction.
    pub fn operations(&self) -> usize {
        self.compares.len() + self.changes.len()
    }

    /// Bytes of all keys and values: at most `store::TXN_BYTES` go into one transaction.
    pub fn bytes(&self) -> usize {
        let compared: usize = self.compares.keys().map(Vec::len).sum();
        let changed = self.changes.iter();
        let changed = changed.map(|(key, value)| key.len() + value.as_ref().map_or(0, Vec::len));
        compared + changed.sum::<usize>()
    }

    /// The first of the changes, with what they compare: for changes that do not belong together.
    #[must_use]
    pub fn first(mut self, changes: usize) -> Self {
        while self.changes.len() > changes
            && let Some((key, _)) = self.changes.pop_last()
        {
            self.compares.remove(&key);
        }
        self
    }

    /// The transaction.
    pub fn into_txn(self) -> Txn {
        let compare = |(key, modified)| Compare { key, modified };
        let op = |(key, value)| match value {
            Some(value) => Op::Put { key, value, lease: None },
            None => Op::Delete { key },
        };
        Txn {
            compares: self.compares.into_iter().map(compare).collect(),
            ops: self.changes.into_iter().map(op).collect(),
        }
    }
}
