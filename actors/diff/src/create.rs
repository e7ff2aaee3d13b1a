//! The layer that makes one tree of another: what was added or changed, and a whiteout for what is gone (image-spec,
//! "Representing Changes").
//!
//! Files count as the same when type, mode, owner, time of change, size, extended attributes and, for links and devices, what
//! they lead to are the same. Of two that have a time without a fraction, as files of most layers have, the bytes
//! are compared too. A file whose names aren't those that it had is in the layer by all of them.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::{OsStrExt as _, OsStringExt as _},
    },
    path::{Path, PathBuf},
};

use cofferdam_sys::xattr;
use cofferdam_types::{Error, Result};
use nix::{
    fcntl::{OFlag, readlinkat},
    sys::stat::{FileStat, SFlag, fstat},
};

use crate::{
    links,
    pack::{MAX_DEPTH, Packer, Word, names, open, xattrs},
};

/// The two trees.
pub struct Trees<'a> {
    /// What was there; `None`: nothing.
    pub lower: Option<BorrowedFd<'a>>,
    /// What is there now: all of it, or in the form of overlayfs what is not in `lower`.
    pub upper: BorrowedFd<'a>,
    /// Whether it has that form.
    pub overlay: bool,
}

/// Writes the layer as a plain tar. Says whether there is anything in it.
pub fn create(trees: &Trees<'_>, out: impl Write, word: Word<'_>) -> Result<bool> {
    let links = links(trees, word)?;
    let mut packer = Packer::new(out, word);
    compare(trees, &links, None, &mut packer)?;
    let filled = packer.filled();
    packer.finish().map(|_| filled)
}

/// The files that differ by their names alone, see [`links::changed`].
pub fn links(trees: &Trees<'_>, word: Word<'_>) -> Result<HashSet<u64>> {
    links::changed(trees.lower.map(root).transpose()?.as_ref(), &root(trees.upper)?, trees.overlay, word)
}

/// Tells what differs, in order: a directory before what is in it, names by their bytes. With `after` from the first that
/// comes behind that on.
pub fn compare(trees: &Trees<'_>, links: &HashSet<u64>, after: Option<&Path>, out: &mut impl Report) -> Result<()> {
    let (lower, upper) = (trees.lower.map(root).transpose()?, root(trees.upper)?);
    let top = Path::new("");
    let (new, old) = (stat(&upper, top)?, lower.as_ref().map(|fd| stat(fd, top)).transpose()?);
    if after.is_none() && old.is_none_or(|old| !alike(&old, &new)) {
        out.folder(&upper, &new, top, old.is_none())?;
    }
    Walk { out, overlay: trees.overlay, links, after }.directory(lower.as_ref(), &upper, top, 0)
}

/// Who is told what differs.
pub(crate) trait Report {
    /// Whether to go on.
    fn check(&self) -> Result<()>;

    /// No more is wanted.
    fn full(&self) -> bool {
        false
    }

    /// A directory by itself; `new` if there was none.
    fn folder(&mut self, dir: &OwnedFd, stat: &FileStat, path: &Path, new: bool) -> Result<()>;

    /// What is no directory.
    fn leaf(&mut self, handle: &OwnedFd, stat: &FileStat, path: PathBuf, new: bool) -> Result<()>;

    /// What was there and isn't any more.
    fn gone(&mut self, path: &Path) -> Result<()>;

    /// A directory that is as it was, before what is in it.
    fn enter(&mut self, path: &Path) -> Result<()>;

    /// A directory, behind what is in it.
    fn leave(&mut self, _path: &Path) {}
}

impl<W: Write> Report for Packer<'_, W> {
    fn check(&self) -> Result<()> {
        Packer::check(self)
    }

    fn folder(&mut self, dir: &OwnedFd, stat: &FileStat, path: &Path, _new: bool) -> Result<()> {
        nameable(path)?;
        Packer::folder(self, dir, stat, path)
    }

    fn leaf(&mut self, handle: &OwnedFd, stat: &FileStat, path: PathBuf, _new: bool) -> Result<()> {
        nameable(&path)?;
        Packer::leaf(self, handle, stat, path)
    }

    fn enter(&mut self, path: &Path) -> Result<()> {
        nameable(path)
    }

    fn gone(&mut self, path: &Path) -> Result<()> {
        nameable(path)?;
        let name = path.file_name().unwrap_or_default();
        let marked = [b".wh.", name.as_bytes()].concat();
        self.mark(&path.with_file_name(std::ffi::OsString::from_vec(marked)))
    }
}

/// Whether a layer can have something of this name.
fn nameable(path: &Path) -> Result<()> {
    if path.file_name().is_some_and(|name| name.as_bytes().starts_with(b".wh.")) {
        let why = "has a name that layers keep for what is deleted: it can't be part of one";
        return Err(Error::failed_precondition("layer", path.display(), why));
    }
    Ok(())
}

