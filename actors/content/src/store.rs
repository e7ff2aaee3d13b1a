//! The store itself: files and records brought together, each in the order that a crash can't hurt.
//!
//! A blob's file is in place before its record says so, and its record is gone before the file is. An ingest's record
//! comes before its file, and goes after it. Whoever moves a file to its place or from it holds the digest's reservation
//! meanwhile; between the place and the record it is [`placed`](crate::placed): so a file is never removed under one who
//! just made use of it.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering},
};

use cofferdam_kernel::{Pool, block_on};
use cofferdam_metadata::{Metadata, Read, records};
use cofferdam_types::{
    Algorithm, Authority, Digest, Error, GrantId, Keeper, Labels, Name, Namespace, Result, Timestamp,
};
use nix::sys::stat::FileStat;
use tokio::sync::{self, OwnedRwLockReadGuard, RwLock, RwLockWriteGuard};

use crate::{
    commit::Commit,
    files::Files,
    held::{Guard, Held},
    ingest::{Ingest, IngestOptions, Opening, Origin},
    placed::Placements,
    reader::BlobReader,
};

/// What an open ingest holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum RefKey {
    /// The ref of a namespace.
    Ref(Namespace, Name),
    /// The name of a file without a record.
    Scratch(String),
}

/// How an ingest stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Its ref.
    pub reference: Name,
    /// How many bytes have been written.
    pub offset: u64,
    /// How many are to come in all, if known.
    pub total: Option<u64>,
    /// Which blob it is to become, if known.
    pub expected: Option<Digest>,
    /// When it was begun.
    pub started: Timestamp,
    /// When bytes were written last.
    pub updated: Timestamp,
}

/// See the head of this file.
pub(crate) struct Store {
    pub(crate) files: Files,
    pub(crate) meta: Metadata,
    /// For whoever may not block its own thread.
    pub(crate) pool: Pool,
    pub(crate) refs: Held<RefKey>,
    pub(crate) reserved: Held<Digest>,
    /// Names of files of ingests that are being synced beside their writers.
    pub(crate) syncs: Held<String>,
    pub(crate) placed: Placements,
    removals: Arc<RwLock<()>>,
    /// One check at a time: it may wait for removals on one of the few threads that these need.
    pub(crate) checking: sync::Mutex<()>,
    /// One sweep at a time, so that a sweep that was waited for leaves nothing to another.
    pub(crate) sweeping: Mutex<()>,
    scratch: AtomicU64,
}

/// See [`Content::removing`](crate::Content::removing).
#[derive(Debug)]
pub struct Removing(#[expect(dead_code, reason = "held until it is dropped")] OwnedRwLockReadGuard<()>);

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Store")
    }
}

impl Store {
    pub(crate) fn new(files: Files, meta: Metadata, pool: Pool) -> Store {
        Store {
            files,
            meta,
            pool,
            refs: Held::default(),
            reserved: Held::default(),
            syncs: Held::default(),
            placed: Placements::default(),
            removals: Arc::default(),
            checking: sync::Mutex::default(),
            sweeping: Mutex::new(()),
            scratch: AtomicU64::new(0),
        }
    }

    /// Opens an ingest, or takes up what another writer left under the ref.
    pub(crate) fn open(self: &Arc<Store>, auth: &Authority, ns: &Namespace, options: IngestOptions) -> Result<Ingest> {
        let IngestOptions { reference, total, expected, algorithm, unread } = options;
        let held = self.hold_ref(ns, &reference)?;
        let view = self.meta.read()?;
        records::namespaces::require(&view, ns)?;
        if let Some(digest) = &expected {
            self.refuse_linked(auth, &view, ns, digest)?;
        }
        let found = records::ingests::find(&view, ns, &reference)?;
        let fresh = found.is_none();
        let record = match found {
            Some(record) => self.take_up(auth, ns, record, total, expected)?,
            None => {
                let (ns, reference) = (ns.clone(), reference.clone());
                self.meta.write_blocking(auth, move |tx| {
                    records::ingests::create(tx, &ns, reference.clone(), expected.clone(), total)
                })?
            }
        };
        let origin = Origin::Recorded { reference: reference.clone(), id: record.id };
        let bounded = records::grants::bounds_disk(&view, &record.made_by)?;
        let asked = bounded.then(|| Arc::<[GrantId]>::from(record.made_by.as_slice()));
        let records::ingests::Ingest { id, total, expected, started, hashed, .. } = record;
        let opening = Opening { total, expected, algorithm, started, hashed, unread };
        let settled = self.syncs.hold_all(vec![id.to_string()]);
        let opened = Ingest::open(self.clone(), ns.clone(), origin, id.to_string(), opening, held);
        drop(settled);
        let opened = opened.inspect_err(|_| {
            if fresh && let Err(error) = self.drop_record(auth, ns, &reference, Some(id)) {
                tracing::warn!(%error, %reference, "the record of an ingest without a file stays until the next start");
            }
        });
        opened.map(|mut ingest| {
            ingest.asked = asked.map(|path| (path, ingest.offset()));
            ingest
        })
    }

