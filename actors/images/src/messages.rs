//! What the actor is asked: whatever reads documents. Records are read and written through the handle.

use std::collections::HashSet;

use actix::Message;
use cofferdam_metadata::{View, graph::Freed, records::images::Image};
use cofferdam_types::{Descriptor, Digest, Name, Namespace, Platform, Result};

use crate::{Check, Own, Prune, Pruned, ResolvedImage, State};

/// Find the image for a platform behind a descriptor.
pub struct Resolve {
    /// Where its content is.
    pub namespace: Namespace,
    /// A manifest or an index.
    pub target: Descriptor,
    /// For what.
    pub platform: Platform,
    /// All else is as if it weren't here.
    pub own: Own,
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

/// Say what is here of an image, for each platform.
pub struct States {
    /// Where its content is.
    pub namespace: Namespace,
    /// A manifest or an index.
    pub target: Descriptor,
    /// All else is as if it weren't here.
    pub own: Own,
}

/// Say which images would go.
pub struct Decide {
    /// As it is.
    pub view: View,
    /// Of which namespace.
    pub namespace: Namespace,
    /// What is asked.
    pub options: Prune,
    /// Which are looked at.
    pub chosen: Box<dyn Fn(&Image) -> bool + Send>,
}

/// Say what these images alone keep.
pub struct Frees {
    /// As it was.
    pub view: View,
    /// Of which namespace.
    pub namespace: Namespace,
    /// Their names.
    pub names: HashSet<Name>,
}

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

impl Message for States {
    type Result = Result<Vec<State>>;
}

impl Message for Decide {
    type Result = Result<Vec<Pruned>>;
}

impl Message for Frees {
    type Result = Result<Freed>;
}
