//! What is done for each message, without an actor.
//!
//! The order of things is always the same. To create: directory first, commit second. To remove: commit first,
//! directory second. Whatever happens in between leaves at most a directory that no record names.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    sync::{Arc, Mutex},
};

use cofferdam_kernel::Pool;
use cofferdam_metadata::{
    Metadata, Read, View,
    records::{
        layers::{self, Layer},
        readable,
        snapshots::{self, Kind, Removed, Snapshot, Usage},
    },
};
use cofferdam_types::{Authority, Digest, Error, Labels, Mount, Name, Namespace, Result};
use tokio::sync::watch;

mod check;
mod heal;
mod sweep;

pub use sweep::Begun;

use crate::{
    area::{self, Area, Known, private_dir},
    drivers::{self, Access, Settings},
    flights::Flights,
    messages::{Commit, CommitLayers, Limit, Measure, Prepare, Remove, Reserve, StageLayer},
    stage::{Base, Changes, Reserved, Stage, Staged, Turn},
    trash::Trash,
};

/// How many a snapshot may lie on: as many as overlayfs stacks.
pub const DEPTH: usize = 500;

/// All that the subsystem knows. It outlives the actor's crashes: what is in somebody's hands stays there.
pub struct Core {
    meta: Metadata,
    pool: Pool,
    depots: Vec<Depot>,
    /// Drivers that can't work here, with the reason.
    unfit: Vec<(&'static str, Error)>,
    /// How many sweeps are under way: that of a start, and those that a crashed actor has left to end by themselves.
    sweeps: watch::Sender<usize>,
    /// Held by the one that is at it.
    sweeping: Mutex<()>,
}

/// A driver's directory, and the layers that somebody is unpacking into it.
pub struct Depot {
    pub area: Arc<Area>,
    flights: Flights,
}

impl Core {
    /// Opens the directories of all drivers below `root`.
    pub fn open(meta: Metadata, pool: Pool, root: &Path, settings: Settings) -> Result<Core> {
        let trash = Trash::start(private_dir(&root.join("trash"))?)?;
        let all = private_dir(&root.join("snapshots"))?;
        let view = meta.read()?;
        let (mut depots, mut unfit) = (Vec::new(), Vec::new());
        for driver in drivers::all() {
            let name = driver.name();
            if let Err(reason) = driver.fits(all.as_fd()) {
                unfit.push((name, reason));
                continue;
            }
            let last = snapshots::dirs(&view, name)?.last().copied().unwrap_or(0);
            let theirs = meta.clone();
            let referenced = Box::new(move |id| snapshots::is_referenced(&theirs.read()?, name, id));
            let attaches = driver.attaches();
            let opened = Area::open(root, driver, trash.clone(), last, referenced).and_then(|mut area| {
                if settings.verity {
                    area.demand_verity();
                }
                // Who asks for mounts doesn't wait for the actor's first sweep, and must not find something unmounted.
                if attaches && meta.writable().is_ok() {
                    area.sweep(|| known(&view, name))?;
                }
                Ok(area)
            });
            match opened {
                Ok(area) => depots.push(Depot { area: Arc::new(area), flights: Flights::default() }),
                // What it takes beyond directories may be missing here; the other drivers work all the same.
                Err(reason) if attaches => {
                    tracing::error!(driver = name, error = %reason, "a driver can't work: its snapshots are out of reach");
                    unfit.push((name, reason));
                }
                Err(reason) => return Err(reason),
            }
        }
        if settings.verity {
            // The default is the first; whose layers are trees refuses each commit.
            depots.sort_by_key(|depot| !depot.area.driver().attaches());
        }
        Ok(Core { meta, pool, depots, unfit, sweeps: watch::Sender::new(0), sweeping: Mutex::default() })
    }

    /// See [`Area::close`].
    pub fn close(&self) {
        self.depots.iter().for_each(|depot| depot.area.close());
    }

    /// The names of the drivers, the default first.
    pub fn drivers(&self) -> Vec<&'static str> {
        self.depots.iter().map(|depot| depot.area.driver().name()).collect()
    }

    /// Why a driver can't work here.
    pub fn unfit(&self, driver: &str) -> Option<&Error> {
        self.unfit.iter().find(|(name, _)| *name == driver).map(|(_, reason)| reason)
    }

