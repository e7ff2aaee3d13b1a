//! Directories of segments: files named after the first number in them, of which only the last is written, and the oldest go
//! whole. The journal of events and the audit log are such directories.
//!
//! This crate knows names, files and age. What is in a segment, and what of it is believed, is for who owns the directory:
//! it never reads one.

use std::{
    collections::VecDeque,
    fs::File,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileExt as _,
    },
    time::{Duration, Instant, SystemTime},
};

use cofferdam_types::{Error, Result, Timestamp};
use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{OFlag, openat},
    sys::stat::{Mode, fchmod},
    unistd::{UnlinkatFlags, unlinkat},
};

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Bytes of all segments together.
    pub bytes: u64,
    /// Age of the newest that a segment holds, as [`Clock`] counts time.
    pub age: Duration,
    /// A segment of this size is closed and the next begun.
    pub segment: u64,
}

/// Time as it passed while there was a daemon. It goes on from the youngest segment of the last one, and no faster than
/// time does: a clock that jumps ahead makes nothing old, whenever it does and however long it stays wrong. It is a
/// segment's time of modification.
#[derive(Debug)]
pub struct Clock {
    at_open: Timestamp,
    opened: Instant,
}

impl Clock {
    /// One that goes on from there.
    pub fn at(at_open: Timestamp) -> Clock {
        Clock { at_open, opened: Instant::now() }
    }

    /// What it says.
    pub fn now(&self) -> Timestamp {
        let passed = u64::try_from(self.opened.elapsed().as_nanos()).unwrap_or(u64::MAX);
        Timestamp(self.at_open.0.saturating_add(passed))
    }
}

/// What is known of a segment. None is empty.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// The first number in it.
    pub first: u64,
    /// Known of the last segment alone: those before it end where the next begins.
    pub last: u64,
    /// Its length.
    pub bytes: u64,
    /// When it was begun, by the clock, as `newest`; of a segment that was there before, the same.
    pub oldest: Timestamp,
    /// When it was written last.
    pub newest: Timestamp,
}

impl Segment {
    /// What a segment is called.
    pub fn name(first: u64) -> String {
        format!("{first:020}.seg")
    }

    /// The first number in the segment of this name, if it is one: they are counted from 1.
    pub fn of(name: &str) -> Option<u64> {
        let first = name.strip_suffix(".seg")?.parse().ok().filter(|first| *first > 0)?;
        (Segment::name(first) == name).then_some(first)
    }

    /// Whether more may be appended.
    pub fn is_open(&self, retention: &Retention, now: Timestamp) -> bool {
        let age = u128::from(now.0.saturating_sub(self.oldest.0));
        self.bytes < retention.segment && age <= retention.age.as_nanos() / 8
    }
}

/// The segment that is to go next, if one is: never the last.
pub fn over(index: &VecDeque<Segment>, retention: &Retention, now: Timestamp) -> Option<Segment> {
    let total: u64 = index.iter().map(|segment| segment.bytes).sum();
    let oldest = index.front().copied().filter(|_| index.len() > 1)?;
    let age = u128::from(now.0.saturating_sub(oldest.newest.0));
    (total > retention.bytes || age > retention.age.as_nanos()).then_some(oldest)
}

/// The directory.
#[derive(Debug)]
pub struct Directory {
    dir: OwnedFd,
    /// The kind of what it is, for errors.
    kind: &'static str,
}

impl Directory {
    /// Of something of this kind.
    pub fn new(dir: OwnedFd, kind: &'static str) -> Directory {
        Directory { dir, kind }
    }

    /// Begins a segment with these bytes, durably: whole or not at all. What is there of that name is in nobody's index.
    pub fn begin(&self, first: u64, bytes: &[u8], now: Timestamp) -> Result<File> {
        let file = self.open(first, OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_TRUNC)?;
        let written = file
            .write_all_at(bytes, 0)
            .and_then(|()| file.set_modified(system(now)))
            .and_then(|()| file.sync_all())
            .and_then(|()| self.sync());
        if let Err(error) = written {
            let _ = self.unlink(first);
            return Err(self.fault("begin a segment of", &error));
        }
        Ok(file)
    }

