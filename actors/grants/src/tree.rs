//! The grants that are live, by their ids and by what is kept of their tokens.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use cofferdam_metadata::records::grants::Grant;
use cofferdam_types::{Caveats, Digest, GrantId, Namespace, Timestamp};

use crate::{Calls, End, Live};

/// A grant that is live.
#[derive(Debug)]
pub struct Node {
    /// The grants that it comes from, the outermost first, and itself.
    pub path: Arc<[GrantId]>,
    /// Where it begins.
    pub namespace: Namespace,
    /// What is left: those of the whole path.
    pub caveats: Caveats,
    /// How many calls are under way through it, where that is bounded.
    pub calls: Calls,
    /// Whether it still is.
    pub live: Arc<Live>,
    /// What people call it.
    label: String,
    /// What came of its row's own token and seal; see [`Seal`].
    seal: Mutex<Seal>,
}

/// How a grant is got by a token.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seal {
    pub token: Option<Digest>,
    pub sealed_to: Option<u32>,
    pub counted: bool,
}

impl Node {
    /// Its own id.
    pub fn id(&self) -> GrantId {
        self.path.last().copied().unwrap_or_default()
    }

    pub(crate) fn seal(&self) -> Seal {
        self.seal.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[derive(Default)]
struct Inner {
    nodes: HashMap<GrantId, Arc<Node>>,
    tokens: HashMap<Digest, GrantId>,
    /// Those that the operator made, by what he calls them.
    labels: HashMap<(Namespace, String), BTreeSet<GrantId>>,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Tree(Mutex<Inner>);

impl Tree {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The live grant of this id.
    pub fn get(&self, id: GrantId) -> Option<Arc<Node>> {
        self.lock().nodes.get(&id).cloned()
    }

    /// Whose token it is.
    pub fn find(&self, token: &Digest) -> Option<Arc<Node>> {
        let inner = self.lock();
        inner.nodes.get(inner.tokens.get(token)?).cloned()
    }

    /// Those of a label that the operator made.
    pub fn labelled(&self, namespace: &Namespace, label: &str) -> Vec<Arc<Node>> {
        let inner = self.lock();
        let found = inner.labels.get(&(namespace.clone(), label.to_owned()));
        found.into_iter().flatten().filter_map(|id| inner.nodes.get(id).cloned()).collect()
    }

    /// Takes in what a row says. None where the grant that it comes from is not live: then it isn't either.
    pub fn insert(&self, path: &[GrantId], grant: &Grant) -> Option<Arc<Node>> {
        let mut inner = self.lock();
        let above = match path {
            [.., above, _] => Some(inner.nodes.get(above)?.clone()),
            _ => None,
        };
        // A row that says another namespace than what it comes from is nothing that was ever written.
        if above
            .as_ref()
            .is_some_and(|above| above.namespace != grant.namespace || *above.path != path[..path.len() - 1])
        {
            return None;
        }
        let given = above.as_ref().map_or_else(Caveats::none, |above| above.caveats.clone());
        let above_calls = above.as_ref().map_or_else(Calls::default, |above| above.calls.clone());
        let node = Arc::new(Node {
            path: path.into(),
            calls: above_calls.below(grant.id, grant.caveats.quota.calls),
            namespace: grant.namespace.clone(),
            caveats: given.and(&grant.caveats),
            live: Live::below(&above.iter().map(|above| &above.live).collect::<Vec<_>>()),
            seal: Mutex::default(),
            label: grant.label.clone(),
        });
        inner.nodes.insert(node.id(), node.clone());
        if let ([_], false) = (path, node.label.is_empty()) {
            inner.labels.entry((node.namespace.clone(), node.label.clone())).or_default().insert(node.id());
        }
        drop(inner);
        self.seal(&node, grant);
        Some(node)
    }

    /// Takes in what a row says of its token.
    pub fn seal(&self, node: &Node, grant: &Grant) {
        let mut inner = self.lock();
        let seal = Seal { token: grant.token.clone(), sealed_to: grant.sealed_to, counted: grant.uses.is_some() };
        let old = std::mem::replace(&mut *node.seal.lock().unwrap_or_else(PoisonError::into_inner), seal);
        if let Some(old) = old.token {
            inner.tokens.remove(&old);
        }
        // One that was taken back meanwhile has none.
        if let Some(token) = grant.token.clone().filter(|_| inner.nodes.contains_key(&node.id())) {
            inner.tokens.insert(token, node.id());
        }
    }

    /// Ends grants and all that come from them. First of all their calls; then nobody finds them any more.
    pub fn remove(&self, gone: &[Arc<Node>], end: End) {
        gone.iter().for_each(|node| node.live.finish(end));
        let mut inner = self.lock();
        let Inner { nodes, tokens, labels } = &mut *inner;
        nodes.retain(|_, one| one.live.end().is_none());
        tokens.retain(|_, id| nodes.contains_key(id));
        for node in gone {
            let key = (node.namespace.clone(), node.label.clone());
            if let Some(ids) = labels.get_mut(&key) {
                ids.remove(&node.id());
                if ids.is_empty() {
                    labels.remove(&key);
                }
            }
        }
    }

    /// Those whose time is over.
    pub fn over(&self, now: Timestamp) -> Vec<Arc<Node>> {
        let over = |node: &&Arc<Node>| node.caveats.not_after.is_some_and(|end| end <= now);
        self.lock().nodes.values().filter(over).cloned().collect()
    }

    /// When the next one's is.
    pub fn soonest(&self) -> Option<Timestamp> {
        self.lock().nodes.values().filter_map(|node| node.caveats.not_after).min()
    }
}
