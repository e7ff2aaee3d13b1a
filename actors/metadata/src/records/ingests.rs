//! Ingests: uploads that are under way, or that were interrupted and can go on.

use std::collections::BTreeSet;

use cofferdam_types::{Digest, Error, GrantId, Name, Namespace, Result, Timestamp};
use serde::{Deserialize, Serialize};

use super::{Record, namespaces};
use crate::{Read, Tx, codec, table::Table};

/// An ingest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ingest {
    /// The client's name for it.
    pub reference: Name,
    /// The name of its file below `content/ingest`: a number that is never used twice.
    pub id: u64,
    /// What it should become.
    pub expected: Option<Digest>,
    /// How large it should become.
    pub total: Option<u64>,
    /// When it began.
    pub started: Timestamp,
    /// When its record was changed last.
    pub updated: Timestamp,
    /// The grants through which it was begun, the outermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub made_by: Vec<GrantId>,
    /// How far its hash is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hashed: Option<Hashed>,
}

/// The state of a hash half way, over bytes that were on disk before it was written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hashed {
    /// How many bytes it covers, from the first on.
    pub offset: u64,
    /// What these come to.
    pub digest: Digest,
    /// The state, which goes on with what follows.
    #[serde(with = "serde_bytes")]
    pub state: Vec<u8>,
}

impl Record for Ingest {
    const TABLE: Table = Table::INGESTS;
    const KIND: &'static str = "ingest";

    fn name(&self) -> Vec<u8> {
        self.reference.as_bytes().to_vec()
    }
}

impl Ingest {
    /// Whether it is a pull's, and nobody's who gave it a name: see [`of_layer`].
    pub fn is_pulls(&self) -> bool {
        let Some(rest) = self.reference.strip_prefix(LAYER) else { return false };
        // A digest has no such sign.
        let (digest, grant) = rest.split_once('-').map_or((rest, None), |(digest, grant)| (digest, Some(grant)));
        let digest = digest.parse::<Digest>().ok();
        digest.is_some() && (grant.is_some() || self.expected == digest)
    }
}

const LAYER: &str = "layer-";

/// The reference of the ingest by which pulls fetch a layer; those through a grant that chooses images have one of their own.
pub fn of_layer(layer: &Digest, grant: Option<GrantId>) -> Result<Name> {
    Name::new(match grant {
        None => format!("{LAYER}{layer}"),
        Some(grant) => format!("{LAYER}{layer}-{grant}"),
    })
}

/// The ingest, if it exists.
pub fn find(read: &dyn Read, ns: &Namespace, reference: &str) -> Result<Option<Ingest>> {
    super::find(read, &codec::key(&[ns, reference]))
}

/// The ingest.
pub fn get(read: &dyn Read, ns: &Namespace, reference: &str) -> Result<Ingest> {
    find(read, ns, reference)?.ok_or_else(|| Error::not_found("ingest", reference, "does not exist"))
}

/// A page of them, by reference.
pub fn list(read: &dyn Read, ns: &Namespace, after: Option<&str>, max: usize) -> Result<Vec<Ingest>> {
    super::page(read, &codec::prefix(&[ns]), after, max)
}

/// The ids of all ingests of all namespaces, for the sweep of files without a record. `None`: a row can't be read, and any file
/// may be its.
pub fn ids(read: &dyn Read) -> Result<Option<BTreeSet<u64>>> {
    let mut ids = Some(BTreeSet::new());
    super::visit_all(read, b"", &mut |_, row: Result<Ingest>| match (row, &mut ids) {
        (Ok(ingest), Some(ids)) => drop(ids.insert(ingest.id)),
        (Ok(_), None) => {}
        (Err(error), _) => {
            super::tell(&error);
            ids = None;
        }
    })?;
    Ok(ids)
}

/// Begins an ingest under a fresh id.
pub fn create(
    tx: &mut Tx<'_>,
    ns: &Namespace,
    reference: Name,
    expected: Option<Digest>,
    total: Option<u64>,
) -> Result<Ingest> {
    namespaces::require(tx, ns)?;
    if find(tx, ns, &reference)?.is_some() {
        return Err(Error::already_exists(
            "ingest",
            &reference,
            "is there already: choose another reference, or abort it",
        ));
    }
    let (id, now) = (tx.next("ingest", 1)?, tx.now());
    let made_by = tx.authority().grants.to_vec();
    let ingest = Ingest { reference, id, expected, total, started: now, updated: now, made_by, hashed: None };
    super::save(tx, &codec::key(&[ns, &ingest.reference]), &ingest)?;
    Ok(ingest)
}

/// Changes what an ingest is expected to become.
pub fn update(tx: &mut Tx<'_>, ns: &Namespace, mut ingest: Ingest) -> Result<Ingest> {
    let old = get(tx, ns, &ingest.reference)?;
    ingest.id = old.id;
    ingest.started = old.started;
    ingest.made_by = old.made_by;
    ingest.hashed = old.hashed;
    ingest.updated = tx.now();
    super::save(tx, &codec::key(&[ns, &ingest.reference]), &ingest)?;
    Ok(ingest)
}

/// Notes how far the hash of this very ingest is kept, or that it isn't any more; nothing if another has its reference by now.
pub fn keep(tx: &mut Tx<'_>, ns: &Namespace, reference: &str, id: u64, hashed: Option<Hashed>) -> Result<()> {
    let Some(mut ingest) = find(tx, ns, reference)?.filter(|ingest| ingest.id == id && ingest.hashed != hashed) else {
        return Ok(());
    };
    ingest.hashed = hashed;
    super::save(tx, &codec::key(&[ns, reference]), &ingest)
}

/// Has all of them be hashed anew when they are gone on with: rows that were found in a damaged file may be older than the bytes.
pub(crate) fn keep_none(tx: &mut Tx<'_>) -> Result<()> {
    for key in super::keys(tx, Table::INGESTS, b"")? {
        let found = super::readable(super::find::<Ingest>(tx, &key))?.flatten();
        let Some(mut ingest) = found.filter(|ingest| ingest.hashed.is_some()) else { continue };
        ingest.hashed = None;
        super::save(tx, &key, &ingest)?;
    }
    Ok(())
}

/// Ends an ingest: committed or aborted.
pub fn delete(tx: &mut Tx<'_>, ns: &Namespace, reference: &str) -> Result<Ingest> {
    let ingest = get(tx, ns, reference)?;
    tx.remove(Table::INGESTS, &codec::key(&[ns, reference]))?;
    Ok(ingest)
}