struct Walk<'a, O> {
    out: &'a mut O,
    overlay: bool,
    /// What is told although it is the same.
    links: &'a HashSet<u64>,
    /// What was told last.
    after: Option<&'a Path>,
}

fn root(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    open(fd, Path::new("."), OFlag::O_RDONLY | OFlag::O_DIRECTORY).map_err(fault(Path::new("/")))
}

pub(crate) fn fault(path: &Path) -> impl Fn(nix::Error) -> Error + '_ {
    move |e| Error::io("layer", path.display(), "can't be compared", &e.into())
}

pub(crate) fn too_deep(path: &Path) -> Error {
    Error::invalid("layer", path.display(), format!("is deeper than {MAX_DEPTH} directories"))
}

fn stat(fd: &OwnedFd, path: &Path) -> Result<FileStat> {
    fstat(fd).map_err(fault(path))
}

pub(crate) fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

/// Mode and owner.
fn alike(a: &FileStat, b: &FileStat) -> bool {
    (a.st_mode, a.st_uid, a.st_gid) == (b.st_mode, b.st_uid, b.st_gid)
}

/// A name in a directory, not followed.
pub(crate) fn find(dir: Option<&OwnedFd>, name: &Path, path: &Path) -> Result<Option<(OwnedFd, FileStat)>> {
    let Some(dir) = dir else { return Ok(None) };
    match open(dir.as_fd(), name, OFlag::O_PATH) {
        Ok(fd) => stat(&fd, path).map(|stat| Some((fd, stat))),
        Err(nix::Error::ENOENT) => Ok(None),
        Err(e) => Err(fault(path)(e)),
    }
}

pub(crate) fn is_whiteout(stat: &FileStat) -> bool {
    kind(stat) == SFlag::S_IFCHR && stat.st_rdev == 0
}

fn is_opaque(dir: &OwnedFd, path: &Path) -> Result<bool> {
    let value = xattr::get(dir, c"trusted.overlay.opaque");
    let value = value.map_err(|e| Error::io("layer", path.display(), "can't be compared", &e))?;
    Ok(value.is_some_and(|value| value == b"y"))
}

pub(crate) fn enter(found: &OwnedFd, path: &Path) -> Result<OwnedFd> {
    open(found.as_fd(), Path::new("."), OFlag::O_RDONLY | OFlag::O_DIRECTORY).map_err(fault(path))
}

impl<O: Report> Walk<'_, O> {
    /// In the directory at `path`, the name with which to go on: of that itself all was told.
    fn next(&self, path: &Path) -> Option<&[u8]> {
        let rest = self.after?.strip_prefix(path).ok()?;
        rest.components().next().map(|name| name.as_os_str().as_bytes())
    }

    fn directory(&mut self, lower: Option<&OwnedFd>, upper: &OwnedFd, path: &Path, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(too_deep(path));
        }
        let mut all = names(upper).map_err(fault(path))?;
        // What overlayfs doesn't have in the upper tree is as it is below, unless the directory hides that.
        if let Some(lower) = lower
            && (!self.overlay || is_opaque(upper, path)?)
        {
            all.extend(names(lower).map_err(fault(path))?);
            all.sort_unstable();
            all.dedup();
        }
        let next = self.next(path).map(<[u8]>::to_vec);
        for name in all.into_iter().filter(|name| Some(name) >= next.as_ref()) {
            self.out.check()?;
            if self.out.full() {
                break;
            }
            let told = next.as_ref() == Some(&name);
            let name = PathBuf::from(std::ffi::OsString::from_vec(name));
            self.child(lower, upper, &name, path.join(&name), told, depth)?;
        }
        Ok(())
    }

    fn child(
        &mut self,
        lower: Option<&OwnedFd>,
        upper: &OwnedFd,
        name: &Path,
        path: PathBuf,
        told: bool,
        depth: usize,
    ) -> Result<()> {
        let old = find(lower, name, &path)?;
        let new = find(Some(upper), name, &path)?.filter(|(_, stat)| !(self.overlay && is_whiteout(stat)));
        let Some((handle, new)) = new else {
            return if old.is_some() && !told { self.out.gone(&path) } else { Ok(()) };
        };
        let same_kind = old.as_ref().is_some_and(|(_, old)| kind(old) == kind(&new));
        if kind(&new) != SFlag::S_IFDIR {
            if told {
                return Ok(());
            }
            if let Some((old, was)) = old.as_ref().filter(|_| same_kind)
                && !self.links.contains(&new.st_ino)
                && same(old, was, &handle, &new, &path)?
            {
                return Ok(());
            }
            return self.out.leaf(&handle, &new, path, old.is_none());
        }
        let dir = enter(&handle, &path)?;
        let below = match &old {
            Some((old, _)) if same_kind => Some(enter(old, &path)?),
            _ => None,
        };
        let changed = match (&old, &below) {
            (Some((_, was)), Some(below)) => !alike(was, &new) || attributes(below)? != attributes(&dir)?,
            _ => true,
        };
        // Its time of change alone is not worth an entry: that changes with every name in it, which is one.
        match (told, changed) {
            (true, _) => {}
            (false, true) => self.out.folder(&dir, &new, &path, old.is_none())?,
            (false, false) => self.out.enter(&path)?,
        }
        self.directory(below.as_ref(), &dir, &path, depth + 1)?;
        self.out.leave(&path);
        Ok(())
    }
}

