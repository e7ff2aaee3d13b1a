//! Leases: what is protected from collection while somebody works with it (reference, section 10.1).
//!
//! What was made by hand under no lease is held too, in rows that name no lease: it stands until it is removed.

use std::ops::ControlFlow;

use cofferdam_types::{Ceiling, Error, Keeper, Labels, Name, Namespace, Result, Timestamp};
use serde::{Deserialize, Serialize};

use super::{Record, Resource, namespaces, resource};
use crate::{
    Read, Tx, codec, fields,
    graph::Graph,
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

    fn name(&self) -> Vec<u8> {
        self.id.as_bytes().to_vec()
    }
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

    /// When it ends by itself: at the earlier of the time in its record and the one in its label.
    pub fn ends(&self) -> Option<Timestamp> {
        let label = self.labels.get(EXPIRE).and_then(|text| Timestamp::parse_rfc3339(text));
        self.expires.into_iter().chain(label).min()
    }

    /// Whether it has ended.
    pub fn ended(&self, now: Timestamp) -> bool {
        self.ends().is_some_and(|end| end <= now)
    }

    /// Whether it holds its resources alone, and nothing that they refer to.
    pub fn is_flat(&self) -> bool {
        self.labels.contains_key(FLAT)
    }

    fn check(&mut self) -> Result<()> {
        super::checked_labels(&mut self.labels)?;
        match self.labels.get(EXPIRE) {
            Some(text) if Timestamp::parse_rfc3339(text).is_none() => {
                let why = format!("its label {EXPIRE} is no time in UTC such as 2026-11-25T03:40:17Z");
                Err(Error::invalid("lease", &self.id, why))
            }
            _ => Ok(()),
        }
    }
}

/// The label of a lease with a time, RFC 3339 in UTC, at which it ends.
pub const EXPIRE: &str = "containerd.io/gc.expire";
/// The label of a lease that holds its resources alone.
pub const FLAT: &str = "containerd.io/gc.flat";
/// In place of a lease's id, where something was made by hand.
const HAND: &str = "";

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
    lease.check()?;
    if find(tx, ns, &lease.id)?.is_some() {
        return Err(Error::already_exists("lease", &lease.id, "is there already: choose another id"));
    }
    lease.created = tx.now();
    lease.updated = tx.now();
    lease.ceiling = tx.authority().ceiling.clone();
    super::save(tx, &codec::key(&[ns, &lease.id]), &lease)?;
    tx.ends(lease.ends());
    Ok(lease)
}

/// Replaces labels and expiry.
pub fn update(tx: &mut Tx<'_>, ns: &Namespace, mut lease: Lease) -> Result<Lease> {
    let old = get(tx, ns, &lease.id)?;
    lease.check()?;
    if (lease.ends(), lease.is_flat()) != (old.ends(), old.is_flat()) {
        // It may have ended, or held less, for a collection that is under way.
        let all = resources(tx, ns, &lease.id, None, usize::MAX)?;
        resource::touch(tx, ns, all);
    }
    lease.created = old.created;
    lease.updated = tx.now();
    lease.ceiling = old.ceiling.intersect(&tx.authority().ceiling);
    super::save(tx, &codec::key(&[ns, &lease.id]), &lease)?;
    tx.ends(lease.ends());
    Ok(lease)
}

/// Takes from `labels` and `expires` what `mask` names (`labels`, `labels.K`, `expires`); with an empty mask both.
pub fn update_fields(
    tx: &mut Tx<'_>,
    ns: &Namespace,
    id: &str,
    labels: &Labels,
    expires: Option<Timestamp>,
    mask: &[String],
) -> Result<Lease> {
    let mut lease = get(tx, ns, id)?;
    if mask.is_empty() || mask.iter().any(|field| field == "expires") {
        lease.expires = expires;
    }
    let mask_of_labels: Vec<String> = mask.iter().filter(|field| *field != "expires").cloned().collect();
    if mask.is_empty() || !mask_of_labels.is_empty() {
        fields::labels("lease", id, &mut lease.labels, labels, &mask_of_labels)?;
    }
    update(tx, ns, lease)
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
    resource::touch(tx, ns, [resource.clone()]);
    Ok(())
}

