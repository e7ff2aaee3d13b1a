//! Small files are filled by a thread of their own, while the next ones are made: half of the time that a file takes is
//! its name's, the other half its content's and attributes'.
//!
//! Names are made in the order of the archive, by one thread. What is done here is done by descriptor: whatever becomes of
//! the name meanwhile, it reaches the file that the entry made.
//!
//! Each layer has its own, once it has a small file: what is handed over is in the order of one archive, its first error is that
//! layer's, and a layer that is slow to be filled holds up no other. There are no more of them than layers are unpacked at
//! once.

use std::{
    ffi::CString,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
};

use cofferdam_types::{Error, Result};
use nix::{
    errno::Errno,
    sys::{
        stat::{Mode, fchmod, futimens},
        time::TimeSpec,
    },
    unistd::{Gid, Uid, fchown, write},
};

use crate::{
    at::{self, fail},
    header::malformed,
    reader::Entry,
};

/// Files up to this size, with their attributes, are kept in memory until it is their turn.
pub(crate) const SMALL: u64 = 16 << 10;
/// So many are handed over at once, since to wake a thread takes as long as to fill some;
const BATCH: usize = 32;
/// and so many times that much may wait.
const WAITING: usize = 8;

/// Owner, mode, extended attributes and times.
pub(crate) struct Attributes {
    /// `None`: it is right as it is.
    owner: Option<(Uid, Gid)>,
    mode: Mode,
    /// Those that an image may set.
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// How many others there were.
    dropped: u64,
    atime: TimeSpec,
    mtime: TimeSpec,
}

impl Attributes {
    /// What the entry says. `born`: whom the thing belongs to already.
    pub(crate) fn of(entry: &Entry, born: Option<(u32, u32)>) -> Attributes {
        let owner = (entry.uid, entry.gid);
        let xattrs: Vec<_> = entry.xattrs.iter().filter(|(key, _)| may_set(key)).cloned().collect();
        Attributes {
            owner: (born != Some(owner)).then(|| (Uid::from_raw(owner.0), Gid::from_raw(owner.1))),
            mode: entry.mode,
            dropped: (entry.xattrs.len() - xattrs.len()) as u64,
            xattrs,
            atime: entry.atime,
            mtime: entry.mtime,
        }
    }

    /// All but the times, in the order in which none undoes another: a write or a chown clears set-id bits and file
    /// capabilities. Gives how many extended attributes were dropped.
    pub(crate) fn set(&self, fd: &OwnedFd, real: &[u8]) -> Result<u64> {
        if let Some((uid, gid)) = self.owner {
            fchown(fd, Some(uid), Some(gid)).map_err(|errno| fail(real, "setting the owner", errno))?;
        }
        fchmod(fd, self.mode).map_err(|errno| fail(real, "setting the mode", errno))?;
        let mut dropped = self.dropped;
        for (key, value) in &self.xattrs {
            let name =
                CString::new(&key[..]).map_err(|_| malformed(real, "an extended attribute's name holds a NUL"))?;
            match at::set_xattr(fd, &name, value) {
                Ok(()) => {}
                Err(Errno::EOPNOTSUPP) => dropped += 1,
                Err(errno) => return Err(fail(real, "setting an extended attribute", errno)),
            }
        }
        Ok(dropped)
    }

    /// How much memory they take beside what each file's take.
    pub(crate) fn size(&self) -> u64 {
        self.xattrs.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>() as u64
    }

    /// The times, which come last.
    pub(crate) fn set_times(&self, fd: &OwnedFd, real: &[u8]) -> Result<()> {
        futimens(fd, &self.atime, &self.mtime).map_err(|errno| fail(real, "setting times", errno))
    }
}

/// Whether an image may set this attribute. `security.capability` is part of how its programs work; other `security.*`
/// is the host's policy, `trusted.*` and `user.overlay.*` steer overlayfs.
pub(crate) fn may_set(key: &[u8]) -> bool {
    key == b"security.capability" || key.starts_with(b"user.") && !key.starts_with(b"user.overlay.")
}

/// Writes all of it.
pub(crate) fn write_all(fd: &OwnedFd, mut bytes: &[u8], real: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        match write(fd, bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(fail(real, "writing a file", errno)),
        }
    }
    Ok(())
}

/// A file that was made.
pub(crate) struct Made {
    pub(crate) fd: OwnedFd,
    pub(crate) bytes: Vec<u8>,
    pub(crate) attributes: Attributes,
    pub(crate) real: Vec<u8>,
}

impl Made {
    /// Gives how many extended attributes were dropped.
    fn fill(&self) -> Result<u64> {
        write_all(&self.fd, &self.bytes, &self.real)?;
        let dropped = self.attributes.set(&self.fd, &self.real)?;
        self.attributes.set_times(&self.fd, &self.real)?;
        Ok(dropped)
    }
}

/// The thread. Dropped, it ends when all that it was given is done: what was unpacked before an error stays.
pub(crate) struct Filler {
    batch: Vec<Made>,
    give: Option<SyncSender<Vec<Made>>>,
    failed: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<u64>>>,
}

impl Filler {
    pub(crate) fn start() -> Result<Filler> {
        let (give, take) = sync_channel(WAITING);
        let failed = Arc::new(AtomicBool::new(false));
        let theirs = failed.clone();
        let thread = thread::Builder::new()
            .name("fill".into())
            .spawn(move || fill(&take, &theirs))
            .map_err(|error| Error::io("layer", "", "starting a thread", &error))?;
        Ok(Filler { batch: Vec::with_capacity(BATCH), give: Some(give), failed, thread: Some(thread) })
    }

    /// Hands a file over. An error may be that of one before it.
    pub(crate) fn give(&mut self, made: Made) -> Result<()> {
        self.batch.push(made);
        if self.failed.load(Ordering::Relaxed) {
            return self.end().map(drop);
        }
        if self.batch.len() == BATCH {
            self.hand_over();
        }
        Ok(())
    }

    fn hand_over(&mut self) {
        let batch = std::mem::replace(&mut self.batch, Vec::with_capacity(BATCH));
        if let Some(give) = &self.give {
            // It takes all, unless it has panicked, which its end tells.
            let _ = give.send(batch);
        }
    }

    /// Waits until all are filled. Gives how many extended attributes were dropped, or the first error.
    pub(crate) fn end(&mut self) -> Result<u64> {
        self.hand_over();
        self.give = None;
        let gone = || Error::internal("layer", "", "the thread that fills files is gone");
        self.thread.take().map_or_else(|| Err(gone()), |thread| thread.join().unwrap_or_else(|_| Err(gone())))
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        if self.thread.is_some() {
            // Somebody else's error is told.
            let _ = self.end();
        }
    }
}

/// One that fails keeps no other from being filled.
fn fill(take: &Receiver<Vec<Made>>, failed: &AtomicBool) -> Result<u64> {
    let mut done = Ok(0);
    for made in take.iter().flatten() {
        match (made.fill(), &mut done) {
            (Ok(dropped), Ok(all)) => *all += dropped,
            (Err(error), Ok(_)) => {
                failed.store(true, Ordering::Relaxed);
                done = Err(error);
            }
            (_, Err(_)) => {}
        }
    }
    done
}
