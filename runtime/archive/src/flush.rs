//! Begins to write to the disk while a large layer is still being unpacked: the caller syncs at the end, and would wait for
//! all of it then.
//!
//! Each large layer has a thread for it, not all of them one: an error of the disk's is told to each descriptor once, so each tree
//! needs a sync through its own to hear of what became of it, and a round for one would keep the others' waiting. There are
//! no more of them than layers are unpacked at once, which a pool bounds, and each sleeps in the kernel, where rounds that come
//! together write the same pages once.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
};

use cofferdam_types::Result;
use nix::unistd::syncfs;

use crate::at::fail;

/// After so many bytes. A smaller layer is synced once, at its end.
const STEP: u64 = 32 << 20;
/// What a file takes beside its content.
const ENTRY: u64 = 4 << 10;

/// The thread, once there was enough to write, and what it has not been told of yet.
pub(crate) struct Flusher<'a> {
    root: BorrowedFd<'a>,
    running: Option<Running>,
    written: u64,
}

struct Running {
    wake: SyncSender<()>,
    over: Arc<AtomicBool>,
    thread: JoinHandle<nix::Result<()>>,
}

impl<'a> Flusher<'a> {
    pub(crate) fn new(root: BorrowedFd<'a>) -> Flusher<'a> {
        Flusher { root, running: None, written: 0 }
    }

    /// Another entry was made.
    pub(crate) fn entry(&mut self) {
        self.wrote(ENTRY);
    }

    /// So many bytes more.
    pub(crate) fn wrote(&mut self, bytes: u64) {
        self.written += bytes;
        if self.written < STEP {
            return;
        }
        self.written = 0;
        if self.running.is_none() {
            // Without it all is written at the end.
            self.running = start(self.root).ok();
        }
        if let Some(running) = &self.running {
            let _ = running.wake.try_send(());
        }
    }

    /// Ends it. An error is one of the disk's, which is told to each descriptor once: the caller's sync may not hear of it
    /// again.
    pub(crate) fn end(&mut self) -> Result<()> {
        let Some(Running { wake, over, thread }) = self.running.take() else { return Ok(()) };
        over.store(true, Ordering::Relaxed);
        drop(wake);
        match thread.join() {
            Ok(Err(errno)) => Err(fail(b"", "writing it to the disk", errno)),
            _ => Ok(()),
        }
    }
}

fn start(root: BorrowedFd) -> io::Result<Running> {
    let root: OwnedFd = root.try_clone_to_owned()?;
    // One round at a time: while it syncs, what comes meanwhile is one more.
    let (wake, woken) = sync_channel(1);
    let over = Arc::new(AtomicBool::new(false));
    let ended = over.clone();
    let sync = move || woken.iter().take_while(|()| !ended.load(Ordering::Relaxed)).try_for_each(|()| syncfs(&root));
    let thread = thread::Builder::new().name("flush".into()).spawn(sync)?;
    Ok(Running { wake, over, thread })
}

impl Drop for Flusher<'_> {
    fn drop(&mut self) {
        // It holds a descriptor of a tree that its owner may be about to mount or to remove.
        let _ = self.end();
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::AsFd as _};

    use nix::{
        errno::Errno,
        fcntl::{OFlag, open},
        sys::stat::Mode,
    };

    use super::*;

    #[test]
    fn enough_is_written_before_the_end_and_little_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let root = File::open(dir.path()).unwrap();
        let mut flusher = Flusher::new(root.as_fd());
        flusher.wrote(STEP - ENTRY - 1);
        flusher.entry();
        assert!(flusher.running.is_none());
        flusher.wrote(1);
        assert!(flusher.running.is_some());
        flusher.end().unwrap();
    }

    #[test]
    fn what_the_disk_says_is_told() {
        // A descriptor that can't be synced stands for a disk that fails.
        let root = open("/", OFlag::O_PATH, Mode::empty()).unwrap();
        let mut flusher = Flusher::new(root.as_fd());
        flusher.wrote(STEP);
        let thread = &flusher.running.as_ref().unwrap().thread;
        while !thread.is_finished() {
            thread::yield_now();
        }
        let error = flusher.end().unwrap_err();
        assert!(error.to_string().contains(&io::Error::from(Errno::EBADF).to_string()), "{error}");
    }
}
