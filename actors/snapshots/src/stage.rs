//! What is handed out before its record is committed: a snapshot's directory, a layer's.

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use cofferdam_metadata::{
    Read, Tx,
    records::{
        layers,
        snapshots::{self, Snapshot},
    },
};
use cofferdam_sys::fd::Witness;
use cofferdam_types::{Digest, Error, Mount, Namespace, Result};

use crate::{Usage, area::Held, core::parents, flights::Flight};

/// A snapshot whose directory is there and whose record is the caller's to commit, in a transaction of its own:
/// [`Reserved::create`].
///
/// When the last clone is dropped, the directory goes to the trash unless a record refers to it. A caller that can be
/// dropped while its transaction is under way moves a clone into the transaction's function, so that the question is
/// only asked when the answer is known.
#[derive(Clone)]
pub struct Reserved {
    /// What to record.
    pub record: Snapshot,
    /// How to mount it, once it is recorded.
    pub mounts: Vec<Mount>,
    /// The directories that the mounts are made of, and how many layers had been replaced before it was looked for them.
    below: Arc<Vec<u64>>,
    swaps: u64,
    held: Arc<Held>,
}

impl Reserved {
    pub(crate) fn new(record: Snapshot, mounts: Vec<Mount>, below: Vec<u64>, swaps: u64, held: Held) -> Reserved {
        Reserved { record, mounts, below: Arc::new(below), swaps, held: Arc::new(held) }
    }

    /// Records it. What it lies on is what its mounts are made of: `unavailable` where a layer was replaced meanwhile.
    pub fn create(&self, tx: &mut Tx<'_>, ns: &Namespace) -> Result<Snapshot> {
        let Snapshot { driver, key, parent, .. } = &self.record;
        if self.held.area().swapped(self.swaps) && parents(tx, ns, driver, parent.as_ref())? != *self.below {
            let why = "a layer that it lies on was replaced just now, since it was damaged: try again";
            return Err(Error::unavailable("snapshot", key, why));
        }
        snapshots::create(tx, ns, self.record.clone())
    }

    /// It is recorded. (Dropping says the same, and looks.)
    pub fn done(self) -> Vec<Mount> {
        self.held.keep();
        self.mounts
    }
}

/// What a snapshot holds, and what that is to be compared with.
pub struct Changes {
    /// What it is compared with, as one tree; it is mounted nowhere.
    pub lower: Option<OwnedFd>,
    /// Its own tree.
    pub upper: OwnedFd,
    /// Whether that holds the changes alone, as overlayfs keeps them; otherwise it holds everything.
    pub overlay: bool,
}

/// The answer to a request for a layer's directory.
pub enum Staged {
    /// The layer is there already, unpacked by this daemon.
    Exists,
    /// It is the caller's to fill.
    New(Stage),
}

/// The turn to unpack a layer, which only one has at a time. Given up when the last clone is dropped.
#[derive(Clone)]
pub struct Turn {
    pub(crate) chain: Digest,
    flights: Vec<Arc<Flight>>,
}

impl Turn {
    pub(crate) fn new(chain: Digest, flight: Flight) -> Turn {
        Turn { chain, flights: vec![Arc::new(flight)] }
    }

    /// Of who keeps nobody from unpacking it.
    pub(crate) fn nobodys(chain: Digest) -> Turn {
        Turn { chain, flights: Vec::new() }
    }

    pub(crate) fn and(mut self, flight: Flight) -> Turn {
        self.flights.push(Arc::new(flight));
        self
    }
}

/// The layer that a stage was copied from, and the directory that this had then.
#[derive(Clone)]
pub(crate) struct Base {
    chain: Digest,
    dir: u64,
}

impl Base {
    pub(crate) fn of(read: &dyn Read, driver: &str, chain: Digest) -> Result<Base> {
        let dir = layers::get(read, driver, &chain)?.dir;
        Ok(Base { chain, dir })
    }

