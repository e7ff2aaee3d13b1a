//! Images that nobody uses are removed.

use std::{collections::HashSet, time::Duration};

use cofferdam_metadata::{
    Read,
    graph::{Freed, Graph, Root},
    records::{
        containers,
        images::{self, Image},
    },
};
use cofferdam_types::{Authority, Descriptor, Id, Name, Namespace, Result, Timestamp};

use crate::{
    Images,
    messages::{Decide, Frees},
};

/// Which images, and what is to become of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prune {
    /// Only those that were last changed so long ago.
    pub unchanged: Duration,
    /// Nothing is removed.
    pub rehearse: bool,
}

/// An image that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pruned {
    /// The image, without what others may have filled it with: there may be many, and they may be kept for long.
    pub image: Image,
    /// Whether it goes.
    pub removed: bool,
    /// Why it goes or stays.
    pub why: Why,
}

/// Why an image goes or stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// A container was made from it; the first that was found.
    Used(Id),
    /// It was changed not so long ago.
    Young,
    /// A container can't be read, and may have been made from it.
    Unknown,
    /// No container was made from it.
    Unused,
}

impl Images {
    /// Removes the chosen ones that no container was made from, in one commit; and what the next collection will remove then.
    pub async fn prune(
        &self,
        auth: &Authority,
        ns: &Namespace,
        options: Prune,
        chosen: impl Fn(&Image) -> bool + Send + 'static,
    ) -> Result<(Vec<Pruned>, Freed)> {
        let view = self.meta.read()?;
        let pruned = if options.rehearse {
            let (view, namespace) = (self.meta.read()?, ns.clone());
            self.slot.call(Decide { view, namespace, options, chosen: Box::new(chosen) }).await?
        } else {
            let ns = ns.clone();
            let write = move |tx: &mut cofferdam_metadata::Tx<'_>| {
                let now = tx.now();
                let pruned = decide(tx, &ns, options, now, &chosen)?;
                for gone in pruned.iter().filter(|one| one.removed) {
                    images::delete(tx, &ns, &gone.image.name)?;
                }
                Ok(pruned)
            };
            self.meta.write(auth, write).await?
        };
        let names: HashSet<Name> = pruned.iter().filter(|p| p.removed).map(|p| p.image.name.clone()).collect();
        let freed = self.slot.call(Frees { view, namespace: ns.clone(), names }).await?;
        Ok((pruned, freed))
    }
}

pub(crate) fn decide(
    read: &dyn Read,
    ns: &Namespace,
    options: Prune,
    now: Timestamp,
    chosen: &dyn Fn(&Image) -> bool,
) -> Result<Vec<Pruned>> {
    let mut users = containers::users(read, ns)?;
    let age = |image: &Image| Duration::from_nanos(now.0.saturating_sub(image.updated.0));
    let images = images::list(read, ns, None, usize::MAX)?.into_iter().filter(chosen);
    Ok(images
        .map(|image| {
            let why = match users.of.remove(image.name.as_str()) {
                Some(container) => Why::Used(container.id),
                None if age(&image) < options.unchanged => Why::Young,
                None if users.unread.is_some() => Why::Unknown,
                None => Why::Unused,
            };
            let Descriptor { media_type, digest, size, .. } = image.target;
            let head = Image::new(image.name, Descriptor::new(media_type, digest, size));
            let image = Image { created: image.created, updated: image.updated, ..head };
            Pruned { image, removed: why == Why::Unused, why }
        })
        .collect())
}

/// What nothing would keep without these images, that something keeps with them.
pub(crate) fn frees(read: &dyn Read, ns: &Namespace, names: &HashSet<Name>) -> Result<Freed> {
    if names.is_empty() {
        return Ok(Freed::default());
    }
    let graph = Graph::read(read, ns, Timestamp::now())?;
    Ok(graph.freed(|root| matches!(root, Root::Image(name) if names.contains(name))))
}