    /// The first numbers of all segments, in order.
    pub fn firsts(&self) -> Result<Vec<u64>> {
        let mut firsts = Vec::new();
        // A descriptor of its own: two lists that share a place in the directory would each miss names.
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut listing =
            Dir::openat(&self.dir, ".", flags, Mode::empty()).map_err(|e| self.fault("list", &e.into()))?;
        for entry in listing.iter() {
            let entry = entry.map_err(|e| self.fault("list", &e.into()))?;
            let name = entry.file_name().to_string_lossy();
            if let Some(first) = Segment::of(&name) {
                firsts.push(first);
            } else if name != "." && name != ".." {
                tracing::warn!(%name, "a file that is no segment lies in the directory of the {}", self.kind);
            }
        }
        firsts.sort_unstable();
        Ok(firsts)
    }

    /// Opens a segment; one that is made has mode 0600, whatever the umask.
    pub fn open(&self, first: u64, flags: OFlag) -> Result<File> {
        let name = Segment::name(first);
        let file = openat(&self.dir, name.as_str(), flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW, Mode::S_IRUSR)
            .map_err(|e| Error::io(self.kind, &name, "can't open the segment", &e.into()))?;
        if flags.contains(OFlag::O_CREAT) {
            let mode = Mode::S_IRUSR | Mode::S_IWUSR;
            fchmod(file.as_fd(), mode).map_err(|e| self.fault("set the mode of", &e.into()))?;
        }
        Ok(File::from(file))
    }

    /// Removes a segment; one that is gone is gone.
    pub fn unlink(&self, first: u64) -> Result<()> {
        match unlinkat(&self.dir, Segment::name(first).as_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(error) => Err(self.fault("remove a segment of", &error.into())),
        }
    }

    /// Has the names last.
    pub fn sync(&self) -> std::io::Result<()> {
        nix::unistd::fsync(&self.dir).map_err(Into::into)
    }

    /// An error of the whole.
    pub fn fault(&self, what: &str, error: &std::io::Error) -> Error {
        Error::io(self.kind, "", format!("can't {what} the {}", self.kind), error)
    }
}

/// When a segment was written last, by the clock.
pub fn modified(meta: &std::fs::Metadata) -> Timestamp {
    let since = meta.modified().ok().and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    Timestamp(since.map_or(0, |since| since.as_nanos() as u64))
}

/// The same for who writes it.
pub fn system(time: Timestamp) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(time.0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn names_are_those_of_segments_and_no_other() {
        assert_eq!(Segment::of(&Segment::name(7)), Some(7));
        for other in ["7.seg", "00000000000000000000.seg", "00000000000000000007", "x", "+0000000000000000007.seg"] {
            assert_eq!(Segment::of(other), None, "{other}");
        }
    }

    #[test]
    fn segments_are_listed_in_order_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let all = Directory::new(File::open(dir.path()).unwrap().into(), "log");
        for first in [300, 1, 20] {
            all.open(first, OFlag::O_RDWR | OFlag::O_CREAT).unwrap();
        }
        std::fs::write(dir.path().join("stray"), "").unwrap();
        for _ in 0..2 {
            assert_eq!(all.firsts().unwrap(), [1, 20, 300]);
        }
        let mode = std::fs::metadata(dir.path().join(Segment::name(1))).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        all.unlink(20).unwrap();
        all.unlink(20).unwrap();
        assert_eq!(all.firsts().unwrap(), [1, 300]);
        assert_eq!(all.open(20, OFlag::O_RDONLY).unwrap_err().code, cofferdam_types::Code::NotFound);
    }

    #[test]
    fn the_oldest_goes_and_never_the_last() {
        let retention = Retention { bytes: 100, age: Duration::from_nanos(800), segment: 40 };
        let segment = |first, bytes, time| {
            let time = Timestamp(time);
            Segment { first, last: first, bytes, oldest: time, newest: time }
        };
        let of = |all: &[Segment], now| over(&all.iter().copied().collect(), &retention, Timestamp(now));
        let all = [segment(1, 40, 10), segment(5, 40, 20), segment(9, 40, 30)];
        assert_eq!(of(&all, 30).map(|s| s.first), Some(1), "too many bytes");
        assert_eq!(of(&all[1..], 30).map(|s| s.first), None);
        assert_eq!(of(&all[1..], 821).map(|s| s.first), Some(5), "too old");
        assert_eq!(of(&all[2..], 99999).map(|s| s.first), None);
        assert!(segment(1, 39, 10).is_open(&retention, Timestamp(110)));
        assert!(!segment(1, 40, 10).is_open(&retention, Timestamp(10)), "full");
        assert!(!segment(1, 1, 10).is_open(&retention, Timestamp(111)), "an eighth of the age");
    }
}