    /// The directory of a driver.
    pub fn depot(&self, driver: &str) -> Result<&Depot> {
        if let Some(reason) = self.unfit(driver) {
            return Err(reason.clone());
        }
        self.depots.iter().find(|depot| depot.area.driver().name() == driver).ok_or_else(|| {
            let why = format!("is not a driver of this daemon; it has {}", self.drivers().join(", "));
            Error::not_found("driver", driver, why)
        })
    }

    /// Makes directories ahead, so that the next containers find theirs ready.
    pub async fn restock(&self, driver: &str) {
        let Ok(Depot { area, .. }) = self.depot(driver) else { return };
        if area.low() && self.meta.writable().is_ok() {
            let area = area.clone();
            if let Err(error) = self.pool.run(move || area.refill()).await {
                tracing::debug!(driver, %error, "no directories made ahead: they will be made when they are needed");
            }
        }
    }

    /// See [`Reserve`].
    pub async fn reserve(&self, m: Reserve) -> Result<Reserved> {
        let area = &self.depot(&m.driver)?.area;
        let swaps = area.swaps();
        let parents = {
            let view = self.meta.read()?;
            if snapshots::find(&view, &m.namespace, &m.driver, &m.key)?.is_some() {
                return Err(Error::already_exists("snapshot", &m.key, snapshots::TAKEN));
            }
            let parents = parents(&view, &m.namespace, &m.driver, m.parent.as_ref())?;
            there(&view, area, &m.namespace, m.parent.as_ref(), &parents)?;
            parents
        };
        if parents.len() > DEPTH {
            let why =
                format!("would lie on more than {DEPTH} others, and could not be mounted: begin anew from a copy");
            return Err(Error::out_of_range("snapshot", &m.key, why));
        }
        let mut record = Snapshot::new(m.driver, m.key, m.kind, m.parent, 0);
        record.labels = m.labels;
        let (held, own) = match (m.kind, parents.first().copied()) {
            (Kind::Committed, _) => {
                return Err(Error::invalid("snapshot", &record.key, "can't be made committed: commit an active one"));
            }
            (Kind::View, Some(_)) => (area.number(), false),
            // In stock: a few system calls on directories that are in memory, less than a hop to another thread.
            (_, parent) if area.in_stock() && (parent.is_none() || area.driver().detached()) => {
                (area.take(parent)?, true)
            }
            (_, parent) => {
                let area = area.clone();
                let make = move || {
                    // A copy is part of what the record will promise; and unlike an empty directory, one that a
                    // power cut left half written can't be recognised at the next start.
                    let copies = parent.is_some() && !area.driver().detached();
                    let witness = copies.then(|| area.witness()).transpose()?;
                    let held = area.take(parent)?;
                    witness.as_ref().map_or(Ok(()), area::sync)?;
                    Ok(held)
                };
                (self.pool.run(make).await?, true)
            }
        };
        record.dir = held.id();
        let access = if m.kind == Kind::Active { Access::Write } else { Access::Read };
        let mounts = area.mounts(access, own.then_some(record.dir), &parents);
        Ok(Reserved::new(record, mounts, parents, swaps, held))
    }

    /// See [`Prepare`].
    pub async fn prepare(&self, m: Prepare) -> Result<Vec<Mount>> {
        let namespace = m.reserve.namespace.clone();
        let reserved = self.reserve(m.reserve).await?;
        let record = reserved.clone();
        self.meta.write(&m.authority, move |tx| record.create(tx, &namespace)).await?;
        Ok(reserved.done())
    }

    /// The mounts of a snapshot that exists.
    pub fn mounts(&self, ns: &Namespace, driver: &str, key: &Name) -> Result<Vec<Mount>> {
        let view = self.meta.read()?;
        let record = snapshots::get(&view, ns, driver, key)?;
        let parents = parents(&view, ns, driver, record.parent.as_ref())?;
        let area = &self.depot(driver)?.area;
        there(&view, area, ns, record.parent.as_ref(), &parents)?;
        let (access, own) = match record.kind {
            Kind::Active => (Access::Write, Some(record.dir)),
            Kind::View => (Access::Read, parents.is_empty().then_some(record.dir)),
            Kind::Committed => {
                return Err(Error::failed_precondition(
                    "snapshot",
                    key,
                    "is committed: prepare or view one on top of it",
                ));
            }
        };
        Ok(area.mounts(access, own, &parents))
    }

