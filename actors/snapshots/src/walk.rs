//! Walking trees that others may have made as deep as they liked: with one descriptor per tree and no recursion.

use std::{
    collections::HashSet,
    ffi::{CStr, CString},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use cofferdam_metadata::records::snapshots::Usage;
use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat},
    sys::stat::{FileStat, Mode, SFlag, fstat, fstatat},
};

/// The type bits of a mode.
pub fn file_type(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

/// Opens the directory `name` in `at`, never through a symbolic link.
pub fn open_dir(at: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    openat(at, name, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
}

/// The names in a directory, without `.` and `..`.
pub fn names(at: BorrowedFd<'_>) -> Result<Vec<CString>, Errno> {
    let mut dir = Dir::from_fd(open_dir(at, c".")?)?;
    let mut names = Vec::new();
    for entry in dir.iter() {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

/// A place in a tree that can go down by name and up again through `..`, which is checked to be where it came from.
pub struct Cursor {
    here: OwnedFd,
    trail: Vec<(u64, u64)>,
}

impl Cursor {
    /// At the root of the tree `root`.
    pub fn new(root: BorrowedFd<'_>) -> Result<Cursor, Errno> {
        Ok(Cursor { here: open_dir(root, c".")?, trail: Vec::new() })
    }

    /// The directory that the cursor is in.
    pub fn here(&self) -> BorrowedFd<'_> {
        self.here.as_fd()
    }

    /// Into the directory `name`.
    pub fn down(&mut self, name: &CStr) -> Result<(), Errno> {
        let stat = fstat(&self.here)?;
        self.here = open_dir(self.here.as_fd(), name)?;
        self.trail.push((stat.st_dev, stat.st_ino));
        Ok(())
    }

    /// Back to where [`Cursor::down`] was called. ESTALE: someone moved the directory meanwhile.
    pub fn up(&mut self) -> Result<(), Errno> {
        let Some(from) = self.trail.pop() else { return Err(Errno::ENOENT) };
        let parent = open_dir(self.here.as_fd(), c"..")?;
        let stat = fstat(&parent)?;
        if (stat.st_dev, stat.st_ino) != from {
            return Err(Errno::ESTALE);
        }
        self.here = parent;
        Ok(())
    }
}

/// What a visitor makes of a directory.
pub enum Step {
    /// Visit what is in it, and call `leave` afterwards.
    Enter,
    /// Go on with the next name.
    Skip,
}

/// What is done at each name of a tree.
pub trait Visitor {
    /// Called with the directory that holds `name`. Only what is a directory may be entered.
    fn visit(&mut self, at: BorrowedFd<'_>, name: &CStr, stat: &FileStat) -> Result<Step, Errno>;
    /// Called when the directory `name` has been entered.
    fn entered(&mut self, _name: &CStr) -> Result<(), Errno> {
        Ok(())
    }
    /// Called when everything in an entered directory, or in the root, has been visited; `at` is that directory.
    fn leave(&mut self, _at: BorrowedFd<'_>) -> Result<(), Errno> {
        Ok(())
    }
}

/// Visits everything below `root`, a directory's own entry before what is in it. A name that vanishes meanwhile is
/// passed over: a container may be at work in the tree.
pub fn walk(root: BorrowedFd<'_>, visitor: &mut impl Visitor) -> Result<(), Errno> {
    let mut cursor = Cursor::new(root)?;
    let mut pending = vec![names(cursor.here())?];
    while let Some(level) = pending.last_mut() {
        let Some(name) = level.pop() else {
            pending.pop();
            visitor.leave(cursor.here())?;
            if !pending.is_empty() {
                cursor.up()?;
            }
            continue;
        };
        let stat = match fstatat(cursor.here(), name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => continue,
            other => other?,
        };
        if let Step::Enter = visitor.visit(cursor.here(), &name, &stat)? {
            match cursor.down(&name) {
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => continue,
                other => other?,
            }
            visitor.entered(&name)?;
            pending.push(names(cursor.here())?);
        }
    }
    Ok(())
}

struct Sum {
    usage: Usage,
    linked: HashSet<(u64, u64)>,
    since: Duration,
}

impl Visitor for Sum {
    fn visit(&mut self, _at: BorrowedFd<'_>, _name: &CStr, stat: &FileStat) -> Result<Step, Errno> {
        let directory = file_type(stat) == SFlag::S_IFDIR;
        let nanoseconds = u32::try_from(stat.st_ctime_nsec).unwrap_or(0);
        let own = Duration::new(u64::try_from(stat.st_ctime).unwrap_or(0), nanoseconds) >= self.since;
        // Only what has several names can be met twice.
        if own && (directory || stat.st_nlink == 1 || self.linked.insert((stat.st_dev, stat.st_ino))) {
            self.usage.inodes += 1;
            self.usage.size += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        }
        Ok(if directory { Step::Enter } else { Step::Skip })
    }
}

/// The space that the tree `root` takes, itself included; of what is in it that which has changed since a moment, counted
/// from 1970.
pub fn usage(root: BorrowedFd<'_>, since: Duration) -> Result<Usage, Errno> {
    let stat = fstat(root)?;
    let size = u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
    let mut sum = Sum { usage: Usage { size, inodes: 1 }, linked: HashSet::new(), since };
    walk(root, &mut sum)?;
    Ok(sum.usage)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn a_hard_link_counts_once_a_hole_not_at_all_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("a/b/f"), vec![1; 10_000]).unwrap();
        fs::hard_link(dir.path().join("a/b/f"), dir.path().join("g")).unwrap();
        symlink("/usr", dir.path().join("away")).unwrap();
        fs::File::create(dir.path().join("hole")).unwrap().set_len(1 << 30).unwrap();
        let usage = usage(fs::File::open(dir.path()).unwrap().as_fd(), Duration::ZERO).unwrap();
        assert_eq!(usage.inodes, 6);
        assert!((10_000..100_000).contains(&usage.size), "{usage:?}");
    }

    #[test]
    fn depth_costs_no_descriptors_and_no_stack() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::File::open(dir.path()).unwrap();
        let mut cursor = Cursor::new(root.as_fd()).unwrap();
        for _ in 0..1500 {
            nix::sys::stat::mkdirat(cursor.here(), c"d", Mode::from_bits_truncate(0o755)).unwrap();
            cursor.down(c"d").unwrap();
        }
        assert_eq!(usage(root.as_fd(), Duration::ZERO).unwrap().inodes, 1501);
        crate::trash::remove_tree(root.as_fd(), c"d", root.as_fd(), &|| false).unwrap();
        assert_eq!(usage(root.as_fd(), Duration::ZERO).unwrap().inodes, 1);
    }
}
