//! What refers to what, within one namespace (reference, section 10.2): the one picture by which the collector decides, an
//! operator is told why something stays, and bytes get their owners.
//!
//! Collected are blobs and snapshots. Roots are images (what they stand for), containers (their snapshot), leases and what
//! was made by hand, snapshots that the labels of images and containers name, and whatever is labelled as one. From there a
//! blob refers to what its labels name; a snapshot to its parent, and to the snapshots that its labels name. What isn't
//! there holds nothing. References never leave their namespace.
//!
//! A row that can't be read may refer to anything in its namespace: there nothing is collected until it is gone. That of a lease
//! counts as one without an end, and hides nothing: what leases hold is in rows of its own.

mod explain;
mod sweep;
mod usage;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    ops::ControlFlow,
};

use cofferdam_types::{Error, Name, Namespace, Result, Timestamp};

pub use self::{
    explain::{Explanation, Step, Subject, explain},
    sweep::{Sweep, Swept, end_leases},
    usage::{Bytes, Owner, Usage, usage},
};
use crate::{
    Read, codec,
    records::{
        Resource,
        containers::Container,
        content::{self, Link},
        images::Image,
        leases::{self, Lease},
        snapshots::{self, Kind, Snapshot},
        visit_all,
    },
    table::{Table, scan},
};

/// The label that makes a root of a blob or a snapshot, whatever its value.
pub const ROOT: &str = "containerd.io/gc.root";

/// What keeps something by itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Root {
    /// A container, by its id.
    Container(String),
    /// An image, by its name.
    Image(Name),
    /// A lease, by its id. A flat one holds what it names, with a snapshot's parents, and nothing that their labels name.
    Lease {
        /// Its id.
        id: Name,
        /// Whether it is flat.
        flat: bool,
    },
    /// It was made by hand, and stands until it is removed.
    Hand,
    /// The label [`ROOT`].
    Label,
    /// Its record can't be read.
    Unreadable,
}

impl Root {
    /// What it is, in a word, and its name.
    pub fn words(&self) -> (&'static str, &str) {
        match self {
            Root::Container(id) => ("container", id),
            Root::Image(name) => ("image", name),
            Root::Lease { id, .. } => ("lease", id),
            Root::Hand => ("hand", ""),
            Root::Label => ("label", ""),
            Root::Unreadable => ("unreadable", ""),
        }
    }
}

/// Something that can be collected, or that is named by something and isn't there.
#[derive(Clone, Debug)]
pub struct Node {
    /// Which.
    pub resource: Resource,
    /// Whether it is there.
    pub exists: bool,
    /// Bytes: a blob's size, or what a committed snapshot takes up without its parents.
    pub size: u64,
    /// Whether it is a snapshot that isn't committed: what it takes up is not on record.
    pub live: bool,
    /// The directory of a snapshot.
    pub dir: Option<u64>,
    parent: Option<usize>,
    refers: Vec<usize>,
}

impl Node {
    /// What it refers to.
    fn next(&self) -> impl Iterator<Item = usize> {
        self.refers.iter().chain(&self.parent).copied()
    }
}

/// How much would go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Freed {
    /// Blobs.
    pub blobs: u64,
    /// Snapshots.
    pub snapshots: u64,
    /// Bytes of both, as they are on record.
    pub bytes: u64,
}

/// How far a mark has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    Not,
    /// By a flat lease alone.
    Flat,
    Full,
}

/// The graph of a namespace.
pub struct Graph {
    nodes: Vec<Node>,
    index: HashMap<Resource, usize>,
    roots: Vec<(Root, usize)>,
    /// Leases that have ended.
    ended: Vec<Name>,
    /// When the next one ends.
    next_end: Option<Timestamp>,
    unreadable: Vec<Error>,
    /// Whether one of these may refer to anything.
    blind: bool,
}

