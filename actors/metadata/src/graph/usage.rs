//! Who owns the bytes on disk: by what keeps them.

use std::collections::{BTreeMap, HashMap};

use cofferdam_types::{Digest, Namespace, Result, Timestamp};

use super::{Graph, Root};
use crate::{
    View,
    records::{Resource, namespaces},
};

/// What has bytes of its own, however many records show it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Bytes {
    /// A blob's file.
    Blob(Digest),
    /// A snapshot's directory.
    Tree {
        /// Its driver.
        driver: String,
        /// Its number.
        dir: u64,
    },
}

/// Who keeps something, and how much.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Where.
    pub namespace: Namespace,
    /// What it is; `None`: nothing keeps it.
    pub root: Option<Root>,
    /// Bytes that would go with it.
    pub alone: u64,
    /// Bytes that others keep too.
    pub shared: u64,
}

/// Whose the bytes are: those of all owners alone, those that are shared, and those that no record names are all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// All who keep something, and each namespace in which something is that nothing keeps.
    pub owners: Vec<Owner>,
    /// What more than one of them keeps, counted once.
    pub shared: u64,
    /// What no record names: it is in the making, or is just being removed.
    pub unnamed: u64,
}

/// Divides what was measured.
pub fn usage(view: &View, now: Timestamp, measured: &HashMap<Bytes, u64>) -> Result<Usage> {
    let sizes: Vec<u64> = measured.values().copied().collect();
    let ids: HashMap<&Bytes, usize> = measured.keys().enumerate().map(|(id, bytes)| (bytes, id)).collect();
    let mut owners: Vec<(Owner, Vec<usize>)> = Vec::new();
    // How many keep each; and who was the last that was seen to.
    let (mut keepers, mut last) = (vec![0usize; sizes.len()], vec![usize::MAX; sizes.len()]);
    let mut lost: Vec<(Namespace, Vec<usize>)> = Vec::new();
    for namespace in namespaces::names(view)? {
        let graph = Graph::read(view, &namespace, now)?;
        let own = |node: usize| match (&graph.nodes[node].resource, graph.nodes[node].dir) {
            (Resource::Content(digest), _) => ids.get(&Bytes::Blob(digest.clone())).copied(),
            (Resource::Snapshot { driver, .. }, Some(dir)) => {
                ids.get(&Bytes::Tree { driver: driver.clone(), dir }).copied()
            }
            _ => None,
        };
        let mut roots: BTreeMap<&Root, Vec<usize>> = BTreeMap::new();
        for (root, node) in &graph.roots {
            roots.entry(root).or_default().push(*node);
        }
        let (mut past, mut kept) = (vec![usize::MAX; graph.nodes.len()], vec![false; graph.nodes.len()]);
        for (root, mut next) in roots {
            let (number, mut keeps) = (owners.len(), Vec::new());
            let flat = matches!(root, Root::Lease { flat: true, .. });
            while let Some(node) = next.pop() {
                let here = &graph.nodes[node];
                if !here.exists || std::mem::replace(&mut past[node], number) == number {
                    continue;
                }
                kept[node] = true;
                if let Some(id) = own(node).filter(|id| last[*id] != number) {
                    last[id] = number;
                    keepers[id] += 1;
                    keeps.push(id);
                }
                next.extend(here.parent);
                next.extend(here.refers.iter().filter(|_| !flat));
            }
            let owner = Owner { namespace: namespace.clone(), root: Some(root.clone()), alone: 0, shared: 0 };
            owners.push((owner, keeps));
        }
        let left = (0..graph.nodes.len()).filter(|node| graph.nodes[*node].exists && !kept[*node]).filter_map(own);
        lost.push((namespace, left.collect()));
    }
    let mut usage = Usage::default();
    for (mut owner, keeps) in owners {
        for id in keeps {
            let sum = if keepers[id] == 1 { &mut owner.alone } else { &mut owner.shared };
            *sum += sizes[id];
        }
        usage.owners.push(owner);
    }
    usage.shared = (0..sizes.len()).filter(|id| keepers[*id] > 1).map(|id| sizes[id]).sum();
    for (namespace, ids) in lost {
        // What another namespace keeps is not lost, and what two have lost is lost once.
        let alone = ids.into_iter().filter(|id| std::mem::replace(&mut keepers[*id], 1) == 0).map(|id| sizes[id]).sum();
        if alone > 0 {
            usage.owners.push(Owner { namespace, root: None, alone, shared: 0 });
        }
    }
    usage.unnamed = (0..sizes.len()).filter(|id| keepers[*id] == 0).map(|id| sizes[id]).sum();
    Ok(usage)
}
