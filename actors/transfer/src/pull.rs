//! Pulling: resolve, choose the platform, then land.

use std::io::Read;

use cofferdam_types::{Authority, Code, Descriptor, Error, Name, Result};

use crate::{
    Job, PullOptions, Target,
    artifact::bare_manifest,
    choose::{Library, choose},
    job::Arrived,
    land::{Landing, Supply},
    legacy,
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

/// Whether an error says that what a name stands for is no image, which is no error where nothing is unpacked.
fn is_artifact(error: &Error) -> bool {
    matches!(error.code, Code::FailedPrecondition | Code::Unimplemented)
}

pub(crate) fn pull(core: &Core, job: &Job, auth: &Authority, options: &PullOptions) -> Result<Vec<Arrived>> {
    let (reference, name) = (&options.reference, Name::new(options.reference.to_string())?);
    let word = job.word().child();
    // What may not come in is not asked for.
    let gate = core.trust.open(job.namespace(), &name)?;
    let repository = Repository::new(reference, &options.endpoint, &word)?;
    job.board().stage("resolving");
    let target: Target = reference.target()?;
    let resolved = match repository.resolve(&target) {
        Err(e) if e.code == Code::Unimplemented && options.schema1 => {
            return legacy::pull(core, job, auth, options, &repository, gate);
        }
        Err(e) if e.code == Code::Unimplemented && e.message.contains("manifest.v1+") => {
            return Err(Error { message: format!("{}; --schema1 takes it", e.message), ..e });
        }
        other => other?,
    };
    let target = resolved.descriptor.digest.clone();
    let shown = gate.map(|gate| gate.admit(&target, &repository)).transpose()?;
    let body = resolved.body.map(|body| (resolved.descriptor.clone(), body));
    let remote = Remote { repository: &repository, core, job, body };
    let choice = match choose(&remote, &resolved.descriptor, &options.platform) {
        // What is only fetched may be anything.
        Err(e) if options.driver.is_none() && is_artifact(&e) => bare_manifest(&remote, &resolved.descriptor),
        other => other,
    };
    let choice = choice.map_err(|e| e.context(&name))?;
    job.board().stage("pulling");
    let (lanes, labels) = (options.endpoint.limits.connections, came_from(reference));
    let landing = Landing { lanes, labels, ..Landing::new(core, job, &word, auth, options.driver.as_deref()) };
    let arrived = landing.land(&[name], &choice, &remote)?;
    if let Some(shown) = shown {
        shown.keep(core, auth, job.namespace(), &target);
    }
    Ok(arrived)
}
