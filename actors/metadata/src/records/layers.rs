//! Layers that the daemon unpacked itself: stored once per driver and chain id, linked into each namespace that
//! holds their blobs.
//!
//! A layer lives as long as a namespace's committed snapshot shares its directory. Each such snapshot's parent is the
//! parent layer's snapshot in the same namespace, so a layer never outlives what it lies on.

use cofferdam_types::{Digest, Error, Labels, Name, Namespace, Result, Timestamp};
use serde::{Deserialize, Serialize};

use super::{
    Record,
    snapshots::{self, Kind, Snapshot, Usage},
};
use crate::{Read, Tx, codec, table::Table};

/// A layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Its chain id.
    pub chain: Digest,
    /// The chain id of what it lies on.
    pub parent: Option<Digest>,
    /// The number of its directory.
    pub dir: u64,
    /// Whether it was extracted without its parent.
    pub detached: bool,
    /// What it takes up.
    pub usage: Usage,
    /// When it was unpacked.
    pub created: Timestamp,
}

impl Record for Layer {
    const TABLE: Table = Table::LAYERS;
    const KIND: &'static str = "layer";

    fn name(&self) -> Vec<u8> {
        self.chain.to_string().into_bytes()
    }
}

fn key(driver: &str, chain: &Digest) -> Vec<u8> {
    codec::key(&[driver, &chain.to_string()])
}

/// The layer, if it is unpacked.
pub fn find(read: &dyn Read, driver: &str, chain: &Digest) -> Result<Option<Layer>> {
    super::find(read, &key(driver, chain))
}

/// The layer.
pub fn get(read: &dyn Read, driver: &str, chain: &Digest) -> Result<Layer> {
    find(read, driver, chain)?.ok_or_else(|| Error::not_found("layer", chain, "is not unpacked"))
}

/// A page of a driver's layers, by chain id.
pub fn list(read: &dyn Read, driver: &str, after: Option<&str>, max: usize) -> Result<Vec<Layer>> {
    super::page(read, &codec::prefix(&[driver]), after, max)
}

/// Records a layer whose directory is in place. [`link`] it in the same transaction: without a link nothing keeps it.
pub fn create(tx: &mut Tx<'_>, driver: &str, mut layer: Layer) -> Result<Layer> {
    super::check_driver(driver)?;
    if find(tx, driver, &layer.chain)?.is_some() {
        return Err(Error::already_exists("layer", &layer.chain, "is unpacked already"));
    }
    if let Some(parent) = &layer.parent {
        get(tx, driver, parent)?;
    }
    layer.created = tx.now();
    store(tx, driver, &layer)?;
    Ok(layer)
}

pub(super) fn store(tx: &mut Tx<'_>, driver: &str, layer: &Layer) -> Result<()> {
    super::save(tx, &key(driver, &layer.chain), layer)
}

/// Links a layer into a namespace: a committed snapshot whose key is the chain id. Its parents must be linked before
/// it. If the namespace has a snapshot of that name, its own or a link, it stays as it is.
pub fn link(tx: &mut Tx<'_>, ns: &Namespace, driver: &str, chain: &Digest, labels: &Labels) -> Result<Snapshot> {
    let name = Name::new(chain.to_string())?;
    if let Some(snapshot) = snapshots::find(tx, ns, driver, &name)? {
        return Ok(snapshot);
    }
    let layer = get(tx, driver, chain)?;
    // One that was there before is linked already.
    if layer.created != tx.now() {
        snapshots::recount(tx, driver, layer.dir)?;
    }
    let parent = layer.parent.as_ref().map(|parent| Name::new(parent.to_string())).transpose()?;
    let mut snapshot = Snapshot::new(driver, name, Kind::Committed, parent, layer.dir);
    snapshot.layer = Some(chain.clone());
    snapshot.usage = layer.usage;
    snapshot.labels.clone_from(labels);
    snapshots::create(tx, ns, snapshot)
}

/// The last link is gone.
pub(crate) fn forget(tx: &mut Tx<'_>, driver: &str, chain: &Digest) -> Result<()> {
    tx.remove(Table::LAYERS, &key(driver, chain)).map(drop)
}
