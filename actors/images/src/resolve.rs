//! From a descriptor to the image for a platform, and the questions that are asked on the way.

use cofferdam_types::{Code, Descriptor, Digest, Error, Limits, Name, Platform, Result, media};

use crate::checkpoint::is_part;
use crate::document::{Config, Document, Manifest, chain_ids, config, document};

/// Where documents come from: bytes that have been verified against the descriptor's digest.
pub trait Blobs {
    /// Reads one.
    fn read(&self, descriptor: &Descriptor) -> Result<Vec<u8>>;
    /// Whether it is there.
    fn has(&self, descriptor: &Descriptor) -> Result<bool>;
}

/// An image for one platform.
#[derive(Clone, Debug)]
pub struct ResolvedImage {
    /// The name it was found by, if by one.
    pub name: Option<Name>,
    /// What the search began with.
    pub target: Descriptor,
    /// The documents on the way from it to the manifest, both among them; empty if what else is there had a say.
    pub path: Vec<Digest>,
    /// The manifest that it ended with.
    pub manifest: Descriptor,
    /// The config's descriptor.
    pub config_descriptor: Descriptor,
    /// The config.
    pub config: Config,
    /// The config as it is stored.
    pub config_bytes: Vec<u8>,
    /// The layers, the lowest first.
    pub layers: Vec<Descriptor>,
    /// The chain id of each.
    pub chain_ids: Vec<Digest>,
}

impl ResolvedImage {
    /// The name of the snapshot that holds all of it; an image without layers has none.
    pub fn top(&self) -> Option<&Digest> {
        self.chain_ids.last()
    }
}

/// What of an image is in the content store.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Check {
    /// There is a manifest for the platform.
    pub available: bool,
    /// What it needs: config and layers; without a manifest the target.
    pub required: Vec<Descriptor>,
    /// What of that is there.
    pub present: Vec<Descriptor>,
    /// What is not.
    pub missing: Vec<Descriptor>,
}

struct Walk<'a> {
    blobs: &'a dyn Blobs,
    left: u64,
}

impl Walk<'_> {
    fn document(&mut self, descriptor: &Descriptor, depth: usize) -> Result<Document> {
        let Limits { indexes, documents, .. } = Limits::get();
        if depth as u64 > *indexes {
            let why = format!("lies behind more than {indexes} indexes, one within the other");
            // Not as what is no image would be, which may stand in an index.
            return Err(Error::resource_exhausted("document", &descriptor.digest, why));
        }
        self.left = self.left.checked_sub(1).ok_or_else(|| {
            let why = format!("its index leads to more than {documents} documents: name a manifest by its digest");
            Error::resource_exhausted("document", &descriptor.digest, why)
        })?;
        document(descriptor, &self.blobs.read(descriptor)?)
    }

    /// The first manifest for the platform, as the image-spec has it (the reference took the last). `None`: there is
    /// none. `path` gets every document on the way to it.
    fn find(
        &mut self,
        descriptor: &Descriptor,
        platform: &Platform,
        depth: usize,
        path: &mut Vec<Descriptor>,
    ) -> Result<Option<(Descriptor, Manifest)>> {
        path.push(descriptor.clone());
        match self.document(descriptor, depth)? {
            Document::Manifest(manifest) => {
                // An entry that names its platform was chosen by it.
                if descriptor.platform.as_ref().is_some_and(|p| platform.accepts(p))
                    || self.built_for(&manifest, platform)?
                {
                    return Ok(Some((descriptor.clone(), manifest)));
                }
            }
            Document::Index(mut entries) => {
                // In an index that is a checkpoint, beside the image.
                entries.retain(|entry| !is_part(entry));
                let named = entries.iter().filter(|e| e.platform.as_ref().is_some_and(|p| platform.accepts(p)));
                let unnamed = entries.iter().filter(|e| e.platform.is_none());
                for entry in named.chain(unnamed) {
                    match self.find(entry, platform, depth + 1, path) {
                        Ok(None) => {}
                        // Artifacts, and things of other kinds or not here, stand beside images in an index.
                        Err(e) if entry.platform.is_none() && passable(&e) => path.truncate(depth + 1),
                        found => return found,
                    }
                }
            }
        }
        path.pop();
        Ok(None)
    }

    /// Whether the config says so; as in the reference the variant does not count.
    fn built_for(&mut self, manifest: &Manifest, platform: &Platform) -> Result<bool> {
        let built = config(&manifest.config, &self.blobs.read(&manifest.config)?)?.platform;
        Ok(built.os == platform.os && built.architecture == platform.architecture)
    }
}

