//! Records and directories compared, both ways, beside ordinary work.

use std::time::{Duration, Instant};

use cofferdam_types::{Fault, Findings};

use super::{
    held::{LOOK, LOOKS},
    *,
};

impl Area {
    /// See [`Area::sweep`], which does at each start what this tells and, with `repair`, does. Gives the ids of committed
    /// trees that are gone: what to do about them is up to the records. `still`: nobody removes anything.
    pub fn check(
        &self,
        known: impl FnOnce() -> Result<BTreeMap<u64, Known>>,
        repair: bool,
        still: bool,
        found: &mut Findings,
    ) -> Result<Vec<u64>> {
        let driver = self.driver.name();
        let there = numbers(self.dir.as_fd())?;
        let live = lock(&self.live).clone();
        let known = known()?;
        // Who has just removed a record throws its directory away at once. One wait is enough for all of them.
        let end = Instant::now() + if still { Duration::ZERO } else { LOOK * LOOKS };
        for id in there.iter().filter(|id| !known.contains_key(id) && !live.contains(id)) {
            let place = format!("snapshot/{driver}/{id}");
            match self.stays(*id, end) {
                Ok(false) => {}
                Ok(true) => {
                    let removed = repair.then(|| self.discard(*id));
                    found.stray(Fault::SnapshotUnrecorded, place, "no snapshot has this directory", removed);
                }
                Err(error) => found.unchecked(place, &error),
            }
        }
        let mut lost = Vec::new();
        for (id, record) in known {
            // A directory comes before its record and goes after it: gone, it is missing only if the record is still there.
            let fine = matches!(record, Known::Nothing | Known::Kept) || self.is_there(id);
            if fine || lock(&self.live).contains(&id) {
                continue;
            }
            match (self.referenced)(id) {
                Ok(true) => {}
                Ok(false) => continue,
                Err(error) => {
                    found.unchecked(format!("snapshot/{driver}/{id}"), &error);
                    continue;
                }
            }
            let parent = match (self.look(id), record) {
                (Found::There, _) => continue,
                (Found::Closed(error), record) => {
                    let again = repair && record == Known::Content;
                    let shown = again && self.shown(id).is_ok();
                    let then = match (shown, record) {
                        (true, _) => "by now it can",
                        (_, Known::Content) if !repair && !still => {
                            "--repair tries again, and unpacks an image's layer again that can't be mounted"
                        }
                        _ => "it stays as it is",
                    };
                    let what = format!("its tree can't be opened, and may be whole: {error}: {then}");
                    found.add(Fault::SnapshotUnreadable, format!("snapshot/{driver}/{id}"), what, shown);
                    continue;
                }
                (Found::Gone, Known::Scratch(parent)) => parent,
                (Found::Gone, Known::Content | Known::Nothing | Known::Kept) => {
                    lost.push(id);
                    continue;
                }
            };
            let (made, then) = match repair.then(|| self.restore(id, parent)) {
                Some(Ok(_)) => (true, "it was made again".to_owned()),
                Some(Err(error)) => (false, format!("it can't be made again: {error}")),
                None => (false, "--repair makes it again, as it was before anything was written".to_owned()),
            };
            let what = format!("its directory is gone: {then}");
            found.add(Fault::SnapshotMissing, format!("snapshot/{driver}/{id}"), what, made);
        }
        Ok(lost)
    }

    /// Whether a directory without a record is nobody's then, and now.
    fn stays(&self, id: u64, end: Instant) -> Result<bool> {
        while self.nobodys(id)? {
            if Instant::now() >= end {
                return Ok(true);
            }
            std::thread::sleep(LOOK);
        }
        Ok(false)
    }

    fn nobodys(&self, id: u64) -> Result<bool> {
        let there = open_dir(self.dir.as_fd(), &name(id)).is_ok();
        Ok(there && !lock(&self.live).contains(&id) && !(self.referenced)(id)?)
    }

    /// What can't be deleted.
    pub fn left(&self, again: bool) -> Result<Vec<CString>> {
        self.trash.left(again)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf, sync::atomic::AtomicBool};

    use nix::mount::{MntFlags, MsFlags, mount, umount2};

    use super::*;
    use crate::drivers::Overlay;

