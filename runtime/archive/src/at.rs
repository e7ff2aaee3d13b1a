//! System calls that name a file by a held directory descriptor and one name in it. None follows a symbolic link.

use std::{
    ffi::{CStr, CString},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use cofferdam_types::Error;
use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2},
    sys::{
        stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmodat, fstatat, mkdirat, mknodat},
        time::TimeSpec,
    },
    unistd::{UnlinkatFlags, unlinkat},
};

/// Marks a directory that hides its lower namesakes.
pub(crate) const OPAQUE: &CStr = c"trusted.overlay.opaque";

/// How deep a tree may be that is walked with one descriptor per level.
const WALK: usize = 600;

/// The error for a failed call on `path`, with the code of what an archive can have done to cause it.
pub(crate) fn fail(path: &[u8], what: &str, errno: Errno) -> Error {
    let id = String::from_utf8_lossy(path);
    match errno {
        Errno::ENAMETOOLONG | Errno::ENOTDIR | Errno::EISDIR | Errno::ELOOP | Errno::EEXIST | Errno::EINVAL => {
            Error::invalid("layer", id, format!("{what}: {}", errno.desc()))
        }
        Errno::EMLINK | Errno::EMFILE | Errno::ENFILE | Errno::E2BIG | Errno::EFBIG => {
            Error::resource_exhausted("layer", id, format!("{what}: {}", errno.desc()))
        }
        _ => Error::io("layer", id, what, &errno.into()),
    }
}

/// A directory beneath `root` whose path has no symbolic link, as an `O_PATH` descriptor.
pub(crate) fn open_beneath(root: impl AsFd, path: &[u8]) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(root, if path.is_empty() { &b"."[..] } else { path }, how)
}

/// Whatever `name` is, as an `O_PATH` descriptor.
pub(crate) fn open_path(dir: impl AsFd, name: &[u8]) -> nix::Result<OwnedFd> {
    openat(dir, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
}

/// The directory `name`, readable.
pub(crate) fn open_dir(dir: impl AsFd, name: &[u8]) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(dir, name, flags, Mode::empty())
}

/// The new file `name`, writable. Whatever stands there is an `EEXIST`.
pub(crate) fn create(dir: impl AsFd, name: &[u8]) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(dir, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)
}

/// Makes the directory `name`, of mode 0700, and opens it.
pub(crate) fn make_dir(dir: impl AsFd, name: &[u8]) -> nix::Result<OwnedFd> {
    mkdirat(&dir, name, Mode::S_IRWXU)?;
    open_dir(dir, name)
}

pub(crate) fn stat(dir: impl AsFd, name: &[u8]) -> nix::Result<FileStat> {
    fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW)
}

pub(crate) fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & libc::S_IFMT)
}

pub(crate) fn is_dir(stat: &FileStat) -> bool {
    kind(stat) == SFlag::S_IFDIR
}

/// Whether overlayfs takes it for a whiteout.
pub(crate) fn is_whiteout(stat: &FileStat) -> bool {
    kind(stat) == SFlag::S_IFCHR && stat.st_rdev == 0
}

pub(crate) fn make_whiteout(dir: impl AsFd, name: &[u8]) -> nix::Result<()> {
    mknodat(dir, name, SFlag::S_IFCHR, Mode::empty(), 0)
}

pub(crate) fn times(stat: &FileStat) -> (TimeSpec, TimeSpec) {
    (TimeSpec::new(stat.st_atime, stat.st_atime_nsec), TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec))
}

/// chmod of something that can't be opened (a device, a FIFO), never through a symbolic link.
pub(crate) fn chmod(dir: impl AsFd, name: &[u8], mode: Mode) -> nix::Result<()> {
    match fchmodat(&dir, name, mode, FchmodatFlags::NoFollowSymlink) {
        // Kernels before 6.6 have no such call and C libraries emulate it or not: go through the descriptor.
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => {
            let fd = open_path(dir, name)?;
            if kind(&nix::sys::stat::fstat(&fd)?) == SFlag::S_IFLNK {
                return Err(Errno::ELOOP);
            }
            let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
            fchmodat(nix::fcntl::AT_FDCWD, path.as_str(), mode, FchmodatFlags::FollowSymlink)
        }
        result => result,
    }
}

