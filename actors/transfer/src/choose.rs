//! From a target down to the one image for a platform, with the documents on the way: they are what has to be stored.

use std::{cell::RefCell, collections::HashMap};

use cofferdam_images::{Blobs, Checkpoint, Document, ResolvedImage, document, resolve};
use cofferdam_types::{Descriptor, Digest, Error, Platform, Result, media};

/// Where documents are: an archive, a registry, the store.
pub(crate) trait Library {
    /// The verified bytes of a manifest, an index or a config.
    fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>>;
}

/// A document and its bytes.
pub(crate) type Page = (Descriptor, Vec<u8>);

/// One image and the way to it.
#[derive(Clone, Debug)]
pub(crate) struct Choice {
    pub image: ResolvedImage,
    /// From the target down to the manifest.
    pub path: Vec<Page>,
    /// Blobs that belong to it and are not unpacked: those of a checkpoint.
    pub parts: Vec<Descriptor>,
}

/// The image that `target` has for `platform`.
pub(crate) fn choose(library: &dyn Library, target: &Descriptor, platform: &Platform) -> Result<Choice> {
    let reader = Reader { library, read: RefCell::default() };
    let image = resolve(&reader, target, platform)?;
    for layer in &image.layers {
        if !matches!(media::kind(&layer.media_type), media::Kind::Layer(_)) {
            let message = format!("has a layer of media type {:?}, which can't be unpacked", layer.media_type);
            return Err(Error::unimplemented("image", &image.manifest.digest, message));
        }
    }
    let path = way(&reader.read.into_inner(), target, &image.manifest.digest, 0)?;
    let path =
        path.ok_or_else(|| Error::internal("image", &target.digest, "leads to a manifest that it does not name"))?;
    let checkpoint = path.first().map(|(top, bytes)| Checkpoint::find(top, bytes)).transpose()?.flatten();
    Ok(Choice { image, path, parts: checkpoint.map(|checkpoint| checkpoint.parts()).unwrap_or_default() })
}

/// Reads each document once and keeps it.
struct Reader<'a> {
    library: &'a dyn Library,
    read: RefCell<HashMap<Digest, Vec<u8>>>,
}

impl Blobs for Reader<'_> {
    fn read(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        if let Some(bytes) = self.read.borrow().get(&descriptor.digest) {
            return Ok(bytes.clone());
        }
        let bytes = self.library.document(descriptor)?;
        self.read.borrow_mut().insert(descriptor.digest.clone(), bytes.clone());
        Ok(bytes)
    }

    fn has(&self, descriptor: &Descriptor) -> Result<bool> {
        Ok(self.read(descriptor).is_ok())
    }
}

/// The way from `from` to `goal` through the documents that were read.
fn way(read: &HashMap<Digest, Vec<u8>>, from: &Descriptor, goal: &Digest, depth: usize) -> Result<Option<Vec<Page>>> {
    // Resolving bounds the depth; the way is never longer than what it went.
    let Some(bytes) = read.get(&from.digest).filter(|_| depth < 16) else { return Ok(None) };
    let page = (from.clone(), bytes.clone());
    if from.digest == *goal {
        return Ok(Some(vec![page]));
    }
    let index = media::kind(&from.media_type) == media::Kind::Index;
    if let Some(Document::Index(entries)) = index.then(|| document(from, bytes)).transpose()? {
        for entry in &entries {
            if let Some(rest) = way(read, entry, goal, depth + 1)? {
                return Ok(Some([vec![page], rest].concat()));
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use cofferdam_types::{Algorithm, Code};
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::shelf::{Shelf, on};

    fn image(shelf: &mut Shelf, arch: &str, kind: &str) -> Value {
        shelf.image(arch, &[("l", kind)])
    }

    fn find(shelf: &Shelf, target: &Value) -> Result<Choice> {
        choose(shelf, &serde_json::from_value(target.clone()).unwrap(), &Platform::new("linux", "amd64", ""))
    }

    #[test]
    fn the_way_holds_what_leads_to_the_image_and_nothing_else() {
        let mut shelf = Shelf::default();
        let (amd, arm) = (image(&mut shelf, "amd64", media::OCI_LAYER), image(&mut shelf, "arm64", media::OCI_LAYER));
        assert_eq!(find(&shelf, &amd).unwrap().path.len(), 1);
        assert_eq!(find(&shelf, &arm).unwrap_err().code, Code::NotFound);
        let nested = shelf.index(&[on(arm.clone(), "arm64"), arm, on(amd.clone(), "amd64")]);
        let index = shelf.index(std::slice::from_ref(&nested));
        let choice = find(&shelf, &index).unwrap();
        let way: Vec<Value> = choice.path.iter().map(|(d, _)| json!(d.digest)).collect();
        assert_eq!(way, [index["digest"].clone(), nested["digest"].clone(), amd["digest"].clone()]);
    }

    #[test]
    fn what_cannot_be_unpacked_is_refused() {
        let mut shelf = Shelf::default();
        let odd = image(&mut shelf, "amd64", "application/vnd.in-toto+json");
        assert_eq!(find(&shelf, &odd).unwrap_err().code, Code::Unimplemented);
        let missing =
            json!({"mediaType": media::OCI_MANIFEST, "digest": Digest::of(Algorithm::Sha256, b"?"), "size": 1});
        assert_eq!(find(&shelf, &missing).unwrap_err().code, Code::NotFound);
    }
}