    #[test]
    fn both_ways_are_told_and_what_is_in_hands_is_spared() {
        let dir = tempfile::tempdir().unwrap();
        let trash = Trash::start(private_dir(&dir.path().join("trash")).unwrap()).unwrap();
        // Records up to 99 have gone, or never were.
        let area = Area::open(dir.path(), Box::new(Overlay::detect()), trash, 0, Box::new(|id| Ok(id > 99)));
        let area = Arc::new(area.unwrap());
        let base = dir.path().join("snapshots/overlay");
        fs::create_dir_all(base.join("7/fs")).unwrap();
        let held = area.make(true, None).unwrap();
        let check = |repair| {
            let known =
                [(8, Known::Content), (900, Known::Scratch(None)), (901, Known::Content), (902, Known::Nothing)];
            let mut found = Findings::default();
            let lost = area.check(|| Ok(BTreeMap::from(known)), repair, false, &mut found).unwrap();
            assert_eq!(lost, [901], "8 was removed just now");
            found.done().into_iter().map(|one| (one.fault, one.repaired)).collect::<Vec<_>>()
        };
        assert_eq!(check(false), [(Fault::SnapshotUnrecorded, false), (Fault::SnapshotMissing, false)]);
        assert_eq!(check(true), [(Fault::SnapshotUnrecorded, true), (Fault::SnapshotMissing, true)]);
        assert_eq!(check(false), []);
        // However many there are, one wait is enough; and none where nobody removes anything.
        for id in 10..16 {
            fs::create_dir_all(base.join(format!("{id}/fs"))).unwrap();
        }
        for (still, most) in [(false, LOOK * LOOKS * 2), (true, LOOK * LOOKS)] {
            let (mut found, begun) = (Findings::default(), Instant::now());
            area.check(|| Ok(BTreeMap::new()), still, still, &mut found).unwrap();
            assert_eq!(found.done().len(), 6);
            assert!(begun.elapsed() < most, "{:?}", begun.elapsed());
        }
        // What isn't a directory by now can't be opened, and is neither gone nor to be replaced.
        fs::remove_dir_all(base.join("900/fs")).unwrap();
        fs::create_dir_all(base.join("901")).unwrap();
        for id in [900, 901] {
            fs::write(base.join(format!("{id}/fs")), "whose?").unwrap();
        }
        let mut found = Findings::default();
        let known = [(900, Known::Scratch(None)), (901, Known::Content)];
        let lost = area.check(|| Ok(BTreeMap::from(known)), true, true, &mut found).unwrap();
        let told: Vec<_> = found.done().into_iter().map(|one| (one.fault, one.repaired)).collect();
        assert_eq!((lost, told), (vec![], vec![(Fault::SnapshotUnreadable, false); 2]));
        assert!(base.join("900/fs").is_file() && base.join("901/fs").is_file());
        assert!(!base.join("7").exists() && base.join("900/work").exists());
        assert!(base.join(held.id().to_string()).exists());
    }

    /// What can't be moved is told, beside what was and what lies behind it.
    #[test]
    fn what_cant_be_removed_is_told_and_ends_no_check() {
        let dir = tempfile::tempdir().unwrap();
        let trash = Trash::start(private_dir(&dir.path().join("trash")).unwrap()).unwrap();
        let area = Area::open(dir.path(), Box::new(Overlay::detect()), trash, 0, Box::new(|id| Ok(id > 99))).unwrap();
        let base = dir.path().join("snapshots/overlay");
        for id in [7, 8] {
            fs::create_dir_all(base.join(format!("{id}/fs"))).unwrap();
        }
        let none = None::<&str>;
        mount(Some("none"), &base.join("7"), Some("tmpfs"), MsFlags::empty(), none).unwrap();
        let mut found = Findings::default();
        let lost = area.check(|| Ok(BTreeMap::from([(901, Known::Content)])), true, true, &mut found);
        umount2(&base.join("7"), MntFlags::MNT_DETACH).unwrap();
        let told: Vec<_> = found.done().into_iter().map(|one| (one.fault, one.repaired)).collect();
        assert_eq!(told, [(Fault::SnapshotUnrecorded, false), (Fault::SnapshotUnrecorded, true)]);
        assert_eq!(lost.unwrap(), [901]);
        assert!(base.join("7").exists() && !base.join("8").exists());
    }

    /// A tree that isn't found at first, in a directory that can't be opened when it is looked at more closely: as where there are
    /// no descriptors left by then.
    struct Shut(PathBuf, AtomicBool);

    impl Driver for Shut {
        fn name(&self) -> &'static str {
            "shut"
        }

        fn detached(&self) -> bool {
            true
        }

        fn scratch(&self) -> bool {
            false
        }

        fn make(&self, _: BorrowedFd<'_>, _: Option<BorrowedFd<'_>>) -> Result<()> {
            Ok(())
        }

        fn open(&self, _: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
            if self.1.swap(true, Ordering::Relaxed) {
                fs::rename(self.0.join("901"), self.0.join("away")).unwrap();
                fs::write(self.0.join("901"), "no directory").unwrap();
            }
            Err(Errno::ENOENT)
        }

        fn mounts(&self, _: Access, _: Trees<'_>) -> Vec<Mount> {
            Vec::new()
        }
    }

    #[test]
    fn what_cant_be_looked_at_twice_is_not_lost() {
        let dir = tempfile::tempdir().unwrap();
        let trash = Trash::start(private_dir(&dir.path().join("trash")).unwrap()).unwrap();
        let base = dir.path().join("snapshots/shut");
        fs::create_dir_all(base.join("901")).unwrap();
        let driver = Box::new(Shut(base, AtomicBool::new(false)));
        let area = Area::open(dir.path(), driver, trash, 0, Box::new(|_| Ok(true))).unwrap();
        let mut found = Findings::default();
        let lost = area.check(|| Ok(BTreeMap::from([(901, Known::Content)])), false, true, &mut found).unwrap();
        let told: Vec<_> = found.done().into_iter().map(|one| one.fault).collect();
        assert_eq!((lost, told), (vec![], vec![Fault::SnapshotUnreadable]));
    }
}