/// The names in a directory. At most a directory's worth of memory, which the archive paid for entry by entry.
pub(crate) fn names(dir: impl AsFd) -> nix::Result<Vec<CString>> {
    let mut dir = Dir::from_fd(open_dir(dir, b".")?)?;
    let mut names = Vec::new();
    for entry in dir.iter() {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

/// Removes `name` and all that is in it.
pub(crate) fn remove(dir: BorrowedFd, name: &[u8]) -> nix::Result<()> {
    remove_at(dir, name, 0)
}

fn remove_at(dir: BorrowedFd, name: &[u8], depth: usize) -> nix::Result<()> {
    match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
        Err(Errno::EISDIR | Errno::EPERM) if depth < WALK => {}
        Err(Errno::EISDIR) => return Err(Errno::ENAMETOOLONG),
        Err(Errno::ENOENT) => return Ok(()),
        result => return result,
    }
    let child = open_dir(dir, name)?;
    for name in names(&child)? {
        remove_at(child.as_fd(), name.to_bytes(), depth + 1)?;
    }
    unlinkat(dir, name, UnlinkatFlags::RemoveDir)
}

pub(crate) fn set_xattr(fd: impl AsFd, name: &CStr, value: &[u8]) -> nix::Result<()> {
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: the name is a C string, the value a slice of that length, and the kernel only reads both.
    Errno::result(unsafe { libc::fsetxattr(fd, name.as_ptr(), value.as_ptr().cast(), value.len(), 0) }).map(drop)
}

pub(crate) fn remove_xattr(fd: impl AsFd, name: &CStr) -> nix::Result<()> {
    // SAFETY: the name is a C string that the kernel only reads.
    Errno::result(unsafe { libc::fremovexattr(fd.as_fd().as_raw_fd(), name.as_ptr()) }).map(drop)
}

/// The value, or `None` where there is none.
pub(crate) fn xattr(fd: impl AsFd, name: &CStr) -> nix::Result<Option<Vec<u8>>> {
    let fd = fd.as_fd().as_raw_fd();
    let mut value = vec![0u8; 64 << 10];
    // SAFETY: the kernel writes at most the length of the buffer that it is given.
    match Errno::result(unsafe { libc::fgetxattr(fd, name.as_ptr(), value.as_mut_ptr().cast(), value.len()) }) {
        Ok(size) => {
            value.truncate(size.unsigned_abs());
            Ok(Some(value))
        }
        Err(Errno::ENODATA | Errno::EOPNOTSUPP) => Ok(None),
        Err(errno) => Err(errno),
    }
}

pub(crate) fn is_opaque(fd: impl AsFd) -> nix::Result<bool> {
    let mut value = [0u8; 2];
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: the kernel writes at most the length of the buffer that it is given.
    match Errno::result(unsafe { libc::fgetxattr(fd, OPAQUE.as_ptr(), value.as_mut_ptr().cast(), value.len()) }) {
        Ok(size) => Ok(size == 1 && value[0] == b'y'),
        Err(Errno::ENODATA | Errno::EOPNOTSUPP | Errno::ERANGE) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// The names of all extended attributes.
pub(crate) fn xattrs(fd: impl AsFd) -> nix::Result<Vec<CString>> {
    let mut list = vec![0u8; 4 << 10];
    loop {
        let raw = fd.as_fd().as_raw_fd();
        // SAFETY: the kernel writes at most the length of the buffer that it is given.
        match Errno::result(unsafe { libc::flistxattr(raw, list.as_mut_ptr().cast(), list.len()) }) {
            Ok(size) => {
                list.truncate(size.unsigned_abs());
                break;
            }
            // The kernel's own bound on the list is 64 KiB.
            Err(Errno::ERANGE) if list.len() < 64 << 10 => list.resize(64 << 10, 0),
            Err(Errno::EOPNOTSUPP) => return Ok(Vec::new()),
            Err(errno) => return Err(errno),
        }
    }
    Ok(list.split(|b| *b == 0).filter(|n| !n.is_empty()).filter_map(|n| CString::new(n).ok()).collect())
}
