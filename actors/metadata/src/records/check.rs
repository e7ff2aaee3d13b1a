//! Whether the records agree with each other: what is counted and indexed can be made again from what it counts, and what
//! names another record finds it.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
};

use cofferdam_types::{Digest, Fault, Finding, Findings, GrantId, Name, Namespace, Result};

use super::{
    Record, Resource,
    containers::Container,
    content::{Blob, Link},
    grants::Grant,
    layers::Layer,
    leases::{self, Lease},
    snapshots::{Kind, Snapshot},
    tasks::Task,
};
use crate::{
    Read, Tx, codec,
    table::{Table, scan},
};

/// A row that is not what the others say: what it should hold, if it should be there at all.
struct Wrong {
    table: Table,
    key: Vec<u8>,
    right: Option<Vec<u8>>,
    what: String,
}

/// Reads the tables, and says where they contradict each other. One view: what is written meanwhile changes nothing.
pub fn all(read: &dyn Read) -> Result<Vec<Finding>> {
    let mut found = Findings::default();
    for wrong in rows(read, &mut found)? {
        found.add(Fault::IndexWrong, named(&wrong.key), format!("{}: --repair makes it anew", wrong.what), false);
    }
    Ok(found.done())
}

/// The same, and makes the indices anew. What it can't put right is left as it is.
pub fn mend(tx: &mut Tx<'_>) -> Result<Vec<Finding>> {
    let mut found = Findings::default();
    for wrong in rows(tx, &mut found)? {
        match &wrong.right {
            Some(right) => tx.put(wrong.table, &wrong.key, right)?,
            None => drop(tx.remove(wrong.table, &wrong.key)?),
        }
        found.add(Fault::IndexWrong, named(&wrong.key), format!("{}: was made anew", wrong.what), true);
    }
    Ok(found.done())
}

fn named(key: &[u8]) -> String {
    String::from_utf8_lossy(key).replace('\0', "/")
}

/// The rows of a kind that can't be read. What is counted, listed or held for one of them is nobody's mistake: it stays.
#[derive(Default)]
struct Unread {
    keys: BTreeSet<String>,
    /// Of one of them not even the key can be read: it may be of anything.
    vague: bool,
}

impl Unread {
    /// Whether something may be of one of them, by its key.
    fn has(&self, key: &str) -> bool {
        self.vague || self.keys.contains(key)
    }

    /// What their keys say behind the namespace.
    fn seconds(&self) -> BTreeSet<&str> {
        self.keys.iter().filter_map(|key| key.split('\0').nth(1)).collect()
    }
}

