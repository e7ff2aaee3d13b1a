//! What the actor is asked: whatever reads documents. Records are read and written through the handle.

use actix::Message;
use cofferdam_types::{Descriptor, Digest, Namespace, Platform, Result};

use crate::{Check, ResolvedImage};

/// Find the image for a platform behind a descriptor.
pub struct Resolve {
    /// Where its content is.
    pub namespace: Namespace,
    /// A manifest or an index.
    pub target: Descriptor,
    /// For what.
    pub platform: Platform,
}

/// Add up what an image takes in the content store, with all that leads to it.
pub struct Size(pub Resolve);

/// Say for which platforms there are images behind a descriptor.
pub struct Platforms {
    /// Where its content is.
    pub namespace: Namespace,
    /// A manifest or an index.
    pub target: Descriptor,
}

/// Say what of an image is there.
pub struct CheckContent(pub Resolve);

/// List every document behind a descriptor that is there, with what it refers to.
pub struct Documents {
    /// Where its content is.
    pub namespace: Namespace,
    /// A manifest or an index.
    pub target: Descriptor,
}

impl Message for Documents {
    type Result = Result<Vec<(Digest, Vec<Descriptor>)>>;
}

impl Message for Resolve {
    type Result = Result<ResolvedImage>;
}

impl Message for Size {
    type Result = Result<u64>;
}

impl Message for Platforms {
    type Result = Result<Vec<Platform>>;
}

impl Message for CheckContent {
    type Result = Result<Check>;
}
