//! Entries of a tree as entries of a tar: nothing of them is lost, and the same tree makes the same bytes.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::{OsStrExt as _, OsStringExt},
    },
    path::{Path, PathBuf},
};

use cofferdam_sys::{userns::IdMaps, xattr};
use cofferdam_types::{Error, Result};
use nix::{
    dir::Dir,
    fcntl::{OFlag, readlinkat},
    sys::stat::{FileStat, Mode, SFlag, fstat},
};

/// Directories within directories.
pub(crate) const MAX_DEPTH: usize = 256;

/// Says whether to go on.
pub type Word<'a> = &'a (dyn Fn() -> Result<()> + Sync);

/// Packs the tree below `root` as a tar. Nothing outside is read: every name is opened beneath its directory's own
/// descriptor, without following it, and of a file system mounted inside only
/// the directory where it is.
pub fn pack(root: BorrowedFd<'_>, out: impl Write, word: Word<'_>) -> Result<()> {
    pack_as(root, Path::new(""), None, out, word)
}

/// The same of whatever `handle` is, under that name; the empty name is the top of the archive. What is seen from outside
/// of a user namespace has the `ids` inside.
pub fn pack_as(
    handle: BorrowedFd<'_>,
    name: &Path,
    ids: Option<&IdMaps>,
    out: impl Write,
    word: Word<'_>,
) -> Result<()> {
    let mut packer = Packer::new(out, word);
    packer.ids = ids;
    let fault = |e: nix::Error| Error::io("rootfs", format!("/{}", name.display()), "can't be packed", &e.into());
    let stat = fstat(handle).map_err(fault)?;
    packer.device = stat.st_dev;
    if SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFDIR {
        let dir = open(handle, Path::new("."), OFlag::O_RDONLY | OFlag::O_DIRECTORY).map_err(fault)?;
        packer.directory(dir, &stat, name.to_owned(), 0)?;
    } else {
        let handle = handle.try_clone_to_owned().map_err(|e| packer.fault(name, &e))?;
        packer.leaf(&handle, &stat, name.to_owned())?;
    }
    packer.finish().map(drop)
}

pub(crate) struct Packer<'a, W: Write> {
    tar: tar::Builder<W>,
    /// The first name of each file that has several.
    links: HashMap<u64, PathBuf>,
    device: u64,
    ids: Option<&'a IdMaps>,
    word: Word<'a>,
    filled: bool,
}

