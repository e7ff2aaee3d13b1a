//! A write transaction as a job sees it: the only way to change a table.

use std::{cell::Cell, ops::Bound, sync::Arc};

use cofferdam_types::{Authority, Error, Result, Timestamp};
use redb::WriteTransaction;

use crate::{
    codec,
    spared::Spared,
    table::{self, Read, Table, Visit, storage},
};

/// The largest record: what a client sends must not grow the database's memory without bound.
pub(crate) const MAX_RECORD: usize = 4 << 20;

/// Whether so many bytes may be kept under a key: however small they become when they are packed.
pub(crate) fn check_size(key: &[u8], size: usize) -> Result<()> {
    if size <= MAX_RECORD {
        return Ok(());
    }
    let id = String::from_utf8_lossy(key).replace('\0', "/");
    let message = format!("its record has {size} bytes: at most {MAX_RECORD} are allowed");
    Err(Error::resource_exhausted("record", id, message))
}

/// A write transaction. It reads its own changes, and those of the jobs before it in the same batch.
pub struct Tx<'a> {
    txn: &'a WriteTransaction,
    authority: &'a Authority,
    now: Timestamp,
    changed: bool,
    /// Whether the file failed under this job: then nothing of the batch can be kept.
    failed: Cell<bool>,
    last_event: Option<u64>,
    spared: &'a Arc<Spared>,
    changes: Changes,
    uncounted: bool,
    /// Bytes of the rows that it wrote, less those of the rows that it replaced or removed.
    growth: i64,
}

/// What has been written since the file was opened: by this the collector knows when to look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Writes that changed what keeps something, or what can be collected.
    pub mutations: u64,
    /// Rows of these that were replaced or removed: something may have lost what kept it.
    pub deletions: u64,
    /// The first end of a lease that was made or changed since a collection began.
    pub soonest: Option<Timestamp>,
}

impl Changes {
    pub(crate) fn add(&mut self, other: Changes) {
        self.mutations += other.mutations;
        self.deletions += other.deletions;
        self.soonest = self.soonest.into_iter().chain(other.soonest).min();
    }
}

impl<'a> Tx<'a> {
    pub(crate) fn new(txn: &'a WriteTransaction, authority: &'a Authority, spared: &'a Arc<Spared>) -> Tx<'a> {
        let (now, failed, changes) = (Timestamp::now(), Cell::new(false), Changes::default());
        Tx {
            txn,
            authority,
            now,
            changed: false,
            failed,
            last_event: None,
            spared,
            changes,
            uncounted: false,
            growth: 0,
        }
    }

    /// What a collection that is under way spares.
    pub(crate) fn spared(&self) -> &Arc<Spared> {
        self.spared
    }

    /// What it did that may concern the collector.
    pub(crate) fn changes(&self) -> Changes {
        if self.uncounted { Changes::default() } else { self.changes }
    }

    /// What the collector does is no reason to collect.
    pub(crate) fn uncounted(&mut self) {
        self.uncounted = true;
    }

    /// A lease ends then.
    pub(crate) fn ends(&mut self, end: Option<Timestamp>) {
        self.changes.soonest = self.changes.soonest.into_iter().chain(end).min();
    }

    fn count(&mut self, table: Table, lost: bool) {
        if table.counts() {
            self.changes.mutations = 1;
            self.changes.deletions += u64::from(lost);
        }
    }

    /// Who writes.
    pub fn authority(&self) -> &Authority {
        self.authority
    }

    /// The time of every record and event that this job writes.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    pub(crate) fn changed(&self) -> bool {
        self.changed
    }

    /// Whether there is less in the tables than before, but for the events that tell of it: those go to the journal.
    pub(crate) fn frees(&self) -> bool {
        self.growth < 0
    }

    pub(crate) fn failed(&self) -> bool {
        self.failed.get()
    }

    pub(crate) fn last_event(&self) -> Option<u64> {
        self.last_event
    }

