//! Namespaces. They exist by `create` alone, and `default` always does; never by first use.

use cofferdam_types::{Ceiling, Error, Event, Labels, Namespace, Result, Timestamp};
use serde::{Deserialize, Serialize};

use super::{Record, events};
use crate::{Read, Tx, codec, fields, table::Table};

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceRecord {
    /// Its name.
    pub name: Namespace,
    /// Free labels.
    pub labels: Labels,
    /// When it was created.
    pub created: Timestamp,
    /// When it was changed last.
    pub updated: Timestamp,
    /// The bounds of the authority that created it.
    pub ceiling: Ceiling,
}

impl Record for NamespaceRecord {
    const TABLE: Table = Table::NAMESPACES;
    const KIND: &'static str = "namespace";
}

/// The namespace, if it exists.
pub fn find(read: &dyn Read, name: &Namespace) -> Result<Option<NamespaceRecord>> {
    super::find(read, name.as_bytes())
}

/// The namespace; `not_found` says how to create it.
pub fn get(read: &dyn Read, name: &Namespace) -> Result<NamespaceRecord> {
    find(read, name)?.ok_or_else(|| missing(name))
}

/// A page of them, by name.
pub fn list(read: &dyn Read, after: Option<&str>, max: usize) -> Result<Vec<NamespaceRecord>> {
    super::page(read, b"", after, max)
}

/// Fails unless the namespace exists: the first line of every other create.
pub fn require(read: &dyn Read, name: &Namespace) -> Result<()> {
    match read.get(Table::NAMESPACES, name.as_bytes())? {
        Some(_) => Ok(()),
        None => Err(missing(name)),
    }
}

fn missing(name: &Namespace) -> Error {
    Error::not_found("namespace", name, format!("does not exist; create it with `coffer namespace create {name}`"))
}

/// Creates a namespace.
pub fn create(tx: &mut Tx<'_>, name: &Namespace, labels: &Labels) -> Result<NamespaceRecord> {
    let mut labels = labels.clone();
    super::checked_labels(&mut labels)?;
    if find(tx, name)?.is_some() {
        return Err(Error::already_exists("namespace", name, "is there already: choose another name, or work in it"));
    }
    let (now, ceiling) = (tx.now(), tx.authority().ceiling.clone());
    let record = NamespaceRecord { name: name.clone(), labels, created: now, updated: now, ceiling };
    super::save(tx, name.as_bytes(), &record)?;
    emit(tx, "/namespaces/create", &record)?;
    Ok(record)
}

/// At the first start.
pub(crate) fn create_default(tx: &mut Tx<'_>) -> Result<()> {
    create(tx, &Namespace::default_namespace(), &Labels::new()).map(drop)
}

/// Replaces the labels, or those that `mask` names.
pub fn update(tx: &mut Tx<'_>, name: &Namespace, labels: &Labels, mask: &[String]) -> Result<NamespaceRecord> {
    let mut record = get(tx, name)?;
    fields::labels("namespace", name, &mut record.labels, labels, mask)?;
    super::checked_labels(&mut record.labels)?;
    record.updated = tx.now();
    record.ceiling = record.ceiling.intersect(&tx.authority().ceiling);
    super::save(tx, name.as_bytes(), &record)?;
    emit(tx, "/namespaces/update", &record)?;
    Ok(record)
}

/// Removes a namespace in which nothing is left. Its ingests go with it.
pub fn delete(tx: &mut Tx<'_>, name: &Namespace) -> Result<()> {
    get(tx, name)?;
    if *name == Namespace::default_namespace() {
        return Err(Error::failed_precondition("namespace", name, "always exists and cannot be removed"));
    }
    let prefix = codec::prefix(&[name]);
    for (what, table) in [
        ("containers", Table::CONTAINERS),
        ("tasks", Table::TASKS),
        ("images", Table::IMAGES),
        ("snapshots", Table::SNAPSHOTS),
        ("leases", Table::LEASES),
        ("content", Table::CONTENT),
    ] {
        if super::any(tx, table, &prefix)? {
            let message = format!("must be empty, but holds {what}: remove them first");
            return Err(Error::failed_precondition("namespace", name, message));
        }
    }
    for key in super::keys(tx, Table::INGESTS, &prefix)? {
        tx.remove(Table::INGESTS, &key)?;
    }
    tx.remove(Table::NAMESPACES, name.as_bytes())?;
    let payload = serde_json::json!({ "name": name });
    events::emit(tx, Event::new(name, "/namespaces/delete", payload))
}

fn emit(tx: &mut Tx<'_>, topic: &str, record: &NamespaceRecord) -> Result<()> {
    let payload = serde_json::json!({ "name": record.name, "labels": record.labels });
    events::emit(tx, Event::new(&record.name, topic, payload))
}
