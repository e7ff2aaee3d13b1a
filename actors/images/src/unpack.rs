//! The job that turns an image's layers into snapshots.
//!
//! Layers are extracted side by side, each into a stage of its own; then completed in order, synced once, and made
//! visible in one commit with the label that keeps them from being collected. A job that fails or is dropped anywhere
//! before leaves nothing.
//!
//! The job runs where it is called from (it only waits for actors) and may be split in two: [`Images::begin_unpack`]
//! as soon as manifest and config are there, [`Unpack::feed`] while the layers arrive, [`Unpack::finish`] when all
//! blobs are in the content store, or in their places there. Whatever was not fed is taken from there. Blobs that are
//! only placed come on record in the same commit.

use std::sync::Arc;

use cofferdam_content::Placed;
use cofferdam_diff::{Diff, Extracted, LayerFeed, Pending, Rung};
use cofferdam_metadata::{
    Pin,
    records::{
        Resource, content,
        snapshots::{self, Kind},
    },
};
use cofferdam_snapshots::{ChainLayer, Snapshots, Stage, Staged, Turn};
use cofferdam_types::{Authority, Code, Descriptor, Digest, Error, Labels, Name, Namespace, Result};
use futures::future::try_join_all;

use crate::{Image, Images, document::gc_snapshot_label, handle::put};

/// The label of a layer's snapshot that names its diff id.
const UNCOMPRESSED: &str = "containerd.io/uncompressed";

/// How often a chain is put together again because a layer that was there is gone.
const TRIES: usize = 3;

/// What becomes of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It is being extracted.
    Begun,
    /// Its tree is there.
    Over,
}

/// Hears of each layer, by its blob.
pub type Told = Arc<dyn Fn(&Digest, Step) + Send + Sync>;

/// An image whose layers are on their way into snapshots.
pub struct Unpack {
    images: Images,
    authority: Authority,
    ns: Namespace,
    driver: String,
    /// The config's blob, which gets the label.
    config: Digest,
    layers: Vec<Layer>,
    /// The largest zstd window that was allowed for its layers; 0: the usual.
    window: u64,
    /// Hears how far it is.
    told: Option<Told>,
    /// Who works may not have all of the namespace's images: that it has a layer says nothing.
    chooses: bool,
    /// It was unpacked before this job began.
    done: bool,
    /// The records that appear with it.
    named: Vec<Image>,
    /// Until the commit nothing may refer to its blobs and layers.
    _pin: Pin,
}

struct Layer {
    blob: Descriptor,
    diff_id: Digest,
    chain: Digest,
    parent: Option<Digest>,
    state: State,
}

enum State {
    /// Nothing is known, or another is at it.
    Open,
    /// It is our turn.
    Turn(Turn),
    /// The tree is there.
    There,
    Staged(Box<Stage>),
    Fed(Pending, Turn),
    Extracted(Box<Extracted>),
}

impl State {
    fn take(&mut self) -> State {
        std::mem::replace(self, State::Open)
    }
}

impl Unpack {
    pub(crate) fn begin(
        images: &Images,
        authority: &Authority,
        ns: &Namespace,
        driver: &str,
        config: &Digest,
        layers: Vec<(Descriptor, Digest, Digest)>,
        pin: Pin,
    ) -> Result<Unpack> {
        let mut parent = None;
        let layers = layers.into_iter().map(|(blob, diff_id, chain)| {
            let layer = Layer { blob, diff_id, parent: parent.clone(), chain, state: State::Open };
            parent = Some(layer.chain.clone());
            layer
        });
        let mut unpack = Unpack {
            images: images.clone(),
            authority: authority.clone(),
            ns: ns.clone(),
            driver: driver.to_owned(),
            config: config.clone(),
            layers: layers.collect(),
            window: 0,
            told: None,
            chooses: !authority.ceiling.images.is_all(),
            done: false,
            named: Vec::new(),
            _pin: pin,
        };
        let mut layers = unpack.layers.iter();
        unpack.done = images.is_unpacked(ns, driver, unpack.top())?
            && (!unpack.chooses || layers.all(|layer| images.diff.knows(&layer.blob.digest, &layer.diff_id)));
        Ok(unpack)
    }

