//! A mount that is handed to somebody who may have less rights than we, and may mount where he is.
//!
//! What is forbidden in a mount (`nodev`, `nosuid`, read-only …) can be allowed again by whoever may mount in the namespace
//! that it is attached in, and any user may there in a user namespace of his own. The kernel locks these attributes of a mount
//! when its namespace is copied for another user namespace. So it is attached in a namespace of a child's, that is copied, and
//! what is handed over is a clone of the copy.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
};

use crate::process::{Exit, clone3, waitid};

/// A place that is there in every mount namespace in which a daemon works. Only the child's are changed.
const PLACE: &std::ffi::CStr = c"/proc";

/// A clone of a detached mount whose attributes stay as they are, whoever attaches it. The mount itself is gone.
pub fn locked(mount: OwnedFd) -> io::Result<OwnedFd> {
    // The child has our descriptors, not copies: it puts the clone in the mount's place, and closes nothing (see `spawn`).
    let flags = libc::CLONE_NEWNS | libc::CLONE_FILES;
    // SAFETY: the child makes system calls alone and never returns.
    let Some(child) = (unsafe { clone3(flags, None) })? else {
        // SAFETY: see above.
        unsafe { lock(mount.as_raw_fd()) }
    };
    match waitid(child.pidfd.as_fd(), true)? {
        Some(Exit::Code(0)) => Ok(mount),
        Some(Exit::Code(errno)) => Err(io::Error::from_raw_os_error(errno)),
        _ => Err(io::Error::other("who should make it was killed")),
    }
}

/// In the child: attaches, copies, clones, gives the clone the number that the mount had, and ends with an errno.
///
/// # Safety
/// Only in a child of [`clone3`].
unsafe fn lock(mount: RawFd) -> ! {
    // SAFETY: system calls on what outlives them; nothing is allocated.
    unsafe {
        let end = |good: bool| {
            if !good {
                libc::_exit(*libc::__errno_location());
            }
        };
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
        let none = std::ptr::null::<libc::c_char>();
        end(libc::mount(none, c"/".as_ptr(), none, libc::MS_REC | libc::MS_PRIVATE, none.cast()) == 0);
        let flags = libc::MOVE_MOUNT_F_EMPTY_PATH;
        let here = libc::AT_FDCWD;
        end(libc::syscall(libc::SYS_move_mount, mount, c"".as_ptr(), here, PLACE.as_ptr(), flags) == 0);
        end(libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS) == 0);
        let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
        let clone = libc::syscall(libc::SYS_open_tree, here, PLACE.as_ptr(), flags) as RawFd;
        end(clone >= 0);
        let put = libc::dup3(clone, mount, libc::O_CLOEXEC);
        let why = *libc::__errno_location();
        // The table is the caller's.
        libc::close(clone);
        libc::_exit(if put < 0 { why } else { 0 })
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        path::Path,
    };

    use crate::mount::{clone_tree, set_attributes};

    use super::*;

    #[test]
    fn what_is_forbidden_stays_so() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "here").unwrap();
        let mount = clone_tree(File::open(dir.path()).unwrap(), false).unwrap();
        let safe = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_RDONLY;
        set_attributes(&mount, safe, 0, 0, false).unwrap();
        let locked = locked(mount).unwrap();
        let inside = format!("/proc/self/fd/{}/file", locked.as_raw_fd());
        assert_eq!(fs::read_to_string(&inside).unwrap(), "here");
        assert_eq!(fs::write(&inside, "x").unwrap_err().raw_os_error(), Some(libc::EROFS));
        for attribute in [libc::MOUNT_ATTR_NOSUID, libc::MOUNT_ATTR_NODEV, libc::MOUNT_ATTR_RDONLY] {
            let error = set_attributes(&locked, 0, attribute, 0, false).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{attribute}");
        }
        // Nothing of it is seen here.
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(dir.path().file_name().unwrap().to_str().unwrap()));
        assert!(Path::new("/proc/self").exists());
    }

    #[test]
    fn what_is_no_mount_is_an_error() {
        let file: OwnedFd = tempfile::tempfile().unwrap().into();
        assert!(locked(file).is_err());
    }
}
