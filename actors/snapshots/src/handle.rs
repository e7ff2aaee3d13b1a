//! The handle that the other subsystems hold.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use crate::{
    actor::SnapshotsActor,
    core::{Core, keyed},
    drivers::Settings,
    messages::{
        ChainLayer, Check, Commit, CommitLayers, Discard, Limit, Measure, Prepare, Remove, ReplaceLayer, Reserve,
        StageAgain, StageLayer,
    },
    same::{self, Pace},
    stage::{Changes, Reserved, Stage, Staged, Turn},
};
use cofferdam_kernel::{Kernel, Placement, Pool, Slot, SlotConfig};
use cofferdam_metadata::{
    Metadata,
    records::{
        layers,
        snapshots::{self, Kind, Removed, Snapshot, Usage},
    },
};
use cofferdam_sys::fd::Witness;
use cofferdam_types::{Authority, Code, Digest, Error, Finding, Labels, Mount, Name, Namespace, Result};

/// Threads for copies, syncs and scans; and how many such jobs may wait.
const THREADS: usize = 4;
const QUEUE: usize = 256;
/// A layer that another unpacks may be long in coming: its waiters count as messages under way.
const BOUND: usize = 1024;

/// Snapshots of every driver. Cheap to clone.
#[derive(Clone)]
pub struct Snapshots {
    core: Arc<Core>,
    meta: Metadata,
    slot: Slot<SnapshotsActor>,
}

impl Snapshots {
    /// Opens the drivers' directories below `root` and hosts the actor, whose every start sweeps them. Only what is
    /// new can be made before that is done.
    pub fn start(
        kernel: &Kernel,
        placement: Placement,
        meta: Metadata,
        root: &Path,
        settings: Settings,
    ) -> Result<Snapshots> {
        let pool = Pool::new("snapshots", THREADS, QUEUE);
        let core = Arc::new(Core::open(meta.clone(), pool, root, settings)?);
        let config =
            SlotConfig { bound: BOUND, heartbeat: Duration::from_secs(30), ..SlotConfig::new("snapshots", placement) };
        let theirs = core.clone();
        // From now on whoever wants what was there waits, though the actor may be up a little later.
        let first = Mutex::new(Some(core.begin_sweep()));
        let slot = kernel.spawn(config, move || {
            let first = first.lock().unwrap_or_else(PoisonError::into_inner).take();
            SnapshotsActor::new(theirs.clone(), first.unwrap_or_else(|| theirs.begin_sweep()))
        });
        Ok(Snapshots { core, meta, slot })
    }

    #[cfg(test)]
    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// At an orderly end: takes down what drivers have mounted, although a thread may still be at something.
    pub fn close(&self) {
        self.core.close();
    }