    /// Keeps what it needs, there or not, from being collected before its commit refers to it.
    pub(crate) async fn pin(
        images: &Images,
        ns: &Namespace,
        driver: &str,
        config: &Digest,
        layers: &[(Descriptor, Digest, Digest)],
    ) -> Result<Pin> {
        images.snapshots.detached(driver)?;
        let mut resources = vec![Resource::Content(config.clone())];
        for (blob, _, chain) in layers {
            resources.push(Resource::Content(blob.digest.clone()));
            resources.push(Resource::Snapshot { driver: driver.to_owned(), key: Name::new(chain.to_string())? });
        }
        images.meta.pin(ns, resources).await
    }

    /// Makes ready to be fed: stages every layer that nobody is at, up to the first that somebody is at.
    pub(crate) async fn open(mut self) -> Result<Unpack> {
        let snapshots = &self.images.snapshots;
        if self.done || !snapshots.detached(&self.driver)? {
            return Ok(self);
        }
        for layer in &mut self.layers {
            let Some(turn) = snapshots.try_turn(&self.ns, &self.driver, &layer.chain)? else { break };
            let parent = layer.parent.as_ref();
            layer.state = match snapshots.stage_layer(&self.driver, turn, parent, None, false).await? {
                Staged::Exists => State::There,
                Staged::New(stage) => State::Staged(Box::new(stage)),
            };
        }
        Ok(self)
    }

    /// Allows its layers a zstd window of so many bytes; 0: the usual.
    pub fn allow_window(&mut self, bytes: u64) {
        self.window = bytes;
    }

    /// Has somebody told how far it is.
    pub(crate) fn tell(mut self, told: Option<Told>) -> Unpack {
        self.told = told;
        self
    }

    /// The snapshot that will hold all of the image; none for an image without layers.
    pub fn top(&self) -> Option<&Digest> {
        self.layers.last().map(|layer| &layer.chain)
    }

    /// Where to write the bytes of this blob while they arrive, from its first on. `None`: they are not wanted now (the
    /// layer is there, another unpacks it, or the driver needs its parent first).
    pub fn feed(&mut self, blob: &Digest) -> Option<LayerFeed> {
        let wanted = |layer: &&mut Layer| layer.blob.digest == *blob && matches!(layer.state, State::Staged(_));
        let layer = self.layers.iter_mut().find(wanted)?;
        let State::Staged(stage) = layer.state.take() else { return None };
        let turn = stage.turn();
        let (feed, pending) = self.images.diff.feed(&layer.blob, &layer.diff_id, *stage, self.window);
        layer.state = State::Fed(pending, turn);
        Some(feed)
    }

    /// Gives it names that appear in the very commit that makes its layers visible, created or replaced as by
    /// [`Images::put`].
    pub fn name(&mut self, names: &[Name], target: &Descriptor) {
        self.named.extend(names.iter().map(|name| Image::new(name.clone(), target.clone())));
    }

    /// Completes it: every layer's blob and the config must be in the namespace by now, or among those that are `placed`
    /// for it. Gives the name of the topmost snapshot.
    pub async fn finish(mut self, placed: Option<&Placed>) -> Result<Option<Digest>> {
        self.hold_blobs()?;
        // What is on record already, and will be lain on, may have suffered meanwhile.
        let layers = self.layers.iter().map(|layer| (&layer.blob, &layer.diff_id, &layer.chain));
        self.images.mend_chain(&self.ns, &self.driver, layers).await?;
        let mut tries = 1;
        loop {
            match self.attempt(placed).await {
                // A layer that was there was removed before we could link it; or replaced after another was copied from it.
                Err(e)
                    if matches!(e.code, Code::NotFound | Code::Unavailable) && e.kind == "layer" && tries < TRIES =>
                {
                    tries += 1;
                    self.layers.iter_mut().for_each(|layer| layer.state = State::Open);
                }
                Err(e) => return Err(e),
                Ok(()) => return Ok(self.top().cloned()),
            }
        }
    }

    /// A namespace gets at a tree only by the blobs: M8 and the confinement of content in one check.
    fn hold_blobs(&self) -> Result<()> {
        let content = &self.images.content;
        let mut blobs = self.layers.iter().map(|layer| &layer.blob.digest).chain([&self.config]);
        blobs.try_for_each(|digest| {
            content.job_holds(&self.ns, digest).map_err(|e| e.context("it is needed to unpack the image"))
        })
    }

