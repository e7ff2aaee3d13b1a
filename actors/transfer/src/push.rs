//! Pushing: what an image consists of goes to a registry, blobs side by side, then documents from the innermost out, the name last.

use std::{
    cell::Cell,
    collections::HashMap,
    io::{Read, Seek as _, SeekFrom},
    sync::{Mutex, PoisonError},
};

use cofferdam_images::MAX_DOCUMENT;
use cofferdam_kernel::block_on;
use cofferdam_metadata::records::{Resource, content::SOURCE};
use cofferdam_types::{Authority, Descriptor, Digest, Error, Name, Platform, Result, media};

use crate::{
    Cancel, Endpoint, Job, Reference, Target,
    gather::Gather,
    job::Arrived,
    progress::{Board, Phase},
    registry::{Access, Repository, Sent, Source, referrer},
    transfer::Core,
};

/// Repositories that are asked for one blob.
const MAX_SOURCES: usize = 4;

/// What to push.
#[derive(Clone, Debug)]
pub struct PushOptions {
    /// The image.
    pub name: Name,
    /// Where to, and what to call it there.
    pub reference: Reference,
    /// How to speak to the registry.
    pub endpoint: Endpoint,
    /// The image for one platform alone; `None`: all that the name stands for.
    pub platform: Option<Platform>,
    /// Bytes of a blob in one request; 0: all.
    pub chunk: u64,
    /// Repositories of the same registry that may have its blobs.
    pub mount_from: Vec<String>,
    /// Layers too that aren't meant to be distributed.
    pub foreign: bool,
}

/// The labels of a blob that came from a repository.
pub(crate) fn came_from(reference: &Reference) -> cofferdam_types::Labels {
    [(format!("{SOURCE}{}", reference.host()), reference.path().to_owned())].into()
}

pub(crate) fn push(core: &Core, job: &Job, auth: &Authority, options: &PushOptions) -> Result<Vec<Arrived>> {
    let (ns, board, word) = (job.namespace(), job.board(), job.word().child());
    let (chosen, target) = (&auth.ceiling.images, core.images.get(ns, &options.name)?.target);
    let top = match &options.platform {
        None => target.clone(),
        Some(platform) => block_on(core.images.resolve_of(chosen, ns, &options.name, platform))?.manifest,
    };
    let tag = match options.reference.target()? {
        Target::Tag(tag) => tag,
        // It has no name there, and is found by what it is.
        Target::Digest(digest) if digest == top.digest => digest.to_string(),
        Target::Digest(_) => {
            let why =
                format!("names another digest than {}, which is what would be pushed: give that, or a tag", top.digest);
            return Err(Error::invalid("reference", &options.reference, why));
        }
    };
    board.stage("looking");
    let mut found = Gather::whole(core, job).of(core.images.own(chosen, ns, &options.name, &target)?);
    found.add(&top).map_err(|e| incomplete(e, options))?;
    let (documents, blobs): (Vec<_>, Vec<_>) = found.blobs.into_iter().partition(is_document);
    let blobs: Vec<_> = blobs.into_iter().filter(|blob| options.foreign || !is_foreign(&blob.media_type)).collect();
    // All of it stays here until it is there.
    let all = documents.iter().chain(&blobs).map(|blob| Resource::Content(blob.digest.clone())).collect();
    let _pin = block_on(core.meta.pin(ns, all))?;
    let sources = sources(core, job, options, &blobs)?;
    let mut mounts: Vec<String> = sources.values().flatten().cloned().collect();
    mounts.sort();
    mounts.dedup();
    let mut endpoint = options.endpoint.clone();
    // As of a pull.
    endpoint.limits.idle = endpoint.limits.idle.min(core.settings.idle / 2);
    let repository = Repository::with(&options.reference, &endpoint, Access::Push(mounts), &word)?;
    board.stage("pushing");
    let items: Vec<_> = blobs.iter().map(|blob| (blob, board.item(&blob.digest, blob.size))).collect();
    let lanes = Lanes { core, job, word: &word, repository: &repository, sources: &sources, chunk: options.chunk };
    lanes.send(items, options.endpoint.limits.connections)?;
    board.stage("naming");
    // A document is accepted where all that it names is there: the innermost first.
    for document in documents.iter().rev() {
        let bytes = core.content.read_verified(ns, &document.digest, MAX_DOCUMENT)?;
        let name = if document.digest == top.digest { tag.clone() } else { document.digest.to_string() };
        match referrer(document, &bytes)? {
            None => repository.push_manifest(&name, document, &bytes)?,
            Some(is) => repository.push_referrer(&name, document, &bytes, &is, &core.lists)?,
        }
    }
    let manifest = top.digest.clone();
    let name = Name::new(options.reference.to_string())?;
    Ok(vec![Arrived { name, target: top, manifest, chain: None }])
}

