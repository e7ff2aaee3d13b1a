//! Room that is kept for removals. On a full disk they are what helps, and a commit that removes needs room too.
//!
//! It is a file beside meta.redb that has its blocks and holds nothing. It is given up slice by slice, while a page of
//! such a commit is written: what else fills the disk would take it otherwise. It is made again once there is room.

use std::{
    fmt::Debug,
    fs::File,
    io::{ErrorKind, Result},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use cofferdam_sys::{btrfs, fd::syncfs};
use nix::{fcntl::posix_fallocate, sys::statvfs::fstatvfs};

/// As much as the largest slice of a collection writes.
const SIZE: u64 = 4 << 20;
/// A commit that removes one thing writes about as much.
const SLICE: u64 = 128 << 10;
/// It is not to be what fills the disk.
const ROOM: u64 = 4 * SIZE;

/// Who keeps the room.
pub(crate) trait Reserve: Debug + Send + Sync {
    /// Gives some of it up; false where there is none.
    fn give(&self) -> bool;

    /// Makes it whole if there is room for it; says whether it is.
    fn make(&self) -> bool;
}

/// For a file that is on no disk.
impl Reserve for () {
    fn give(&self) -> bool {
        false
    }

    fn make(&self) -> bool {
        true
    }
}

/// A file of allocated blocks.
#[derive(Debug)]
pub(crate) struct Ballast {
    path: PathBuf,
    /// Held while it is changed.
    changing: Mutex<()>,
}

impl Ballast {
    /// Its name in the root directory.
    const NAME: &str = "reserve";

    /// The one of these tables.
    pub(crate) fn beside(tables: &Path) -> Ballast {
        Ballast { path: tables.with_file_name(Ballast::NAME), changing: Mutex::default() }
    }

    fn shorten(&self) -> Result<bool> {
        let file = match File::options().write(true).open(&self.path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
            opened => opened?,
        };
        let length = file.metadata()?.len();
        file.set_len(length.saturating_sub(SLICE))?;
        if length > 0 {
            // All of it could go for a single commit otherwise, which finds no room all the same.
            settle(&file)?;
        }
        Ok(length > 0)
    }

    fn lengthen(&self) -> Result<bool> {
        let whole = |meta: &std::fs::Metadata| meta.len() >= SIZE && meta.blocks() * 512 >= SIZE;
        if self.path.metadata().is_ok_and(|meta| whole(&meta)) {
            return Ok(true);
        }
        let dir = File::open(self.path.parent().unwrap_or_else(|| Path::new("/")))?;
        let is_room = || fstatvfs(&dir).map(|fs| fs.blocks_available() * fs.fragment_size() > ROOM);
        if !is_room()? {
            settle(&dir)?;
            if !is_room()? {
                return Ok(false);
            }
        }
        let file = File::options().write(true).create(true).truncate(false).mode(0o600).open(&self.path)?;
        let before = file.metadata()?.len();
        match posix_fallocate(&file, 0, SIZE as i64) {
            Ok(()) => Ok(true),
            Err(errno) => {
                file.set_len(before)?;
                Err(errno.into())
            }
        }
    }
}

impl Reserve for Ballast {
    fn give(&self) -> bool {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.shorten().unwrap_or_else(|error| {
            tracing::error!(%error, "the reserve for removals can't be given up");
            false
        })
    }

    fn make(&self) -> bool {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.lengthen().unwrap_or_else(|error| {
            tracing::debug!(%error, "the reserve for removals can't be made");
            false
        })
    }
}

/// Has what was given up be free: on btrfs that comes with the next transaction only, up to 30 s later.
fn settle(on: &File) -> Result<()> {
    if btrfs::is(on)? {
        syncfs(on)?;
    }
    Ok(())
}

/// Whether an operation failed for want of room.
pub(crate) fn is_full<T>(done: &Result<T>) -> bool {
    done.as_ref().is_err_and(|e| matches!(e.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_its_blocks_and_is_given_up_slice_by_slice() {
        let dir = tempfile::tempdir().unwrap();
        let tables = dir.path().join("meta.redb");
        let (ballast, file) = (Ballast::beside(&tables), dir.path().join("reserve"));
        assert!(!ballast.give(), "there is none");
        assert!(ballast.make());
        let blocks = || file.metadata().unwrap().blocks() * 512;
        assert!(blocks() >= SIZE);
        assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o600);
        // Another daemon on the same root finds it.
        let ballast = Ballast::beside(&tables);
        for left in (0..SIZE / SLICE).rev() {
            assert!(ballast.give());
            assert!(blocks() <= left * SLICE + 4096, "{left}: {}", blocks());
        }
        assert!(!ballast.give());
        assert!(ballast.make() && blocks() >= SIZE);
    }
}
