//! What is here of an image, platform by platform.

use cofferdam_types::{Code, Descriptor, Digest, Error, Limits, Platform, Result, media};

use crate::{
    checkpoint::is_part,
    document::{Config, Document, Manifest, chain_ids, config, document},
    resolve::Blobs,
};

/// An image for one platform, as far as it is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// What it is for.
    pub platform: Platform,
    /// Its manifest, whether that is here or not.
    pub manifest: Descriptor,
    /// What it needs, as far as that can be told: manifest, config and layers.
    pub required: Vec<Descriptor>,
    /// What of that isn't here.
    pub missing: Vec<Descriptor>,
    /// The name of the snapshot of all its layers; none where the config isn't here, or there are no layers.
    pub top: Option<Digest>,
}

impl State {
    /// Of all that it needs.
    pub fn size(&self) -> u64 {
        self.required.iter().fold(0, |sum, part| sum.saturating_add(part.size))
    }
}

/// Those behind `target`, in the order of its index; of several for one platform the one that is taken for it.
pub fn states(blobs: &dyn Blobs, target: &Descriptor) -> Result<Vec<State>> {
    let mut walk = Walk { blobs, left: Limits::get().documents, found: Vec::new() };
    walk.enter(target, 0)?;
    Ok(walk.found)
}

struct Walk<'a> {
    blobs: &'a dyn Blobs,
    left: u64,
    found: Vec<State>,
}

impl Walk<'_> {
    fn enter(&mut self, descriptor: &Descriptor, depth: usize) -> Result<()> {
        let Limits { indexes, documents, .. } = Limits::get();
        if depth as u64 > *indexes {
            return Ok(());
        }
        self.left = self.left.checked_sub(1).ok_or_else(|| {
            let why = format!("leads to more than {documents} documents: name a manifest by its digest");
            Error::resource_exhausted("document", &descriptor.digest, why)
        })?;
        let read = self.blobs.read(descriptor).and_then(|bytes| document(descriptor, &bytes));
        match read {
            Ok(Document::Manifest(manifest)) => self.manifest(descriptor, manifest),
            Ok(Document::Index(mut entries)) => {
                entries.retain(|entry| !is_part(entry) && is_document(entry));
                entries.iter().try_for_each(|entry| self.enter(entry, depth + 1))
            }
            // What the index says of it is all that is known.
            Err(e) if e.code == Code::NotFound && depth > 0 => {
                if let Some(platform) = &descriptor.platform {
                    let whole = vec![descriptor.clone()];
                    self.add(platform, descriptor, whole.clone(), whole, None);
                }
                Ok(())
            }
            // Things of other kinds stand beside images.
            Err(e) if depth > 0 && is_other(&e) => Ok(()),
            Err(e) => Err(e),
        }
    }

    fn manifest(&mut self, descriptor: &Descriptor, manifest: Manifest) -> Result<()> {
        let config = match self.blobs.read(&manifest.config).and_then(|bytes| config(&manifest.config, &bytes)) {
            Ok(config) => Some(config),
            Err(e) if e.code == Code::NotFound => None,
            Err(e) if is_other(&e) => return Ok(()),
            Err(e) => return Err(e),
        };
        let Some(platform) = descriptor.platform.as_ref().or_else(|| config.as_ref().map(|config| &config.platform))
        else {
            // Neither says what it is for.
            return Ok(());
        };
        let top = |config: &Config| chain_ids(&manifest, config).ok()?.pop();
        let top = config.as_ref().and_then(top);
        let (mut required, mut missing) = (vec![descriptor.clone()], Vec::new());
        for part in [&manifest.config].into_iter().chain(&manifest.layers) {
            if !self.blobs.has(part)? {
                missing.push(part.clone());
            }
            required.push(part.clone());
        }
        self.add(platform, descriptor, required, missing, top);
        Ok(())
    }

    fn add(
        &mut self,
        platform: &Platform,
        manifest: &Descriptor,
        required: Vec<Descriptor>,
        missing: Vec<Descriptor>,
        top: Option<Digest>,
    ) {
        let platform = Platform::new(&platform.os, &platform.architecture, &platform.variant);
        // An attestation is marked so; it is no image.
        if platform.os != "unknown" && self.found.iter().all(|state| state.platform != platform) {
            self.found.push(State { platform, manifest: manifest.clone(), required, missing, top });
        }
    }
}

fn is_document(entry: &Descriptor) -> bool {
    matches!(media::kind(&entry.media_type), media::Kind::Manifest | media::Kind::Index)
}

fn is_other(error: &Error) -> bool {
    matches!(error.code, Code::FailedPrecondition | Code::InvalidArgument | Code::Unimplemented)
}

#[cfg(test)]
mod tests {
    use cofferdam_types::media;
    use serde_json::json;

    use super::*;
    use crate::resolve::tests::{Store, on};

    #[test]
    fn each_platform_is_told_with_what_is_missing() {
        let mut store = Store::default();
        let (amd, arm) = (store.image("linux", "amd64", "a"), store.image("linux", "arm64", "b"));
        let other = store.put("text/plain", &json!({}));
        let other = store.put(media::OCI_MANIFEST, &json!({"schemaVersion": 2, "config": other, "layers": []}));
        let index = store.index(&[
            on(amd.clone(), "linux/amd64"),
            on(arm.clone(), "linux/arm64"),
            on(amd.clone(), "linux/amd64"),
            on(other.clone(), "unknown/unknown"),
            other,
        ]);
        let all = states(&store, &index).unwrap();
        let shown: Vec<_> = all.iter().map(|state| state.platform.to_string()).collect();
        assert_eq!(shown, ["linux/amd64", "linux/arm64"]);
        assert!(all.iter().all(|state| state.missing.is_empty() && state.required.len() == 3 && state.top.is_some()));
        assert_eq!(all[0].size(), all[0].required.iter().map(|part| part.size).sum::<u64>());

        // A layer of one, and the manifest of the other.
        let layer = all[0].required[2].clone();
        store.0.remove(&layer.digest);
        store.0.remove(&arm.digest);
        let all = states(&store, &index).unwrap();
        assert_eq!(all[0].missing, [layer]);
        assert_eq!((all[1].missing.len(), all[1].required.len(), &all[1].manifest.digest), (1, 1, &arm.digest));
        assert_eq!(all[1].top, None);

        // Without the index nothing can be told.
        store.0.remove(&index.digest);
        assert_eq!(states(&store, &index).unwrap_err().code, Code::NotFound);
    }

    #[test]
    fn an_image_without_index_says_its_platform_itself() {
        let mut store = Store::default();
        let image = store.image("linux", "riscv64", "r");
        let all = states(&store, &image).unwrap();
        assert_eq!((all.len(), all[0].platform.to_string().as_str()), (1, "linux/riscv64"));
        assert_eq!(all[0].manifest.digest, image.digest);
    }
}
