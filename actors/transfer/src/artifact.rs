//! Artifacts: manifests of any blobs (OCI image-spec 1.1, "Guidelines for Artifact Usage"), made here or fetched.

use std::time::{Duration, Instant};

use cofferdam_content::Commit;
use cofferdam_images::{Config, Document, ResolvedImage, content_labels, document};
use cofferdam_kernel::block_on;
use cofferdam_metadata::records::Resource;
use cofferdam_types::{
    Algorithm, Authority, Code, Descriptor, Digest, Error, Labels, Limits, Name, Namespace, Platform, Result, media,
};
use serde_json::json;

use crate::{
    choose::{Choice, Library},
    transfer::Core,
    trust::Nowhere,
};

/// A blob that says nothing, where one must be (OCI image-spec, "Guidance for an Empty Descriptor").
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
const NOTHING: &[u8] = b"{}";
/// Of keys and values together.
const MAX_ANNOTATIONS: usize = 256 << 10;
/// How long what failed waits for room to be deleted in.
const ROOM: Duration = Duration::from_secs(10);

/// What an artifact is made of. All blobs are here.
#[derive(Clone, Debug)]
pub struct ArtifactOptions {
    /// What it is called.
    pub name: Name,
    /// A media type; it may be empty where the config has one.
    pub artifact_type: String,
    /// `None`: the empty one.
    pub config: Option<Descriptor>,
    /// Its files.
    pub layers: Vec<Descriptor>,
    /// What it belongs to, which needn't be here.
    pub subject: Option<Descriptor>,
    /// Of the manifest.
    pub annotations: Labels,
}

pub(crate) fn create(core: &Core, auth: &Authority, ns: &Namespace, options: &ArtifactOptions) -> Result<Descriptor> {
    let gate = core.trust.open(ns, &options.name)?;
    let refuse = |why: String| Err(Error::invalid("artifact", &options.name, why));
    let most = Limits::get().layers;
    if options.layers.len() as u64 > most {
        return refuse(format!("has {} files, and may have {most}", options.layers.len()));
    }
    if options.artifact_type.is_empty() && options.config.is_none() {
        return refuse("has neither a type nor a config that says what it is: give a media type".into());
    }
    let own = [&options.artifact_type].into_iter().filter(|kind| !kind.is_empty());
    let parts = options.config.iter().chain(&options.layers).chain(&options.subject);
    if let Some(odd) = own.chain(parts.map(|part| &part.media_type)).find(|kind| !is_media_type(kind)) {
        return refuse(format!("{odd:?} is not a media type: write one such as application/vnd.example.report"));
    }
    let said: usize = options.annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
    if said > MAX_ANNOTATIONS || options.annotations.contains_key("") {
        return refuse(format!("its annotations have no key, or more than {MAX_ANNOTATIONS} bytes"));
    }
    let held: Vec<Resource> =
        options.config.iter().chain(&options.layers).map(|part| Resource::Content(part.digest.clone())).collect();
    let _pin = block_on(core.meta.pin(ns, held))?;
    for part in options.config.iter().chain(&options.layers) {
        is_here(core, ns, part)?;
    }
    let empty = Descriptor::new(EMPTY, Digest::of(Algorithm::Sha256, NOTHING), NOTHING.len() as u64);
    let mut layers = options.layers.clone();
    if layers.is_empty() {
        layers.push(empty.clone());
    }
    let config = options.config.clone().unwrap_or_else(|| empty.clone());
    let mut body = json!({ "schemaVersion": 2, "mediaType": media::OCI_MANIFEST, "config": config, "layers": layers });
    if !options.artifact_type.is_empty() {
        body["artifactType"] = json!(options.artifact_type);
    }
    if let Some(subject) = &options.subject {
        body["subject"] = json!(Descriptor::new(&*subject.media_type, subject.digest.clone(), subject.size));
    }
    if !options.annotations.is_empty() {
        body["annotations"] = json!(options.annotations);
    }
    let bytes = body.to_string().into_bytes();
    let target = Descriptor::new(media::OCI_MANIFEST, Digest::of(Algorithm::Sha256, &bytes), bytes.len() as u64);
    // What we can't read ourselves is not made.
    document(&target, &bytes)?;
    gate.map(|gate| gate.admit(&target.digest, &Nowhere)).transpose()?;
    let mut commits = vec![small(core, ns, &target, &bytes, content_labels(&target, &bytes)?)?];
    if layers.contains(&empty) || config == empty {
        commits.push(small(core, ns, &empty, NOTHING, Labels::new())?);
    }
    settle(core, auth, ns, commits, &options.name, &target)?;
    Ok(target)
}

