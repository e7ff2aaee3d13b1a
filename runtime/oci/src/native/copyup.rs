//! `tmpcopyup`: a tmpfs that begins with what the image has in its place.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::Path,
};

use cofferdam_sys::fd::{self, Scope};
use nix::{
    dir::Dir,
    fcntl::{AtFlags, OFlag, readlinkat},
    sys::stat::{self, Mode},
    unistd::{self, Gid, Uid},
};

/// Deeper than any image, and far from the end of the stack.
const MAX_DEPTH: usize = 200;

/// Copies the directory at `path` in `root` into `to`, if it is there: directories, files and links with their owners
/// and permissions, as other runtimes do. What isn't there belongs to `owner`.
pub(super) fn copy(root: BorrowedFd<'_>, path: &Path, to: BorrowedFd<'_>, owner: (u32, u32)) -> io::Result<()> {
    // A mount that is not attached yet is a descriptor to find things by, and no more.
    let to = fd::reopen(to, libc::O_DIRECTORY)?;
    unistd::fchown(&to, Some(Uid::from_raw(owner.0)), Some(Gid::from_raw(owner.1)))?;
    match fd::open(root, path, libc::O_DIRECTORY, 0, Scope::InRoot) {
        Ok(from) => directory(File::from(from), to.as_fd(), MAX_DEPTH),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(()),
        Err(e) => Err(e),
    }
}

fn directory(from: File, to: BorrowedFd<'_>, depth: usize) -> io::Result<()> {
    let depth = depth.checked_sub(1).ok_or_else(|| io::Error::other("directories are nested too deeply"))?;
    let meta = from.metadata()?;
    let mut entries = Dir::from_fd(from.try_clone()?.into())?;
    for entry in entries.iter() {
        let entry = entry?;
        let name = Path::new(std::ffi::OsStr::from_bytes(entry.file_name().to_bytes()));
        if name != Path::new(".") && name != Path::new("..") {
            self::entry(from.as_fd(), name, to, depth)?;
        }
    }
    // Last: what is in it has been made.
    unistd::fchown(to, Some(Uid::from_raw(meta.uid())), Some(Gid::from_raw(meta.gid())))?;
    stat::fchmod(to, Mode::from_bits_truncate(meta.mode()))?;
    Ok(())
}

fn entry(from: BorrowedFd<'_>, name: &Path, to: BorrowedFd<'_>, depth: usize) -> io::Result<()> {
    let meta = stat::fstatat(from, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let owner = (Some(Uid::from_raw(meta.st_uid)), Some(Gid::from_raw(meta.st_gid)));
    let flags = OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    match meta.st_mode & libc::S_IFMT {
        libc::S_IFDIR => {
            stat::mkdirat(to, name, Mode::S_IRWXU)?;
            let open = |dir: BorrowedFd<'_>| fd::open_no_symlinks(dir, name, libc::O_DIRECTORY, 0);
            directory(File::from(open(from)?), open(to)?.as_fd(), depth)?;
        }
        libc::S_IFREG => {
            let mut source = File::from(fd::open_no_symlinks(from, name, flags.bits(), 0)?);
            let made = fd::open_no_symlinks(to, name, libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL, 0o600)?;
            let mut copy = File::from(made);
            io::copy(&mut source, &mut copy)?;
            unistd::fchown(&copy, owner.0, owner.1)?;
            stat::fchmod(&copy, Mode::from_bits_truncate(meta.st_mode))?;
        }
        libc::S_IFLNK => {
            let target = readlinkat(from, name)?;
            unistd::symlinkat(target.as_os_str(), to, name)?;
            unistd::fchownat(to, name, owner.0, owner.1, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        }
        // Sockets, pipes and devices mean nothing to who finds a copy of them.
        _ => {}
    }
    Ok(())
}
