//! What every start does with what the daemon before it has left.

use std::{collections::BTreeMap, ffi::CString, os::fd::AsFd as _};

use cofferdam_types::{Error, Result};
use nix::{
    errno::Errno,
    fcntl::{RenameFlags, renameat2},
    sys::stat::{Mode, mkdirat},
};

use super::{Area, Found, Known, lock, make_scratch, name, numbers, sync};
use crate::walk::{names, open_dir};

/// So many are told of one by one.
const TOLD: usize = 20;

impl Area {
    /// Directories without a record go to the trash, records without a directory get it again (see the module above) or are
    /// reported as lost. `known` is asked after the listing, so that what is made meanwhile is not taken for garbage. What
    /// was there before the daemon is not committed while this goes on, and one sweep goes on at a time. Returns the ids of
    /// lost trees.
    pub fn sweep(&self, known: impl FnOnce() -> Result<BTreeMap<u64, Known>>) -> Result<Vec<u64>> {
        self.sweep_unfinished()?;
        let (driver, found) = (self.driver.name(), numbers(self.dir.as_fd())?);
        let live = lock(&self.live).clone();
        let known = known()?;
        let old = |id: &u64| !self.is_new(*id) && !live.contains(id);
        let mut told = 0..TOLD;
        for id in found.iter().filter(|id| old(id) && !known.contains_key(id)) {
            // What is counted is somebody's, though nobody is found who says so.
            if (self.referenced)(*id).unwrap_or(true) {
                tracing::error!(
                    driver,
                    id,
                    "a directory stays: snapshots are counted for it, and none is found that has it"
                );
                continue;
            }
            if told.next().is_some() {
                tracing::info!(driver, id, "a directory without a record goes to the trash");
            }
            match self.discard(*id) {
                // Mounts that nobody knows of may be in the way of others.
                Err(error) if self.driver.attaches() => return Err(error),
                Err(error) => tracing::error!(driver, id, %error, "it stays until the next start"),
                Ok(()) => {}
            }
        }
        let mut lost = Vec::new();
        for (id, record) in known.into_iter().filter(|(id, record)| old(id) && *record != Known::Kept) {
            let there = found.contains(&id);
            let settled = if there { self.settle(id, record == Known::Content) } else { Ok(()) };
            if let Err(error) = &settled {
                tracing::error!(driver, id, %error, "can't bring a directory into its form");
            }
            if there && settled.is_ok() && self.is_there(id) {
                continue;
            }
            match record {
                Known::Nothing | Known::Kept => {}
                Known::Content => match self.look(id) {
                    Found::There => {}
                    Found::Gone => lost.push(id),
                    Found::Closed(error) => {
                        tracing::error!(driver, id, %error, "the tree of a committed snapshot can't be opened; it stays");
                    }
                },
                Known::Scratch(parent) => {
                    let restored = self.restore(id, parent);
                    // On a full disk, or one that fails, the others start all the same; and this one when there is room.
                    if let Some((error, _)) = restored.err().zip(told.next()) {
                        tracing::error!(driver, id, %error, "an active snapshot has no directory");
                    }
                }
            }
        }
        Ok(lost)
    }

    /// Whether it was made by this daemon.
    pub fn is_new(&self, id: u64) -> bool {
        id >= self.first
    }

    /// Whether a tree is there.
    pub fn is_there(&self, id: u64) -> bool {
        self.tree(id).is_ok()
    }

