//! Removing what a mark did not reach, while writers go on.
//!
//! The mark saw everything as it was at one commit after the collection began. Whatever a writer created, or made
//! something refer to, since then is noted ([`crate::spared::Spared`]). The transaction that removes takes the notes up to
//! its own place in the order of commits, follows from there what refers to what now, and spares what it comes by. What the
//! mark had reached refers to what the mark had reached, or by a reference that is noted: so it needs to be followed through
//! candidates alone. What a flat lease alone keeps is no candidate, and the mark did not follow what it refers to: through that it
//! is followed as well.

use std::collections::HashSet;

use cofferdam_types::{Digest, Name, Namespace, Result};

use super::{Graph, Node, refers};
use crate::{
    Tx,
    records::{
        Resource, content, leases,
        snapshots::{self, Removed},
    },
};

/// What is left to be removed of one namespace.
pub struct Sweep {
    collection: u64,
    namespace: Namespace,
    candidates: HashSet<Resource>,
    /// What only flat leases keep.
    flat: HashSet<Resource>,
    /// The candidates, the next ones last.
    queue: Vec<Resource>,
    /// How many notes have been taken account of.
    seen: usize,
}

/// What a slice removed, for the owners to remove from disk once it is committed.
#[derive(Default)]
pub struct Swept {
    /// The blobs that were the last link of theirs.
    pub blobs: Vec<Digest>,
    /// The snapshots.
    pub snapshots: Vec<Removed>,
    /// All that was removed, with the bytes that nobody else has.
    pub removed: Vec<(Resource, u64)>,
    spared: HashSet<Resource>,
    seen: usize,
}

impl Sweep {
    /// Of what the mark of this collection did not reach. Nothing of a graph that [is blind](Graph::is_blind).
    pub fn new(collection: u64, namespace: Namespace, graph: &Graph) -> Sweep {
        let all = |nodes: Vec<&Node>| nodes.into_iter().map(|node| node.resource.clone()).collect::<Vec<_>>();
        let mut queue = all(graph.garbage());
        queue.reverse();
        let flat = if queue.is_empty() { Vec::new() } else { all(graph.flat()) };
        let (candidates, flat) = (queue.iter().cloned().collect(), flat.into_iter().collect());
        Sweep { collection, namespace, candidates, flat, queue, seen: 0 }
    }

    /// Whose.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Leaves the next candidate out: its row, or one that goes with it, can't be read.
    pub fn skip(&mut self) -> Option<Resource> {
        let skipped = self.queue.pop()?;
        self.candidates.remove(&skipped);
        Some(skipped)
    }

    /// What there is left, the next first.
    pub fn left(&self) -> impl Iterator<Item = &Resource> {
        self.queue.iter().rev()
    }

    /// Whether there is nothing left.
    pub fn is_done(&self) -> bool {
        self.queue.is_empty()
    }

    /// Removes the next candidates, `max` at most, but for those that are spared. It changes nothing here: hand the answer
    /// to [`Sweep::done`] once it is committed.
    pub fn slice(&self, tx: &mut Tx<'_>, max: usize) -> Result<Swept> {
        let (news, seen) = tx.spared().noted(self.collection, &self.namespace, self.seen)?;
        let mut swept = Swept { seen, ..Swept::default() };
        let mut next = news;
        next.extend(tx.spared().pinned(&self.namespace));
        while let Some(resource) = next.pop() {
            let followed = self.candidates.contains(&resource) || self.flat.contains(&resource);
            if followed && !swept.spared.contains(&resource) {
                next.extend(refers(tx, &self.namespace, &resource)?);
                swept.spared.insert(resource);
            }
        }
        tx.uncounted();
        for resource in self.queue.iter().rev().take(max) {
            if self.candidates.contains(resource) && !swept.spared.contains(resource) {
                self.remove(tx, resource, &mut HashSet::new(), &mut swept)?;
            }
        }
        Ok(swept)
    }

    /// Says whether it was there, and is gone. `over` is what lies on it, up to where that began.
    fn remove(
        &self,
        tx: &mut Tx<'_>,
        resource: &Resource,
        over: &mut HashSet<Name>,
        swept: &mut Swept,
    ) -> Result<bool> {
        let ns = &self.namespace;
        let bytes;
        match resource {
            Resource::Content(digest) => {
                let Some(found) = content::find(tx, ns, digest)? else { return Ok(false) };
                let last = content::delete(tx, ns, digest)?;
                bytes = if last { found.size } else { 0 };
                swept.blobs.extend(last.then(|| digest.clone()));
            }
            Resource::Snapshot { driver, key } => {
                // One that is listed as a child and isn't there keeps its parent until the list was made anew.
                let Some(found) = snapshots::find(tx, ns, driver, key)? else { return Ok(false) };
                // Damaged records may lie on each other in a circle: those stay, and the check tells of them.
                if !over.insert(key.clone()) {
                    return Ok(false);
                }
                // Where labels lead round in a circle, what lies on it may come behind it.
                for child in snapshots::children(tx, ns, driver, key, usize::MAX)? {
                    let child = Resource::Snapshot { driver: driver.clone(), key: child };
                    let goes = self.candidates.contains(&child) && !swept.spared.contains(&child);
                    if !goes || !self.remove(tx, &child, over, swept)? {
                        return Ok(false);
                    }
                }
                over.remove(key);
                let gone = snapshots::delete(tx, ns, driver, key)?;
                bytes = if gone.unreferenced { found.usage.size } else { 0 };
                swept.snapshots.push(gone);
            }
        }
        swept.removed.push((resource.clone(), bytes));
        Ok(true)
    }

    /// A slice was committed.
    pub fn done(&mut self, swept: &Swept, max: usize) {
        self.queue.truncate(self.queue.len().saturating_sub(max));
        for resource in &swept.spared {
            self.candidates.remove(resource);
        }
        self.seen = swept.seen;
    }
}

/// Removes leases that have ended, unless they were renewed. What they held goes as anything else does.
pub fn end_leases(tx: &mut Tx<'_>, ns: &Namespace, ids: &[Name]) -> Result<u64> {
    tx.uncounted();
    let mut ended = 0;
    for id in ids {
        if leases::find(tx, ns, id)?.is_some_and(|lease| lease.ended(tx.now())) {
            leases::delete(tx, ns, id)?;
            ended += 1;
        }
    }
    Ok(ended)
}
