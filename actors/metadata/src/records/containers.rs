//! Containers: pure data. Creating one starts nothing (reference, section 12).

use std::collections::BTreeMap;

use cofferdam_types::{Any, Ceiling, Error, Event, Id, Labels, Name, Namespace, Result, Timestamp};
use serde::{Deserialize, Serialize};

use super::{Record, Resource, events, namespaces, resource};
use crate::{
    Read, Tx, codec,
    fields::{self, Path},
    table::Table,
};

/// What is said where an id is in use.
pub const TAKEN: &str = "is there already: choose another name or remove it";

/// A container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// Its id.
    pub id: Id,
    /// Free labels.
    pub labels: Labels,
    /// The image it was made from; free text.
    pub image: String,
    /// The runtime driver.
    pub runtime: String,
    /// The runtime driver's options.
    #[serde(with = "codec::any")]
    pub runtime_options: Any,
    /// The OCI spec.
    #[serde(with = "codec::any")]
    pub spec: Any,
    /// The snapshot driver; required with a snapshot key.
    pub driver: String,
    /// The snapshot that is its root.
    pub snapshot_key: Option<Name>,
    /// Containers of one group share a shim.
    pub group: Option<Id>,
    /// The typed options that the daemon generated the spec from; opaque here.
    #[serde(with = "serde_bytes")]
    pub options: Vec<u8>,
    /// Payloads of others.
    #[serde(with = "codec::any_map")]
    pub extensions: BTreeMap<String, Any>,
    /// When it was created.
    pub created: Timestamp,
    /// When it was changed last.
    pub updated: Timestamp,
    /// The bounds of the authority that created it.
    pub ceiling: Ceiling,
}

impl Record for Container {
    const TABLE: Table = Table::CONTAINERS;
    const KIND: &'static str = "container";
}

impl Container {
    /// A container with what it must have.
    pub fn new(id: Id, runtime: impl Into<String>, spec: Any) -> Container {
        Container {
            id,
            labels: Labels::new(),
            image: String::new(),
            runtime: runtime.into(),
            runtime_options: Any::default(),
            spec,
            driver: String::new(),
            snapshot_key: None,
            group: None,
            options: Vec::new(),
            extensions: BTreeMap::new(),
            created: Timestamp::default(),
            updated: Timestamp::default(),
            ceiling: Ceiling::default(),
        }
    }

    fn check(&mut self) -> Result<()> {
        let bad = |why: &str| Err(Error::invalid("container", &self.id, why));
        if self.runtime.is_empty() {
            return bad("has no runtime: name one");
        }
        if self.spec == Any::default() {
            return bad("has no spec: give one");
        }
        if self.snapshot_key.is_some() && self.driver.is_empty() {
            return bad("has a snapshot key but no snapshot driver: name one");
        }
        if self.extensions.keys().any(String::is_empty) {
            return bad("has an extension without a name");
        }
        super::checked_labels(&mut self.labels)
    }

    /// What it keeps.
    pub(crate) fn refers(&self) -> Vec<Resource> {
        let mut refers: Vec<_> = Resource::from_labels(&self.labels)
            .into_iter()
            .filter(|r| matches!(r, Resource::Snapshot { .. })) // As in the reference.
            .collect();
        if let Some(key) = &self.snapshot_key {
            refers.push(Resource::Snapshot { driver: self.driver.clone(), key: key.clone() });
        }
        refers
    }
}

/// The container, if it exists.
pub fn find(read: &dyn Read, ns: &Namespace, id: &str) -> Result<Option<Container>> {
    super::find(read, &codec::key(&[ns, id]))
}

/// The container.
pub fn get(read: &dyn Read, ns: &Namespace, id: &str) -> Result<Container> {
    find(read, ns, id)?.ok_or_else(|| Error::not_found("container", id, "does not exist"))
}

/// A page of them, by id.
pub fn list(read: &dyn Read, ns: &Namespace, after: Option<&str>, max: usize) -> Result<Vec<Container>> {
    super::page(read, &codec::prefix(&[ns]), after, max)
}

