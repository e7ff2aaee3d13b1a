//! One driver's directory on disk: `<id>/fs`, the tree, and `<id>/work` beside a writable one.
//!
//! A directory counts only once a record names its id; until then it is garbage that the next start sweeps. That is why
//! nothing here is ever renamed into place: before the commit nobody knows the name.
//!
//! Making the directory of a container costs nothing on its way: a few are made ahead. It isn't synced either. The
//! record is what was acknowledged, and after a power cut [`Area::sweep`] makes a missing directory again, empty: what
//! a container writes is never acknowledged by us before its snapshot is committed, which syncs.

mod check;
mod held;
mod swap;
mod sweep;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{CStr, CString},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use cofferdam_metadata::records::snapshots::Usage;
use cofferdam_sys::fd::Witness;
use cofferdam_types::{Code, Error, Mount, Result};
use nix::{
    errno::Errno,
    sys::{
        stat::{Mode, fstat, mkdirat},
        statvfs::fstatvfs,
    },
};

use crate::{
    copy::inherit,
    drivers::{Access, Driver, Trees},
    ground::{self, Ground},
    project,
    trash::{Trash, open_path},
    walk::{names, open_dir, usage},
};

pub use held::Held;

/// How many directories are made ahead.
const STOCK: usize = 4;

/// What the records say about a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It holds content that was synced before the record was committed: missing, it is lost.
    Content,
    /// It belongs to an active snapshot, or to a view of nothing, on top of the parent's directory.
    Scratch(Option<u64>),
    /// The snapshot shows its parent's tree and has none of its own.
    Nothing,
    /// Nobody can read what it holds: it is left as it is, there or not.
    Kept,
}

/// What there is of a tree.
enum Found {
    There,
    Gone,
    /// It may be whole: it can't be opened just now.
    Closed(Error),
}

/// Asks the records whether one of them refers to a directory.
pub type Referenced = Box<dyn Fn(u64) -> Result<bool> + Send + Sync>;

/// A driver and its directory.
pub struct Area {
    driver: Box<dyn Driver>,
    /// What is committed gets fs-verity.
    verity: bool,
    /// Where the driver mounts something in the directory.
    ground: Option<Ground>,
    path: String,
    dir: OwnedFd,
    trash: Trash,
    referenced: Referenced,
    next: AtomicU64,
    /// Ids from here on were given since: no crash has left them.
    first: u64,
    /// Held by who makes directories again.
    restoring: Mutex<()>,
    swaps: swap::Swaps,
    /// Ids in somebody's hands, between their making and their commit.
    live: Mutex<BTreeSet<u64>>,
    /// Those of them whose directory is being brought into another form: whoever removes the record leaves it to the
    /// [`Held`].
    busy: Mutex<BTreeSet<u64>>,
    stock: Mutex<Vec<u64>>,
    /// One fills it at a time, or there would be more than it takes.
    filling: Mutex<()>,
}

impl Area {
    /// Takes down what the driver has mounted. What holds snapshots without it, such as an overlay on them, keeps them.
    pub fn close(&self) {
        self.ground.iter().for_each(Ground::end);
    }

    /// Opens (and makes) `<root>/snapshots/<driver>`. Ids up to `last` are never given out.
    pub fn open(root: &Path, driver: Box<dyn Driver>, trash: Trash, last: u64, referenced: Referenced) -> Result<Area> {
        let place = root.join("snapshots").join(driver.name());
        let path = place.clone().into_os_string().into_string().ok().filter(|p| !p.contains([':', ',', '\\', '"']));
        // These split a list of overlay options; escaping them is up to every tool that mounts, so it fails somewhere.
        let path = path.ok_or_else(|| {
            Error::invalid(
                "root",
                root.display(),
                "must be UTF-8 without ':', ',', '\\' or '\"': use another directory",
            )
        })?;
        let (dir, ground, trash) = if driver.attaches() {
            let (dir, ground) = ground::open(&place)?;
            // Nothing can be renamed from one mount to another.
            (dir, Some(ground), Trash::start(private_dir(&place.join("trash"))?)?)
        } else {
            (private_dir(&place)?, None, trash)
        };
        let taken = numbers(dir.as_fd())?.into_iter().max().unwrap_or(0);
        let first = last.max(taken) + 1;
        Ok(Area {
            driver,
            verity: false,
            ground,
            path,
            dir,
            trash,
            referenced,
            next: AtomicU64::new(first),
            first,
            restoring: Mutex::default(),
            swaps: swap::Swaps::default(),
            live: Mutex::default(),
            busy: Mutex::default(),
            stock: Mutex::default(),
            filling: Mutex::default(),
        })
    }

