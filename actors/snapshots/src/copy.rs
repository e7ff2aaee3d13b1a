//! Copying a tree as it is: types, owners, modes, times, extended attributes, hard links, holes; by reflink where the
//! filesystem can share blocks.

use std::{
    collections::HashMap,
    ffi::{CStr, CString},
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use cofferdam_types::{Error, Result};
use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat, readlinkat},
    sys::stat::{FileStat, Mode, SFlag, UtimensatFlags, fchmod, fstat, futimens, mkdirat, mknodat, utimensat},
    sys::time::TimeSpec,
    unistd::{LinkatFlags, Whence, fchown, fchownat, ftruncate, linkat, lseek64, symlinkat},
};

use crate::walk::{Cursor, Step, Visitor, file_type, walk};

nix::ioctl_write_int_bad!(ficlone, libc::FICLONE);

/// Copies everything below `from`, and the attributes of `from` itself, to the empty directory `to`.
pub fn copy_tree(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    let failed = |e: Errno| Error::io("snapshot", "", "copy the parent's tree", &e.into());
    let to = Cursor::new(to).map_err(failed)?;
    let root = to.here().try_clone_to_owned().map_err(|e| Error::io("snapshot", "", "copy the parent's tree", &e))?;
    let mut copy = Copy { root, to, path: Vec::new(), linked: HashMap::new() };
    walk(from, &mut copy).map_err(|e| {
        let path = copy.path.iter().map(|part| part.to_string_lossy()).collect::<Vec<_>>().join("/");
        failed(e).context(format_args!("/{path}"))
    })
}

/// Makes `to` look like `from` from outside: owner and mode. The root of a stacked tree is that of its topmost layer.
pub fn inherit(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    let (want, have) = (fstat(from)?, fstat(to)?);
    if (want.st_uid, want.st_gid) != (have.st_uid, have.st_gid) {
        fchown(to, Some(want.st_uid.into()), Some(want.st_gid.into()))?;
    }
    if want.st_mode != have.st_mode {
        fchmod(to, Mode::from_bits_truncate(want.st_mode))?;
    }
    Ok(())
}

struct Copy {
    root: OwnedFd,
    to: Cursor,
    /// Where the cursor is, for hard links, which need a second name.
    path: Vec<CString>,
    linked: HashMap<(u64, u64), CString>,
}

impl Copy {
    fn path_of(&self, name: &CStr) -> Result<CString, Errno> {
        let mut path = Vec::new();
        for part in &self.path {
            path.extend_from_slice(part.to_bytes());
            path.push(b'/');
        }
        path.extend_from_slice(name.to_bytes());
        CString::new(path).map_err(|_| Errno::EINVAL)
    }
}

impl Visitor for Copy {
    fn visit(&mut self, at: BorrowedFd<'_>, name: &CStr, _stat: &FileStat) -> Result<Step, Errno> {
        let Some((from, stat)) = hold(at, name)? else { return Ok(Step::Skip) };
        let to = self.to.here();
        let kind = file_type(&stat);
        if kind == SFlag::S_IFDIR {
            mkdirat(to, name, Mode::S_IRWXU)?;
            return Ok(Step::Enter);
        }
        if stat.st_nlink > 1 {
            if let Some(first) = self.linked.get(&(stat.st_dev, stat.st_ino)) {
                linkat(&self.root, first.as_c_str(), to, name, LinkatFlags::empty())?;
                return Ok(Step::Skip);
            }
            let path = self.path_of(name)?;
            self.linked.insert((stat.st_dev, stat.st_ino), path);
        }
        match kind {
            SFlag::S_IFREG => copy_file(&from, to, name, &stat)?,
            SFlag::S_IFLNK => symlinkat(readlinkat(&from, "")?.as_os_str(), to, name)?,
            _ => mknodat(to, name, kind, Mode::from_bits_truncate(stat.st_mode), stat.st_rdev)?,
        }
        attributes(from.as_fd(), to, name, &stat)?;
        Ok(Step::Skip)
    }

