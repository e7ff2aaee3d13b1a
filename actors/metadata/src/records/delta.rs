//! What was referenced since a collection began: the collector's sweep spares it.
//!
//! A collection marks over one read snapshot while writers go on. Whatever a writer creates or refers to meanwhile
//! is noted here, in the writer's own commit, and the sweep drops it from its candidates. Outside a collection
//! nothing is noted, so the table is a set no larger than what was touched during one.

use cofferdam_types::{Digest, Error, Labels, Name, Namespace, Result};
use serde::{Deserialize, Serialize};

use crate::{Read, Tx, codec, table::Table};

/// Something that the collector collects, within a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Resource {
    /// A blob's link.
    Content(Digest),
    /// A snapshot.
    Snapshot {
        /// Its driver.
        driver: String,
        /// Its key.
        key: Name,
    },
}

impl Resource {
    /// What kind of thing it is, in the words of the reference: `content`, or `snapshots/` and the driver.
    pub fn kind(&self) -> String {
        match self {
            Resource::Content(_) => "content".into(),
            Resource::Snapshot { driver, .. } => format!("snapshots/{driver}"),
        }
    }

    /// Its name: a digest or a key.
    pub fn id(&self) -> String {
        match self {
            Resource::Content(digest) => digest.to_string(),
            Resource::Snapshot { key, .. } => key.to_string(),
        }
    }

    /// Reads [`Resource::kind`] and [`Resource::id`].
    pub fn parse(kind: &str, id: &str) -> Result<Resource> {
        match kind.strip_prefix("snapshots/") {
            Some(driver) => {
                super::check_driver(driver)?;
                Ok(Resource::Snapshot { driver: driver.to_owned(), key: Name::new(id)? })
            }
            None if kind == "content" => Ok(Resource::Content(id.parse()?)),
            None => {
                let why = "is no kind of resource: give content, or snapshots/ and a driver's name";
                Err(Error::invalid("resource", kind, why))
            }
        }
    }

    pub(crate) fn parts(&self) -> Vec<String> {
        match self {
            Resource::Content(digest) => vec!["content".into(), digest.to_string()],
            Resource::Snapshot { driver, key } => vec!["snapshot".into(), driver.clone(), key.to_string()],
        }
    }

    pub(crate) fn from_parts(parts: &[&str]) -> Result<Resource> {
        match parts {
            ["content", digest] => Ok(Resource::Content(digest.parse()?)),
            ["snapshot", driver, key] => Ok(Resource::Snapshot { driver: (*driver).to_owned(), key: Name::new(*key)? }),
            _ => Err(Error::data_loss("resource", parts.join("/"), "is of an unknown kind")),
        }
    }

    fn key(&self, ns: &Namespace) -> Vec<u8> {
        let mut parts = self.parts();
        parts.insert(0, ns.to_string());
        codec::key(&parts.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// What the labels of a record refer to (reference, section 10.2): `containerd.io/gc.ref.content[.x]` = digest,
    /// `containerd.io/gc.ref.snapshot.<driver>` = key. What does not parse refers to nothing.
    pub fn from_labels(labels: &Labels) -> Vec<Resource> {
        let one = |(key, value): (&String, &String)| {
            let rest = key.strip_prefix("containerd.io/gc.ref.")?;
            if let Some(suffix) = rest.strip_prefix("content") {
                let known = suffix.is_empty() || suffix.starts_with('.');
                return known.then(|| value.parse().ok()).flatten().map(Resource::Content);
            }
            let driver = rest.strip_prefix("snapshot.")?;
            Some(Resource::Snapshot { driver: driver.to_owned(), key: Name::new(value.as_str()).ok()? })
        };
        labels.iter().filter_map(one).collect()
    }
}

const EPOCH: &str = "collection";
const RUNNING: &[u8] = b"collection";

/// Begins a collection: from this commit on references are noted. An older collection that did not end is void.
pub fn begin(tx: &mut Tx<'_>) -> Result<u64> {
    for key in super::keys(tx, Table::DELTA, b"")? {
        tx.remove(Table::DELTA, &key)?;
    }
    let epoch = tx.next(EPOCH, 1)?;
    tx.put(Table::META, RUNNING, &epoch.to_be_bytes())?;
    Ok(epoch)
}

/// Fails unless this collection is the one that runs.
pub fn check(read: &dyn Read, epoch: u64) -> Result<()> {
    let running = read.get(Table::META, RUNNING)?.map(|bytes| codec::number(&bytes)).transpose()?;
    if running == Some(epoch) {
        return Ok(());
    }
    Err(Error::failed_precondition("collection", epoch, "is no longer the one that runs: begin another"))
}

/// Whether `resource` was created or referred to since the collection began.
pub fn contains(read: &dyn Read, ns: &Namespace, resource: &Resource) -> Result<bool> {
    Ok(read.get(Table::DELTA, &resource.key(ns))?.is_some())
}

/// Ends the collection.
pub fn end(tx: &mut Tx<'_>, epoch: u64) -> Result<()> {
    check(tx, epoch)?;
    tx.remove(Table::META, RUNNING)?;
    for key in super::keys(tx, Table::DELTA, b"")? {
        tx.remove(Table::DELTA, &key)?;
    }
    Ok(())
}

/// Notes references, if a collection runs.
pub(crate) fn touch(tx: &mut Tx<'_>, ns: &Namespace, resources: impl IntoIterator<Item = Resource>) -> Result<()> {
    if tx.get(Table::META, RUNNING)?.is_none() {
        return Ok(());
    }
    for resource in resources {
        tx.put(Table::DELTA, &resource.key(ns), b"")?;
    }
    Ok(())
}
