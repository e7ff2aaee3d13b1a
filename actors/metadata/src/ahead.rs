//! The file below redb, grown ahead of what is written.
//!
//! A commit into blocks that a file has already needs no commit of the file system's journal: the sync is a third
//! cheaper. So a small file grows by whole steps of written zeros. What is beyond the end that redb knows goes when the
//! file is closed; after a kill redb takes it for its own, as it does with every growth that was not committed.

use std::{
    io::Result,
    ops::Bound,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use redb::{BackendError, StorageBackend};

const STEP: u64 = 1 << 20;
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// How long the file is, for those who can't ask the backend.
#[derive(Clone, Debug, Default)]
pub(crate) struct Length(Arc<AtomicU64>);

impl Length {
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
pub(crate) struct Ahead<B> {
    below: B,
    /// Up to this length it is filled.
    small: u64,
    extent: Mutex<Extent>,
    length: Length,
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
    pub(crate) fn new(below: B, small: u64, length: Length) -> Result<Ahead<B>> {
        let there = below.len()?;
        length.0.store(there, Ordering::Relaxed);
        Ok(Ahead { below, small, extent: Mutex::new(Extent { known: there, there }), length })
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
        // A disk that is almost full may have room for what is needed.
        let grown = self.grow(there, wanted).map(|()| wanted).or_else(|_| self.grow(there, len).map(|()| len));
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
        self.below.read(offset, out)
    }

    fn set_len(&self, len: u64) -> Result<()> {
        let mut extent = self.extent.lock().unwrap_or_else(PoisonError::into_inner);
        *extent = self.resize(*extent, len)?;
        self.length.0.store(extent.there, Ordering::Relaxed);
        Ok(())
    }

    fn sync_data(&self) -> Result<()> {
        self.below.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.below.write(offset, data)
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
