//! What an archive holds: its images, their names, and where each layer lies.

use std::collections::BTreeMap;

use cofferdam_images::{Document, Manifest, ResolvedImage, chain_ids, config, document};
use cofferdam_types::{Algorithm, Code, Descriptor, Digest, Error, Name, Platform, Result, media};
use serde::Deserialize;

use crate::{
    artifact::bare_manifest,
    choose::{Choice, Library, choose},
    pull::is_artifact,
    reference::{Reference, is_bare, normalize},
    registry::MAX_MANIFEST,
    source::walk::refused,
    trust::is_attachment,
};

/// containerd's annotation for a full name, and the image specification's for a tag (or whatever a tool puts there).
pub(crate) const FULL_NAME: &str = "io.containerd.image.name";
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Images of one archive.
const MAX_IMAGES: usize = 1000;

/// An archive, as planning sees it.
pub(crate) trait Shelf {
    /// A small file; `None` where there is none. Larger than `limit` is an error.
    fn small(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>>;
    /// A file that becomes a layer: what it is, whoever has to read it for that.
    fn layer(&self, path: &str) -> Result<Option<Lump>>;
}

/// What is known of a file that becomes a layer.
#[derive(Clone, Debug)]
pub(crate) struct Lump {
    pub size: u64,
    pub compression: media::Compression,
    /// Of the file as it is, where known without reading it.
    pub digest: Option<Digest>,
}

/// One image that is to be taken in.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    pub names: Vec<Name>,
    pub choice: Choice,
    /// Per layer of the manifest, and per part of a checkpoint, its path in the archive.
    pub paths: Vec<String>,
}

/// Where an OCI layout keeps a blob.
pub(crate) fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex())
}

struct OciLibrary<'a>(&'a dyn Shelf);

impl Library for OciLibrary<'_> {
    fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        verified(self.0, descriptor)
    }
}

/// A small blob of a layout, verified.
pub(crate) fn verified(shelf: &dyn Shelf, descriptor: &Descriptor) -> Result<Vec<u8>> {
    let digest = &descriptor.digest;
    let bytes = shelf.small(&blob_path(digest), MAX_MANIFEST)?;
    let bytes = bytes.ok_or_else(|| Error::data_loss("archive", "", format!("lacks {digest}, which it refers to")))?;
    match Digest::of(digest.algorithm(), &bytes) {
        found if found == *digest => Ok(bytes),
        found => Err(Error::data_loss("archive", "", format!("unexpected digest {found} in the place of {digest}"))),
    }
}

/// The images of an archive. `name` is what the caller calls the image; `None` leaves that to the archive. `stored`: they are
/// not unpacked.
pub(crate) fn plan(shelf: &dyn Shelf, platform: &Platform, name: Option<&str>, stored: bool) -> Result<Vec<Planned>> {
    // Newer docker archives are both: the OCI half says more.
    if let Some(index) = shelf.small("index.json", MAX_MANIFEST)? {
        return layout(shelf, &index, platform, name, stored);
    }
    if let Some(manifest) = shelf.small("manifest.json", MAX_MANIFEST)? {
        return docker(shelf, &manifest, platform, name);
    }
    Err(refused(
        "no index.json (OCI layout) and no manifest.json (docker archive) found: is it an image? A file system becomes one with --rootfs",
    ))
}

