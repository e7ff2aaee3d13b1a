//! All blobs that an image consists of.

use std::collections::HashSet;

use cofferdam_content::Info;
use cofferdam_images::{MAX_DOCUMENT, Own, children, document};
use cofferdam_types::{Descriptor, Digest, Error, Result, media};

use crate::{Job, transfer::Core};

/// Documents within documents.
const MAX_DEPTH: usize = 8;

/// Refuses a descriptor that says another size than the blob has that is here: whoever fetches a blob compares, and of one that is
/// here nobody fetches anything.
pub(crate) fn fits(said: &Descriptor, held: &Info) -> Result<()> {
    if said.size == held.size {
        return Ok(());
    }
    let why =
        format!("has {} bytes, and what names it says {}: that was made wrong, get it anew", held.size, said.size);
    Err(Error::data_loss("blob", &said.digest, why))
}

/// All that documents lead to.
pub(crate) struct Gather<'a> {
    core: &'a Core,
    job: &'a Job,
    /// Whether images of an index may be missing: they are for other platforms.
    partly: bool,
    /// All else is as if it weren't here.
    own: Own,
    seen: HashSet<Digest>,
    /// Each before what it leads to.
    pub blobs: Vec<Descriptor>,
}

impl<'a> Gather<'a> {
    /// What is here of it.
    pub fn here(core: &'a Core, job: &'a Job) -> Gather<'a> {
        Gather { core, job, partly: true, own: Own::default(), seen: HashSet::new(), blobs: Vec::new() }
    }

    /// All of it must be here.
    pub fn whole(core: &'a Core, job: &'a Job) -> Gather<'a> {
        Gather { partly: false, ..Gather::here(core, job) }
    }

    /// Of what is the image's own.
    pub fn of(self, own: Own) -> Gather<'a> {
        Gather { own, ..self }
    }

    /// What one leads to, itself included.
    pub fn add(&mut self, top: &Descriptor) -> Result<()> {
        self.enter(top, false, 0)
    }

    fn enter(&mut self, blob: &Descriptor, spare: bool, depth: usize) -> Result<()> {
        self.job.word().check()?;
        if depth > MAX_DEPTH {
            return Err(Error::invalid("document", &blob.digest, format!("lies behind more than {MAX_DEPTH} others")));
        }
        if !self.seen.insert(blob.digest.clone()) {
            return Ok(());
        }
        let (content, ns) = (&self.core.content, self.job.namespace());
        let Some(held) = self.own.find(content, ns, &blob.digest)? else {
            if spare {
                return Ok(());
            }
            let of = blob.platform.as_ref().map(|platform| format!(" (for {platform})")).unwrap_or_default();
            let why = format!("is not here{of}, and belongs to the image: pull or import that again");
            return Err(Error::failed_precondition("blob", &blob.digest, why));
        };
        fits(blob, &held)?;
        self.blobs.push(Descriptor::new(&*blob.media_type, blob.digest.clone(), blob.size));
        let kind = media::kind(&blob.media_type);
        if !matches!(kind, media::Kind::Manifest | media::Kind::Index) {
            return Ok(());
        }
        let bytes = content.read_verified(ns, &blob.digest, MAX_DOCUMENT)?;
        for child in children(&document(blob, &bytes)?) {
            let image = matches!(media::kind(&child.media_type), media::Kind::Manifest | media::Kind::Index);
            self.enter(&child, self.partly && image && kind == media::Kind::Index, depth + 1)?;
        }
        Ok(())
    }
}