fn is_here(core: &Core, ns: &Namespace, part: &Descriptor) -> Result<()> {
    match core.content.info(ns, &part.digest) {
        Ok(info) if info.size == part.size => Ok(()),
        Ok(info) => {
            let why = format!("has {} bytes, and not {}", info.size, part.size);
            Err(Error::invalid("blob", &part.digest, why))
        }
        Err(e) if e.code == Code::NotFound => {
            let why = "is not here: bring the file into the content first (`coffer content ingest`)";
            Err(Error::failed_precondition("blob", &part.digest, why))
        }
        Err(e) => Err(e),
    }
}

/// RFC 6838: type/subtype, each of restricted characters.
fn is_media_type(text: &str) -> bool {
    let part = |part: &str| {
        let mut bytes = part.bytes();
        part.len() <= 127
            && bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
            && bytes.all(|b| b.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&b))
    };
    text.split_once('/').is_some_and(|(kind, sub)| part(kind) && part(sub))
}

/// A document on its way to be a blob.
pub(crate) fn small(core: &Core, ns: &Namespace, is: &Descriptor, bytes: &[u8], labels: Labels) -> Result<Commit> {
    let mut ingest = core.content.scratch(ns, is.digest.algorithm())?;
    ingest.append(bytes)?;
    Ok(Commit { ingest, size: Some(is.size), expected: Some(is.digest.clone()), labels })
}

/// Blobs, and a name for one of them: visible together.
pub(crate) fn settle(
    core: &Core,
    auth: &Authority,
    ns: &Namespace,
    commits: Vec<Commit>,
    name: &Name,
    target: &Descriptor,
) -> Result<()> {
    let placed = core.content.place(auth, commits)?;
    let names = std::slice::from_ref(name);
    let named =
        placed.sync_blocking().and_then(|()| block_on(core.images.put_all(auth, ns, names, target, placed.rows())));
    match named {
        Ok(()) => {
            placed.done();
            Ok(())
        }
        Err(error) => {
            placed.withdraw(Instant::now() + ROOM);
            Err(error)
        }
    }
}

/// A manifest of whatever it is of: to be stored, and nothing else.
pub(crate) fn bare_manifest(library: &dyn Library, target: &Descriptor) -> Result<Choice> {
    let bytes = library.document(target)?;
    let Document::Manifest(manifest) = document(target, &bytes)? else {
        let why = "is an index, and has no image for this platform: name one of its manifests by digest";
        return Err(Error::not_found("image", &target.digest, why));
    };
    let config_bytes = library.document(&manifest.config)?;
    // It has no platform and no file system.
    let nothing = json!({ "os": "unknown", "architecture": "unknown",
        "rootfs": { "type": "layers", "diff_ids": [] } });
    let broken = |e| Error::internal("artifact", &target.digest, format!("an empty config is none: {e}"));
    let config = Config {
        image: serde_json::from_value(nothing).map_err(broken)?,
        platform: Platform::new("unknown", "unknown", ""),
        diff_ids: Vec::new(),
    };
    let image = ResolvedImage {
        name: None,
        target: target.clone(),
        path: vec![target.digest.clone()],
        manifest: target.clone(),
        config_descriptor: manifest.config,
        config,
        config_bytes,
        layers: manifest.layers,
        chain_ids: Vec::new(),
    };
    Ok(Choice { image, path: vec![(target.clone(), bytes)], parts: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_types_are_told() {
        for good in ["application/vnd.example.report+json", "text/plain", "a/b"] {
            assert!(is_media_type(good), "{good}");
        }
        for bad in [
            "",
            "text",
            "text/",
            "/plain",
            "a/b/c",
            "text/pl ain",
            "text/\u{e9}",
            "te\nxt/a",
            &format!("a/{}", "b".repeat(128)),
        ] {
            assert!(!is_media_type(bad), "{bad}");
        }
    }
}
