//! What the actor is asked.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, atomic::AtomicBool},
};

use actix::Message;
use cofferdam_archive::{Applied, Limits};
use cofferdam_snapshots::Stage;
use cofferdam_types::{Descriptor, Digest, Namespace, Result};

/// A layer that lies in its stage, its diff id verified.
pub struct Extracted {
    /// Which layer.
    pub layer: Descriptor,
    /// Where.
    pub stage: Stage,
    /// What was done, and what is left for when the parent is there.
    pub applied: Applied,
}

impl Extracted {
    /// Whether it takes anything from what lies below it.
    pub(crate) fn borrows(&self) -> bool {
        let Applied { lower_links, implicit_parents, undecided, .. } = &self.applied;
        !self.stage.detached() || !lower_links.is_empty() || !implicit_parents.is_empty() || undecided.is_some()
    }
}

/// One layer of a chain that is put together.
pub enum Rung {
    /// A tree that is there already.
    There(OwnedFd),
    /// A new one.
    New(Box<Extracted>),
}

impl Rung {
    /// The root of the tree.
    pub fn tree(&self) -> BorrowedFd<'_> {
        match self {
            Rung::There(tree) => tree.as_fd(),
            Rung::New(layer) => layer.stage.tree(),
        }
    }
}

/// Extract a blob of a namespace into a stage.
pub struct Apply {
    /// Whose blob.
    pub namespace: Namespace,
    /// Which one.
    pub layer: Descriptor,
    /// What its tar must hash to.
    pub diff_id: Digest,
    /// Where to.
    pub stage: Stage,
    /// What it may cost.
    pub limits: Limits,
    /// Set: stop.
    pub cancel: Arc<AtomicBool>,
}

/// Say whether a blob of a namespace inflates to the tar with this diff id.
pub struct Verify {
    /// Whose blob.
    pub namespace: Namespace,
    /// Which one.
    pub layer: Descriptor,
    /// What its tar must hash to.
    pub diff_id: Digest,
    /// Set: stop.
    pub cancel: Arc<AtomicBool>,
}

/// Complete layers that were extracted without their parents, the lowest first; gives back the stages of the new ones,
/// at their places.
pub struct Settle {
    /// Whose blobs.
    pub namespace: Namespace,
    /// The whole chain.
    pub rungs: Vec<Rung>,
    /// Set: stop.
    pub cancel: Arc<AtomicBool>,
}

impl Message for Apply {
    type Result = Result<Extracted>;
}

impl Message for Verify {
    type Result = Result<()>;
}

impl Message for Settle {
    type Result = Result<Vec<Option<Stage>>>;
}
