//! Whether a tree is still what it was made as: compared, name by name and byte by byte, with one that was made anew of the
//! same layer.
//!
//! What counts is what a container sees: names, types, modes, owners, devices, what links lead to, attributes, sizes and
//! bytes; of files, which have theirs from the layer, the time too. A directory's time is that of its making where no layer
//! says one.

use std::{
    collections::HashSet,
    ffi::{CStr, CString},
    fs::File,
    io::Read,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use cofferdam_sys::xattr;
use cofferdam_types::{Error, Result};
use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat, readlinkat},
    sys::stat::{FileStat, Mode, SFlag, fstat, fstatat},
};

use crate::walk::{Cursor, Step, Visitor, file_type, names, open_dir, walk};

const BUFFER: usize = 256 << 10;

/// Told how many bytes were just read; waits for as long as that is to take, or ends the comparison.
pub type Pace<'a> = &'a (dyn Fn(usize) -> Result<()> + Sync);

/// The first place at which `found` isn't what `expected` is, and what is wrong there. Neither is written to meanwhile.
pub fn difference(expected: BorrowedFd<'_>, found: BorrowedFd<'_>, pace: Pace<'_>) -> Result<Option<String>> {
    let failed = |e: Errno| Error::io("snapshot", "", "compare two trees", &e.into());
    let cursor = match Cursor::new(found) {
        Err(e) if is_damage(e) => return Ok(Some(format!("/: {}", e.desc()))),
        other => other.map_err(failed)?,
    };
    let mut compare = Compare {
        found: cursor,
        levels: Vec::new(),
        path: Vec::new(),
        linked: HashSet::new(),
        pace,
        outcome: Ok(None),
    };
    let whole = compare.root(expected).and_then(|()| walk(expected, &mut compare));
    match (compare.outcome, whole) {
        (Ok(None), Err(e)) => Err(failed(e)),
        (outcome, _) => outcome,
    }
}

/// Whether it says that the disk gives something back no more.
fn is_damage(e: Errno) -> bool {
    matches!(e, Errno::EIO | Errno::EUCLEAN | Errno::EBADMSG | Errno::ENODATA | Errno::ESTALE)
}

struct Compare<'a> {
    /// In the directory of the name that is looked at.
    found: Cursor,
    /// What is in each of the directories down to it, and was not met yet.
    levels: Vec<HashSet<CString>>,
    path: Vec<CString>,
    /// Files of several names that were compared, in both trees: they are read once.
    linked: HashSet<(u64, u64)>,
    pace: Pace<'a>,
    /// Why it ended before everything was compared.
    outcome: Result<Option<String>>,
}

impl Compare<'_> {
    /// Ends it: this is wrong.
    fn wrong<T>(&mut self, name: Option<&CStr>, what: &str) -> Result<T, Errno> {
        let parts = self.path.iter().map(CString::as_c_str).chain(name);
        let path: String = parts.map(|part| format!("/{}", part.to_string_lossy())).collect();
        self.outcome = Ok(Some(format!("{}: {what}", if path.is_empty() { "/" } else { &path })));
        Err(Errno::ECANCELED)
    }

    /// What was read of the tree that may be damaged.
    fn read<T>(&mut self, name: Option<&CStr>, result: Result<T, Errno>) -> Result<T, Errno> {
        match result {
            Err(Errno::ENOENT) => self.wrong(name, "is gone"),
            Err(e) if is_damage(e) => self.wrong(name, e.desc()),
            other => other,
        }
    }

    fn paced(&mut self, bytes: usize) -> Result<(), Errno> {
        (self.pace)(bytes).map_err(|error| {
            self.outcome = Err(error);
            Errno::ECANCELED
        })
    }

    fn root(&mut self, expected: BorrowedFd<'_>) -> Result<(), Errno> {
        let here = self.found.here().try_clone_to_owned().map_err(|_| Errno::EMFILE)?;
        let (want, have) = (fstat(expected)?, fstat(&here)?);
        self.facts(None, &want, &have)?;
        self.attributes(None, expected, here.as_fd())?;
        self.enter()
    }

    fn enter(&mut self) -> Result<(), Errno> {
        let listed = names(self.found.here());
        let listed = self.read(None, listed)?;
        self.levels.push(listed.into_iter().collect());
        Ok(())
    }

    fn facts(&mut self, name: Option<&CStr>, want: &FileStat, have: &FileStat) -> Result<(), Errno> {
        let kind = file_type(want);
        if kind != file_type(have) {
            return self.wrong(name, "is of another type");
        }
        if want.st_mode != have.st_mode {
            return self
                .wrong(name, &format!("has the mode {:o} and not {:o}", have.st_mode & 0o7777, want.st_mode & 0o7777));
        }
        if (want.st_uid, want.st_gid) != (have.st_uid, have.st_gid) {
            return self.wrong(name, "has another owner");
        }
        if matches!(kind, SFlag::S_IFCHR | SFlag::S_IFBLK) && want.st_rdev != have.st_rdev {
            return self.wrong(name, "is another device");
        }
        if matches!(kind, SFlag::S_IFREG | SFlag::S_IFLNK) && want.st_size != have.st_size {
            return self.wrong(name, &format!("has {} bytes and not {}", have.st_size, want.st_size));
        }
        if kind == SFlag::S_IFREG && (want.st_mtime, want.st_mtime_nsec) != (have.st_mtime, have.st_mtime_nsec) {
            return self.wrong(name, "was changed");
        }
        Ok(())
    }

    fn attributes(&mut self, name: Option<&CStr>, want: impl AsFd, have: impl AsFd) -> Result<(), Errno> {
        let wanted = attributes(want)?;
        let there = attributes(have);
        let there = self.read(name, there)?;
        if wanted == there { Ok(()) } else { self.wrong(name, "has other extended attributes") }
    }

    fn bytes(&mut self, name: &CStr, want: OwnedFd, have: OwnedFd) -> Result<(), Errno> {
        let (mut want, mut have) = (File::from(want), File::from(have));
        let (mut left, mut right) = (vec![0; BUFFER], vec![0; BUFFER]);
        loop {
            let count = fill(&mut want, &mut left)?;
            let got = fill(&mut have, &mut right);
            if self.read(Some(name), got)? != count || left[..count] != right[..count] {
                return self.wrong(Some(name), "has other bytes");
            }
            self.paced(count)?;
            if count < BUFFER {
                return Ok(());
            }
        }
    }
}

