//! After a sync that failed nobody knows what the disk has. The pages that it did not take stay in memory and count as clean: who
//! opens the file again would read them for what is there, and no later sync writes them. So from then on the file is in doubt,
//! until what is read of it is what the disk has.
//!
//! A file beside it says so too: the pages outlive the daemon, and go with the host.

use std::{
    fs::{self, File},
    io::{self, ErrorKind},
    os::{
        fd::AsRawFd as _,
        unix::fs::{FileExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use cofferdam_types::{Error, Result};
use nix::{
    errno::Errno,
    fcntl::{OFlag, PosixFadviseAdvice, posix_fadvise},
    sys::statfs::{TMPFS_MAGIC, fstatfs},
};

/// What is compared at a time.
const CHUNK: usize = 1 << 20;
/// How often it is tried to read what the disk has.
const TRIES: u32 = 3;
/// What a disk reads whole, at least.
const ALIGN: usize = 4096;

/// Whether a file is in doubt.
#[derive(Debug, Default)]
pub(crate) struct Doubt {
    raised: AtomicBool,
    mark: Option<PathBuf>,
}

impl Doubt {
    /// Of these tables.
    pub(crate) fn of(tables: &Path) -> Doubt {
        let mark = tables.with_extension("redb.doubt");
        Doubt { raised: AtomicBool::new(mark.exists()), mark: Some(mark) }
    }

    pub(crate) fn is_raised(&self) -> bool {
        self.raised.load(Ordering::Relaxed)
    }

    /// A sync failed.
    pub(crate) fn raise(&self) {
        self.raised.store(true, Ordering::Relaxed);
        let marked = self.mark.as_ref().map_or(Ok(()), |mark| {
            File::options().write(true).create(true).truncate(false).mode(0o600).open(mark).map(drop)
        });
        if let Err(error) = marked {
            tracing::warn!(%error, "only this daemon knows that meta.redb is in doubt");
        }
    }

    /// Sees to it that what is read of the file is what the disk has. The file is nobody else's meanwhile.
    pub(crate) fn settle(&self, file: &File) -> Result<()> {
        tracing::warn!("the disk did not take all that was written into meta.redb: it is read anew");
        let fault = |e: &io::Error| {
            Error::io(
                "metadata",
                "",
                "meta.redb can't be compared with what the disk has of it, and isn't used before",
                e,
            )
        };
        // What is still on its way to the disk is written before that is read, and tells once more that it can't be.
        let mut read = reread(file);
        for _ in 1..TRIES {
            read = read.or_else(|_| reread(file));
        }
        read.map_err(|e| fault(&e))?;
        self.raised.store(false, Ordering::Relaxed);
        match self.mark.as_ref().map_or(Ok(()), fs::remove_file) {
            // On a full disk there may be no room for that. The next start compares once more.
            Err(error) if error.kind() != ErrorKind::NotFound => {
                tracing::warn!(%error, "the mark of a doubt that is over stays");
            }
            _ => {}
        }
        Ok(())
    }
}

fn reread(file: &File) -> io::Result<()> {
    let opened = File::options()
        .read(true)
        .custom_flags(OFlag::O_DIRECT.bits())
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let disk = match opened {
        // There memory is all that it has.
        Err(_) if fstatfs(file)?.filesystem_type() == TMPFS_MAGIC => return Ok(()),
        opened => opened?,
    };
    let forget = |at: u64| Ok(posix_fadvise(file, at as i64, CHUNK as i64, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?);
    compare(&|into, at| disk.read_at(into, at), &|into, at| file.read_at(into, at), &forget)
}

type ReadAt<'a> = &'a dyn Fn(&mut [u8], u64) -> io::Result<usize>;

/// Has memory forget what is not what the disk has.
fn compare(disk: ReadAt<'_>, memory: ReadAt<'_>, forget: &dyn Fn(u64) -> io::Result<()>) -> io::Result<()> {
    let mut room = vec![0; CHUNK + ALIGN];
    // What goes past memory goes to where a disk can put it.
    let aligned = room.as_ptr().align_offset(ALIGN).min(ALIGN);
    let (theirs, mut ours) = (&mut room[aligned..aligned + CHUNK], vec![0; CHUNK]);
    let mut at = 0;
    loop {
        let there = full(disk, theirs, at)?;
        let same =
            |ours: &mut [u8]| Ok::<_, io::Error>(full(memory, ours, at)? == there && ours[..there] == theirs[..there]);
        if !same(&mut ours)? {
            tracing::warn!(at, "of what is in memory of meta.redb the disk has something else");
            forget(at)?;
            if !same(&mut ours)? {
                return Err(io::Error::other("memory goes on to show what the disk doesn't have"));
            }
        }
        if there < CHUNK {
            return Ok(());
        }
        at += CHUNK as u64;
    }
}

/// Reads until there is no more.
fn full(read: ReadAt<'_>, into: &mut [u8], at: u64) -> io::Result<usize> {
    let mut got = 0;
    while got < into.len() {
        match read(&mut into[got..], at + got as u64) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            // The end of a file that isn't whole blocks long: what is left is shorter than one.
            Err(e) if e.raw_os_error() == Some(Errno::EINVAL as i32) && !got.is_multiple_of(ALIGN) => break,
            Err(e) => return Err(e),
        }
    }
    Ok(got)
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    #[test]
    fn what_memory_has_and_the_disk_has_not_is_forgotten() {
        let disk: Vec<u8> = (0..CHUNK * 2 + 777).map(|i| (i / 3) as u8).collect();
        let memory = RefCell::new(disk.clone());
        memory.borrow_mut()[CHUNK + 5] ^= 1;
        let read = |from: &[u8], into: &mut [u8], at: u64| {
            let rest = &from[(at as usize).min(from.len())..];
            // In pieces, as a file may give it.
            let n = rest.len().min(into.len()).min(300_000);
            into[..n].copy_from_slice(&rest[..n]);
            Ok(n)
        };
        let (forgotten, deaf) = (RefCell::new(Vec::new()), Cell::new(true));
        let run = || {
            let forget = |at: u64| {
                forgotten.borrow_mut().push(at);
                if !deaf.get() {
                    memory.borrow_mut().clone_from(&disk);
                }
                Ok(())
            };
            compare(&|into, at| read(&disk, into, at), &|into, at| read(&memory.borrow(), into, at), &forget)
        };
        assert!(run().is_err(), "what memory doesn't let go of is not used");
        deaf.set(false);
        run().unwrap();
        assert_eq!(*forgotten.borrow(), [CHUNK as u64; 2], "that piece alone");
        // One that is longer, or shorter, in memory.
        for len in [CHUNK * 2 + 700, CHUNK * 2 + 999, CHUNK, 0] {
            memory.borrow_mut().resize(len, 7);
            run().unwrap();
            assert!(*memory.borrow() == disk, "{len}");
        }
    }

    #[test]
    fn a_real_file_is_read_past_memory_and_the_doubt_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("meta.redb");
        for len in [0, 1, 4096, CHUNK - 1, CHUNK, 3 * CHUNK + 4097] {
            std::fs::write(&path, vec![9; len]).unwrap();
            let file = File::options().read(true).write(true).open(&path).unwrap();
            Doubt::of(&path).raise();
            // Another daemon, of the same host.
            let doubt = Doubt::of(&path);
            assert!(doubt.is_raised());
            doubt.settle(&file).unwrap();
            assert!(!doubt.is_raised() && !Doubt::of(&path).is_raised(), "{len}");
        }
        assert!(!Doubt::default().is_raised());
    }
}
