//! What was changed in a container becomes a layer, on top of those of its image: a new image.
//!
//! The container stands still while it is compared, unless it needn't; what is compared lies in a file of the store's then,
//! and it goes on. Layer, config, manifest, tree and name appear in one commit.

use std::{
    io::Read,
    sync::{Mutex, PoisonError},
};

use cofferdam_content::Ingest;
use cofferdam_kernel::block_on;
use cofferdam_metadata::records::{containers::Container, tasks::State};
use cofferdam_tasks::Tasks;
use cofferdam_types::{
    Algorithm, Authority, Code, Descriptor, Digest, Error, Id, Instruction, Name, Namespace, Platform, Result,
    Timestamp,
    media::{self, Compression},
};
use serde::Deserialize;

use crate::{
    Job,
    amend::{Story, amended, check},
    job::Arrived,
    land::{Landing, Supply},
    plan::composed,
    progress::Phase,
    transfer::Core,
    trust::Nowhere,
};

/// How a container becomes an image.
#[derive(Clone, Debug)]
pub struct CommitOptions {
    /// What the image is called.
    pub name: Name,
    /// Who made it.
    pub author: String,
    /// What for.
    pub message: String,
    /// What is to be different from the image that the container was made from.
    pub changes: Vec<Instruction>,
    /// It stands still while it is compared.
    pub pause: bool,
    /// How the layer is packed.
    pub compression: Compression,
}

pub(crate) fn commit(
    core: &Core,
    job: &Job,
    auth: &Authority,
    tasks: &Tasks,
    id: &Id,
    options: &CommitOptions,
) -> Result<Vec<Arrived>> {
    let (ns, board, word) = (job.namespace(), job.board(), job.word());
    options.changes.iter().try_for_each(check)?;
    let gate = core.trust.open(ns, &options.name)?;
    let container = tasks.container(ns, id)?;
    let refuse = |why: String| Err(Error::failed_precondition("container", id, why));
    let Some(key) = container.snapshot_key.as_ref().filter(|_| !container.image.is_empty()) else {
        return refuse("was made without an image: there is nothing that it could be a change of".into());
    };
    let image = block_on(core.images.resolve(ns, &Name::new(&*container.image)?, &Platform::host()))?;
    let made_on = core.images.snapshot_parent(ns, &container.driver, key)?;
    if made_on.as_deref() != image.top().map(Digest::to_string).as_deref() {
        let name = &container.image;
        return refuse(format!(
            "its image {name} is not the one that it was made from any more: pull or name that again"
        ));
    }
    let family = Family::of(&image.manifest);
    let item = board.item("changed files", 0);
    board.phase(item, Phase::Fetching);
    board.stage("comparing");
    let still = if options.pause { Still::begin(tasks, ns, id, auth)? } else { None };
    let made = core.images.changes(ns, &container.driver, key, family.layer(options.compression), &|| word.check());
    drop(still);
    let made = made?;
    board.advance(item, made.layer.size);
    board.phase(item, Phase::Done);
    let story = Story {
        author: options.author.clone(),
        message: options.message.clone(),
        command: command(&container),
        diff_id: made.filled.then(|| made.diff_id.clone()),
    };
    let bytes = amended(&image.config_bytes, &options.changes, &story, Timestamp::now())?;
    let config = Digest::of(Algorithm::Sha256, &bytes);
    let config = Descriptor::new(&*image.config_descriptor.media_type, config, bytes.len() as u64);
    let mut layers = image.layers.clone();
    layers.extend(made.filled.then(|| made.layer.clone()));
    let choice = composed(&image.manifest.media_type, config, bytes, layers)?;
    gate.map(|gate| gate.admit(&choice.image.target.digest, &Nowhere)).transpose()?;
    let supply = Changed { layer: made.layer.digest.clone(), ingest: Mutex::new(Some(made.ingest)) };
    let landing = Landing::new(core, job, word, auth, Some(&*container.driver));
    landing.land(std::slice::from_ref(&options.name), &choice, &supply)
}

/// Whose media types an image has.
#[derive(Clone, Copy)]
pub(crate) enum Family {
    Oci,
    Docker,
}

impl Family {
    pub fn of(manifest: &Descriptor) -> Family {
        if manifest.media_type == media::DOCKER_MANIFEST { Family::Docker } else { Family::Oci }
    }

    pub fn layer(self, compression: Compression) -> &'static str {
        match (self, compression) {
            (Family::Oci, Compression::None) => media::OCI_LAYER,
            (Family::Oci, Compression::Gzip) => media::OCI_LAYER_GZIP,
            (Family::Oci, Compression::Zstd) => media::OCI_LAYER_ZSTD,
            (Family::Docker, Compression::None) => media::DOCKER_LAYER,
            (Family::Docker, Compression::Gzip) => media::DOCKER_LAYER_GZIP,
            (Family::Docker, Compression::Zstd) => media::DOCKER_LAYER_ZSTD,
        }
    }
}

/// What ran in it, as its spec says.
fn command(container: &Container) -> String {
    #[derive(Default, Deserialize)]
    struct Spec {
        #[serde(default)]
        process: Process,
    }
    #[derive(Default, Deserialize)]
    struct Process {
        #[serde(default)]
        args: Vec<String>,
    }
    let spec: Spec = serde_json::from_slice(&container.spec.value).unwrap_or_default();
    spec.process.args.join(" ")
}

/// A container that stands still until this is dropped.
struct Still<'a> {
    tasks: &'a Tasks,
    ns: &'a Namespace,
    id: &'a Id,
    auth: &'a Authority,
}

impl Still<'_> {
    /// `None`: nothing runs, or somebody else has paused it.
    fn begin<'a>(tasks: &'a Tasks, ns: &'a Namespace, id: &'a Id, auth: &'a Authority) -> Result<Option<Still<'a>>> {
        match block_on(tasks.query(ns, id, String::new())) {
            Ok(found) if found.state == State::Running => {}
            Ok(_) => return Ok(None),
            Err(e) if e.code == Code::NotFound => return Ok(None),
            Err(e) => return Err(e),
        }
        match block_on(tasks.pause(ns, id, auth.clone(), true)) {
            Ok(()) => Ok(Some(Still { tasks, ns, id, auth })),
            // It has ended, or was paused, since we looked.
            Err(e) if matches!(e.code, Code::NotFound | Code::FailedPrecondition) => Ok(None),
            Err(e) => Err(e.context("it was to stand still while it is compared; it needn't")),
        }
    }
}

impl Drop for Still<'_> {
    fn drop(&mut self) {
        match block_on(self.tasks.pause(self.ns, self.id, self.auth.clone(), false)) {
            Err(e) if !matches!(e.code, Code::NotFound | Code::FailedPrecondition) => {
                tracing::error!(container = %self.id, error = %e, "a container that was compared stays paused: resume it");
            }
            _ => {}
        }
    }
}

/// The new layer; the others are there.
struct Changed {
    layer: Digest,
    ingest: Mutex<Option<Ingest>>,
}

impl Supply for Changed {
    fn open<'s>(&'s self, layer: &Descriptor, _offset: u64) -> Result<Box<dyn Read + Send + 's>> {
        let why = "is a layer of the container's image, and isn't here any more: pull or import that again";
        Err(Error::failed_precondition("blob", &layer.digest, why))
    }

    fn ingested(&self, layer: &Descriptor) -> Option<Ingest> {
        if layer.digest != self.layer {
            return None;
        }
        self.ingest.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
