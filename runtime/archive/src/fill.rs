//! Small files are filled by a thread of their own, while the next ones are made: half of the time that a file takes is
//! its name's, the other half its content's and attributes'.
//!
//! Names are made in the order of the archive, by one thread. What is done here is done by descriptor: whatever becomes of
//! the name meanwhile, it reaches the file that the entry made.

use std::{
    ffi::CString,
    os::fd::OwnedFd,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
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

/// Files up to this size are kept in memory until it is their turn.
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
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    atime: TimeSpec,
    mtime: TimeSpec,
}

impl Attributes {
    /// What the entry says. `born`: whom the thing belongs to already.
    pub(crate) fn of(entry: &Entry, born: Option<(u32, u32)>) -> Attributes {
        let owner = (entry.uid, entry.gid);
        Attributes {
            owner: (born != Some(owner)).then(|| (Uid::from_raw(owner.0), Gid::from_raw(owner.1))),
            mode: entry.mode,
            xattrs: entry.xattrs.clone(),
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
        let mut dropped = 0;
        for (key, value) in &self.xattrs {
            if !may_set(key) {
                dropped += 1;
                continue;
            }
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

/// The thread. Dropped, it ends with what it was given.
pub(crate) struct Filler {
    batch: Vec<Made>,
    give: Option<SyncSender<Vec<Made>>>,
    thread: Option<JoinHandle<Result<u64>>>,
}

impl Filler {
    pub(crate) fn start() -> Result<Filler> {
        let (give, take) = sync_channel(WAITING);
        let thread = thread::Builder::new()
            .name("fill".into())
            .spawn(move || fill(&take))
            .map_err(|error| Error::io("layer", "", "starting a thread", &error))?;
        Ok(Filler { batch: Vec::with_capacity(BATCH), give: Some(give), thread: Some(thread) })
    }

    /// Hands a file over. An error may be that of one before it.
    pub(crate) fn give(&mut self, made: Made) -> Result<()> {
        self.batch.push(made);
        if self.batch.len() < BATCH { Ok(()) } else { self.hand_over() }
    }

    fn hand_over(&mut self) -> Result<()> {
        let batch = std::mem::replace(&mut self.batch, Vec::with_capacity(BATCH));
        let given = self.give.as_ref().is_some_and(|give| give.send(batch).is_ok());
        if given { Ok(()) } else { self.join().map(drop) }
    }

    /// Waits until all are filled. Gives how many extended attributes were dropped.
    pub(crate) fn end(&mut self) -> Result<u64> {
        self.hand_over()?;
        self.join()
    }

    fn join(&mut self) -> Result<u64> {
        self.give = None;
        let gone = || Error::internal("layer", "", "the thread that fills files is gone");
        self.thread.take().map_or_else(|| Err(gone()), |thread| thread.join().unwrap_or_else(|_| Err(gone())))
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        if self.thread.is_some() {
            // Somebody else's error is told.
            let _ = self.join();
        }
    }
}

fn fill(take: &Receiver<Vec<Made>>) -> Result<u64> {
    take.iter().flatten().map(|made| made.fill()).sum()
}
