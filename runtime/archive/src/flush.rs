//! Begins to write to the disk while a large layer is still being unpacked: the caller syncs at the end, and would wait for
//! all of it then.

use std::{
    os::fd::{BorrowedFd, OwnedFd},
    sync::mpsc::{SyncSender, sync_channel},
    thread::{self, JoinHandle},
};

use cofferdam_types::{Error, Result};
use nix::unistd::syncfs;

/// After so many bytes. A smaller layer is synced once, at its end.
const STEP: u64 = 32 << 20;
/// What a file takes beside its content.
const ENTRY: u64 = 4 << 10;

/// The thread, and what it has not been told of yet.
pub(crate) struct Flusher {
    wake: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
    written: u64,
}

impl Flusher {
    pub(crate) fn start(root: BorrowedFd) -> Result<Flusher> {
        let root: OwnedFd = root.try_clone_to_owned().map_err(|error| Error::io("layer", "", "its tree", &error))?;
        // One round at a time: while it syncs, what comes meanwhile is one more.
        let (wake, woken) = sync_channel(1);
        let sync = move || {
            for () in woken {
                // The caller's own sync tells what fails: an error is given to every descriptor that was open.
                let _ = syncfs(&root);
            }
        };
        let thread = thread::Builder::new().name("flush".into()).spawn(sync);
        let thread = thread.map_err(|error| Error::io("layer", "", "starting a thread", &error))?;
        Ok(Flusher { wake: Some(wake), thread: Some(thread), written: 0 })
    }

    /// Another entry was made.
    pub(crate) fn entry(&mut self) {
        self.wrote(ENTRY);
    }

    /// So many bytes more.
    pub(crate) fn wrote(&mut self, bytes: u64) {
        self.written += bytes;
        if self.written >= STEP {
            self.written = 0;
            let _ = self.wake.as_ref().map(|wake| wake.try_send(()));
        }
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        self.wake = None;
        // It holds a descriptor of a tree that its owner may be about to mount or to remove.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
