//! Blobs read again and compared with their digests, to find what the disk has changed before somebody needs it.
//!
//! What is found is on record until the blob is replaced or removed: the check tells it, and it may be stored again.

use std::{collections::VecDeque, sync::Arc};

use cofferdam_metadata::records::{self, content::Blob};
use cofferdam_types::{Authority, Code, Digest, Digester, Result};

use crate::{files::Files, reader::BlobReader, store::Store};

const PAGE: usize = 100;

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
                self.store.suspect(open.reader.digest())?;
                return Ok(Some(most));
            }
        };
        open.digester.update(&buffer[..count]);
        open.offset += count as u64;
        if count > 0 && open.offset < open.reader.size() {
            self.open = Some(open);
        } else if open.digester.finish() != *open.reader.digest() {
            self.store.suspect(open.reader.digest())?;
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
}

impl Store {
    /// Reads a blob again that somebody has found to be wrong, unless it was removed or replaced meanwhile, and has it on record
    /// if it is: then it can be stored again. One that has another size needs no such record.
    pub(crate) fn suspect(&self, digest: &Digest) -> Result<()> {
        let _reserved = self.reserved.hold_all(vec![digest.clone()]);
        let blob = records::readable(records::content::blob(&self.meta.read()?, digest))?;
        let Some(blob) = blob.flatten() else { return Ok(()) };
        if blob.altered || self.files.blob_size(digest)? != Some(blob.size) || self.is_sound(&blob)? {
            return Ok(());
        }
        tracing::error!(%digest, "a blob's bytes are not what its digest says");
        let id = digest.clone();
        self.meta.write_blocking(&Authority::system(), move |tx| records::content::damaged(tx, &id))
    }

    /// Reads a blob whole. What the disk can't give is as good as altered; what can't be opened just now is neither.
    pub(crate) fn is_sound(&self, blob: &Blob) -> Result<bool> {
        let file = self.files.blob(&blob.digest)?;
        match BlobReader::new(file, blob.digest.clone(), blob.size) {
            Ok(reader) => Ok(reader.verify().is_ok()),
            Err(error) if error.code == Code::DataLoss => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn open(files: &Files, blob: &Blob) -> Option<BlobReader> {
    files.blob(&blob.digest).and_then(|file| BlobReader::new(file, blob.digest.clone(), blob.size)).ok()
}