impl Visitor for Compare<'_> {
    fn visit(&mut self, at: BorrowedFd<'_>, name: &CStr, _stat: &FileStat) -> Result<Step, Errno> {
        if let Some(level) = self.levels.last_mut() {
            level.remove(name);
        }
        let want = fstatat(at, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let have = fstatat(self.found.here(), name, AtFlags::AT_SYMLINK_NOFOLLOW);
        let have = self.read(Some(name), have)?;
        self.facts(Some(name), &want, &have)?;
        let kind = file_type(&want);
        if kind == SFlag::S_IFLNK {
            let leads = readlinkat(at, name)?;
            let there = readlinkat(self.found.here(), name);
            if self.read(Some(name), there)? != leads {
                return self.wrong(Some(name), "leads elsewhere");
            }
        }
        if kind != SFlag::S_IFREG && kind != SFlag::S_IFDIR {
            self.paced(0)?;
            return Ok(Step::Skip);
        }
        let met = want.st_nlink > 1 && kind == SFlag::S_IFREG && !self.linked.insert((want.st_ino, have.st_ino));
        let file = |at: BorrowedFd<'_>| match kind {
            SFlag::S_IFDIR => open_dir(at, name),
            _ => openat(at, name, OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty()),
        };
        let want = file(at)?;
        let have = file(self.found.here());
        let have = self.read(Some(name), have)?;
        self.attributes(Some(name), &want, &have)?;
        if kind == SFlag::S_IFDIR {
            return Ok(Step::Enter);
        }
        if !met {
            self.bytes(name, want, have)?;
        }
        Ok(Step::Skip)
    }

    fn entered(&mut self, name: &CStr) -> Result<(), Errno> {
        let down = self.found.down(name);
        self.read(Some(name), down)?;
        self.path.push(name.to_owned());
        self.enter()
    }

    fn leave(&mut self, _at: BorrowedFd<'_>) -> Result<(), Errno> {
        let left = self.levels.pop().unwrap_or_default();
        if let Some(name) = left.iter().min() {
            return self.wrong(Some(name), "is in no layer");
        }
        if self.path.pop().is_some() {
            self.found.up()?;
        }
        Ok(())
    }
}

/// Those that a layer sets, and the one by which overlayfs knows what hides a directory. Others are its own affair, or the
/// host's.
fn attributes(fd: impl AsFd) -> Result<Vec<(CString, Vec<u8>)>, Errno> {
    let failed = |e: std::io::Error| e.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
    let counts = |name: &CString| {
        let name = name.to_bytes();
        name.starts_with(b"user.") || name == b"security.capability" || name == b"trusted.overlay.opaque"
    };
    let mut listed: Vec<_> = xattr::list(&fd).map_err(failed)?.into_iter().filter(counts).collect();
    listed.sort();
    let valued = |name: CString| {
        let value = xattr::get(&fd, &name).map_err(failed)?;
        Ok((name, value.unwrap_or_default()))
    };
    listed.into_iter().map(valued).collect()
}