impl<W: Write> Packer<'_, W> {
    pub fn new(out: W, word: Word<'_>) -> Packer<'_, W> {
        Packer { tar: tar::Builder::new(out), links: HashMap::new(), device: 0, ids: None, word, filled: false }
    }

    /// Ends the archive.
    pub fn finish(self) -> Result<W> {
        self.tar.into_inner().map_err(|e| Error::io("tar", "", "can't be finished", &e))
    }

    /// Whether to go on.
    pub fn check(&self) -> Result<()> {
        (self.word)()
    }

    /// Whether there is anything in it.
    pub fn filled(&self) -> bool {
        self.filled
    }

    /// An empty file of this name.
    pub fn mark(&mut self, path: &Path) -> Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(0o600);
        header.set_size(0);
        self.put(header, path, None, io::empty()).map_err(|e| self.fault(path, &e))
    }

    /// A header with these names, and what belongs to it. Byte for byte: what a link leads to is a text, and a name need be
    /// none.
    fn put(&mut self, mut header: tar::Header, path: &Path, link: Option<&Path>, body: impl Read) -> io::Result<()> {
        for (kind, name, field) in [(b'L', Some(path), 0..100), (b'K', link, 157..257)] {
            let Some(name) = name.map(|name| name.as_os_str().as_bytes()) else { continue };
            let short = &name[..name.len().min(field.len())];
            if short.len() < name.len() {
                let mut long = tar::Header::new_gnu();
                long.set_path("././@LongLink")?;
                long.set_entry_type(tar::EntryType::new(kind));
                long.set_size(name.len() as u64 + 1);
                long.set_cksum();
                self.tar.append(&long, name.chain(&[0][..]))?;
            }
            header.as_mut_bytes()[field][..short.len()].copy_from_slice(short);
        }
        header.set_cksum();
        self.filled = true;
        self.tar.append(&header, body)
    }

    /// A directory by itself.
    pub fn folder(&mut self, dir: &OwnedFd, stat: &FileStat, path: &Path) -> Result<()> {
        self.attributes(stat, Some(dir.as_fd()), path)?;
        self.entry(stat, path, tar::EntryType::Directory, None)
    }

    fn fault(&self, path: &Path, error: &io::Error) -> Error {
        match error.get_ref().and_then(|e| e.downcast_ref::<Error>()) {
            Some(ours) => ours.clone(),
            None => Error::io("rootfs", path.display(), "can't be packed", error),
        }
    }

    fn directory(&mut self, dir: OwnedFd, stat: &FileStat, path: PathBuf, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(Error::invalid("rootfs", path.display(), format!("is deeper than {MAX_DEPTH} directories")));
        }
        let fault = |e: nix::Error| Error::io("rootfs", path.display(), "can't be packed", &e.into());
        self.folder(&dir, stat, &path)?;
        for name in names(&dir).map_err(fault)? {
            self.check()?;
            self.child(&dir, PathBuf::from(std::ffi::OsString::from_vec(name)), &path, depth)?;
        }
        Ok(())
    }

    fn child(&mut self, dir: &OwnedFd, name: PathBuf, parent: &Path, depth: usize) -> Result<()> {
        let path = parent.join(&name);
        let fault = |e: nix::Error| Error::io("rootfs", path.display(), "can't be packed", &e.into());
        let handle = open(dir.as_fd(), &name, OFlag::O_PATH).map_err(fault)?;
        let stat = fstat(&handle).map_err(fault)?;
        let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
        if stat.st_dev != self.device {
            tracing::info!(path = %path.display(), "left out: what is in another file system that is mounted there");
            // Its place stays: whoever runs what is packed may need it.
            return if kind == SFlag::S_IFDIR {
                self.entry(&stat, &path, tar::EntryType::Directory, None)
            } else {
                Ok(())
            };
        }
        if kind == SFlag::S_IFDIR {
            let inner = open(handle.as_fd(), Path::new("."), OFlag::O_RDONLY | OFlag::O_DIRECTORY).map_err(fault)?;
            return self.directory(inner, &stat, path, depth + 1);
        }
        self.leaf(&handle, &stat, path)
    }

    /// What is no directory.
    pub fn leaf(&mut self, handle: &OwnedFd, stat: &FileStat, path: PathBuf) -> Result<()> {
        let fault = |e: nix::Error| Error::io("rootfs", path.display(), "can't be packed", &e.into());
        let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&stat.st_ino).cloned() {
                return self.entry(stat, &path, tar::EntryType::Link, Some(&first));
            }
            self.links.insert(stat.st_ino, path.clone());
        }
        if !matches!(kind, SFlag::S_IFREG | SFlag::S_IFSOCK) {
            self.attributes(stat, None, &path)?;
        }
        match kind {
            SFlag::S_IFREG => {
                let flags = libc::O_RDONLY | libc::O_NONBLOCK;
                let mut file = File::from(cofferdam_sys::fd::reopen(handle, flags).map_err(|e| self.fault(&path, &e))?);
                // It has grown, or is one of the kernel's that has content and no size.
                let more = stat.st_size == 0 && !matches!(file.read(&mut [0]), Ok(0));
                if more && fstat(&file).map_err(fault)?.st_size == 0 {
                    let why = "is one of the kernel's files, of which nobody knows the size: read it in the container \
                               (coffer exec ... cat)";
                    return Err(Error::failed_precondition("rootfs", path.display(), why));
                }
                self.attributes(stat, Some(file.as_fd()), &path)?;
                let mut header = self.header(stat, tar::EntryType::Regular);
                header.set_size(stat.st_size as u64);
                // What grows meanwhile is cut, what shrinks is padded by nothing: it is an error.
                let body = file.take(stat.st_size as u64);
                let mut body = Exactly { inner: body, left: stat.st_size as u64, word: self.word };
                self.put(header, &path, None, &mut body).map_err(|e| self.fault(&path, &e))
            }
            SFlag::S_IFLNK => {
                let target = readlinkat(handle, "").map_err(fault)?;
                self.entry(stat, &path, tar::EntryType::Symlink, Some(Path::new(&target)))
            }
            SFlag::S_IFCHR => self.entry(stat, &path, tar::EntryType::Char, None),
            SFlag::S_IFBLK => self.entry(stat, &path, tar::EntryType::Block, None),
            SFlag::S_IFIFO => self.entry(stat, &path, tar::EntryType::Fifo, None),
            // A socket is only of use to whoever made it, and tar has no word for it.
            _ => Ok(()),
        }
    }

    fn header(&self, stat: &FileStat, kind: tar::EntryType) -> tar::Header {
        let (uid, gid) = self.ids.map_or((stat.st_uid, stat.st_gid), |ids| ids.inner(stat.st_uid, stat.st_gid));
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(stat.st_mode & 0o7777);
        header.set_uid(u64::from(uid));
        header.set_gid(u64::from(gid));
        header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
        header.set_size(0);
        header
    }

    fn entry(&mut self, stat: &FileStat, path: &Path, kind: tar::EntryType, link: Option<&Path>) -> Result<()> {
        let mut header = self.header(stat, kind);
        if matches!(kind, tar::EntryType::Char | tar::EntryType::Block) {
            let (major, minor) = (libc::major(stat.st_rdev), libc::minor(stat.st_rdev));
            header
                .set_device_major(major)
                .and_then(|()| header.set_device_minor(minor))
                .map_err(|e| self.fault(path, &e))?;
        }
        let name = if path.as_os_str().is_empty() { Path::new("./") } else { path };
        self.put(header, name, link, io::empty()).map_err(|e| self.fault(path, &e))
    }

    /// What a header has no room for, as the PAX records that GNU tar and every runtime use: the fraction of the time of
    /// change, and extended attributes.
    fn attributes(&mut self, stat: &FileStat, fd: Option<BorrowedFd<'_>>, path: &Path) -> Result<()> {
        let mut records = Vec::new();
        if stat.st_mtime >= 0 && stat.st_mtime_nsec != 0 {
            records.push(("mtime".to_owned(), format!("{}.{:09}", stat.st_mtime, stat.st_mtime_nsec).into_bytes()));
        }
        let found = fd.map(xattrs).transpose().map_err(|e| self.fault(path, &e))?.unwrap_or_default();
        for (key, mut value) in found {
            // Its record would be read as another attribute's.
            if key.contains('=') {
                let why = format!("has an extended attribute {key:?}: an archive can't hold a name with a = in it");
                return Err(Error::failed_precondition("rootfs", path.display(), why));
            }
            if let Some(ids) = self.ids.filter(|_| key == "security.capability") {
                value = ids.capability_inside(&value);
            }
            records.push((format!("SCHILY.xattr.{key}"), value));
        }
        if records.is_empty() {
            return Ok(());
        }
        let records = records.iter().map(|(key, value)| (key.as_str(), value.as_slice()));
        self.tar.append_pax_extensions(records).map_err(|e| self.fault(path, &e))
    }
}

