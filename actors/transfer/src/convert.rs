//! Another image of one: the same files, packed otherwise, or by the media types of OCI.
//!
//! What it is made of gives the same bytes each time, wherever it is done. Layers are inflated and packed again in one pass, and must be
//! what the config says that they are.

use std::collections::HashMap;

use cofferdam_content::Commit;
use cofferdam_images::{Document, MAX_DOCUMENT, Manifest, config, content_labels, document};
use cofferdam_kernel::block_on;
use cofferdam_metadata::records::Resource;
use cofferdam_types::{
    Algorithm, Authority, Code, Descriptor, Digest, Error, Labels, Name, Platform, Result,
    media::{self, Compression, Kind},
};
use serde_json::{Map, Value, json};

use crate::{
    Job,
    artifact::{settle, small},
    commit::Family,
    job::Arrived,
    progress::{Counted, Phase},
    push::is_foreign,
    source::{Outer, walk::broken},
    transfer::Core,
    trust::Nowhere,
};

/// Documents within documents.
const MAX_DEPTH: usize = 8;

/// How an image is converted.
#[derive(Clone, Debug)]
pub struct ConvertOptions {
    /// What of.
    pub source: Name,
    /// What the new one is called.
    pub name: Name,
    /// How its layers are packed; `None`: as they are.
    pub compression: Option<Compression>,
    /// Docker's media types become OCI's.
    pub oci: bool,
    /// The image for one platform alone; `None`: all that is here.
    pub platform: Option<Platform>,
}

pub(crate) fn convert(core: &Core, job: &Job, auth: &Authority, options: &ConvertOptions) -> Result<Vec<Arrived>> {
    let ns = job.namespace();
    let gate = core.trust.open(ns, &options.name)?;
    let target = core.images.get(ns, &options.source)?.target;
    let top = match &options.platform {
        None => target,
        Some(platform) => block_on(core.images.resolve(ns, &options.source, platform))?.manifest,
    };
    let mut found = crate::gather::Gather::here(core, job);
    found.add(&top)?;
    let held = found.blobs.iter().map(|blob| Resource::Content(blob.digest.clone())).collect();
    let _pin = block_on(core.meta.pin(ns, held))?;
    job.board().stage("converting");
    let mut work = Conversion { core, job, options, layers: HashMap::new(), commits: Vec::new() };
    let made = work.document(&top, false, 0)?.ok_or_else(|| {
        let why = "has nothing here that could be converted: pull it for a platform first";
        Error::failed_precondition("image", &options.source, why)
    })?;
    let made = Descriptor::new(made.media_type, made.digest, made.size);
    gate.map(|gate| gate.admit(&made.digest, &Nowhere)).transpose()?;
    job.word().check()?;
    job.board().stage("storing");
    settle(core, auth, ns, work.commits, &options.name, &made)?;
    let manifest = made.digest.clone();
    Ok(vec![Arrived { name: options.name.clone(), target: made, manifest, chain: None }])
}

struct Conversion<'a> {
    core: &'a Core,
    job: &'a Job,
    options: &'a ConvertOptions,
    /// What became of each: several images may share one.
    layers: HashMap<Digest, Descriptor>,
    commits: Vec<Commit>,
}

