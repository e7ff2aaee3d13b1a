//! Deleting in the background: what goes is renamed into the trash directory, and one thread of idle priority empties
//! it. The directory itself is the queue, so nothing is lost with the process and nothing can overflow.

use std::{
    collections::HashSet,
    ffi::{CStr, CString},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use cofferdam_sys::btrfs;
use cofferdam_types::{Error, Result, Timestamp};
use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, open, renameat},
    sys::stat::{Mode, SFlag, fstatat},
    unistd::{UnlinkatFlags, unlinkat},
};

use crate::{
    copy::errno,
    ground,
    walk::{file_type, names, open_dir},
};

/// Directories deeper than this are moved up instead of descended into.
const DEEPEST: usize = 64;

/// A trash directory and the thread that empties it; both end with the last clone.
#[derive(Clone)]
pub struct Trash(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    worker: Option<thread::JoinHandle<()>>,
}

struct Shared {
    dir: OwnedFd,
    counter: AtomicU64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// How many are just putting something in.
    coming: usize,
    /// Something was put in since the worker looked last.
    dirty: bool,
    busy: bool,
    stop: bool,
    /// What resisted is to be tried again.
    again: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Flags and a count: there is no state in between that a panic could leave.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unique(&self, stem: &str) -> Result<CString, Errno> {
        let n = self.counter.fetch_add(1, Ordering::Relaxed);
        CString::new(format!("{stem}-{n}")).map_err(|_| Errno::EINVAL)
    }
}

impl Trash {
    /// Starts to empty `dir`, beginning with what an earlier process left there.
    pub fn start(dir: OwnedFd) -> Result<Trash> {
        if let Err(error) = ground::clear(dir.as_fd()) {
            tracing::warn!(%error, "something stays mounted in the trash");
        }
        let failed = |e: std::io::Error| Error::io("trash", "", "start the thread that empties the trash", &e);
        let shared = Arc::new(Shared {
            dir,
            // Names of an earlier process may still be there; the clock puts ours behind them.
            counter: AtomicU64::new(Timestamp::now().0),
            state: Mutex::new(State { dirty: true, ..State::default() }),
            changed: Condvar::new(),
        });
        let theirs = shared.clone();
        let worker = thread::Builder::new().name("trash".into()).spawn(move || empty(&theirs)).map_err(failed)?;
        Ok(Trash(Arc::new(Inner { shared, worker: Some(worker) })))
    }

    /// Takes `name` out of `from`: one rename, on the caller's thread. What isn't there is gone already.
    pub fn take(&self, from: BorrowedFd<'_>, name: &CStr) -> Result<()> {
        let shared = &self.0.shared;
        let put = || renameat(from, name, &shared.dir, shared.unique(&name.to_string_lossy())?.as_c_str());
        // Said before, or what is there and the worker doesn't know of yet would seem to resist.
        shared.state().coming += 1;
        let done = put();
        let mut state = shared.state();
        state.coming -= 1;
        state.dirty |= done.is_ok();
        drop(state);
        shared.changed.notify_all();
        match done {
            Ok(()) => Ok(()),
            Err(Errno::ENOENT) => Ok(()),
            Err(e) => Err(Error::io("trash", name.to_string_lossy(), "move a directory to the trash", &e.into())),
        }
    }

    /// What can't be deleted; nothing where it isn't known yet. With `again` it is tried anew first, and waited for.
    pub fn left(&self, again: bool) -> Result<Vec<CString>> {
        if again {
            let mut state = self.0.shared.state();
            (state.again, state.dirty) = (true, true);
            self.0.shared.changed.notify_all();
            drop(state);
            self.settle();
        }
        let state = self.0.shared.state();
        if state.dirty || state.busy || state.coming > 0 {
            return Ok(Vec::new());
        }
        names(self.0.shared.dir.as_fd()).map_err(|e| Error::io("trash", "", "list the trash", &e.into()))
    }

    /// Waits until everything that was put in so far is deleted, or has been found to resist.
    pub fn settle(&self) {
        let mut state = self.0.shared.state();
        while state.dirty || state.busy {
            state = self.0.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.state().stop = true;
        self.shared.changed.notify_all();
        if let Some(worker) = self.worker.take() {
            // It only ends early with a panic, which has been reported on its own thread.
            let _ = worker.join();
        }
    }
}

fn empty(shared: &Shared) {
    idle_priority();
    // What could not be deleted is reported once, not at every turn.
    let mut resisted = HashSet::new();
    loop {
        {
            let mut state = shared.state();
            while !state.dirty && !state.stop {
                state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.stop {
                return;
            }
            (state.dirty, state.busy) = (false, true);
            if std::mem::take(&mut state.again) {
                resisted.clear();
            }
        }
        let found = names(shared.dir.as_fd()).unwrap_or_else(|error| {
            tracing::error!(%error, "can't read the trash directory");
            Vec::new()
        });
        for name in found {
            if shared.state().stop {
                break;
            }
            if resisted.contains(&name) {
                continue;
            }
            let stop = || shared.state().stop;
            if let Err(error) = remove_tree(shared.dir.as_fd(), &name, shared.dir.as_fd(), &stop) {
                if error == Errno::ECANCELED {
                    break;
                }
                tracing::warn!(?name, %error, "can't delete from the trash; the next start of the daemon tries again");
                resisted.insert(name);
            }
        }
        shared.state().busy = false;
        shared.changed.notify_all();
    }
}

/// Both are properties of a thread on Linux. Failing, deletion is only less polite.
fn idle_priority() {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    const IOPRIO_CLASS_IDLE: libc::c_int = 3 << 13;
    // SAFETY: plain numbers; 0 names the calling thread in both calls.
    unsafe {
        libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, IOPRIO_CLASS_IDLE);
        libc::setpriority(libc::PRIO_PROCESS, 0, 19);
    }
}

/// Deletes `name` in `at` with everything below it. Links are deleted, never followed. `aside`, on the same
/// filesystem, takes what lies too deep to be reached with a bounded number of open directories. ECANCELED: `stop` said
/// so, which is asked at every directory.
pub fn remove_tree(
    at: BorrowedFd<'_>,
    name: &CStr,
    aside: BorrowedFd<'_>,
    stop: &dyn Fn() -> bool,
) -> Result<(), Errno> {
    let stem: String = name.to_string_lossy().chars().take(40).collect();
    let mut counter = 0_u32;
    let mut pending = Vec::new();
    let mut next = Some((at, name.to_owned()));
    while let Some((at, name)) = next {
        remove(at, &name, 0, stop, &mut |from, name| {
            let to = CString::new(format!("{stem}.deep-{counter}")).map_err(|_| Errno::EINVAL)?;
            counter += 1;
            renameat(from, name, aside, to.as_c_str())?;
            pending.push(to);
            Ok(())
        })?;
        next = pending.pop().map(|name| (aside, name));
    }
    Ok(())
}

type Deep<'a> = dyn FnMut(BorrowedFd<'_>, &CStr) -> Result<(), Errno> + 'a;

