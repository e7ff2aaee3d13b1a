//! Descriptors: opening below a held directory, reopening, and making sure what a descriptor is.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    time::Instant,
};

use crate::{c_string, check};

/// How far a lookup below a directory may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Whatever leads out of the directory is an error (`EXDEV`): `..`, absolute paths and symlinks.
    Beneath,
    /// The directory acts as `/`, also for symlinks: what an image's own programs would see.
    InRoot,
}

/// Opens `path` below `dir` (openat2(2)). Always CLOEXEC, never through a magic link such as `/proc/self/fd/3`.
pub fn open(dir: impl AsFd, path: &Path, flags: i32, mode: u32, scope: Scope) -> io::Result<OwnedFd> {
    let resolve = match scope {
        Scope::Beneath => libc::RESOLVE_BENEATH,
        Scope::InRoot => libc::RESOLVE_IN_ROOT,
    };
    open_how(dir.as_fd(), path, flags, mode, resolve | libc::RESOLVE_NO_MAGICLINKS)
}

/// Like [`open`] with [`Scope::Beneath`], but a symlink anywhere on the way is an error (`ELOOP`).
pub fn open_no_symlinks(dir: impl AsFd, path: &Path, flags: i32, mode: u32) -> io::Result<OwnedFd> {
    open_how(dir.as_fd(), path, flags, mode, libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS)
}

fn open_how(dir: BorrowedFd<'_>, path: &Path, flags: i32, mode: u32, resolve: u64) -> io::Result<OwnedFd> {
    let path = c_string(path.as_os_str().as_bytes())?;
    // SAFETY: open_how is plain numbers, for which zero is a value.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (flags | libc::O_CLOEXEC) as u64;
    how.mode = u64::from(mode);
    how.resolve = resolve;
    loop {
        // SAFETY: the pointers are valid for the call and the size is that of the struct.
        let fd = unsafe {
            libc::syscall(libc::SYS_openat2, dir.as_raw_fd(), path.as_ptr(), &how, size_of::<libc::open_how>())
        };
        match check(fd) {
            // SAFETY: the kernel just gave us this descriptor.
            Ok(fd) => return Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) }),
            // A rename raced with a `..`: the kernel asks to try again.
            Err(e) if e.raw_os_error() == Some(libc::EAGAIN) || e.raw_os_error() == Some(libc::EINTR) => {}
            Err(e) => return Err(e),
        }
    }
}

/// Opens a path of the host as `O_PATH`, following symlinks.
pub fn open_path(path: &Path) -> io::Result<OwnedFd> {
    use std::os::unix::fs::OpenOptionsExt;
    Ok(std::fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path)?.into())
}

/// Opens a directory of the host, following symlinks.
pub fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    use std::os::unix::fs::OpenOptionsExt;
    Ok(std::fs::OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(path)?.into())
}

/// A new open file description of what `fd` is (an `O_PATH` descriptor, a pipe, a terminal): flags set on it don't
/// reach the one that it came from.
pub fn reopen(fd: impl AsFd, flags: i32) -> io::Result<OwnedFd> {
    use std::os::unix::fs::OpenOptionsExt;
    let access = flags & libc::O_ACCMODE;
    Ok(std::fs::OpenOptions::new()
        .read(access == libc::O_RDONLY || access == libc::O_RDWR)
        .write(access == libc::O_WRONLY || access == libc::O_RDWR)
        .custom_flags(flags & !libc::O_ACCMODE)
        .open(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))?
        .into())
}

/// fstat(2).
pub fn stat(fd: impl AsFd) -> io::Result<libc::stat> {
    // SAFETY: stat is plain numbers, for which zero is a value.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is valid for the call.
    check(unsafe { libc::fstat(fd.as_fd().as_raw_fd(), &mut stat) }.into())?;
    Ok(stat)
}

/// Has a directory be its owner's alone. Where it is so already a disk that is read-only will do.
pub fn make_private(dir: impl AsFd) -> io::Result<()> {
    if stat(&dir)?.st_mode & 0o7777 == 0o700 {
        return Ok(());
    }
    Ok(nix::sys::stat::fchmod(dir.as_fd(), nix::sys::stat::Mode::S_IRWXU)?)
}

/// The `S_IF…` part of the mode.
pub fn file_type(stat: &libc::stat) -> u32 {
    stat.st_mode & libc::S_IFMT
}

/// Whether `fd` is the character device `major:minor`; a name proves nothing, an image may hold anything under it.
pub fn is_char_device(fd: impl AsFd, major: u32, minor: u32) -> io::Result<bool> {
    let stat = stat(fd)?;
    Ok(file_type(&stat) == libc::S_IFCHR && stat.st_rdev == libc::makedev(major, minor))
}

