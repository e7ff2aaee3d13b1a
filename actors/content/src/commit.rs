//! From ingest to blob: bytes and name durable first, then the record that makes them visible.

use std::sync::Arc;

use cofferdam_metadata::{Tx, records};
use cofferdam_types::{Authority, Digest, Error, Labels, Name, Namespace, Result};

use crate::{
    ingest::{Ingest, Origin},
    store::Store,
};

/// An ingest that is to become a blob.
#[derive(Debug)]
pub struct Commit {
    /// The ingest.
    pub ingest: Ingest,
    /// How many bytes it must have, if that is known.
    pub size: Option<u64>,
    /// Which digest it must have, if that is known.
    pub expected: Option<Digest>,
    /// Labels of the blob.
    pub labels: Labels,
}

impl Commit {
    /// Whether what arrived is what was announced.
    pub(crate) fn check(&self) -> Result<Digest> {
        let (ingest, digest) = (&self.ingest, self.ingest.digest_so_far());
        let lost = |why: String| Err(Error::data_loss("ingest", ingest.id(), why));
        if let Some(size) = self.size.filter(|size| *size != ingest.offset()) {
            return lost(format!("unexpected commit size {}, expected {size}", ingest.offset()));
        }
        for expected in [&self.expected, &ingest.expected].into_iter().flatten() {
            if expected.algorithm() != digest.algorithm() {
                let why = format!("was opened for {}, not for {expected}", digest.algorithm().as_str());
                return Err(Error::invalid("ingest", ingest.id(), why));
            }
            if *expected != digest {
                return lost(format!("unexpected commit digest {digest}, expected {expected}"));
            }
        }
        cofferdam_types::validate_labels(&self.labels)?;
        Ok(digest)
    }
}

impl Store {
    /// One blob that the namespace must not have yet.
    pub(crate) fn commit_one(self: &Arc<Store>, auth: &Authority, mut commit: Commit) -> Result<Digest> {
        let digest = commit.check()?;
        if let Err(error) = self.refuse_linked(auth, &self.meta.read()?, &commit.ingest.namespace, &digest) {
            // What it holds is there already, to the byte.
            commit.ingest.discard(auth)?;
            return Err(error);
        }
        let mut digests = self.commit_many(auth, vec![commit])?;
        digests.pop().ok_or_else(|| Error::internal("blob", digest, "got lost on its way"))
    }

    /// Several blobs, each new to its namespace or not, with one sync of their bytes and one commit. All or none.
    pub(crate) fn commit_many(self: &Arc<Store>, auth: &Authority, commits: Vec<Commit>) -> Result<Vec<Digest>> {
        let placed = self.place(auth, commits)?;
        placed.sync_blocking()?;
        self.meta.write_blocking(auth, placed.rows())?;
        Ok(placed.done())
    }
}

/// What a commit writes for one blob.
#[derive(Clone)]
pub(crate) struct Row {
    namespace: Namespace,
    ingest: Option<(Name, u64)>,
    link: records::content::Link,
}

impl Row {
    pub(crate) fn new(commit: &Commit, digest: &Digest) -> Row {
        let mut link = records::content::Link::new(digest.clone(), commit.ingest.offset());
        link.labels = commit.labels.clone();
        let ingest = match &commit.ingest.origin {
            Origin::Recorded { reference, id } => Some((reference.clone(), *id)),
            Origin::Scratch => None,
        };
        Row { namespace: commit.ingest.namespace.clone(), ingest, link }
    }

    /// Drops the ingest and links the blob, whose bytes were verified just now. A link that is there gets the labels beside its own.
    pub(crate) fn write(&self, tx: &mut Tx<'_>) -> Result<()> {
        let (ns, link) = (&self.namespace, &self.link);
        records::content::mended(tx, &link.digest)?;
        if let Some((reference, id)) = &self.ingest {
            let aborted = || Error::failed_precondition("ingest", reference, "was aborted: begin again");
            let record = records::ingests::find(tx, ns, reference)?.ok_or_else(aborted)?;
            if record.id != *id {
                return Err(aborted());
            }
            records::ingests::delete(tx, ns, reference)?;
        }
        let Some(old) = records::content::find(tx, ns, &link.digest)? else {
            return records::content::create(tx, ns, link.clone()).map(drop);
        };
        records::leases::keep(tx, ns, &records::Resource::Content(link.digest.clone()))?;
        let labels = old.labels_with(&link.labels);
        if labels != old.labels {
            records::content::update(tx, ns, &link.digest, &labels, &[])?;
        }
        Ok(())
    }
}
