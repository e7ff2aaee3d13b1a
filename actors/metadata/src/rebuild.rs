//! New tables from what is readable in damaged ones.
//!
//! Taken over is each row whose page is what was written and that reads as what its table holds. What is counted or
//! listed is made anew from that. The damaged file is not written; it stays, under another name.

use std::{
    collections::BTreeSet,
    fs::File,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use cofferdam_types::{Authority, Code, Error, Event, Finding, Labels, Namespace, Result, Timestamp};
use redb::{Database, backends::FileBackend};

use crate::{
    Tx, View, codec,
    messages::{Patience, Write},
    opener::Opener,
    records::{
        self, Record,
        attachments::Attachment,
        audit, check, containers,
        containers::Container,
        content::{Blob, Link},
        credentials::Credential,
        grants::Grant,
        images::Image,
        ingests,
        ingests::Ingest,
        layers::Layer,
        leases,
        leases::Lease,
        namespaces,
        namespaces::NamespaceRecord,
        snapshots::Snapshot,
        tasks::Task,
    },
    salvage::Salvage,
    store::{INSTANCE, Shared, Store, VERSION},
    table::Table,
    tx::counter_of,
    untouched,
};

/// Rows that one commit takes over.
const BATCH: usize = 1000;

/// What was taken over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Rows.
    pub rows: u64,
    /// Rows that are what was written, and don't read as what they should be.
    pub unsound: u64,
    /// Pages that were altered; what lay below them is lost.
    pub pages: u64,
}

/// Whether anything can be read of a damaged file.
pub(crate) fn is_readable(path: &Path) -> bool {
    Salvage::open(path).is_ok_and(|old| old.is_readable())
}

/// What would be taken over of a file, and what a start that doesn't leave it to redb finds wrong with it. Keeps nothing.
pub fn inspect(path: &Path) -> Result<(Taken, Result<()>)> {
    let (old, mut taken) = (Salvage::open(path)?, Taken::default());
    for table in Table::ALL {
        taken.pages += old.rows(table.name(), &mut |key, value| match sound(table, key, value) {
            Sound::Yes => taken.rows += 1,
            Sound::No => taken.unsound += 1,
            Sound::Made => {}
        });
    }
    Ok((taken, old.verify()))
}

/// What is readable of a damaged file: in memory, or where it is longer than so many bytes in a file beside it that has no name.
pub(crate) fn readable(path: &Path, long: u64) -> Result<Database> {
    let old = Salvage::open(path)?;
    let dir = path.parent().filter(|_| path.metadata().is_ok_and(|meta| meta.len() > long));
    let beside = dir.map(|dir| Rebuild::begin(&old, Opener::unnamed(dir))).transpose();
    let beside = beside.or_else(|error| match error.code {
        Code::FailedPrecondition => Err(error),
        _ => {
            tracing::warn!(%error, "what is readable of meta.redb is held in memory");
            Ok(None)
        }
    })?;
    let mut tables = beside.map_or_else(|| Rebuild::begin(&old, Opener::memory()), Ok)?;
    tables.write(|tx| check::mend(tx).map(drop))?;
    let Taken { rows, unsound, pages } = tables.taken();
    tracing::error!(
        rows,
        unsound,
        pages,
        "what is readable of meta.redb was read; pages are lost with what lay below them"
    );
    let lost = || Error::internal("metadata", "", "tables in memory are in use before they are made");
    tables.store.into_database().ok_or_else(lost)
}

/// The new tables, while they are being made.
pub struct Rebuild {
    shared: Arc<Shared>,
    store: Store,
    taken: Taken,
}

impl Rebuild {
    fn begin(old: &Salvage, opener: Opener) -> Result<Rebuild> {
        let shared = Arc::new(Shared::new(opener));
        let store = shared.open()?;
        let mut rebuild = Rebuild { shared, store, taken: Taken::default() };
        rebuild.take(old)?;
        Ok(rebuild)
    }

    /// What was taken over.
    pub fn taken(&self) -> Taken {
        self.taken
    }

    /// The tables as they are by now.
    pub fn read(&self) -> Result<View> {
        self.shared.read()
    }