/// What is missing is mostly the images for other platforms, which a pull leaves where they are.
fn incomplete(error: Error, options: &PushOptions) -> Error {
    match options.platform {
        None if error.code == cofferdam_types::Code::FailedPrecondition => {
            let why = format!("{}; or push the image for one platform alone", error.message);
            Error { message: why, ..error }
        }
        _ => error,
    }
}

fn is_document(blob: &Descriptor) -> bool {
    matches!(media::kind(&blob.media_type), media::Kind::Manifest | media::Kind::Index)
}

/// Whether a layer is one that only its maker distributes (OCI image-spec, layer.md).
pub(crate) fn is_foreign(media_type: &str) -> bool {
    media_type.contains(".nondistributable.") || media_type.contains(".foreign.")
}

/// For each blob the repositories of the registry that may have it.
fn sources(
    core: &Core,
    job: &Job,
    options: &PushOptions,
    blobs: &[Descriptor],
) -> Result<HashMap<Digest, Vec<String>>> {
    let label = format!("{SOURCE}{}", options.reference.host());
    let mut sources = HashMap::new();
    for blob in blobs {
        let labels = core.content.info(job.namespace(), &blob.digest)?.labels;
        let known =
            labels.get(&label).map(String::as_str).unwrap_or_default().split(',').filter(|path| !path.is_empty());
        let mut from: Vec<String> = options.mount_from.iter().cloned().chain(known.map(str::to_owned)).collect();
        // A label may hold anything: only what is a path goes into a URL.
        from.retain(|path| Reference::parse(&format!("{}/{path}:x", options.reference.host())).is_ok());
        from.truncate(MAX_SOURCES);
        sources.insert(blob.digest.clone(), from);
    }
    Ok(sources)
}

struct Lanes<'a> {
    core: &'a Core,
    job: &'a Job,
    word: &'a Cancel,
    repository: &'a Repository,
    sources: &'a HashMap<Digest, Vec<String>>,
    chunk: u64,
}

impl Lanes<'_> {
    /// Sends them, some at once. The first that fails ends the others.
    fn send(&self, items: Vec<(&Descriptor, usize)>, lanes: usize) -> Result<()> {
        let next = Mutex::new(items.into_iter());
        let failed = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..lanes {
                scope.spawn(|| {
                    loop {
                        let blob = next.lock().unwrap_or_else(PoisonError::into_inner).next();
                        let Some((blob, item)) = blob else { break };
                        if let Err(error) = self.one(blob, item) {
                            let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                            if failed.is_none() {
                                *failed = Some(error);
                                self.word.cancel();
                            }
                            break;
                        }
                    }
                });
            }
        });
        match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn one(&self, blob: &Descriptor, item: usize) -> Result<()> {
        self.word.check()?;
        let board = self.job.board();
        board.phase(item, Phase::Fetching);
        let source = Stored { core: self.core, job: self.job, blob, board, item, most: Cell::new(0) };
        let from = self.sources.get(&blob.digest).map(Vec::as_slice).unwrap_or_default();
        let sent = self.repository.push_blob(blob, from, self.chunk, &source)?;
        board.phase(item, if sent == Sent::Uploaded { Phase::Done } else { Phase::Present });
        Ok(())
    }
}

/// A blob of the namespace.
struct Stored<'a> {
    core: &'a Core,
    job: &'a Job,
    blob: &'a Descriptor,
    board: &'a Board,
    item: usize,
    most: Cell<u64>,
}

impl Source for Stored<'_> {
    fn open(&self, offset: u64) -> Result<Box<dyn Read + '_>> {
        let mut reader = self.core.content.reader(self.job.namespace(), &self.blob.digest)?;
        let sought = reader.seek(SeekFrom::Start(offset));
        sought.map_err(|e| Error::io("blob", &self.blob.digest, "can't be read", &e))?;
        Ok(Box::new(reader))
    }

    fn sent(&self, count: u64) {
        // What is sent once more was counted.
        let most = self.most.get();
        if count > most {
            self.board.advance(self.item, count - most);
            self.most.set(count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_that_only_their_maker_distributes_are_told_apart() {
        for (media_type, foreign) in [
            ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", true),
            ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", true),
            (media::OCI_LAYER_GZIP, false),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", false),
            (media::OCI_CONFIG, false),
        ] {
            assert_eq!(is_foreign(media_type), foreign, "{media_type}");
        }
    }
}
