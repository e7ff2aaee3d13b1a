//! Links, made by two threads: a layer has them in runs of hundreds, and to make one is the kernel's time alone.
//!
//! Only a link that matters to no other entry waits here: its directory is known, nothing has its name, and what a hard
//! link names is there. So any order gives the same tree. What fails is handed back, to be made like any other entry.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{Builder, JoinHandle},
};

use nix::{
    fcntl::AtFlags,
    sys::stat::{UtimensatFlags, utimensat},
    unistd::{Gid, Uid, fchownat, linkat, symlinkat},
};

use crate::{reader::Entry, tree::Place};

/// So many are worth a second thread.
const RUN: usize = 8;
/// So many may wait.
const WAITING: usize = 512;

/// A link that is to be made.
pub(crate) struct Link {
    pub entry: Entry,
    pub parent: Arc<Place>,
    pub name: Vec<u8>,
    pub real: Vec<u8>,
    /// A hard link's; `None`: a symbolic one.
    pub target: Option<(Arc<Place>, Vec<u8>)>,
    /// A symbolic link's, if it isn't that by itself.
    pub owner: Option<(Uid, Gid)>,
}

impl Link {
    fn make(&self) -> nix::Result<()> {
        let (dir, name) = (&self.parent.fd, &self.name[..]);
        if let Some((place, last)) = &self.target {
            return linkat(&place.fd, &last[..], dir, name, AtFlags::empty());
        }
        symlinkat(&self.entry.link[..], dir, name)?;
        if let Some((uid, gid)) = self.owner {
            fchownat(dir, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        }
        utimensat(dir, name, &self.entry.atime, &self.entry.mtime, UtimensatFlags::NoFollowSymlink)
    }
}

/// Those that wait, and who helps to make them.
#[derive(Default)]
pub(crate) struct Links {
    shared: Arc<Shared>,
    /// The real paths of all that may not be there yet.
    names: HashSet<Vec<u8>>,
    helper: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// The helper's: there is something to do. The reader's: the helper has done its last.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Link>,
    failed: Vec<Link>,
    /// The helper makes one.
    helping: bool,
    over: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The helper takes the last, as the reader takes the first: they are seldom in one directory, which they would wait for.
    fn help(&self) {
        let mut state = self.state();
        while !state.over {
            let Some(link) = state.waiting.pop_back() else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.helping = true;
            drop(state);
            let made = link.make();
            state = self.state();
            state.helping = false;
            if made.is_err() {
                state.failed.push(link);
            }
            if state.waiting.is_empty() {
                self.changed.notify_all();
            }
        }
    }

    fn make(&self, link: Link) {
        if link.make().is_err() {
            self.state().failed.push(link);
        }
    }
}

impl Links {
    /// Whether this path may not be there yet.
    pub fn has(&self, real: &[u8]) -> bool {
        self.names.contains(real)
    }

    pub fn add(&mut self, link: Link) {
        self.names.insert(link.real.clone());
        let mut state = self.shared.state();
        state.waiting.push_back(link);
        let waiting = state.waiting.len();
        let first = if waiting > WAITING { state.waiting.pop_front() } else { None };
        drop(state);
        match first {
            Some(first) => self.shared.make(first),
            None if waiting == RUN => self.call(),
            None => {}
        }
    }

    fn call(&mut self) {
        if self.helper.is_some() {
            return self.shared.changed.notify_all();
        }
        let shared = self.shared.clone();
        // Without it this thread makes them all.
        self.helper = Builder::new().name("links".to_owned()).spawn(move || shared.help()).ok();
    }

    /// Makes all that wait. What could not be made is given back, in the archive's order but for the helper's part.
    pub fn settle(&mut self) -> Vec<Link> {
        if self.names.is_empty() {
            return Vec::new();
        }
        let mut state = self.shared.state();
        loop {
            if let Some(link) = state.waiting.pop_front() {
                drop(state);
                self.shared.make(link);
                state = self.shared.state();
            } else if state.helping {
                state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            } else {
                break;
            }
        }
        self.names.clear();
        std::mem::take(&mut state.failed)
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.over = true;
        state.waiting.clear();
        drop(state);
        self.shared.changed.notify_all();
        if let Some(helper) = self.helper.take() {
            let _ = helper.join();
        }
    }
}
