//! A mount that is handed to somebody who may have less rights than we, and may mount where he is.
//!
//! What is forbidden in a mount (`nodev`, `nosuid`, read-only …) can be allowed again by whoever may mount in the namespace
//! that it is attached in, and any user may there in a user namespace of his own. The kernel locks these attributes of a mount
//! when its namespace is copied for another user namespace. So it is attached in a namespace of a child's, that is copied, and
//! what is handed over is a clone of the copy.

use std::{
    io::{self, IoSliceMut},
    os::{
        fd::{AsFd, AsRawFd, FromRawFd as _, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use crate::process::{Exit, clone3, waitid};

/// A place that is there in every mount namespace in which a daemon works. Only the child's are changed.
const PLACE: &std::ffi::CStr = c"/proc";

/// A clone of a detached mount whose attributes stay as they are, whoever attaches it. The mount itself is gone.
pub fn locked(mount: OwnedFd) -> io::Result<OwnedFd> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let message = Message::new(mount.as_raw_fd());
    // SAFETY: the child makes system calls alone and never returns.
    let Some(child) = (unsafe { clone3(libc::CLONE_NEWNS, None) })? else {
        // SAFETY: see above; all that it needs was made before.
        unsafe { lock(mount.as_raw_fd(), theirs.as_raw_fd(), &message) }
    };
    drop((mount, theirs));
    match waitid(child.pidfd.as_fd(), true)? {
        Some(Exit::Code(0)) => received(&ours),
        Some(Exit::Code(errno)) => Err(io::Error::from_raw_os_error(errno)),
        _ => Err(io::Error::other("who should make it was killed")),
    }
}

/// One byte and a descriptor, as sendmsg(2) takes them.
#[repr(C, align(8))]
struct Message {
    control: [u8; 64],
    length: usize,
}

impl Message {
    fn new(fd: RawFd) -> Message {
        let mut message = Message { control: [0; 64], length: 0 };
        // SAFETY: the buffer is aligned and larger than a header with one descriptor.
        unsafe {
            message.length = libc::CMSG_SPACE(size_of::<RawFd>() as u32) as usize;
            let mut header: libc::msghdr = std::mem::zeroed();
            header.msg_control = message.control.as_mut_ptr().cast();
            header.msg_controllen = message.length as _;
            let first = libc::CMSG_FIRSTHDR(&raw const header);
            (*first).cmsg_level = libc::SOL_SOCKET;
            (*first).cmsg_type = libc::SCM_RIGHTS;
            (*first).cmsg_len = libc::CMSG_LEN(size_of::<RawFd>() as u32) as _;
            libc::CMSG_DATA(first).cast::<RawFd>().write_unaligned(fd);
        }
        message
    }
}

/// In the child: attaches, copies, clones, sends the clone under the number that the mount had, and ends with an errno.
///
/// # Safety
/// Only in a child of [`clone3`].
unsafe fn lock(mount: RawFd, socket: RawFd, message: &Message) -> ! {
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
        end(clone >= 0 && libc::dup3(clone, mount, libc::O_CLOEXEC) >= 0);
        let mut byte = [0u8; 1];
        let mut part = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
        let mut header: libc::msghdr = std::mem::zeroed();
        header.msg_iov = &raw mut part;
        header.msg_iovlen = 1;
        header.msg_control = message.control.as_ptr().cast_mut().cast();
        header.msg_controllen = message.length as _;
        end(libc::sendmsg(socket, &raw const header, libc::MSG_NOSIGNAL) == 1);
        libc::_exit(0)
    }
}

fn received(socket: &UnixStream) -> io::Result<OwnedFd> {
    let (mut byte, mut control) = ([0; 1], nix::cmsg_space!([RawFd; 1]));
    let mut parts = [IoSliceMut::new(&mut byte)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = part
            && let [fd] = fds[..]
        {
            // SAFETY: the kernel made it for us just now.
            return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
    Err(io::Error::other("it sent nothing"))
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
