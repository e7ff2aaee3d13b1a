//! How the database file is opened: the one that is written, one that is damaged or lies on a disk that is read-only, and those
//! that are in memory.

use std::{
    fs::File,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use cofferdam_types::{Error, Result};
use nix::fcntl::OFlag;
use redb::{
    Builder, Database, DatabaseError, ReadableDatabase as _, ReadableTableMetadata as _, StorageError, TableError,
    backends::{FileBackend, InMemoryBackend},
};

use crate::{
    ahead::{Ahead, Known},
    frozen::Frozen,
    rebuild,
    salvage::Salvage,
    table::{Table, storage},
    untouched::Untouched,
};

/// redb's cache; unset it may take a gigabyte.
const CACHE: usize = 4 << 20;

/// How long a daemon that was killed may take to let go of the file.
const DYING: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(10);
/// A file larger than this is looked at when it is opened: a store that only ever grows fills the disk in the end.
const LARGE: u64 = 64 << 20;
/// After a kill a file up to this length is scanned, which takes some 3 ms for each MiB; that saves every commit the
/// second of two syncs. A longer one is committed so that it can be opened at once.
const SCANNED: u64 = 8 << 20;

/// What a row has at most on average, where a file is full of them.
const ROW: u64 = 512;

/// Gives back what the file does not need, if that is more than three quarters of it.
fn shrink(database: &mut Database, length: u64) -> Result<()> {
    // What is stored is found out by reading it, which a large store must not be late for: it is, if there are few rows.
    let read = database.begin_read().map_err(storage)?;
    let rows = |table: &Table| match read.open_table(table.definition()) {
        Ok(table) => table.len().map_err(storage),
        Err(TableError::TableDoesNotExist(_)) => Ok(0),
        Err(error) => Err(storage(error)),
    };
    let rows = Table::ALL.iter().map(rows).sum::<Result<u64>>()?;
    drop(read);
    if rows.saturating_mul(ROW) >= length / 4 {
        return Ok(());
    }
    let txn = database.begin_write().map_err(storage)?;
    let stored = txn.stats().map_err(storage)?.stored_bytes();
    txn.abort().map_err(storage)?;
    if stored < length / 4 {
        tracing::info!(length, stored, "compacting meta.redb");
        database.compact().map_err(storage)?;
    }
    Ok(())
}

/// How the database is opened, each time.
pub(crate) struct Opener {
    pub(crate) open: Box<dyn Fn(Known) -> Result<Database> + Send + Sync>,
    /// And where its file system is read-only.
    pub(crate) frozen: Option<PathBuf>,
    /// Of the file, while it is open.
    pub(crate) known: Known,
    pub(crate) scanned: u64,
}

/// What a file of this length is opened with. A short one redb reads whole and compares with its checksums: what something
/// else has altered is found before it is believed, or written over. Of a long one [`Salvage::verify`] finds it, in a tenth
/// of the time.
fn builder(length: u64, scanned: u64) -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE);
    builder.set_check_integrity_on_open(length > 0 && length <= scanned);
    builder
}

impl Opener {
    /// A file, made if it is not there.
    pub(crate) fn file(path: &Path) -> Opener {
        let (path, frozen) = (PathBuf::from(path), Some(PathBuf::from(path)));
        let known = Known::of(&path);
        // Once in a life: after a fault it is the same file.
        let verified = AtomicBool::new(false);
        let open = move |facts: Known| {
            let fresh = !path.exists();
            // Records hold what clients put into environments and labels: nobody else reads them.
            let end = Instant::now() + DYING;
            let (mut database, length) = loop {
                let file = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
                let file = file.map_err(|e| Error::io("metadata", "", "opening meta.redb", &e))?;
                let Some(untouched) = Untouched::lock(file)? else {
                    if Instant::now() < end {
                        std::thread::sleep(LOOK);
                        continue;
                    }
                    return Err(storage(DatabaseError::DatabaseAlreadyOpen));
                };
                if facts.doubt().is_raised() {
                    facts.doubt().settle(&untouched.file()?)?;
                    verified.store(false, Ordering::Relaxed);
                    // What was noted of it is what memory had.
                    continue;
                }
                let length = untouched.length();
                // A short one redb reads whole itself.
                if length > SCANNED && !verified.load(Ordering::Relaxed) {
                    Salvage::of(untouched.file()?)?.verify()?;
                    verified.store(true, Ordering::Relaxed);
                }
                let opened = untouched.open(|below| {
                    let backend = Ahead::new(below, SCANNED, facts.clone());
                    builder(length, SCANNED).create_with_backend(backend.map_err(StorageError::Io)?)
                });
                break (opened?, length);
            };
            if length > LARGE {
                shrink(&mut database, length)?;
            }
            if fresh {
                // A new file survives a power cut only once its directory is synced.
                let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
                File::open(parent)
                    .and_then(|dir| dir.sync_all())
                    .map_err(|e| Error::io("metadata", "", "syncing the directory of meta.redb", &e))?;
            }
            Ok(database)
        };
        Opener { open: Box::new(open), frozen, known, scanned: SCANNED }
    }

