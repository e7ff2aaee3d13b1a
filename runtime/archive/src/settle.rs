//! What a detached layer can only learn once its parents are there.
//!
//! After it, an overlay mount of the layer on its parents shows what applying the archive in place onto them would have
//! given: directories that the archive only passed through look as they did, entries below a lower symbolic link to a
//! directory are where that link leads, hard links to lower files are real.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::File,
    io::Read,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
};

use cofferdam_types::{Error, Result};
use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, RenameFlags, openat, readlinkat, renameat2},
    sys::{
        stat::{FileStat, Mode, SFlag, UtimensatFlags, fchmod, fstat, futimens, mknodat, utimensat},
        time::TimeSpec,
    },
    unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, linkat, symlinkat, unlinkat},
};

use crate::{
    Applied, at,
    at::fail,
    header::refused,
    merged::{Node, Stack, Step, undecided},
    stream::cancelled,
    tree::{below, join, split},
};

/// Where a directory waits while it is moved: a name that no entry can have.
const ASIDE: &[u8] = b".wh..wh.aside";

/// How often opaque markers are looked for again after some moved.
const PASSES: usize = 8;

/// Completes a layer that was applied detached to the directory `layer`, on top of `parents` (roots of settled layers
/// in overlay form, nearest first).
///
/// `failed_precondition`: the archive comes to one place by two names, one of them a symbolic link of a parent, and what
/// was first is not known any more. Apply the layer in place on its parent instead: that gives the tree, or the error.
pub fn settle(layer: BorrowedFd, parents: &[BorrowedFd], applied: &Applied, cancel: &AtomicBool) -> Result<()> {
    if let Some(error) = &applied.undecided {
        return Err(error.clone());
    }
    let layers: Vec<BorrowedFd> = [layer].into_iter().chain(parents.iter().copied()).collect();
    let bytes = |path: &PathBuf| path.as_os_str().as_bytes().to_vec();
    let mut run = Settle {
        layer,
        stack: Stack { layers: &layers },
        cancel,
        soft: applied.implicit_parents.iter().map(bytes).collect(),
        whiteouts: applied.whiteouts.iter().map(bytes).collect(),
        links: applied.lower_links.iter().map(|link| (bytes(&link.path), bytes(&link.target))).collect(),
        times: BTreeMap::new(),
        moved: BTreeSet::new(),
        copied: HashMap::new(),
    };
    run.late(applied)?;
    run.implicit()?;
    run.lower_links()?;
    // Copies of lower files brought parents of their own.
    run.implicit()?;
    run.whiteouts()?;
    run.opaque_root()?;
    run.finish()
}

struct Settle<'a> {
    layer: BorrowedFd<'a>,
    stack: Stack<'a>,
    cancel: &'a AtomicBool,
    /// Directories of the layer that no entry named and that are not looked at yet.
    soft: BTreeSet<Vec<u8>>,
    whiteouts: BTreeSet<Vec<u8>>,
    /// (path, target), in the order of the archive.
    links: Vec<(Vec<u8>, Vec<u8>)>,
    /// Times to set at the end, of directories that were written to.
    times: BTreeMap<Vec<u8>, (TimeSpec, TimeSpec)>,
    /// What lies where a lower symbolic link leads, and was written through it.
    moved: BTreeSet<Vec<u8>>,
    /// Lower files that were copied: (layer, inode) to their path in this one.
    copied: HashMap<(usize, u64), Vec<u8>>,
}

