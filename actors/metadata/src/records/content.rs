//! Content: a link per namespace, and one row per blob that counts its links.
//!
//! Knowing a digest grants nothing: a namespace sees a blob only through its link.

use cofferdam_types::{
    Ceiling, Digest, Error, Event, GrantId, Labels, MAX_LABEL, Namespace, Pictures, Result, Timestamp,
};
use serde::{Deserialize, Serialize};

use super::{Record, Resource, events, grants, leases, namespaces, resource};
use crate::{Read, Tx, codec, fields, table::Table};

/// The label of a blob that says which repositories of a registry have it: the registry's host follows, and the value is their
/// paths, with commas between them. containerd's.
pub const SOURCE: &str = "containerd.io/distribution.source.";

/// A namespace's link to a blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// The blob.
    pub digest: Digest,
    /// Its size.
    pub size: u64,
    /// Free labels.
    pub labels: Labels,
    /// When it was linked.
    pub created: Timestamp,
    /// When it was changed last.
    pub updated: Timestamp,
    /// The bounds of the authority that linked it.
    pub ceiling: Ceiling,
    /// The grants through which that was, the outermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub made_by: Vec<GrantId>,
}

/// A blob, stored once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// Which one.
    pub digest: Digest,
    /// Its size.
    pub size: u64,
    /// How many namespaces link it; a blob without a link has no row.
    pub links: u64,
    /// Its file was found to have other bytes than its digest says, and is yet to be replaced.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub altered: bool,
}

impl Record for Link {
    const TABLE: Table = Table::CONTENT;
    const KIND: &'static str = "content";

    fn name(&self) -> Vec<u8> {
        self.digest.to_string().into_bytes()
    }
}

impl Record for Blob {
    const TABLE: Table = Table::BLOBS;
    const KIND: &'static str = "blob";

    fn name(&self) -> Vec<u8> {
        self.digest.to_string().into_bytes()
    }
}

impl Blob {
    /// What a link says of it, which isn't counted.
    pub(crate) fn of(link: &Link) -> Blob {
        Blob { digest: link.digest.clone(), size: link.size, links: 0, altered: false }
    }
}

impl Link {
    /// A link without labels.
    pub fn new(digest: Digest, size: u64) -> Link {
        Link {
            digest,
            size,
            labels: Labels::new(),
            created: Timestamp::default(),
            updated: Timestamp::default(),
            ceiling: Ceiling::default(),
            made_by: Vec::new(),
        }
    }

    /// Whether it came out of a repository that has some of these images: who may have those was shown its bytes, or would be.
    pub fn came_from(&self, images: &Pictures) -> bool {
        let repositories = self.labels.iter().filter_map(|(key, paths)| Some((key.strip_prefix(SOURCE)?, paths)));
        let mut all = repositories.flat_map(|(host, paths)| paths.split(',').map(move |path| format!("{host}/{path}")));
        images.is_all() || all.any(|repository| images.has_some_of(&repository))
    }

    /// Its labels with those of who brings it once more. Of the repositories that have it it keeps those that it knew, the last
    /// ones where there are too many.
    pub fn labels_with(&self, given: &Labels) -> Labels {
        let mut labels = self.labels.clone();
        for (key, value) in given {
            let known = self.labels.get(key).filter(|_| key.starts_with(SOURCE)).into_iter().flat_map(|v| v.split(','));
            let mut values: Vec<&str> = known.filter(|one| !one.is_empty() && one != value).collect();
            values.push(value);
            let mut joined = values.join(",");
            while key.len() + joined.len() > MAX_LABEL && values.len() > 1 {
                values.remove(0);
                joined = values.join(",");
            }
            labels.insert(key.clone(), joined);
        }
        labels
    }
}

fn key(ns: &Namespace, digest: &Digest) -> Vec<u8> {
    codec::key(&[ns, &digest.to_string()])
}

/// The namespace's link, if it has one.
pub fn find(read: &dyn Read, ns: &Namespace, digest: &Digest) -> Result<Option<Link>> {
    super::find(read, &key(ns, digest))
}

/// Whether the namespace has a link, and be it one that can't be read.
pub fn exists(read: &dyn Read, ns: &Namespace, digest: &Digest) -> Result<bool> {
    Ok(read.get(Table::CONTENT, &key(ns, digest))?.is_some())
}

/// The namespace's link.
pub fn get(read: &dyn Read, ns: &Namespace, digest: &Digest) -> Result<Link> {
    find(read, ns, digest)?.ok_or_else(|| missing(digest))
}

/// Of what isn't there, and of what is to be as if it weren't.
pub fn missing(digest: &Digest) -> Error {
    Error::not_found("content", digest, "is not in this namespace")
}

/// A page of links, by digest.
pub fn list(read: &dyn Read, ns: &Namespace, after: Option<&str>, max: usize) -> Result<Vec<Link>> {
    super::page(read, &codec::prefix(&[ns]), after, max)
}

/// The blob, if any namespace links it.
pub fn blob(read: &dyn Read, digest: &Digest) -> Result<Option<Blob>> {
    super::find(read, digest.to_string().as_bytes())
}

/// Whether the file of a blob stays: a row counts its links, and be it one that can't be read; or somebody has one, though nobody
/// counted it.
pub fn is_kept(read: &dyn Read, digest: &Digest) -> Result<bool> {
    Ok(read.get(Table::BLOBS, digest.to_string().as_bytes())?.is_some() || links(read, digest)? > 0)
}

