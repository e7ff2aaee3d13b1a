//! Blobs read again and compared with their digests, to find what the disk has changed before somebody needs it.
//!
//! What is found is kept in memory until the blob is replaced or removed: the check tells it, and it may be stored again.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use cofferdam_metadata::records::{self, content::Blob};
use cofferdam_types::{Authority, Digest, Digester, Result};

use crate::{files::Files, reader::BlobReader, store::Store};

const PAGE: usize = 100;
/// The most that are kept in mind; a disk that changes more than that is no secret.
const MOST: usize = 10_000;

/// Blobs whose file is known to have other bytes than it should.
#[derive(Debug, Default)]
pub(crate) struct Altered(Mutex<BTreeSet<Digest>>);

impl Altered {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<Digest>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn has(&self, digest: &Digest) -> bool {
        self.lock().contains(digest)
    }

    /// Its file is another one now, or gone.
    pub(crate) fn forget(&self, digest: &Digest) {
        self.lock().remove(digest);
    }

    /// Whether it is news.
    fn add(&self, digest: &Digest) -> bool {
        let mut all = self.lock();
        all.len() < MOST && all.insert(digest.clone())
    }
}

/// One pass over all blobs, as far as it is.
pub struct Scrub {
    store: Arc<Store>,
    after: Option<String>,
    ahead: VecDeque<Blob>,
    open: Option<Open>,
}

struct Open {
    reader: BlobReader,
    digester: Digester,
    offset: u64,
}

impl Scrub {
    pub(crate) fn new(store: Arc<Store>) -> Scrub {
        Scrub { store, after: None, ahead: VecDeque::new(), open: None }
    }

    /// Reads about so many bytes more, and says how many it read; `None` when everything was read. Blocks.
    pub fn read(&mut self, most: usize) -> Result<Option<usize>> {
        let mut open = match self.open.take() {
            Some(open) => open,
            None => match self.next()? {
                Some(open) => open,
                None => return Ok(None),
            },
        };
        let mut buffer = vec![0; most];
        let read = open.reader.read_at(&mut buffer, open.offset);
        let count = match &read {
            Ok(count) => *count,
            // What can't be read is as good as altered.
            Err(error) => {
                tracing::warn!(digest = %open.reader.digest(), %error, "a blob can't be read");
                self.found(open.reader.digest())?;
                return Ok(Some(most));
            }
        };
        open.digester.update(&buffer[..count]);
        open.offset += count as u64;
        if count > 0 && open.offset < open.reader.size() {
            self.open = Some(open);
        } else if open.digester.finish() != *open.reader.digest() {
            self.found(open.reader.digest())?;
        }
        Ok(Some(count))
    }

    /// The next blob that is there and has its size: the others the check finds without reading them.
    fn next(&mut self) -> Result<Option<Open>> {
        loop {
            if self.ahead.is_empty() {
                let page = records::content::blobs(&self.store.meta.read()?, self.after.as_deref(), PAGE)?;
                let Some(last) = page.last() else { return Ok(None) };
                self.after = Some(last.digest.to_string());
                self.ahead.extend(page);
            }
            let Some(blob) = self.ahead.pop_front() else { continue };
            let reader = open(&self.store.files, &blob);
            if let Some(reader) = reader {
                let digester = Digester::new(blob.digest.algorithm());
                return Ok(Some(Open { reader, digester, offset: 0 }));
            }
        }
    }

    /// Tells of a blob that isn't what it was, unless it was removed or replaced while it was read.
    fn found(&self, digest: &Digest) -> Result<()> {
        let store = &self.store;
        let _reserved = store.reserved.hold_all(vec![digest.clone()]);
        let blob = records::readable(records::content::blob(&store.meta.read()?, digest))?;
        let Some(blob) = blob.flatten() else { return Ok(()) };
        let again = open(&store.files, &blob);
        if again.is_some_and(|reader| reader.verify().is_ok()) || !store.altered.add(digest) {
            return Ok(());
        }
        tracing::error!(%digest, "a blob's bytes are not what its digest says");
        let id = digest.clone();
        store.meta.write_blocking(&Authority::system(), move |tx| records::content::damaged(tx, &id))
    }
}

fn open(files: &Files, blob: &Blob) -> Option<BlobReader> {
    files.blob(&blob.digest).and_then(|file| BlobReader::new(file, blob.digest.clone(), blob.size)).ok()
}