fn attributes(fd: &OwnedFd) -> Result<Vec<(String, Vec<u8>)>> {
    xattrs(fd).map_err(|e| Error::io("layer", "", "can't be compared", &e))
}

/// Whether two files of one kind are the same.
pub(crate) fn same(old: &OwnedFd, was: &FileStat, new: &OwnedFd, is: &FileStat, path: &Path) -> Result<bool> {
    if !alike(was, is) || (was.st_mtime, was.st_mtime_nsec) != (is.st_mtime, is.st_mtime_nsec) {
        return Ok(false);
    }
    match kind(is) {
        SFlag::S_IFLNK => {
            let target = |fd| readlinkat(fd, "").map_err(fault(path));
            Ok(target(old)? == target(new)?)
        }
        SFlag::S_IFREG => {
            if was.st_size != is.st_size {
                return Ok(false);
            }
            let io = |e: io::Error| Error::io("layer", path.display(), "can't be compared", &e);
            let read = |fd| cofferdam_sys::fd::reopen(fd, libc::O_RDONLY | libc::O_NONBLOCK).map_err(io);
            let (old, new) = (read(old)?, read(new)?);
            if attributes(&old)? != attributes(&new)? {
                return Ok(false);
            }
            if was.st_mtime_nsec != 0 {
                return Ok(true);
            }
            equal(File::from(old), File::from(new)).map_err(io)
        }
        _ => Ok(was.st_rdev == is.st_rdev),
    }
}