impl Graph {
    /// Reads it. A lease whose end is not after `now` holds nothing.
    pub fn read(read: &dyn Read, ns: &Namespace, now: Timestamp) -> Result<Graph> {
        let mut graph = Graph {
            nodes: Vec::new(),
            index: HashMap::new(),
            roots: Vec::new(),
            ended: Vec::new(),
            next_end: None,
            unreadable: Vec::new(),
            blind: false,
        };
        let prefix = codec::prefix(&[ns]);
        visit_all(read, &prefix, &mut |key, link: Result<Link>| match link {
            Ok(link) => {
                let node = graph.found(Resource::Content(link.digest.clone()));
                graph.nodes[node].size = link.size;
                graph.labelled(node, &link.labels, |_| true);
            }
            Err(error) => graph.unread("content", key, error),
        })?;
        visit_all(read, &prefix, &mut |key, snapshot: Result<Snapshot>| match snapshot {
            Ok(snapshot) => {
                let node = graph.found(snapshot.resource());
                let parent = snapshot.parent.clone();
                let parent = parent.map(|key| graph.node(Resource::Snapshot { driver: snapshot.driver.clone(), key }));
                let found = &mut graph.nodes[node];
                (found.size, found.live) = (snapshot.usage.size, snapshot.kind == Kind::Active);
                (found.dir, found.parent) = (Some(snapshot.dir), parent);
                graph.labelled(node, &snapshot.labels, is_snapshot);
            }
            Err(error) => graph.unread("snapshot", key, error),
        })?;
        visit_all(read, &prefix, &mut |key, image: Result<Image>| match image {
            Ok(image) => graph.root(Root::Image(image.name.clone()), image.refers()),
            Err(error) => graph.unread("image", key, error),
        })?;
        visit_all(read, &prefix, &mut |key, container: Result<Container>| match container {
            Ok(container) => graph.root(Root::Container(container.id.to_string()), container.refers()),
            Err(error) => graph.unread("container", key, error),
        })?;
        graph.held(read, ns, now)?;
        Ok(graph)
    }

    fn held(&mut self, read: &dyn Read, ns: &Namespace, now: Timestamp) -> Result<()> {
        let prefix = codec::prefix(&[ns]);
        let (mut flat, mut nameless) = (HashMap::new(), false);
        visit_all(read, &prefix, &mut |key, lease: Result<Lease>| match lease {
            Ok(lease) if lease.ended(now) => self.ended.push(lease.id),
            Ok(lease) => {
                self.next_end = self.next_end.into_iter().chain(lease.ends()).min();
                flat.insert(lease.id.to_string(), lease.is_flat());
            }
            Err(error) => {
                // It may be one that has no end, and holds all that follows.
                match codec::parts(key).ok().and_then(|parts| parts.get(1).copied()) {
                    Some(id) => drop(flat.insert(id.to_owned(), false)),
                    None => nameless = true,
                }
                self.unreadable.push(error);
            }
        })?;
        scan(read, Table::HELD, &prefix, None, &mut |key, _| {
            let held = leases::read_held(key).and_then(|(lease, resource)| {
                let root = match flat.get(lease) {
                    _ if lease.is_empty() => Root::Hand,
                    None if !nameless => return Ok(None),
                    // One that isn't there may be that of which not even the id can be read.
                    flat => Root::Lease { id: Name::new(lease)?, flat: flat.copied().unwrap_or(false) },
                };
                Ok(Some((root, resource)))
            });
            match held {
                Ok(Some((root, resource))) => self.root(root, [resource]),
                Ok(None) => {}
                Err(error) => self.unread("held", key, error),
            }
            Ok(ControlFlow::Continue(()))
        })
    }

    /// What the key says is there, and stays.
    fn unread(&mut self, kind: &str, key: &[u8], error: Error) {
        let resource = codec::parts(key).ok().and_then(|parts| match (kind, &parts[..]) {
            ("content" | "snapshot", [_, rest @ ..]) => {
                let parts: Vec<&str> = [kind].into_iter().chain(rest.iter().copied()).collect();
                Resource::from_parts(&parts).ok()
            }
            _ => None,
        });
        if let Some(resource) = resource {
            let node = self.found(resource);
            self.roots.push((Root::Unreadable, node));
        }
        self.unreadable.push(error);
        self.blind = true;
    }

    /// What is wrong with the rows that can't be read.
    pub fn unreadable(&self) -> &[Error] {
        &self.unreadable
    }

    /// Whether one of these may refer to anything here: then nothing is garbage.
    pub fn is_blind(&self) -> bool {
        self.blind
    }

    fn node(&mut self, resource: Resource) -> usize {
        if let Some(node) = self.index.get(&resource) {
            return *node;
        }
        let node = self.nodes.len();
        self.index.insert(resource.clone(), node);
        let (exists, size, live) = (false, 0, false);
        self.nodes.push(Node { resource, exists, size, live, dir: None, parent: None, refers: Vec::new() });
        node
    }

