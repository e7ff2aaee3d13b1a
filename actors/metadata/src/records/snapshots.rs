//! Snapshots: named states of a file system, and who is whose parent (reference, section 6.1).
//!
//! A snapshot has a directory, named by a number that whoever owns the directories chooses, larger than any that a record
//! or a directory has. After a restart a number may come again whose directory and records are gone. Several records may
//! share one (a layer that the daemon unpacked is stored once, see [`super::layers`]); the table of directories counts
//! them.

use std::{collections::BTreeSet, ops::ControlFlow};

use cofferdam_types::{Ceiling, Digest, Error, Event, Labels, Name, Namespace, Result, Timestamp};
use serde::{Deserialize, Serialize};

use super::{Record, Resource, containers, events, layers, leases, namespaces, resource};
use crate::{
    Read, Tx, codec, fields,
    table::{Table, scan},
};

/// What is said where a key is in use.
pub const TAKEN: &str = "is there already: choose another key or remove it";

/// What kind of state it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// Read-only and not committed.
    View,
    /// Writable.
    Active,
    /// Immutable.
    Committed,
}

/// What a snapshot takes up by itself, without its parents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Allocated bytes.
    pub size: u64,
    /// Inodes.
    pub inodes: u64,
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its driver.
    pub driver: String,
    /// Its key: a committed one's name.
    pub key: Name,
    /// What it is.
    pub kind: Kind,
    /// What it lies on.
    pub parent: Option<Name>,
    /// The number of its directory.
    pub dir: u64,
    /// Where its directory is that of a shared layer: which.
    pub layer: Option<Digest>,
    /// What it took up when it was committed.
    pub usage: Usage,
    /// Free labels.
    pub labels: Labels,
    /// When it was created.
    pub created: Timestamp,
    /// When it was changed last.
    pub updated: Timestamp,
    /// The bounds of the authority that created it.
    pub ceiling: Ceiling,
}

impl Record for Snapshot {
    const TABLE: Table = Table::SNAPSHOTS;
    const KIND: &'static str = "snapshot";

    fn name(&self) -> Vec<u8> {
        codec::key(&[&self.driver, &self.key])
    }
}

impl Snapshot {
    /// A snapshot without labels.
    pub fn new(driver: impl Into<String>, key: Name, kind: Kind, parent: Option<Name>, dir: u64) -> Snapshot {
        Snapshot {
            driver: driver.into(),
            key,
            kind,
            parent,
            dir,
            layer: None,
            usage: Usage::default(),
            labels: Labels::new(),
            created: Timestamp::default(),
            updated: Timestamp::default(),
            ceiling: Ceiling::default(),
        }
    }

    fn key_in(&self, ns: &Namespace) -> Vec<u8> {
        codec::key(&[ns, &self.driver, &self.key])
    }

    /// As the collector knows it.
    pub fn resource(&self) -> Resource {
        Resource::Snapshot { driver: self.driver.clone(), key: self.key.clone() }
    }
}

/// What a removal leaves to its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// The record that was.
    pub snapshot: Snapshot,
    /// No record refers to its directory any more: it may be removed after the commit.
    pub unreferenced: bool,
}

/// The snapshot, if it exists.
pub fn find(read: &dyn Read, ns: &Namespace, driver: &str, key: &str) -> Result<Option<Snapshot>> {
    super::find(read, &codec::key(&[ns, driver, key]))
}

/// The snapshot.
pub fn get(read: &dyn Read, ns: &Namespace, driver: &str, key: &str) -> Result<Snapshot> {
    find(read, ns, driver, key)?.ok_or_else(|| Error::not_found("snapshot", key, "does not exist"))
}

/// A page of a driver's snapshots, by key.
pub fn list(read: &dyn Read, ns: &Namespace, driver: &str, after: Option<&str>, max: usize) -> Result<Vec<Snapshot>> {
    super::page(read, &codec::prefix(&[ns, driver]), after, max)
}