    /// From now on nothing is committed without fs-verity.
    pub fn demand_verity(&mut self) {
        self.verity = true;
    }

    /// The driver.
    pub fn driver(&self) -> &dyn Driver {
        &*self.driver
    }

    /// The mounts of a snapshot; `own` is `None` for a view with a parent.
    pub fn mounts(&self, access: Access, own: Option<u64>, parents: &[u64]) -> Vec<Mount> {
        self.driver.mounts(access, Trees { base: &self.path, own, parents })
    }

    /// Makes a directory with a tree that shows what it shows of its parent. Dropped unkept, it goes to the trash.
    pub fn make(self: &Arc<Area>, scratch: bool, parent: Option<u64>) -> Result<Held> {
        let held = self.number();
        self.make_at(held.id(), scratch, parent)?;
        Ok(held)
    }

    /// Only a number: for a view, which shows its parent's tree.
    pub fn number(self: &Arc<Area>) -> Held {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.live).insert(id);
        self.held(id)
    }

    /// Like [`Area::make`] with a `work` directory, out of the stock where there is one.
    pub fn take(self: &Arc<Area>, parent: Option<u64>) -> Result<Held> {
        let id = lock(&self.stock).pop();
        // Those in stock are in `live` from their making.
        let Some(held) = id.map(|id| self.held(id)) else { return self.make(self.driver.scratch(), parent) };
        match parent {
            // What it shows of its parent it shows by its mounts.
            Some(parent) if self.driver.detached() => {
                self.inherit(self.directory(held.id())?, held.id(), &self.tree(parent)?)?;
            }
            Some(_) => self.make_at(held.id(), self.driver.scratch(), parent)?,
            None => {}
        }
        Ok(held)
    }

    /// Whether a directory can be taken without making one.
    pub fn in_stock(&self) -> bool {
        !lock(&self.stock).is_empty()
    }

    /// Whether it is time to fill the stock.
    pub fn low(&self) -> bool {
        self.driver.ahead() && lock(&self.stock).len() < STOCK / 2
    }

    fn held(self: &Arc<Area>, id: u64) -> Held {
        Held::new(self.clone(), id)
    }

    /// Fills the stock.
    pub fn refill(self: &Arc<Area>) -> Result<()> {
        let _filling = lock(&self.filling);
        while lock(&self.stock).len() < STOCK {
            let held = self.make(self.driver.scratch(), None)?;
            lock(&self.stock).push(held.forget());
        }
        Ok(())
    }

    /// What is there already, empty, is taken as it is. A tree gets the content of its parent's where the driver copies;
    /// the attributes of the root are the parent's in any case.
    fn make_at(&self, id: u64, scratch: bool, parent: Option<u64>) -> Result<()> {
        self.make_as(&name(id), id, scratch, parent)
    }

    /// The same under a name that need not be the final one.
    fn make_as(&self, place: &CStr, id: u64, scratch: bool, parent: Option<u64>) -> Result<()> {
        let failed = |e: Errno| Error::io("snapshot", id, "make a directory for a snapshot", &e.into());
        let parent = parent.map(|parent| self.tree(parent)).transpose()?;
        match mkdirat(&self.dir, place, Mode::S_IRWXU) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(e) => return Err(failed(e)),
        }
        let own = open_dir(self.dir.as_fd(), place).map_err(failed)?;
        self.driver.make(own.as_fd(), parent.as_ref().map(AsFd::as_fd))?;
        if scratch {
            make_scratch(&own).map_err(failed)?;
        }
        parent.map_or(Ok(()), |parent| self.inherit(own, id, &parent))
    }

    /// Gives the root of a writable tree the attributes of its parent's.
    fn inherit(&self, own: OwnedFd, id: u64, parent: &OwnedFd) -> Result<()> {
        open_dir(own.as_fd(), c"fs")
            .and_then(|tree| inherit(parent.as_fd(), tree.as_fd()))
            .map_err(|e| Error::io("snapshot", id, "set owner and mode of the root", &e.into()))
    }

    /// Replaces the tree of `id`, which no record names yet, by an empty one, and gives a scratch directory beside it.
    pub fn renew(&self, id: u64) -> Result<OwnedFd> {
        let failed = |e: Errno| Error::io("snapshot", id, "begin a tree anew", &e.into());
        let own = open_dir(self.dir.as_fd(), &name(id)).map_err(failed)?;
        self.trash.take(own.as_fd(), c"fs")?;
        self.make_at(id, true, None)?;
        open_dir(own.as_fd(), c"work").map_err(failed)
    }

    fn directory(&self, id: u64) -> Result<OwnedFd> {
        open_dir(self.dir.as_fd(), &name(id))
            .map_err(|e| Error::io("snapshot", id, "open the directory of a snapshot", &e.into()))
    }

    /// Opens a tree.
    pub fn tree(&self, id: u64) -> Result<OwnedFd> {
        open_dir(self.dir.as_fd(), &name(id))
            .and_then(|own| self.driver.open(own.as_fd()))
            .map_err(|e| Error::io("snapshot", id, "open the tree of a snapshot", &e.into()))
    }

    /// Opens a tree that is committed. One that is whole and only isn't shown is shown again.
    pub fn shown(&self, id: u64) -> Result<OwnedFd> {
        let error = match self.tree(id) {
            Err(error) if error.code == Code::NotFound && self.holds(id) => error,
            other => return other,
        };
        // One at a time: who comes second finds it shown.
        let _restoring = lock(&self.restoring);
        self.settle(id, true).and_then(|()| self.tree(id)).map_err(|why| error.context(why))
    }

    /// Whether a tree is there. What can't be opened is not gone for that: a daemon has only so many descriptors, a disk may fail for
    /// once, and a mount may be missing.
    fn look(&self, id: u64) -> Found {
        match self.tree(id) {
            Ok(_) => Found::There,
            Err(error) if error.code == Code::NotFound && !self.holds(id) => Found::Gone,
            Err(error) => Found::Closed(error),
        }
    }

    /// Whether it is gone for good.
    pub fn is_gone(&self, id: u64) -> bool {
        matches!(self.look(id), Found::Gone)
    }

    fn holds(&self, id: u64) -> bool {
        match open_dir(self.dir.as_fd(), &name(id)) {
            Ok(own) => self.driver.holds(own.as_fd()),
            Err(error) => error != Errno::ENOENT,
        }
    }

    /// The space that a tree takes now, without its parent's.
    pub fn usage(&self, id: u64) -> Result<Usage> {
        let tree = self.tree(id)?;
        usage(tree.as_fd(), self.driver.since(tree.as_fd())?).map_err(|e| match e {
            Errno::ESTALE => {
                Error::unavailable("snapshot", id, "changed while its size was taken: try again when it is quiet")
            }
            e => Error::io("snapshot", id, "take the size of a tree", &e.into()),
        })
    }

    /// The same of one on which nothing lies yet: there the file system's own count holds, where it counts.
    pub fn usage_of_active(&self, id: u64) -> Result<Usage> {
        let (usage, counted) = (self.usage(id)?, self.driver.counted(self.tree(id)?.as_fd())?);
        Ok(Usage { size: counted.unwrap_or(usage.size), ..usage })
    }

    /// Bounds what may be written into a tree, durably; 0 is no bound.
    pub fn limit(&self, id: u64, bytes: u64) -> Result<()> {
        let witness = self.witness()?;
        self.driver.limit(self.directory(id)?.as_fd(), id, bytes)?;
        sync(&witness)
    }

    /// The device that the driver's directory lies on, as stat(2) names it.
    pub fn device(&self) -> Result<u64> {
        let stat =
            fstat(&self.dir).map_err(|e| Error::io("snapshot", "", "look at a driver's directory", &e.into()))?;
        Ok(stat.st_dev)
    }

    /// The bytes that can still be written there, but for what only root may use.
    pub fn free(&self) -> Result<u64> {
        let fs = fstatvfs(&self.dir).map_err(|e| Error::io("snapshot", "", "look how full the disk is", &e.into()))?;
        Ok(fs.blocks_available().saturating_mul(fs.fragment_size()))
    }

    /// Who hears what becomes of all that is written here from now on.
    pub fn witness(&self) -> Result<Witness> {
        Witness::open(&self.dir).map_err(|e| Error::io("snapshot", "", "open a driver's directory", &e))
    }

    /// Throws a directory away whose record is gone, now or when nobody is at it any more.
    pub fn discard(&self, id: u64) -> Result<()> {
        if lock(&self.busy).contains(&id) { Ok(()) } else { self.throw(id) }
    }

    fn throw(&self, id: u64) -> Result<()> {
        self.release(id)?;
        if let Ok(own) = open_dir(self.dir.as_fd(), &name(id)) {
            project::forget(own.as_fd());
        }
        self.trash.take(self.dir.as_fd(), &name(id))
    }
}

