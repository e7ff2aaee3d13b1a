//! A blob on its way in: the one writer of its ref, counting and hashing what passes.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::FileExt,
    sync::Arc,
    time::{Duration, Instant},
};

use cofferdam_metadata::records::ingests::Hashed;
use cofferdam_types::{
    Algorithm, Authority, Code, Digest, Digester, Error, GrantId, Labels, Name, Namespace, Result, Timestamp,
};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::{
    ahead,
    commit::Commit,
    held::Guard,
    kept::{self, Kept},
    store::{RefKey, Store},
};

/// Between two attempts to give an ingest up.
const PAUSE: Duration = Duration::from_millis(50);
/// So many bytes are asked for at a time where a grant bounds them.
const AHEAD: u64 = 4 << 20;

/// How the file of an ingest is known, and what becomes of it when its writer goes away without a commit.
#[derive(Debug)]
pub(crate) enum Origin {
    /// It has a record, stays, and can be resumed by whoever opens the ref again.
    Recorded {
        /// The ref.
        reference: Name,
        /// The record's own id: another ingest under the same ref has another.
        id: u64,
    },
    /// It has none and goes with its writer.
    Scratch,
}

/// An open ingest. It holds its ref until it is dropped: nobody else can open the ref meanwhile.
///
/// Writing blocks on the file system alone; the job that receives the bytes writes from its own thread.
#[derive(Debug)]
pub struct Ingest {
    pub(crate) store: Arc<Store>,
    pub(crate) namespace: Namespace,
    pub(crate) origin: Origin,
    /// The name of its file.
    pub(crate) name: String,
    pub(crate) file: File,
    pub(crate) total: Option<u64>,
    pub(crate) expected: Option<Digest>,
    algorithm: Algorithm,
    digester: Digester,
    offset: u64,
    /// See [`Ingest::left`].
    pub(crate) left: Vec<(u64, u64)>,
    started: Timestamp,
    /// When its file was opened. Not before `file` was: who compares two knows which of them hears of whose errors.
    pub(crate) opened: Instant,
    /// Whether there was something in it that this opening hasn't written.
    pub(crate) resumed: bool,
    kept: Kept,
    /// Of one that came through grants of which one bounds the disk: who they are, and how far it was asked about.
    pub(crate) asked: Option<(Arc<[GrantId]>, u64)>,
    /// Set once the file is somebody else's business: a blob, or removed.
    pub(crate) done: bool,
    /// The ref, and for a scratch ingest the name of its file, which the sweep then leaves alone.
    _held: Guard<RefKey>,
}

/// What an ingest is about.
#[derive(Clone, Debug)]
pub struct IngestOptions {
    /// The ref: one writer at a time, by which a later one finds what this one left.
    pub reference: Name,
    /// How many bytes are to come, if known: more are refused.
    pub total: Option<u64>,
    /// Which blob it is to become, if known.
    pub expected: Option<Digest>,
    /// What hashes it, unless `expected` says.
    pub algorithm: Algorithm,
    /// What an earlier writer left is not hashed at once: it is for [`Ingest::recover`].
    pub unread: bool,
}

impl IngestOptions {
    /// An ingest under `reference` of which nothing is known.
    pub fn new(reference: Name) -> IngestOptions {
        IngestOptions { reference, total: None, expected: None, algorithm: Algorithm::Sha256, unread: false }
    }
}

/// What is on record of an ingest that is opened, and what is asked for.
pub(crate) struct Opening {
    pub(crate) total: Option<u64>,
    pub(crate) expected: Option<Digest>,
    pub(crate) algorithm: Algorithm,
    pub(crate) started: Timestamp,
    pub(crate) hashed: Option<Hashed>,
    /// Whether who opens it reads again what is there.
    pub(crate) unread: bool,
}

impl Ingest {
    /// Takes over what the file holds: by hashing it from where its hash is kept, or when its bytes pass once more.
    pub(crate) fn open(
        store: Arc<Store>,
        namespace: Namespace,
        origin: Origin,
        name: String,
        opening: Opening,
        held: Guard<RefKey>,
    ) -> Result<Ingest> {
        let Opening { total, expected, algorithm, started, hashed, unread } = opening;
        let algorithm = expected.as_ref().map_or(algorithm, Digest::algorithm);
        let mut ingest = Ingest {
            file: store.files.ingest(&name)?,
            store,
            namespace,
            origin,
            name,
            total,
            expected,
            algorithm,
            digester: Digester::new(algorithm),
            offset: 0,
            left: Vec::new(),
            started,
            opened: Instant::now(),
            resumed: false,
            kept: Kept::default(),
            asked: None,
            done: false,
            _held: held,
        };
        let length = ingest.look(unread)?;
        ingest.resumed = length > 0;
        if unread {
            // All of it is to pass again. What is kept of its hash speaks of bytes that stay as they are.
            return Ok(ingest);
        }
        if let Some(hashed) = hashed {
            match ingest.kept.take_up(&hashed, algorithm, length) {
                Some((digester, offset)) => (ingest.digester, ingest.offset) = (digester, offset),
                // What is written from now on may be as long, and be something else.
                None => ingest.keep_nothing()?,
            }
        }
        ingest.rehash()?;
        Ok(ingest)
    }

