//! What an image has through a grant that chooses images.
//!
//! A namespace sees a blob only through its link, which it gets by bringing the bytes. Within a namespace it is the same for who may
//! have some of its images alone: he gets names for what a registry of his gives him, and that may name anything. So an image that got
//! its name through such a grant has what came out of a repository of which the grant has images, and all else is as if it weren't
//! here. One that somebody else named has all that it leads to.

use cofferdam_content::Content;
use cofferdam_metadata::records::{
    content::{self, Link},
    images::{self, Image},
};
use cofferdam_types::{Code, Descriptor, Digest, Name, Namespace, Pictures, Platform, Result};

use crate::{Images, ResolvedImage, handle::question, messages::Resolve};

/// Which blobs of the namespace are an image's own.
#[derive(Clone, Debug, Default)]
pub struct Own(Pictures);

impl Own {
    /// Whether all are to which it leads.
    pub fn is_all(&self) -> bool {
        self.0.is_all()
    }

    /// What came with the images of these names is.
    pub fn of(chosen: &Pictures) -> Own {
        Own(chosen.clone())
    }

    /// Whether a blob is.
    pub fn has(&self, blob: &Link) -> bool {
        blob.came_from(&self.0)
    }

    /// A blob of the namespace, if it is.
    pub fn find(&self, content: &Content, ns: &Namespace, digest: &Digest) -> Result<Option<Link>> {
        match content.info(ns, digest) {
            Err(error) if error.code == Code::NotFound => Ok(None),
            found => found.map(|link| self.has(&link).then_some(link)),
        }
    }
}

impl Images {
    /// What an image has for who may have those that `chosen` says.
    pub fn own(&self, chosen: &Pictures, ns: &Namespace, name: &Name, target: &Descriptor) -> Result<Own> {
        // What is chosen by its digest is known, whoever named it.
        if chosen.is_all() || chosen.has("", &[&target.digest]) {
            return Ok(Own::default());
        }
        let is_theirs = |image: &Image| {
            let digest = &image.target.digest;
            *digest == target.digest && image.ceiling.images.is_all() && chosen.has(&image.name, &[digest])
        };
        let view = self.meta.read()?;
        let theirs = images::find(&view, ns, name)?.is_some_and(|image| is_theirs(&image))
            // By another name that he may have.
            || images::list(&view, ns, None, usize::MAX)?.iter().any(is_theirs);
        Ok(if theirs { Own::default() } else { Own::of(chosen) })
    }

    /// The image for a platform behind a descriptor, all of which is its own.
    pub(crate) async fn resolve_own(
        &self,
        ns: &Namespace,
        target: &Descriptor,
        platform: &Platform,
        own: Own,
    ) -> Result<ResolvedImage> {
        // What is remembered was found in all that is here.
        let image = self.slot.call(Resolve { own: own.clone(), ..question(ns, target, platform) }).await?;
        let view = self.meta.read()?;
        for layer in &image.layers {
            let blob = content::find(&view, ns, &layer.digest)?.filter(|blob| own.has(blob));
            blob.ok_or_else(|| content::missing(&layer.digest))?;
        }
        Ok(image)
    }
}
