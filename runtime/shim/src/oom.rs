//! A container that runs out of memory: counted, and in the life record before anybody hears of it.

use std::{
    cell::Cell,
    rc::{Rc, Weak},
    time::{Duration, Instant},
};

use tokio::{
    io::{Interest, unix::AsyncFd},
    task::JoinHandle,
};

use crate::container::Container;

/// A container that ends at once need not be watched: its exit looks at the count itself.
const LATER: Duration = Duration::from_millis(100);
/// The news of v1 come before the kill: how long is looked for it.
const LOOKS: [u64; 6] = [0, 1, 5, 20, 100, 300];
/// The kernel's SIGKILL reaches a process at once, but it may take a while to let go of its memory.
const RECENT: Duration = Duration::from_secs(2);

/// What is known of a container's memory.
#[derive(Default)]
pub struct Oom {
    /// Times that it stood still, where nobody is killed for it.
    stalls: Cell<u64>,
    seen: Cell<u64>,
    rise: Cell<Option<Instant>>,
    watcher: Cell<Option<JoinHandle<()>>>,
}

impl Oom {
    /// Whether somebody was killed just now.
    pub fn recent(&self) -> bool {
        self.rise.get().is_some_and(|rise| rise.elapsed() < RECENT)
    }

    /// Takes in how often somebody was killed; gives the whole count if it is a new one.
    pub fn count(&self, kills: u64) -> Option<u64> {
        let all = kills + self.stalls.get();
        if all <= self.seen.get() {
            return None;
        }
        self.rise.set(Some(Instant::now()));
        self.seen.set(all);
        Some(all)
    }

    fn stalled(&self) {
        self.stalls.set(self.stalls.get() + 1);
    }

    /// Watches from now on, until it is told to stop.
    pub fn start(&self, container: &Rc<Container>) {
        self.watcher.set(Some(tokio::task::spawn_local(watch(Rc::downgrade(container)))));
    }

    /// The container's cgroup goes.
    pub fn stop(&self) {
        if let Some(watcher) = self.watcher.take() {
            watcher.abort();
        }
    }
}

async fn watch(container: Weak<Container>) {
    tokio::time::sleep(LATER).await;
    let Some(watched) = container.upgrade().map(|container| container.watch_oom()) else { return };
    let watched = watched.and_then(|watch| {
        // SAFETY: the watch keeps its descriptor, open and the same, for as long as the `AsyncFd` owns it.
        let fd = watch.map(|watch| unsafe { AsyncFd::register_with_interest(watch, Interest::READABLE) }).transpose();
        fd.map_err(|e| cofferdam_types::Error::io("cgroup", "", "its memory can't be watched", &e.into()))
    });
    let fd = match watched {
        Ok(Some(fd)) => fd,
        Ok(None) => return,
        // Ends are told from the count all the same.
        Err(error) => return crate::complain(error),
    };
    // What came before the watch.
    let mut news = false;
    loop {
        let mut found = false;
        for pause in LOOKS {
            tokio::time::sleep(Duration::from_millis(pause)).await;
            let Some(container) = container.upgrade() else { return };
            found = container.look_for_ooms();
            if found || !news {
                break;
            }
        }
        if news && !found {
            let Some(container) = container.upgrade() else { return };
            if container.under_oom() {
                container.oom.stalled();
                container.look_for_ooms();
            }
        }
        let Ok(mut ready) = fd.readable().await else { return };
        if fd.get_ref().taken().is_err() {
            return;
        }
        ready.clear_ready();
        news = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kill_is_counted_once() {
        let oom = Oom::default();
        assert_eq!((oom.count(0), oom.recent()), (None, false));
        assert_eq!((oom.count(2), oom.recent()), (Some(2), true));
        assert_eq!(oom.count(2), None);
        oom.stalled();
        assert_eq!((oom.count(2), oom.count(2), oom.count(3)), (Some(3), None, Some(4)));
    }
}