    async fn attempt(&mut self, placed: Option<&Placed>) -> Result<()> {
        if !self.done {
            self.take_turns()?;
            if self.images.snapshots.detached(&self.driver)? {
                self.extract_side_by_side().await?;
            } else {
                self.extract_in_order().await?;
            }
            self.verify_linked().await?;
        }
        let rungs = self.rungs()?;
        let stages = match rungs.is_empty() {
            true => self.layers.iter().map(|_| None).collect(),
            false => self.images.diff.settle(&self.ns, rungs).await?,
        };
        self.commit(stages, placed).await
    }

    /// All is here: what another feeds meanwhile may come slowly, and is waited for by nobody.
    fn take_turns(&mut self) -> Result<()> {
        for layer in &mut self.layers {
            if matches!(layer.state, State::Open) {
                let turn = self.images.snapshots.turn(&self.ns, &self.driver, &layer.chain)?;
                layer.state = State::Turn(turn);
            }
        }
        Ok(())
    }

    async fn extract_side_by_side(&mut self) -> Result<()> {
        let (images, ns, driver, window) = (&self.images, &self.ns, &self.driver, self.window);
        let told = self.told.as_ref();
        for layer in &mut self.layers {
            layer.stage(images, driver, None).await?;
        }
        let all = self.layers.iter_mut().map(|layer| layer.extract(images, ns, driver, window, told));
        try_join_all(all).await.map(drop)
    }

    async fn extract_in_order(&mut self) -> Result<()> {
        for i in 0..self.layers.len() {
            let (below, rest) = self.layers.split_at_mut(i);
            let Some(layer) = rest.first_mut() else { break };
            let under = match below.last().map(|layer| &layer.state) {
                Some(State::Extracted(extracted)) => Some(&extracted.stage),
                _ => None,
            };
            layer.stage(&self.images, &self.driver, under).await?;
            layer.extract(&self.images, &self.ns, &self.driver, self.window, self.told.as_ref()).await?;
        }
        Ok(())
    }

    /// What is there is linked only if this namespace's own blob is that layer: a config alone may claim anything. Through a grant
    /// that chooses images it is so with what is linked already, for another image.
    async fn verify_linked(&self) -> Result<()> {
        let view = self.images.meta.read()?;
        let mut claims = Vec::new();
        for layer in self.layers.iter().filter(|layer| matches!(layer.state, State::There)) {
            if self.chooses || snapshots::find(&view, &self.ns, &self.driver, &layer.chain.to_string())?.is_none() {
                claims.push(self.images.diff.verify(&self.ns, &layer.blob, &layer.diff_id));
            }
        }
        drop(view);
        try_join_all(claims).await.map(drop)
    }

    fn rungs(&mut self) -> Result<Vec<Rung>> {
        if self.done || !self.layers.iter().any(|layer| matches!(layer.state, State::Extracted(_))) {
            return Ok(Vec::new());
        }
        let snapshots: &Snapshots = &self.images.snapshots;
        let rung = |layer: &mut Layer| match layer.state.take() {
            State::Extracted(extracted) => Ok(Rung::New(extracted)),
            _ => snapshots.layer_tree(&self.driver, &layer.chain).map(Rung::There),
        };
        self.layers.iter_mut().map(rung).collect()
    }

