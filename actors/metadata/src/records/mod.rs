//! The records: one file per kind, pure functions on a transaction.
//!
//! Each has `get` (`not_found`), `find`, `list` (a page, in the order of the keys, for cursors), `create`, `update` and
//! `delete`. The server sets `created` and `updated`; `ceiling` comes from the authority that created the record, and
//! an update can only narrow it. A namespace must exist before anything is created in it.

pub mod attachments;
pub mod audit;
pub mod check;
pub mod containers;
pub mod content;
pub mod credentials;
pub mod events;
pub mod grants;
pub mod images;
pub mod ingests;
pub mod layers;
pub mod leases;
pub mod namespaces;
pub mod replace;
mod resource;
pub mod snapshots;
pub mod tasks;
mod unreadable;

use std::ops::{Bound, ControlFlow};

use cofferdam_types::{Error, Labels, Namespace, Result, validate_labels};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    Read, Tx, codec,
    table::{self, Table},
};

pub use resource::Resource;
pub use unreadable::{readable, rest as unreadable, tell};

/// A row that is a struct.
pub(crate) trait Record: Serialize + DeserializeOwned {
    /// Where it lies.
    const TABLE: Table;
    /// What it is called in errors.
    const KIND: &'static str;

    /// What its key is, or ends with behind a NUL: its own name.
    fn name(&self) -> Vec<u8>;
}

/// What a row says. A record that lies under another's key can't be read: who went by either name would take the bytes of the
/// other for nobody's.
pub(crate) fn decode<R: Record>(key: &[u8], value: &[u8]) -> Result<R> {
    let record: R = codec::decode(R::KIND, key, value)?;
    match key.strip_suffix(&record.name()[..]) {
        Some([] | [.., 0]) => Ok(record),
        _ => Err(codec::unreadable(R::KIND, key, "it says that it is another")),
    }
}

pub(crate) fn find<R: Record>(read: &dyn Read, key: &[u8]) -> Result<Option<R>> {
    read.get(R::TABLE, key)?.map(|bytes| decode(key, &bytes)).transpose()
}

pub(crate) fn save<R: Record>(tx: &mut Tx<'_>, key: &[u8], record: &R) -> Result<()> {
    tx.put(R::TABLE, key, &codec::encode(R::KIND, record)?)
}

/// At most `max` records whose keys begin with `prefix`, after the one whose key is `prefix` and then `after`. What can't be read
/// is told and left out: so nothing is removed because it isn't here; who removes asks for [`all`], or [`visit_all`].
pub(crate) fn page<R: Record>(read: &dyn Read, prefix: &[u8], after: Option<&str>, max: usize) -> Result<Vec<R>> {
    let after = after.map(|after| [prefix, after.as_bytes()].concat());
    let mut records = Vec::new();
    if max == 0 {
        return Ok(records);
    }
    table::scan(read, R::TABLE, prefix, after.as_deref(), &mut |key, value| {
        records.extend(readable(decode(key, value))?);
        Ok(if records.len() < max { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    Ok(records)
}

/// All records whose keys begin with `prefix`: an error if one of them can't be read.
pub(crate) fn all<R: Record>(read: &dyn Read, prefix: &[u8]) -> Result<Vec<R>> {
    let mut records = Vec::new();
    table::scan(read, R::TABLE, prefix, None, &mut |key, value| {
        records.push(decode(key, value)?);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(records)
}

/// All records whose keys begin with `prefix`, one by one with their keys, and with what can't be read among them.
pub(crate) fn visit_all<R: Record>(
    read: &dyn Read,
    prefix: &[u8],
    each: &mut dyn FnMut(&[u8], Result<R>),
) -> Result<()> {
    table::scan(read, R::TABLE, prefix, None, &mut |key, value| {
        each(key, decode(key, value));
        Ok(ControlFlow::Continue(()))
    })
}

/// Whether any row of the table begins with `prefix`.
pub(crate) fn any(read: &dyn Read, table: Table, prefix: &[u8]) -> Result<bool> {
    let mut found = false;
    table::scan(read, table, prefix, None, &mut |_, _| {
        found = true;
        Ok(ControlFlow::Break(()))
    })?;
    Ok(found)
}

/// All keys of the table that begin with `prefix`: for what is bounded by other means.
pub(crate) fn keys(read: &dyn Read, table: Table, prefix: &[u8]) -> Result<Vec<Vec<u8>>> {
    let mut keys = Vec::new();
    table::scan(read, table, prefix, None, &mut |key, _| {
        keys.push(key.to_vec());
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(keys)
}

/// The first parts of a table's keys: the namespaces that its rows lie in, whether they have a record or not. It looks once at each.
pub(crate) fn spaces(read: &dyn Read, table: Table) -> Result<Vec<Vec<u8>>> {
    let (mut spaces, mut from) = (Vec::new(), Some(Vec::new()));
    while let Some(next) = from.take() {
        read.range(table, Bound::Included(&next), Bound::Unbounded, &mut |key, _| {
            let space = key.split(|byte| *byte == 0).next().unwrap_or_default();
            from = codec::after_prefix(&[space, &[0]].concat());
            spaces.push(space.to_vec());
            Ok(ControlFlow::Break(()))
        })?;
    }
    Ok(spaces)
}

/// The namespaces that a table's rows lie in, whether they have a record or not.
pub(crate) fn namespaces_of(read: &dyn Read, table: Table) -> Result<Vec<Namespace>> {
    let spaces = spaces(read, table)?.into_iter();
    Ok(spaces.filter_map(|space| Namespace::new(String::from_utf8(space).ok()?).ok()).collect())
}

/// Labels as they are stored: none empty, none too long.
pub(crate) fn checked_labels(labels: &mut Labels) -> Result<()> {
    crate::fields::prune(labels);
    validate_labels(labels)
}

/// A driver's name becomes a path component and part of a key.
pub(crate) fn check_driver(driver: &str) -> Result<()> {
    cofferdam_types::Id::new(driver)
        .map(drop)
        .map_err(|e| Error::invalid("driver", driver, format!("{}: name a snapshot driver", e.message)))
}