fn layout(
    shelf: &dyn Shelf,
    index: &[u8],
    platform: &Platform,
    name: Option<&str>,
    stored: bool,
) -> Result<Vec<Planned>> {
    let marker = shelf.small("oci-layout", 4096)?.ok_or_else(|| refused("has no oci-layout file"))?;
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Marker {
        image_layout_version: String,
    }
    match serde_json::from_slice::<Marker>(&marker) {
        Ok(m) if m.image_layout_version.starts_with("1.") => {}
        _ => return Err(Error::unimplemented("archive", "", "is an OCI layout of a version other than 1")),
    }
    let own = Descriptor::new(media::OCI_INDEX, Digest::of(Algorithm::Sha256, index), index.len() as u64);
    let Document::Index(mut entries) = document(&own, index)? else {
        return Err(refused("index.json is not an index"));
    };
    // They belong to images, and are none.
    entries.retain(|entry| !is_attachment(entry));
    if entries.is_empty() {
        return Err(refused("holds no image"));
    }
    // The entries of one name are one image: of several platforms the one that fits.
    let mut groups: BTreeMap<Option<String>, Vec<&Descriptor>> = BTreeMap::new();
    for entry in &entries {
        let own = entry.annotations.get(FULL_NAME).or_else(|| entry.annotations.get(REF_NAME));
        groups.entry(own.cloned()).or_default().push(entry);
    }
    let alone = groups.len() == 1;
    if let Some(given) = name.filter(|_| !alone) {
        let tags = groups.keys().flatten().any(|own| !is_whole(own));
        for_several(given, groups.len(), tags)?;
    }
    let library = OciLibrary(shelf);
    let mut planned = Vec::new();
    for (own, entries) in groups {
        let given = name;
        let name = named(own.as_deref(), name, alone)?;
        let chosen = pick(&library, &entries, platform, stored);
        let choice = bare(chosen.map_err(|e| e.context(&name))?);
        // K2: what its processes are is up to whoever made it, but not what it is called here.
        if !choice.parts.is_empty() && given.is_none() {
            return Err(refused("is a checkpoint: give it a name"));
        }
        let blobs = choice.image.layers.iter().chain(&choice.parts);
        let paths = blobs.map(|blob| blob_path(&blob.digest)).collect();
        planned.push(Planned { names: vec![name], choice, paths });
    }
    Ok(planned)
}

/// Of the entries of one name the image for the platform. Of two that are, none is left out without a word.
fn pick(library: &dyn Library, entries: &[&Descriptor], platform: &Platform, stored: bool) -> Result<Choice> {
    let mut none = Err(refused("holds no image"));
    let mut chosen: Option<(&Descriptor, Result<Choice>)> = None;
    for entry in entries.iter().rev() {
        if entry.platform.as_ref().is_some_and(|p| !platform.accepts(p)) && entries.len() > 1 {
            continue;
        }
        let choice = match choose(library, entry, platform) {
            // As a pull that only fetches.
            Err(e) if stored && is_artifact(&e) => bare_manifest(library, entry),
            other => other,
        };
        match &chosen {
            _ if choice.as_ref().is_err_and(|e| e.code == Code::NotFound) => none = choice,
            None => chosen = Some((entry, choice)),
            Some((other, _)) if choice.is_ok() && other.digest != entry.digest && other.platform == entry.platform => {
                let why = format!("two images have this name, {} and {}", other.digest, entry.digest);
                return Err(refused(format!("{why}: make the archive anew with a name for each")));
            }
            Some(_) => {}
        }
    }
    chosen.map_or(none, |(_, choice)| choice)
}

/// Whether what an archive calls an image is more than a tag.
fn is_whole(own: &str) -> bool {
    own.contains(['/', ':', '@'])
}

/// Each of several images is called what the archive says: a name that is given is the repository of those that have a tag alone.
fn for_several(given: &str, count: usize, tags: bool) -> Result<()> {
    let why = match (tags, is_bare(given)) {
        (true, true) => return Ok(()),
        (true, false) => {
            format!("have tags of their own, and {given} is for one: give the name without tag and digest")
        }
        (false, _) => format!("have names of their own, and {given} is for one: leave it out"),
    };
    Err(refused(format!("its {count} images {why}")))
}

/// What the archive's own list says about an image (names, platforms) is not part of what its name stands for.
fn bare(mut choice: Choice) -> Choice {
    let strip = |d: &mut Descriptor| *d = Descriptor::new(std::mem::take(&mut d.media_type), d.digest.clone(), d.size);
    strip(&mut choice.image.target);
    strip(&mut choice.path[0].0);
    choice
}