    /// Writes into them.
    pub fn write<R: Send + 'static>(&mut self, f: impl Fn(&mut Tx<'_>) -> Result<R> + Send + 'static) -> Result<R> {
        let result = Arc::new(Mutex::new(None));
        let place = result.clone();
        let job = Box::new(move |tx: &mut Tx<'_>| {
            let value = f(tx)?;
            *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
            Ok(())
        });
        let done = self.store.commit(&[Write { authority: Authority::system(), job, patience: Patience::None }]).pop();
        done.unwrap_or(Ok(()))?;
        let value = result.lock().unwrap_or_else(PoisonError::into_inner).take();
        value.ok_or_else(|| Error::internal("metadata", "", "a write was answered without a result"))
    }

    /// Has a counter go on behind `last`, which was given already: the tables may be those of the commit before, or the counter
    /// may be lost.
    pub fn count_from(&mut self, counter: &'static str, last: u64) -> Result<()> {
        self.write(move |tx| {
            let last = last.max(counter_of(tx, counter)?);
            tx.put(Table::COUNTERS, counter.as_bytes(), &last.to_be_bytes())
        })
    }

    /// Makes anew what is counted or listed, and has all that nothing keeps held by hand: what kept it may be lost. Gives what
    /// contradicts itself still.
    pub fn settle(&mut self) -> Result<Vec<Finding>> {
        self.write(|tx| {
            let found = check::mend(tx)?;
            leases::hold_all(tx)?;
            Ok(found.into_iter().filter(|finding| !finding.repaired).collect())
        })
    }

    fn take(&mut self, old: &Salvage) -> Result<()> {
        let mut version = None;
        old.rows(Table::META.name(), &mut |key, value| {
            if key == b"version" {
                version = codec::number(value).ok();
            }
        });
        if let Some(version) = version.filter(|version| *version > VERSION) {
            let why = format!("meta.redb has format {version} and this daemon reads up to {VERSION}: take a newer one");
            return Err(Error::failed_precondition("metadata", "", why));
        }
        // What the making of new tables has told is nobody's business, and its number may be another's.
        self.write(|tx| {
            tx.remove(Table::COUNTERS, b"event")?;
            tx.remove(Table::OUTBOX, &1_u64.to_be_bytes()).map(drop)
        })?;
        let mut spaces = BTreeSet::new();
        for table in Table::ALL {
            let (mut rows, mut unsound) = (Vec::new(), 0);
            self.taken.pages += old.rows(table.name(), &mut |key, value| match sound(table, key, value) {
                Sound::Yes => rows.push((key.to_vec(), value.to_vec())),
                Sound::No => unsound += 1,
                Sound::Made => {}
            });
            self.taken.unsound += unsound;
            self.taken.rows += rows.len() as u64;
            for (key, _) in &rows {
                spaces.extend(space(table, key));
            }
            for rows in rows.chunks(BATCH).map(<[_]>::to_vec) {
                self.write(move |tx| rows.iter().try_for_each(|(key, value)| tx.put(table, key, value)))?;
            }
        }
        self.write(containers::part)?;
        self.write(ingests::keep_none)?;
        // A namespace whose own row is lost is known by what is in it.
        for name in spaces {
            self.write(move |tx| match namespaces::find(tx, &name)? {
                Some(_) => Ok(()),
                None => namespaces::create(tx, &name, &Labels::new()).map(drop),
            })?;
        }
        Ok(())
    }

    /// Closes the tables, with nothing of them left open.
    fn close(self) {
        drop(self.store);
        drop(self.shared);
    }
}

/// Tables that are made anew in a file beside the damaged one.
pub struct Replacement {
    /// What is in them.
    pub tables: Rebuild,
    old: PathBuf,
    new: PathBuf,
    /// Keeps daemons away from the old one.
    _lock: FileBackend,
}