impl Settle<'_> {
    fn check(&self) -> Result<()> {
        if self.cancel.load(Ordering::Relaxed) { Err(cancelled()) } else { Ok(()) }
    }

    /// A directory of the layer itself, readable.
    fn own(&self, path: &[u8]) -> nix::Result<OwnedFd> {
        at::open_dir(at::open_beneath(self.layer, path)?, b".")
    }

    /// Keeps the times of a directory that is about to be written to.
    fn touch(&mut self, path: &[u8], fd: &OwnedFd) -> Result<()> {
        if !self.times.contains_key(path) {
            let stat = fstat(fd).map_err(|errno| fail(path, "looking at a directory", errno))?;
            self.times.insert(path.to_vec(), at::times(&stat));
        }
        Ok(())
    }

    /// In place, an entry that came before its directory's own went through whatever was there.
    fn late(&self, applied: &Applied) -> Result<()> {
        for path in &applied.late_directories {
            let path = path.as_os_str().as_bytes();
            let (dir, name) = split(path);
            let node = self.stack.node(dir, 0, &self.soft)?;
            if !matches!(self.stack.step(&node, name, true)?, Step::Dir { .. } | Step::Missing) {
                return Err(undecided(path, "has entries before its own, and is no directory in a lower layer"));
            }
        }
        Ok(())
    }

    fn implicit(&mut self) -> Result<()> {
        // Opaque markers first, as they stand in an archive: one that was written through a link hides what others
        // would be compared with. A move may bring markers to new places, to be looked at again; it seldom does.
        for _ in 0..PASSES {
            let mut moved = false;
            for path in self.soft.clone() {
                if self.soft.contains(&path) && self.own(&path).and_then(at::is_opaque).unwrap_or(false) {
                    let ends = (0..path.len()).filter(|i| path[*i] == b'/').chain([path.len()]);
                    for end in ends.collect::<Vec<_>>() {
                        moved |= self.soft.contains(&path[..end]) && self.one_implicit(&path[..end])?;
                    }
                }
            }
            if !moved {
                break;
            }
        }
        // Parents come before what is in them.
        while let Some(path) = self.soft.first().cloned() {
            self.one_implicit(&path)?;
        }
        Ok(())
    }

    /// Gives a directory that no entry named the look it has below. True if it moved.
    fn one_implicit(&mut self, path: &[u8]) -> Result<bool> {
        self.check()?;
        let (dir, name) = split(path);
        let own = match self.own(path) {
            Ok(own) => own,
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => {
                self.soft.remove(path);
                return Ok(false);
            }
            Err(errno) => return Err(fail(path, "opening a directory", errno)),
        };
        let node = self.stack.node(dir, 0, &self.soft)?;
        match self.stack.step(&node, name, true)? {
            Step::Dir { lower: Some(lower), .. } => {
                let times = copy_attributes(&lower, &own).map_err(|errno| fail(path, "copying attributes", errno))?;
                self.times.insert(path.to_vec(), times);
            }
            Step::Dir { .. } | Step::Missing => {}
            Step::Link { target } => {
                // The archive may have changed the way on which it then, or before, went.
                let place = self.stack.resolve(dir, &target, 0, &self.soft)?;
                let before = self.stack.resolve(dir, &target, 1, &BTreeSet::new())?;
                if place != before || self.is_cut(&place) {
                    return Err(undecided(path, "is a link in a lower layer whose target this one changes"));
                }
                self.relocate(path, &own, &place)?;
                return Ok(true);
            }
            Step::Other => return Err(undecided(path, "is a file in a lower layer and has entries in this one")),
        }
        self.soft.remove(path);
        Ok(false)
    }

    /// Whether the layer itself hides what is below in `path` or in a directory on the way.
    fn is_cut(&self, path: &[u8]) -> bool {
        let ends = (0..path.len()).filter(|i| path[*i] == b'/').chain([path.len()]);
        ends.map(|end| &path[..end])
            .any(|prefix| !self.soft.contains(prefix) && self.own(prefix).and_then(at::is_opaque).unwrap_or(false))
    }

    /// Moves what lies in `from`, a symbolic link below, to `to`, where that leads.
    fn relocate(&mut self, from: &[u8], own: &OwnedFd, to: &[u8]) -> Result<()> {
        if to == from || to.starts_with(&[from, b"/"].concat()) {
            return Err(fail(from, "resolving a link of a lower layer", Errno::ELOOP));
        }
        let problem = |errno| fail(from, "moving a directory", errno);
        let place = self.ensure(to)?;
        let (dir, name) = split(from);
        let parent = self.own(dir).map_err(problem)?;
        self.touch(dir, &parent)?;
        let root = self.own(b"").map_err(problem)?;
        self.touch(b"", &root)?;
        // Out of the way first: the link may lead to a directory that it lies in itself.
        renameat2(&parent, name, &root, ASIDE, RenameFlags::RENAME_NOREPLACE).map_err(problem)?;
        self.soft.remove(from);
        self.times.remove(from);
        self.merge(from, own, to, &place)?;
        unlinkat(&root, ASIDE, UnlinkatFlags::RemoveDir).map_err(problem)?;
        let moved = |path: &[u8]| join(to, &path[from.len() + 1..]);
        for set in [&mut self.soft, &mut self.whiteouts] {
            let old: Vec<_> = set.range(below(from)).cloned().collect();
            for path in &old {
                set.remove(path);
            }
            set.extend(old.iter().map(|path| moved(path)));
        }
        let old: Vec<_> = self.times.range(below(from)).map(|(path, times)| (path.clone(), *times)).collect();
        for (path, _) in &old {
            self.times.remove(path);
        }
        self.times.extend(old.into_iter().map(|(path, times)| (moved(&path), times)));
        for (path, _) in &mut self.links {
            if path.starts_with(from) && path.get(from.len()) == Some(&b'/') {
                *path = moved(path);
            }
        }
        // What moved may have replaced, deleted or hidden the very link: before or after its last use?
        let node = self.stack.node(dir, 0, &self.soft)?;
        match self.stack.step(&node, name, self.soft.contains(from))? {
            Step::Link { target } if self.stack.resolve(dir, &target, 0, &self.soft)? == to => Ok(()),
            _ => Err(undecided(from, "is a link in a lower layer that this one both follows and changes")),
        }
    }

    fn merge(&mut self, from: &[u8], source: &OwnedFd, to: &[u8], place: &OwnedFd) -> Result<()> {
        let problem = |errno| fail(from, "moving a directory", errno);
        self.touch(to, place)?;
        if at::is_opaque(source).map_err(problem)? {
            at::set_xattr(place, at::OPAQUE, b"y").map_err(problem)?;
        }
        for name in at::names(source).map_err(problem)? {
            let name = name.to_bytes();
            let (old, new) = (join(from, name), join(to, name));
            match renameat2(source, name, place, name, RenameFlags::RENAME_NOREPLACE) {
                Err(Errno::EEXIST) => {}
                result => {
                    result.map_err(problem)?;
                    self.moved.insert(new);
                    continue;
                }
            }
            let mine = at::stat(source, name).map_err(problem)?;
            let theirs = at::stat(place, name).map_err(problem)?;
            if at::is_whiteout(&mine) && at::is_whiteout(&theirs) {
                unlinkat(source, name, UnlinkatFlags::NoRemoveDir).map_err(problem)?;
                continue;
            }
            let (soft_mine, soft_theirs) = (self.soft.contains(&old), self.soft.contains(&new));
            if !at::is_dir(&mine) || !at::is_dir(&theirs) || !soft_mine && !soft_theirs {
                return Err(conflict(&old, &new));
            }
            let source_child = at::open_dir(source, name).map_err(problem)?;
            let place_child = at::open_dir(place, name).map_err(problem)?;
            if !soft_mine {
                let times = copy_attributes(&source_child, &place_child).map_err(problem)?;
                self.times.insert(new.clone(), times);
                self.soft.remove(&new);
            }
            self.merge(&old, &source_child, &new, &place_child)?;
            if !soft_theirs {
                // An entry named it, so it is settled.
                self.soft.remove(&old);
            }
            unlinkat(source, name, UnlinkatFlags::RemoveDir).map_err(problem)?;
        }
        Ok(())
    }

    /// A directory of the layer itself, made where it is missing.
    fn ensure(&mut self, path: &[u8]) -> Result<OwnedFd> {
        let problem = |errno| fail(path, "making a directory", errno);
        let mut real = Vec::new();
        let mut fd = at::open_dir(self.layer, b".").map_err(problem)?;
        for name in path.split(|b| *b == b'/').filter(|name| !name.is_empty()) {
            let child = join(&real, name);
            let parent = std::mem::replace(&mut real, child);
            match at::stat(&fd, name) {
                Ok(stat) if at::is_dir(&stat) => {
                    fd = at::open_dir(&fd, name).map_err(problem)?;
                    continue;
                }
                // A whiteout, say: were the entries there before it or after?
                Ok(_) => return Err(undecided(path, "has entries and is replaced or deleted")),
                Err(Errno::ENOENT) => {}
                Err(errno) => return Err(problem(errno)),
            }
            self.touch(&parent, &fd)?;
            fd = at::make_dir(&fd, name).map_err(problem)?;
            fchmod(&fd, Mode::from_bits_truncate(0o755)).map_err(problem)?;
            self.soft.insert(real.clone());
        }
        Ok(fd)
    }

    fn lower_links(&mut self) -> Result<()> {
        for (path, target) in std::mem::take(&mut self.links) {
            self.check()?;
            let missing = || {
                let why = format!("a hard link's target {} does not exist", String::from_utf8_lossy(&target));
                Error::not_found("layer", String::from_utf8_lossy(&path), why)
            };
            let (dir, name) = split(&target);
            let dir = self.stack.resolve(b"", dir, 1, &BTreeSet::new())?;
            let node = self.stack.node(&dir, 1, &BTreeSet::new())?;
            let target = join(&dir, name);
            // Whether the link was to the lower file or to what this layer put in its place is not known any more.
            if self.was_moved(&target) {
                return Err(conflict(&path, &target));
            }
            let (part, stat) = self.lower_file(&node, name)?.ok_or_else(missing)?;
            let (to, to_name) = split(&path);
            let parent = self.ensure(to)?;
            if at::stat(&parent, to_name).is_ok() {
                return Err(conflict(&target, &path));
            }
            let id = (node[part].layer, stat.st_ino);
            let source = match self.copied.get(&id) {
                Some(source) => source.clone(),
                None => {
                    // At its own name if that still shows, so that both names stay one file; else at the link's.
                    let shows = self.shows(&target, id)? && target != path;
                    let copy = if shows { target } else { path.clone() };
                    let (dir, name_here) = split(&copy);
                    let parent = self.ensure(dir)?;
                    self.touch(dir, &parent)?;
                    copy_file(&node[part].fd, name, &stat, &parent, name_here, self.cancel)?;
                    self.copied.insert(id, copy.clone());
                    copy
                }
            };
            if source != path {
                let problem = |errno| fail(&path, "making a hard link", errno);
                let (from, from_name) = split(&source);
                let from = self.own(from).map_err(problem)?;
                self.touch(to, &parent)?;
                linkat(&from, from_name, &parent, to_name, AtFlags::empty()).map_err(problem)?;
            }
        }
        Ok(())
    }

    fn was_moved(&self, path: &[u8]) -> bool {
        let mut prefix = path;
        while !prefix.is_empty() && !self.moved.contains(prefix) {
            prefix = split(prefix).0;
        }
        !prefix.is_empty()
    }

    /// What a link may point to: anything but a directory. A symbolic link is a file of its own here.
    fn lower_file(&self, node: &Node, name: &[u8]) -> Result<Option<(usize, FileStat)>> {
        for (part, dir) in node.iter().enumerate() {
            match at::stat(&dir.fd, name) {
                Ok(stat) if at::is_whiteout(&stat) => return Ok(None),
                Ok(stat) if at::is_dir(&stat) => return Err(refused(name, "a hard link to a directory")),
                Ok(stat) => return Ok(Some((part, stat))),
                Err(Errno::ENOENT) => {}
                Err(errno) => return Err(fail(name, "looking into a layer", errno)),
            }
        }
        Ok(None)
    }

    /// Whether the lower file is what the whole stack shows at `path`.
    fn shows(&self, path: &[u8], id: (usize, u64)) -> Result<bool> {
        let (dir, name) = split(path);
        let node = self.stack.node(dir, 0, &self.soft)?;
        for part in &node {
            match at::stat(&part.fd, name) {
                Ok(stat) => return Ok((part.layer, stat.st_ino) == id),
                Err(Errno::ENOENT) => {}
                Err(errno) => return Err(fail(path, "looking into a layer", errno)),
            }
        }
        Ok(false)
    }

    /// overlayfs lists the whiteouts of a directory that it does not merge with another: those go.
    fn whiteouts(&mut self) -> Result<()> {
        let mut last: Option<(Vec<u8>, bool, OwnedFd)> = None;
        for path in std::mem::take(&mut self.whiteouts) {
            self.check()?;
            let (dir, name) = split(&path);
            if last.as_ref().is_none_or(|(known, ..)| known != dir) {
                let merged = self.stack.node(dir, 0, &self.soft)?.len() > 1;
                let own = self.own(dir).map_err(|errno| fail(dir, "opening a directory", errno))?;
                last = Some((dir.to_vec(), merged, own));
            }
            let Some((_, merged, own)) = &last else { continue };
            if *merged || !at::stat(own, name).is_ok_and(|stat| at::is_whiteout(&stat)) {
                continue;
            }
            let stat = fstat(own).map_err(|errno| fail(dir, "looking at a directory", errno))?;
            self.times.entry(dir.to_vec()).or_insert_with(|| at::times(&stat));
            unlinkat(own, name, UnlinkatFlags::NoRemoveDir)
                .map_err(|errno| fail(&path, "removing a whiteout", errno))?;
        }
        Ok(())
    }

    /// overlayfs takes no notice of an opaque root: each lower name is hidden by itself instead.
    fn opaque_root(&mut self) -> Result<()> {
        let problem = |errno| fail(b"", "hiding the lower layers", errno);
        let own = at::open_dir(self.layer, b".").map_err(problem)?;
        if !at::is_opaque(&own).map_err(problem)? {
            return Ok(());
        }
        self.touch(b"", &own)?;
        for lower in self.stack.layers.iter().skip(1) {
            for name in at::names(lower).map_err(problem)? {
                self.check()?;
                let name = name.to_bytes();
                match at::stat(&own, name) {
                    Ok(stat) if at::is_dir(&stat) => {
                        let dir = at::open_dir(&own, name).map_err(problem)?;
                        at::set_xattr(dir, at::OPAQUE, b"y").map_err(problem)?;
                    }
                    Ok(_) => {}
                    Err(Errno::ENOENT) => at::make_whiteout(&own, name).map_err(problem)?,
                    Err(errno) => return Err(problem(errno)),
                }
            }
        }
        at::remove_xattr(&own, at::OPAQUE).map_err(problem)
    }

    fn finish(self) -> Result<()> {
        for (path, (atime, mtime)) in &self.times {
            match self.own(path) {
                Ok(fd) => futimens(&fd, atime, mtime).map_err(|errno| fail(path, "setting times", errno))?,
                Err(Errno::ENOENT) => {}
                Err(errno) => return Err(fail(path, "setting times", errno)),
            }
        }
        Ok(())
    }
}

