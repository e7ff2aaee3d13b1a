//! What a driver is, and which there are: a new one is one file here and one line in [`all`].

mod btrfs;
mod erofs;
mod native;
mod overlay;

use std::{
    ffi::CStr,
    os::fd::{BorrowedFd, OwnedFd},
    time::Duration,
};

use cofferdam_types::{Error, Mount, Result};
use nix::{
    errno::Errno,
    sys::stat::{FchmodatFlags, Mode, fchmodat, mkdirat},
};

use btrfs::Btrfs;
use erofs::Erofs;
use native::Native;
pub(crate) use overlay::Overlay;

use crate::{project, walk::open_dir};

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
}

/// How trees are stacked. Every driver keeps each writable tree in `<id>/fs`; what differs is what `fs` holds, how it is
/// shown, and what becomes of it. A driver holds no state: what it needs to know stands in the records.
pub trait Driver: Send + Sync + 'static {
    /// Its name: in records, in labels, and of its directory. Matches `[a-z0-9-]+`.
    fn name(&self) -> &'static str;

    /// Whether a layer is extracted into an empty tree, without its parent (so that layers can be extracted side by
    /// side, with whiteouts kept in the form that the driver's mounts read), or on a tree that holds the parent.
    fn detached(&self) -> bool;

    /// Whether a writable snapshot needs a directory `work` beside its tree.
    fn scratch(&self) -> bool;

    /// Refuses, with the reason, a directory on which the driver can't work.
    fn fits(&self, _dir: BorrowedFd<'_>) -> Result<()> {
        Ok(())
    }

    /// Whether empty trees are made ahead.
    fn ahead(&self) -> bool {
        true
    }

    /// Makes the tree `fs` in the directory `own` of a new snapshot, where there may be an empty one already; then, unless
    /// it is `detached` and stacks at mount time, brings the content of the tree `parent` into it. The caller syncs.
    fn make(&self, own: BorrowedFd<'_>, parent: Option<BorrowedFd<'_>>) -> Result<()>;

    /// What is in the tree in `own` is what will be committed: it changes no more from here on, whoever still writes to it. With
    /// `verity` the kernel is to see to it that what is read of it later is what it was; a driver that can't have that refuses.
    fn seal(&self, _own: BorrowedFd<'_>, verity: bool) -> Result<()> {
        if verity { Err(unverified(self.name())) } else { Ok(()) }
    }

    /// Brings the directory `own` into the form of a snapshot that is committed, or of one that isn't: after a commit,
    /// after one that failed, and at each start. Gives the names in it that are of no more use.
    fn settle(&self, _own: BorrowedFd<'_>, _committed: bool) -> Result<&'static [&'static CStr]> {
        Ok(&[])
    }

    /// Opens the tree in `own`, whatever form it has.
    fn open(&self, own: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
        open_dir(own, c"fs")
    }

    /// Whether `own` holds the bytes of a committed tree though [`Driver::open`] finds none: what it takes to show them is missing.
    fn holds(&self, _own: BorrowedFd<'_>) -> bool {
        false
    }

    /// Whether the daemon keeps something mounted in the directories.
    fn attaches(&self) -> bool {
        false
    }

    /// Ends that. Who has mounted it elsewhere keeps it.
    fn release(&self, _own: BorrowedFd<'_>) -> Result<()> {
        Ok(())
    }

    /// From when on, counted from 1970, a change in a tree is its own and not its parent's.
    fn since(&self, _tree: BorrowedFd<'_>) -> Result<Duration> {
        Ok(Duration::ZERO)
    }

    /// The bytes that the tree of an active snapshot has for itself, where the file system counts them.
    fn counted(&self, _tree: BorrowedFd<'_>) -> Result<Option<u64>> {
        Ok(None)
    }

    /// Bounds the bytes that what is written into the directory `own` of the snapshot `id` may take; 0 is no bound.
    fn limit(&self, own: BorrowedFd<'_>, id: u64, bytes: u64) -> Result<()> {
        project::limit(own, self.name(), id, bytes)
    }

    /// The mounts that show a snapshot, to be applied in order onto one target.
    fn mounts(&self, access: Access, trees: Trees<'_>) -> Vec<Mount>;
}

/// What the operator wants of all drivers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Layers are committed with fs-verity, or not at all.
    pub verity: bool,
}

/// The drivers of this build, the default first.
pub fn all() -> Vec<Box<dyn Driver>> {
    vec![Box::new(Overlay::detect()), Box::new(Native), Box::new(Btrfs), Box::new(Erofs::detect())]
}

/// The refusal of a driver whose layers are trees.
fn unverified(driver: &'static str) -> Error {
    let why = "commits nothing while the daemon runs with --verity: fs-verity seals a file, and this driver keeps a layer as a tree \
               of them. Use the driver erofs";
    Error::unimplemented("driver", driver, why)
}

/// Makes the tree as a directory.
fn make_dir(own: BorrowedFd<'_>) -> Result<(), Errno> {
    match mkdirat(own, "fs", Mode::S_IRWXU) {
        Err(Errno::EEXIST) => {}
        other => other?,
    }
    open_to_all(own)
}

/// mkdir(2) takes the umask off, and a root that is closed to all but root breaks most images.
fn open_to_all(own: BorrowedFd<'_>) -> Result<(), Errno> {
    fchmodat(own, "fs", Mode::from_bits_truncate(0o755), FchmodatFlags::NoFollowSymlink)
}

fn failed(e: Errno) -> Error {
    Error::io("snapshot", "", "make a tree", &e.into())
}

/// One bind mount, as every driver gives it where a single tree is the whole answer. A tree that is not the snapshot's
/// own is never bound writable, whatever is asked.
fn bind(access: Access, trees: Trees<'_>) -> Vec<Mount> {
    bind_of(access, trees, |id| trees.tree(id))
}

/// The same where the trees of ancestors lie elsewhere.
fn bind_of(access: Access, trees: Trees<'_>, parent: impl Fn(u64) -> String) -> Vec<Mount> {
    // The snapshot's own, or else its nearest parent's.
    let source = match trees.own {
        Some(own) => trees.tree(own),
        None => parent(trees.parents.first().copied().unwrap_or_default()),
    };
    let mode = if access == Access::Write && trees.own.is_some() { "rw" } else { "ro" };
    vec![Mount { kind: "bind".into(), source, options: vec![mode.into(), "rbind".into()] }]
}