    /// What is readable of a damaged file: each time it is read anew.
    pub(crate) fn salvaged(path: &Path) -> Opener {
        let path = PathBuf::from(path);
        let open = move |_| rebuild::readable(&path, SCANNED);
        Opener { open: Box::new(open), frozen: None, known: Known::new(Arc::new(())), scanned: u64::MAX }
    }

    /// Memory.
    pub(crate) fn memory() -> Opener {
        let open = |_| builder(0, 0).create_with_backend(InMemoryBackend::new()).map_err(storage);
        Opener { open: Box::new(open), frozen: None, known: Known::new(Arc::new(())), scanned: u64::MAX }
    }

    /// A file without a name, which goes with who opened it.
    pub(crate) fn unnamed(dir: &Path) -> Opener {
        let dir = PathBuf::from(dir);
        let open = move |_| {
            let file = File::options()
                .read(true)
                .write(true)
                .custom_flags(OFlag::O_TMPFILE.bits())
                .mode(0o600)
                .open(&dir)
                .map_err(|e| Error::io("metadata", dir.display(), "making a file for what is readable", &e))?;
            builder(0, 0).create_with_backend(FileBackend::new(file).map_err(storage)?).map_err(storage)
        };
        Opener { open: Box::new(open), frozen: None, known: Known::new(Arc::new(())), scanned: u64::MAX }
    }

    /// Any backend: how tests come between the database and the disk.
    #[cfg(test)]
    pub(crate) fn backend<B: redb::StorageBackend>(
        scanned: u64,
        backend: impl Fn() -> B + Send + Sync + 'static,
    ) -> Opener {
        Opener::reserved(scanned, backend, Arc::new(()))
    }

    /// The same with room that is kept.
    #[cfg(test)]
    pub(crate) fn reserved<B: redb::StorageBackend>(
        scanned: u64,
        backend: impl Fn() -> B + Send + Sync + 'static,
        reserve: Arc<dyn crate::reserve::Reserve>,
    ) -> Opener {
        let open = move |facts: Known| {
            let backend = backend();
            // A backend that can't say how long it is says so again, to redb.
            let length = backend.len().unwrap_or(0);
            let backend = Ahead::new(backend, scanned, facts).map_err(StorageError::Io).map_err(storage)?;
            builder(length, scanned).create_with_backend(backend).map_err(storage)
        };
        Opener { open: Box::new(open), frozen: None, known: Known::new(reserve), scanned }
    }
}

/// A file that can't be written, as it is. Nobody else can write it either.
pub(crate) fn frozen(path: &Path, facts: &Known) -> Result<Database> {
    let fault = |e: std::io::Error| Error::io("metadata", "", "opening meta.redb to read it", &e);
    let file = File::open(path).map_err(fault)?;
    if facts.doubt().is_raised()
        && let Err(error) = facts.doubt().settle(&file)
    {
        // As long as memory has what the disk can't take, nothing is read past it. That was acknowledged to nobody; it is whole, or
        // the checksums tell.
        tracing::warn!(%error, "what memory has of meta.redb is served");
    }
    let length = file.metadata().map_err(fault)?.len();
    if length > SCANNED {
        Salvage::of(file.try_clone().map_err(fault)?)?.verify()?;
    }
    builder(length, SCANNED).create_with_backend(Frozen::new(file).map_err(fault)?).map_err(storage)
}
