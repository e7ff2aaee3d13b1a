//! A directory tree under a held root, and what was done to it so far.
//!
//! A path of an archive is resolved as if the root were `/`: absolute links start over there, `..` stops there. The
//! kernel resolves only paths without symbolic links (`openat2`, beneath, no links); the others are walked here, one
//! name at a time with a stack of descriptors, on which `..` is a pop. So a component that is swapped meanwhile can
//! lead to another place in the tree, but never out of it.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStringExt,
    },
    rc::Rc,
};

use cofferdam_types::{Error, Result};
use nix::{
    errno::Errno,
    fcntl::readlinkat,
    sys::{
        stat::{Mode, SFlag, fchmod, fstat},
        time::TimeSpec,
    },
    unistd::{UnlinkatFlags, unlinkat},
};

use crate::{ApplyOptions, at, at::fail, header::exhausted, merged::undecided};

/// Links that one path may follow, as in the reference.
const LINKS: usize = 255;
/// Names that one path may come to, links expanded.
const STEPS: usize = 16_384;
/// Resolved parents that are kept open.
const CACHE: usize = 128;

/// An archive's path, cleaned: no leading slash, no `.`, `..` resolved by text and stopped at the root.
pub(crate) fn clean(path: &[u8]) -> Vec<u8> {
    let mut names: Vec<&[u8]> = Vec::new();
    for name in path.split(|b| *b == b'/') {
        match name {
            b"" | b"." => {}
            b".." => {
                names.pop();
            }
            name => names.push(name),
        }
    }
    names.join(&b'/')
}

/// The directory part and the last name.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

pub(crate) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

/// The keys of a map of paths that lie below `path`.
pub(crate) fn below(path: &[u8]) -> (Bound<Vec<u8>>, Bound<Vec<u8>>) {
    if path.is_empty() {
        return (Bound::Excluded(Vec::new()), Bound::Unbounded);
    }
    // '0' is the byte behind '/'.
    (Bound::Excluded([path, b"/"].concat()), Bound::Excluded([path, b"0"].concat()))
}

/// A resolved directory: its descriptor, and its path without links.
pub(crate) struct Place {
    pub(crate) fd: OwnedFd,
    pub(crate) real: Vec<u8>,
}

/// What resolving came to.
pub(crate) enum Found {
    Place(Rc<Place>),
    /// Not in this tree; in an overlay a lower layer may have it, under this path, unless something here hides it.
    Missing {
        real: Vec<u8>,
        hidden: bool,
    },
    /// Something that is no directory and no link to one is in the way.
    Blocked,
}

/// What is remembered of a path (one without links) until the end of the archive.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Note {
    /// A directory's times, set last: its entry's, or in place those that it had before entries in it changed them.
    pub(crate) times: Option<(TimeSpec, TimeSpec)>,
    /// A directory that no entry named so far.
    pub(crate) implicit: bool,
    /// A directory whose entry came behind entries in it.
    pub(crate) late: bool,
    /// A directory below which lower layers don't show.
    pub(crate) opaque: bool,
    pub(crate) whiteout: bool,
    /// A hard link to a lower file, not made yet: its target and the number of its entry.
    pub(crate) link: Option<(Vec<u8>, u64)>,
}

pub(crate) struct Tree<'a> {
    root: BorrowedFd<'a>,
    options: &'a ApplyOptions,
    cache: HashMap<Vec<u8>, Rc<Place>>,
    notes: BTreeMap<Vec<u8>, Note>,
    names: usize,
    /// Directories made because an entry lies in them.
    pub(crate) made: u64,
}

