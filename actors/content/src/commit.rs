//! From ingest to blob: bytes durable first, then the name, then the record that makes them visible.

use cofferdam_metadata::{Tx, records};
use cofferdam_types::{Authority, Code, Digest, Error, Labels, Name, Namespace, Result};

use crate::{
    files,
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
    fn check(&self) -> Result<Digest> {
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
    pub(crate) fn commit_one(&self, auth: &Authority, mut commit: Commit) -> Result<Digest> {
        let digest = commit.check()?;
        if let Err(error) = self.refuse_linked(&self.meta.read()?, &commit.ingest.namespace, &digest) {
            // What it holds is there already, to the byte.
            commit.ingest.discard(auth)?;
            return Err(error);
        }
        let mut digests = self.commit_many(auth, vec![commit])?;
        digests.pop().ok_or_else(|| Error::internal("blob", digest, "got lost on its way"))
    }

    /// Several blobs, each new to its namespace or not, with one sync of their bytes and one commit. All or none.
    pub(crate) fn commit_many(&self, auth: &Authority, mut commits: Vec<Commit>) -> Result<Vec<Digest>> {
        let digests: Vec<Digest> = commits.iter().map(Commit::check).collect::<Result<_>>()?;
        let alone = commits.len() == 1;
        for commit in &commits {
            files::seal(&commit.ingest.file, alone)?;
        }
        if !alone {
            self.files.sync_all()?;
        }
        // From here on nobody removes a file of these digests, until the records say that they are wanted.
        let _reserved = self.reserved.hold_all(digests.clone());
        let mut published = 0;
        let result =
            self.publish(&commits, &digests, &mut published).and_then(|()| self.record(auth, &commits, &digests));
        if let Err(error) = result {
            for (commit, digest) in commits.iter().zip(&digests).take(published) {
                self.withdraw(&commit.ingest, digest);
            }
            return Err(error);
        }
        for commit in &mut commits {
            commit.ingest.done = true;
        }
        Ok(digests)
    }

    fn publish(&self, commits: &[Commit], digests: &[Digest], published: &mut usize) -> Result<()> {
        for (commit, digest) in commits.iter().zip(digests) {
            self.files.publish(&commit.ingest.name, digest)?;
            *published += 1;
        }
        self.files.sync_names(digests.iter().map(Digest::algorithm))
    }

    fn record(&self, auth: &Authority, commits: &[Commit], digests: &[Digest]) -> Result<()> {
        let rows: Vec<Row> = commits.iter().zip(digests).map(|(commit, digest)| Row::new(commit, digest)).collect();
        self.meta.write_blocking(auth, move |tx| rows.iter().try_for_each(|row| row.write(tx)))
    }

    /// After a failed commit: the file goes back to its ingest, unless a record counts on it by now; or goes, if the
    /// ingest was aborted meanwhile.
    fn withdraw(&self, ingest: &Ingest, digest: &Digest) {
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

/// What a commit writes for one blob.
struct Row {
    namespace: Namespace,
    ingest: Option<(Name, u64)>,
    link: records::content::Link,
}

impl Row {
    fn new(commit: &Commit, digest: &Digest) -> Row {
        let mut link = records::content::Link::new(digest.clone(), commit.ingest.offset());
        link.labels = commit.labels.clone();
        let ingest = match &commit.ingest.origin {
            Origin::Recorded { reference, id } => Some((reference.clone(), *id)),
            Origin::Scratch => None,
        };
        Row { namespace: commit.ingest.namespace.clone(), ingest, link }
    }

    /// Drops the ingest and links the blob. A link that is there gets the labels beside its own.
    fn write(&self, tx: &mut Tx<'_>) -> Result<()> {
        let (ns, link) = (&self.namespace, &self.link);
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
        let mut labels = old.labels.clone();
        labels.extend(link.labels.clone());
        if labels != old.labels {
            records::content::update(tx, ns, &link.digest, &labels, &[])?;
        }
        Ok(())
    }
}
