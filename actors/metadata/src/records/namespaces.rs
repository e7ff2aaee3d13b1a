//! Namespaces. They exist by `create` alone, and `default` always does; never by first use.

use std::collections::HashMap;

use cofferdam_types::{Ceiling, Digest, Error, Event, Labels, Name, Namespace, Result, Timestamp};
use serde::{Deserialize, Serialize};

use super::{
    Record, Resource, content, events,
    grants::{self, Grant},
    ingests::Ingest,
    leases,
    snapshots::{self, Removed, Snapshot},
};
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

    fn name(&self) -> Vec<u8> {
        self.name.as_bytes().to_vec()
    }
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

/// The names of all of them, also of one whose record can't be read.
pub fn names(read: &dyn Read) -> Result<Vec<Namespace>> {
    let names = super::keys(read, Table::NAMESPACES, b"")?.into_iter();
    Ok(names.filter_map(|key| Namespace::new(String::from_utf8(key).ok()?).ok()).collect())
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

/// What the removal of a namespace leaves to its owners.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Emptied {
    /// Blobs that no namespace links any more: their files may be removed after the commit (and a re-check).
    pub blobs: Vec<Digest>,
    /// The links to layers that were in it.
    pub snapshots: Vec<Removed>,
}

/// Removes a namespace in which nothing is left that somebody named or made by hand. What images that are gone left in it, blobs,
/// links to layers and what was pulled in part, goes with it, and so do its credentials.
pub fn delete(tx: &mut Tx<'_>, name: &Namespace) -> Result<Emptied> {
    get(tx, name)?;
    if *name == Namespace::default_namespace() {
        return Err(Error::failed_precondition("namespace", name, "always exists and cannot be removed"));
    }
    let prefix = codec::prefix(&[name]);
    for (what, table) in [
        ("containers", Table::CONTAINERS),
        ("tasks", Table::TASKS),
        ("images", Table::IMAGES),
        ("leases", Table::LEASES),
    ] {
        if super::any(tx, table, &prefix)? {
            return Err(in_use(name, what));
        }
    }
    bytes_by_hand(tx, name)?;
    // A namespace of the same name that is made later is another one.
    if let [first, others @ ..] = &*grants::of_namespace(tx, name)? {
        return Err(given_out(name, first, others.len()));
    }
    let emptied = Emptied { snapshots: unlink_layers(tx, name)?, blobs: unlink_blobs(tx, name)? };
    for table in [Table::INGESTS, Table::HELD, Table::CREDENTIALS] {
        for key in super::keys(tx, table, &prefix)? {
            tx.remove(table, &key)?;
        }
    }
    tx.remove(Table::NAMESPACES, name.as_bytes())?;
    let payload = serde_json::json!({ "name": name });
    events::emit(tx, Event::new(name, "/namespaces/delete", payload))?;
    Ok(emptied)
}

fn given_out(name: &Namespace, first: &Grant, others: usize) -> Error {
    let label = if first.label.is_empty() { String::new() } else { format!("({}) ", first.label) };
    let others = if others == 0 { "begins".to_owned() } else { format!("and {others} more begin") };
    let why = format!(
        "{label}{others} in namespace {name}, which stays until they are taken back: `coffer -n {name} grant revoke`, or \
         `coffer namespace rm --revoke {name}` for all of them"
    );
    Error::failed_precondition("grant", first.id, why)
}

fn in_use(name: &Namespace, what: &str) -> Error {
    Error::failed_precondition("namespace", name, format!("must be empty, but holds {what}: remove them first"))
}

/// Refuses where somebody's own blobs are in it, or what is to become one.
fn bytes_by_hand(read: &dyn Read, name: &Namespace) -> Result<()> {
    let refuse = |count: usize, one: &str, many: &str, first: &str, how: &str| {
        let what = match count {
            1 => format!("{one}, {first}: remove it"),
            _ => format!("{count} {many}, such as {first}: remove them"),
        };
        let why = format!("must be empty, but holds {what} first, by `coffer -n {name} {how}`");
        Err(Error::failed_precondition("namespace", name, why))
    };
    let mut blobs = leases::by_hand(read, name, None, usize::MAX)?;
    blobs.retain(|resource| matches!(resource, Resource::Content(_)));
    if let Some(first) = blobs.first() {
        return refuse(blobs.len(), "a blob made by hand", "blobs made by hand", &first.id(), "content rm DIGEST");
    }
    let mut ingests: Vec<Ingest> = super::page(read, &codec::prefix(&[name]), None, usize::MAX)?;
    ingests.retain(|ingest| !ingest.is_pulls());
    match ingests.first() {
        Some(first) => {
            let (one, many) = ("an ingest that is under way", "ingests that are under way");
            refuse(ingests.len(), one, many, &first.reference, "content abort REFERENCE")
        }
        None => Ok(()),
    }
}

/// Removes the links to layers; a snapshot of another kind was made by hand.
fn unlink_layers(tx: &mut Tx<'_>, name: &Namespace) -> Result<Vec<Removed>> {
    let mut links: Vec<Snapshot> = super::all(tx, &codec::prefix(&[name]))?;
    if links.iter().any(|snapshot| snapshot.layer.is_none()) {
        return Err(in_use(name, "snapshots"));
    }
    let parents: HashMap<(String, Name), Option<Name>> =
        links.iter().map(|link| ((link.driver.clone(), link.key.clone()), link.parent.clone())).collect();
    // No link lies on more than there are, unless damage has them lie on each other in a circle.
    let most = links.len();
    let depth = |link: &Snapshot| {
        let above = |key: &Name| parents.get(&(link.driver.clone(), key.clone())).cloned().flatten();
        std::iter::successors(link.parent.clone(), above).take(most + 1).count()
    };
    if let Some(round) = links.iter().find(|link| depth(link) > most) {
        let why = format!("lies on itself, and can't go with namespace {name}: meta.redb is damaged");
        return Err(Error::data_loss("snapshot", &round.key, why));
    }
    // What lies on another goes before that.
    links.sort_by_cached_key(|link| std::cmp::Reverse(depth(link)));
    links.iter().map(|link| snapshots::delete(tx, name, &link.driver, &link.key)).collect()
}

/// Removes the links to blobs, and says which had no other.
fn unlink_blobs(tx: &mut Tx<'_>, name: &Namespace) -> Result<Vec<Digest>> {
    let mut last = Vec::new();
    for link in super::all::<content::Link>(tx, &codec::prefix(&[name]))? {
        if content::delete(tx, name, &link.digest)? {
            last.push(link.digest);
        }
    }
    Ok(last)
}

fn emit(tx: &mut Tx<'_>, topic: &str, record: &NamespaceRecord) -> Result<()> {
    let payload = serde_json::json!({ "name": record.name, "labels": record.labels });
    events::emit(tx, Event::new(&record.name, topic, payload))
}