/// Makes everything durable in a filesystem, directory entries included.
pub fn sync(witness: &Witness) -> Result<()> {
    witness.sync().map_err(|e| Error::io("snapshot", "", "sync the snapshots' filesystem", &e))
}

impl Area {
    /// Holds the recorded directory of a snapshot that is being committed: for one at a time, and no sweep touches it.
    /// The record is to be looked at again: who removed it before this may be throwing the directory away.
    pub fn sealing(self: &Arc<Area>, id: u64) -> Option<Held> {
        lock(&self.live).insert(id).then(|| {
            let held = self.held(id);
            held.busy();
            held
        })
    }

    /// Brings a directory into the form that its record says.
    pub fn settle(&self, id: u64, committed: bool) -> Result<()> {
        match open_dir(self.dir.as_fd(), &name(id)) {
            // Removed meanwhile.
            Err(Errno::ENOENT) => Ok(()),
            Err(e) => Err(Error::io("snapshot", id, "open the directory of a snapshot", &e.into())),
            Ok(own) => {
                let over = self.driver.settle(own.as_fd(), committed)?;
                over.iter().try_for_each(|name| self.trash.take(own.as_fd(), name))
            }
        }
    }

    /// Ends what the driver keeps mounted in a directory.
    fn release(&self, id: u64) -> Result<()> {
        match self.driver.attaches().then(|| open_dir(self.dir.as_fd(), &name(id))) {
            None | Some(Err(Errno::ENOENT)) => Ok(()),
            Some(Err(e)) => Err(Error::io("snapshot", id, "open the directory of a snapshot", &e.into())),
            Some(Ok(own)) => self.driver.release(own.as_fd()),
        }
    }

