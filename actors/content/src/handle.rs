//! The handle that the other subsystems hold.

use std::{borrow::Cow, os::fd::OwnedFd, sync::Arc};

use cofferdam_kernel::{Health, Kernel, Placement, Pool, Slot, SlotConfig};
use cofferdam_metadata::{Metadata, records};
use cofferdam_types::{
    Algorithm, Authority, COMES_BACK, Code, Digest, Error, Finding, Labels, Name, Namespace, Result, filter,
};

use crate::{
    BlobReader, Commit, Info, Ingest, IngestOptions, Placed, Removing, Status, Swept, Whole,
    actor::ContentActor,
    files::Files,
    messages::{Abort, Check, CommitMany, Delete, Discard, Open, Sweep},
    scrub::Scrub,
    store::Store,
};

/// Jobs at once: syncs overlap, and a client that hashes an old ingest again does not keep others waiting.
const THREADS: usize = 4;
const QUEUE: usize = 256;

/// What filters can ask of a blob: `digest` and `labels.<key>` (reference, section 4.5).
pub fn field<'i>(info: &'i Info, path: &[&str]) -> Option<Cow<'i, str>> {
    match path {
        ["digest"] => Some(Cow::Owned(info.digest.to_string())),
        ["labels", rest @ ..] => filter::label(&info.labels, rest),
        _ => None,
    }
}

/// The content store. Cheap to clone.
///
/// What is `async` runs on the store's own workers. Its `…_blocking` twin does the same on the caller's thread, for
/// jobs that have one: no hop, and no wait behind others. What is neither reads records on the caller's thread.
#[derive(Clone, Debug)]
pub struct Content {
    store: Arc<Store>,
    slot: Slot<ContentActor>,
}

impl Content {
    /// Opens the store in the directory `root`, making what is missing, and hosts its actor.
    pub fn start(kernel: &Kernel, placement: Placement, meta: Metadata, root: OwnedFd) -> Result<Content> {
        let store = Arc::new(Store::new(Files::open(&root)?, meta, Pool::new("content", THREADS, QUEUE)));
        let slot = kernel.spawn(SlotConfig::new("content", placement), {
            let store = store.clone();
            move || ContentActor::new(store.clone())
        });
        Ok(Content { store, slot })
    }

    /// Opens an ingest, or takes up what another writer left under its ref. `unavailable`: the ref has a writer;
    /// `already_exists`: the namespace has what is expected.
    pub async fn ingest(&self, auth: &Authority, ns: &Namespace, options: IngestOptions) -> Result<Ingest> {
        self.slot.call(Open { authority: auth.clone(), namespace: ns.clone(), options }).await
    }

    /// [`Content::ingest`] on this thread.
    pub fn ingest_blocking(&self, auth: &Authority, ns: &Namespace, options: IngestOptions) -> Result<Ingest> {
        self.up()?.open(auth, ns, options)
    }

    /// Opens an ingest without a ref, which can't be resumed and goes with its writer: for bytes that are at hand. It
    /// costs no commit. Does not block for long.
    pub fn scratch(&self, ns: &Namespace, algorithm: Algorithm) -> Result<Ingest> {
        self.up()?.scratch(ns, algorithm)
    }

    /// Makes blobs of ingests with one sync of their bytes and one commit, all or none. Unlike [`Ingest::commit`] it
    /// does not mind blobs that the namespace has already: they get the labels in addition.
    pub async fn commit_many(&self, auth: &Authority, commits: Vec<Commit>) -> Result<Vec<Digest>> {
        self.slot.call(CommitMany { authority: auth.clone(), commits }).await
    }

    /// [`Content::commit_many`] on this thread.
    pub fn commit_many_blocking(&self, auth: &Authority, commits: Vec<Commit>) -> Result<Vec<Digest>> {
        self.up()?.commit_many(auth, commits)
    }