fn passable(error: &Error) -> bool {
    matches!(error.code, Code::NotFound | Code::FailedPrecondition | Code::InvalidArgument | Code::Unimplemented)
}

fn none(blobs: &dyn Blobs, target: &Descriptor, platform: &Platform) -> Error {
    let has = platforms(blobs, target).unwrap_or_default();
    let has = has.iter().map(Platform::to_string).collect::<Vec<_>>().join(", ");
    let has = if has.is_empty() { "none that can be told".to_owned() } else { has };
    let why = format!("holds no image for {platform}; it has {has}: ask for that, or pull one that has {platform}");
    Error::not_found("image", &target.digest, why)
}

/// The image for `platform` behind `target`.
pub fn resolve(blobs: &dyn Blobs, target: &Descriptor, platform: &Platform) -> Result<ResolvedImage> {
    let mut walk = Walk { blobs, left: Limits::get().documents };
    let mut path = Vec::new();
    let (descriptor, manifest) =
        walk.find(target, platform, 0, &mut path)?.ok_or_else(|| none(blobs, target, platform))?;
    // Of entries that name no platform those that aren't here are passed over.
    if path.iter().skip(1).any(|entry| entry.platform.is_none()) {
        path.clear();
    }
    let config_bytes = blobs.read(&manifest.config)?;
    let config = config(&manifest.config, &config_bytes)?;
    let chain_ids = chain_ids(&manifest, &config)?;
    Ok(ResolvedImage {
        name: None,
        target: target.clone(),
        path: path.into_iter().map(|document| document.digest).collect(),
        manifest: descriptor,
        config_descriptor: manifest.config,
        config,
        config_bytes,
        layers: manifest.layers,
        chain_ids,
    })
}

/// The bytes of an image for `platform`: its documents, config and layers.
pub fn size(blobs: &dyn Blobs, target: &Descriptor, platform: &Platform) -> Result<u64> {
    let mut walk = Walk { blobs, left: Limits::get().documents };
    let mut path = Vec::new();
    let (_, manifest) = walk.find(target, platform, 0, &mut path)?.ok_or_else(|| none(blobs, target, platform))?;
    let all = path.iter().chain([&manifest.config]).chain(&manifest.layers);
    // The sizes are claims: a sum that overflows is one too.
    all.map(|d| d.size)
        .try_fold(0_u64, u64::checked_add)
        .ok_or_else(|| Error::invalid("image", &target.digest, "its sizes add up to more than there are numbers for"))
}

/// The platforms that there are images for: as an index names them, else as the configs do.
pub fn platforms(blobs: &dyn Blobs, target: &Descriptor) -> Result<Vec<Platform>> {
    let mut walk = Walk { blobs, left: Limits::get().documents };
    let mut found = Vec::new();
    let mut pending = vec![(target.clone(), 0)];
    while let Some((descriptor, depth)) = pending.pop() {
        let document = match walk.document(&descriptor, depth) {
            Err(e) if depth > 0 && passable(&e) => continue,
            other => other?,
        };
        let mut add = |p: &Platform| {
            let p = Platform::new(&p.os, &p.architecture, &p.variant);
            if !found.contains(&p) {
                found.push(p);
            }
        };
        match document {
            Document::Manifest(m) => match blobs.read(&m.config).and_then(|bytes| config(&m.config, &bytes)) {
                Ok(config) => add(&config.platform),
                Err(e) if passable(&e) => {}
                Err(e) => return Err(e),
            },
            Document::Index(entries) => {
                for entry in entries.into_iter().rev() {
                    match &entry.platform {
                        // What builders attach to images (attestations) carries this.
                        Some(p) if p.os == "unknown" => {}
                        Some(p) => add(p),
                        None => pending.push((entry, depth + 1)),
                    }
                }
            }
        }
    }
    found.sort_by_key(Platform::to_string);
    Ok(found)
}

