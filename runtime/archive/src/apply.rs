//! Applying a layer: what each entry does to the tree.

use std::{
    collections::HashSet,
    ffi::OsStr,
    hash::{BuildHasher, RandomState},
    io::Read,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::PathBuf,
    rc::Rc,
    sync::atomic::{AtomicBool, Ordering},
};

use cofferdam_types::{Algorithm, Code, Digest, Error, Result};
use nix::{
    errno::Errno,
    fcntl::AtFlags,
    sys::{
        stat::{Mode, SFlag, UtimensatFlags, fchmod, fstat, makedev, mknodat, utimensat},
        time::TimeSpec,
    },
    unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, getegid, geteuid, linkat, symlinkat, unlinkat},
};

use crate::{
    Applied, ApplyOptions, LowerLink, at,
    at::fail,
    fill::{Attributes, Filler, Made, SMALL, may_set, write_all},
    flush::Flusher,
    header::{exhausted, refused},
    merged::undecided,
    put::stays,
    reader::{Entry, Reader, Type},
    stream::{cancelled, pump},
    tree::{Found, Place, Tree, below, clean, join, split},
};

const WHITEOUT: &[u8] = b".wh.";
const META: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// A layer with no more entries than these is unpacked without another thread.
const FEW: u64 = 256;
/// How often an entry is tried again when somebody else puts something in its place.
const TRIES: usize = 64;

/// Applies the layer that `source` gives to the directory `root`.
///
/// Errors: `data_loss` for a damaged or ambiguous archive, `invalid_argument` for what no archive may do,
/// `resource_exhausted` for one of the limits or a full disk, `cancelled` once `cancel` is set (looked at between
/// entries and chunks; a source that blocks must be woken by whoever owns it).
pub fn apply(
    root: BorrowedFd,
    source: impl Read + Send,
    options: &ApplyOptions,
    cancel: &AtomicBool,
) -> Result<Applied> {
    if options.detached && !options.overlay {
        return Err(Error::invalid("layer", "", "only an overlay layer can be applied detached"));
    }
    let (mut applied, hashed) = pump(source, options.compression, &options.limits, cancel, |chunks| {
        let mut reader = Reader::new(chunks, &options.limits);
        let mut run = Apply {
            tree: Tree::new(root, options),
            options,
            cancel,
            unpacked: HashSet::new(),
            hasher: RandomState::new(),
            entries: 0,
            dropped_xattrs: 0,
            born: if options.detached { born(root)? } else { None },
            filler: None,
            flusher: if options.flush { Some(Flusher::start(root)?) } else { None },
        };
        while let Some(entry) = reader.next()? {
            let entry = match &options.put {
                Some(put) => put.entry(entry)?,
                None => Some(entry),
            };
            // Its bytes, if any, are passed over.
            let Some(entry) = entry else { continue };
            match run.entry(&entry, &mut reader) {
                // The rest is still read: what it was must be known before it is read again, in place.
                Err(error) if error.code == Code::FailedPrecondition && options.detached => {
                    while reader.next()?.is_some() {}
                    let mut applied = run.nothing();
                    applied.undecided = Some(error);
                    return Ok(applied);
                }
                result => result?,
            }
        }
        run.finish()
    })?;
    applied.diff_id = hashed.diff_id;
    applied.size = hashed.size;
    Ok(applied)
}

/// Whom what is made in an empty tree belongs to: us, if its root hands down no other group.
fn born(root: BorrowedFd) -> Result<Option<(u32, u32)>> {
    let stat = fstat(root).map_err(|errno| fail(b"", "looking at the tree", errno))?;
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let plain = stat.st_gid == gid && stat.st_mode & Mode::S_ISGID.bits() == 0;
    Ok(plain.then_some((uid, gid)))
}

struct Apply<'a> {
    tree: Tree<'a>,
    options: &'a ApplyOptions,
    cancel: &'a AtomicBool,
    /// In place: hashes of the paths that this archive made, which an opaque marker spares.
    unpacked: HashSet<u64>,
    hasher: RandomState,
    entries: u64,
    dropped_xattrs: u64,
    /// Whom new things in the tree belong to by themselves, while that is sure.
    born: Option<(u32, u32)>,
    /// Once there were more than a few entries.
    filler: Option<Filler>,
    /// Where the caller syncs it all.
    flusher: Option<Flusher>,
}