    pub(crate) fn set_last_event(&mut self, sequence: u64) {
        self.last_event = Some(sequence);
    }

    pub(crate) fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<()> {
        check_size(key, value.len())?;
        self.changed = true;
        let replaced = self.noting(|txn| {
            let mut table = txn.open_table(table.definition()).map_err(storage)?;
            let replaced = table.insert(key, value).map_err(storage)?.map(|old| old.value().len());
            Ok(replaced)
        })?;
        if table != Table::OUTBOX {
            let before = replaced.map_or(0, |old| key.len() + old);
            self.growth += (key.len() + value.len()) as i64 - before as i64;
        }
        self.count(table, replaced.is_some() && table != Table::HELD);
        Ok(())
    }

    /// Removes a row; says whether there was one.
    pub(crate) fn remove(&mut self, table: Table, key: &[u8]) -> Result<bool> {
        let removed = self.noting(|txn| {
            let mut table = txn.open_table(table.definition()).map_err(storage)?;
            let removed = table.remove(key).map_err(storage)?.map(|old| old.value().len());
            Ok(removed)
        })?;
        if let Some(old) = removed {
            self.changed = true;
            self.growth -= (key.len() + old) as i64;
            self.count(table, true);
        }
        Ok(removed.is_some())
    }

    /// Removes all rows up to and with a key: much cheaper than one by one.
    pub(crate) fn remove_to(&mut self, table: Table, upto: &[u8]) -> Result<()> {
        let (mut rows, mut bytes) = (0, 0);
        self.noting(|txn| {
            let mut table = txn.open_table(table.definition()).map_err(storage)?;
            let gone = |key: &[u8], value: &[u8]| {
                rows += 1;
                bytes += (key.len() + value.len()) as i64;
                false
            };
            table.retain_in(..=upto, gone).map_err(storage)
        })?;
        if rows > 0 {
            self.changed = true;
            self.growth -= bytes;
            self.count(table, true);
        }
        Ok(())
    }

    /// A change that means nothing.
    pub(crate) fn probe(&mut self) -> Result<()> {
        self.put(Table::META, b"probe", &self.now.0.to_be_bytes())
    }

    /// The next value of a counter; the first is 1.
    pub(crate) fn next(&mut self, counter: &str, count: u64) -> Result<u64> {
        let last = self.counter(counter)?;
        self.put(Table::COUNTERS, counter.as_bytes(), &(last + count).to_be_bytes())?;
        Ok(last + 1)
    }

    fn counter(&self, counter: &str) -> Result<u64> {
        counter_of(self, counter)
    }

    /// Runs what touches the file and notes its failure.
    fn noting<R>(&self, f: impl FnOnce(&WriteTransaction) -> Result<R>) -> Result<R> {
        let result = f(self.txn);
        if result.is_err() {
            self.failed.set(true);
        }
        result
    }
}

/// The last value that a counter gave; 0: none yet.
pub(crate) fn counter_of(read: &dyn Read, counter: &str) -> Result<u64> {
    read.get(Table::COUNTERS, counter.as_bytes())?.map_or(Ok(0), |bytes| codec::number(&bytes))
}

impl Read for Tx<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.noting(|txn| table::get(&txn.open_table(table.definition()).map_err(storage)?, key))
    }

    fn range(&self, table: Table, from: Bound<&[u8]>, to: Bound<&[u8]>, visit: &mut Visit<'_>) -> Result<()> {
        // The visitor's own errors are not the file's.
        let mut refused = None;
        self.noting(|txn| {
            let table = txn.open_table(table.definition()).map_err(storage)?;
            table::range(&table, from, to, &mut |key, value| {
                visit(key, value).or_else(|error| {
                    refused = Some(error);
                    Ok(std::ops::ControlFlow::Break(()))
                })
            })
        })?;
        refused.map_or(Ok(()), Err)
    }
}
