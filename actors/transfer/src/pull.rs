//! Pulling: resolve, choose what is wanted, then land it.

use std::{io::Read, sync::Arc};

use cofferdam_types::{Authority, Code, Descriptor, Error, Name, Platform, Result, media};

use crate::{
    Cancel, Job, PullOptions, Target, Verdict,
    artifact::bare_manifest,
    choose::{Choice, Library, choose},
    documents::Own,
    flights::Key,
    job::Arrived,
    land::{Landing, Load, Supply},
    legacy,
    push::came_from,
    rate::{Rate, Throttled},
    registry::{MAX_MANIFEST, Repository},
    select::{Cached, Selection, select},
    transfer::Core,
};

/// A repository, seen through what the namespace has already.
struct Remote<'a> {
    repository: &'a Repository,
    core: &'a Core,
    job: &'a Job,
    auth: &'a Authority,
    word: &'a Cancel,
    /// What resolving brought along.
    body: Option<(Descriptor, Vec<u8>)>,
    /// Of this pull.
    rate: Rate,
    /// How it comes here.
    route: Arc<str>,
    documents: Own,
}

impl Library for Remote<'_> {
    fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        self.job.word().check()?;
        if let Some((_, body)) = self.body.as_ref().filter(|(d, _)| d.digest == descriptor.digest) {
            return Ok(body.clone());
        }
        if let Some(bytes) = self.here(descriptor)? {
            return Ok(bytes);
        }
        // What it is said to be is part of the question: who fetches it compares it with that.
        let mut way = format!("{} {} {}", self.route, descriptor.media_type, descriptor.size);
        // Whoever may not have all that is here gets none of it by way of another, who may.
        if !self.auth.ceiling.images.is_all() {
            way = format!("{way} {}", self.auth.grant());
        }
        let key: Key = (self.job.namespace().clone(), way.into(), descriptor.digest.clone());
        self.core.documents.get(&key, &self.documents, self.word, || {
            // Who had it may have ended since we looked.
            if let Some(bytes) = self.here(descriptor)? {
                return Ok(bytes);
            }
            match media::kind(&descriptor.media_type) {
                media::Kind::Manifest | media::Kind::Index => self.repository.manifest(descriptor),
                _ => self.repository.small_blob(descriptor),
            }
        })
    }
}

impl Remote<'_> {
    /// What the namespace has for this job. Of what is damaged the registry has the whole.
    fn here(&self, descriptor: &Descriptor) -> Result<Option<Vec<u8>>> {
        if !self.core.is_had(self.auth, self.job.namespace(), &descriptor.digest)? {
            return Ok(None);
        }
        match self.core.content.read_verified(self.job.namespace(), &descriptor.digest, MAX_MANIFEST) {
            Err(e) if matches!(e.code, Code::NotFound | Code::DataLoss) => Ok(None),
            other => other.map(Some),
        }
    }

    fn throttled<'s>(&'s self, inner: impl Read + Send + 's) -> Box<dyn Read + Send + 's> {
        Box::new(Throttled { inner, rates: [&self.rate, &self.core.rate], word: self.word })
    }
}

