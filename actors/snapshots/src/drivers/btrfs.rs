//! btrfs: each tree is a subvolume, a child begins as a snapshot of its parent, what is committed is read-only.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use cofferdam_sys::btrfs;
use cofferdam_types::{Error, Mount, Result};
use nix::{
    errno::Errno,
    fcntl::{RenameFlags, renameat2},
};

use super::{Access, Driver, Trees, bind, open_to_all, unverified};
use crate::walk::open_dir;

/// The driver that needs btrfs.
pub struct Btrfs;

/// Beside the tree `fs` while a snapshot is being committed: its read-only copy at first, and once the two have changed
/// places what was writable. Which is which their origin says: flags are also for whoever is root in a container to set.
const OTHER: &CStr = c"other";
const TREE: &CStr = c"fs";

impl Driver for Btrfs {
    fn name(&self) -> &'static str {
        "btrfs"
    }

    fn detached(&self) -> bool {
        false
    }

    fn scratch(&self) -> bool {
        false
    }

    fn fits(&self, dir: BorrowedFd<'_>) -> Result<()> {
        if btrfs::is(dir).map_err(failed("look at the file system"))? {
            return Ok(());
        }
        let why = "needs the daemon's root on btrfs, and it lies on another file system: use another driver";
        Err(Error::unimplemented("driver", self.name(), why))
    }

    /// One that is made ahead, empty, would only be replaced by a snapshot.
    fn ahead(&self) -> bool {
        false
    }

    fn make(&self, own: BorrowedFd<'_>, parent: Option<BorrowedFd<'_>>) -> Result<()> {
        match parent {
            Some(parent) => btrfs::snapshot(parent, own, TREE, false).map_err(failed("make a snapshot")),
            None => btrfs::create(own, TREE).and_then(|()| Ok(open_to_all(own)?)).map_err(failed("make a subvolume")),
        }
    }

    /// By a read-only snapshot, not by the flag alone: that doesn't stop who has a file open.
    fn seal(&self, own: BorrowedFd<'_>, verity: bool) -> Result<()> {
        if verity {
            return Err(unverified(self.name()));
        }
        let tree = open_dir(own, TREE).map_err(|e| failed("open a subvolume")(e.into()))?;
        if let Some(place) = btrfs::holds_others(&tree).map_err(failed("look for subvolumes in a snapshot"))? {
            let why = format!(
                "has a btrfs subvolume at {place}, which a snapshot leaves out: make it a directory, or remove it"
            );
            return Err(Error::failed_precondition("snapshot", "", why));
        }
        btrfs::snapshot(&tree, own, OTHER, true).map_err(failed("make a read-only snapshot"))?;
        exchange(own)
    }

    fn settle(&self, own: BorrowedFd<'_>, committed: bool) -> Result<&'static [&'static CStr]> {
        let other = match open_dir(own, OTHER) {
            Err(Errno::ENOENT) => return Ok(&[]),
            other => other.map_err(|e| failed("open a subvolume")(e.into()))?,
        };
        let tree = open_dir(own, TREE).map_err(|e| failed("open a subvolume")(e.into()))?;
        if btrfs::is_snapshot_of(&tree, &other).map_err(failed("look at a subvolume"))? != committed {
            exchange(own)?;
        }
        // Not by way of the trash: one that is read-only can't be moved.
        btrfs::destroy(own, OTHER).map_err(failed("remove a subvolume"))?;
        Ok(&[])
    }

    fn since(&self, tree: BorrowedFd<'_>) -> Result<Duration> {
        btrfs::made(tree).map_err(failed("ask when a subvolume was made"))
    }

    fn counted(&self, tree: BorrowedFd<'_>) -> Result<Option<u64>> {
        btrfs::exclusive(tree).map_err(failed("ask for the size of a subvolume"))
    }

    fn limit(&self, own: BorrowedFd<'_>, id: u64, bytes: u64) -> Result<()> {
        let tree = open_dir(own, TREE).map_err(|e| failed("open a subvolume")(e.into()))?;
        if btrfs::counts_still(own).map_err(failed("ask whether quotas are counted"))? {
            let why = "can't be bounded yet: btrfs still counts what there is, since quotas were turned on or by a \
                       `btrfs quota rescan`. Try again when that is done";
            return Err(Error::unavailable("snapshot", id, why));
        }
        btrfs::limit_exclusive(own, tree, bytes).map_err(|e| match e.raw_os_error() {
            Some(libc::ENOTCONN) => {
                let why =
                    "can't bound what is written into a snapshot: quotas are off, `btrfs quota enable` turns them on";
                Error::failed_precondition("driver", self.name(), why)
            }
            _ => failed("bound the size of a subvolume")(e),
        })
    }

    fn mounts(&self, access: Access, trees: Trees<'_>) -> Vec<Mount> {
        bind(access, trees)
    }
}

fn exchange(own: BorrowedFd<'_>) -> Result<()> {
    renameat2(own, TREE, own.as_fd(), OTHER, RenameFlags::RENAME_EXCHANGE)
        .map_err(|e| failed("exchange two subvolumes")(e.into()))
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> Error {
    move |error| Error::io("snapshot", "", what, &error)
}