    /// What a snapshot holds, beside what it lies on, or what another one holds.
    pub fn changes(&self, ns: &Namespace, driver: &str, key: &Name, base: Option<&Name>) -> Result<Changes> {
        let view = self.meta.read()?;
        let area = &self.depot(driver)?.area;
        let record = snapshots::get(&view, ns, driver, key)?;
        let beside = base.is_none_or(|base| record.parent.as_ref() == Some(base));
        let lower = match (beside, base) {
            (false, Some(base)) => Some(shown(&view, area, ns, &snapshots::get(&view, ns, driver, base)?)?),
            _ => whole(area, &parents(&view, ns, driver, record.parent.as_ref())?)?,
        };
        if beside && record.kind != Kind::View {
            return Ok(Changes { lower, upper: area.tree(record.dir)?, overlay: area.driver().detached() });
        }
        Ok(Changes { lower, upper: shown(&view, area, ns, &record)?, overlay: false })
    }

    /// See [`Commit`].
    pub async fn commit(&self, m: Commit) -> Result<()> {
        let area = self.depot(&m.driver)?.area.clone();
        let found = snapshots::get(&self.meta.read()?, &m.namespace, &m.driver, &m.key)?;
        self.settled_of(&area, found.dir).await;
        let view = self.meta.read()?;
        let active = snapshots::get(&view, &m.namespace, &m.driver, &m.key)?;
        if active.kind == Kind::Active && snapshots::find(&view, &m.namespace, &m.driver, &m.name)?.is_none() {
            let (driver, dir, counted) =
                (m.driver.clone(), active.dir, snapshots::is_referenced(&view, &m.driver, active.dir)?);
            drop(view);
            // Before it is held: what nobody counts is thrown away then, however this ends.
            if !counted {
                let recount = move |tx: &mut cofferdam_metadata::Tx<'_>| snapshots::recount(tx, &driver, dir);
                self.meta.write(&Authority::system(), recount).await?;
            }
            let replaced =
                |key: &Name| Error::failed_precondition("snapshot", key, "was replaced meanwhile: try again");
            let Some(sealing) = area.sealing(active.dir) else {
                return Err(Error::unavailable(
                    "snapshot",
                    &m.key,
                    "is being committed just now: wait for that to end",
                ));
            };
            if snapshots::get(&self.meta.read()?, &m.namespace, &m.driver, &m.key)?.dir != active.dir {
                return Err(replaced(&m.key));
            }
            // Durable first; the size then, which what is sealed may share with what it was made of. What was written into it
            // before, nobody of ours did: what the disk has told nobody of yet is told here.
            let seal = move || {
                let synced = area.witness().and_then(|witness| area::sync(&witness));
                let sealed = synced.and_then(|()| {
                    let usage = area.usage_of_active(active.dir)?;
                    area.seal(active.dir).map(|()| usage)
                });
                if sealed.is_err() {
                    sealing.settle(false);
                }
                sealed.map(|usage| (sealing, usage))
            };
            let (sealing, usage) = self.pool.run(seal).await.map_err(keyed(&m.key, active.dir))?;
            let mine = (m.namespace.clone(), m.driver.clone(), m.name.clone());
            let Commit { authority, namespace, driver, name, key, labels } = m;
            let commit = move |tx: &mut cofferdam_metadata::Tx<'_>| {
                // The one that was synced, not another that has taken its key meanwhile.
                if snapshots::get(tx, &namespace, &driver, &key)?.dir != active.dir {
                    return Err(replaced(&key));
                }
                snapshots::commit(tx, &namespace, &driver, &key, name.clone(), &labels, usage).map(drop)
            };
            let committed = self.meta.write(&authority, commit).await;
            let (meta, dir) = (self.meta.clone(), active.dir);
            // An error may be about the answer alone: the record tells.
            let settle = move || {
                let (namespace, driver, name) = mine;
                let found = meta.read().and_then(|view| snapshots::find(&view, &namespace, &driver, &name));
                if let Ok(found) = found {
                    sealing.settle(found.is_some_and(|found| found.dir == dir));
                }
                Ok(())
            };
            if let Err(error) = self.pool.run(settle).await {
                tracing::warn!(dir, %error, "the next start tidies up a snapshot's directory");
            }
            return committed;
        }
        if active.kind != Kind::Active {
            return Err(Error::failed_precondition(
                "snapshot",
                &m.key,
                "is not active: only an active one can be committed",
            ));
        }
        Err(Error::already_exists("snapshot", &m.name, snapshots::TAKEN))
    }

    /// See [`Remove`].
    pub async fn remove(&self, m: Remove) -> Result<()> {
        self.depot(&m.driver)?;
        let Remove { authority, namespace, driver, key } = m;
        let removed = self.meta.write(&authority, move |tx| snapshots::delete(tx, &namespace, &driver, &key)).await?;
        self.discard(removed).await
    }

    /// See [`crate::messages::Discard`].
    pub async fn discard(&self, removed: Removed) -> Result<()> {
        if !removed.unreferenced {
            return Ok(());
        }
        let area = self.depot(&removed.snapshot.driver)?.area.clone();
        // What the sweep may make again goes when it has.
        self.settled_of(&area, removed.snapshot.dir).await;
        self.pool.run(move || area.discard(removed.snapshot.dir)).await
    }

    /// See [`Measure`].
    pub async fn measure(&self, m: Measure) -> Result<Usage> {
        let area = self.depot(&m.driver)?.area.clone();
        self.settled_of(&area, m.dir).await;
        self.pool.run(move || area.usage_of_active(m.dir)).await
    }

    /// See [`Limit`].
    pub async fn limit(&self, m: Limit) -> Result<()> {
        let area = self.depot(&m.driver)?.area.clone();
        self.settled_of(&area, m.dir).await;
        self.pool.run(move || area.limit(m.dir, m.bytes)).await
    }

    /// The turn to unpack a layer for a namespace; `None` if another has it.
    pub fn turn(&self, ns: &Namespace, driver: &str, chain: &Digest) -> Result<Option<Turn>> {
        let flight = self.depot(driver)?.flights.try_enter(&(Some(ns.clone()), chain.clone()));
        Ok(flight.map(|flight| Turn::new(chain.clone(), flight)))
    }

    /// See [`StageLayer`].
    pub async fn stage_layer(&self, m: StageLayer) -> Result<Staged> {
        let depot = self.depot(&m.driver)?;
        let turn = match m.alone {
            true => {
                let flight = depot.flights.enter(&(None, m.turn.chain.clone())).await;
                m.turn.and(flight)
            }
            false => m.turn,
        };
        // Only now: whoever was at it may have finished it.
        if layers::find(&self.meta.read()?, &m.driver, &turn.chain)?.is_some() {
            return Ok(Staged::Exists);
        }
        let area = depot.area.clone();
        let (dir, base) = match (m.parent, m.under) {
            _ if area.driver().detached() => (None, None),
            (None, _) => (None, None),
            (Some(_), Some(dir)) => (Some(dir), None),
            (Some(parent), None) => {
                let base = Base::of(&self.meta.read()?, &m.driver, parent)?;
                (Some(base.dir()), Some(base))
            }
        };
        self.pool.run(move || stage(&area, dir, turn).map(|stage| stage.made_of(base))).await.map(Staged::New)
    }

    /// See [`CommitLayers`].
    pub async fn commit_layers(&self, m: CommitLayers) -> Result<()> {
        let CommitLayers { authority, namespace, driver, layers, heard, also } = m;
        let area = self.depot(&driver)?.area.clone();
        let dirs: Vec<Option<u64>> = layers.iter().map(|layer| layer.stage.as_ref().map(Stage::dir)).collect();
        if let Some(layer) = layers.iter().find(|l| l.stage.as_ref().is_some_and(|s| *s.chain() != l.chain)) {
            return Err(Error::invalid("layer", &layer.chain, "was staged as another layer"));
        }
        let detached = area.driver().detached();
        let usages = if dirs.iter().any(Option::is_some) {
            // One sync for all of them, through the one of their witnesses that has listened longest: it hears of all that was
            // written into any.
            let stages = layers.iter().filter_map(|layer| layer.stage.as_ref());
            let witness = stages.map(Stage::witness).chain(heard).min_by_key(|witness| witness.since());
            let sync = move || witness.map_or(Ok(()), |witness| area::sync(&witness));
            let (area, dirs) = (area.clone(), dirs.clone());
            // What is sealed may share its size with what it was made of.
            let seal = move |dir| {
                let usage = area.usage(dir)?;
                area.seal(dir).map(|()| (dir, usage))
            };
            let measure = move || dirs.iter().map(|dir| dir.map(&seal).transpose()).collect();
            let (synced, usages) = tokio::join!(self.pool.run(sync), self.pool.run(measure));
            synced?;
            usages?
        } else {
            vec![None; dirs.len()]
        };
        let rows: Vec<_> = layers
            .iter()
            .zip(usages)
            .map(|(layer, usage)| {
                let record = usage.map(|(dir, usage): (u64, Usage)| Layer {
                    chain: layer.chain.clone(),
                    parent: layer.parent.clone(),
                    dir,
                    detached,
                    usage,
                    created: Default::default(),
                });
                let base = layer.stage.as_ref().and_then(Stage::base);
                (layer.chain.clone(), layer.labels.clone(), record.map(|record| (record, base)))
            })
            .collect();
        layers.iter().filter_map(|layer| layer.stage.as_ref()).for_each(|stage| stage.held().busy());
        let commit = move |tx: &mut cofferdam_metadata::Tx<'_>| {
            for (chain, labels, new) in &rows {
                show_layer(tx, &namespace, &driver, chain, labels, new.as_ref())?;
            }
            also(tx)
        };
        self.meta.write(&authority, commit).await?;
        // The stages know by themselves which of them a record names now: they look when they are dropped.
        let settle = move || {
            layers.iter().filter_map(|layer| layer.stage.as_ref()).for_each(|stage| stage.held().settle(true));
            Ok(())
        };
        if let Err(error) = self.pool.run(settle).await {
            tracing::warn!(%error, "the next start tidies up a layer's directory");
        }
        Ok(())
    }
}