    fn entered(&mut self, name: &CStr) -> Result<(), Errno> {
        self.to.down(name)?;
        self.path.push(name.to_owned());
        Ok(())
    }

    fn leave(&mut self, at: BorrowedFd<'_>) -> Result<(), Errno> {
        // Only now: what was made inside changed its times.
        let stat = fstat(at)?;
        attributes(at, self.to.here(), c".", &stat)?;
        if self.path.pop().is_some() {
            self.to.up()?;
        }
        Ok(())
    }
}

/// A handle on `name`, and what that is. Whoever writes to the tree may have put something else there since the walk looked
/// at it, such as a FIFO or a device, which mustn't be opened. None: nothing is there any more.
pub fn hold(at: BorrowedFd<'_>, name: &CStr) -> Result<Option<(OwnedFd, FileStat)>, Errno> {
    let handle = match openat(at, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty()) {
        Err(Errno::ENOENT) => return Ok(None),
        other => other?,
    };
    let stat = fstat(&handle)?;
    Ok((stat.st_nlink > 0).then_some((handle, stat)))
}

/// Opens the regular file that `handle` is. It waits for nobody, such as one who has a lease on it.
pub fn open_file(handle: &OwnedFd) -> Result<File, Errno> {
    cofferdam_sys::fd::reopen(handle, libc::O_RDONLY | libc::O_NONBLOCK).map(File::from).map_err(errno)
}

fn copy_file(from: &OwnedFd, to: BorrowedFd<'_>, name: &CStr, stat: &FileStat) -> Result<(), Errno> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let (from, to) = (open_file(from)?, File::from(openat(to, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?));
    // SAFETY: FICLONE takes the source's descriptor number as its argument; both are open for the call's length.
    if unsafe { ficlone(to.as_raw_fd(), from.as_raw_fd()) }.is_ok() {
        return Ok(());
    }
    ftruncate(&to, stat.st_size)?;
    let mut offset = 0;
    while offset < stat.st_size {
        let start = match lseek64(&from, offset, Whence::SeekData) {
            Err(Errno::ENXIO) => break,
            // It grew.
            Ok(start) if start >= stat.st_size => break,
            other => other?,
        };
        let end = lseek64(&from, start, Whence::SeekHole)?.min(stat.st_size);
        lseek64(&from, start, Whence::SeekSet)?;
        lseek64(&to, start, Whence::SeekSet)?;
        let length = u64::try_from(end - start).map_err(|_| Errno::EIO)?;
        // Between two files this is copy_file_range(2), in the kernel.
        if io::copy(&mut (&from).take(length), &mut &to).map_err(errno)? != length {
            return Err(Errno::EIO);
        }
        offset = end;
    }
    Ok(())
}