/// Detaches a resource; says whether the lease held it.
pub fn release(tx: &mut Tx<'_>, ns: &Namespace, lease: &str, resource: &Resource) -> Result<bool> {
    get(tx, ns, lease)?;
    tx.remove(Table::HELD, &held(ns, lease, resource))
}

/// Attaches what a job has made to what keeps it.
pub fn keep(tx: &mut Tx<'_>, ns: &Namespace, resource: &Resource) -> Result<()> {
    match tx.authority().keeper.clone() {
        Keeper::References => Ok(()),
        Keeper::Hand => hold_by_hand(tx, ns, resource),
        Keeper::Lease(id) => {
            if get(tx, ns, &id)?.ended(tx.now()) {
                let why = "has ended: renew it, or take another";
                return Err(Error::failed_precondition("lease", id, why));
            }
            hold(tx, ns, &id, resource)
        }
    }
}

/// Notes that it was made by hand.
pub(crate) fn hold_by_hand(tx: &mut Tx<'_>, ns: &Namespace, resource: &Resource) -> Result<()> {
    tx.put(Table::HELD, &held(ns, HAND, resource), b"")?;
    resource::touch(tx, ns, [resource.clone()]);
    Ok(())
}

/// What there was before there was a collector stands: nobody said by then what was made by hand.
pub(crate) fn hold_all(tx: &mut Tx<'_>) -> Result<()> {
    for namespace in namespaces::names(tx)? {
        let graph = Graph::read(tx, &namespace, tx.now())?;
        let left: Vec<_> = graph.unkept().into_iter().map(|node| node.resource.clone()).collect();
        left.iter().try_for_each(|resource| hold_by_hand(tx, &namespace, resource))?;
    }
    Ok(())
}

/// Detaches what is gone, or has another name now, from the hand that made it and the lease that it went under.
pub(crate) fn let_go(tx: &mut Tx<'_>, ns: &Namespace, resource: &Resource) -> Result<()> {
    tx.remove(Table::HELD, &held(ns, HAND, resource))?;
    if let Keeper::Lease(id) = tx.authority().keeper.clone() {
        tx.remove(Table::HELD, &held(ns, &id, resource))?;
    }
    Ok(())
}

/// Whether it was made by hand.
pub fn is_by_hand(read: &dyn Read, ns: &Namespace, resource: &Resource) -> Result<bool> {
    Ok(read.get(Table::HELD, &held(ns, HAND, resource))?.is_some())
}

/// At most `max` of what was made by hand, after `after`.
pub fn by_hand(read: &dyn Read, ns: &Namespace, after: Option<&Resource>, max: usize) -> Result<Vec<Resource>> {
    resources(read, ns, HAND, after, max)
}

/// The lease (empty: the hand) and the resource that a row of [`Table::HELD`] brings together.
pub(crate) fn read_held(key: &[u8]) -> Result<(&str, Resource)> {
    let parts = codec::parts(key)?;
    let lease = parts.get(1).copied().unwrap_or_default();
    Ok((lease, Resource::from_parts(parts.get(2..).unwrap_or_default())?))
}

/// The ids of the leases that hold something.
pub fn holders(read: &dyn Read, ns: &Namespace, resource: &Resource) -> Result<Vec<String>> {
    let mut holders = Vec::new();
    scan(read, Table::HELD, &codec::prefix(&[ns]), None, &mut |key, _| {
        match super::readable(read_held(key))? {
            Some((lease, held)) if held == *resource && lease != HAND => holders.push(lease.to_owned()),
            _ => {}
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(holders)
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
        resources.extend(super::readable(read_held(key))?.map(|(_, resource)| resource));
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(resources)
}