    async fn commit(&mut self, stages: Vec<Option<Stage>>, placed: Option<&Placed>) -> Result<()> {
        let mut heard = None;
        if let Some(placed) = placed {
            // New trees are synced with their whole file system.
            let device = stages.iter().flatten().next().map(Stage::device).transpose()?;
            if device == Some(placed.device()?) {
                heard = placed.witness().await?;
            } else {
                placed.sync().await?;
            }
        }
        let (ns, named, rows) = (self.ns.clone(), self.named.clone(), placed.map(Placed::rows));
        let name = move |tx: &mut cofferdam_metadata::Tx<'_>| {
            rows.iter().try_for_each(|rows| rows(tx))?;
            named.iter().try_for_each(|i| put(tx, &ns, i).map(drop))
        };
        let Some(top) = self.top().cloned() else {
            return match self.named.is_empty() && placed.is_none() {
                true => Ok(()),
                false => self.images.meta.write(&self.authority, name).await,
            };
        };
        let fresh: Vec<_> = stages.iter().map(Option::is_some).collect();
        let layers = self.layers.iter().zip(stages).map(|(layer, stage)| ChainLayer {
            chain: layer.chain.clone(),
            parent: layer.parent.clone(),
            labels: Labels::from([(UNCOMPRESSED.into(), layer.diff_id.to_string())]),
            stage,
        });
        let layers = if self.done { Vec::new() } else { layers.collect() };
        let (ns, config, key) = (self.ns.clone(), self.config.clone(), gc_snapshot_label(&self.driver));
        let label = move |tx: &mut cofferdam_metadata::Tx<'_>| {
            name(tx)?;
            let held = content::get(tx, &ns, &config)?;
            if held.labels.get(&key) == Some(&top.to_string()) {
                return Ok(());
            }
            let given = Labels::from([(key.clone(), top.to_string())]);
            content::update(tx, &ns, &config, &given, &[format!("labels.{key}")]).map(drop)
        };
        self.images.snapshots.commit_layers(&self.authority, &self.ns, &self.driver, layers, heard, label).await?;
        for (layer, fresh) in self.layers.iter().zip(fresh) {
            if fresh {
                self.images.diff.learn(&layer.blob.digest, &layer.diff_id);
            }
        }
        Ok(())
    }
}

impl Layer {
    async fn stage(&mut self, images: &Images, driver: &str, under: Option<&Stage>) -> Result<()> {
        let turn = match self.state.take() {
            State::Turn(turn) => turn,
            other => {
                self.state = other;
                return Ok(());
            }
        };
        self.state = match images.snapshots.stage_layer(driver, turn, self.parent.as_ref(), under, true).await? {
            Staged::New(stage) => State::Staged(Box::new(stage)),
            Staged::Exists => State::There,
        };
        Ok(())
    }

    async fn extract(
        &mut self,
        images: &Images,
        ns: &Namespace,
        driver: &str,
        window: u64,
        told: Option<&Told>,
    ) -> Result<()> {
        if let (Some(told), false) = (told, matches!(self.state, State::There)) {
            told(&self.blob.digest, Step::Begun);
        }
        self.extracted(images, ns, driver, window).await?;
        if let Some(told) = told {
            told(&self.blob.digest, Step::Over);
        }
        Ok(())
    }

    async fn extracted(&mut self, images: &Images, ns: &Namespace, driver: &str, window: u64) -> Result<()> {
        let diff: &Diff = &images.diff;
        let extracted = match self.state.take() {
            State::Staged(stage) => diff.apply(ns, &self.blob, &self.diff_id, *stage, window).await?,
            State::Fed(pending, turn) => match pending.wait().await {
                // Whoever fed it gave up, and the blob came some other way.
                Err(e) if e.code == Code::Cancelled => {
                    let parent = self.parent.as_ref();
                    match images.snapshots.stage_layer(driver, turn, parent, None, false).await? {
                        Staged::New(stage) => diff.apply(ns, &self.blob, &self.diff_id, stage, window).await?,
                        Staged::Exists => {
                            self.state = State::There;
                            return Ok(());
                        }
                    }
                }
                other => other?,
            },
            other => {
                self.state = other;
                return Ok(());
            }
        };
        self.state = State::Extracted(Box::new(extracted));
        Ok(())
    }
}

/// Whether the snapshot of a chain is there for the namespace.
pub fn is_unpacked(images: &Images, ns: &Namespace, driver: &str, top: Option<&Digest>) -> Result<bool> {
    let Some(top) = top else { return Ok(true) };
    let name = Name::new(top.to_string())?;
    let found = snapshots::find(&images.meta.read()?, ns, driver, &name)?;
    match found {
        None => Ok(false),
        Some(snapshot) if snapshot.kind == Kind::Committed => Ok(true),
        Some(_) => {
            let why = "a snapshot that is not committed has the name of an image's layers: remove it";
            Err(Error::failed_precondition("snapshot", name, why))
        }
    }
}
