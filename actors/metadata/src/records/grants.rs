//! Grants: what was handed out of a namespace, to be taken back. A row's key is its path, the ids of the grants that it
//! comes from and its own: so all that comes from one lie behind it, and their order is that of a tree.

use std::ops::ControlFlow;

use cofferdam_types::{Caveats, Digest, Error, GrantId, Namespace, Result, Timestamp};
use serde::{Deserialize, Serialize};

use super::{Record, containers::Container, content::Link, namespaces};
use crate::{
    Read, Tx, codec,
    table::{self, Table},
};

/// How deep grants may lie: each has its own key, which holds the ids of all above it.
pub const DEEP: usize = 16;
/// How many may come from one that nobody holds a grant above, at whatever depth: each is a row, and kept in memory.
pub const MOST: usize = 1024;
/// The most bytes of a label.
const LABEL: usize = 256;

/// A grant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Its own name; it gives nothing.
    pub id: GrantId,
    /// What people call it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub label: String,
    /// Where it begins.
    pub namespace: Namespace,
    /// What it leaves of the one that it comes from: those of all above it count too.
    pub caveats: Caveats,
    /// The digest of the token by which it is got, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<Digest>,
    /// The only user who may use the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed_to: Option<u32>,
    /// How often the token may be used yet; none: as often as one likes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uses: Option<u64>,
    /// The directory of the host in which a socket is it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exported: Option<String>,
    /// When it was made.
    pub created: Timestamp,
    /// The user who made it.
    pub by: u32,
}

impl Record for Grant {
    const TABLE: Table = Table::GRANTS;
    const KIND: &'static str = "grant";

    fn name(&self) -> Vec<u8> {
        self.id.to_string().into_bytes()
    }
}

impl Grant {
    /// A grant with what it must have.
    pub fn new(id: GrantId, namespace: Namespace, caveats: Caveats) -> Grant {
        Grant {
            id,
            label: String::new(),
            namespace,
            caveats,
            token: None,
            sealed_to: None,
            uses: None,
            exported: None,
            created: Timestamp::default(),
            by: 0,
        }
    }
}

fn key(path: &[GrantId]) -> Vec<u8> {
    let parts: Vec<String> = path.iter().map(GrantId::to_string).collect();
    codec::key(&parts.iter().map(String::as_str).collect::<Vec<_>>())
}

fn path(key: &[u8]) -> Result<Vec<GrantId>> {
    let bad = |e: Error| Error::data_loss("grant", String::from_utf8_lossy(key).replace('\0', "/"), e.message);
    codec::parts(key)?.into_iter().map(|part| part.parse().map_err(bad)).collect()
}

fn missing(path: &[GrantId]) -> Error {
    let id = path.last().copied().unwrap_or_default();
    Error::not_found("grant", id, "does not exist, or was taken back")
}

/// The grant at the end of this path, if it is there.
pub fn find(read: &dyn Read, path: &[GrantId]) -> Result<Option<Grant>> {
    super::find(read, &key(path))
}

/// The grant at the end of this path.
pub fn get(read: &dyn Read, path: &[GrantId]) -> Result<Grant> {
    find(read, path)?.ok_or_else(|| missing(path))
}

/// That a grant is still there, and all that it comes from.
pub(crate) fn require(read: &dyn Read, path: &[GrantId]) -> Result<()> {
    for end in 1..=path.len() {
        if read.get(Table::GRANTS, &key(&path[..end]))?.is_none() {
            return Err(Error::revoked("grant", path[end - 1], "was taken back"));
        }
    }
    Ok(())
}