/// The number of an error of the kernel's.
pub fn errno(error: io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// Owner first (it clears set-uid bits and capabilities), then extended attributes, mode, times.
fn attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr, stat: &FileStat) -> Result<(), Errno> {
    fchownat(to, name, Some(stat.st_uid.into()), Some(stat.st_gid.into()), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let target = openat(to, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?;
    xattrs::copy(from, target.as_fd())?;
    let times = (TimeSpec::new(stat.st_atime, stat.st_atime_nsec), TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec));
    match file_type(stat) {
        SFlag::S_IFLNK => utimensat(to, name, &times.0, &times.1, UtimensatFlags::NoFollowSymlink),
        SFlag::S_IFREG | SFlag::S_IFDIR => {
            let file = openat(to, name, OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?;
            fchmod(&file, Mode::from_bits_truncate(stat.st_mode))?;
            futimens(&file, &times.0, &times.1)
        }
        // Never opened: a FIFO would block and a device might act.
        _ => {
            let path = format!("/proc/self/fd/{}", target.as_raw_fd());
            nix::sys::stat::fchmodat(
                nix::fcntl::AT_FDCWD,
                path.as_str(),
                Mode::from_bits_truncate(stat.st_mode),
                nix::sys::stat::FchmodatFlags::FollowSymlink,
            )?;
            utimensat(to, name, &times.0, &times.1, UtimensatFlags::NoFollowSymlink)
        }
    }
}

pub mod xattrs {
    //! Extended attributes of anything that an `O_PATH` descriptor stands for, through its name in /proc (xattr(7)
    //! calls refuse such descriptors themselves).

    use std::{
        ffi::{CStr, CString, c_char, c_void},
        os::fd::{AsRawFd, BorrowedFd},
    };

    use nix::errno::Errno;

    const MOST: usize = 64 << 10;

    fn name_of(fd: BorrowedFd<'_>) -> Result<CString, Errno> {
        CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd())).map_err(|_| Errno::EINVAL)
    }

    pub fn names(of: BorrowedFd<'_>) -> Result<Vec<CString>, Errno> {
        let of = name_of(of)?;
        let mut list = vec![0_u8; MOST];
        // SAFETY: the path ends in NUL and the buffer has MOST bytes.
        let length = unsafe { libc::listxattr(of.as_ptr(), list.as_mut_ptr().cast::<c_char>(), MOST) };
        let length = match Errno::result(length) {
            Err(Errno::ENOTSUP) => return Ok(Vec::new()),
            other => usize::try_from(other?).unwrap_or(0),
        };
        let names = list[..length].split_inclusive(|b| *b == 0).map(CStr::from_bytes_with_nul);
        names.map(|name| Ok(name.map_err(|_| Errno::EINVAL)?.to_owned())).collect()
    }

    pub fn value(of: BorrowedFd<'_>, name: &CStr) -> Result<Vec<u8>, Errno> {
        let of = name_of(of)?;
        let mut value = vec![0_u8; MOST];
        // SAFETY: path and name end in NUL and the buffer has MOST bytes.
        let size = Errno::result(unsafe {
            libc::getxattr(of.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast::<c_void>(), MOST)
        })?;
        value.truncate(size.unsigned_abs());
        Ok(value)
    }

    pub fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
        let to = name_of(to)?;
        for name in names(from)? {
            let value = match value(from, &name) {
                // It was removed meanwhile.
                Err(Errno::ENODATA) => continue,
                other => other?,
            };
            // SAFETY: path and name end in NUL, and the value has as many bytes as it says.
            Errno::result(unsafe {
                libc::setxattr(to.as_ptr(), name.as_ptr(), value.as_ptr().cast::<c_void>(), value.len(), 0)
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink},
    };

    use super::*;

    /// The walk saw regular files where by now there are other things. A FIFO that is opened would block for ever.
    #[test]
    fn what_changed_under_the_walk_is_copied_as_what_it_is_now() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir(&from).unwrap();
        fs::create_dir(&to).unwrap();
        fs::write(dir.path().join("file"), "x").unwrap();
        let (f, t) = (fs::File::open(&from).unwrap(), fs::File::open(&to).unwrap());
        mknodat(f.as_fd(), c"fifo", SFlag::S_IFIFO, Mode::S_IRWXU, 0).unwrap();
        mknodat(f.as_fd(), c"null", SFlag::S_IFCHR, Mode::S_IRWXU, libc::makedev(1, 3)).unwrap();
        symlink("nowhere", from.join("link")).unwrap();
        // With this one open nobody blocks at it.
        let _kept = fs::File::options().read(true).write(true).open(from.join("fifo")).unwrap();
        let stale = fstat(fs::File::open(dir.path().join("file")).unwrap()).unwrap();
        let to_root = t.try_clone().unwrap().into();
        let cursor = Cursor::new(t.as_fd()).unwrap();
        let mut copy = Copy { root: to_root, to: cursor, path: Vec::new(), linked: HashMap::new() };
        for name in [c"fifo", c"null", c"link", c"gone"] {
            copy.visit(f.as_fd(), name, &stale).unwrap();
        }
        let kind = |name: &str| fs::symlink_metadata(to.join(name)).unwrap().file_type();
        assert!(kind("fifo").is_fifo() && kind("null").is_char_device() && kind("link").is_symlink());
        assert!(!to.join("gone").exists());
    }

    #[test]
    fn everything_about_a_tree_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("d")).unwrap();
        fs::create_dir(&to).unwrap();
        let sparse = fs::File::create(from.join("d/sparse")).unwrap();
        sparse.write_at(b"end", 64 << 20).unwrap();
        fs::write(from.join("suid"), "x").unwrap();
        fs::set_permissions(from.join("suid"), fs::Permissions::from_mode(0o4751)).unwrap();
        std::os::unix::fs::chown(from.join("d"), Some(1000), Some(1001)).unwrap();
        std::os::unix::fs::lchown(from.join("suid"), Some(7), Some(8)).unwrap();
        fs::set_permissions(from.join("suid"), fs::Permissions::from_mode(0o4751)).unwrap();
        fs::hard_link(from.join("suid"), from.join("d/again")).unwrap();
        symlink("nowhere", from.join("link")).unwrap();
        symlink("/d/../no/where", from.join("d/absolute")).unwrap();
        let f = fs::File::open(&from).unwrap();
        mknodat(f.as_fd(), c"fifo", SFlag::S_IFIFO, Mode::from_bits_truncate(0o622), 0).unwrap();
        mknodat(f.as_fd(), c"null", SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), libc::makedev(1, 3)).unwrap();
        for (path, name) in [("suid", c"user.a"), ("d", c"trusted.b"), ("link", c"trusted.c")] {
            let path = CString::new(from.join(path).to_str().unwrap()).unwrap();
            // SAFETY: both strings end in NUL and the value has 5 bytes.
            let rc = unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), b"value".as_ptr().cast(), 5, 0) };
            assert_eq!(rc, 0, "{name:?}");
        }
        fs::File::open(from.join("d"))
            .unwrap()
            .set_modified(std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000, 5))
            .unwrap();

        copy_tree(f.as_fd(), fs::File::open(&to).unwrap().as_fd()).unwrap();

        for path in [".", "d", "d/sparse", "suid", "link", "fifo", "null"] {
            let (a, b) = (fs::symlink_metadata(from.join(path)).unwrap(), fs::symlink_metadata(to.join(path)).unwrap());
            assert_eq!(
                (a.mode(), a.uid(), a.gid(), a.rdev(), a.mtime(), a.mtime_nsec(), a.nlink()),
                (b.mode(), b.uid(), b.gid(), b.rdev(), b.mtime(), b.mtime_nsec(), b.nlink()),
                "{path}"
            );
        }
        let sparse = fs::metadata(to.join("d/sparse")).unwrap();
        assert!(sparse.len() == (64 << 20) + 3 && sparse.blocks() < 1000, "holes are kept");
        assert_eq!(fs::metadata(to.join("suid")).unwrap().ino(), fs::metadata(to.join("d/again")).unwrap().ino());
        assert_eq!(fs::read_link(to.join("link")).unwrap().to_str(), Some("nowhere"));
        assert_eq!(fs::read_link(to.join("d/absolute")).unwrap().to_str(), Some("/d/../no/where"));
        assert!(fs::symlink_metadata(to.join("fifo")).unwrap().file_type().is_fifo());
        for (path, name) in [("suid", c"user.a"), ("d", c"trusted.b"), ("link", c"trusted.c")] {
            let path = CString::new(to.join(path).to_str().unwrap()).unwrap();
            // SAFETY: both strings end in NUL; a size of 0 asks for the length alone.
            let size = unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), std::ptr::null_mut(), 0) };
            assert_eq!(size, 5, "{name:?}");
        }
    }
}