    /// Finds out what is there, and gives its length. Who goes on at the end of it makes no use of what lies behind a hole.
    fn look(&mut self, unread: bool) -> Result<u64> {
        let (left, length) = ahead::written(&self.file).map_err(|e| self.fault("resume", &e))?;
        let end = match (unread, left.first()) {
            (true, _) => self.total.map_or(length, |total| length.min(total)),
            (false, Some((0, end))) => *end,
            (false, _) => 0,
        };
        if end < length {
            self.file.set_len(end).map_err(|e| self.fault("resume", &e))?;
        }
        if unread {
            self.left = left.into_iter().map(|(from, to)| (from, to.min(end))).filter(|(from, to)| from < to).collect();
        }
        Ok(end)
    }

    fn rehash(&mut self) -> Result<()> {
        let mut buffer = vec![0; 256 << 10];
        self.file.seek(SeekFrom::Start(self.offset)).map_err(|e| self.fault("resume", &e))?;
        loop {
            let count = match self.file.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.fault("resume", &error)),
            };
            self.pass(&buffer[..count]);
        }
    }

    /// These were the next.
    pub(crate) fn pass(&mut self, bytes: &[u8]) {
        self.digester.update(bytes);
        self.offset += bytes.len() as u64;
        if self.kept.is_due(self.offset)
            && let Some(of) = self.of()
        {
            self.kept.keep(of, &self.digester, self.offset);
        }
    }

    /// The ref; `None` for one that can't be resumed.
    pub fn reference(&self) -> Option<&Name> {
        match &self.origin {
            Origin::Recorded { reference, .. } => Some(reference),
            Origin::Scratch => None,
        }
    }

    /// How many bytes have been written.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// How many are to come in all, if known.
    pub fn total(&self) -> Option<u64> {
        self.total
    }

    /// Which blob it is to become, if that was said.
    pub fn expected(&self) -> Option<&Digest> {
        self.expected.as_ref()
    }

    /// When it was begun.
    pub fn started(&self) -> Timestamp {
        self.started
    }

    /// When bytes were written last.
    pub fn updated(&self) -> Result<Timestamp> {
        let found = self.store.files.ingest_stat(&self.name)?;
        Ok(found.map_or(self.started, |stat| crate::store::modified(&stat).max(self.started)))
    }

    /// The digest of what has been written so far.
    pub fn digest_so_far(&self) -> Digest {
        self.digester.clone().finish()
    }

    /// Appends all of `bytes`. On an error nothing of them was appended.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let end = self.offset + bytes.len() as u64;
        if let Some(total) = self.total.filter(|total| end > *total) {
            let why = format!("gets more than the {total} bytes that were announced");
            return Err(Error::out_of_range("ingest", self.id(), why));
        }
        if let Some((path, until)) = self.asked.clone().filter(|(_, until)| end > *until) {
            // Somewhat ahead, so that it isn't asked for each piece; what is left in the end is less than that.
            let ahead = end.max(until.saturating_add(AHEAD).min(self.total.unwrap_or(u64::MAX)));
            let asked = self.store.may_store(&self.namespace, &path, ahead - self.offset);
            let until = match asked {
                Ok(()) => ahead,
                Err(_) => self.store.may_store(&self.namespace, &path, bytes.len() as u64).map(|()| end)?,
            };
            self.asked = Some((path, until));
        }
        if let Err(error) = self.file.write_all_at(bytes, self.offset) {
            // What got there would count as written when the ingest is resumed, and is room on a disk that is full.
            let _ = self.file.set_len(self.offset);
            return Err(self.fault("write", &error));
        }
        self.pass(bytes);
        Ok(())
    }

    /// What its hash is kept of; nothing of one that can't be gone on with.
    fn of(&self) -> Option<kept::Of> {
        let Origin::Recorded { reference, id } = &self.origin else { return None };
        let (store, namespace, name) = (self.store.clone(), self.namespace.clone(), self.name.clone());
        Some(kept::Of { store, namespace, reference: reference.clone(), id: *id, name })
    }

    /// Takes out what is kept of its hash, durably.
    fn keep_nothing(&mut self) -> Result<()> {
        self.kept.over();
        // Always: one that was being kept while its writer left may have been written since the record was read.
        self.of().map_or(Ok(()), |of| of.write(None, || true))
    }

    /// Forgets all that was written.
    pub fn truncate(&mut self) -> Result<()> {
        self.keep_nothing()?;
        // Who syncs it beside us, and fails, empties it: not once there is something new in it.
        let _alone = self.store.syncs.hold_all(vec![self.name.clone()]);
        self.file.set_len(0).map_err(|e| self.fault("truncate", &e))?;
        self.digester = Digester::new(self.algorithm);
        self.offset = 0;
        self.left = Vec::new();
        Ok(())
    }

    /// What was written, to be read from its beginning; it can be read on when the ingest is gone.
    pub fn file(&self) -> Result<File> {
        let mut file = self.file.try_clone().map_err(|e| self.fault("read", &e))?;
        file.seek(SeekFrom::Start(0)).map_err(|e| self.fault("read", &e))?;
        Ok(file)
    }

    /// Has the kernel begin to write it to disk, so that a sync finds less to do. That it can't is no error.
    pub fn write_out(&self) {
        let _ = posix_fadvise(&self.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    }

    /// Makes what was written durable, and how far its hash is: who goes on after a power cut begins here. It is done now and
    /// then by itself, beside the writing.
    ///
    /// On an error all that was written is forgotten: the disk may have kept none of it, whatever is read.
    pub fn sync(&mut self) -> Result<()> {
        let synced = self.file.sync_data().map_err(|e| self.fault("sync", &e));
        let Some(of) = self.of() else { return synced };
        if let Err(error) = synced.and_then(|()| self.store.files.sync_ingests()) {
            self.truncate()?;
            return Err(error);
        }
        of.write(Some(kept::hashed(&self.digester, self.offset)), || true)
    }

    /// On an error the disk may have kept nothing of it, whatever is read: nobody goes on with that.
    pub(crate) fn sync_all(&self) -> Result<()> {
        let synced = self.file.sync_all().inspect_err(|_| drop(self.file.set_len(0)));
        synced.map_err(|e| self.fault("sync", &e))
    }

    /// Makes it a blob of its namespace, durably, if size and digest are as said: otherwise `data_loss`, and the
    /// ingest stays as it is for a writer that opens it again. `already_exists`, and the ingest is gone, if the
    /// namespace has the blob already. Runs on the store's own workers.
    pub async fn commit(
        self,
        auth: &Authority,
        size: Option<u64>,
        expected: Option<&Digest>,
        labels: Labels,
    ) -> Result<Digest> {
        let (pool, auth, expected) = (self.store.pool.clone(), auth.clone(), expected.cloned());
        pool.run(move || self.commit_blocking(&auth, size, expected.as_ref(), labels)).await
    }

    /// [`Ingest::commit`] on this thread.
    pub fn commit_blocking(
        self,
        auth: &Authority,
        size: Option<u64>,
        expected: Option<&Digest>,
        labels: Labels,
    ) -> Result<Digest> {
        let store = self.store.clone();
        store.commit_one(auth, Commit { ingest: self, size, expected: expected.cloned(), labels })
    }

    /// Drops the ingest and what was written. Blocks.
    pub fn abort(mut self, auth: &Authority) -> Result<()> {
        self.discard(auth)
    }

    /// [`Ingest::abort`] by who can't do more about it than wait: on a full disk the record can't be deleted before there
    /// is room, and while the tables are opened anew none can.
    pub fn give_up(mut self, auth: &Authority, until: Instant) {
        let result = loop {
            match self.discard(auth) {
                Err(error)
                    if matches!(error.code, Code::ResourceExhausted | Code::Unavailable) && Instant::now() < until =>
                {
                    std::thread::sleep(PAUSE);
                }
                result => break result,
            }
        };
        if let Err(error) = result {
            tracing::warn!(%error, "an ingest could not be aborted: it stays until it is taken up or swept");
        }
    }

    pub(crate) fn discard(&mut self, auth: &Authority) -> Result<()> {
        // First of all the room that it takes: on a full disk there would be none to delete its record in. By its name: our
        // own descriptor may be that of a blob by now, which others count on.
        self.store.files.empty_ingest(&self.name);
        if let Origin::Recorded { reference, id } = &self.origin {
            match self.store.drop_record(auth, &self.namespace, reference, Some(*id)) {
                Err(error) if error.code != Code::NotFound => return Err(error),
                _ => {}
            }
        }
        self.done = true;
        self.store.files.remove_ingest(&self.name)
    }

    /// What errors call it.
    pub(crate) fn id(&self) -> &str {
        self.reference().map_or(self.name.as_str(), Name::as_str)
    }

    fn fault(&self, what: &str, error: &io::Error) -> Error {
        Error::io("ingest", self.id(), format!("can't {what}"), error)
    }
}

impl Write for Ingest {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.append(bytes).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        if !self.done
            && matches!(self.origin, Origin::Scratch)
            && let Err(error) = self.store.files.remove_ingest(&self.name)
        {
            tracing::warn!(%error, name = self.name, "a file of an ingest stays until the next start");
        }
    }
}
