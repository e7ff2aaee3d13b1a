//! Images that were resolved lately. What a digest names never changes; what may have changed is whether the namespace
//! still has it, and that is looked up each time.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use cofferdam_metadata::{Read, records::content};
use cofferdam_types::{Descriptor, Namespace, Platform, Result};

use crate::ResolvedImage;

const KEPT: usize = 16;
/// A config is a few KiB; one that is larger is read each time.
const CONFIG: usize = 64 << 10;

#[derive(Clone, Debug, Default)]
pub(crate) struct Recent(Arc<Mutex<VecDeque<(Platform, ResolvedImage)>>>);

impl Recent {
    /// The image for a platform behind a target, if the namespace has all documents that lead to it.
    pub fn find(
        &self,
        read: &dyn Read,
        ns: &Namespace,
        target: &Descriptor,
        platform: &Platform,
    ) -> Result<Option<ResolvedImage>> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = kept.iter().find(|(p, image)| p == platform && image.target == *target);
        let Some((_, image)) = known else { return Ok(None) };
        for digest in image.path.iter().chain([&image.config_descriptor.digest]) {
            if content::find(read, ns, digest)?.is_none() {
                return Ok(None);
            }
        }
        Ok(Some(image.clone()))
    }

    /// Remembers one, in place of the one that was remembered first.
    pub fn keep(&self, platform: &Platform, image: &ResolvedImage) {
        if image.config_bytes.len() > CONFIG || image.path.is_empty() {
            return;
        }
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(p, known)| p != platform || known.target != image.target);
        kept.truncate(KEPT - 1);
        kept.push_front((platform.clone(), image.clone()));
    }
}
