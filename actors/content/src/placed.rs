//! Blobs on their way: in their places, and not yet on record.
//!
//! Whoever has more to do before they count (unpack them, name them) places them first, does the rest, syncs once, and
//! writes their rows into a transaction of its own beside what else becomes true. Until then no client sees them; a job
//! of their namespace may read them; nobody removes their files.

use std::{
    collections::HashMap,
    fs::File,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use cofferdam_metadata::{Tx, records};
use cofferdam_sys::fd::Witness;
use cofferdam_types::{Authority, Code, Digest, Error, Namespace, Result};

use crate::{
    commit::{Commit, Row},
    files,
    ingest::{Ingest, Origin},
    store::Store,
};

/// Which blobs are in their places for which namespaces, and how often.
#[derive(Debug, Default)]
pub(crate) struct Placements(Mutex<HashMap<Digest, Vec<(Namespace, u64)>>>);

impl Placements {
    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Vec<(Namespace, u64)>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether anybody's.
    pub(crate) fn any(&self, digest: &Digest) -> bool {
        self.lock().contains_key(digest)
    }

    /// The size, if it is there for the namespace.
    pub(crate) fn size(&self, ns: &Namespace, digest: &Digest) -> Option<u64> {
        self.lock().get(digest)?.iter().find(|(space, _)| space == ns).map(|(_, size)| *size)
    }

    fn add(&self, ingest: &Ingest, digest: &Digest) {
        self.lock().entry(digest.clone()).or_default().push((ingest.namespace.clone(), ingest.offset()));
    }

    fn take(&self, ingest: &Ingest, digest: &Digest) {
        let mut all = self.lock();
        let Some(list) = all.get_mut(digest) else { return };
        if let Some(at) = list.iter().position(|(ns, _)| *ns == ingest.namespace) {
            list.swap_remove(at);
        }
        if list.is_empty() {
            all.remove(digest);
        }
    }
}

/// See the head of this file. Dropped before [`Placed::done`], the blobs become ingests again. So whoever holds it must
/// hear how the transaction with its rows ended before letting go of it.
pub struct Placed {
    store: Arc<Store>,
    authority: Authority,
    /// Those that are in place, with their digests.
    commits: Vec<(Commit, Digest)>,
}

impl Store {
    /// Verifies ingests and moves them to where blobs are. All or none.
    pub(crate) fn place(self: &Arc<Store>, auth: &Authority, commits: Vec<Commit>) -> Result<Placed> {
        let digests: Vec<Digest> = commits.iter().map(Commit::check).collect::<Result<_>>()?;
        for commit in &commits {
            files::seal(&commit.ingest.file)?;
        }
        // Declared first: it is dropped after the reservation, which it takes when it is.
        let mut placed = Placed { store: self.clone(), authority: auth.clone(), commits: Vec::new() };
        let _reserved = self.reserved.hold_all(digests.clone());
        for (commit, digest) in commits.into_iter().zip(digests) {
            self.files.publish(&commit.ingest.name, &commit.ingest.file, &digest)?;
            self.placed.add(&commit.ingest, &digest);
            placed.commits.push((commit, digest));
        }
        Ok(placed)
    }
}

impl Placed {
    /// The device that they lie on, as stat(2) names it.
    pub fn device(&self) -> Result<u64> {
        self.store.files.device()
    }

    /// Makes bytes and names durable: it must be done before the rows are committed, unless somebody else syncs the file
    /// system through [`Placed::witness`].
    pub async fn sync(&self) -> Result<()> {
        let Some(witness) = self.witness().await? else { return Ok(()) };
        self.store.pool.run(move || witness.sync().map_err(|e| fault(&e))).await
    }

    /// [`Placed::sync`] on this thread. One file with its name costs less than the file system.
    pub fn sync_blocking(&self) -> Result<()> {
        match &self.commits[..] {
            [(commit, digest)] => {
                commit.ingest.sync_all()?;
                self.store.files.sync_names(digest.algorithm())
            }
            commits => {
                let ingests = commits.iter().map(|(commit, _)| &commit.ingest);
                ingests.filter(|ingest| ingest.resumed).try_for_each(Ingest::sync_all)?;
                self.earliest()?.map_or(Ok(()), |witness| witness.sync().map_err(|e| fault(&e)))
            }
        }
    }

    /// Who hears what becomes of their bytes, when the whole file system is synced through it. What an earlier writer has left
    /// of them is synced before: of that it may not hear. `None`: there are none.
    pub async fn witness(&self) -> Result<Option<Arc<Witness>>> {
        let resumed = self.commits.iter().map(|(commit, _)| &commit.ingest).filter(|ingest| ingest.resumed);
        let left = resumed.map(|ingest| ingest.file.try_clone()).collect::<io::Result<Vec<_>>>();
        let left = left.map_err(|e| fault(&e))?;
        if !left.is_empty() {
            let sync = |file: &File| file.sync_all().inspect_err(|_| drop(file.set_len(0)));
            self.store.pool.run(move || left.iter().try_for_each(sync).map_err(|e| fault(&e))).await?;
        }
        self.earliest()
    }

    /// The file of them that was opened first hears of all that was written into any.
    fn earliest(&self) -> Result<Option<Arc<Witness>>> {
        let ingests = self.commits.iter().map(|(commit, _)| &commit.ingest);
        let first = ingests.min_by_key(|ingest| ingest.opened);
        let witness = first.map(|ingest| Witness::of(&ingest.file, ingest.opened)).transpose();
        witness.map(|witness| witness.map(Arc::new)).map_err(|e| fault(&e))
    }

    /// What makes them visible: to be called in the transaction.
    pub fn rows(&self) -> impl Fn(&mut Tx<'_>) -> Result<()> + Clone + Send + 'static {
        let rows: Vec<Row> = self.commits.iter().map(|(commit, digest)| Row::new(commit, digest)).collect();
        move |tx| rows.iter().try_for_each(|row| row.write(tx))
    }

    /// The transaction with their rows was committed.
    pub fn done(mut self) -> Vec<Digest> {
        let commits = std::mem::take(&mut self.commits);
        let done = commits.into_iter().map(|(mut commit, digest)| {
            commit.ingest.done = true;
            self.store.placed.take(&commit.ingest, &digest);
            digest
        });
        done.collect()
    }

    /// Takes them back, and aborts their ingests as [`Ingest::give_up`] does.
    pub fn withdraw(mut self, until: Instant) {
        for commit in self.restore() {
            commit.ingest.give_up(&self.authority, until);
        }
    }

    /// Makes ingests of them again.
    fn restore(&mut self) -> Vec<Commit> {
        let commits = std::mem::take(&mut self.commits);
        let restored = commits.into_iter().map(|(commit, digest)| {
            let _reserved = self.store.reserved.hold_all(vec![digest.clone()]);
            self.store.placed.take(&commit.ingest, &digest);
            self.store.unplace(&commit.ingest, &digest);
            commit
        });
        restored.collect()
    }
}

fn fault(error: &io::Error) -> Error {
    Error::io("content", "", "blobs can't be synced", error)
}

impl Drop for Placed {
    fn drop(&mut self) {
        self.restore();
    }
}

impl Store {
    /// The file goes back to its ingest, unless somebody counts on it by now; or goes, if the ingest was aborted meanwhile.
    /// The caller holds the digest's reservation.
    fn unplace(&self, ingest: &Ingest, digest: &Digest) {
        if self.placed.any(digest) {
            return;
        }
        let result = self.meta.read().and_then(|view| {
            if records::content::blob(&view, digest)?.is_some() {
                return Ok(());
            }
            match &ingest.origin {
                Origin::Recorded { reference, id }
                    if records::ingests::find(&view, &ingest.namespace, reference)?.is_none_or(|r| r.id != *id) =>
                {
                    self.files.remove_blob(digest)
                }
                _ => self.files.unpublish(&ingest.name, digest),
            }
        });
        // While the metadata are down nobody knows whether it was committed. What no record counts on is swept.
        if let Err(error) = result
            && error.code != Code::NotFound
        {
            tracing::warn!(%error, %digest, "a file may stay without a record until the next start");
        }
    }
}