/// Reads until the buffer is full or the file ends.
fn fill(file: &mut File, buffer: &mut [u8]) -> Result<usize, Errno> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read(&mut buffer[done..]) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.raw_os_error().map_or(Errno::EIO, Errno::from_raw)),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{PermissionsExt as _, chown, symlink},
        path::Path,
        sync::atomic::{AtomicUsize, Ordering},
        time::{Duration, SystemTime},
    };

    use super::*;

    const TIME: Duration = Duration::from_secs(1_000_000_000);

    fn file(path: &Path, text: &str) {
        fs::write(path, text).unwrap();
        File::options().write(true).open(path).unwrap().set_modified(SystemTime::UNIX_EPOCH + TIME).unwrap();
    }

    /// A tree with one of each.
    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        fs::create_dir_all(at("etc/deep")).unwrap();
        file(&at("etc/passwd"), "root:x:0:0");
        file(&at("etc/deep/empty"), "");
        file(&at("long"), &"x".repeat(BUFFER + 7));
        fs::hard_link(at("long"), at("etc/same")).unwrap();
        symlink("etc", at("link")).unwrap();
        let device = nix::sys::stat::makedev(1, 3);
        nix::sys::stat::mknod(&at("null"), SFlag::S_IFCHR, Mode::from_bits_truncate(0o600), device).unwrap();
        dir
    }

    fn compared(expected: &Path, found: &Path, pace: Pace<'_>) -> Result<Option<String>> {
        let (expected, found) = (File::open(expected).unwrap(), File::open(found).unwrap());
        difference(expected.as_fd(), found.as_fd(), pace)
    }

    #[test]
    fn each_difference_is_named_and_none_is_imagined() {
        type Harm = (&'static str, &'static str, fn(&Path));
        let harms: [Harm; 13] = [
            ("/etc/passwd", "has other bytes", |at| file(&at.join("etc/passwd"), "root:x:0:1")),
            ("/etc/passwd", "has 3 bytes and not 10", |at| file(&at.join("etc/passwd"), "new")),
            ("/etc/passwd", "was changed", |at| fs::write(at.join("etc/passwd"), "root:x:0:0").unwrap()),
            ("/etc/passwd", "is gone", |at| fs::remove_file(at.join("etc/passwd")).unwrap()),
            ("/etc/deep/more", "is in no layer", |at| file(&at.join("etc/deep/more"), "")),
            ("/etc/deep", "is of another type", |at| {
                fs::remove_dir_all(at.join("etc/deep")).unwrap();
                file(&at.join("etc/deep"), "");
            }),
            ("/etc/deep/empty", "has the mode 4755 and not 644", |at| {
                fs::set_permissions(at.join("etc/deep/empty"), fs::Permissions::from_mode(0o4755)).unwrap();
            }),
            ("/long", "has other bytes", |at| {
                fs::remove_file(at.join("long")).unwrap();
                file(&at.join("long"), &format!("{}y", "x".repeat(BUFFER + 6)));
            }),
            ("/link", "leads elsewhere", |at| {
                fs::remove_file(at.join("link")).unwrap();
                symlink("tmp", at.join("link")).unwrap();
            }),
            ("/null", "has another owner", |at| chown(at.join("null"), Some(7), None).unwrap()),
            ("/null", "is another device", |at| {
                fs::remove_file(at.join("null")).unwrap();
                let device = nix::sys::stat::makedev(1, 5);
                nix::sys::stat::mknod(&at.join("null"), SFlag::S_IFCHR, Mode::from_bits_truncate(0o600), device)
                    .unwrap();
            }),
            ("/etc", "has other extended attributes", |at| {
                xattr::set(File::open(at.join("etc")).unwrap(), c"trusted.overlay.opaque", b"y").unwrap();
            }),
            ("/", "has the mode 777 and not 700", |at| {
                fs::set_permissions(at, fs::Permissions::from_mode(0o777)).unwrap();
            }),
        ];
        for (path, what, harm) in harms {
            let (expected, found) = (tree(), tree());
            let read = AtomicUsize::new(0);
            let pace = |bytes| {
                read.fetch_add(bytes, Ordering::Relaxed);
                Ok(())
            };
            assert_eq!(compared(expected.path(), found.path(), &pace).unwrap(), None);
            assert_eq!(read.load(Ordering::Relaxed), BUFFER + 17, "each byte of a file counts, once");
            harm(found.path());
            assert_eq!(compared(expected.path(), found.path(), &pace).unwrap(), Some(format!("{path}: {what}")));
        }
    }

    #[test]
    fn who_sets_the_pace_may_end_it() {
        let dir = tree();
        let stop = |_| Err(Error::cancelled("layer", "", "enough"));
        assert_eq!(compared(dir.path(), dir.path(), &stop).unwrap_err().code, cofferdam_types::Code::Cancelled);
    }
}