fn remove(
    at: BorrowedFd<'_>,
    name: &CStr,
    depth: usize,
    stop: &dyn Fn() -> bool,
    deep: &mut Deep<'_>,
) -> Result<(), Errno> {
    let gone = |result| match result {
        Err(Errno::ENOENT) => Ok(()),
        other => other,
    };
    match unlinkat(at, name, UnlinkatFlags::NoRemoveDir) {
        Err(Errno::EISDIR | Errno::EPERM) => {}
        other => return gone(other),
    }
    let stat = fstatat(at, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    if file_type(&stat) != SFlag::S_IFDIR {
        return Err(Errno::EPERM);
    }
    // A subvolume of btrfs, which a container may have made too, goes as a whole, whatever it holds.
    if stat.st_ino == btrfs::ROOT_INODE && btrfs::is(at).map_err(errno)? {
        return gone(btrfs::destroy(at, name).map_err(errno));
    }
    if depth >= DEEPEST {
        return deep(at, name);
    }
    if stop() {
        return Err(Errno::ECANCELED);
    }
    let dir = open_dir(at, name)?;
    for inner in names(dir.as_fd())? {
        remove(dir.as_fd(), &inner, depth + 1, stop, deep)?;
    }
    gone(unlinkat(at, name, UnlinkatFlags::RemoveDir))
}

/// Opens the directory `path` for use as a trash or driver directory.
pub fn open_path(path: &std::path::Path) -> Result<OwnedFd> {
    open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|e| Error::io("directory", path.display(), "open a directory of the daemon", &e.into()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn empties_itself_and_spares_what_links_point_at() {
        let dir = tempfile::tempdir().unwrap();
        let (live, trash) = (dir.path().join("live"), dir.path().join("trash"));
        fs::create_dir_all(live.join("1/fs/deep/er")).unwrap();
        fs::create_dir_all(trash.join("left/over")).unwrap();
        fs::write(dir.path().join("canary"), "x").unwrap();
        std::os::unix::fs::symlink(dir.path().join("canary"), live.join("1/fs/link")).unwrap();
        std::os::unix::fs::symlink(dir.path(), live.join("1/fs/up")).unwrap();
        let bin = Trash::start(open_path(&trash).unwrap()).unwrap();
        let from = open_path(&live).unwrap();
        bin.take(from.as_fd(), c"1").unwrap();
        assert!(!live.join("1").exists(), "gone at once");
        bin.take(from.as_fd(), c"1").unwrap();
        bin.settle();
        assert_eq!(fs::read_dir(&trash).unwrap().count(), 0);
        assert!(dir.path().join("canary").exists());
    }

    #[test]
    fn what_was_just_put_in_is_not_told_to_resist() {
        let dir = tempfile::tempdir().unwrap();
        let (live, trash) = (dir.path().join("live"), dir.path().join("trash"));
        fs::create_dir(&live).unwrap();
        fs::create_dir(&trash).unwrap();
        let bin = Trash::start(open_path(&trash).unwrap()).unwrap();
        let from = open_path(&live).unwrap();
        thread::scope(|scope| {
            let putting = scope.spawn(|| {
                for n in 0..3000 {
                    let name = CString::new(n.to_string()).unwrap();
                    fs::create_dir(live.join(n.to_string())).unwrap();
                    bin.take(from.as_fd(), &name).unwrap();
                }
            });
            while !putting.is_finished() {
                assert_eq!(bin.left(false).unwrap(), Vec::<CString>::new());
            }
        });
    }

    #[test]
    fn what_is_mounted_in_it_is_unmounted_first() {
        let dir = tempfile::tempdir().unwrap();
        let layer = dir.path().join("7-1/layer");
        fs::create_dir_all(&layer).unwrap();
        let (none, flags) = (None::<&str>, nix::mount::MsFlags::empty());
        nix::mount::mount(none, &layer, Some("tmpfs"), flags, none).unwrap();
        fs::create_dir(layer.join("on")).unwrap();
        nix::mount::mount(none, &layer.join("on"), Some("tmpfs"), nix::mount::MsFlags::MS_RDONLY, none).unwrap();
        Trash::start(open_path(dir.path()).unwrap()).unwrap().settle();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
