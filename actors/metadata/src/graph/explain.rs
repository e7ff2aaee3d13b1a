//! Why something stays, or why it goes: the collector's own reasons, in words.

use cofferdam_types::{Error, Id, Name, Namespace, Result, Timestamp};

use super::{Graph, Root};
use crate::{
    Read, View,
    records::{Resource, containers, content, images, leases, snapshots},
    spared::Spared,
};

/// What is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A blob or a snapshot.
    Resource(Resource),
    /// An image, by its name.
    Image(Name),
    /// A container.
    Container(Id),
    /// A lease, by its id.
    Lease(Name),
}

/// A link of the chain that keeps something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// `image`, `container`, `lease`, `hand`, `label`; then `content`, or `snapshots/` and the driver.
    pub kind: String,
    /// Its name; of what was made by hand, and of a label, empty.
    pub id: String,
    /// How the one before it leads to it.
    pub by: String,
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Explanation {
    /// Whether it stays at the next collection.
    pub stays: bool,
    /// In a sentence.
    pub why: String,
    /// From a root to the thing itself, by the shortest way; empty where it goes, and where it is a root itself.
    pub chain: Vec<Step>,
    /// How many blobs it keeps, itself included.
    pub blobs: u64,
    /// How many snapshots.
    pub snapshots: u64,
    /// Bytes of these; what isn't committed doesn't count.
    pub bytes: u64,
}

/// Asks the graph about something.
pub fn explain(view: &View, spared: &Spared, ns: &Namespace, subject: &Subject, now: Timestamp) -> Result<Explanation> {
    match subject {
        Subject::Image(name) => {
            images::get(view, ns, name)?;
            let own = Root::Image(name.clone());
            root(view, ns, now, "stays until it is removed, or replaced by another of its name", |root| *root == own)
        }
        Subject::Container(id) => {
            containers::require(view, ns, id)?;
            let own = Root::Container(id.to_string());
            root(view, ns, now, "stays until it is removed", |root| *root == own)
        }
        Subject::Lease(id) => {
            let lease = leases::get(view, ns, id)?;
            let why = match lease.ends() {
                Some(end) if lease.ended(now) => {
                    format!("ended at {}: the next collection removes it", end.to_rfc3339())
                }
                Some(end) => format!("stays until {}, when it ends", end.to_rfc3339()),
                None => "stays until it is removed".into(),
            };
            let own = |root: &Root| matches!(root, Root::Lease { id: own, .. } if own == id);
            Ok(Explanation { stays: !lease.ended(now), ..root(view, ns, now, &why, own)? })
        }
        Subject::Resource(resource) => kept(view, spared, ns, resource, now),
    }
}

fn root(view: &View, ns: &Namespace, now: Timestamp, why: &str, own: impl Fn(&Root) -> bool) -> Result<Explanation> {
    let mut answer = Explanation { stays: true, why: why.into(), ..Explanation::default() };
    for node in Graph::read(view, ns, now)?.reached(own) {
        match node.resource {
            Resource::Content(_) => answer.blobs += 1,
            Resource::Snapshot { .. } => answer.snapshots += 1,
        }
        answer.bytes += node.size;
    }
    Ok(answer)
}

fn kept(view: &View, spared: &Spared, ns: &Namespace, resource: &Resource, now: Timestamp) -> Result<Explanation> {
    let graph = Graph::read(view, ns, now)?;
    if graph.find(resource).is_none() {
        let kind = if matches!(resource, Resource::Content(_)) { "blob" } else { "snapshot" };
        return Err(Error::not_found(kind, resource.id(), "does not exist in this namespace"));
    }
    let Some((root, path)) = graph.chain(resource) else {
        if graph.is_blind() {
            let why =
                "stays: a record of its namespace can't be read, and may refer to it; `coffer system check` says which";
            return Ok(Explanation { stays: true, why: why.into(), ..Explanation::default() });
        }
        return goes(view, &graph, spared, ns, resource, now);
    };
    let mut chain = vec![first(root)];
    let mut before: Option<&Resource> = None;
    for here in path {
        let by = match before {
            None => root_leads(view, ns, root, here)?,
            Some(before) => leads(view, ns, before, here)?,
        };
        chain.push(Step { kind: here.kind(), id: here.id(), by });
        before = Some(here);
    }
    let roots = graph.roots_of(resource).len();
    let why = match (root, roots) {
        (Root::Hand, 1) if chain.len() == 2 => "stays: it was made by hand, until it is removed".into(),
        (Root::Unreadable, _) if chain.len() == 2 => {
            "stays: its record can't be read; `coffer system check` says why".into()
        }
        (Root::Label, 1) if chain.len() == 2 => format!("stays: it has the label {}", super::ROOT),
        _ => "stays: something that stays refers to it".into(),
    };
    let mut answer = Explanation { stays: true, why, chain, ..Explanation::default() };
    count(&graph, resource, &mut answer);
    Ok(answer)
}

