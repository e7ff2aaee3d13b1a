//! Shims are children of the daemon, and those of its actor that crashed are taken in by the next one.

use std::{
    collections::BTreeMap,
    process::Child,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::io::{Interest, unix::AsyncFd};

/// Those that have not been taken in.
#[derive(Clone, Debug, Default)]
pub struct Children(Arc<Mutex<BTreeMap<u32, Child>>>);

impl Children {
    fn all(&self) -> MutexGuard<'_, BTreeMap<u32, Child>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that was just started; gives its pid, which is its own until it is taken in.
    pub(crate) fn add(&self, child: Child) -> u32 {
        let pid = child.id();
        self.all().insert(pid, child);
        pid
    }

    /// Takes each in that is there now, when it ends.
    pub(crate) fn reap_all(&self) {
        for pid in self.all().keys().copied() {
            let children = self.clone();
            tokio::task::spawn_local(async move { children.reap(pid).await });
        }
    }

    /// Waits for the end of one, and takes it in.
    pub(crate) async fn reap(&self, pid: u32) {
        let ended = self.all().get_mut(&pid).is_none_or(|child| matches!(child.try_wait(), Ok(Some(_))));
        if ended {
            self.all().remove(&pid);
            return;
        }
        if let Ok(pidfd) = cofferdam_sys::process::pidfd_open(pid as i32)
            // SAFETY: an `OwnedFd` stays open and the same for as long as the `AsyncFd` owns it.
            && let Ok(watched) = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }
        {
            let _ = watched.readable().await.map(|mut ready| ready.retain_ready());
        }
        let Some(mut child) = self.all().remove(&pid) else { return };
        // It has ended: this waits for nothing. Without a pidfd it waits, and holds up nobody.
        let _ = tokio::task::spawn_blocking(move || child.wait()).await;
    }

    /// Kills one and takes it in.
    pub(crate) fn end(&self, pid: u32) {
        let child = self.all().remove(&pid);
        if let Some(mut child) = child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
