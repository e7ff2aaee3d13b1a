//! Pulling: resolve, choose the platform, then land.

use std::io::Read;

use cofferdam_types::{Authority, Code, Descriptor, Name, Result};

use crate::{
    Job, PullOptions, Target,
    choose::{Library, choose},
    job::Arrived,
    land::{Landing, Supply},
    push::came_from,
    registry::{MAX_MANIFEST, Repository},
    transfer::Core,
};

/// A repository, seen through what the namespace has already.
struct Remote<'a> {
    repository: &'a Repository,
    core: &'a Core,
    job: &'a Job,
    /// What resolving brought along.
    body: Option<(Descriptor, Vec<u8>)>,
}

impl Library for Remote<'_> {
    fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        self.job.word().check()?;
        if let Some((_, body)) = self.body.as_ref().filter(|(d, _)| d.digest == descriptor.digest) {
            return Ok(body.clone());
        }
        match self.core.content.read_verified(self.job.namespace(), &descriptor.digest, MAX_MANIFEST) {
            // Not here, or damaged: the registry has it whole.
            Err(e) if matches!(e.code, Code::NotFound | Code::DataLoss) => {}
            other => return other,
        }
        match cofferdam_types::media::kind(&descriptor.media_type) {
            cofferdam_types::media::Kind::Manifest | cofferdam_types::media::Kind::Index => {
                self.repository.manifest(descriptor)
            }
            _ => self.repository.small_blob(descriptor),
        }
    }
}

impl Supply for Remote<'_> {
    fn open<'s>(&'s self, layer: &Descriptor, offset: u64) -> Result<Box<dyn Read + Send + 's>> {
        Ok(Box::new(self.repository.blob(layer, offset)?))
    }

    fn far(&self) -> bool {
        true
    }
}

pub(crate) fn pull(core: &Core, job: &Job, auth: &Authority, options: &PullOptions) -> Result<Vec<Arrived>> {
    let (reference, name) = (&options.reference, Name::new(options.reference.to_string())?);
    let word = job.word().child();
    let repository = Repository::new(reference, &options.endpoint, &word)?;
    job.board().stage("resolving");
    let target: Target = reference.target()?;
    let resolved = repository.resolve(&target)?;
    let body = resolved.body.map(|body| (resolved.descriptor.clone(), body));
    let remote = Remote { repository: &repository, core, job, body };
    let choice = choose(&remote, &resolved.descriptor, &options.platform).map_err(|e| e.context(&name))?;
    job.board().stage("pulling");
    let (lanes, labels) = (options.endpoint.limits.connections, came_from(reference));
    let landing = Landing { lanes, labels, ..Landing::new(core, job, &word, auth, options.driver.as_deref()) };
    landing.land(&[name], &choice, &remote)
}