/// What it keeps by itself, once it is kept.
fn count(graph: &Graph, resource: &Resource, answer: &mut Explanation) {
    for node in graph.below(resource) {
        match node.resource {
            Resource::Content(_) => answer.blobs += 1,
            Resource::Snapshot { .. } => answer.snapshots += 1,
        }
        answer.bytes += node.size;
    }
}

fn goes(
    view: &View,
    graph: &Graph,
    spared: &Spared,
    ns: &Namespace,
    resource: &Resource,
    now: Timestamp,
) -> Result<Explanation> {
    if spared.pinned(ns).contains(resource) {
        let why = "stays for now: a pull, an import or another job needs it just now".into();
        return Ok(Explanation { stays: true, why, ..Explanation::default() });
    }
    let mut reasons = Vec::new();
    for lease in leases::holders(view, ns, resource)? {
        if let Some(lease) = leases::find(view, ns, &lease)?.filter(|lease| lease.ended(now)) {
            reasons.push(format!("lease {} held it, and has ended", lease.id));
        }
    }
    for by in graph.referrers(resource).into_iter().take(3) {
        reasons.push(format!("{} refers to it, which nothing keeps either", by.id()));
    }
    if reasons.is_empty() {
        reasons.push("nothing refers to it".into());
    }
    let why = format!("goes with the next collection: {}", reasons.join("; "));
    let mut answer = Explanation { stays: false, why, ..Explanation::default() };
    count(graph, resource, &mut answer);
    Ok(answer)
}

fn first(root: &Root) -> Step {
    let (kind, id) = root.words();
    Step { kind: kind.into(), id: id.into(), by: String::new() }
}

/// How a root comes to something.
fn root_leads(read: &dyn Read, ns: &Namespace, root: &Root, to: &Resource) -> Result<String> {
    let labels = match root {
        Root::Image(name) => {
            let image = images::get(read, ns, name)?;
            if matches!(to, Resource::Content(_)) {
                return Ok("what it stands for".into());
            }
            image.labels
        }
        Root::Container(id) => {
            let container = containers::head(read, ns, id)?.ok_or_else(|| containers::missing(id))?;
            let own = container.snapshot_key.map(|key| Resource::Snapshot { driver: container.driver, key });
            if own.as_ref() == Some(to) {
                return Ok("its root".into());
            }
            container.labels
        }
        Root::Lease { flat: true, .. } => return Ok("it holds this alone".into()),
        Root::Lease { .. } => return Ok("it holds this".into()),
        Root::Hand => return Ok("made by hand".into()),
        Root::Label => return Ok(format!("label {}", super::ROOT)),
        Root::Unreadable => return Ok("its record can't be read".into()),
    };
    Ok(label_to(&labels, to))
}

/// How one thing refers to another.
fn leads(read: &dyn Read, ns: &Namespace, from: &Resource, to: &Resource) -> Result<String> {
    let labels = match from {
        Resource::Content(digest) => content::get(read, ns, digest)?.labels,
        Resource::Snapshot { driver, key } => {
            let snapshot = snapshots::get(read, ns, driver, key)?;
            let parent = snapshot.parent.map(|key| Resource::Snapshot { driver: driver.clone(), key });
            if parent.as_ref() == Some(to) {
                return Ok("its parent".into());
            }
            snapshot.labels
        }
    };
    Ok(label_to(&labels, to))
}

fn label_to(labels: &cofferdam_types::Labels, to: &Resource) -> String {
    let one = |(key, value): (&String, &String)| {
        let alone = cofferdam_types::Labels::from([(key.clone(), value.clone())]);
        Resource::from_labels(&alone).contains(to).then(|| format!("label {key}"))
    };
    labels.iter().find_map(one).unwrap_or_default()
}