impl Conversion<'_> {
    /// What becomes of a manifest or an index; `None`: it isn't here, and needn't be.
    fn document(&mut self, from: &Descriptor, spare: bool, depth: usize) -> Result<Option<Descriptor>> {
        self.job.word().check()?;
        if depth > MAX_DEPTH {
            return Err(Error::invalid("document", &from.digest, format!("lies behind more than {MAX_DEPTH} others")));
        }
        let bytes = match self.core.content.read_verified(self.job.namespace(), &from.digest, MAX_DOCUMENT) {
            Err(e) if e.code == Code::NotFound && spare => return Ok(None),
            other => other?,
        };
        let read = document(from, &bytes)?;
        let odd = || Error::data_loss("document", &from.digest, "is not what it was when it was read first");
        let Ok(Value::Object(mut body)) = serde_json::from_slice(&bytes) else { return Err(odd()) };
        let media_type = match (&read, self.options.oci) {
            (Document::Manifest(_), true) => media::OCI_MANIFEST,
            (Document::Index(_), true) => media::OCI_INDEX,
            (_, false) => from.media_type.as_str(),
        };
        match read {
            Document::Manifest(manifest) => self.manifest(from, &manifest, &mut body)?,
            Document::Index(entries) => {
                let mut kept = Vec::new();
                for entry in entries {
                    match media::kind(&entry.media_type) {
                        Kind::Manifest | Kind::Index => kept.extend(self.document(&entry, true, depth + 1)?),
                        _ => kept.push(entry),
                    }
                }
                if !kept.iter().any(|entry| media::kind(&entry.media_type) != Kind::Other) {
                    return Ok(None);
                }
                body.insert("manifests".into(), json!(kept));
            }
        }
        body.insert("mediaType".into(), json!(media_type));
        let bytes = Value::Object(body).to_string().into_bytes();
        let made = Descriptor {
            media_type: media_type.to_owned(),
            digest: Digest::of(Algorithm::Sha256, &bytes),
            size: bytes.len() as u64,
            ..from.clone()
        };
        let labels = content_labels(&made, &bytes)?;
        self.commits.push(small(self.core, self.job.namespace(), &made, &bytes, labels)?);
        Ok(Some(made))
    }

    fn manifest(&mut self, from: &Descriptor, manifest: &Manifest, body: &mut Map<String, Value>) -> Result<()> {
        let (ns, content) = (self.job.namespace(), &self.core.content);
        // An artifact has another config; its layers are left as they are.
        let is_image = media::kind(&manifest.config.media_type) == Kind::Config;
        let mut config_descriptor = manifest.config.clone();
        let mut diff_ids = Vec::new();
        if is_image {
            let bytes = content.read_verified(ns, &manifest.config.digest, MAX_DOCUMENT)?;
            diff_ids = config(&manifest.config, &bytes)?.diff_ids;
            if self.options.oci {
                config_descriptor.media_type = media::OCI_CONFIG.to_owned();
            }
        }
        let family = if self.options.oci { Family::Oci } else { Family::of(from) };
        let mut layers = Vec::new();
        for (n, layer) in manifest.layers.iter().enumerate() {
            layers.push(match media::kind(&layer.media_type) {
                Kind::Layer(is) if is_image && !is_foreign(&layer.media_type) => {
                    self.layer(layer, is, family, diff_ids.get(n).filter(|_| diff_ids.len() == manifest.layers.len()))?
                }
                _ => layer.clone(),
            });
        }
        body.insert("config".into(), json!(config_descriptor));
        body.insert("layers".into(), json!(layers));
        Ok(())
    }

    fn layer(
        &mut self,
        from: &Descriptor,
        is: Compression,
        family: Family,
        diff_id: Option<&Digest>,
    ) -> Result<Descriptor> {
        let wanted = self.options.compression.unwrap_or(is);
        let media_type = family.layer(wanted);
        if wanted == is {
            return Ok(Descriptor { media_type: media_type.to_owned(), ..from.clone() });
        }
        if let Some(made) = self.layers.get(&from.digest) {
            return Ok(Descriptor { media_type: media_type.to_owned(), ..made.clone() });
        }
        let (ns, board, word) = (self.job.namespace(), self.job.board(), self.job.word());
        let item = board.item(&from.digest, from.size);
        board.phase(item, Phase::Fetching);
        let inner = self.core.content.reader(ns, &from.digest)?;
        let (mut tar, _) = Outer::new(Counted { inner, board, number: item, cancel: word }).map_err(broken)?;
        let made = self.core.images.pack(ns, &mut tar, media_type, &|| word.check());
        let made = made.map_err(|e| e.context(format!("layer {}", from.digest)))?;
        board.phase(item, Phase::Done);
        if let Some(diff_id) = diff_id.filter(|diff_id| **diff_id != made.diff_id) {
            let why = format!("holds {}, and its image says {diff_id}: fetch it again", made.diff_id);
            return Err(Error::data_loss("layer", &from.digest, why));
        }
        let descriptor = made.layer.clone();
        self.commits.push(Commit {
            ingest: made.ingest,
            size: Some(descriptor.size),
            expected: Some(descriptor.digest.clone()),
            labels: Labels::new(),
        });
        self.layers.insert(from.digest.clone(), descriptor.clone());
        Ok(descriptor)
    }
}
