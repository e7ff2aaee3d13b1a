//! What a driver is, and which there are: a new one is one file here and one line in [`all`].

mod native;
mod overlay;

use std::os::fd::BorrowedFd;

use cofferdam_types::{Mount, Result};

use native::Native;
pub(crate) use overlay::Overlay;

/// The states of a snapshot that can be mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// An active snapshot.
    Write,
    /// A view.
    Read,
}

/// The trees that a mount is made of, as paths. The one use of a path below the root: mount options are text.
#[derive(Clone, Copy, Debug)]
pub struct Trees<'a> {
    /// The driver's directory.
    pub base: &'a str,
    /// The snapshot's own directory; a view with a parent has none.
    pub own: Option<u64>,
    /// The directories of its ancestors, nearest first.
    pub parents: &'a [u64],
}

impl Trees<'_> {
    /// The path of the tree in directory `id`.
    pub fn tree(&self, id: u64) -> String {
        format!("{}/{id}/fs", self.base)
    }

    /// The path of the scratch directory beside it.
    pub fn work(&self, id: u64) -> String {
        format!("{}/{id}/work", self.base)
    }

    /// The one tree that can be bound as it is: the snapshot's own, or else its nearest parent's.
    fn single(&self) -> String {
        self.tree(self.own.or_else(|| self.parents.first().copied()).unwrap_or_default())
    }
}

/// How trees are stacked. Every driver keeps each tree in `<id>/fs`; what differs is what `fs` holds and how it is
/// shown. A driver holds no state: what it needs to know stands in the records.
pub trait Driver: Send + Sync + 'static {
    /// Its name: in records, in labels, and of its directory. Matches `[a-z0-9-]+`.
    fn name(&self) -> &'static str;

    /// Whether a layer is extracted into an empty tree, without its parent (so that layers can be extracted side by
    /// side, with whiteouts kept in the form that the driver's mounts read), or on a tree that holds the parent.
    fn detached(&self) -> bool;

    /// Whether a writable snapshot needs a directory `work` beside its tree.
    fn scratch(&self) -> bool;

    /// Brings the parent's content into the empty tree of a new snapshot; the caller syncs. A driver that is `detached`
    /// stacks at mount time and has nothing to do.
    fn populate(&self, tree: BorrowedFd<'_>, parent: BorrowedFd<'_>) -> Result<()>;

    /// The mounts that show a snapshot, to be applied in order onto one target.
    fn mounts(&self, access: Access, trees: Trees<'_>) -> Vec<Mount>;
}

/// The drivers of this build, the default first.
pub fn all() -> Vec<Box<dyn Driver>> {
    vec![Box::new(Overlay::detect()), Box::new(Native)]
}

/// One bind mount, as both drivers give it where a single tree is the whole answer. A tree that is not the snapshot's
/// own is never bound writable, whatever is asked.
fn bind(access: Access, trees: Trees<'_>) -> Vec<Mount> {
    let mode = if access == Access::Write && trees.own.is_some() { "rw" } else { "ro" };
    vec![Mount { kind: "bind".into(), source: trees.single(), options: vec![mode.into(), "rbind".into()] }]
}