/// What a driver says of a snapshot, which it knows by its directory alone, is said of its key.
pub fn keyed(key: &Name, dir: u64) -> impl Fn(Error) -> Error {
    let (key, dir) = (key.to_string(), dir.to_string());
    move |error| match error.kind == "snapshot" && (error.id.is_empty() || error.id == dir) {
        true => Error { id: key.clone(), ..error },
        false => error,
    }
}

/// Makes one layer visible in the namespace, the one below it being so.
fn show_layer(
    tx: &mut cofferdam_metadata::Tx<'_>,
    ns: &Namespace,
    driver: &str,
    chain: &Digest,
    labels: &Labels,
    new: Option<&(Layer, Option<Base>)>,
) -> Result<()> {
    let name = Name::new(chain.to_string())?;
    if snapshots::find(tx, ns, driver, &name)?.is_some() {
        return Ok(());
    }
    // Another namespace may have been faster; what it made is the same.
    let new = if layers::find(tx, driver, chain)?.is_some() { None } else { new };
    if let Some((_, Some(base))) = new {
        base.stands(tx, driver)?;
    }
    let new = new.map(|(new, _)| new);
    let parent = new.and_then(|new| new.parent.as_ref());
    match (new, parent) {
        // What lies below is a snapshot of the namespace's own, not the layer: so is what is put on it.
        (Some(new), Some(parent)) if layers::find(tx, driver, parent)?.is_none() => {
            let parent = Name::new(parent.to_string())?;
            let mut own = Snapshot::new(driver, name, Kind::Committed, Some(parent), new.dir);
            own.usage = new.usage;
            own.labels.clone_from(labels);
            snapshots::create(tx, ns, own).map(drop)
        }
        (Some(new), _) => {
            layers::create(tx, driver, new.clone())?;
            layers::link(tx, ns, driver, chain, labels).map(drop)
        }
        (None, _) => layers::link(tx, ns, driver, chain, labels).map(drop),
    }
}