    /// What is in a tree from now on doesn't change any more.
    pub fn seal(&self, id: u64) -> Result<()> {
        self.driver.seal(self.directory(id)?.as_fd(), self.verity)
    }
}

/// The next start mounts again what it needs.
impl Drop for Area {
    fn drop(&mut self) {
        if !self.driver.attaches() {
            return;
        }
        for id in numbers(self.dir.as_fd()).unwrap_or_default() {
            if let Err(error) = self.release(id) {
                tracing::warn!(id, %error, "something stays mounted in a snapshot's directory");
            }
        }
    }
}

/// Makes (with its parents) and opens a directory that only root may enter.
pub fn private_dir(path: &Path) -> Result<OwnedFd> {
    use std::os::unix::fs::DirBuilderExt;
    let failed = |e: std::io::Error| Error::io("directory", path.display(), "make a directory of the daemon", &e);
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
    let dir = open_path(path)?;
    // It may be older than this rule, or made by hand.
    cofferdam_sys::fd::make_private(&dir).map_err(failed)?;
    Ok(dir)
}

fn make_scratch(own: &OwnedFd) -> Result<(), Errno> {
    match mkdirat(own, "work", Mode::from_bits_truncate(0o711)) {
        Err(Errno::EEXIST) => Ok(()),
        other => other,
    }
}

fn name(id: u64) -> CString {
    // PANIC: decimal digits hold no NUL.
    CString::new(id.to_string()).unwrap_or_else(|_| unreachable!("decimal digits hold no NUL"))
}