    /// Moves ingests to where blobs are, to be recorded in a transaction of the caller's. Blocks.
    pub fn place(&self, auth: &Authority, commits: Vec<Commit>) -> Result<Placed> {
        self.up()?.place(auth, commits)
    }

    /// Stores a small blob such as a manifest, with one commit, whether the namespace has it already or not.
    pub async fn put_bytes(
        &self,
        auth: &Authority,
        ns: &Namespace,
        algorithm: Algorithm,
        bytes: Vec<u8>,
        labels: Labels,
    ) -> Result<Digest> {
        let (store, auth, ns) = (self.up()?.clone(), auth.clone(), ns.clone());
        // Bytes never pass a mailbox.
        let pool = store.pool.clone();
        pool.run(move || store.put(&auth, &ns, algorithm, &bytes, labels)).await
    }

    /// [`Content::put_bytes`] on this thread.
    pub fn put_bytes_blocking(
        &self,
        auth: &Authority,
        ns: &Namespace,
        algorithm: Algorithm,
        bytes: &[u8],
        labels: Labels,
    ) -> Result<Digest> {
        self.up()?.put(auth, ns, algorithm, bytes, labels)
    }

    /// Opens a blob of the namespace for reading.
    pub fn reader(&self, ns: &Namespace, digest: &Digest) -> Result<BlobReader> {
        self.up()?.reader(ns, digest)
    }

    /// The same for who reads all of it, from its beginning: it is compared with its digest meanwhile.
    pub fn whole(&self, ns: &Namespace, digest: &Digest) -> Result<Whole> {
        Ok(self.judged(self.reader(ns, digest)?))
    }

    /// The same over a reader that nothing was read from.
    pub fn judged(&self, reader: BlobReader) -> Whole {
        Whole::new(self.clone(), reader)
    }

    /// [`Content::reader`] for a job of the namespace, which may read what is only placed yet.
    pub fn job_reader(&self, ns: &Namespace, digest: &Digest) -> Result<BlobReader> {
        self.up()?.job_reader(ns, digest)
    }

    /// Whether the namespace has a blob, or a job has placed it: `not_found` otherwise.
    pub fn job_holds(&self, ns: &Namespace, digest: &Digest) -> Result<()> {
        match self.store.placed.size(ns, digest) {
            Some(_) => Ok(()),
            None => self.info(ns, digest).map(drop),
        }
    }

    /// Reads a blob of at most `max` bytes and verifies it: for manifests and the like.
    pub fn read_verified(&self, ns: &Namespace, digest: &Digest, max: u64) -> Result<Vec<u8>> {
        let read = self.reader(ns, digest)?.read_verified(max);
        // What the disk can't give is as good as altered; what is too long was not read.
        if read.as_ref().is_err_and(|error| error.code != Code::ResourceExhausted) {
            // Who reads it may not have the time to read it again.
            let (content, digest) = (self.clone(), digest.clone());
            self.store.pool.push(move || content.suspect(&digest));
        }
        read
    }

    /// Somebody has found the bytes of a blob to be wrong: they are read again, and if it is so, it counts as damaged, and whoever
    /// brings it again is let. Blocks.
    pub fn suspect(&self, digest: &Digest) {
        if let Err(error) = self.store.suspect(digest) {
            tracing::warn!(%error, %digest, "a blob of which the bytes seem to be wrong can't be looked at");
        }
    }

    /// Whether the namespace has a blob, and its bytes are there as far as is known without reading them: a record alone is not
    /// worth leaving out what can be brought.
    pub fn is_whole(&self, ns: &Namespace, digest: &Digest) -> Result<bool> {
        let view = self.store.meta.read()?;
        let Some(link) = records::content::find(&view, ns, digest)? else { return Ok(false) };
        self.store.is_whole(&view, digest, link.size)
    }

    /// What there is to say about a blob of the namespace.
    pub fn info(&self, ns: &Namespace, digest: &Digest) -> Result<Info> {
        records::content::get(&self.store.meta.read()?, ns, digest)
    }