impl Apply<'_> {
    fn entry(&mut self, entry: &Entry, reader: &mut Reader) -> Result<()> {
        if self.cancel.load(Ordering::Relaxed) {
            return Err(cancelled());
        }
        let limits = &self.options.limits;
        self.entries += 1;
        if let Some(flusher) = &mut self.flusher {
            flusher.entry();
        }
        if self.entries + self.tree.made > limits.max_entries {
            return Err(exhausted(&entry.path, format!("the layer has more than {} entries", limits.max_entries)));
        }
        if entry.path.len() > limits.max_path || entry.link.len() > limits.max_path {
            return Err(exhausted(&entry.path, format!("a path is longer than {} bytes", limits.max_path)));
        }
        let path = clean(&entry.path);
        if path.split(|b| *b == b'/').count() > limits.max_depth {
            return Err(exhausted(&path, format!("a path is deeper than {} directories", limits.max_depth)));
        }
        let (dir, name) = split(&path);
        if name.is_empty() {
            // The root itself is the caller's.
            return Ok(());
        }
        if self.options.put.is_none() {
            if name == OPAQUE {
                return self.opaque(dir);
            }
            if path.starts_with(META) || name.starts_with(META) {
                // What aufs kept for itself.
                return Ok(());
            }
            if let Some(name) = name.strip_prefix(WHITEOUT) {
                return self.whiteout(&path, dir, name);
            }
        }
        let parent = self.tree.make(dir)?;
        let real = join(&parent.real, name);
        if real.len() > limits.max_path || real.split(|b| *b == b'/').count() > limits.max_depth {
            return Err(exhausted(&real, "links lead to a path that is too long or too deep"));
        }
        self.tree.touch(&parent.fd, &parent.real)?;
        match entry.kind {
            Type::File => self.file(entry, reader, &parent, name, &real)?,
            Type::Dir => self.dir(entry, &path, &parent, name, &real)?,
            Type::Symlink => self.symlink(entry, &parent, name, &real)?,
            Type::Link => self.link(entry, &parent, name, &real)?,
            Type::Char | Type::Block | Type::Fifo => self.node(entry, &parent, name, &real)?,
        }
        if !self.options.overlay {
            self.unpacked.insert(self.hasher.hash_one(&real));
        }
        Ok(())
    }

    /// Calls `create` until nothing else has the name, removing what has.
    fn replace<T>(
        &mut self,
        parent: &Place,
        name: &[u8],
        real: &[u8],
        mut create: impl FnMut(BorrowedFd) -> nix::Result<T>,
    ) -> Result<T> {
        for _ in 0..TRIES {
            match create(parent.fd.as_fd()) {
                Err(Errno::EEXIST) => self.remove(parent, name, real)?,
                Ok(made) => {
                    // A link that was waiting for its lower file stood here, if anything.
                    if self.options.detached && self.tree.notes().get(real).is_some_and(|note| note.link.is_some()) {
                        self.tree.forget(real);
                    }
                    return Ok(made);
                }
                Err(errno) => return Err(fail(real, "making an entry", errno)),
            }
        }
        Err(Error::unavailable(
            "layer",
            String::from_utf8_lossy(real),
            "something else keeps writing to this directory",
        ))
    }

    fn remove(&mut self, parent: &Place, name: &[u8], real: &[u8]) -> Result<()> {
        let stat = match at::stat(&parent.fd, name) {
            Ok(stat) => stat,
            Err(Errno::ENOENT) => {
                self.tree.forget(real);
                return Ok(());
            }
            Err(errno) => return Err(fail(real, "looking at what is replaced", errno)),
        };
        if at::is_dir(&stat) && self.options.put.is_some() {
            return stays(real, true);
        }
        if at::is_dir(&stat) && self.options.detached && self.tree.has_unsure(real) {
            return Err(undecided(real, "has entries, perhaps elsewhere through a link, and is then replaced"));
        }
        at::remove(parent.fd.as_fd(), name).map_err(|errno| fail(real, "removing what is replaced", errno))?;
        self.tree.forget(real);
        if matches!(at::kind(&stat), SFlag::S_IFDIR | SFlag::S_IFLNK) {
            self.tree.moved();
        }
        Ok(())
    }

    fn file(&mut self, entry: &Entry, reader: &mut Reader, parent: &Place, name: &[u8], real: &[u8]) -> Result<()> {
        let fd = self.replace(parent, name, real, |dir| at::create(dir, name))?;
        let (attributes, size) = (Attributes::of(entry, self.born), reader.left());
        if size <= SMALL && self.entries > FEW {
            if let Some(flusher) = &mut self.flusher {
                flusher.wrote(size);
            }
            let mut bytes = Vec::with_capacity(size as usize);
            while let Some(more) = reader.data()? {
                bytes.extend_from_slice(more);
            }
            let made = Made { fd, bytes, attributes, real: real.to_vec() };
            return match &mut self.filler {
                Some(filler) => filler.give(made),
                none => none.insert(Filler::start()?).give(made),
            };
        }
        while let Some(bytes) = reader.data()? {
            if self.cancel.load(Ordering::Relaxed) {
                return Err(cancelled());
            }
            write_all(&fd, bytes, real)?;
            if let Some(flusher) = &mut self.flusher {
                flusher.wrote(bytes.len() as u64);
            }
        }
        self.dropped_xattrs += attributes.set(&fd, real)?;
        attributes.set_times(&fd, real)
    }

    fn dir(&mut self, entry: &Entry, path: &[u8], parent: &Place, name: &[u8], real: &[u8]) -> Result<()> {
        let there = at::stat(&parent.fd, name).is_ok_and(|stat| at::is_dir(&stat));
        let fd = if there {
            let fd = at::open_dir(&parent.fd, name).map_err(|errno| fail(real, "opening a directory", errno))?;
            // The entry says all that there is to say of a directory, so what an older one said goes.
            for old in at::xattrs(&fd).map_err(|errno| fail(real, "listing extended attributes", errno))? {
                if may_set(old.to_bytes()) && self.options.put.is_none() {
                    at::remove_xattr(&fd, &old).map_err(|errno| fail(real, "removing an extended attribute", errno))?;
                }
            }
            fd
        } else if self.options.put.is_some() && at::stat(&parent.fd, name).is_ok() {
            return stays(real, false);
        } else {
            let waiting = self.tree.notes().get(real).is_some_and(|note| note.link.is_some());
            let mut replaced = waiting;
            let fd = self.replace(parent, name, real, |dir| {
                at::make_dir(dir, name).inspect_err(|errno| replaced |= *errno == Errno::EEXIST)
            })?;
            // A directory below that had been deleted or replaced must not show through the new one.
            if replaced && self.options.overlay && !self.tree.is_hidden(&parent.real) {
                at::set_xattr(&fd, at::OPAQUE, b"y").map_err(|errno| fail(real, "making a directory opaque", errno))?;
                self.tree.note(real, |note| note.opaque = true)?;
            }
            fd
        };
        let born = if there { None } else { self.born };
        self.dropped_xattrs += Attributes::of(entry, born).set(&fd, real)?;
        // What is made in it may get its group instead of ours: by the bit, or on a file system that is mounted so.
        if entry.mode.contains(Mode::S_ISGID) || self.born.is_some_and(|(_, gid)| gid != entry.gid) {
            self.born = None;
        }
        self.tree.note(real, |note| {
            note.times = Some((entry.atime, entry.mtime));
            note.late |= std::mem::take(&mut note.implicit);
        })?;
        self.tree.keep(path, Rc::new(Place { fd, real: real.to_vec() }));
        Ok(())
    }

    fn symlink(&mut self, entry: &Entry, parent: &Place, name: &[u8], real: &[u8]) -> Result<()> {
        if entry.link.is_empty() {
            return Err(refused(real, "a symbolic link has no target"));
        }
        self.replace(parent, name, real, |dir| symlinkat(&entry.link[..], dir, name))?;
        self.unopened(entry, parent, name, real)
    }

    fn node(&mut self, entry: &Entry, parent: &Place, name: &[u8], real: &[u8]) -> Result<()> {
        let kind = match entry.kind {
            Type::Char => SFlag::S_IFCHR,
            Type::Block => SFlag::S_IFBLK,
            _ => SFlag::S_IFIFO,
        };
        if kind != SFlag::S_IFIFO && !self.options.devices {
            return Err(refused(real, "the layer has a device node, which this namespace does not allow"));
        }
        if kind == SFlag::S_IFCHR && entry.device == (0, 0) {
            return Err(refused(real, "character device 0:0 is overlayfs' whiteout and can't be an entry"));
        }
        let device = makedev(entry.device.0, entry.device.1);
        self.replace(parent, name, real, |dir| mknodat(dir, name, kind, Mode::empty(), device))?;
        self.unopened(entry, parent, name, real)?;
        at::chmod(&parent.fd, name, entry.mode).map_err(|errno| fail(real, "setting the mode", errno))
    }

    /// Owner and times of what can't be opened. No attribute that an image may set is allowed there.
    fn unopened(&mut self, entry: &Entry, parent: &Place, name: &[u8], real: &[u8]) -> Result<()> {
        self.dropped_xattrs += entry.xattrs.len() as u64;
        let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        if self.born != Some((entry.uid, entry.gid)) {
            fchownat(&parent.fd, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)
                .map_err(|errno| fail(real, "setting the owner", errno))?;
        }
        set_times(&parent.fd, name, &entry.atime, &entry.mtime, real)
    }

    /// A hard link carries no attributes of its own: its target has them already.
    fn link(&mut self, entry: &Entry, parent: &Place, name: &[u8], real: &[u8]) -> Result<()> {
        let target = clean(&entry.link);
        let (dir, last) = split(&target);
        if last.is_empty() {
            return Err(refused(real, "a hard link has no target, or the root"));
        }
        let (target, hidden) = match self.tree.find(dir)? {
            Found::Missing { real, hidden } => (join(&real, last), hidden),
            Found::Blocked => return Err(refused(real, "a hard link's target lies in something that is no directory")),
            Found::Place(place) => {
                let target = join(&place.real, last);
                match at::stat(&place.fd, last) {
                    Ok(stat) if self.options.overlay && at::is_whiteout(&stat) => (target, true),
                    // A directory that no entry named may be a link to one below.
                    Ok(stat) if at::is_dir(&stat) && self.options.detached && self.tree.is_implicit(&target) => {
                        let hidden = self.tree.is_hidden(&place.real);
                        (target, hidden)
                    }
                    Ok(stat) if at::is_dir(&stat) => return Err(refused(real, "a hard link to a directory")),
                    Ok(_) if target == real => return Err(refused(real, "a hard link to itself")),
                    Ok(_) => return self.link_to(&place, last, parent, name, real),
                    Err(Errno::ENOENT) => {
                        let hidden = self.tree.is_hidden(&place.real);
                        (target, hidden)
                    }
                    Err(errno) => return Err(fail(real, "looking at a hard link's target", errno)),
                }
            }
        };
        if !self.options.detached || hidden {
            let id = String::from_utf8_lossy(real);
            let target = String::from_utf8_lossy(&target);
            return Err(Error::not_found("layer", id, format!("a hard link's target {target} does not exist")));
        }
        // A link to a link that waits itself shares the latter's target.
        let waiting = self.tree.notes().get(&target).and_then(|note| note.link.clone());
        let target = waiting.map_or(target, |(target, _)| target);
        if target == real {
            return Err(refused(real, "a hard link to itself"));
        }
        self.remove(parent, name, real)?;
        let position = self.entries;
        self.tree.note(real, |note| note.link = Some((target, position)))
    }

    fn link_to(&mut self, place: &Place, last: &[u8], parent: &Place, name: &[u8], real: &[u8]) -> Result<()> {
        self.replace(parent, name, real, |dir| linkat(&place.fd, last, dir, name, AtFlags::empty()))
    }

    fn whiteout(&mut self, path: &[u8], dir: &[u8], name: &[u8]) -> Result<()> {
        if matches!(name, b"" | b"." | b"..") {
            return Err(refused(path, "a whiteout names no file"));
        }
        // Where a directory became a file, some tools write the file and then whiteouts of what was in the directory:
        // that is gone already.
        let Some(parent) = self.tree.make_unless_blocked(dir)? else { return Ok(()) };
        let real = join(&parent.real, name);
        self.tree.touch(&parent.fd, &parent.real)?;
        self.remove(&parent, name, &real)?;
        if self.options.overlay && !self.tree.is_hidden(&parent.real) {
            at::make_whiteout(&parent.fd, name).map_err(|errno| fail(&real, "making a whiteout", errno))?;
            self.tree.note(&real, |note| note.whiteout = true)?;
        }
        Ok(())
    }

    fn opaque(&mut self, dir: &[u8]) -> Result<()> {
        let place = self.tree.make(dir)?;
        if !self.options.overlay {
            self.tree.touch(&place.fd, &place.real)?;
            let fd = at::open_dir(&place.fd, b".").map_err(|errno| fail(&place.real, "clearing a directory", errno))?;
            self.clear(&fd, &place.real, 0)?;
            self.tree.moved();
            return Ok(());
        }
        if self.tree.is_hidden(&place.real) {
            return Ok(());
        }
        if self.options.detached && self.tree.has_unsure_below(&place.real) {
            return Err(undecided(
                &place.real,
                "has entries, perhaps elsewhere through a link, and is then made opaque",
            ));
        }
        at::open_dir(&place.fd, b".")
            .and_then(|fd| at::set_xattr(fd, at::OPAQUE, b"y"))
            .map_err(|errno| fail(&place.real, "making a directory opaque", errno))?;
        self.tree.note(&place.real, |note| note.opaque = true)?;
        // What was hidden one by one is hidden as a whole now. overlayfs lists the whiteouts of a directory that it
        // does not merge, so they go.
        let mut gone = Vec::new();
        for (path, note) in self.tree.notes().range_mut(below(&place.real)) {
            if std::mem::take(&mut note.whiteout) {
                gone.push(path.clone());
            }
        }
        for path in gone {
            let (dir, name) = split(&path);
            let place = self.tree.make(dir)?;
            unlinkat(&place.fd, name, UnlinkatFlags::NoRemoveDir)
                .map_err(|errno| fail(&path, "removing a whiteout", errno))?;
        }
        Ok(())
    }

    /// Removes what this archive did not make. True if something remains.
    fn clear(&mut self, dir: &OwnedFd, real: &[u8], depth: usize) -> Result<bool> {
        if depth > 2 * self.options.limits.max_depth {
            return Err(exhausted(real, "a directory to clear is too deep"));
        }
        let mut kept = false;
        for name in at::names(dir).map_err(|errno| fail(real, "listing a directory", errno))? {
            let name = name.to_bytes();
            let child = join(real, name);
            let ours = self.unpacked.contains(&self.hasher.hash_one(&child));
            let stat = at::stat(dir, name).map_err(|errno| fail(&child, "clearing a directory", errno))?;
            if !at::is_dir(&stat) {
                if !ours {
                    at::remove(dir.as_fd(), name).map_err(|errno| fail(&child, "removing a file", errno))?;
                }
                kept |= ours;
                continue;
            }
            let fd = at::open_dir(dir, name).map_err(|errno| fail(&child, "clearing a directory", errno))?;
            let inside = self.clear(&fd, &child, depth + 1)?;
            if !ours && !inside {
                unlinkat(dir, name, UnlinkatFlags::RemoveDir)
                    .map_err(|errno| fail(&child, "removing a directory", errno))?;
                self.tree.forget(&child);
            } else if !ours {
                // It stays only because an entry lies in it: as if it had been made for that.
                reset(&fd).map_err(|errno| fail(&child, "clearing a directory", errno))?;
                self.tree.note(&child, |note| note.times = None)?;
            }
            kept |= ours || inside;
        }
        Ok(kept)
    }

    fn nothing(&self) -> Applied {
        Applied {
            diff_id: Digest::of(Algorithm::Sha256, b""),
            size: 0,
            entries: self.entries,
            dropped_xattrs: self.dropped_xattrs,
            implicit_parents: Vec::new(),
            lower_links: Vec::new(),
            whiteouts: Vec::new(),
            late_directories: Vec::new(),
            undecided: None,
        }
    }

    fn finish(mut self) -> Result<Applied> {
        if let Some(mut filler) = self.filler.take() {
            self.dropped_xattrs += filler.end()?;
        }
        let mut applied = self.nothing();
        for (path, note) in std::mem::take(self.tree.notes()) {
            if let Some((atime, mtime)) = note.times {
                let (dir, name) = split(&path);
                let place = self.tree.make(dir)?;
                set_times(&place.fd, name, &atime, &mtime, &path)?;
            }
            let path = PathBuf::from(OsStr::from_bytes(&path));
            if note.implicit {
                applied.implicit_parents.push(path.clone());
            }
            if note.late {
                applied.late_directories.push(path.clone());
            }
            if note.whiteout {
                applied.whiteouts.push(path.clone());
            }
            if let Some((target, position)) = note.link {
                let target = PathBuf::from(OsStr::from_bytes(&target));
                applied.lower_links.push(LowerLink { path, target, position });
            }
        }
        applied.lower_links.sort_by_key(|link| link.position);
        Ok(applied)
    }
}

fn set_times(dir: &OwnedFd, name: &[u8], atime: &TimeSpec, mtime: &TimeSpec, real: &[u8]) -> Result<()> {
    utimensat(dir, name, atime, mtime, UtimensatFlags::NoFollowSymlink)
        .map_err(|errno| fail(real, "setting times", errno))
}

fn reset(dir: &OwnedFd) -> nix::Result<()> {
    if at::is_dir(&fstat(dir)?) {
        fchown(dir, Some(Uid::from_raw(0)), Some(Gid::from_raw(0)))?;
        fchmod(dir, Mode::from_bits_truncate(0o755))?;
        for name in at::xattrs(dir)? {
            if may_set(name.to_bytes()) {
                at::remove_xattr(dir, &name)?;
            }
        }
    }
    Ok(())
}
