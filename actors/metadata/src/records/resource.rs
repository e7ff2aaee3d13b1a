//! What the collector collects, by name.

use cofferdam_types::{Digest, Error, Labels, Name, Namespace, Result};
use serde::{Deserialize, Serialize};

use crate::Tx;

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

/// Notes references, if a collection runs: whatever a record is made to refer to goes through here in its own commit.
pub(crate) fn touch(tx: &Tx<'_>, ns: &Namespace, resources: impl IntoIterator<Item = Resource>) {
    tx.spared().touch(ns, resources);
}