    pub(crate) fn dir(&self) -> u64 {
        self.dir
    }

    /// `unavailable` where the layer has another tree by now: the copy may be of a damaged one, or of one that was going. One
    /// whose record has gone was removed as it was.
    pub(crate) fn stands(&self, read: &dyn Read, driver: &str) -> Result<()> {
        if layers::find(read, driver, &self.chain)?.is_none_or(|layer| layer.dir == self.dir) {
            return Ok(());
        }
        let why = "was replaced just now, since it was damaged, and another was being made of it: try again";
        Err(Error::unavailable("layer", &self.chain, why))
    }
}

/// The directory of a layer that is being unpacked, and the turn to do so. Dropped, the directory goes to the trash,
/// unless a record refers to it.
pub struct Stage {
    turn: Turn,
    held: Held,
    tree: OwnedFd,
    witness: Arc<Witness>,
    /// What it was copied from, but for what the same caller stages.
    base: Option<Base>,
}

impl Stage {
    /// `witness` has listened since before the directory was made.
    pub(crate) fn new(turn: Turn, held: Held, tree: OwnedFd, witness: Witness) -> Stage {
        Stage { turn, held, tree, witness: Arc::new(witness), base: None }
    }

    /// Who hears what becomes of all that is written into it.
    pub(crate) fn witness(&self) -> Arc<Witness> {
        self.witness.clone()
    }

    pub(crate) fn made_of(self, base: Option<Base>) -> Stage {
        Stage { base, ..self }
    }

    pub(crate) fn base(&self) -> Option<Base> {
        self.base.clone()
    }

    /// Keeps the turn for another try, should the stage be lost to a failure.
    pub fn turn(&self) -> Turn {
        self.turn.clone()
    }

    /// The chain id of the layer.
    pub fn chain(&self) -> &Digest {
        &self.turn.chain
    }

    /// The tree to extract into.
    pub fn tree(&self) -> BorrowedFd<'_> {
        self.tree.as_fd()
    }

    /// Whether the tree is empty and stays without its parent, whiteouts in the form of overlayfs; otherwise it holds
    /// the parent's content and whiteouts delete.
    pub fn detached(&self) -> bool {
        self.held.area().driver().detached()
    }

    /// Begins anew with an empty tree that is seen on top of `parents` (roots of trees, nearest first): for the rare
    /// layer that can't be extracted without them. The mount is gone with its descriptor; what was written through it
    /// is the tree, in the form that the driver's mounts read. Only for a driver that is detached.
    pub fn on_parents(&mut self, parents: &[BorrowedFd<'_>]) -> Result<OwnedFd> {
        let path = |fd: BorrowedFd<'_>| format!("/proc/self/fd/{}", fd.as_raw_fd());
        let area = self.held.area();
        let work = area.renew(self.held.id())?;
        self.tree = area.tree(self.held.id())?;
        let lower: Vec<String> = parents.iter().map(|parent| path(*parent)).collect();
        // As the driver would mount it, with paths that hold for this process.
        let options = vec![
            format!("workdir={}", path(work.as_fd())),
            format!("upperdir={}", path(self.tree.as_fd())),
            format!("lowerdir={}", lower.join(":")),
            "index=off".into(),
            "metacopy=off".into(),
            "redirect_dir=off".into(),
        ];
        cofferdam_sys::mount::detached(&Mount { kind: "overlay".into(), source: "overlay".into(), options })
    }

    pub(crate) fn held(&self) -> &Held {
        &self.held
    }

    /// The number of the directory.
    pub fn dir(&self) -> u64 {
        self.held.id()
    }

    /// The device that it lies on, as stat(2) names it.
    pub fn device(&self) -> Result<u64> {
        self.held.area().device()
    }

    /// The space that it takes now.
    pub fn usage(&self) -> Result<Usage> {
        self.held.area().usage(self.held.id())
    }
}