fn equal(mut a: File, mut b: File) -> io::Result<bool> {
    let (mut left, mut right) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        let n = a.read(&mut left)?;
        if n == 0 {
            return Ok(b.read(&mut right[..1])? == 0);
        }
        match b.read_exact(&mut right[..n]) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            other => other?,
        }
        if left[..n] != right[..n] {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
        sync::atomic::AtomicBool,
    };

    use cofferdam_archive::{ApplyOptions, apply};
    use cofferdam_types::Mount;

    use super::*;

    fn layer(lower: &Path, upper: &Path, overlay: bool) -> Vec<u8> {
        let (lower, upper) = (fs::File::open(lower).unwrap(), fs::File::open(upper).unwrap());
        let mut out = Vec::new();
        let trees = Trees { lower: Some(lower.as_fd()), upper: upper.as_fd(), overlay };
        let filled = create(&trees, &mut out, &|| Ok(())).unwrap();
        assert_eq!(filled, out.iter().any(|byte| *byte != 0));
        out
    }

    fn entries(tar: &[u8]) -> Vec<String> {
        let mut archive = tar::Archive::new(tar);
        archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect()
    }

    /// All that a layer can say of something in a tree: name, mode, owner, device, content, attribute.
    type Seen = (String, u32, u32, u64, Vec<u8>, Option<Vec<u8>>);

    fn picture(root: &Path) -> Vec<Seen> {
        fn walk(root: &Path, dir: &Path, out: &mut Vec<Seen>) {
            let mut all: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
            all.sort();
            for path in all {
                let meta = fs::symlink_metadata(&path).unwrap();
                let bytes = if meta.is_file() {
                    fs::read(&path).unwrap()
                } else if meta.is_symlink() {
                    fs::read_link(&path).unwrap().into_os_string().into_vec()
                } else {
                    Vec::new()
                };
                let own = (meta.is_file() || meta.is_dir())
                    .then(|| xattr::get(fs::File::open(&path).unwrap(), c"user.note").unwrap())
                    .flatten();
                let name = path.strip_prefix(root).unwrap().display().to_string();
                out.push((name, meta.mode(), meta.uid(), meta.rdev(), bytes, own));
                if meta.is_dir() {
                    walk(root, &path, out);
                }
            }
        }
        let mut out = Vec::new();
        walk(root, root, &mut out);
        out
    }

    fn base(root: &Path) {
        for dir in ["etc", "lib/deep", "gone/inner", "swap", "replaced"] {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
        for file in
            ["etc/keep", "etc/change", "etc/mode", "lib/deep/a", "gone/inner/b", "swap/old", "replaced/c", "kind"]
        {
            fs::write(root.join(file), file).unwrap();
            fs::File::open(root.join(file)).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
        }
        symlink("keep", root.join("etc/link")).unwrap();
    }

    fn change(root: &Path) {
        // The same size, and a time of whole seconds that is the same: only the bytes tell.
        fs::write(root.join("etc/change"), "etc/CHANGE").unwrap();
        fs::File::open(root.join("etc/change")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
        fs::set_permissions(root.join("etc/mode"), fs::Permissions::from_mode(0o4711)).unwrap();
        fs::remove_dir_all(root.join("gone")).unwrap();
        // Gone and made again: nothing of the old one shines through.
        fs::remove_dir_all(root.join("swap")).unwrap();
        fs::create_dir(root.join("swap")).unwrap();
        fs::write(root.join("swap/new"), "new").unwrap();
        fs::remove_dir_all(root.join("replaced")).unwrap();
        symlink("etc", root.join("replaced")).unwrap();
        fs::remove_file(root.join("kind")).unwrap();
        fs::create_dir(root.join("kind")).unwrap();
        fs::remove_file(root.join("etc/link")).unwrap();
        symlink("change", root.join("etc/link")).unwrap();
        fs::create_dir_all(root.join("new/dir")).unwrap();
        fs::write(root.join("new/dir/f"), vec![7; 100_000]).unwrap();
        fs::hard_link(root.join("new/dir/f"), root.join("new/again")).unwrap();
        xattr::set(fs::File::open(root.join("new/dir/f")).unwrap(), c"user.note", b"here").unwrap();
        xattr::set(fs::File::open(root.join("lib/deep")).unwrap(), c"user.note", b"dir").unwrap();
        std::os::unix::fs::chown(root.join("new"), Some(1000), Some(1001)).unwrap();
        nix::sys::stat::mknod(&root.join("new/null"), SFlag::S_IFCHR, nix::sys::stat::Mode::S_IRUSR, 0x103).unwrap();
    }

    const CHANGES: [&str; 14] = [
        ".wh.gone",
        "etc/change",
        "etc/link",
        "etc/mode",
        "kind",
        "lib/deep",
        "new",
        "new/again",
        "new/dir",
        "new/dir/f",
        "new/null",
        "replaced",
        "swap/.wh.old",
        "swap/new",
    ];

    fn check(tar: &[u8], lower: &Path, whole: &Path) {
        let mut found = entries(tar);
        found.sort();
        assert_eq!(found, CHANGES);
        // Applied to what was there it makes what is there.
        let root = fs::File::open(lower).unwrap();
        apply(root.as_fd(), tar, &ApplyOptions::default(), &AtomicBool::new(false)).unwrap();
        assert_eq!(picture(lower), picture(whole));
    }

    #[test]
    fn a_changed_copy_gives_a_layer_that_makes_it_again() {
        let dir = tempfile::tempdir().unwrap();
        let (lower, upper) = (dir.path().join("lower"), dir.path().join("upper"));
        base(&lower);
        base(&upper);
        change(&upper);
        let tar = layer(&lower, &upper, false);
        assert!(entries(&layer(&upper, &upper, false)).is_empty(), "nothing differs from itself");
        check(&tar, &lower, &upper);
    }

    #[test]
    fn an_upper_tree_of_overlayfs_gives_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["upper", "work"] {
            fs::create_dir(at(name)).unwrap();
        }
        base(&at("lower"));
        let path = |name: &str| at(name).display().to_string();
        let options = vec![
            format!("lowerdir={}", path("lower")),
            format!("upperdir={}", path("upper")),
            format!("workdir={}", path("work")),
        ];
        let mount =
            cofferdam_sys::mount::detached(&Mount { kind: "overlay".into(), source: "overlay".into(), options });
        let mount = mount.unwrap();
        let whole = PathBuf::from(format!("/proc/self/fd/{}/.", std::os::fd::AsRawFd::as_raw_fd(&mount)));
        change(&whole);
        let tar = layer(&at("lower"), &at("upper"), true);
        // Not what overlayfs shows through: the lower tree is changed by the check.
        let kept = at("kept");
        base(&kept);
        change(&kept);
        drop(mount);
        check(&tar, &at("lower"), &kept);
    }

    #[test]
    fn a_name_that_would_delete_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".wh.passwd"), "").unwrap();
        let upper = fs::File::open(dir.path()).unwrap();
        let made = create(&Trees { lower: None, upper: upper.as_fd(), overlay: false }, Vec::new(), &|| Ok(()));
        assert_eq!(made.unwrap_err().code, cofferdam_types::Code::FailedPrecondition);
    }
}