    /// Whether so many bytes more may come through grants, beside what is there of ingests that came through them.
    pub(crate) fn may_store(&self, ns: &Namespace, path: &[GrantId], more: u64) -> Result<()> {
        let view = self.meta.read()?;
        let ingests = records::ingests::list(&view, ns, None, usize::MAX)?;
        let size = |ingest: &records::ingests::Ingest| {
            let stat = self.files.ingest_stat(&ingest.id.to_string()).ok().flatten();
            stat.map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0))
        };
        let coming = |id: GrantId| ingests.iter().filter(|ingest| ingest.made_by.contains(&id)).map(size).sum();
        records::grants::may_store(&view, ns, path, more, &coming)
    }

    /// What an interrupted ingest is to become may be said again, or for the first time.
    fn take_up(
        &self,
        auth: &Authority,
        ns: &Namespace,
        record: records::ingests::Ingest,
        total: Option<u64>,
        expected: Option<Digest>,
    ) -> Result<records::ingests::Ingest> {
        if let (Some(stored), Some(given)) = (record.total, total)
            && stored != given
        {
            let why = format!("was begun with a total of {stored} bytes, not {given}: abort it to begin anew");
            return Err(Error::invalid("ingest", &record.reference, why));
        }
        let (total, expected) = (record.total.or(total), expected.or_else(|| record.expected.clone()));
        if (total, &expected) == (record.total, &record.expected) {
            return Ok(record);
        }
        let (ns, record) = (ns.clone(), records::ingests::Ingest { total, expected, ..record });
        self.meta.write_blocking(auth, move |tx| records::ingests::update(tx, &ns, record.clone()))
    }

    /// Opens an ingest that has no ref and no record and can't be resumed: for what is read from a file at hand, and
    /// at the cost of no commit.
    pub(crate) fn scratch(self: &Arc<Store>, ns: &Namespace, algorithm: Algorithm) -> Result<Ingest> {
        records::namespaces::require(&self.meta.read()?, ns)?;
        let (name, held) = loop {
            let name = format!("scratch-{}", self.scratch.fetch_add(1, Ordering::Relaxed));
            // One that lies there from an earlier life may be the sweep's just now.
            if let Some(held) = self.refs.try_hold(RefKey::Scratch(name.clone())) {
                break (name, held);
            }
        };
        self.files.remove_ingest(&name)?;
        let opening =
            Opening { total: None, expected: None, algorithm, started: Timestamp::now(), hashed: None, unread: false };
        Ingest::open(self.clone(), ns.clone(), Origin::Scratch, name, opening, held)
    }

    /// Stores a small blob, whether the namespace has it already or not.
    pub(crate) fn put(
        self: &Arc<Store>,
        auth: &Authority,
        ns: &Namespace,
        algorithm: Algorithm,
        bytes: &[u8],
        labels: Labels,
    ) -> Result<Digest> {
        let mut ingest = self.scratch(ns, algorithm)?;
        ingest.append(bytes)?;
        let digest = ingest.digest_so_far();
        self.commit_many(auth, vec![Commit { ingest, size: None, expected: None, labels }])?;
        Ok(digest)
    }

    /// `already_exists` if the namespace has the blob, and has it whole: a damaged one may be sent again. Who would have
    /// kept the new one keeps the one that is there.
    pub(crate) fn refuse_linked(
        &self,
        auth: &Authority,
        view: &dyn Read,
        ns: &Namespace,
        digest: &Digest,
    ) -> Result<()> {
        let Some(link) = records::content::find(view, ns, digest)? else { return Ok(()) };
        if !self.is_whole(view, digest, link.size)? {
            return Ok(());
        }
        if auth.keeper != Keeper::References {
            let (ns, digest) = (ns.clone(), digest.clone());
            self.meta.write_blocking(auth, move |tx| {
                records::content::get(tx, &ns, &digest)?;
                records::leases::keep(tx, &ns, &records::Resource::Content(digest.clone()))
            })?;
        }
        Err(Error::already_exists("blob", digest, "is in this namespace already"))
    }

    /// Whether the bytes of a blob are there, as far as is known without reading them.
    pub(crate) fn is_whole(&self, view: &dyn Read, digest: &Digest, size: u64) -> Result<bool> {
        let whole = self.files.blob_size(digest)? == Some(size);
        let counted = records::readable(records::content::blob(view, digest))?.flatten();
        Ok(whole && !counted.is_some_and(|blob| blob.altered))
    }

    /// Opens a blob that the namespace has.
    pub(crate) fn reader(&self, ns: &Namespace, digest: &Digest) -> Result<BlobReader> {
        let link = records::content::get(&self.meta.read()?, ns, digest)?;
        BlobReader::new(self.files.blob(digest)?, link.digest, link.size)
    }

    /// Takes a blob from the namespace. The file goes with the last link.
    pub(crate) fn delete(&self, auth: &Authority, ns: &Namespace, digest: &Digest) -> Result<()> {
        let _reserved = self.reserved.hold_all(vec![digest.clone()]);
        let (space, id) = (ns.clone(), digest.clone());
        let last = self.meta.write_blocking(auth, move |tx| records::content::delete(tx, &space, &id))?;
        if last {
            self.remove_deleted(digest);
        }
        Ok(())
    }

    /// What others remove in commits of their own goes on.
    pub(crate) async fn removing(&self) -> Removing {
        Removing(self.removals.clone().read_owned().await)
    }

    /// None of that is under way: whose record is gone has no file either.
    pub(crate) fn settled(&self) -> RwLockWriteGuard<'_, ()> {
        block_on(self.removals.write())
    }

    /// Whether somebody waits for that.
    #[cfg(test)]
    pub(crate) fn is_awaited(&self) -> bool {
        self.removals.try_read().is_err()
    }

    /// The file of a blob whose last link was removed elsewhere.
    pub(crate) fn discard(&self, digest: &Digest) {
        let _reserved = self.reserved.hold_all(vec![digest.clone()]);
        self.remove_deleted(digest);
    }

    fn remove_deleted(&self, digest: &Digest) {
        if let Err(error) = self.remove_unlinked(digest) {
            // The client has what it asked for; the next sweep takes the file.
            tracing::warn!(%error, %digest, "the file of a deleted blob stays until the next start");
        }
    }

    /// Opens a blob that the namespace has, or that a job has placed for it.
    pub(crate) fn job_reader(&self, ns: &Namespace, digest: &Digest) -> Result<BlobReader> {
        match self.placed.size(ns, digest) {
            Some(size) => BlobReader::new(self.files.blob(digest)?, digest.clone(), size),
            None => self.reader(ns, digest),
        }
    }

    /// Removes a blob's file if nobody counts on it. The caller holds the digest's reservation.
    pub(crate) fn remove_unlinked(&self, digest: &Digest) -> Result<bool> {
        let unlinked = !self.placed.any(digest) && !records::content::is_kept(&self.meta.read()?, digest)?;
        if unlinked {
            self.files.remove_blob(digest)?;
        }
        Ok(unlinked)
    }

    /// How an ingest of the namespace stands.
    pub(crate) fn status(&self, ns: &Namespace, reference: &Name) -> Result<Status> {
        self.status_of(records::ingests::get(&self.meta.read()?, ns, reference)?)
    }

    /// A page of the namespace's ingests, by ref.
    pub(crate) fn statuses(&self, ns: &Namespace, after: Option<&str>, max: usize) -> Result<Vec<Status>> {
        let records = records::ingests::list(&self.meta.read()?, ns, after, max)?;
        records.into_iter().map(|record| self.status_of(record)).collect()
    }

    fn status_of(&self, record: records::ingests::Ingest) -> Result<Status> {
        let stat = self.files.ingest_stat(&record.id.to_string())?;
        Ok(Status {
            offset: stat.map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0)),
            // What was written last counts; a record is changed when its ingest is opened again.
            updated: stat.map_or(record.started, |stat| modified(&stat).max(record.started)),
            reference: record.reference,
            total: record.total,
            expected: record.expected,
            started: record.started,
        })
    }

    /// Drops an ingest and what was written, even under a writer: that one then fails to commit.
    pub(crate) fn abort(&self, auth: &Authority, ns: &Namespace, reference: &Name) -> Result<()> {
        let dropped = self.drop_record(auth, ns, reference, None)?;
        self.files.remove_ingest(&dropped.to_string())
    }

    /// Drops the record of an ingest, of this one alone if `id` says which, and gives its id.
    pub(crate) fn drop_record(
        &self,
        auth: &Authority,
        ns: &Namespace,
        reference: &Name,
        id: Option<u64>,
    ) -> Result<u64> {
        let (ns, reference) = (ns.clone(), reference.clone());
        self.meta.write_blocking(auth, move |tx| {
            let record = records::ingests::get(tx, &ns, &reference)?;
            match id {
                Some(id) if id != record.id => Ok(id),
                _ => Ok(records::ingests::delete(tx, &ns, &reference)?.id),
            }
        })
    }

    fn hold_ref(&self, ns: &Namespace, reference: &Name) -> Result<Guard<RefKey>> {
        self.refs
            .try_hold(RefKey::Ref(ns.clone(), reference.clone()))
            .ok_or_else(|| Error::unavailable("ingest", reference, "has a writer: wait for it, or abort the ingest"))
    }
}

/// When a file's bytes were changed last.
pub(crate) fn modified(stat: &FileStat) -> Timestamp {
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    Timestamp(part(stat.st_mtime) * 1_000_000_000 + part(stat.st_mtime_nsec))
}