/// The ids of the directories in `dir`; other names are not ours and are left alone.
fn numbers(dir: BorrowedFd<'_>) -> Result<BTreeSet<u64>> {
    let names = names(dir).map_err(|e| Error::io("snapshot", "", "list the directories of a driver", &e.into()))?;
    Ok(names.iter().filter_map(|name| name.to_str().ok()?.parse().ok()).collect())
}

/// No state in these sets can be left half changed by a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt};

    use super::*;
    use crate::drivers::Overlay;

    const REFERENCED: u64 = 3;

    fn area(root: &Path) -> Arc<Area> {
        let trash = Trash::start(private_dir(&root.join("trash")).unwrap()).unwrap();
        Arc::new(Area::open(root, Box::new(Overlay::detect()), trash, 0, Box::new(|id| Ok(id == REFERENCED))).unwrap())
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn f1_modes_do_not_depend_on_the_umask() {
        let dir = tempfile::tempdir().unwrap();
        for umask in [0, 0o077, 0o022] {
            let before = nix::sys::stat::umask(Mode::from_bits_truncate(umask));
            let area = area(dir.path());
            let id = area.make(true, None).unwrap().forget();
            nix::sys::stat::umask(before);
            let base = dir.path().join("snapshots/overlay");
            assert_eq!((mode(&base), mode(&base.join(id.to_string()))), (0o700, 0o700));
            assert_eq!(mode(&base.join(format!("{id}/fs"))), 0o755);
            assert_eq!(mode(&dir.path().join("trash")), 0o700);
        }
    }

    #[test]
    fn what_is_dropped_is_gone_and_what_is_kept_stays() {
        let dir = tempfile::tempdir().unwrap();
        let area = area(dir.path());
        let base = dir.path().join("snapshots/overlay");
        let (kept, dropped) = (area.make(false, None).unwrap(), area.make(false, None).unwrap());
        drop(area.make(false, None).unwrap());
        assert!(base.join(REFERENCED.to_string()).exists(), "its commit went through though its answer was lost");
        let (kept_id, dropped_id) = (kept.id(), dropped.id());
        kept.keep();
        drop(dropped);
        assert!(base.join(kept_id.to_string()).exists());
        assert!(!base.join(dropped_id.to_string()).exists());
    }

    #[test]
    fn the_sweep_spares_what_is_in_hands_and_makes_again_what_a_power_cut_took() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("snapshots/overlay");
        // Of the daemon before: what this one makes has another number.
        let orphan = 999;
        fs::create_dir_all(base.join("999/fs")).unwrap();
        let area = area(dir.path());
        let parent = area.make(false, None).unwrap();
        std::os::unix::fs::chown(base.join(format!("{}/fs", parent.id())), Some(5), Some(6)).unwrap();
        let held = area.make(true, None).unwrap();
        let made = area.make(true, None).unwrap();
        lock(&area.live).remove(&made.id());
        area.refill().unwrap();
        fs::create_dir(base.join("lost+found")).unwrap();
        let known = BTreeMap::from([
            (parent.id(), Known::Content),
            (900, Known::Scratch(Some(parent.id()))),
            (901, Known::Content),
            (902, Known::Nothing),
        ]);
        assert_eq!(area.sweep(|| Ok(known)).unwrap(), [901]);
        assert!(!base.join(orphan.to_string()).exists());
        assert!(base.join(held.id().to_string()).exists());
        assert!(base.join(made.id().to_string()).exists(), "what is made now no crash has left");
        assert!(base.join("lost+found").exists(), "not ours");
        assert!(base.join("900/work").exists());
        assert_eq!(fs::metadata(base.join("900/fs")).unwrap().uid(), 5);
        let taken = area.take(None).unwrap();
        assert!(base.join(format!("{}/work", taken.id())).exists(), "the stock was spared");
    }

    #[test]
    fn l3_a_root_that_would_split_mount_options_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("a,b");
        let trash = Trash::start(private_dir(&root.join("trash")).unwrap()).unwrap();
        assert!(Area::open(&root, Box::new(Overlay::detect()), trash, 0, Box::new(|_| Ok(false))).is_err());
    }
}