/// Visits every record of a kind with the parts of its key. One that can't be read is told, and given back.
fn each<R: Record>(read: &dyn Read, found: &mut Findings, visit: &mut dyn FnMut(&[&str], R)) -> Result<Unread> {
    let mut unread = Unread::default();
    scan(read, R::TABLE, b"", None, &mut |key, value| {
        match (codec::parts(key), super::decode::<R>(key, value)) {
            (Ok(parts), Ok(record)) => visit(&parts, record),
            (parts, record) => {
                match &parts {
                    Ok(parts) => drop(unread.keys.insert(parts.join("\0"))),
                    Err(_) => unread.vague = true,
                }
                let why = parts.err().or_else(|| record.err()).map(|error| error.message).unwrap_or_default();
                found.add(Fault::RecordUnreadable, format!("{}/{}", R::KIND, named(key)), why, false);
            }
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(unread)
}

fn raw(read: &dyn Read, table: Table) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut rows = BTreeMap::new();
    scan(read, table, b"", None, &mut |key, value| {
        rows.insert(key.to_vec(), value.to_vec());
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(rows)
}

fn rows(read: &dyn Read, found: &mut Findings) -> Result<Vec<Wrong>> {
    let mut wrong = Vec::new();
    let links = blobs(read, found, &mut wrong)?;
    let snapshots = snapshots(read, found, &mut wrong)?;
    held(read, found, &mut wrong, &links, &snapshots)?;
    let mut containers = BTreeSet::new();
    let mut transient = BTreeSet::new();
    let mut lost = Vec::new();
    let mut specs: BTreeSet<_> = super::keys(read, Table::SPECS, b"")?.into_iter().collect();
    let unread = each::<Container>(read, found, &mut |key, container| {
        containers.insert(key.join("\0"));
        if !specs.remove(&codec::key(key)) {
            lost.push((key.join("/"), "has lost its spec: remove it".into()));
        }
        if container.transient {
            transient.insert(codec::key(key));
        }
        let Some(root) = &container.snapshot_key else { return };
        if !snapshots.has(&[key[0], &container.driver, root].join("\0")) {
            lost.push((key.join("/"), format!("its root file system, snapshot {root}, has no record: remove it")));
        }
    })?;
    for key in specs {
        // Of a container whose own row can't be read it is all that is left.
        if !unread.has(&String::from_utf8_lossy(&key)) {
            let what = "the spec of a container is of none".into();
            wrong.push(Wrong { table: Table::SPECS, key, right: None, what });
        }
    }
    let listed = transient.into_iter().map(|key| Ok((key, Vec::new())));
    let stays = |key: &[u8], _: Option<&[u8]>| unread.has(&String::from_utf8_lossy(key));
    compare(read, Table::TRANSIENT, listed, "the list of containers that go with their task", &stays, &mut wrong)?;
    each::<Task>(read, found, &mut |key, _| {
        let key = key.join("\0");
        if !containers.contains(&key) && !unread.has(&key) {
            lost.push((key.replace('\0', "/"), "this task's container has no record: start the daemon anew".into()));
        }
    })?;
    grants(read, found)?;
    lost.into_iter().for_each(|(id, why)| found.add(Fault::RecordMissing, format!("container/{id}"), why, false));
    Ok(wrong)
}

/// Each grant comes from one that is there. One that doesn't is not live.
fn grants(read: &dyn Read, found: &mut Findings) -> Result<()> {
    let (mut there, mut faults) = (BTreeSet::new(), Vec::new());
    let each = &mut |path: Vec<GrantId>, grant: Grant| {
        let above = &path[..path.len().saturating_sub(1)];
        if !above.is_empty() && !there.contains(above) {
            let why = "the grant that it comes from has no record, and it gives nothing: revoke it".to_owned();
            faults.push((Fault::RecordMissing, grant.id.to_string(), why));
        }
        there.insert(path);
    };
    let mut unreadable = Vec::new();
    super::grants::visit(read, each, &mut |error| unreadable.push(error))?;
    faults.extend(unreadable.into_iter().map(|error| (Fault::RecordUnreadable, error.id, error.message)));
    faults.into_iter().for_each(|(fault, id, why)| found.add(fault, format!("grant/{id}"), why, false));
    Ok(())
}

/// What there is of a kind.
struct There {
    keys: BTreeSet<String>,
    unread: Unread,
}

impl There {
    fn has(&self, key: &str) -> bool {
        self.keys.contains(key) || self.unread.has(key)
    }
}

/// A row for each blob that a namespace links, and for no other. Gives the links.
fn blobs(read: &dyn Read, found: &mut Findings, wrong: &mut Vec<Wrong>) -> Result<There> {
    let mut counts: BTreeMap<Digest, Blob> = BTreeMap::new();
    let mut keys = BTreeSet::new();
    let unread = each::<Link>(read, found, &mut |key, link| {
        keys.insert(key.join("\0"));
        counts.entry(link.digest.clone()).or_insert_with(|| Blob::of(&link)).links += 1;
    })?;
    super::visit_all(read, b"", &mut |_, blob: Result<Blob>| {
        // What nobody counts: it was found by reading.
        if let Ok(Blob { digest, altered: true, .. }) = blob
            && let Some(count) = counts.get_mut(&digest)
        {
            count.altered = true;
        }
    })?;
    // A link is there, whatever its row says of it: of which blob, its key says.
    let digests = unread.keys.iter().filter_map(|key| key.split('\0').nth(1)?.parse::<Digest>().ok());
    for digest in digests {
        let known = counts.remove(&digest).or_else(|| super::content::blob(read, &digest).ok().flatten().map(unlinked));
        // Where nothing says how long the blob is, its row stays as it is.
        if let Some(blob) = known {
            counts.insert(digest, Blob { links: blob.links + 1, ..blob });
        }
    }
    let linked = unread.seconds();
    let links = |row: &[u8]| codec::decode::<Blob>(Blob::KIND, b"", row).map_or(0, |blob| blob.links);
    let stays = |key: &[u8], right: Option<&[u8]>| match right {
        None => unread.vague || std::str::from_utf8(key).is_ok_and(|digest| linked.contains(digest)),
        // Of a link whose key can't be read either nobody knows of which blob it is.
        Some(right) => {
            unread.vague && read.get(Table::BLOBS, key).ok().flatten().is_some_and(|is| links(&is) > links(right))
        }
    };
    compare(
        read,
        Table::BLOBS,
        counts.into_iter().map(|(digest, blob)| Ok((digest.to_string().into_bytes(), codec::encode("blob", &blob)?))),
        "the count of a blob's links",
        &stays,
        wrong,
    )?;
    Ok(There { keys, unread })
}

fn unlinked(blob: Blob) -> Blob {
    Blob { links: 0, ..blob }
}

/// What is held is held by a lease that is there, or by the hand that made it, and that is there as long as it stands. A
/// lease may hold what isn't there yet.
fn held(read: &dyn Read, found: &mut Findings, wrong: &mut Vec<Wrong>, links: &There, snapshots: &There) -> Result<()> {
    let mut keys = BTreeSet::new();
    let unread = each::<Lease>(read, found, &mut |key, _| {
        keys.insert(key.join("\0"));
    })?;
    let leases = There { keys, unread };
    scan(read, Table::HELD, b"", None, &mut |key, _| {
        let row = codec::parts(key).and_then(|parts| Ok((parts[0], leases::read_held(key)?)));
        let (ns, (lease, resource)) = match row {
            Ok(row) => row,
            // What it keeps nobody can tell: so the collector takes nothing as long as it is there.
            Err(error) => {
                found.add(Fault::RecordUnreadable, format!("held/{}", named(key)), error.message, false);
                return Ok(ControlFlow::Continue(()));
            }
        };
        let what = match (lease, &resource) {
            ("", Resource::Content(digest)) if !links.has(&format!("{ns}\0{digest}")) => "what was made by hand",
            ("", Resource::Snapshot { driver, key }) if !snapshots.has(&format!("{ns}\0{driver}\0{key}")) => {
                "what was made by hand"
            }
            ("", _) => return Ok(ControlFlow::Continue(())),
            (lease, _) if !leases.has(&format!("{ns}\0{lease}")) => "what a lease holds",
            _ => return Ok(ControlFlow::Continue(())),
        };
        wrong.push(Wrong { table: Table::HELD, key: key.to_vec(), right: None, what: format!("{what} is of nothing") });
        Ok(ControlFlow::Continue(()))
    })
}

/// Whether a row stays that isn't as the records that can be read have it, since it may be of one that can't: its key, and what
/// it should hold, if anything is known to be of it.
type Stays<'a> = &'a dyn Fn(&[u8], Option<&[u8]>) -> bool;

/// Compares a table with what it should hold.
fn compare(
    read: &dyn Read,
    table: Table,
    right: impl Iterator<Item = Result<(Vec<u8>, Vec<u8>)>>,
    what: &str,
    stays: Stays<'_>,
    wrong: &mut Vec<Wrong>,
) -> Result<()> {
    let mut there = raw(read, table)?;
    for row in right {
        let (key, value) = row?;
        let is = there.remove(&key);
        if is.as_ref() != Some(&value) && !(is.is_some() && stays(&key, Some(&value))) {
            wrong.push(Wrong { table, key, right: Some(value), what: format!("{what} is wrong") });
        }
    }
    let beyond = there.into_keys().filter(|key| !stays(key, None));
    wrong.extend(beyond.map(|key| Wrong { table, key, right: None, what: format!("{what} is of nothing") }));
    Ok(())
}

/// Directories are counted, children listed, and a layer is what a snapshot shares. Gives the snapshots.
fn snapshots(read: &dyn Read, found: &mut Findings, wrong: &mut Vec<Wrong>) -> Result<There> {
    let mut all = Vec::new();
    let unread = each::<Snapshot>(read, found, &mut |key, snapshot| all.push((key[0].to_owned(), snapshot)))?;
    let key = |ns: &str, driver: &str, key: &str| [ns, driver, key].join("\0");
    let kinds: BTreeMap<String, Kind> =
        all.iter().map(|(ns, one)| (key(ns, &one.driver, &one.key), one.kind)).collect();
    let mut dirs: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
    let mut children = BTreeSet::new();
    let mut shared = BTreeSet::new();
    let mut parents = BTreeMap::new();
    for (ns, one) in &all {
        *dirs.entry(super::snapshots::dir_key(&one.driver, one.dir)).or_default() += 1;
        shared.extend(one.layer.as_ref().map(|chain| (one.driver.clone(), chain.clone(), one.dir)));
        let Some(parent) = &one.parent else { continue };
        children.insert(codec::key(&[ns, &one.driver, parent, &one.key]));
        let below = key(ns, &one.driver, parent);
        if kinds.get(&below) != Some(&Kind::Committed) && !unread.has(&below) {
            let why = format!("what it lies on, {parent}, is not there or not committed: remove it");
            found.add(Fault::RecordMissing, format!("snapshot/{ns}/{}/{}", one.driver, one.key), why, false);
        }
        parents.insert(key(ns, &one.driver, &one.key), below);
    }
    for one in circles(&parents) {
        let why = "lies on itself: it can be neither used nor removed, and nothing collects it";
        found.add(Fault::RecordMissing, format!("snapshot/{}", named(one.as_bytes())), why, false);
    }
    // Which directory one of them has, and what it shares, nobody can tell: there may be more of its driver than are known of.
    let drivers = unread.seconds();
    let of_driver = |driver: &str| unread.vague || drivers.contains(driver);
    let of_key = |key: &[u8]| codec::parts(key).is_ok_and(|parts| of_driver(parts[0]));
    let counted = dirs.into_iter().map(|(key, count)| Ok((key, count.to_be_bytes().to_vec())));
    let stays = |key: &[u8], right: Option<&[u8]>| {
        let is = || read.get(Table::DIRS, key).ok().flatten().and_then(|is| codec::number(&is).ok());
        let known = right.and_then(|right| codec::number(right).ok()).unwrap_or(0);
        of_key(key) && is().is_none_or(|is| is > known)
    };
    compare(read, Table::DIRS, counted, "the count of a directory's snapshots", &stays, wrong)?;
    let listed = children.into_iter().map(|key| Ok((key, Vec::new())));
    // Whose child it is, its own row would say.
    let stays = |key: &[u8], _: Option<&[u8]>| match codec::parts(key).as_deref() {
        Ok([ns, driver, _, child]) => unread.has(&[*ns, *driver, *child].join("\0")),
        _ => false,
    };
    compare(read, Table::CHILDREN, listed, "the list of a snapshot's children", &stays, wrong)?;
    let mut layers = BTreeSet::new();
    let unread_layers = each::<Layer>(read, found, &mut |key, layer| {
        let driver = key[0].to_owned();
        if !shared.contains(&(driver.clone(), layer.chain.clone(), layer.dir)) && !of_driver(&driver) {
            let key = codec::key(key);
            wrong.push(Wrong { table: Table::LAYERS, key, right: None, what: "a layer has no snapshot".into() });
        }
        layers.insert((driver, layer.chain, layer.dir));
    })?;
    for (driver, chain, dir) in shared.difference(&layers) {
        if unread_layers.has(&format!("{driver}\0{chain}")) {
            continue;
        }
        let why =
            format!("the layer that snapshots share in directory {dir} has no record: remove them and unpack again");
        found.add(Fault::RecordMissing, format!("layer/{driver}/{chain}"), why, false);
    }
    Ok(There { keys: kinds.into_keys().collect(), unread })
}

/// What comes back to itself, of what lies on something. No write makes such; damage may.
fn circles(parents: &BTreeMap<String, String>) -> BTreeSet<&str> {
    let (mut past, mut round) = (BTreeSet::new(), BTreeSet::new());
    for first in parents.keys() {
        let (mut path, mut next) = (Vec::new(), first.as_str());
        while past.insert(next) {
            path.push(next);
            match parents.get(next) {
                Some(parent) => next = parent,
                None => break,
            }
        }
        // Where it ends is on its own way, or on that of one before it, or lies on nothing.
        round.extend(
            path.iter()
                .position(|one| *one == next)
                .filter(|_| parents.contains_key(next))
                .map_or(&[][..], |at| &path[at..]),
        );
    }
    round
}

/// Takes a blob whose bytes are gone from every namespace. `false`: something that can't be read may have it still.
pub fn drop_blob(tx: &mut Tx<'_>, digest: &Digest) -> Result<bool> {
    for ns in super::namespaces_of(tx, Table::CONTENT)? {
        if super::content::exists(tx, &ns, digest)? {
            super::content::delete(tx, &ns, digest)?;
        }
    }
    Ok(!super::content::is_kept(tx, digest)?)
}

/// Which snapshots have their trees in these directories, as far as they can be read.
pub fn snapshots_in(read: &dyn Read, driver: &str, dirs: &[u64]) -> Result<BTreeMap<u64, Vec<(Namespace, Name)>>> {
    let mut found: BTreeMap<u64, Vec<_>> = dirs.iter().map(|dir| (*dir, Vec::new())).collect();
    super::snapshots::visit(read, driver, &mut |ns, one| {
        if let Some(there) = found.get_mut(&one.dir) {
            there.push((ns.clone(), one.key));
        }
        Ok(())
    })?;
    Ok(found)
}

/// Removes these snapshots, whose tree was in a directory: none where something lies on one of them. `false`: something else refers
/// to it still.
pub fn drop_dir(tx: &mut Tx<'_>, driver: &str, dir: u64, those: &[(Namespace, Name)]) -> Result<bool> {
    for (ns, key) in those {
        // By now it may be gone, or another.
        if super::snapshots::find(tx, ns, driver, key)?.is_some_and(|one| one.dir == dir) {
            super::snapshots::delete(tx, ns, driver, key)?;
        }
    }
    Ok(!super::snapshots::is_referenced(tx, driver, dir)?)
}
