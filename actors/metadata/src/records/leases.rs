//! Leases: what is protected from collection while somebody works with it (reference, section 10.1).

use std::ops::ControlFlow;

use cofferdam_types::{Ceiling, Error, Labels, Name, Namespace, Result, Timestamp};
use serde::{Deserialize, Serialize};

use super::{Record, Resource, delta, namespaces};
use crate::{
    Read, Tx, codec,
    table::{Table, scan},
};

/// A lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Its id.
    pub id: Name,
    /// Free labels.
    pub labels: Labels,
    /// When it ends by itself.
    pub expires: Option<Timestamp>,
    /// When it was created.
    pub created: Timestamp,
    /// When it was changed last.
    pub updated: Timestamp,
    /// The bounds of the authority that created it.
    pub ceiling: Ceiling,
}

impl Record for Lease {
    const TABLE: Table = Table::LEASES;
    const KIND: &'static str = "lease";
}

impl Lease {
    /// A lease without labels that does not expire.
    pub fn new(id: Name) -> Lease {
        Lease {
            id,
            labels: Labels::new(),
            expires: None,
            created: Timestamp::default(),
            updated: Timestamp::default(),
            ceiling: Ceiling::default(),
        }
    }
}

/// The lease, if it exists.
pub fn find(read: &dyn Read, ns: &Namespace, id: &str) -> Result<Option<Lease>> {
    super::find(read, &codec::key(&[ns, id]))
}

/// The lease.
pub fn get(read: &dyn Read, ns: &Namespace, id: &str) -> Result<Lease> {
    find(read, ns, id)?.ok_or_else(|| Error::not_found("lease", id, "does not exist"))
}

/// A page of them, by id.
pub fn list(read: &dyn Read, ns: &Namespace, after: Option<&str>, max: usize) -> Result<Vec<Lease>> {
    super::page(read, &codec::prefix(&[ns]), after, max)
}

/// Creates a lease.
pub fn create(tx: &mut Tx<'_>, ns: &Namespace, mut lease: Lease) -> Result<Lease> {
    namespaces::require(tx, ns)?;
    super::checked_labels(&mut lease.labels)?;
    if find(tx, ns, &lease.id)?.is_some() {
        return Err(Error::already_exists("lease", &lease.id, "is there already: choose another id"));
    }
    lease.created = tx.now();
    lease.updated = tx.now();
    lease.ceiling = tx.authority().ceiling.clone();
    super::save(tx, &codec::key(&[ns, &lease.id]), &lease)?;
    Ok(lease)
}

/// Replaces labels and expiry.
pub fn update(tx: &mut Tx<'_>, ns: &Namespace, mut lease: Lease) -> Result<Lease> {
    let old = get(tx, ns, &lease.id)?;
    super::checked_labels(&mut lease.labels)?;
    lease.created = old.created;
    lease.updated = tx.now();
    lease.ceiling = old.ceiling.intersect(&tx.authority().ceiling);
    super::save(tx, &codec::key(&[ns, &lease.id]), &lease)?;
    Ok(lease)
}

/// Removes a lease, and with it the protection of what it held; nothing else is removed.
pub fn delete(tx: &mut Tx<'_>, ns: &Namespace, id: &str) -> Result<()> {
    get(tx, ns, id)?;
    for key in super::keys(tx, Table::HELD, &codec::prefix(&[ns, id]))? {
        tx.remove(Table::HELD, &key)?;
    }
    tx.remove(Table::LEASES, &codec::key(&[ns, id]))?;
    Ok(())
}

fn held(ns: &Namespace, lease: &str, resource: &Resource) -> Vec<u8> {
    let parts = resource.parts();
    let all: Vec<_> = [ns.as_str(), lease].into_iter().chain(parts.iter().map(String::as_str)).collect();
    codec::key(&all)
}

/// Attaches a resource, which need not exist yet, to a lease.
pub fn hold(tx: &mut Tx<'_>, ns: &Namespace, lease: &str, resource: &Resource) -> Result<()> {
    get(tx, ns, lease)?;
    tx.put(Table::HELD, &held(ns, lease, resource), b"")?;
    delta::touch(tx, ns, [resource.clone()])
}

/// Detaches a resource; says whether the lease held it.
pub fn release(tx: &mut Tx<'_>, ns: &Namespace, lease: &str, resource: &Resource) -> Result<bool> {
    get(tx, ns, lease)?;
    tx.remove(Table::HELD, &held(ns, lease, resource))
}

/// At most `max` of what a lease holds, after `after`.
pub fn resources(
    read: &dyn Read,
    ns: &Namespace,
    lease: &str,
    after: Option<&Resource>,
    max: usize,
) -> Result<Vec<Resource>> {
    let after = after.map(|resource| held(ns, lease, resource));
    let mut resources = Vec::new();
    scan(read, Table::HELD, &codec::prefix(&[ns, lease]), after.as_deref(), &mut |key, _| {
        if resources.len() == max {
            return Ok(ControlFlow::Break(()));
        }
        resources.push(Resource::from_parts(codec::parts(key)?.get(2..).unwrap_or_default())?);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(resources)
}
