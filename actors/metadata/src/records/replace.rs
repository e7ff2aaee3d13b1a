//! Another tree in the place of a layer's, which was damaged.
//!
//! What is made on the layer from then on lies on the new tree. What is not committed keeps the mounts that it has: it goes
//! on lying on the old tree, which stays under another name for as long as that is so. The collector takes it then.

use std::collections::BTreeMap;

use cofferdam_types::{Digest, Error, Event, Labels, Name, Namespace, Result};

use super::{
    events, layers, namespaces,
    snapshots::{self, Kind, Snapshot, Usage},
};
use crate::{Tx, codec};

/// How the names begin under which old trees stay.
const REPLACED: &str = "replaced/";
/// The label of one that says under which name it was made.
const WAS: &str = "dev.cofferdam.snapshot.was";

/// What goes on lying on the old tree, of what isn't committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stays {
    /// All: their mounts are made of it.
    All,
    /// Views right on it, whose mounts are the tree itself; all others have copies.
    Views,
    /// None, since it is gone.
    None,
}

impl Stays {
    /// Whether one of this kind does, or what lies on it may.
    fn has(self, kind: Kind) -> bool {
        match self {
            Stays::All => true,
            Stays::Views => kind == Kind::View,
            Stays::None => false,
        }
    }
}

/// The name under which a snapshot was made, also if it stays under another.
pub fn first_name(snapshot: &Snapshot) -> &str {
    let was = snapshot.key.starts_with(REPLACED).then(|| snapshot.labels.get(WAS)).flatten();
    was.map_or(&snapshot.key, String::as_str)
}

/// Gives a layer another directory in place of `old`, on which goes on lying what `stays`.
/// Whether nothing refers to the old directory any more. `failed_precondition`: the layer has another one by now.
pub fn replace(
    tx: &mut Tx<'_>,
    driver: &str,
    chain: &Digest,
    old: u64,
    (new, usage): (u64, Usage),
    stays: Stays,
) -> Result<bool> {
    let mut layer = layers::get(tx, driver, chain)?;
    if layer.dir != old {
        return Err(Error::failed_precondition("layer", chain, "was replaced, or unpacked again, meanwhile"));
    }
    for ns in &namespaces::names(tx)? {
        // What it was once, and stays for others, has its directory and another name.
        for mut other in snapshots::list(tx, ns, driver, None, usize::MAX)? {
            if other.layer.as_ref() == Some(chain) && other.key.as_str() != chain.to_string() {
                other.layer = None;
                snapshots::store(tx, ns, other)?;
            }
        }
        // One that can't be read goes on counting for the old tree, which stays for it.
        let own = super::readable(snapshots::find(tx, ns, driver, &chain.to_string()))?.flatten();
        let Some(mut own) = own.filter(|own| own.dir == old) else { continue };
        if stays != Stays::None {
            // Damaged records may go round in a circle, and this goes down.
            snapshots::ancestors(tx, ns, &own)?;
            let mut below: BTreeMap<Name, Vec<Snapshot>> = BTreeMap::new();
            // All of them: one that can't be read may be mounted on the old tree, which would go.
            for one in super::all::<Snapshot>(tx, &codec::prefix(&[ns, driver]))? {
                if let Some(parent) = one.parent.clone() {
                    below.entry(parent).or_default().push(one);
                }
            }
            let was = Snapshot { layer: None, ..own.clone() };
            stay(tx, ns, &below, &was, own.parent.clone(), (old, stays))?;
        }
        (own.dir, own.usage, own.updated) = (new, usage, tx.now());
        snapshots::store(tx, ns, own)?;
        // Only now: where nobody has counted, those that are left are.
        snapshots::refer(tx, driver, old, -1)?;
        snapshots::refer(tx, driver, new, 1)?;
        let payload = serde_json::json!({ "key": chain, "driver": driver });
        events::emit(tx, Event::new(ns, "/snapshot/repaired", payload))?;
    }
    (layer.dir, layer.usage, layer.created) = (new, usage, tx.now());
    layers::store(tx, driver, &layer)?;
    Ok(snapshots::dir_references(tx, driver, old)? == 0)
}

/// Gives what stays of what lies on `was`, in however many steps, a chain of its own down to the old tree.
fn stay(
    tx: &mut Tx<'_>,
    ns: &Namespace,
    below: &BTreeMap<Name, Vec<Snapshot>>,
    was: &Snapshot,
    parent: Option<Name>,
    (old, stays): (u64, Stays),
) -> Result<()> {
    if !is_used(below, &was.key, stays) {
        return Ok(());
    }
    let mut count = 0;
    let key = loop {
        let key = Name::new(format!("{REPLACED}{old}/{count}"))?;
        if snapshots::find(tx, ns, &was.driver, &key)?.is_none() {
            break key;
        }
        count += 1;
    };
    // Nothing but what lies on it keeps it: its other labels might.
    let labels = Labels::from([(WAS.to_owned(), first_name(was).to_owned())]);
    let kept = Snapshot { key: key.clone(), parent, labels, ..was.clone() };
    snapshots::create(tx, ns, kept)?;
    for one in below.get(&was.key).into_iter().flatten().filter(|one| stays.has(one.kind)) {
        match one.kind {
            Kind::Committed => stay(tx, ns, below, one, Some(key.clone()), (old, stays))?,
            Kind::Active | Kind::View => snapshots::move_onto(tx, ns, one.clone(), key.clone())?,
        }
    }
    Ok(())
}

/// Whether anything lies on it that stays and isn't committed.
fn is_used(below: &BTreeMap<Name, Vec<Snapshot>>, key: &Name, stays: Stays) -> bool {
    let mut on_it = below.get(key).into_iter().flatten().filter(|one| stays.has(one.kind));
    on_it.any(|one| one.kind != Kind::Committed || is_used(below, &one.key, stays))
}

/// Tells every namespace that has a layer that its tree is not what it was.
pub fn damaged(tx: &mut Tx<'_>, driver: &str, chain: &Digest) -> Result<()> {
    for ns in namespaces::names(tx)? {
        let found = super::readable(snapshots::find(tx, &ns, driver, &chain.to_string()))?.flatten();
        if found.is_some_and(|found| found.layer.as_ref() == Some(chain)) {
            let payload = serde_json::json!({ "key": chain, "driver": driver });
            events::emit(tx, Event::new(&ns, "/snapshot/damaged", payload))?;
        }
    }
    Ok(())
}