    /// Makes the directory of an active snapshot again, if it is not there. It may copy the parent's tree: that takes a while, and
    /// what a crash leaves of it must not be taken for the whole, as the record is there already.
    pub fn restore(&self, id: u64, parent: Option<u64>) -> Result<()> {
        if self.is_there(id) {
            return Ok(());
        }
        // The sweep and whoever wants to use it may come to it at once.
        let _restoring = lock(&self.restoring);
        if self.is_there(id) {
            return Ok(());
        }
        let driver = self.driver.name();
        tracing::info!(driver, id, "an active snapshot lost its directory: made again, empty");
        let lost = match parent.map(|parent| (parent, self.look(parent))) {
            None | Some((_, Found::There)) => None,
            Some((parent, Found::Gone)) => Some(parent),
            // Empty, it would lack for good what is in a parent that can be opened again later.
            Some((parent, Found::Closed(error))) => {
                return Err(error.context(format!("the tree of its parent, {parent}, can't be opened")));
            }
        };
        if let Some(lost) = lost {
            // That is reported by itself and must not keep this one from starting.
            tracing::error!(driver, id, lost, "the tree of its parent is lost: it can't be filled from that");
        }
        self.remake(id, parent.filter(|_| lost.is_none())).inspect_err(|_| {
            if let Err(error) = self.trash.take(self.dir.as_fd(), &unfinished(id)) {
                tracing::warn!(driver, id, %error, "what there is of its directory stays until the next start");
            }
        })
    }

    /// Makes the tree elsewhere, and puts it in its place when it is whole and on disk. What is in that place is left alone.
    fn remake(&self, id: u64, parent: Option<u64>) -> Result<()> {
        let failed = |e: Errno| Error::io("snapshot", id, "put a tree in its place", &e.into());
        let place = unfinished(id);
        self.trash.take(self.dir.as_fd(), &place)?;
        let witness = self.witness()?;
        self.make_as(&place, id, false, parent)?;
        if parent.is_some() && !self.driver.detached() {
            sync(&witness)?;
        }
        let made = open_dir(self.dir.as_fd(), &place).map_err(failed)?;
        match mkdirat(&self.dir, name(id).as_c_str(), Mode::S_IRWXU) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(e) => return Err(failed(e)),
        }
        let own = self.directory(id)?;
        if self.driver.scratch() {
            make_scratch(&own).map_err(failed)?;
        }
        renameat2(&made, c"fs", &own, c"fs", RenameFlags::RENAME_NOREPLACE).map_err(failed)?;
        self.trash.take(self.dir.as_fd(), &place)
    }

    /// What a crash left of directories that were being made again.
    fn sweep_unfinished(&self) -> Result<()> {
        // Nobody makes one now.
        let _restoring = lock(&self.restoring);
        let all =
            names(self.dir.as_fd()).map_err(|e| Error::io("snapshot", "", "list a driver's directory", &e.into()))?;
        let left = all.iter().filter(|name| {
            name.to_str()
                .ok()
                .and_then(|name| name.strip_suffix(UNFINISHED))
                .is_some_and(|id| id.parse::<u64>().is_ok())
        });
        left.into_iter().try_for_each(|name| self.trash.take(self.dir.as_fd(), name))
    }
}

/// What the name of a directory that is being made again ends with.
const UNFINISHED: &str = ".new";

