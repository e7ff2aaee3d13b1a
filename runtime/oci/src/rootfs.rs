//! The root file system of a container as a mount in its bundle, for programs that want a path. It is made in the
//! mount namespace of the caller, which must be a private one: the host never sees it, and it goes with the caller.

use std::{
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use cofferdam_sys::{fd, mount as sysmount};
use cofferdam_types::{Error, Mount, Result};

use crate::CreateRequest;

/// Names in a bundle.
const ROOTFS: &str = "rootfs";
/// There while we have mounts at `rootfs`: one that the caller made is not ours to unmount.
pub(crate) const MOUNTED: &str = "rootfs.mounted";

/// Mounted for as long as this lives.
pub(crate) struct Mounted<'a> {
    bundle: &'a Path,
    path: PathBuf,
}

impl<'a> Mounted<'a> {
    pub fn new(request: &CreateRequest<'a>) -> Result<Mounted<'a>> {
        if request.rootfs.is_empty() {
            let why = "a root file system that nobody mounts can't be restored into: give the mounts of it";
            return Err(Error::unimplemented("container", request.id, why));
        }
        let mounted = Mounted { bundle: request.bundle_path, path: request.bundle_path.join(ROOTFS) };
        mount(request.bundle, request.rootfs)?;
        Ok(mounted)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        if let Err(error) = unmount(self.bundle) {
            tracing::warn!(bundle = %self.bundle.display(), %error, "its root stays mounted here");
        }
    }
}

/// Takes what [`mount`] made off again, if it did; a lazy unmount gets past whoever else looks into it.
pub(crate) fn unmount(bundle: &Path) -> std::io::Result<()> {
    let (root, mark) = (bundle.join(ROOTFS), bundle.join(MOUNTED));
    if !mark.exists() {
        return Ok(());
    }
    while take_off(&root)? {}
    match std::fs::remove_dir(&root) {
        // A directory of the caller's, with something in it under our mount.
        Err(e) if matches!(e.kind(), std::io::ErrorKind::DirectoryNotEmpty | std::io::ErrorKind::NotFound) => {}
        result => result?,
    }
    std::fs::remove_file(mark)
}

/// Mounts the layers of the root, in order, at `rootfs` in the bundle.
pub(crate) fn mount(bundle: BorrowedFd<'_>, mounts: &[Mount]) -> Result<()> {
    if mounts.is_empty() {
        return Ok(());
    }
    let fail = |what: &str, e: &std::io::Error| Error::io("mount", ROOTFS, what, e);
    match nix::sys::stat::mkdirat(bundle, ROOTFS, nix::sys::stat::Mode::S_IRWXU) {
        Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
        Err(e) => return Err(fail("making the mount point", &e.into())),
    }
    // A symlink or anything else in its place is removed, not followed (F4).
    let _ = nix::unistd::unlinkat(bundle, MOUNTED, nix::unistd::UnlinkatFlags::NoRemoveDir);
    let mark = fd::open_no_symlinks(bundle, Path::new(MOUNTED), libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL, 0o600);
    mark.map_err(|e| fail("marking it", &e))?;
    for wanted in mounts {
        let detached = sysmount::detached(wanted)?;
        // Opened anew each time: a mount on top of the one before, not under it.
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        let target = fd::open_no_symlinks(bundle, Path::new(ROOTFS), flags, 0).map_err(|e| fail("opening it", &e))?;
        attach(&detached, &target).map_err(|e| fail("attaching the root file system", &e))?;
    }
    Ok(())
}

fn attach(detached: &OwnedFd, target: &OwnedFd) -> std::io::Result<()> {
    let flags = libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH;
    let (from, to) = (detached.as_raw_fd(), target.as_raw_fd());
    // SAFETY: the strings are static and the descriptors are held by the caller.
    match unsafe { libc::syscall(libc::SYS_move_mount, from, c"".as_ptr(), to, c"".as_ptr(), flags) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Takes the uppermost mount off; false when there was none.
fn take_off(path: &Path) -> std::io::Result<bool> {
    use nix::{errno::Errno, mount::MntFlags};
    match nix::mount::umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) => Ok(true),
        Err(Errno::EINVAL | Errno::ENOENT) => Ok(false),
        Err(e) => Err(e.into()),
    }
}