/// The magic number of the file system that `fd` lies on, such as [`libc::PROC_SUPER_MAGIC`].
pub fn filesystem(fd: impl AsFd) -> io::Result<i64> {
    // SAFETY: statfs is plain numbers, for which zero is a value.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is valid for the call.
    check(unsafe { libc::fstatfs(fd.as_fd().as_raw_fd(), &mut stat) }.into())?;
    Ok(stat.f_type)
}

/// Makes everything written so far to the file system of `fd` durable.
pub fn syncfs(fd: impl AsFd) -> io::Result<()> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::syncfs(fd.as_fd().as_raw_fd()) }.into()).map(drop)
}

/// One open file that hears of every error that the disk has with its file system, from its opening on. Such an error is told to
/// each open file once: who answers for what he writes opens one for himself, before he writes.
#[derive(Debug)]
pub struct Witness {
    file: OwnedFd,
    since: Instant,
}

impl Witness {
    /// Listens from now on to the file system that a directory lies on.
    pub fn open(dir: impl AsFd) -> io::Result<Witness> {
        let file = open(dir, Path::new("."), libc::O_RDONLY | libc::O_DIRECTORY, 0, Scope::Beneath)?;
        Ok(Witness { file, since: Instant::now() })
    }

    /// A file that was open already when it was `since`, and through which nobody else syncs a file system.
    pub fn of(file: impl AsFd, since: Instant) -> io::Result<Witness> {
        Ok(Witness { file: file.as_fd().try_clone_to_owned()?, since })
    }

    /// Since when it listens: what was written by then was written by somebody else.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Makes everything written so far to its file system durable, and tells what went wrong since it listens.
    pub fn sync(&self) -> io::Result<()> {
        syncfs(&self.file)
    }
}

/// Opens a file of procfs for writing, having made sure that it is on procfs.
pub fn open_proc_write(path: &Path) -> io::Result<File> {
    let file = File::options().write(true).open(path)?;
    if filesystem(&file)? != libc::PROC_SUPER_MAGIC {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "not on a proc file system"));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_witness_is_an_open_file_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let root = open_dir(dir.path()).unwrap();
        let (first, before) = (Witness::open(&root).unwrap(), Instant::now());
        let second = Witness::open(&root).unwrap();
        assert!(first.since() <= before && before <= second.since());
        first.sync().and_then(|()| second.sync()).unwrap();
        // What can't be synced hears of nothing, and says so.
        let path = open(&root, Path::new("."), libc::O_PATH, 0, Scope::Beneath).unwrap();
        let deaf = Witness::of(path, before).unwrap();
        assert_eq!((deaf.since(), deaf.sync().unwrap_err().raw_os_error()), (before, Some(libc::EBADF)));
    }

    #[test]
    fn lookups_stay_below_their_directory() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::NamedTempFile::new().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::fs::write(dir.path().join("etc/passwd"), "inside").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("absolute")).unwrap();
        std::os::unix::fs::symlink("../../../../etc/passwd", dir.path().join("upward")).unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("canary")).unwrap();
        let root = open_dir(dir.path()).unwrap();
        for name in ["absolute", "upward"] {
            let fd = open(&root, Path::new(name), libc::O_RDONLY, 0, Scope::InRoot).unwrap();
            assert_eq!(std::io::read_to_string(File::from(fd)).unwrap(), "inside");
            let refused = open(&root, Path::new(name), libc::O_RDONLY, 0, Scope::Beneath).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EXDEV));
            assert_eq!(
                open_no_symlinks(&root, Path::new(name), libc::O_RDONLY, 0).unwrap_err().raw_os_error(),
                Some(libc::ELOOP)
            );
        }
        let missing = open(&root, Path::new("canary"), libc::O_RDONLY, 0, Scope::InRoot).unwrap_err();
        assert_eq!(missing.raw_os_error(), Some(libc::ENOENT));
    }

    #[test]
    fn devices_and_file_systems_are_told_by_number() {
        assert!(is_char_device(open_path(Path::new("/dev/null")).unwrap(), 1, 3).unwrap());
        assert!(!is_char_device(open_path(Path::new("/dev/zero")).unwrap(), 1, 3).unwrap());
        assert!(!is_char_device(open_path(Path::new("/etc/passwd")).unwrap(), 0, 0).unwrap());
        assert!(open_proc_write(Path::new("/dev/null")).is_err());
    }

    #[test]
    fn a_reopened_pipe_has_flags_of_its_own() {
        let (_reader, writer) = std::io::pipe().unwrap();
        let again = reopen(&writer, libc::O_WRONLY | libc::O_NONBLOCK).unwrap();
        // SAFETY: no memory is involved.
        let flags = |fd: i32| unsafe { libc::fcntl(fd, libc::F_GETFL) };
        assert_ne!(flags(again.as_raw_fd()) & libc::O_NONBLOCK, 0);
        assert_eq!(flags(writer.as_raw_fd()) & libc::O_NONBLOCK, 0);
    }
}