impl Supply for Remote<'_> {
    fn open<'s>(&'s self, layer: &Descriptor, offset: u64) -> Result<Box<dyn Read + Send + 's>> {
        Ok(self.throttled(self.repository.blob(layer, offset)?))
    }

    fn far(&self) -> bool {
        true
    }

    fn parts(&self) -> bool {
        true
    }

    fn own<'s>(&'s self, layer: &Descriptor, from: u64, to: u64) -> Result<(Box<dyn Read + Send + 's>, u64)> {
        let stream = self.repository.part(layer, from, to, false)?;
        let end = stream.end();
        Ok((self.throttled(stream), end))
    }

    fn part<'s>(&'s self, layer: &Descriptor, from: u64, to: u64) -> Result<Option<Box<dyn Read + Send + 's>>> {
        match self.repository.part(layer, from, to, true) {
            Ok(stream) => Ok(Some(self.throttled(stream))),
            Err(error) if error.code == Code::Unimplemented => Ok(None),
            Err(error) => Err(error),
        }
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
    let mut endpoint = options.endpoint.clone();
    let (limits, idle) = (&mut endpoint.limits, core.settings.idle);
    // A connection may be silent for half of what a blob may, so that there is time for another.
    (limits.idle, limits.header) = (limits.idle.min(idle / 2), limits.header.min(idle));
    let repository = Repository::new(reference, &endpoint, &word)?;
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
    let root = resolved.descriptor.digest.clone();
    let shown = gate.map(|gate| gate.admit(&root, &repository)).transpose()?;
    let body = resolved.body.map(|body| (resolved.descriptor.clone(), body));
    let (rate, route): (_, Arc<str>) = (Rate::new(options.rate), reference.locator().into());
    let documents = Own::default();
    let remote =
        Remote { repository: &repository, core, job, auth, word: &word, body, rate, route: route.clone(), documents };
    let load = wanted(&remote, &resolved.descriptor, options, &|one, depth| match &options.chooser {
        Some(chooser) => chooser.look(one, depth, &word),
        None => Ok(Verdict::Take),
    });
    let load = load.map_err(|e| e.context(&name))?;
    if load.pages.is_empty() {
        return Ok(Vec::new());
    }
    job.board().stage("pulling");
    let (lanes, labels) = (endpoint.limits.connections, came_from(reference));
    let driver = options.driver.as_deref();
    let landing = Landing::new(core, job, &word, auth, driver);
    // One that is to be slow is waited for by none but those that are to be as slow.
    let route = match options.rate {
        0 => route,
        rate => format!("{route} {rate}").into(),
    };
    let landing = Landing { lanes, labels, route, window: options.zstd_window, ..landing };
    let arrived = landing.load(&[name], &load, &remote)?;
    if let Some(shown) = shown {
        shown.keep(core, auth, job.namespace(), &root);
    }
    Ok(arrived)
}

/// What of a target is fetched, and which image of it is unpacked.
fn wanted(
    remote: &Remote<'_>,
    target: &Descriptor,
    options: &PullOptions,
    ask: &dyn Fn(&Descriptor, u16) -> Result<Verdict>,
) -> Result<Load> {
    let cached = Cached::new(remote);
    if options.chooser.is_none() && !options.all_platforms {
        let main = match choose(&cached, target, &options.platform) {
            // What is only fetched may be anything.
            Err(e) if options.driver.is_none() && is_artifact(&e) => bare_manifest(&cached, target)?,
            other => other?,
        };
        let mut load = Load::of(&main);
        for platform in &options.platforms {
            add(&mut load, &choose(&cached, target, platform)?);
        }
        return Ok(load);
    }
    let mut platforms = vec![options.platform.clone()];
    platforms.extend(options.platforms.iter().cloned());
    let found = select(&cached, target, (!options.all_platforms).then_some(&platforms[..]), ask)?;
    let image = match options.driver {
        Some(_) => whole(&found, target, &options.platform)?,
        None => None,
    };
    let Selection { pages, blobs, .. } = found;
    Ok(Load { target: target.clone(), pages, blobs, image: image.map(|choice| choice.image) })
}

/// Another image beside those that are there.
fn add(load: &mut Load, other: &Choice) {
    let Load { pages, blobs, .. } = Load::of(other);
    pages.into_iter().for_each(|page| {
        if load.pages.iter().all(|(there, _)| there.digest != page.0.digest) {
            load.pages.push(page);
        }
    });
    blobs.into_iter().for_each(|blob| {
        if load.blobs.iter().all(|there| there.digest != blob.digest) {
            load.blobs.push(blob);
        }
    });
}

/// The image for a platform, if all of it was selected. That there is none is no error: what was chosen is what was asked for.
fn whole(found: &Selection, target: &Descriptor, platform: &Platform) -> Result<Option<Choice>> {
    let has = |blob: &Descriptor| found.blobs.iter().any(|one| one.digest == blob.digest);
    match choose(found, target, platform) {
        Ok(choice) => Ok(Some(choice).filter(|choice| choice.image.layers.iter().all(has))),
        Err(error) if error.code == Code::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
