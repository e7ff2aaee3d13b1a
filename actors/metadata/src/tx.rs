//! A write transaction as a job sees it: the only way to change a table.

use std::{cell::Cell, ops::Bound};

use cofferdam_types::{Authority, Error, Result, Timestamp};
use redb::WriteTransaction;

use crate::{
    codec,
    table::{self, Read, Table, Visit, storage},
};

/// The largest record: what a client sends must not grow the database's memory without bound.
const MAX_RECORD: usize = 4 << 20;

/// A write transaction. It reads its own changes, and those of the jobs before it in the same batch.
pub struct Tx<'a> {
    txn: &'a WriteTransaction,
    authority: &'a Authority,
    now: Timestamp,
    changed: bool,
    /// Whether the file failed under this job: then nothing of the batch can be kept.
    failed: Cell<bool>,
    last_event: Option<u64>,
}

impl<'a> Tx<'a> {
    pub(crate) fn new(txn: &'a WriteTransaction, authority: &'a Authority) -> Tx<'a> {
        let now = Timestamp::now();
        Tx { txn, authority, now, changed: false, failed: Cell::new(false), last_event: None }
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
        if value.len() > MAX_RECORD {
            let id = String::from_utf8_lossy(key).replace('\0', "/");
            let message = format!("its record has {} bytes: at most {MAX_RECORD} are allowed", value.len());
            return Err(Error::resource_exhausted("record", id, message));
        }
        self.changed = true;
        self.noting(|txn| {
            txn.open_table(table.definition()).map_err(storage)?.insert(key, value).map_err(storage)?;
            Ok(())
        })
    }

    /// Removes a row; says whether there was one.
    pub(crate) fn remove(&mut self, table: Table, key: &[u8]) -> Result<bool> {
        let removed = self.noting(|txn| {
            let mut table = txn.open_table(table.definition()).map_err(storage)?;
            let removed = table.remove(key).map_err(storage)?.is_some();
            Ok(removed)
        })?;
        self.changed |= removed;
        Ok(removed)
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