impl<'a> Tree<'a> {
    pub(crate) fn new(root: BorrowedFd<'a>, options: &'a ApplyOptions) -> Tree<'a> {
        Tree { root, options, cache: HashMap::new(), notes: BTreeMap::new(), names: 0, made: 0 }
    }

    pub(crate) fn notes(&mut self) -> &mut BTreeMap<Vec<u8>, Note> {
        &mut self.notes
    }

    /// Remembers something of `real`.
    pub(crate) fn note(&mut self, real: &[u8], change: impl FnOnce(&mut Note)) -> Result<()> {
        if let Some(note) = self.notes.get_mut(real) {
            change(note);
            return Ok(());
        }
        self.names += real.len() + size_of::<Note>();
        let most = self.options.limits.max_names;
        if self.names > most {
            let why =
                format!("to remember its directories, whiteouts and links the layer needs more than {most} bytes");
            return Err(exhausted(real, why));
        }
        change(self.notes.entry(real.to_vec()).or_default());
        Ok(())
    }

    /// In place: remembers the times of the directory `real`, which an entry in it is about to change without meaning
    /// to. An overlay's layer needs nothing of the kind: a directory there is this archive's own, or gets its times
    /// from the layer below when it is settled.
    pub(crate) fn touch(&mut self, dir: impl AsFd, real: &[u8]) -> Result<()> {
        // The root itself is the caller's.
        if self.options.overlay || real.is_empty() || self.notes.contains_key(real) {
            return Ok(());
        }
        let stat = fstat(dir).map_err(|errno| fail(real, "looking at a directory", errno))?;
        self.note(real, |note| note.times = Some(at::times(&stat)))
    }

    /// Whether lower layers don't show in the directory `real`.
    pub(crate) fn is_hidden(&self, real: &[u8]) -> bool {
        let opaque = |path: &[u8]| self.notes.get(path).is_some_and(|note| note.opaque);
        let mut path = real;
        loop {
            if opaque(path) {
                return true;
            }
            if path.is_empty() {
                return false;
            }
            path = split(path).0;
        }
    }

    /// Whether `real` is a directory that no entry named so far.
    pub(crate) fn is_implicit(&self, real: &[u8]) -> bool {
        self.notes.get(real).is_some_and(|note| note.implicit)
    }

    /// Whether entries lie in `real`, or below it, behind a directory that no entry had named by then.
    pub(crate) fn has_unsure(&self, real: &[u8]) -> bool {
        self.notes.get(real).is_some_and(|note| note.implicit || note.late) || self.has_unsure_below(real)
    }

    pub(crate) fn has_unsure_below(&self, real: &[u8]) -> bool {
        self.notes.range(below(real)).any(|(_, note)| note.implicit || note.late)
    }

    /// Forgets `real` and all below it, which is about to be removed or replaced.
    pub(crate) fn forget(&mut self, real: &[u8]) {
        let inside: Vec<_> = self.notes.range(below(real)).map(|(path, _)| path.clone()).collect();
        for path in inside.into_iter().chain([real.to_vec()]) {
            if self.notes.remove(&path).is_none() {
                continue;
            }
            self.names = self.names.saturating_sub(path.len() + size_of::<Note>());
        }
    }

    /// After a directory or a symbolic link went away, paths may lead elsewhere.
    pub(crate) fn moved(&mut self) {
        self.cache.clear();
    }

    /// Keeps a directory that was just opened, for the entries that will lie in it.
    pub(crate) fn keep(&mut self, path: &[u8], place: Rc<Place>) {
        if self.cache.len() >= CACHE {
            self.cache.clear();
        }
        self.cache.insert(path.to_vec(), place);
    }

    /// The directory `path` (cleaned), its missing parts made.
    pub(crate) fn make(&mut self, path: &[u8]) -> Result<Rc<Place>> {
        self.make_unless_blocked(path)?.ok_or_else(|| self.problem(path, Errno::ENOTDIR))
    }

    /// The same; `None` if something is in the way.
    pub(crate) fn make_unless_blocked(&mut self, path: &[u8]) -> Result<Option<Rc<Place>>> {
        match self.resolve(path, true)? {
            Found::Place(place) => Ok(Some(place)),
            Found::Blocked => Ok(None),
            Found::Missing { .. } => {
                Err(Error::internal("layer", String::from_utf8_lossy(path), "a parent was not made"))
            }
        }
    }

    /// The directory `path` (cleaned), if it is there.
    pub(crate) fn find(&mut self, path: &[u8]) -> Result<Found> {
        match self.resolve(path, false)? {
            Found::Blocked => Err(self.problem(path, Errno::ENOTDIR)),
            found => Ok(found),
        }
    }

    /// Why a path can't be resolved.
    fn problem(&self, path: &[u8], errno: Errno) -> Error {
        match errno {
            // A parent layer may say otherwise of the directories on the way that no entry named.
            Errno::ELOOP | Errno::ENOTDIR if self.options.detached => {
                undecided(path, "leads through something that is no directory")
            }
            _ => fail(path, "resolving a path", errno),
        }
    }

    fn resolve(&mut self, path: &[u8], make: bool) -> Result<Found> {
        if let Some(place) = self.cache.get(path) {
            return Ok(Found::Place(Rc::clone(place)));
        }
        let found = match at::open_beneath(self.root, path) {
            Ok(fd) => Found::Place(Rc::new(Place { fd, real: path.to_vec() })),
            // ENOSYS: a sandbox that does not know the call. EAGAIN: something moved meanwhile.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EAGAIN | Errno::ENOSYS) => {
                self.walk(path, make)?
            }
            Err(errno) => return Err(fail(path, "opening a directory", errno)),
        };
        if let Found::Place(place) = &found {
            self.keep(path, Rc::clone(place));
        }
        Ok(found)
    }

    fn walk(&mut self, path: &[u8], make: bool) -> Result<Found> {
        // The directories down to where we are, and behind them the names that are not there. Those stay text, so
        // that `..` behind one leads back.
        let mut stack: Vec<OwnedFd> = Vec::new();
        let mut real: Vec<Vec<u8>> = Vec::new();
        let mut whiteout = false;
        let mut todo: Vec<Vec<u8>> = path.rsplit(|b| *b == b'/').map(<[u8]>::to_vec).collect();
        let (mut links, mut steps) = (0, 0);
        while let Some(name) = todo.pop() {
            steps += 1;
            if steps > STEPS {
                return Err(self.problem(path, Errno::ELOOP));
            }
            match &name[..] {
                b"" | b"." => continue,
                b".." => {
                    real.pop();
                    stack.truncate(real.len());
                    continue;
                }
                _ if stack.len() < real.len() => {
                    real.push(name);
                    continue;
                }
                _ => {}
            }
            let fd = match at::open_path(stack.last().map_or(self.root, |fd| fd.as_fd()), &name) {
                Ok(fd) => fd,
                Err(Errno::ENOENT) => {
                    whiteout = false;
                    real.push(name);
                    continue;
                }
                Err(errno) => return Err(self.problem(path, errno)),
            };
            let stat = fstat(&fd).map_err(|errno| self.problem(path, errno))?;
            match at::kind(&stat) {
                SFlag::S_IFDIR => {
                    stack.push(fd);
                    real.push(name);
                }
                SFlag::S_IFLNK => {
                    links += 1;
                    if links > LINKS {
                        return Err(self.problem(path, Errno::ELOOP));
                    }
                    let target = readlinkat(&fd, "").map_err(|errno| self.problem(path, errno))?.into_vec();
                    if target.starts_with(b"/") {
                        stack.clear();
                        real.clear();
                    }
                    todo.extend(target.rsplit(|b| *b == b'/').map(<[u8]>::to_vec));
                }
                _ if self.options.overlay && at::is_whiteout(&stat) => {
                    whiteout = true;
                    real.push(name);
                }
                _ => return Ok(Found::Blocked),
            }
        }
        if stack.len() < real.len() && !make {
            let hidden = whiteout || self.is_hidden(&real[..stack.len()].join(&b'/'));
            return Ok(Found::Missing { real: real.join(&b'/'), hidden });
        }
        for depth in stack.len()..real.len() {
            let dir = stack.last().map_or(self.root, |fd| fd.as_fd());
            let fd = self.make_implicit(dir, &real[..=depth], std::mem::take(&mut whiteout))?;
            stack.push(fd);
        }
        let fd = match stack.pop() {
            Some(fd) => fd,
            None => at::open_beneath(self.root, b"").map_err(|errno| self.problem(path, errno))?,
        };
        Ok(Found::Place(Rc::new(Place { fd, real: real.join(&b'/') })))
    }

    /// Makes a directory that no entry named, or not yet.
    fn make_implicit(&mut self, dir: BorrowedFd, real: &[Vec<u8>], whiteout: bool) -> Result<OwnedFd> {
        let name = real.last().map(Vec::as_slice).unwrap_or_default();
        let path = real.join(&b'/');
        let limits = &self.options.limits;
        self.made += 1;
        if real.len() > limits.max_depth || path.len() > limits.max_path || self.made > limits.max_entries {
            return Err(exhausted(&path, "the layer has too many or too deep directories"));
        }
        if self.notes.get(&path).is_some_and(|note| note.link.is_some()) {
            return Err(undecided(&path, "is a hard link to a lower file and has entries"));
        }
        if whiteout {
            unlinkat(dir, name, UnlinkatFlags::NoRemoveDir)
                .map_err(|errno| fail(&path, "replacing a whiteout", errno))?;
            self.forget(&path);
        }
        self.touch(dir, split(&path).0)?;
        // Whoever made it in between is an error: we alone write here.
        let fd = at::make_dir(dir, name).map_err(|errno| fail(&path, "making a directory", errno))?;
        fchmod(&fd, Mode::from_bits_truncate(0o755)).map_err(|errno| fail(&path, "making a directory", errno))?;
        if whiteout && !self.is_hidden(split(&path).0) {
            at::set_xattr(&fd, at::OPAQUE, b"y").map_err(|errno| fail(&path, "making a directory opaque", errno))?;
            self.note(&path, |note| note.opaque = true)?;
        }
        // Where nothing below shows through there is nothing to learn later.
        if !self.options.overlay || !self.is_hidden(&path) {
            self.note(&path, |note| note.implicit = true)?;
        }
        Ok(fd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_by_text() {
        for (path, cleaned) in [
            ("", ""),
            ("/", ""),
            (".", ""),
            ("..", ""),
            ("../../x", "x"),
            ("./a//b/./c/", "a/b/c"),
            ("a/../../b", "b"),
            ("/a/b/..", "a"),
            ("...", "..."),
        ] {
            assert_eq!(clean(path.as_bytes()), cleaned.as_bytes(), "{path}");
        }
    }

    #[test]
    fn what_lies_below_a_path() {
        let map: BTreeMap<Vec<u8>, ()> =
            ["", "a", "a!", "a-b", "a/b", "a/b/c", "a0", "ab"].iter().map(|p| (p.as_bytes().to_vec(), ())).collect();
        let inside: Vec<_> = map.range(below(b"a")).map(|(p, ())| p.as_slice()).collect();
        assert_eq!(inside, [&b"a/b"[..], b"a/b/c"]);
        assert_eq!(map.range(below(b"")).count(), 7);
    }
}