    fn found(&mut self, resource: Resource) -> usize {
        let node = self.node(resource);
        self.nodes[node].exists = true;
        node
    }

    fn root(&mut self, root: Root, resources: impl IntoIterator<Item = Resource>) {
        for resource in resources {
            let node = self.node(resource);
            self.roots.push((root.clone(), node));
        }
    }

    fn labelled(&mut self, node: usize, labels: &cofferdam_types::Labels, counts: fn(&Resource) -> bool) {
        let refers: Vec<_> = Resource::from_labels(labels).into_iter().filter(counts).collect();
        let refers = refers.into_iter().map(|resource| self.node(resource)).collect();
        self.nodes[node].refers = refers;
        if labels.contains_key(ROOT) {
            self.roots.push((Root::Label, node));
        }
    }

    /// All that is there.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.exists)
    }

    /// Whether something is there.
    pub fn find(&self, resource: &Resource) -> Option<&Node> {
        self.index.get(resource).map(|node| &self.nodes[*node]).filter(|node| node.exists)
    }

    /// Leases that have ended, and go.
    pub fn ended(&self) -> &[Name] {
        &self.ended
    }

    /// When the next lease ends.
    pub fn next_end(&self) -> Option<Timestamp> {
        self.next_end
    }

    /// What keeps something by itself, in the order in which it is told.
    pub fn roots_of(&self, resource: &Resource) -> Vec<&Root> {
        let Some(node) = self.index.get(resource) else { return Vec::new() };
        let mut roots: Vec<_> = self.roots.iter().filter(|(_, at)| at == node).map(|(root, _)| root).collect();
        roots.sort();
        roots
    }

    /// What a root holds by itself.
    pub fn held_by(&self, root: impl Fn(&Root) -> bool) -> Vec<&Node> {
        self.roots.iter().filter(|(own, _)| root(own)).map(|(_, node)| &self.nodes[*node]).collect()
    }

    /// Goes from what `from` names along all references, and calls `reach` for each node once, with the one that led there.
    fn walk(&self, from: impl Fn(&Root) -> bool, mut reach: impl FnMut(usize, Option<usize>)) -> Vec<Mark> {
        let mut marks = vec![Mark::Not; self.nodes.len()];
        let mut queue = VecDeque::new();
        for flat in [false, true] {
            for (root, node) in &self.roots {
                if matches!(root, Root::Lease { flat: true, .. }) == flat && from(root) {
                    queue.push_back((*node, None, flat));
                }
            }
            while let Some((node, by, flat)) = queue.pop_front() {
                let here = &self.nodes[node];
                if !here.exists || marks[node] != Mark::Not {
                    continue;
                }
                marks[node] = if flat { Mark::Flat } else { Mark::Full };
                reach(node, by);
                queue.extend(here.parent.map(|parent| (parent, Some(node), flat)));
                if !flat {
                    queue.extend(here.refers.iter().map(|next| (*next, Some(node), false)));
                }
            }
        }
        marks
    }

    /// What only flat leases keep: it stays, and what its labels name may not.
    pub fn flat(&self) -> Vec<&Node> {
        if !self.roots.iter().any(|(root, _)| matches!(root, Root::Lease { flat: true, .. })) {
            return Vec::new();
        }
        let marks = self.walk(|_| true, |_, _| ());
        self.nodes.iter().zip(marks).filter(|(_, mark)| *mark == Mark::Flat).map(|(node, _)| node).collect()
    }

    /// What these roots keep and no other does.
    pub fn freed(&self, by: impl Fn(&Root) -> bool) -> Freed {
        let kept: HashSet<&Resource> = self.reached(|root| !by(root)).into_iter().map(|node| &node.resource).collect();
        let mut freed = Freed::default();
        for node in self.reached(by).into_iter().filter(|node| !kept.contains(&node.resource)) {
            match node.resource {
                Resource::Content(_) => freed.blobs += 1,
                Resource::Snapshot { .. } => freed.snapshots += 1,
            }
            freed.bytes += node.size;
        }
        freed
    }

    /// All that the roots that `from` names keep.
    pub fn reached(&self, from: impl Fn(&Root) -> bool) -> Vec<&Node> {
        let mut reached = Vec::new();
        self.walk(from, |node, _| reached.push(&self.nodes[node]));
        reached
    }

    /// What nothing keeps, what refers to something before that: of what is removed in this order nothing is ever there
    /// without what it refers to. As far as that allows it is the order of the tables, so that what one commit removes lies
    /// in few pages. Nothing, where it can't be known: see [`Graph::is_blind`].
    pub fn garbage(&self) -> Vec<&Node> {
        if self.blind { Vec::new() } else { self.unkept() }
    }

    /// What nothing keeps that can be read.
    pub(crate) fn unkept(&self) -> Vec<&Node> {
        // Passed over: it is kept, or isn't there, or was come by.
        let mut past: Vec<_> = self.nodes.iter().map(|node| !node.exists).collect();
        self.walk(|_| true, |node, _| past[node] = true);
        let mut order = Vec::new();
        for first in 0..self.nodes.len() {
            let mut stack = vec![(first, false)];
            while let Some((node, left)) = stack.pop() {
                if left {
                    order.push(node);
                } else if !std::mem::replace(&mut past[node], true) {
                    stack.push((node, true));
                    stack.extend(self.nodes[node].next().map(|next| (next, false)));
                }
            }
        }
        order.reverse();
        let depths = self.depths(&order);
        order.sort_by_key(|node| (depths[*node], &self.nodes[*node].resource));
        order.into_iter().map(|node| &self.nodes[node]).collect()
    }

    /// How far each comes, at least, behind what refers to it. Where references lead round in a circle, one back to what
    /// comes before counts for nothing.
    fn depths(&self, order: &[usize]) -> Vec<usize> {
        let (mut depths, mut begun) = (vec![0; self.nodes.len()], vec![false; self.nodes.len()]);
        for node in order {
            begun[*node] = true;
            for next in self.nodes[*node].next().filter(|next| !begun[*next]) {
                depths[next] = depths[next].max(depths[*node] + 1);
            }
        }
        depths
    }

    /// Something, and all that it refers to.
    pub fn below(&self, resource: &Resource) -> Vec<&Node> {
        let mut past = vec![false; self.nodes.len()];
        let (mut below, mut next) = (Vec::new(), Vec::from_iter(self.index.get(resource).copied()));
        while let Some(node) = next.pop() {
            let here = &self.nodes[node];
            if here.exists && !std::mem::replace(&mut past[node], true) {
                below.push(here);
                next.extend(here.next());
            }
        }
        below
    }

    /// What refers to something.
    pub fn referrers(&self, resource: &Resource) -> Vec<&Resource> {
        let Some(node) = self.index.get(resource) else { return Vec::new() };
        let refers = |by: &&Node| by.refers.contains(node) || by.parent == Some(*node);
        self.nodes().filter(refers).map(|by| &by.resource).collect()
    }

    /// The shortest way from a root to something: the root, and what leads from there to it, itself the last.
    pub fn chain(&self, resource: &Resource) -> Option<(&Root, Vec<&Resource>)> {
        let target = *self.index.get(resource)?;
        let mut by = HashMap::new();
        self.walk(
            |_| true,
            |node, before| {
                by.insert(node, before);
            },
        );
        let mut chain = vec![target];
        while let Some(before) = by.get(chain.last()?)? {
            chain.push(*before);
        }
        chain.reverse();
        let (root, _) = self.roots.iter().filter(|(_, node)| Some(node) == chain.first()).min()?;
        Some((root, chain.into_iter().map(|node| &self.nodes[node].resource).collect()))
    }
}

fn is_snapshot(resource: &Resource) -> bool {
    matches!(resource, Resource::Snapshot { .. })
}

/// What something refers to now; nothing if it isn't there.
pub(crate) fn refers(read: &dyn Read, ns: &Namespace, resource: &Resource) -> Result<Vec<Resource>> {
    match resource {
        Resource::Content(digest) => {
            Ok(content::find(read, ns, digest)?.map_or_else(Vec::new, |link| Resource::from_labels(&link.labels)))
        }
        Resource::Snapshot { driver, key } => {
            let Some(snapshot) = snapshots::find(read, ns, driver, key)? else { return Ok(Vec::new()) };
            let mut refers = Resource::from_labels(&snapshot.labels);
            refers.retain(is_snapshot);
            refers.extend(snapshot.parent.map(|key| Resource::Snapshot { driver: driver.clone(), key }));
            Ok(refers)
        }
    }
}