fn unfinished(id: u64) -> CString {
    let mut place = name(id).into_bytes();
    place.extend_from_slice(UNFINISHED.as_bytes());
    // PANIC: neither has a NUL in it.
    CString::new(place).unwrap_or_else(|_| unreachable!("decimal digits hold no NUL"))
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::fd::BorrowedFd,
        panic::{AssertUnwindSafe, catch_unwind},
        path::Path,
        sync::{
            Arc,
            atomic::{AtomicU8, Ordering},
        },
    };

    use cofferdam_types::{Code, Mount};

    use super::*;
    use crate::{
        area::private_dir,
        drivers::{self, Access, Driver, Trees},
        trash::Trash,
    };

    const NONE: u8 = 0;
    const CRASH: u8 = 1;
    const FULL: u8 = 2;

    /// Copies as native does, but for a fault: it stops half way, with one of the files there and the other not.
    struct Faulty(Box<dyn Driver>, Arc<AtomicU8>);

    impl Driver for Faulty {
        fn name(&self) -> &'static str {
            self.0.name()
        }

        fn detached(&self) -> bool {
            self.0.detached()
        }

        fn scratch(&self) -> bool {
            self.0.scratch()
        }

        fn make(&self, own: BorrowedFd<'_>, parent: Option<BorrowedFd<'_>>) -> Result<()> {
            let fault = self.1.load(Ordering::Relaxed);
            self.0.make(own, parent)?;
            if parent.is_none() || fault == NONE {
                return Ok(());
            }
            nix::unistd::unlinkat(open_dir(own, c"fs").unwrap(), c"b", nix::unistd::UnlinkatFlags::NoRemoveDir)
                .unwrap();
            assert_ne!(fault, CRASH, "the power goes");
            Err(Error::io("snapshot", "", "copy the parent's tree", &Errno::ENOSPC.into()))
        }

        fn mounts(&self, access: Access, trees: Trees<'_>) -> Vec<Mount> {
            self.0.mounts(access, trees)
        }
    }

    fn area(root: &Path, fault: &Arc<AtomicU8>) -> Area {
        let trash = Trash::start(private_dir(&root.join("trash")).unwrap()).unwrap();
        let native = drivers::all().into_iter().find(|driver| driver.name() == "native").unwrap();
        Area::open(root, Box::new(Faulty(native, fault.clone())), trash, 2, Box::new(|_| Ok(true))).unwrap()
    }

    fn entries(dir: &Path) -> Vec<String> {
        let mut all: Vec<_> =
            fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        all.sort();
        all
    }

    #[test]
    fn a_copy_that_a_crash_or_a_full_disk_cut_short_is_not_taken_for_the_whole() {
        let root = tempfile::tempdir().unwrap();
        let base = root.path().join("snapshots/native");
        fs::create_dir_all(base.join("1/fs")).unwrap();
        fs::write(base.join("1/fs/a"), "1").unwrap();
        fs::write(base.join("1/fs/b"), "2").unwrap();
        let known = || Ok(BTreeMap::from([(1, Known::Content), (2, Known::Scratch(Some(1)))]));
        let fault = Arc::new(AtomicU8::new(CRASH));
        for _ in 0..2 {
            // The second finds what the first has left.
            let crashing = area(root.path(), &fault);
            catch_unwind(AssertUnwindSafe(|| crashing.sweep(known))).unwrap_err();
            assert_eq!(entries(&base.join("2.new/fs")), ["a"], "that much was there");
            assert!(!crashing.is_there(2));
        }

        // No room for it: it is not there, and nothing of it is.
        fault.store(FULL, Ordering::Relaxed);
        let full = area(root.path(), &fault);
        assert!(full.sweep(known).unwrap().is_empty());
        assert_eq!(full.restore(2, Some(1)).unwrap_err().code, Code::ResourceExhausted);
        assert_eq!(entries(&base), ["1"]);
        drop(full);

        fault.store(NONE, Ordering::Relaxed);
        let whole = area(root.path(), &fault);
        assert!(whole.sweep(known).unwrap().is_empty());
        assert_eq!(
            (entries(&base), entries(&base.join("2/fs"))),
            (vec!["1".into(), "2".into()], vec!["a".into(), "b".into()])
        );
        // What is in its place is left alone, whatever it is.
        fs::rename(base.join("2/fs"), base.join("2/mine")).unwrap();
        whole.restore(2, Some(1)).unwrap();
        assert_eq!(entries(&base.join("2")), ["fs", "mine"]);
        // One whose parent can't be opened waits: what is in that is not lost.
        fs::remove_dir_all(base.join("2")).unwrap();
        fs::rename(base.join("1/fs"), base.join("1/whole")).unwrap();
        fs::write(base.join("1/fs"), "no directory").unwrap();
        whole.restore(2, Some(1)).unwrap_err();
        assert!(whole.sweep(known).unwrap().is_empty(), "nor is it told to be");
        assert!(!base.join("2/fs").exists());
        fs::remove_file(base.join("1/fs")).unwrap();
        fs::rename(base.join("1/whole"), base.join("1/fs")).unwrap();
        whole.restore(2, Some(1)).unwrap();
        assert_eq!(entries(&base.join("2/fs")), ["a", "b"]);
        // One whose parent is lost begins empty.
        fs::remove_dir_all(base.join("2")).unwrap();
        whole.restore(2, Some(77)).unwrap();
        assert!(entries(&base.join("2/fs")).is_empty());
    }
}