/// Visits each with its path, in the order of the tree: a grant comes before what comes from it. One that can't be read is
/// told to `bad`, and passed over.
pub fn visit(read: &dyn Read, each: &mut dyn FnMut(Vec<GrantId>, Grant), bad: &mut dyn FnMut(Error)) -> Result<()> {
    table::scan(read, Table::GRANTS, b"", None, &mut |row, value| {
        match (path(row), super::decode::<Grant>(row, value)) {
            (Ok(path), Ok(grant)) => each(path, grant),
            (Err(error), _) | (_, Err(error)) => bad(error),
        }
        Ok(ControlFlow::Continue(()))
    })
}

/// At most `max` of those below a path (of all, where it is empty), behind the one whose path is `after`.
pub fn list(
    read: &dyn Read,
    below: &[GrantId],
    after: Option<&[GrantId]>,
    max: usize,
) -> Result<Vec<(Vec<GrantId>, Grant)>> {
    let mut found = Vec::new();
    if max == 0 {
        return Ok(found);
    }
    let mut prefix = key(below);
    if !below.is_empty() {
        prefix.push(0);
    }
    table::scan(read, Table::GRANTS, &prefix, after.map(key).as_deref(), &mut |row, value| {
        let grant = path(row).and_then(|path| Ok((path, super::decode(row, value)?)));
        found.extend(super::readable(grant)?);
        Ok(if found.len() < max { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    Ok(found)
}

/// Makes one below `above`, which is there. What it leaves, and for how long, is for who asks to have settled.
pub fn create(tx: &mut Tx<'_>, above: &[GrantId], mut grant: Grant) -> Result<Grant> {
    namespaces::require(tx, &grant.namespace)?;
    if grant.label.len() > LABEL || grant.label.contains(char::is_control) {
        let why = format!("is no label: it has at most {LABEL} bytes, and none of them controls a terminal");
        return Err(Error::invalid("label", grant.label.escape_debug(), why));
    }
    if above.len() >= DEEP {
        let why = format!("can't come from one that lies {DEEP} deep: derive it from one further up");
        return Err(Error::resource_exhausted("grant", "", why));
    }
    if !above.is_empty() {
        get(tx, above)?;
        if below(tx, &above[..1])? >= MOST {
            let why =
                format!("has {MOST} grants that come from it, which is all that may: revoke some that nobody needs");
            return Err(Error::resource_exhausted("grant", above[0], why));
        }
    }
    let path = [above, &[grant.id]].concat();
    if find(tx, &path)?.is_some() {
        return Err(Error::already_exists("grant", grant.id, "is there already"));
    }
    grant.created = tx.now();
    super::save(tx, &key(&path), &grant)?;
    Ok(grant)
}

/// How many come from the grant at the end of a path; no more than [`MOST`] are counted.
fn below(read: &dyn Read, path: &[GrantId]) -> Result<usize> {
    let mut prefix = key(path);
    prefix.push(0);
    let mut count = 0;
    table::scan(read, Table::GRANTS, &prefix, None, &mut |_, _| {
        count += 1;
        Ok(if count < MOST { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    Ok(count)
}

/// How many containers there are that were made through a grant or through those that come from it; no more than `most` are
/// counted.
pub fn made(read: &dyn Read, ns: &Namespace, id: GrantId, most: u64) -> Result<u64> {
    let mut count = 0;
    if most == 0 {
        return Ok(0);
    }
    table::scan(read, Table::CONTAINERS, &codec::prefix(&[ns]), None, &mut |row, value| {
        // One that can't be read is nobody's to count.
        let found = super::decode::<Container>(row, value);
        count += u64::from(found.is_ok_and(|one| one.made_by.contains(&id)));
        Ok(if count < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    Ok(count)
}

/// Whether one container more may be made through the grant at the end of a path: each grant on it has its own bound.
pub(crate) fn may_make(read: &dyn Read, ns: &Namespace, path: &[GrantId]) -> Result<()> {
    for end in 1..=path.len() {
        let Some(grant) = find(read, &path[..end])? else { continue };
        let Some(most) = grant.caveats.quota.containers else { continue };
        if made(read, ns, grant.id, most)? >= most {
            let why = format!(
                "may have {most} containers at once, and there are as many that were made through it or what comes from it: \
                 remove one, or ask whoever gave it for more"
            );
            return Err(Error::resource_exhausted("grant", grant.id, why));
        }
    }
    Ok(())
}

/// How many bytes there are that came through a grant or through those that come from it: of blobs, and of what containers
/// may write.
pub fn stored(read: &dyn Read, ns: &Namespace, id: GrantId) -> Result<u64> {
    let mut bytes = 0u64;
    let prefix = codec::prefix(&[ns]);
    table::scan(read, Table::CONTENT, &prefix, None, &mut |row, value| {
        let link = super::decode::<Link>(row, value).ok().filter(|link| link.made_by.contains(&id));
        bytes = bytes.saturating_add(link.map_or(0, |link| link.size));
        Ok(ControlFlow::Continue(()))
    })?;
    table::scan(read, Table::CONTAINERS, &prefix, None, &mut |row, value| {
        let one = super::decode::<Container>(row, value).ok().filter(|one| one.made_by.contains(&id));
        bytes = bytes.saturating_add(one.map_or(0, |one| one.storage));
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(bytes)
}

/// Whether any grant on a path bounds what comes through it on disk.
pub fn bounds_disk(read: &dyn Read, path: &[GrantId]) -> Result<bool> {
    for end in 1..=path.len() {
        if find(read, &path[..end])?.is_some_and(|grant| grant.caveats.quota.disk.is_some()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether so many bytes more may come through the grant at the end of a path, beside what `coming` says of each on it that is
/// no record yet: each has its own bound.
pub fn may_store(
    read: &dyn Read,
    ns: &Namespace,
    path: &[GrantId],
    more: u64,
    coming: &dyn Fn(GrantId) -> u64,
) -> Result<()> {
    for end in 1..=path.len() {
        let Some(grant) = find(read, &path[..end])? else { continue };
        let Some(most) = grant.caveats.quota.disk.filter(|_| more > 0) else { continue };
        let there = stored(read, ns, grant.id)?.saturating_add(coming(grant.id));
        if there.saturating_add(more) > most {
            let why = format!(
                "may have {most} bytes of the disk for what is made through it or what comes from it, and {there} are taken: {more} \
                 more are too many. Remove blobs or containers, or ask whoever gave it for more"
            );
            return Err(Error::resource_exhausted("grant", grant.id, why));
        }
    }
    Ok(())
}

/// Changes what a grant has beside its caveats: its token, and where it is exported.
pub fn update(tx: &mut Tx<'_>, path: &[GrantId], change: impl FnOnce(&mut Grant) -> Result<()>) -> Result<Grant> {
    let old = get(tx, path)?;
    let mut grant = old.clone();
    change(&mut grant)?;
    (grant.id, grant.namespace, grant.caveats) = (old.id, old.namespace, old.caveats);
    super::save(tx, &key(path), &grant)?;
    Ok(grant)
}

/// Removes a grant and all that come from it; says how many there were. None: it was gone already.
pub fn delete(tx: &mut Tx<'_>, path: &[GrantId]) -> Result<usize> {
    let own = key(path);
    let mut below = own.clone();
    below.push(0);
    let mut keys = super::keys(tx, Table::GRANTS, &below)?;
    keys.push(own);
    let mut gone = 0;
    for key in keys {
        gone += usize::from(tx.remove(Table::GRANTS, &key)?);
    }
    Ok(gone)
}

/// The uppermost of those that begin in a namespace.
pub(crate) fn of_namespace(read: &dyn Read, namespace: &Namespace) -> Result<Vec<Grant>> {
    let mut found = Vec::new();
    let mut each = |path: Vec<GrantId>, grant: Grant| {
        if path.len() == 1 && grant.namespace == *namespace {
            found.push(grant);
        }
    };
    visit(read, &mut each, &mut |_| {})?;
    Ok(found)
}
