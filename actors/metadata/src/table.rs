//! The tables, and reading them: from a snapshot or from within a write.

use std::{
    cell::Cell,
    io::ErrorKind,
    ops::{Bound, ControlFlow},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
};

use cofferdam_kernel::panic_text;
use cofferdam_types::{COMES_BACK, Code, Error, Result};
use redb::{ReadTransaction, ReadableTable, TableDefinition};

use crate::{ahead::Known, codec};

/// A table: keys and values are bytes, made by [`crate::records`] alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table(&'static str);

impl Table {
    pub(crate) const META: Table = Table("meta");
    pub(crate) const COUNTERS: Table = Table("counters");
    pub(crate) const NAMESPACES: Table = Table("namespaces");
    pub(crate) const CONTAINERS: Table = Table("containers");
    /// The specs of containers, packed: who lists containers reads none of them.
    pub(crate) const SPECS: Table = Table("specs");
    /// The containers that go with their task, for who looks for those that have none.
    pub(crate) const TRANSIENT: Table = Table("transient");
    pub(crate) const IMAGES: Table = Table("images");
    pub(crate) const CONTENT: Table = Table("content");
    pub(crate) const BLOBS: Table = Table("blobs");
    pub(crate) const INGESTS: Table = Table("ingests");
    pub(crate) const SNAPSHOTS: Table = Table("snapshots");
    pub(crate) const CHILDREN: Table = Table("children");
    pub(crate) const DIRS: Table = Table("dirs");
    pub(crate) const LAYERS: Table = Table("layers");
    pub(crate) const LEASES: Table = Table("leases");
    pub(crate) const HELD: Table = Table("held");
    pub(crate) const TASKS: Table = Table("tasks");
    pub(crate) const OUTBOX: Table = Table("outbox");
    pub(crate) const ATTACHMENTS: Table = Table("attachments");
    pub(crate) const GRANTS: Table = Table("grants");
    pub(crate) const CREDENTIALS: Table = Table("credentials");

    /// All of them; made at the first start, so that a reader finds each.
    pub(crate) const ALL: [Table; 21] = [
        Table::META,
        Table::COUNTERS,
        Table::NAMESPACES,
        Table::CONTAINERS,
        Table::SPECS,
        Table::TRANSIENT,
        Table::IMAGES,
        Table::CONTENT,
        Table::BLOBS,
        Table::INGESTS,
        Table::SNAPSHOTS,
        Table::CHILDREN,
        Table::DIRS,
        Table::LAYERS,
        Table::LEASES,
        Table::HELD,
        Table::TASKS,
        Table::OUTBOX,
        Table::ATTACHMENTS,
        Table::GRANTS,
        Table::CREDENTIALS,
    ];

    /// What it is called in the file.
    pub fn name(self) -> &'static str {
        self.0
    }

    /// Whether its rows keep something, or can be collected.
    pub(crate) fn counts(self) -> bool {
        [Table::CONTAINERS, Table::IMAGES, Table::CONTENT, Table::SNAPSHOTS, Table::LEASES, Table::HELD].contains(&self)
    }

    pub(crate) fn definition(self) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
        TableDefinition::new(self.0)
    }
}

/// Called with each row of a range; breaks to end it.
pub type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>> + 'a;

/// What can be read: a [`View`] or, within a write, its [`crate::Tx`].
pub trait Read {
    /// The value of a key.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>>;