/// What of the image for `platform` is there.
pub fn check(blobs: &dyn Blobs, target: &Descriptor, platform: &Platform) -> Result<Check> {
    let mut walk = Walk { blobs, left: Limits::get().documents };
    let found = match walk.find(target, platform, 0, &mut Vec::new()) {
        Err(e) if e.code == Code::NotFound => None,
        other => other?,
    };
    let Some((_, manifest)) = found else {
        return Ok(Check { required: vec![target.clone()], missing: vec![target.clone()], ..Check::default() });
    };
    let mut check = Check { available: true, ..Check::default() };
    for descriptor in std::iter::once(manifest.config).chain(manifest.layers) {
        let place = if blobs.has(&descriptor)? { &mut check.present } else { &mut check.missing };
        place.push(descriptor.clone());
        check.required.push(descriptor);
    }
    Ok(check)
}

/// Every document behind `target` that is there, with what it refers to.
pub fn documents(blobs: &dyn Blobs, target: &Descriptor) -> Result<Vec<(Digest, Vec<Descriptor>)>> {
    let mut walk = Walk { blobs, left: Limits::get().documents };
    let mut found = Vec::new();
    let mut pending = vec![(target.clone(), 0)];
    while let Some((descriptor, depth)) = pending.pop() {
        if !matches!(media::kind(&descriptor.media_type), media::Kind::Manifest | media::Kind::Index) {
            continue;
        }
        let document = match walk.document(&descriptor, depth) {
            Err(e) if depth > 0 && e.code == Code::NotFound => continue,
            other => other?,
        };
        if let Document::Index(entries) = &document {
            pending.extend(entries.iter().rev().map(|entry| (entry.clone(), depth + 1)));
        }
        found.push((descriptor.digest, crate::document::children(&document)));
    }
    Ok(found)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::HashMap;

    use cofferdam_types::{Algorithm, USUAL};
    use serde_json::{Value, json};

    use super::*;

    #[derive(Default)]
    pub(crate) struct Store(pub HashMap<Digest, Vec<u8>>);

    impl Blobs for Store {
        fn read(&self, d: &Descriptor) -> Result<Vec<u8>> {
            self.0.get(&d.digest).cloned().ok_or_else(|| Error::not_found("content", &d.digest, "is not here"))
        }
        fn has(&self, d: &Descriptor) -> Result<bool> {
            Ok(self.0.contains_key(&d.digest))
        }
    }

    impl Store {
        pub(crate) fn put(&mut self, media_type: &str, value: &Value) -> Descriptor {
            let bytes = value.to_string().into_bytes();
            let descriptor = Descriptor::new(media_type, Digest::of(Algorithm::Sha256, &bytes), bytes.len() as u64);
            self.0.insert(descriptor.digest.clone(), bytes);
            descriptor
        }

        pub(crate) fn image(&mut self, os: &str, arch: &str, marker: &str) -> Descriptor {
            let layer = self.put(media::OCI_LAYER, &json!(marker));
            let config = self.put(
                media::OCI_CONFIG,
                &json!({"os": os, "architecture": arch, "author": marker,
                    "rootfs": {"type": "layers", "diff_ids": [layer.digest]}}),
            );
            self.put(media::OCI_MANIFEST, &json!({"schemaVersion": 2, "config": config, "layers": [layer]}))
        }

        pub(crate) fn index(&mut self, entries: &[Descriptor]) -> Descriptor {
            self.put(media::OCI_INDEX, &json!({"schemaVersion": 2, "manifests": entries}))
        }
    }

    pub(crate) fn on(mut d: Descriptor, platform: &str) -> Descriptor {
        d.platform = Some(platform.parse().unwrap());
        d
    }

    fn amd64() -> Platform {
        Platform::new("linux", "amd64", "")
    }

    #[test]
    fn the_first_image_for_the_platform_is_taken() {
        let mut store = Store::default();
        let (arm, first) = (store.image("linux", "arm64", "a"), store.image("linux", "amd64", "b"));
        let second = store.image("linux", "amd64", "c");
        let index =
            store.index(&[on(arm.clone(), "linux/arm64"), on(first.clone(), "linux/amd64"), on(second, "linux/amd64")]);
        let image = resolve(&store, &index, &amd64()).unwrap();
        assert_eq!(image.manifest.digest, first.digest);
        assert_eq!(image.top(), Some(&image.layers[0].digest));
        let on_arm = resolve(&store, &index, &"linux/arm64/v8".parse().unwrap()).unwrap();
        assert_eq!(on_arm.manifest.digest, arm.digest);
        let lacks = resolve(&store, &index, &"linux/s390x".parse().unwrap()).unwrap_err();
        assert!(lacks.code == Code::NotFound && lacks.message.contains("it has linux/amd64, linux/arm64"), "{lacks}");
        let shown: Vec<_> = platforms(&store, &index).unwrap().iter().map(Platform::to_string).collect();
        assert_eq!(shown, ["linux/amd64", "linux/arm64"]);
        let bytes = index.size + first.size + image.config_descriptor.size + image.layers[0].size;
        assert_eq!(size(&store, &index, &amd64()).unwrap(), bytes);
        assert_eq!(documents(&store, &index).unwrap().len(), 4);
    }

    #[test]
    fn without_a_platform_the_config_says() {
        let mut store = Store::default();
        let (windows, linux) = (store.image("windows", "amd64", "w"), store.image("linux", "amd64", "l"));
        assert_eq!(resolve(&store, &windows, &amd64()).unwrap_err().code, Code::NotFound);
        let artifact = store.put("text/plain", &json!({}));
        let artifact = store.put(media::OCI_MANIFEST, &json!({"schemaVersion": 2, "config": artifact, "layers": []}));
        let index = store.index(&[windows.clone(), artifact, linux.clone()]);
        assert_eq!(resolve(&store, &index, &amd64()).unwrap().manifest.digest, linux.digest);
        let nested = store.index(&[index]);
        assert_eq!(resolve(&store, &nested, &amd64()).unwrap().manifest.digest, linux.digest);
        assert_eq!(platforms(&store, &nested).unwrap().len(), 2);
        let (w, n) = (windows, nested);
        assert!(size(&store, &n, &amd64()).unwrap() > 0 && size(&store, &w, &amd64()).is_err());
    }

    #[test]
    fn m5_a_depth_bomb_is_refused() {
        let mut store = Store::default();
        let mut top = store.image("linux", "amd64", "x");
        for _ in 0..=USUAL.indexes {
            top = on(store.index(&[top]), "linux/amd64");
        }
        assert_eq!(resolve(&store, &top, &amd64()).unwrap_err().code, Code::ResourceExhausted);
        assert!(platforms(&store, &top).is_ok_and(|found| found.len() <= 1));
    }

    #[test]
    fn m5_a_crowd_of_documents_is_refused() {
        let mut store = Store::default();
        let crowd: Vec<_> = (0..=USUAL.documents).map(|i| store.image("linux", "arm", &i.to_string())).collect();
        let index = store.index(&crowd);
        let error = resolve(&store, &index, &amd64()).unwrap_err();
        assert_eq!(error.code, Code::ResourceExhausted);
    }

    #[test]
    fn what_is_missing_is_said() {
        let mut store = Store::default();
        let image = store.image("linux", "amd64", "x");
        let index = store.index(&[on(image.clone(), "linux/amd64")]);
        let resolved = resolve(&store, &index, &amd64()).unwrap();
        assert!(check(&store, &index, &amd64()).unwrap().missing.is_empty());
        store.0.remove(&resolved.layers[0].digest);
        let partial = check(&store, &index, &amd64()).unwrap();
        assert_eq!((partial.available, partial.missing), (true, resolved.layers.clone()));
        assert_eq!(partial.present, [resolved.config_descriptor]);
        store.0.remove(&image.digest);
        let gone = check(&store, &index, &amd64()).unwrap();
        assert_eq!((gone.available, gone.missing), (false, vec![index.clone()]));
        assert_eq!(resolve(&store, &index, &amd64()).unwrap_err().code, Code::NotFound);
    }
}
