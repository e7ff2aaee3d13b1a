//! A directory that is a mount of its own, for what is mounted in it: that reaches whoever has a mount namespace of his
//! own, as the shim of a group may, wherever the host's mounts are private.

use std::{
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use cofferdam_sys::{mount, mountinfo};
use cofferdam_types::{Error, Result};
use nix::{
    errno::Errno,
    mount::{MntFlags, umount2},
    sys::stat::stat,
};

use crate::area::private_dir;

/// The mount, which ends with this, and with it all that is mounted in it.
pub struct Ground {
    path: PathBuf,
    ended: AtomicBool,
}

/// Makes and opens the directory. A mount that a crash left behind is taken as it is, with what is mounted in it: who
/// sees that, sees what comes.
pub fn open(path: &Path) -> Result<(OwnedFd, Ground)> {
    let failed = |e: std::io::Error| Error::io("directory", path.display(), "make a mount of a directory", &e);
    let below = private_dir(path)?;
    if !is_ours(path).map_err(failed)? {
        let own = mount::clone_tree(&below, false).map_err(failed)?;
        // Of no group but its own, or all that is mounted in it would come twice.
        for propagation in [libc::MS_PRIVATE, libc::MS_SHARED] {
            mount::set_attributes(&own, 0, 0, propagation, false).map_err(failed)?;
        }
        mount::attach(&own, &below).map_err(failed)?;
    }
    let ground = Ground { path: path.to_owned(), ended: AtomicBool::new(false) };
    Ok((private_dir(path)?, ground))
}

impl Ground {
    /// Ends it, once or again.
    pub fn end(&self) {
        // What is mounted there later is another's.
        if !self.ended.swap(true, Ordering::Relaxed)
            && let Err(error) = detach(&self.path)
        {
            tracing::warn!(%error, path = %self.path.display(), "the directory of a driver stays mounted");
        }
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        self.end();
    }
}

/// Unmounts all that is mounted below a directory.
pub fn clear(dir: BorrowedFd<'_>) -> std::io::Result<()> {
    let path = std::fs::read_link(format!("/proc/self/fd/{}", dir.as_raw_fd()))?;
    let below = |mount: &mountinfo::Info| mount.point.starts_with(&path) && mount.point != path;
    // What lies on others came later.
    mountinfo::read()?.iter().rev().filter(|mount| below(mount)).try_for_each(|mount| Ok(detach(&mount.point)?))
}

fn detach(path: &Path) -> Result<(), Errno> {
    match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        // It isn't mounted, or isn't there.
        Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        other => other,
    }
}

/// A disk that somebody has mounted there is another than that of the directory above.
fn is_ours(path: &Path) -> std::io::Result<bool> {
    Ok(mountinfo::is_mount_point(&path.canonicalize()?)? && stat(path)?.st_dev == stat(&path.join(".."))?.st_dev)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_mounted_once_and_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ground");
        let mounted = || mountinfo::read().unwrap().iter().filter(|mount| mount.point == path).count();
        // What a crash left.
        std::mem::forget(open(&path).unwrap().1);
        assert_eq!(mounted(), 1);
        let (_, ground) = open(&path).unwrap();
        assert_eq!(mounted(), 1);
        drop(ground);
        assert_eq!(mounted(), 0);
    }
}