    /// The names of the drivers, the default first.
    pub fn drivers(&self) -> Vec<&'static str> {
        self.core.drivers()
    }

    /// Why a driver of this build can't work here; `None` for one that can, or is none.
    pub fn unfit(&self, driver: &str) -> Option<Error> {
        self.core.unfit(driver).cloned()
    }

    /// Compares records and directories of every driver, both ways. With `repair` what no record names is removed, and a
    /// committed snapshot whose tree is gone, and on which nothing lies, is taken off the records: it can be made again.
    pub async fn check(&self, repair: bool) -> Result<Vec<Finding>> {
        self.slot.call(Check(repair)).await
    }

    /// Whether layers of this driver are extracted without their parents.
    pub fn detached(&self, driver: &str) -> Result<bool> {
        Ok(self.core.depot(driver)?.area.driver().detached())
    }

    /// Makes the directory of a snapshot that the caller records in a commit of its own; see [`Reserved`].
    pub async fn reserve(
        &self,
        ns: &Namespace,
        driver: &str,
        key: &Name,
        parent: Option<&Name>,
        readonly: bool,
    ) -> Result<Reserved> {
        let kind = if readonly { Kind::View } else { Kind::Active };
        self.slot.call(reserve(ns, driver, key, parent, kind, Labels::new())).await
    }

    /// Makes an active snapshot.
    pub async fn prepare(
        &self,
        auth: &Authority,
        ns: &Namespace,
        driver: &str,
        key: &Name,
        parent: Option<&Name>,
        labels: Labels,
    ) -> Result<Vec<Mount>> {
        let reserve = reserve(ns, driver, key, parent, Kind::Active, labels);
        self.slot.call(Prepare { authority: auth.clone(), reserve }).await
    }

    /// Makes a read-only one.
    pub async fn view(
        &self,
        auth: &Authority,
        ns: &Namespace,
        driver: &str,
        key: &Name,
        parent: Option<&Name>,
        labels: Labels,
    ) -> Result<Vec<Mount>> {
        let reserve = reserve(ns, driver, key, parent, Kind::View, labels);
        self.slot.call(Prepare { authority: auth.clone(), reserve }).await
    }

    /// Waits until a snapshot that may be older than the daemon is as its record says; for who is about to use its mounts.
    pub async fn ready(&self, ns: &Namespace, driver: &str, key: &Name) -> Result<()> {
        self.core.ready(ns, driver, key).await
    }

    /// The mounts of an active snapshot or a view; they stay valid until it is removed.
    pub fn mounts(&self, ns: &Namespace, driver: &str, key: &Name) -> Result<Vec<Mount>> {
        self.core.mounts(ns, driver, key)
    }

    /// The same for a client, who learns paths of the host by it.
    pub fn mounts_for(&self, auth: &Authority, ns: &Namespace, driver: &str, key: &Name) -> Result<Vec<Mount>> {
        if !auth.ceiling.host {
            let why = "is mounted from directories of the host, which needs the host right";
            return Err(Error::denied("snapshot", key, why));
        }
        self.mounts(ns, driver, key)
    }

    /// The mount of an active snapshot or a view, attached nowhere, for a client: no device can be used in it and no program
    /// gets another's rights by its mode, wherever it is attached. Blocks.
    pub fn mount(&self, ns: &Namespace, driver: &str, key: &Name) -> Result<OwnedFd> {
        let mounts = self.mounts(ns, driver, key)?;
        let [mount] = &mounts[..] else {
            return Err(Error::internal("snapshot", key, "is shown by more than one mount"));
        };
        let fd = cofferdam_sys::mount::detached(mount)?;
        let safe = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
        cofferdam_sys::mount::set_attributes(&fd, safe, 0, 0, true)
            .and_then(|()| cofferdam_sys::handover::locked(fd))
            .map_err(|e| Error::io("snapshot", key, "make a mount for a client", &e))
    }

    /// What a snapshot holds, to be compared with its parent, or with another one.
    pub fn changes(&self, ns: &Namespace, driver: &str, key: &Name, base: Option<&Name>) -> Result<Changes> {
        self.core.changes(ns, driver, key, base)
    }

    /// Turns an active snapshot into a committed one; its key is gone, its content durable.
    pub async fn commit(
        &self,
        auth: &Authority,
        ns: &Namespace,
        driver: &str,
        name: &Name,
        key: &Name,
        labels: Labels,
    ) -> Result<()> {
        let (authority, namespace, driver) = (auth.clone(), ns.clone(), driver.to_owned());
        self.slot.call(Commit { authority, namespace, driver, name: name.clone(), key: key.clone(), labels }).await
    }

    /// Removes a snapshot that has no children.
    pub async fn remove(&self, auth: &Authority, ns: &Namespace, driver: &str, key: &Name) -> Result<()> {
        let (authority, namespace, driver) = (auth.clone(), ns.clone(), driver.to_owned());
        self.slot.call(Remove { authority, namespace, driver, key: key.clone() }).await
    }

    /// Throws away the directory of a snapshot that the caller removed (`records::snapshots::delete`) in a commit of
    /// its own. Until this is called it stays, at the latest to the next start.
    pub async fn discard(&self, removed: Removed) -> Result<()> {
        self.slot.call(Discard(removed)).await
    }

    /// The record of a snapshot.
    pub fn stat(&self, ns: &Namespace, driver: &str, key: &Name) -> Result<Snapshot> {
        self.core.depot(driver)?;
        snapshots::get(&self.meta.read()?, ns, driver, key)
    }

    /// A page of them, by key.
    pub fn list(&self, ns: &Namespace, driver: &str, after: Option<&str>, max: usize) -> Result<Vec<Snapshot>> {
        self.core.depot(driver)?;
        snapshots::list(&self.meta.read()?, ns, driver, after, max)
    }

    /// Replaces the labels, or those that `mask` names.
    pub async fn update(
        &self,
        auth: &Authority,
        ns: &Namespace,
        driver: &str,
        key: &Name,
        labels: Labels,
        mask: Vec<String>,
    ) -> Result<Snapshot> {
        self.core.depot(driver)?;
        let (ns, driver, key) = (ns.clone(), driver.to_owned(), key.clone());
        self.meta.write(auth, move |tx| snapshots::update(tx, &ns, &driver, &key, &labels, &mask)).await
    }

    /// What a snapshot takes up by itself: of an active one now, of a committed one when it was committed, of a view
    /// nothing.
    pub async fn usage(&self, ns: &Namespace, driver: &str, key: &Name) -> Result<Usage> {
        let record = self.stat(ns, driver, key)?;
        match record.kind {
            Kind::Active => self.slot.call(Measure { driver: record.driver, dir: record.dir }).await,
            Kind::Committed => Ok(record.usage),
            Kind::View => Ok(Usage::default()),
        }
    }

    /// Bounds what may be written into an active snapshot, besides what it lies on; 0 is no bound.
    pub async fn limit(&self, auth: &Authority, ns: &Namespace, driver: &str, key: &Name, bytes: u64) -> Result<()> {
        let record = self.stat(ns, driver, key)?;
        // Z3: what was made through a grant stays within it, whoever sets the limit.
        if let Some(most) = record.ceiling.intersect(&auth.ceiling).storage.filter(|most| bytes == 0 || bytes > *most) {
            let why = format!("may have at most {most} bytes: the grant lets it that it was made through");
            return Err(Error::denied("snapshot", key, why));
        }
        if record.kind != Kind::Active {
            let why = "is not active: nothing can be written into it";
            return Err(Error::failed_precondition("snapshot", key, why));
        }
        let limited = self.slot.call(Limit { driver: record.driver, dir: record.dir, bytes }).await;
        limited.map_err(keyed(key, record.dir))
    }

    /// The same of one that isn't recorded yet.
    pub async fn limit_reserved(&self, reserved: &Reserved, bytes: u64) -> Result<()> {
        let Snapshot { driver, dir, key, .. } = &reserved.record;
        self.slot.call(Limit { driver: driver.clone(), dir: *dir, bytes }).await.map_err(keyed(key, *dir))
    }

    /// Whether this daemon has unpacked a layer, for whatever namespace.
    pub fn has_layer(&self, driver: &str, chain: &Digest) -> Result<bool> {
        Ok(layers::find(&self.meta.read()?, driver, chain)?.is_some())
    }

    /// The tree of a layer that is unpacked; what keeps it from being seen is put right, where it is no more than that. Blocks.
    pub fn layer_tree(&self, driver: &str, chain: &Digest) -> Result<OwnedFd> {
        let layer = layers::get(&self.meta.read()?, driver, chain)?;
        self.core.depot(driver)?.area.shown(layer.dir)
    }

    /// The turn of who has all of a layer and stages it `alone`: the namespace's, or nobody's if another has that, who may wait for
    /// a network.
    pub fn turn(&self, ns: &Namespace, driver: &str, chain: &Digest) -> Result<Turn> {
        Ok(self.try_turn(ns, driver, chain)?.unwrap_or_else(|| Turn::nobodys(chain.clone())))
    }

    /// The turn to unpack a layer for a namespace, if nobody there has it. Who is refused one tries no layer above.
    pub fn try_turn(&self, ns: &Namespace, driver: &str, chain: &Digest) -> Result<Option<Turn>> {
        self.core.turn(ns, driver, chain)
    }

    /// Makes the directory of a layer that the daemon unpacks, unless the layer is there. `under`: the parent's stage,
    /// if the parent is staged by the same caller. `alone`: waits while another unpacks it so, and others then wait for this; not
    /// for a layer that arrives over a network. A chain is staged from the lowest layer up: so nobody waits in a circle.
    pub async fn stage_layer(
        &self,
        driver: &str,
        turn: Turn,
        parent: Option<&Digest>,
        under: Option<&Stage>,
        alone: bool,
    ) -> Result<Staged> {
        let (driver, parent, under) = (driver.to_owned(), parent.cloned(), under.map(Stage::dir));
        self.slot.call(StageLayer { driver, turn, parent, under, alone }).await
    }

    /// Makes the directory of a layer that is there once more, to be filled with what should be in it. Nobody waits for it.
    pub async fn stage_again(&self, driver: &str, chain: &Digest, parent: Option<&Digest>) -> Result<Stage> {
        let (driver, chain, parent) = (driver.to_owned(), chain.clone(), parent.cloned());
        self.slot.call(StageAgain { driver, chain, parent }).await
    }

    /// The first place at which the tree in a directory of the same driver isn't what a stage is, and what is wrong there.
    /// Blocks.
    pub fn difference(&self, stage: &Stage, dir: u64, pace: Pace<'_>) -> Result<Option<String>> {
        same::difference(stage.tree(), stage.held().area().tree(dir)?.as_fd(), pace)
    }

    /// Whether what a stage was copied from is still the tree of its layer.
    pub fn stands(&self, stage: &Stage) -> Result<bool> {
        let view = self.meta.read()?;
        let driver = stage.held().area().driver().name();
        match stage.base().map_or(Ok(()), |base| base.stands(&view, driver)) {
            Err(error) if error.code == Code::Unavailable => Ok(false),
            other => other.map(|()| true),
        }
    }

    /// The bytes that can still be written where a driver has its directories.
    pub fn free(&self, driver: &str) -> Result<u64> {
        self.core.depot(driver)?.area.free()
    }

    /// Puts a stage that is filled in the place of its layer's tree, which is damaged, or `lost`. What lies on that one and
    /// isn't committed keeps it, if its mounts show it. `unavailable`: the layer that the stage was copied from was replaced
    /// meanwhile. `failed_precondition`: the layer has another tree by now than `old`.
    pub async fn replace_layer(&self, driver: &str, stage: Stage, old: u64, lost: bool) -> Result<()> {
        self.slot.call(ReplaceLayer { driver: driver.to_owned(), stage, old, lost }).await
    }

    /// Makes a whole chain visible in a namespace, the lowest layer first: new ones from their stages, others by a link
    /// to what is there. One sync, one commit, in which `also` may write more. That the namespace holds the blobs of
    /// what is linked is the caller's to see to. Where there is a new one the sync is for what was `heard` of too. A snapshot that the namespace has under one of the names stays; what is
    /// new above one that is not the layer itself becomes the namespace's own as well.
    pub async fn commit_layers(
        &self,
        auth: &Authority,
        ns: &Namespace,
        driver: &str,
        layers: Vec<ChainLayer>,
        heard: Option<Arc<Witness>>,
        also: impl Fn(&mut cofferdam_metadata::Tx<'_>) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let (authority, namespace, driver) = (auth.clone(), ns.clone(), driver.to_owned());
        self.slot.call(CommitLayers { authority, namespace, driver, layers, heard, also: Box::new(also) }).await
    }
}

fn reserve(ns: &Namespace, driver: &str, key: &Name, parent: Option<&Name>, kind: Kind, labels: Labels) -> Reserve {
    Reserve {
        namespace: ns.clone(),
        driver: driver.to_owned(),
        key: key.clone(),
        parent: parent.cloned(),
        kind,
        labels,
    }
}