/// As its row counts the links of a blob, or where that can't be read, or is lost, as they are counted anew.
pub fn counted(read: &dyn Read, link: &Link) -> Result<Blob> {
    match super::readable(blob(read, &link.digest))?.flatten() {
        Some(found) => Ok(found),
        None => Ok(Blob { links: links(read, &link.digest)?, ..Blob::of(link) }),
    }
}

/// How many namespaces link a blob, whether they have a record or not, by what there is of links.
fn links(read: &dyn Read, digest: &Digest) -> Result<u64> {
    let (digest, mut links) = (digest.to_string(), 0);
    for space in super::spaces(read, Table::CONTENT)? {
        links += u64::from(read.get(Table::CONTENT, &[&space[..], digest.as_bytes()].join(&0))?.is_some());
    }
    Ok(links)
}

/// A page of all blobs, by digest.
pub fn blobs(read: &dyn Read, after: Option<&str>, max: usize) -> Result<Vec<Blob>> {
    super::page(read, b"", after, max)
}

/// Links a blob whose file is in place.
pub fn create(tx: &mut Tx<'_>, ns: &Namespace, mut link: Link) -> Result<Link> {
    namespaces::require(tx, ns)?;
    super::checked_labels(&mut link.labels)?;
    if find(tx, ns, &link.digest)?.is_some() {
        return Err(Error::already_exists("content", &link.digest, "is in this namespace already"));
    }
    let mut blob = counted(tx, &link)?;
    if blob.size != link.size {
        let message = format!("has {} bytes, not {}", blob.size, link.size);
        return Err(Error::data_loss("content", &link.digest, message));
    }
    let path = tx.authority().grants.clone();
    grants::may_store(tx, ns, &path, link.size, &|_| 0)?;
    blob.links += 1;
    super::save(tx, blob.digest.to_string().as_bytes(), &blob)?;
    link.created = tx.now();
    link.updated = tx.now();
    link.ceiling = tx.authority().ceiling.clone();
    link.made_by = path.to_vec();
    leases::keep(tx, ns, &Resource::Content(link.digest.clone()))?;
    store(tx, ns, link)
}

/// Replaces the labels, or those that `mask` names.
pub fn update(tx: &mut Tx<'_>, ns: &Namespace, digest: &Digest, labels: &Labels, mask: &[String]) -> Result<Link> {
    let mut link = get(tx, ns, digest)?;
    fields::labels("content", &digest.to_string(), &mut link.labels, labels, mask)?;
    super::checked_labels(&mut link.labels)?;
    link.updated = tx.now();
    link.ceiling = link.ceiling.intersect(&tx.authority().ceiling);
    store(tx, ns, link)
}

fn store(tx: &mut Tx<'_>, ns: &Namespace, link: Link) -> Result<Link> {
    super::save(tx, &key(ns, &link.digest), &link)?;
    let mut touched = Resource::from_labels(&link.labels);
    touched.push(Resource::Content(link.digest.clone()));
    resource::touch(tx, ns, touched);
    Ok(link)
}

const SCRUBBED: &[u8] = b"scrubbed";

/// When all blobs were last compared with their digests.
pub fn scrubbed(read: &dyn Read) -> Result<Option<Timestamp>> {
    let row = read.get(Table::META, SCRUBBED)?;
    // One that can't be read is as good as none: they are compared again.
    Ok(row.map(|bytes| super::readable(codec::number(&bytes))).transpose()?.flatten().map(Timestamp))
}

/// They were just now.
pub fn set_scrubbed(tx: &mut Tx<'_>) -> Result<()> {
    let now = tx.now().0.to_be_bytes();
    tx.put(Table::META, SCRUBBED, &now)
}

/// Notes that a blob's bytes are not what they were, and tells every namespace that has it, unless that is known.
pub fn damaged(tx: &mut Tx<'_>, digest: &Digest) -> Result<()> {
    if !mark(tx, digest, true)? {
        return Ok(());
    }
    for ns in namespaces::names(tx)? {
        if exists(tx, &ns, digest)? {
            let payload = serde_json::json!({ "digest": digest });
            events::emit(tx, Event::new(&ns, "/content/damaged", payload))?;
        }
    }
    Ok(())
}

/// Its file is another one by now, or was read again and is what it should be.
pub fn mended(tx: &mut Tx<'_>, digest: &Digest) -> Result<()> {
    mark(tx, digest, false).map(drop)
}

/// Whether that is news.
fn mark(tx: &mut Tx<'_>, digest: &Digest, altered: bool) -> Result<bool> {
    let blob = super::readable(blob(tx, digest))?.flatten();
    let Some(blob) = blob.filter(|blob| blob.altered != altered) else { return Ok(false) };
    super::save(tx, digest.to_string().as_bytes(), &Blob { altered, ..blob })?;
    Ok(true)
}

/// Removes a link. `true`: it was the last one, and the file may be removed after the commit (and a re-check).
pub fn delete(tx: &mut Tx<'_>, ns: &Namespace, digest: &Digest) -> Result<bool> {
    let link = get(tx, ns, digest)?;
    let counted = counted(tx, &link)?;
    tx.remove(Table::CONTENT, &key(ns, digest))?;
    leases::let_go(tx, ns, &Resource::Content(digest.clone()))?;
    let (id, last) = (digest.to_string(), counted.links <= 1);
    match last {
        true => drop(tx.remove(Table::BLOBS, id.as_bytes())?),
        false => super::save(tx, id.as_bytes(), &Blob { links: counted.links - 1, ..counted })?,
    }
    events::emit(tx, Event::new(ns, "/content/delete", serde_json::json!({ "digest": digest })))?;
    Ok(last)
}