fn stage(area: &Arc<Area>, base: Option<u64>, turn: Turn) -> Result<Stage> {
    // First: it may be a copy.
    let witness = area.witness()?;
    let held = area.make(false, base)?;
    let tree = area.tree(held.id())?;
    Ok(Stage::new(turn, held, tree, witness))
}

/// The directories of a snapshot's ancestors, the nearest first.
pub fn parents(read: &dyn Read, ns: &Namespace, driver: &str, parent: Option<&Name>) -> Result<Vec<u64>> {
    Ok(below(read, ns, driver, parent)?.iter().map(|snapshot| snapshot.dir).collect())
}

/// The ancestors of a snapshot, the nearest first.
fn below(read: &dyn Read, ns: &Namespace, driver: &str, parent: Option<&Name>) -> Result<Vec<Snapshot>> {
    let Some(key) = parent else { return Ok(Vec::new()) };
    let Some(parent) = snapshots::find(read, ns, driver, key)? else {
        return Err(Error::not_found("snapshot", key, "the parent snapshot does not exist"));
    };
    if parent.kind != Kind::Committed {
        return Err(Error::invalid("snapshot", key, "the parent snapshot is not committed: commit it first"));
    }
    let above = snapshots::ancestors(read, ns, &parent)?;
    Ok(std::iter::once(parent).chain(above).collect())
}