fn conflict(path: &[u8], place: &[u8]) -> Error {
    let place = String::from_utf8_lossy(place);
    undecided(path, &format!("is {place} in a lower layer, to which this one writes as well"))
}

/// Owner, mode and attributes (but those of overlayfs); gives the times, to be set last.
fn copy_attributes(from: impl AsFd + Copy, to: impl AsFd + Copy) -> nix::Result<(TimeSpec, TimeSpec)> {
    let stat = fstat(from)?;
    fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    fchmod(to, Mode::from_bits_truncate(stat.st_mode))?;
    for name in at::xattrs(from)? {
        if name.to_bytes().starts_with(b"trusted.overlay.") {
            continue;
        }
        if let Some(value) = at::xattr(from, &name)? {
            match at::set_xattr(to, &name, &value) {
                Ok(()) | Err(Errno::EOPNOTSUPP) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
    Ok(at::times(&stat))
}

/// Copies a lower file of any kind but a directory under a new name.
fn copy_file(
    from: &OwnedFd,
    name: &[u8],
    stat: &FileStat,
    to: &OwnedFd,
    new: &[u8],
    cancel: &AtomicBool,
) -> Result<()> {
    let problem = |errno| fail(new, "copying a lower file", errno);
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    let (atime, mtime) = at::times(stat);
    match at::kind(stat) {
        SFlag::S_IFREG => {
            let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
            let source = File::from(openat(from, name, flags, Mode::empty()).map_err(problem)?);
            let copy = File::from(at::create(to, new).map_err(problem)?);
            copy_content(&source, &copy, cancel)
                .map_err(|error| Error::io("layer", String::from_utf8_lossy(new), "copying a lower file", &error))?;
            if cancel.load(Ordering::Relaxed) {
                return Err(cancelled());
            }
            copy_attributes(&source, &copy).map_err(problem)?;
            return futimens(&copy, &atime, &mtime).map_err(problem);
        }
        SFlag::S_IFLNK => {
            let target = readlinkat(from, name).map_err(problem)?.into_vec();
            symlinkat(&target[..], to, new).map_err(problem)?;
        }
        kind => {
            mknodat(to, new, kind, Mode::empty(), stat.st_rdev).map_err(problem)?;
        }
    }
    fchownat(to, new, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW).map_err(problem)?;
    if at::kind(stat) != SFlag::S_IFLNK {
        at::chmod(to, new, Mode::from_bits_truncate(stat.st_mode)).map_err(problem)?;
    }
    utimensat(to, new, &atime, &mtime, UtimensatFlags::NoFollowSymlink).map_err(problem)
}

/// Shares the blocks where the filesystem can, else copies (in the kernel, where that is possible).
fn copy_content(from: &File, to: &File, cancel: &AtomicBool) -> std::io::Result<()> {
    // SAFETY: FICLONE takes a descriptor and touches no memory of ours.
    if unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONE, from.as_raw_fd()) } == 0 {
        return Ok(());
    }
    while !cancel.load(Ordering::Relaxed) {
        let (mut source, mut copy) = (from.take(16 << 20), to);
        if std::io::copy(&mut source, &mut copy)? == 0 {
            return Ok(());
        }
    }
    Ok(())
}