/// The keys of a snapshot's children.
pub fn children(read: &dyn Read, ns: &Namespace, driver: &str, key: &str, max: usize) -> Result<Vec<Name>> {
    let mut children = Vec::new();
    scan(read, Table::CHILDREN, &codec::prefix(&[ns, driver, key]), None, &mut |key, _| {
        if children.len() == max {
            return Ok(ControlFlow::Break(()));
        }
        children.push(Name::new(codec::parts(key)?.last().copied().unwrap_or_default())?);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(children)
}

/// The snapshot's ancestors, its parent first. No write makes one that comes back to itself; damage may.
pub fn ancestors(read: &dyn Read, ns: &Namespace, snapshot: &Snapshot) -> Result<Vec<Snapshot>> {
    let mut chain = Vec::new();
    let mut next = snapshot.parent.clone();
    while let Some(key) = next {
        let parent = get(read, ns, &snapshot.driver, &key)?;
        if parent.key == snapshot.key || chain.iter().any(|above: &Snapshot| above.key == parent.key) {
            return Err(Error::data_loss("snapshot", &snapshot.key, "lies on itself: meta.redb is damaged"));
        }
        next = parent.parent.clone();
        chain.push(parent);
    }
    Ok(chain)
}

pub(crate) fn dir_key(driver: &str, dir: u64) -> Vec<u8> {
    codec::key(&[driver, &format!("{dir:016x}")])
}

/// Whether a record refers to a directory, and be it that nobody can read how many do.
pub fn is_referenced(read: &dyn Read, driver: &str, dir: u64) -> Result<bool> {
    Ok(read.get(Table::DIRS, &dir_key(driver, dir))?.is_some())
}

/// How many records refer to a directory.
pub fn dir_references(read: &dyn Read, driver: &str, dir: u64) -> Result<u64> {
    read.get(Table::DIRS, &dir_key(driver, dir))?.map_or(Ok(0), |bytes| codec::number(&bytes))
}

/// All directories of a driver that a record refers to: for the sweep of the others. Where a row names none, the snapshots that can
/// be read name theirs.
pub fn dirs(read: &dyn Read, driver: &str) -> Result<BTreeSet<u64>> {
    let (mut dirs, mut lost) = (BTreeSet::new(), false);
    scan(read, Table::DIRS, &codec::prefix(&[driver]), None, &mut |key, _| {
        let text = codec::parts(key).ok().and_then(|parts| parts.last().copied()).unwrap_or_default();
        match u64::from_str_radix(text, 16) {
            Ok(dir) => drop(dirs.insert(dir)),
            Err(_) => {
                super::tell(&Error::data_loss("dirs", key.escape_ascii(), "a directory's number cannot be read"));
                lost = true;
            }
        }
        Ok(ControlFlow::Continue(()))
    })?;
    if lost {
        super::visit_all(read, b"", &mut |_, snapshot: Result<Snapshot>| {
            dirs.extend(snapshot.ok().filter(|snapshot| snapshot.driver == driver).map(|snapshot| snapshot.dir));
        })?;
    }
    Ok(dirs)
}

/// Gives `each` the snapshots of a driver that can be read, whether or not their namespace has a row.
pub fn visit(read: &dyn Read, driver: &str, each: &mut dyn FnMut(&Namespace, Snapshot) -> Result<()>) -> Result<()> {
    for ns in super::namespaces_of(read, Table::SNAPSHOTS)? {
        scan(read, Table::SNAPSHOTS, &codec::prefix(&[&ns, driver]), None, &mut |key, row| {
            if let Some(snapshot) = super::readable(super::decode(key, row))? {
                each(&ns, snapshot)?;
            }
            Ok(ControlFlow::Continue(()))
        })?;
    }
    Ok(())
}

/// Checks a parent: it exists and is committed.
fn check_parent(read: &dyn Read, ns: &Namespace, driver: &str, parent: &str) -> Result<()> {
    let Some(record) = find(read, ns, driver, parent)? else {
        return Err(Error::not_found("snapshot", parent, "the parent snapshot does not exist"));
    };
    if record.kind != Kind::Committed {
        return Err(Error::invalid("snapshot", parent, "the parent snapshot is not committed: commit it first"));
    }
    Ok(())
}

/// Checks that a snapshot is no container's root: that one goes with its container alone. Containers name their
/// snapshots by their own ids.
fn check_unused(read: &dyn Read, ns: &Namespace, driver: &str, key: &str) -> Result<()> {
    let container = containers::head(read, ns, key)?;
    match container.filter(|c| c.driver == driver && c.snapshot_key.as_deref() == Some(key)) {
        None => Ok(()),
        Some(container) => {
            let why = format!("is the root of container {}, and goes with that: remove the container", container.id);
            Err(Error::failed_precondition("snapshot", key, why))
        }
    }
}

/// Records a snapshot whose directory is in place.
pub fn create(tx: &mut Tx<'_>, ns: &Namespace, mut snapshot: Snapshot) -> Result<Snapshot> {
    namespaces::require(tx, ns)?;
    super::check_driver(&snapshot.driver)?;
    super::checked_labels(&mut snapshot.labels)?;
    if find(tx, ns, &snapshot.driver, &snapshot.key)?.is_some() {
        return Err(Error::already_exists("snapshot", &snapshot.key, TAKEN));
    }
    if let Some(parent) = &snapshot.parent {
        check_parent(tx, ns, &snapshot.driver, parent)?;
        tx.put(Table::CHILDREN, &codec::key(&[ns, &snapshot.driver, parent, &snapshot.key]), b"")?;
    }
    refer(tx, &snapshot.driver, snapshot.dir, 1)?;
    snapshot.created = tx.now();
    snapshot.updated = tx.now();
    snapshot.ceiling = tx.authority().ceiling.clone();
    leases::keep(tx, ns, &snapshot.resource())?;
    let snapshot = store(tx, ns, snapshot)?;
    let (key, driver) = (&snapshot.key, &snapshot.driver);
    let told = match snapshot.kind {
        Kind::Active => {
            Some(("/snapshot/prepare", serde_json::json!({ "key": key, "parent": snapshot.parent, "driver": driver })))
        }
        // A layer was never active under another key.
        Kind::Committed => Some(("/snapshot/commit", serde_json::json!({ "key": key, "name": key, "driver": driver }))),
        Kind::View => None,
    };
    if let Some((topic, payload)) = told {
        events::emit(tx, Event::new(ns, topic, payload))?;
    }
    Ok(snapshot)
}

/// Has a directory counted that a record refers to and nobody counts.
pub fn recount(tx: &mut Tx<'_>, driver: &str, dir: u64) -> Result<()> {
    if is_referenced(tx, driver, dir)? { Ok(()) } else { refer(tx, driver, dir, 0).map(drop) }
}

/// So many records more refer to a directory. Gives how many do. One that none refers to yet is not looked for among them all.
pub(super) fn refer(tx: &mut Tx<'_>, driver: &str, dir: u64, more: i64) -> Result<u64> {
    let references = match tx.get(Table::DIRS, &dir_key(driver, dir))? {
        Some(bytes) => codec::number(&bytes)?.saturating_add_signed(more),
        None if more > 0 => more.unsigned_abs(),
        // Nobody counted: what others show is theirs all the same.
        None => counted(tx, driver, dir)?,
    };
    match references {
        0 => drop(tx.remove(Table::DIRS, &dir_key(driver, dir))?),
        _ => tx.put(Table::DIRS, &dir_key(driver, dir), &references.to_be_bytes())?,
    }
    Ok(references)
}

/// How many snapshots of a driver show a directory. One that can't be read may be another.
fn counted(read: &dyn Read, driver: &str, dir: u64) -> Result<u64> {
    let mut count = 0;
    super::visit_all(read, b"", &mut |key, snapshot: Result<Snapshot>| {
        count += u64::from(match snapshot {
            Ok(snapshot) => snapshot.driver == driver && snapshot.dir == dir,
            Err(_) => codec::parts(key).map_or(true, |parts| parts.get(1) == Some(&driver)),
        });
    })?;
    Ok(count)
}

/// Puts a snapshot on another parent, which shows the same.
pub(super) fn move_onto(tx: &mut Tx<'_>, ns: &Namespace, mut snapshot: Snapshot, parent: Name) -> Result<()> {
    if let Some(old) = &snapshot.parent {
        tx.remove(Table::CHILDREN, &codec::key(&[ns, &snapshot.driver, old, &snapshot.key]))?;
    }
    tx.put(Table::CHILDREN, &codec::key(&[ns, &snapshot.driver, &parent, &snapshot.key]), b"")?;
    snapshot.parent = Some(parent);
    store(tx, ns, snapshot).map(drop)
}

pub(super) fn store(tx: &mut Tx<'_>, ns: &Namespace, snapshot: Snapshot) -> Result<Snapshot> {
    super::save(tx, &snapshot.key_in(ns), &snapshot)?;
    let mut touched = Resource::from_labels(&snapshot.labels);
    touched.push(snapshot.resource());
    touched.extend(snapshot.parent.clone().map(|key| Resource::Snapshot { driver: snapshot.driver.clone(), key }));
    resource::touch(tx, ns, touched);
    Ok(snapshot)
}

/// Turns an active snapshot into a committed one. Its key is gone; its labels are replaced; its directory stays.
pub fn commit(
    tx: &mut Tx<'_>,
    ns: &Namespace,
    driver: &str,
    key: &str,
    name: Name,
    labels: &Labels,
    usage: Usage,
) -> Result<Snapshot> {
    let active = get(tx, ns, driver, key)?;
    if active.kind != Kind::Active {
        return Err(Error::failed_precondition("snapshot", key, "is not active: only an active one can be committed"));
    }
    if find(tx, ns, driver, &name)?.is_some() {
        return Err(Error::already_exists("snapshot", &name, TAKEN));
    }
    check_unused(tx, ns, driver, key)?;
    let mut labels = labels.clone();
    super::checked_labels(&mut labels)?;
    let now = tx.now();
    tx.remove(Table::SNAPSHOTS, &active.key_in(ns))?;
    if let Some(parent) = &active.parent {
        tx.remove(Table::CHILDREN, &codec::key(&[ns, driver, parent, &active.key]))?;
        tx.put(Table::CHILDREN, &codec::key(&[ns, driver, parent, &name]), b"")?;
    }
    let payload = serde_json::json!({ "key": active.key, "name": name, "driver": driver });
    let old = active.resource();
    let committed = Snapshot { key: name, kind: Kind::Committed, usage, labels, created: now, updated: now, ..active };
    leases::let_go(tx, ns, &old)?;
    leases::keep(tx, ns, &committed.resource())?;
    let committed = store(tx, ns, committed)?;
    events::emit(tx, Event::new(ns, "/snapshot/commit", payload))?;
    Ok(committed)
}

/// Gives a snapshot that is not committed another key.
pub fn rename(tx: &mut Tx<'_>, ns: &Namespace, driver: &str, key: &str, to: Name) -> Result<Snapshot> {
    let old = get(tx, ns, driver, key)?;
    if old.kind == Kind::Committed {
        return Err(Error::failed_precondition("snapshot", key, "is committed: others may lie on it"));
    }
    if find(tx, ns, driver, &to)?.is_some() {
        return Err(Error::already_exists("snapshot", &to, TAKEN));
    }
    tx.remove(Table::SNAPSHOTS, &old.key_in(ns))?;
    if let Some(parent) = &old.parent {
        tx.remove(Table::CHILDREN, &codec::key(&[ns, driver, parent, &old.key]))?;
        tx.put(Table::CHILDREN, &codec::key(&[ns, driver, parent, &to]), b"")?;
    }
    let by_hand = leases::is_by_hand(tx, ns, &old.resource())?;
    leases::let_go(tx, ns, &old.resource())?;
    let renamed = Snapshot { key: to, updated: tx.now(), ..old };
    if by_hand {
        leases::hold_by_hand(tx, ns, &renamed.resource())?;
    }
    store(tx, ns, renamed)
}

/// Replaces the labels, or those that `mask` names.
pub fn update(
    tx: &mut Tx<'_>,
    ns: &Namespace,
    driver: &str,
    key: &str,
    labels: &Labels,
    mask: &[String],
) -> Result<Snapshot> {
    let mut snapshot = get(tx, ns, driver, key)?;
    fields::labels("snapshot", key, &mut snapshot.labels, labels, mask)?;
    super::checked_labels(&mut snapshot.labels)?;
    snapshot.updated = tx.now();
    snapshot.ceiling = snapshot.ceiling.intersect(&tx.authority().ceiling);
    store(tx, ns, snapshot)
}

/// Removes a snapshot that has no children.
pub fn delete(tx: &mut Tx<'_>, ns: &Namespace, driver: &str, key: &str) -> Result<Removed> {
    let snapshot = get(tx, ns, driver, key)?;
    if let Some(child) = children(tx, ns, driver, key, 1)?.first() {
        let why = format!("cannot remove snapshot with child: remove {child} first");
        return Err(Error::failed_precondition("snapshot", key, why));
    }
    check_unused(tx, ns, driver, key)?;
    tx.remove(Table::SNAPSHOTS, &snapshot.key_in(ns))?;
    leases::let_go(tx, ns, &snapshot.resource())?;
    if let Some(parent) = &snapshot.parent {
        tx.remove(Table::CHILDREN, &codec::key(&[ns, driver, parent, key]))?;
    }
    let references = refer(tx, driver, snapshot.dir, -1)?;
    if references == 0
        && let Some(chain) = &snapshot.layer
    {
        layers::forget(tx, driver, chain)?;
    }
    events::emit(tx, Event::new(ns, "/snapshot/remove", serde_json::json!({ "key": key, "driver": driver })))?;
    Ok(Removed { snapshot, unreferenced: references == 0 })
}