impl Replacement {
    /// Takes over what is readable. No daemon may use the file.
    pub fn begin(path: &Path) -> Result<Replacement> {
        let fault = |what: &str, e: &std::io::Error| Error::io("metadata", "", format!("{what} meta.redb"), e);
        let file = File::options().read(true).write(true).open(path).map_err(|e| fault("opening", &e))?;
        let Some(lock) = untouched::lock(file)? else {
            let why = "meta.redb is in use by a daemon; stop that one first";
            return Err(Error::failed_precondition("metadata", "", why));
        };
        let old = Salvage::open(path)?;
        let new = path.with_extension("redb.new");
        match std::fs::remove_file(&new) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(fault("removing what is left of a new", &e)),
            _ => {}
        }
        let tables = Rebuild::begin(&old, Opener::file(&new))?;
        Ok(Replacement { tables, old: path.into(), new, _lock: lock })
    }

    /// Puts the new tables in the place of the old ones, and says where these are now.
    pub fn finish(self) -> Result<PathBuf> {
        let fault = |e: std::io::Error| Error::io("metadata", "", "putting the new meta.redb in place", &e);
        self.tables.close();
        let kept = self.old.with_extension(format!("redb.damaged-{}", Timestamp::now().0));
        // At no time there is none.
        std::fs::hard_link(&self.old, &kept).map_err(fault)?;
        std::fs::rename(&self.new, &self.old).map_err(fault)?;
        let dir = self.old.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(fault)?;
        Ok(kept)
    }
}

/// Whether a row is what its table holds.
enum Sound {
    Yes,
    No,
    /// It is made anew from other rows.
    Made,
}

fn sound(table: Table, key: &[u8], value: &[u8]) -> Sound {
    let is = match table {
        // How many links it has is counted anew; that its bytes are not what they were nothing else says.
        Table::BLOBS if records::decode::<Blob>(key, value).is_ok_and(|blob| blob.altered) => true,
        Table::BLOBS | Table::CHILDREN | Table::DIRS | Table::TRANSIENT => return Sound::Made,
        Table::META if key == audit::KEY => audit::Head::decode(value).is_some(),
        Table::META if key != INSTANCE => return Sound::Made,
        Table::META => value.len() == 8 && value.iter().all(u8::is_ascii_hexdigit),
        Table::COUNTERS => codec::number(value).is_ok(),
        Table::OUTBOX => {
            codec::decode::<Event>(Event::KIND, key, value).is_ok_and(|e| e.sequence.to_be_bytes() == *key)
        }
        Table::HELD => value.is_empty() && leases::read_held(key).is_ok(),
        Table::NAMESPACES => reads::<NamespaceRecord>(key, value),
        Table::CONTAINERS => reads::<Container>(key, value),
        Table::SPECS => containers::read_spec(key, value).is_ok(),
        Table::IMAGES => reads::<Image>(key, value),
        Table::CONTENT => reads::<Link>(key, value),
        Table::INGESTS => reads::<Ingest>(key, value),
        Table::SNAPSHOTS => reads::<Snapshot>(key, value),
        Table::LAYERS => reads::<Layer>(key, value),
        Table::LEASES => reads::<Lease>(key, value),
        Table::TASKS => reads::<Task>(key, value),
        // One whose parent is lost is not live: what that left of it nobody knows.
        Table::GRANTS => reads::<Grant>(key, value),
        Table::CREDENTIALS => reads::<Credential>(key, value),
        Table::ATTACHMENTS => reads::<Attachment>(key, value),
        // A new table has a line here.
        _ => false,
    };
    let in_namespace = !in_namespaces(table) || space(table, key).is_some();
    if is && in_namespace { Sound::Yes } else { Sound::No }
}

/// Whether a record can be read, and its key.
fn reads<R: Record>(key: &[u8], value: &[u8]) -> bool {
    codec::parts(key).is_ok() && records::decode::<R>(key, value).is_ok()
}

fn in_namespaces(table: Table) -> bool {
    [
        Table::CONTAINERS,
        Table::SPECS,
        Table::IMAGES,
        Table::CONTENT,
        Table::INGESTS,
        Table::SNAPSHOTS,
        Table::LEASES,
        Table::HELD,
        Table::TASKS,
        Table::CREDENTIALS,
    ]
    .contains(&table)
}

/// The namespace that a row lies in.
fn space(table: Table, key: &[u8]) -> Option<Namespace> {
    let parts = codec::parts(key).ok().filter(|_| in_namespaces(table))?;
    Namespace::new(*parts.first()?).ok()
}