    /// A page of the namespace's blobs, by digest, from the one after `after` on.
    pub fn list(&self, ns: &Namespace, after: Option<&Digest>, max: usize) -> Result<Vec<Info>> {
        let after = after.map(Digest::to_string);
        records::content::list(&self.store.meta.read()?, ns, after.as_deref(), max)
    }

    /// Replaces a blob's labels, or those that `mask` names (`labels.<key>`).
    pub async fn update(
        &self,
        auth: &Authority,
        ns: &Namespace,
        digest: &Digest,
        labels: Labels,
        mask: Vec<String>,
    ) -> Result<Info> {
        let (ns, digest) = (ns.clone(), digest.clone());
        self.store.meta.write(auth, move |tx| records::content::update(tx, &ns, &digest, &labels, &mask)).await
    }

    /// Takes a blob from the namespace. Its file goes when no namespace has it any more; open readers go on.
    pub async fn delete(&self, auth: &Authority, ns: &Namespace, digest: &Digest) -> Result<()> {
        self.slot.call(Delete { authority: auth.clone(), namespace: ns.clone(), digest: digest.clone() }).await
    }

    /// To be held by who removes blobs in a commit of its own, from before that until their files are gone: a check that finds
    /// one without a record waits for it.
    pub async fn removing(&self) -> Removing {
        self.store.removing().await
    }

    /// Removes the files of blobs whose last link the caller removed (`records::content::delete`) in a commit of its own,
    /// unless somebody has linked them again. Until this is called they stay, at the latest to the next start.
    pub async fn discard(&self, unlinked: Vec<Digest>, removing: Removing) -> Result<()> {
        self.slot.call(Discard(unlinked, removing)).await
    }

    /// How an ingest of the namespace stands.
    pub fn status(&self, ns: &Namespace, reference: &Name) -> Result<Status> {
        self.up()?.status(ns, reference)
    }

    /// A page of the namespace's ingests, by ref, from the one after `after` on.
    pub fn statuses(&self, ns: &Namespace, after: Option<&str>, max: usize) -> Result<Vec<Status>> {
        self.up()?.statuses(ns, after, max)
    }

    /// Drops an ingest and what was written, even under a writer: that one then fails to commit.
    pub async fn abort(&self, auth: &Authority, ns: &Namespace, reference: &Name) -> Result<()> {
        let (authority, namespace) = (auth.clone(), ns.clone());
        self.slot.call(Abort { authority, namespace, reference: reference.clone() }).await
    }

    /// Looks for what a crash left, and says what it found. The store does so by itself when it starts.
    pub async fn sweep(&self) -> Result<Swept> {
        self.slot.call(Sweep).await
    }

    /// Compares records and files, both ways. With `repair` what no record names is removed, and what has lost its bytes is
    /// taken off the records, so that it can be stored again.
    pub async fn check(&self, repair: bool) -> Result<Vec<Finding>> {
        let _alone = self.store.checking.lock().await;
        self.slot.call(Check(repair)).await
    }

    /// A pass over all blobs that compares their bytes with their digests, as it is asked to go on.
    pub fn scrub(&self) -> Result<Scrub> {
        Ok(Scrub::new(self.up()?.clone()))
    }

    #[cfg(test)]
    pub(crate) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The store, unless its actor is down: who comes by a thread of his own is refused like everybody else.
    fn up(&self) -> Result<&Arc<Store>> {
        let why = match self.slot.health() {
            Health::Up => return Ok(&self.store),
            Health::Starting => "is starting: try again".to_owned(),
            Health::Down { why } => format!("is down and {COMES_BACK}: {why}"),
            Health::Failed { why } => format!("has failed; restart the daemon: {why}"),
            Health::Stopped => "is stopped".to_owned(),
        };
        Err(Error::unavailable("actor", self.slot.name(), why))
    }
}