/// `data_loss` where a tree that is shown of these ancestors is gone: which, and what to do.
fn there(read: &dyn Read, area: &Area, ns: &Namespace, parent: Option<&Name>, dirs: &[u64]) -> Result<()> {
    // Where each is a copy of what is below it, that may go.
    let shown = if area.driver().detached() { dirs.len() } else { dirs.len().min(1) };
    let Some(lost) = dirs[..shown].iter().find(|dir| area.is_gone(**dir)) else { return Ok(()) };
    let driver = area.driver().name();
    let all = below(read, ns, driver, parent)?;
    let key = all.iter().find(|one| one.dir == *lost).map_or("", |one| one.key.as_str());
    let why = format!(
        "its tree (driver {driver}, namespace {ns}) is gone from the disk: `coffer system check --repair`, or pulling or \
         importing the image again, unpacks an image's layer anew; remove any other, and make it again"
    );
    Err(Error::data_loss("snapshot", key, why))
}

/// What a snapshot shows, read-only and mounted nowhere.
fn shown(read: &dyn Read, area: &Area, ns: &Namespace, record: &Snapshot) -> Result<OwnedFd> {
    if record.kind == Kind::Active && area.driver().attaches() {
        let why = "is active, and no image yet: compare it with what it lies on, or commit it first";
        return Err(Error::failed_precondition("snapshot", &record.key, why));
    }
    let parents = parents(read, ns, &record.driver, record.parent.as_ref())?;
    there(read, area, ns, record.parent.as_ref(), &parents)?;
    let own = record.kind != Kind::View || parents.is_empty();
    let dirs: Vec<u64> = own.then_some(record.dir).into_iter().chain(parents).collect();
    whole(area, &dirs)?.ok_or_else(|| Error::internal("snapshot", &record.key, "has no tree"))
}

/// What these directories make together, read-only and mounted nowhere.
fn whole(area: &Area, dirs: &[u64]) -> Result<Option<OwnedFd>> {
    let mounts = if dirs.is_empty() { Vec::new() } else { area.mounts(Access::Read, None, dirs) };
    mounts.first().map(cofferdam_sys::mount::detached).transpose()
}

/// What all records of a driver say about its directories. One that is counted, and that no snapshot names which can be read,
/// stays as it is.
fn known(view: &View, driver: &str) -> Result<BTreeMap<u64, Known>> {
    let mut known: BTreeMap<_, _> = snapshots::dirs(view, driver)?.into_iter().map(|dir| (dir, Known::Kept)).collect();
    snapshots::visit(view, driver, &mut |ns, record| {
        let parent = record.parent.as_ref().map(|key| snapshots::find(view, ns, driver, key));
        let what = match (record.kind, parent.map(readable).transpose()?) {
            (Kind::Committed, _) => Known::Content,
            // It can't be made again of what nobody can read.
            (_, Some(None)) => Known::Kept,
            (kind, parent) => match (kind, parent.flatten().flatten().map(|parent| parent.dir)) {
                (Kind::View, Some(_)) => Known::Nothing,
                (_, parent) => Known::Scratch(parent),
            },
        };
        known.insert(record.dir, what);
        Ok(())
    })?;
    Ok(known)
}
