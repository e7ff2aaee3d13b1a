//! Containers: pure data. Creating one starts nothing (reference, section 12).

use std::collections::{BTreeMap, HashMap};

use cofferdam_types::{Any, Ceiling, Error, Event, GrantId, Id, Labels, Name, Namespace, Result, Subject, Timestamp};
use serde::{Deserialize, Serialize};

use super::{Record, Resource, events, grants, namespaces, resource};
use crate::{
    Read, Tx, codec,
    fields::{self, Path},
    table::Table,
    tx::check_size,
};

/// What the payloads of others in a container may have together: whoever asks what it is gets them all.
const EXTENSIONS: usize = 256 << 10;

/// What is said where an id is in use.
pub const TAKEN: &str = "is there already: choose another name or remove it";

/// A container. What it has not is not written: a list reads many.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// Its id.
    pub id: Id,
    /// Free labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// The image it was made from; free text.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub image: String,
    /// The runtime driver.
    pub runtime: String,
    /// The runtime driver's options.
    #[serde(default, with = "codec::any", skip_serializing_if = "Any::is_empty")]
    pub runtime_options: Any,
    /// The OCI spec. It lies in a table of its own, and a list leaves it out.
    #[serde(skip)]
    pub spec: Any,
    /// The snapshot driver; required with a snapshot key.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub driver: String,
    /// The snapshot that is its root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_key: Option<Name>,
    /// Containers of one group share a shim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<Id>,
    /// The typed options that the daemon generated the spec from; opaque here.
    #[serde(with = "serde_bytes")]
    pub options: Vec<u8>,
    /// Payloads of others.
    #[serde(default, with = "codec::any_map", skip_serializing_if = "BTreeMap::is_empty")]
    pub extensions: BTreeMap<String, Any>,
    /// When it was created.
    pub created: Timestamp,
    /// When it was changed last.
    pub updated: Timestamp,
    /// The bounds of the authority that created it.
    pub ceiling: Ceiling,
    /// The grants through which it was made, the outermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub made_by: Vec<GrantId>,
    /// It goes with its task; see [`transient`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub transient: bool,
    /// The bytes that it may write, as was asked for when it was made; 0: there is no bound.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub storage: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Record for Container {
    const TABLE: Table = Table::CONTAINERS;
    const KIND: &'static str = "container";

    fn name(&self) -> Vec<u8> {
        self.id.as_bytes().to_vec()
    }
}

