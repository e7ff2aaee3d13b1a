//! The file below redb, grown ahead of what is written.
//!
//! A commit into blocks that a file has already needs no commit of the file system's journal: the sync is a third
//! cheaper. So a small file grows by whole steps of written zeros. What is beyond the end that redb knows goes when the
//! file is closed; after a kill redb takes it for its own, as it does with every growth that was not committed.

use std::{
    io::Result,
    ops::Bound,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use cofferdam_types::Error;
use redb::{BackendError, StorageBackend};

use crate::{
    doubt::Doubt,
    reserve::{Ballast, Reserve, is_full},
    table::PREVIOUS,
};

const STEP: u64 = 1 << 20;
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// What is known of the file, for those who can't ask the backend.
#[derive(Clone, Debug)]
pub(crate) struct Known(Arc<Facts>);

#[derive(Debug)]
struct Facts {
    length: AtomicU64,
    /// What it failed of last.
    failure: Mutex<Option<Error>>,
    reserve: Arc<dyn Reserve>,
    /// Whether what is written now may use it.
    lent: AtomicBool,
    /// Whether some of it was given up.
    spent: AtomicBool,
    doubt: Doubt,
}

impl Known {
    pub(crate) fn new(reserve: Arc<dyn Reserve>) -> Known {
        Known::with(reserve, Doubt::default())
    }

    /// Of a file.
    pub(crate) fn of(path: &Path) -> Known {
        Known::with(Arc::new(Ballast::beside(path)), Doubt::of(path))
    }

    fn with(reserve: Arc<dyn Reserve>, doubt: Doubt) -> Known {
        let (length, failure) = (AtomicU64::new(0), Mutex::default());
        let (lent, spent) = (AtomicBool::new(false), AtomicBool::new(false));
        Known(Arc::new(Facts { length, failure, reserve, lent, spent, doubt }))
    }

    /// Whether a sync failed, and the file has not been read past memory since.
    pub(crate) fn doubt(&self) -> &Doubt {
        &self.0.doubt
    }

    /// The room that is kept for removals.
    pub(crate) fn reserve(&self) -> &Arc<dyn Reserve> {
        &self.0.reserve
    }

    /// Gives some of it up; false where there is none.
    pub(crate) fn give(&self) -> bool {
        let given = self.0.reserve.give();
        self.0.spent.fetch_or(given, Ordering::Relaxed);
        given
    }

    /// Whether some was given up since this was asked last.
    pub(crate) fn spent(&self) -> bool {
        self.0.spent.swap(false, Ordering::Relaxed)
    }

    /// Writes, with the reserve where the disk has no room.
    pub(crate) fn lending<T>(&self, write: impl FnOnce() -> T) -> T {
        self.0.lent.store(true, Ordering::Relaxed);
        let done = write();
        self.0.lent.store(false, Ordering::Relaxed);
        done
    }

    pub(crate) fn length(&self) -> u64 {
        self.0.length.load(Ordering::Relaxed)
    }

    /// What the file failed of, where redb only says that it did.
    pub(crate) fn explain(&self, error: Error) -> Error {
        if error.message != PREVIOUS {
            return error;
        }
        self.0.failure.lock().unwrap_or_else(PoisonError::into_inner).clone().unwrap_or(error)
    }

    /// Takes a failure down before redb hears of it.
    fn note<T>(&self, done: Result<T>) -> Result<T> {
        done.inspect_err(|e| {
            let error = Error::io("metadata", "", "meta.redb", e);
            *self.0.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        })
    }
}

#[derive(Debug)]
pub(crate) struct Ahead<B> {
    below: B,
    /// Up to this length it is filled.
    small: u64,
    extent: Mutex<Extent>,
    facts: Known,
}

/// Invariant: `known <= there`.
#[derive(Clone, Copy, Debug)]
struct Extent {
    /// The length that redb has set.
    known: u64,
    /// The length of the file.
    there: u64,
}

impl<B: StorageBackend> Ahead<B> {
    pub(crate) fn new(below: B, small: u64, facts: Known) -> Result<Ahead<B>> {
        let there = below.len()?;
        facts.0.length.store(there, Ordering::Relaxed);
        Ok(Ahead { below, small, extent: Mutex::new(Extent { known: there, there }), facts })
    }

    fn fill(&self, mut from: u64, to: u64) -> Result<()> {
        while from < to {
            let size = (to - from).min(ZEROS.len() as u64);
            self.below.write(from, &ZEROS[..size as usize])?;
            from += size;
        }
        Ok(())
    }

    /// Sets the length; the file's own follows where it is too short, or much too long.
    fn resize(&self, extent: Extent, len: u64) -> Result<Extent> {
        let Extent { known, there } = extent;
        if len > self.small || there > self.small {
            self.below.set_len(len)?;
            return Ok(Extent { known: len, there: len });
        }
        // What redb finds beyond its former end must be zeros.
        self.fill(known, len.min(there))?;
        let wanted = len.next_multiple_of(STEP);
        if wanted + STEP < there {
            self.below.set_len(wanted)?;
            return Ok(Extent { known: len, there: wanted });
        }
        if len <= there {
            return Ok(Extent { known: len, there });
        }
        // A disk that is almost full may have room for what is needed. On one that is full it is as long without its
        // blocks: redb doubles a file to use a few pages of it, and for these there may be a reserve.
        let grown = self.grow(there, wanted).map(|()| wanted).or_else(|_| self.grow(there, len).map(|()| len));
        let grown = grown.or_else(|_| self.below.set_len(len).map(|()| len));
        grown.map(|there| Extent { known: len, there })
    }

    fn grow(&self, from: u64, to: u64) -> Result<()> {
        let grown = self.below.set_len(to).and_then(|()| self.fill(from, to));
        grown.inspect_err(|_| drop(self.below.set_len(from)))
    }
}

impl<B: StorageBackend> StorageBackend for Ahead<B> {
    fn len(&self) -> Result<u64> {
        Ok(self.extent.lock().unwrap_or_else(PoisonError::into_inner).known)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.facts.note(self.below.read(offset, out))
    }

    fn set_len(&self, len: u64) -> Result<()> {
        let mut extent = self.extent.lock().unwrap_or_else(PoisonError::into_inner);
        *extent = self.facts.note(self.resize(*extent, len))?;
        self.facts.0.length.store(extent.there, Ordering::Relaxed);
        Ok(())
    }

    fn sync_data(&self) -> Result<()> {
        let synced = self.below.sync_data().inspect_err(|_| self.facts.doubt().raise());
        self.facts.note(synced)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        let mut written = self.below.write(offset, data);
        while is_full(&written) && self.facts.0.lent.load(Ordering::Relaxed) && self.facts.give() {
            written = self.below.write(offset, data);
        }
        self.facts.note(written)
    }

    fn close(&self) -> Result<()> {
        let extent = *self.extent.lock().unwrap_or_else(PoisonError::into_inner);
        let cut = if extent.known < extent.there { self.below.set_len(extent.known) } else { Ok(()) };
        self.below.close().and(cut)
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> std::result::Result<bool, BackendError> {
        self.below.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> std::result::Result<bool, BackendError> {
        self.below.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> std::result::Result<(), BackendError> {
        self.below.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> std::result::Result<(), BackendError> {
        self.below.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> std::result::Result<(), BackendError> {
        self.below.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> std::result::Result<bool, BackendError> {
        self.below.query_lock_range(start, end)
    }
}