/// What is in a directory, in order.
pub(crate) fn names(dir: &OwnedFd) -> nix::Result<Vec<Vec<u8>>> {
    // Opened anew: a copy would share the place up to which it was read.
    let listing = open(dir.as_fd(), Path::new("."), OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
    let mut names = Vec::new();
    for entry in Dir::from_fd(listing)?.iter() {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

pub(crate) fn open(dir: BorrowedFd<'_>, name: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    nix::fcntl::openat(dir, name, flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
}

/// The attributes of an open file or directory that are the image's own; what the host's file system and security
/// module note about it is not. (Other kinds of file can't have any of these.)
pub(crate) fn xattrs(fd: impl AsFd) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    for name in xattr::list(&fd)? {
        if let Ok(text) = name.to_str()
            && (text.starts_with("user.") || text == "security.capability")
            && let Some(value) = xattr::get(&fd, &name)?
        {
            found.push((text.to_owned(), value));
        }
    }
    found.sort();
    Ok(found)
}

/// Exactly as many bytes as were announced.
struct Exactly<'a, R> {
    inner: R,
    left: u64,
    word: Word<'a>,
}

impl<R: Read> Read for Exactly<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() || self.left == 0 {
            return Ok(0);
        }
        (self.word)().map_err(io::Error::other)?;
        match self.inner.read(buffer)? {
            0 => Err(io::Error::other("it shrank while it was read: try again when nothing writes to it")),
            n => {
                self.left -= n as u64;
                Ok(n)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use nix::mount::{MntFlags, MsFlags, mount, umount2};

    use super::*;

    #[test]
    fn of_a_mount_the_directory_alone_is_packed() {
        let dir = tempfile::tempdir().unwrap();
        let point = dir.path().join("tmp");
        std::fs::create_dir(&point).unwrap();
        mount(Some("tmpfs"), &point, Some("tmpfs"), MsFlags::empty(), Some("mode=1777")).unwrap();
        std::fs::write(point.join("file"), "not of this file system").unwrap();
        let fd = cofferdam_sys::fd::open_dir(dir.path()).unwrap();
        let mut bytes = Vec::new();
        let packed = pack(fd.as_fd(), &mut bytes, &|| Ok(()));
        umount2(&point, MntFlags::MNT_DETACH).unwrap();
        packed.unwrap();
        let mut archive = tar::Archive::new(&bytes[..]);
        let entries = archive.entries().unwrap().map(std::result::Result::unwrap);
        let seen: Vec<_> =
            entries.map(|e| (e.path().unwrap().into_owned(), e.header().mode().unwrap() & 0o7777)).collect();
        assert_eq!(seen[1..], [(PathBuf::from("tmp"), 0o1777)]);
    }

    #[test]
    fn a_file_that_does_not_say_how_long_it_is_is_refused() {
        let pack = |path: &str| {
            let file = cofferdam_sys::fd::open_path(Path::new(path)).unwrap();
            let mut bytes = Vec::new();
            pack_as(file.as_fd(), Path::new("file"), None, &mut bytes, &|| Ok(())).map(|()| bytes)
        };
        let refused = pack("/proc/self/status").unwrap_err();
        assert!(refused.code == cofferdam_types::Code::FailedPrecondition && refused.id == "file", "{refused}");
        let empty = tempfile::NamedTempFile::new().unwrap();
        let bytes = pack(empty.path().to_str().unwrap()).unwrap();
        assert_eq!(tar::Archive::new(&bytes[..]).entries().unwrap().count(), 1);
    }

    #[test]
    fn an_attribute_that_would_be_read_as_another_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join("file")).unwrap();
        xattr::set(&file, c"user.a=b", b"c").unwrap();
        let fd = cofferdam_sys::fd::open_dir(dir.path()).unwrap();
        let refused = pack(fd.as_fd(), Vec::new(), &|| Ok(())).unwrap_err();
        assert!(refused.code == cofferdam_types::Code::FailedPrecondition && refused.id == "file", "{refused}");
    }

    #[test]
    fn a_tree_is_packed_as_it_is_and_always_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("a/b")).unwrap();
        std::fs::write(at("a/b/f"), b"content").unwrap();
        std::fs::set_permissions(at("a/b/f"), std::fs::Permissions::from_mode(0o4755)).unwrap();
        std::fs::hard_link(at("a/b/f"), at("a/g")).unwrap();
        symlink("/etc/passwd", at("l")).unwrap();
        nix::unistd::mkfifo(&at("p"), Mode::S_IRWXU).unwrap();
        std::os::unix::net::UnixListener::bind(at("s")).unwrap();
        let fd = cofferdam_sys::fd::open_dir(dir.path()).unwrap();
        let mut bytes = Vec::new();
        pack(fd.as_fd(), &mut bytes, &|| Ok(())).unwrap();
        let mut again = Vec::new();
        pack(fd.as_fd(), &mut again, &|| Ok(())).unwrap();
        assert!(bytes == again);
        let mut archive = tar::Archive::new(&bytes[..]);
        let mut seen = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            let header = entry.header();
            let link = entry.link_name().unwrap().map(|l| l.display().to_string()).unwrap_or_default();
            seen.push((
                entry.path().unwrap().display().to_string(),
                header.entry_type(),
                header.mode().unwrap(),
                link,
                text,
            ));
        }
        use tar::EntryType as E;
        let row = |p: &str, e, m, l: &str, t: &str| (p.to_owned(), e, m, l.to_owned(), t.to_owned());
        let root = std::fs::metadata(dir.path()).unwrap().permissions().mode() & 0o7777;
        assert_eq!(
            seen,
            [
                row("./", E::Directory, root, "", ""),
                row("a", E::Directory, 0o755, "", ""),
                row("a/b", E::Directory, 0o755, "", ""),
                row("a/b/f", E::Regular, 0o4755, "", "content"),
                row("a/g", E::Link, 0o4755, "a/b/f", ""),
                row("l", E::Symlink, 0o777, "/etc/passwd", ""),
                row("p", E::Fifo, 0o700, "", ""),
            ]
        );
    }
}
