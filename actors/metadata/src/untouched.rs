//! A damaged file stays as it was. redb may choose another commit in its head before it finds that there is no good one, and
//! what is read of the file afterwards would be of that.
//!
//! What is noted is noted under redb's lock: before that another process may still write, and what it wrote would be undone.

use std::{
    fs::File,
    io::{self, ErrorKind},
    ops::Bound,
    os::unix::fs::FileExt as _,
    panic::{AssertUnwindSafe, catch_unwind},
};

use cofferdam_kernel::panic_text;
use cofferdam_types::{Error, Result};
use redb::{Database, DatabaseError, StorageBackend as _, StorageError, backends::FileBackend};

use crate::table::storage;

/// What an attempt to open may change.
const HEAD: u64 = 4096;

/// A file that is this process's alone: its head, and how long it is.
pub(crate) struct Untouched {
    locked: FileBackend,
    file: File,
    head: Vec<u8>,
    length: u64,
}

/// Locks a file, all of it: whatever redb locks lies in that. `None`: somebody has it.
pub(crate) fn lock(file: File) -> Result<Option<FileBackend>> {
    let backend = FileBackend::new(file).map_err(storage)?;
    // Where there are no locks redb takes none either.
    let locked = backend.try_lock_range(Bound::Unbounded, Bound::Unbounded).unwrap_or(true);
    Ok(locked.then_some(backend))
}

impl Untouched {
    /// Locks a file, and notes how it is. `None`: somebody has it.
    pub(crate) fn lock(file: File) -> Result<Option<Untouched>> {
        let fault = |e: io::Error| Error::io("metadata", "", "opening meta.redb", &e);
        let held = file.try_clone().map_err(fault)?;
        let Some(locked) = lock(held)? else { return Ok(None) };
        let length = file.metadata().map_err(fault)?.len();
        let mut head = vec![0; length.min(HEAD) as usize];
        file.read_exact_at(&mut head, 0).map_err(fault)?;
        Ok(Some(Untouched { locked, file, head, length }))
    }

    /// To be read, under the same lock.
    pub(crate) fn file(&self) -> Result<File> {
        self.file.try_clone().map_err(|e| Error::io("metadata", "", "opening meta.redb", &e))
    }

    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Opens it, and puts back what that has changed of a file that turns out to be damaged.
    pub(crate) fn open(self, open: impl FnOnce(FileBackend) -> Result<Database, DatabaseError>) -> Result<Database> {
        let Untouched { locked, file, head, length } = self;
        let opened = catch_unwind(AssertUnwindSafe(|| open(locked)));
        let broken = match &opened {
            Ok(Err(DatabaseError::Storage(StorageError::Corrupted(_)))) | Err(_) => true,
            Ok(Err(DatabaseError::Storage(StorageError::Io(e)))) => {
                matches!(e.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof)
            }
            Ok(_) => false,
        };
        if broken {
            restore(&file, &head, length)
                .unwrap_or_else(|error| tracing::error!(%error, "the head of meta.redb can't be put back"));
        }
        let opened =
            opened.unwrap_or_else(|panic| Err(DatabaseError::Storage(StorageError::Corrupted(panic_text(&*panic)))));
        opened.map_err(storage)
    }
}

/// redb has let go of it: who has taken it since does the same with what he finds.
fn restore(file: &File, head: &[u8], length: u64) -> Result<()> {
    let fault = |e: io::Error| Error::io("metadata", "", "meta.redb", &e);
    let Some(_locked) = lock(file.try_clone().map_err(fault)?)? else { return Ok(()) };
    let put_back = || {
        if file.metadata()?.len() != length {
            file.set_len(length)?;
        }
        let mut now = vec![0; head.len()];
        file.read_exact_at(&mut now, 0)?;
        if now != head {
            file.write_all_at(head, 0)?;
            file.sync_data()?;
        }
        Ok(())
    };
    put_back().map_err(fault)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_of_a_file_no_other_process_writes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let file = || File::options().read(true).write(true).create(true).truncate(false).open(&path).unwrap();
        let open = || Database::builder().create_with_backend(FileBackend::new(file()).unwrap());
        let other = open().unwrap();
        assert!(Untouched::lock(file()).unwrap().is_none(), "another writes it");
        drop(other);
        let mine = Untouched::lock(file()).unwrap().unwrap();
        assert!(matches!(open(), Err(DatabaseError::DatabaseAlreadyOpen)), "it is noted, and not held");
        // The lock is redb's own from then on, and goes with it.
        let mine = mine.open(|below| Database::builder().create_with_backend(below)).unwrap();
        assert!(Untouched::lock(file()).unwrap().is_none());
        drop(mine);
        let mine = Untouched::lock(file()).unwrap().unwrap();
        let damaged = || DatabaseError::Storage(StorageError::Corrupted("all of it".into()));
        let written = |below: FileBackend| {
            below.write(0, b"something else").unwrap();
            below.set_len(100_000).unwrap();
            below.close().unwrap();
            Err(damaged())
        };
        let before = std::fs::read(&path).unwrap();
        mine.open(written).unwrap_err();
        assert!(std::fs::read(&path).unwrap() == before, "it is not put back");
    }
}