/// The name of an image: the archive's own if that is a whole one, the caller's, or both together.
fn named(own: Option<&str>, given: Option<&str>, alone: bool) -> Result<Name> {
    let whole = own.filter(|own| is_whole(own)).map(normalize).transpose()?;
    let text = match (own, whole, given) {
        // One image, and the caller says what it is called.
        (_, _, Some(given)) if alone => normalize(given)?,
        (_, Some(whole), _) => whole,
        (Some(tag), None, Some(given)) => {
            let base = Reference::parse(&normalize(given)?)?;
            let full = format!("{}:{tag}", base.locator());
            Reference::parse(&full)?.target()?;
            full
        }
        (Some(tag), None, None) => return Err(refused(format!("calls its image only {tag:?}: give it a name"))),
        (None, _, _) => return Err(refused("does not say what its image is called: give it a name")),
    };
    Name::new(text)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

/// `docker save` and what else writes its format: a config, layers by path, names.
fn docker(shelf: &dyn Shelf, manifest: &[u8], platform: &Platform, name: Option<&str>) -> Result<Vec<Planned>> {
    let saved: Vec<Saved> = serde_json::from_slice(manifest)
        .map_err(|e| refused(format!("manifest.json is not a docker archive's: {e}")))?;
    if saved.is_empty() || saved.len() > MAX_IMAGES {
        return Err(refused(format!("holds {} images: 1 to {MAX_IMAGES} can be imported", saved.len())));
    }
    if let Some(given) = name.filter(|_| saved.len() > 1) {
        for_several(given, saved.len(), false)?;
    }
    saved.iter().map(|image| docker_image(shelf, image, platform, name)).collect()
}

fn docker_image(shelf: &dyn Shelf, saved: &Saved, platform: &Platform, name: Option<&str>) -> Result<Planned> {
    let lacks = |what: &str| Error::data_loss("archive", "", format!("lacks {what}, which its manifest.json names"));
    let config_bytes = shelf.small(&saved.config, MAX_MANIFEST)?.ok_or_else(|| lacks(&saved.config))?;
    let digest = Digest::of(Algorithm::Sha256, &config_bytes);
    let descriptor = Descriptor::new(media::OCI_CONFIG, digest.clone(), config_bytes.len() as u64);
    let read = config(&descriptor, &config_bytes)?;
    if !platform.accepts(&read.platform) {
        let message = format!("has an image for {}, not for {platform}", read.platform);
        return Err(Error::not_found("image", digest, message));
    }
    if saved.layers.len() != read.diff_ids.len() {
        let message = format!("has {} layers for {} diff ids", saved.layers.len(), read.diff_ids.len());
        return Err(Error::invalid("image", digest, message));
    }
    let mut layers = Vec::new();
    for (path, diff_id) in saved.layers.iter().zip(&read.diff_ids) {
        let lump = shelf.layer(path)?.ok_or_else(|| lacks(path))?;
        let (media_type, digest) = match (lump.compression, lump.digest) {
            // An uncompressed layer is its own diff: the one pass that takes it in also verifies it.
            (media::Compression::None, digest) => (media::OCI_LAYER, digest.unwrap_or_else(|| diff_id.clone())),
            (media::Compression::Gzip, Some(digest)) => (media::OCI_LAYER_GZIP, digest),
            (media::Compression::Zstd, Some(digest)) => (media::OCI_LAYER_ZSTD, digest),
            (_, None) => return Err(Error::internal("archive", "", "a packed layer was not hashed")),
        };
        layers.push(Descriptor::new(media_type, digest, lump.size));
    }
    let names = match name {
        Some(name) => vec![Name::new(normalize(name)?)?],
        None => {
            let tags = saved.repo_tags.iter().flatten().take(MAX_IMAGES);
            tags.map(|tag| normalize(tag).and_then(Name::new)).collect::<Result<Vec<_>>>()?
        }
    };
    if names.is_empty() {
        return Err(refused("does not say what its image is called: give it a name"));
    }
    let choice = composed(media::OCI_MANIFEST, descriptor, config_bytes, layers)?;
    Ok(Planned { names, choice, paths: saved.layers.clone() })
}

/// The image that a config and layers make: the manifest, of this media type, is ours.
pub(crate) fn composed(
    media_type: &str,
    config_descriptor: Descriptor,
    config_bytes: Vec<u8>,
    layers: Vec<Descriptor>,
) -> Result<Choice> {
    let read = config(&config_descriptor, &config_bytes)?;
    let body = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": config_descriptor,
        "layers": layers,
    });
    let bytes = body.to_string().into_bytes();
    let target = Descriptor::new(media_type, Digest::of(Algorithm::Sha256, &bytes), bytes.len() as u64);
    let manifest = Manifest { config: config_descriptor, layers };
    let chain_ids = chain_ids(&manifest, &read)?;
    let image = ResolvedImage {
        name: None,
        target: target.clone(),
        path: vec![target.digest.clone()],
        manifest: target.clone(),
        config_descriptor: manifest.config,
        config: read,
        config_bytes,
        layers: manifest.layers,
        chain_ids,
    };
    Ok(Choice { image, path: vec![(target, bytes)], parts: Vec::new() })
}