    /// Visits the rows from `from` up to (and without) `to`, in the order of their keys.
    fn range(&self, table: Table, from: Bound<&[u8]>, to: Bound<&[u8]>, visit: &mut Visit<'_>) -> Result<()>;
}

/// Visits the rows whose keys begin with `prefix`, from the one after `after` on.
pub(crate) fn scan(
    read: &dyn Read,
    table: Table,
    prefix: &[u8],
    after: Option<&[u8]>,
    visit: &mut Visit<'_>,
) -> Result<()> {
    let end = codec::after_prefix(prefix);
    let from = after.map_or(Bound::Included(prefix), Bound::Excluded);
    read.range(table, from, end.as_deref().map_or(Bound::Unbounded, Bound::Excluded), visit)
}

/// A snapshot of everything, as it was when it was taken. Later commits don't change it.
pub struct View {
    txn: ReadTransaction,
    known: Known,
}

impl View {
    pub(crate) fn new(txn: ReadTransaction, known: Known) -> View {
        View { txn, known }
    }
}

impl Read for View {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let found = caught(&Cell::new(false), || get(&self.txn.open_table(table.definition()).map_err(storage)?, key));
        found.map_err(|e| self.known.explain(e))
    }

    fn range(&self, table: Table, from: Bound<&[u8]>, to: Bound<&[u8]>, visit: &mut Visit<'_>) -> Result<()> {
        let visiting = Cell::new(false);
        let visited = caught(&visiting, || {
            let table = self.txn.open_table(table.definition()).map_err(storage)?;
            range(&table, from, to, &mut |key, value| {
                visiting.set(true);
                let flow = visit(key, value);
                visiting.set(false);
                flow
            })
        });
        visited.map_err(|e| self.known.explain(e))
    }
}

/// Reads. redb panics over a page that something else has altered; a panic of who is `visiting` is his own.
fn caught<T>(visiting: &Cell<bool>, read: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|payload| {
        if visiting.get() {
            resume_unwind(payload);
        }
        Err(damaged(panic_text(&*payload)))
    })
}

type Bytes = &'static [u8];

pub(crate) fn get(table: &impl ReadableTable<Bytes, Bytes>, key: &[u8]) -> Result<Option<Vec<u8>>> {
    Ok(table.get(key).map_err(storage)?.map(|value| value.value().to_vec()))
}

pub(crate) fn range(
    table: &impl ReadableTable<Bytes, Bytes>,
    from: Bound<&[u8]>,
    to: Bound<&[u8]>,
    visit: &mut Visit<'_>,
) -> Result<()> {
    for row in table.range::<&[u8]>((from, to)).map_err(storage)? {
        let (key, value) = row.map_err(storage)?;
        if visit(key.value(), value.value())?.is_break() {
            break;
        }
    }
    Ok(())
}

/// What redb says of a file that has failed before, until it is opened again.
pub(crate) const PREVIOUS: &str = "meta.redb met a storage error; try again";

/// An error of the file under the tables.
pub(crate) fn storage(error: impl Into<redb::Error>) -> Error {
    match error.into() {
        // Shorter than it says that it is, or not what a database begins with.
        redb::Error::Io(e) if matches!(e.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) => damaged(e),
        redb::Error::Io(e) => {
            let mut error = Error::io("metadata", "", "meta.redb", &e);
            if error.code == Code::NotFound {
                error.code = Code::Internal; // Whoever asked for a record must not take it for a missing one.
            }
            error
        }
        redb::Error::DatabaseAlreadyOpen => {
            Error::unavailable("metadata", "", "meta.redb is in use by another daemon; stop that one first")
        }
        redb::Error::DatabaseClosed => {
            Error::unavailable("metadata", "", format!("meta.redb was closed and {COMES_BACK}"))
        }
        redb::Error::PreviousIo => Error::unavailable("metadata", "", PREVIOUS),
        redb::Error::Corrupted(e) => damaged(e),
        // Of a file that no daemon wrote.
        redb::Error::UpgradeRequired(version) => {
            damaged(format_args!("it says that its pages are of format {version}"))
        }
        e => Error::internal("metadata", "", format!("meta.redb: {e}")),
    }
}

/// The file is not what was written.
pub(crate) fn damaged(what: impl std::fmt::Display) -> Error {
    let message = format!(
        "meta.redb is damaged ({what}): put a good copy in its place, or have cofferd --rebuild make one of what is readable"
    );
    Error::data_loss("metadata", "", message)
}