impl Container {
    /// By what a grant may choose it.
    pub fn subject(&self) -> Subject<'_> {
        Subject {
            id: Some(&self.id),
            image: &self.image,
            runtime: &self.runtime,
            labels: &self.labels,
            made_by: &self.made_by,
        }
    }

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
            made_by: Vec::new(),
            transient: false,
            storage: 0,
        }
    }

    fn check(&mut self) -> Result<()> {
        let bad = |why: &str| Err(Error::invalid("container", &self.id, why));
        if self.runtime.is_empty() {
            return bad("has no runtime: name one");
        }
        if self.spec.is_empty() {
            return bad("has no spec: give one");
        }
        if self.snapshot_key.is_some() && self.driver.is_empty() {
            return bad("has a snapshot key but no snapshot driver: name one");
        }
        if self.extensions.keys().any(String::is_empty) {
            return bad("has an extension without a name");
        }
        let size = |(name, any): (&String, &Any)| name.len() + any.type_url.len() + any.value.len();
        if self.extensions.iter().map(size).sum::<usize>() > EXTENSIONS {
            return bad("would have extensions of more than 256 KiB together: keep what is large elsewhere");
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
    let Some(mut container) = head(read, ns, id)? else { return Ok(None) };
    container.spec = spec(read, &codec::key(&[ns, id]))?;
    Ok(Some(container))
}

/// The same without its spec, as a list gives it.
pub fn head(read: &dyn Read, ns: &Namespace, id: &str) -> Result<Option<Container>> {
    super::find(read, &codec::key(&[ns, id]))
}

/// Whether it exists.
pub fn exists(read: &dyn Read, ns: &Namespace, id: &str) -> Result<bool> {
    Ok(read.get(Table::CONTAINERS, &codec::key(&[ns, id]))?.is_some())
}

/// Whether it exists: `not_found` if not.
pub fn require(read: &dyn Read, ns: &Namespace, id: &str) -> Result<()> {
    if exists(read, ns, id)? { Ok(()) } else { Err(missing(id)) }
}

pub(crate) fn missing(id: &str) -> Error {
    Error::not_found("container", id, "does not exist")
}

fn spec(read: &dyn Read, key: &[u8]) -> Result<Any> {
    let row = read.get(Table::SPECS, key)?.ok_or_else(|| {
        let id = String::from_utf8_lossy(key).replace('\0', "/");
        Error::data_loss("container", id, "has lost its spec: remove it")
    })?;
    read_spec(key, &row)
}

/// A row of [`Table::SPECS`], read.
pub(crate) fn read_spec(key: &[u8], row: &[u8]) -> Result<Any> {
    let Packed(type_url, packed) = codec::decode("spec", key, row)?;
    Ok(Any { type_url, value: codec::unpack("spec", key, &packed)? })
}

/// A row of [`Table::SPECS`]: the type, and the packed value.
#[derive(Serialize, Deserialize)]
struct Packed(String, #[serde(with = "serde_bytes")] Vec<u8>);

fn save_spec(tx: &mut Tx<'_>, key: &[u8], spec: &Any) -> Result<()> {
    check_size(key, spec.value.len())?;
    let row = Packed(spec.type_url.clone(), codec::pack(&spec.value));
    tx.put(Table::SPECS, key, &codec::encode("spec", &row)?)
}

fn save(tx: &mut Tx<'_>, key: &[u8], container: &Container, old: Option<&Container>) -> Result<()> {
    if old.is_none_or(|old| old.spec != container.spec) {
        save_spec(tx, key, &container.spec)?;
    }
    if container.transient && old.is_none() {
        tx.put(Table::TRANSIENT, key, b"")?;
    }
    super::save(tx, key, container)
}

fn remove(tx: &mut Tx<'_>, key: &[u8], container: &Container) -> Result<()> {
    tx.remove(Table::CONTAINERS, key)?;
    tx.remove(Table::SPECS, key)?;
    if container.transient {
        tx.remove(Table::TRANSIENT, key)?;
    }
    Ok(())
}

/// The containers of all namespaces that go with their task: few, where the tables may hold a hundred thousand others.
pub fn transient(read: &dyn Read) -> Result<Vec<(Namespace, Id)>> {
    let mut found = Vec::new();
    for key in super::keys(read, Table::TRANSIENT, b"")? {
        found.extend(super::readable(named(&key))?);
    }
    Ok(found)
}

/// Whose a row of [`Table::TRANSIENT`] is.
fn named(key: &[u8]) -> Result<(Namespace, Id)> {
    let none = || Error::data_loss("container", key.escape_ascii(), "a row of what goes with its task names none");
    match codec::parts(key).map_err(|_| none())?[..] {
        [ns, id] => Namespace::new(ns).and_then(|ns| Ok((ns, Id::new(id)?))).map_err(|_| none()),
        _ => Err(none()),
    }
}

/// The container.
pub fn get(read: &dyn Read, ns: &Namespace, id: &str) -> Result<Container> {
    find(read, ns, id)?.ok_or_else(|| missing(id))
}

/// A page of them, by id, without their specs.
pub fn list(read: &dyn Read, ns: &Namespace, after: Option<&str>, max: usize) -> Result<Vec<Container>> {
    super::page(read, &codec::prefix(&[ns]), after, max)
}

/// Which images containers were made from.
#[derive(Debug, Default)]
pub struct Users {
    /// For each image, by its name, a container that was made from it: the first, without its spec.
    pub of: HashMap<String, Container>,
    /// A container that can't be read: it may have been made from any.
    pub unread: Option<Error>,
}

/// See [`Users`].
pub fn users(read: &dyn Read, ns: &Namespace) -> Result<Users> {
    let mut users = Users::default();
    super::visit_all(read, &codec::prefix(&[ns]), &mut |_, container: Result<Container>| match container {
        Ok(container) if container.image.is_empty() => {}
        Ok(container) => drop(users.of.entry(container.image.clone()).or_insert(container)),
        Err(error) => users.unread = Some(error),
    })?;
    Ok(users)
}

/// Gives `each` the containers that were made from an image, by its name, without their specs.
pub fn made_from(read: &dyn Read, ns: &Namespace, image: &str, each: &mut dyn FnMut(&Container)) -> Result<()> {
    super::visit_all(read, &codec::prefix(&[ns]), &mut |_, container: Result<Container>| match container {
        Ok(container) if container.image == image => each(&container),
        Ok(_) => {}
        Err(error) => super::tell(&error),
    })
}

/// Creates a container.
pub fn create(tx: &mut Tx<'_>, ns: &Namespace, mut container: Container) -> Result<Container> {
    namespaces::require(tx, ns)?;
    container.check()?;
    if exists(tx, ns, &container.id)? {
        return Err(Error::already_exists("container", &container.id, TAKEN));
    }
    let path = tx.authority().grants.clone();
    grants::may_make(tx, ns, &path)?;
    grants::may_store(tx, ns, &path, container.storage, &|_| 0)?;
    container.created = tx.now();
    container.updated = tx.now();
    container.ceiling = tx.authority().ceiling.clone();
    container.made_by = tx.authority().grants.to_vec();
    save(tx, &codec::key(&[ns, &container.id]), &container, None)?;
    resource::touch(tx, ns, container.refers());
    // Of the options the type alone: they name places of the host.
    let mut runtime = serde_json::json!({ "name": container.runtime });
    if !container.runtime_options.is_empty() {
        runtime["options"] = serde_json::json!({ "type_url": container.runtime_options.type_url });
    }
    let payload = serde_json::json!({ "id": container.id, "image": container.image, "runtime": runtime });
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
    (container.transient, container.made_by, container.storage) = (old.transient, old.made_by.clone(), old.storage);
    save(tx, &codec::key(&[ns, &container.id]), &container, Some(&old))?;
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
    if exists(tx, ns, &renamed.id)? {
        return Err(Error::already_exists("container", &renamed.id, TAKEN));
    }
    renamed.check()?;
    renamed.created = old.created;
    renamed.updated = tx.now();
    renamed.ceiling = old.ceiling.intersect(&tx.authority().ceiling);
    (renamed.transient, renamed.made_by, renamed.storage) = (old.transient, old.made_by.clone(), old.storage);
    remove(tx, &codec::key(&[ns, id]), &old)?;
    save(tx, &codec::key(&[ns, &renamed.id]), &renamed, None)?;
    resource::touch(tx, ns, renamed.refers());
    events::emit(tx, Event::new(ns, "/containers/rename", serde_json::json!({ "id": renamed.id, "from": id })))?;
    Ok(renamed)
}

/// Removes a container. One that has a task is refused: its record is what a restarted daemon finds the task by.
pub fn delete(tx: &mut Tx<'_>, ns: &Namespace, id: &str) -> Result<()> {
    let key = codec::key(&[ns, id]);
    let container = head(tx, ns, id)?.ok_or_else(|| missing(id))?;
    if super::tasks::find(tx, ns, id)?.is_some() {
        return Err(Error::failed_precondition("container", id, "has a task: delete the task first"));
    }
    remove(tx, &key, &container)?;
    events::emit(tx, Event::new(ns, "/containers/delete", serde_json::json!({ "id": id })))
}

/// Before version 4 the spec lay in the record itself, and who went with their task were known by their options alone.
pub(crate) fn part(tx: &mut Tx<'_>) -> Result<()> {
    #[derive(Deserialize)]
    struct Old {
        spec: Option<Within>,
    }
    #[derive(Deserialize)]
    struct Within(#[serde(with = "codec::any")] Any);
    #[derive(Default, Deserialize)]
    struct Options {
        #[serde(default)]
        remove_on_exit: bool,
    }
    for key in super::keys(tx, Table::CONTAINERS, b"")? {
        let Some(row) = tx.get(Table::CONTAINERS, &key)? else { continue };
        // One that can't be read stays as it is: it is no reason to stay with the old version.
        let old = super::readable(codec::decode::<Old>(Container::KIND, &key, &row))?;
        let Some(Within(spec)) = old.and_then(|old| old.spec) else { continue };
        let container = super::readable(super::decode::<Container>(&key, &row))?;
        let Some(mut container) = container else { continue };
        container.spec = spec;
        container.transient = serde_json::from_slice::<Options>(&container.options).unwrap_or_default().remove_on_exit;
        save(tx, &key, &container, None)?;
    }
    Ok(())
}
