//! How far the hash of an ingest is kept: who goes on with it, after a crash too, hashes what came since and nothing else.
//!
//! What is kept speaks of bytes that the disk has by then. They are synced first, through a descriptor that is opened for it:
//! an error of the disk's is told to each once, and the writer's own sync is to hear of it too. Before such bytes may become
//! others what is kept of them is gone, in a commit of its own; one that is under way meanwhile finds out, in the writer's thread,
//! that its turn is over.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use cofferdam_metadata::records::ingests::{self, Hashed};
use cofferdam_types::{Algorithm, Authority, Digester, Error, Name, Namespace, Result};

use crate::store::Store;

/// After so many bytes more it is kept again.
pub(crate) const STEP: u64 = if cfg!(test) { 1 << 20 } else { 64 << 20 };

/// What one opening of an ingest knows of it.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    turn: Arc<Turn>,
    /// How far it is kept, or about to be.
    upto: u64,
}

#[derive(Debug, Default)]
struct Turn {
    /// Goes on when bytes become others, and when the writer goes.
    number: AtomicU64,
    busy: AtomicBool,
    /// The disk did not take what was written: nothing is kept from then on.
    failed: AtomicBool,
}

impl Kept {
    /// Goes on from what is on record, if that is of bytes that are there: gives the hash, and how far it is.
    pub(crate) fn take_up(&mut self, hashed: &Hashed, algorithm: Algorithm, length: u64) -> Option<(Digester, u64)> {
        if hashed.offset > length || hashed.digest.algorithm() != algorithm {
            return None;
        }
        let digester = Digester::resume(&hashed.digest, &hashed.state)?;
        self.upto = hashed.offset;
        Some((digester, hashed.offset))
    }

    /// Whether it is time to keep it, with so many bytes written.
    pub(crate) fn is_due(&self, offset: u64) -> bool {
        offset.saturating_sub(self.upto) >= STEP
    }

    /// Nothing of what was kept so far, or is about to be, counts any more.
    pub(crate) fn over(&mut self) {
        self.turn.number.fetch_add(1, Ordering::SeqCst);
        self.upto = 0;
    }

    /// Has a worker sync what was written and keep its hash, unless one is at it.
    pub(crate) fn keep(&mut self, of: Of, digester: &Digester, offset: u64) {
        if self.turn.failed.load(Ordering::Relaxed) || self.turn.busy.swap(true, Ordering::AcqRel) {
            return;
        }
        let hashed = hashed(digester, offset);
        self.upto = offset;
        let (busy, number) = (Busy(self.turn.clone()), self.turn.number.load(Ordering::SeqCst));
        let pool = of.store.pool.clone();
        // A full queue: another time.
        pool.push(move || {
            let turn = busy.0.clone();
            let stands = move || turn.number.load(Ordering::SeqCst) == number;
            {
                // Who opens it next waits for this, and so finds what was made of it.
                let _alone = of.store.syncs.hold_all(vec![of.name.clone()]);
                if !stands() {
                    return;
                }
                match of.sync() {
                    Ok(true) => {}
                    // It is a blob by now, or was aborted.
                    Ok(false) => return,
                    Err(error) => {
                        busy.0.failed.store(true, Ordering::Relaxed);
                        // What is in memory is not what the disk has, and who goes on would read the one for the other. A
                        // writer who is still there hears of it by his own sync.
                        of.store.files.empty_ingest(&of.name);
                        tracing::warn!(%error, reference = %of.reference, "the disk does not take what an ingest has");
                        return;
                    }
                }
            }
            if let Err(error) = of.write(Some(hashed), stands) {
                tracing::debug!(%error, reference = %of.reference, "the hash of an ingest is not kept");
            }
        });
    }
}

/// The writer goes: what he has begun to keep is of bytes that the next one may change.
impl Drop for Kept {
    fn drop(&mut self) {
        self.over();
    }
}

struct Busy(Arc<Turn>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.store(false, Ordering::Release);
    }
}

/// The state of a hash, for the record.
pub(crate) fn hashed(digester: &Digester, offset: u64) -> Hashed {
    Hashed { offset, digest: digester.clone().finish(), state: digester.state() }
}

/// The ingest whose hash is kept.
pub(crate) struct Of {
    pub(crate) store: Arc<Store>,
    pub(crate) namespace: Namespace,
    pub(crate) reference: Name,
    pub(crate) id: u64,
    pub(crate) name: String,
}

impl Of {
    /// Whether there is a file, which is synced then.
    fn sync(&self) -> Result<bool> {
        let Some(file) = self.store.files.find_ingest(&self.name)? else { return Ok(false) };
        file.sync_data().map_err(|e| Error::io("ingest", &self.reference, "can't sync", &e))?;
        self.store.files.sync_ingests().map(|()| true)
    }

    /// Writes it down where it `stands`; `None`: nothing is kept.
    pub(crate) fn write(&self, hashed: Option<Hashed>, stands: impl Fn() -> bool + Send + 'static) -> Result<()> {
        let (ns, reference, id) = (self.namespace.clone(), self.reference.clone(), self.id);
        self.store.meta.write_blocking(&Authority::system(), move |tx| match stands() {
            true => ingests::keep(tx, &ns, &reference, id, hashed.clone()),
            false => Ok(()),
        })
    }
}