/// Creates a container.
pub fn create(tx: &mut Tx<'_>, ns: &Namespace, mut container: Container) -> Result<Container> {
    namespaces::require(tx, ns)?;
    container.check()?;
    if find(tx, ns, &container.id)?.is_some() {
        return Err(Error::already_exists("container", &container.id, TAKEN));
    }
    container.created = tx.now();
    container.updated = tx.now();
    container.ceiling = tx.authority().ceiling.clone();
    super::save(tx, &codec::key(&[ns, &container.id]), &container)?;
    resource::touch(tx, ns, container.refers());
    let payload = serde_json::json!({
        "id": container.id, "image": container.image, "runtime": { "name": container.runtime },
    });
    events::emit(tx, Event::new(ns, "/containers/create", payload))?;
    Ok(container)
}

/// Replaces what is mutable: labels, spec, runtime options, options and extensions. A changed image, runtime,
/// driver, snapshot key or group is refused.
pub fn update(tx: &mut Tx<'_>, ns: &Namespace, mut container: Container) -> Result<Container> {
    let old = get(tx, ns, &container.id)?;
    for (field, same) in [
        ("image", container.image == old.image),
        ("runtime", container.runtime == old.runtime),
        ("driver", container.driver == old.driver),
        ("snapshot_key", container.snapshot_key == old.snapshot_key),
        ("group", container.group == old.group),
    ] {
        if !same {
            return Err(Error::invalid("container", &old.id, format!("its field {field} is immutable")));
        }
    }
    container.check()?;
    container.created = old.created;
    container.updated = tx.now();
    container.ceiling = old.ceiling.intersect(&tx.authority().ceiling);
    super::save(tx, &codec::key(&[ns, &container.id]), &container)?;
    resource::touch(tx, ns, container.refers());
    let payload = serde_json::json!({
        "id": container.id, "image": container.image, "labels": container.labels, "snapshot_key": container.snapshot_key,
    });
    events::emit(tx, Event::new(ns, "/containers/update", payload))?;
    Ok(container)
}

/// Takes from `given` the fields that `mask` names (`labels`, `labels.K`, `spec`, `extensions`, `extensions.K`);
/// with an empty mask all that is mutable.
pub fn update_fields(tx: &mut Tx<'_>, ns: &Namespace, given: Container, mask: &[String]) -> Result<Container> {
    if mask.is_empty() {
        return update(tx, ns, given);
    }
    let mut container = get(tx, ns, &given.id)?;
    for path in fields::paths(mask) {
        match path {
            Path::Whole("labels") => container.labels.clone_from(&given.labels),
            Path::Entry("labels", key) => fields::entry(&mut container.labels, &given.labels, key),
            Path::Whole("spec") => container.spec = given.spec.clone(),
            Path::Whole("extensions") => container.extensions.clone_from(&given.extensions),
            Path::Entry("extensions", key) => fields::entry(&mut container.extensions, &given.extensions, key),
            path => return Err(fields::immutable("container", &given.id, &path)),
        }
    }
    update(tx, ns, container)
}

/// Gives a container another id. What else of it has that id, its task and its snapshot, is moved by the caller.
pub fn rename(tx: &mut Tx<'_>, ns: &Namespace, id: &str, mut renamed: Container) -> Result<Container> {
    let old = get(tx, ns, id)?;
    if find(tx, ns, &renamed.id)?.is_some() {
        return Err(Error::already_exists("container", &renamed.id, TAKEN));
    }
    renamed.check()?;
    renamed.created = old.created;
    renamed.updated = tx.now();
    renamed.ceiling = old.ceiling.intersect(&tx.authority().ceiling);
    tx.remove(Table::CONTAINERS, &codec::key(&[ns, id]))?;
    super::save(tx, &codec::key(&[ns, &renamed.id]), &renamed)?;
    resource::touch(tx, ns, renamed.refers());
    events::emit(tx, Event::new(ns, "/containers/rename", serde_json::json!({ "id": renamed.id, "from": id })))?;
    Ok(renamed)
}

/// Removes a container. One that has a task is refused: its record is what a restarted daemon finds the task by.
pub fn delete(tx: &mut Tx<'_>, ns: &Namespace, id: &str) -> Result<()> {
    get(tx, ns, id)?;
    if super::tasks::find(tx, ns, id)?.is_some() {
        return Err(Error::failed_precondition("container", id, "has a task: delete the task first"));
    }
    tx.remove(Table::CONTAINERS, &codec::key(&[ns, id]))?;
    events::emit(tx, Event::new(ns, "/containers/delete", serde_json::json!({ "id": id })))
}
