//! Layers that are unpacked, compared with what their blobs unpack to, and unpacked again where the disk has changed or lost
//! them.
//!
//! A layer is made again beside the one that there is, so its blob is all that is needed to know what should be there.
//! What is found is kept in memory until it is mended: the check tells it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use cofferdam_kernel::block_on;
use cofferdam_metadata::records::{
    layers::{self, Layer},
    namespaces, readable, replace, snapshots,
};
use cofferdam_snapshots::{Pace, Stage};
use cofferdam_types::{Authority, Code, Descriptor, Digest, Error, Fault, Finding, Findings, Name, Namespace, Result};

use crate::{Images, ResolvedImage, handle::question};

/// Images that are read in one go.
const PAGE: usize = 500;
/// The most that are kept in mind.
const MOST: usize = 10_000;

/// A layer that is unpacked, and what of.
#[derive(Clone, Debug)]
pub struct Unpacked {
    namespace: Namespace,
    driver: String,
    blob: Descriptor,
    diff_id: Digest,
    chain: Digest,
    /// What it lies on, the lowest first.
    below: Vec<Arc<Unpacked>>,
}

impl Unpacked {
    /// A layer (its blob, diff id and chain id) that lies on these.
    fn of(ns: &Namespace, driver: &str, layer: (&Descriptor, &Digest, &Digest), below: &[Arc<Unpacked>]) -> Unpacked {
        let (namespace, driver, below) = (ns.clone(), driver.to_owned(), below.to_vec());
        let (blob, diff_id, chain) = layer;
        Unpacked { namespace, driver, blob: blob.clone(), diff_id: diff_id.clone(), chain: chain.clone(), below }
    }
}

type Key = (String, Digest);

/// Layers whose tree isn't what it should be: in which directory, and what is wrong there.
#[derive(Clone, Default)]
pub(crate) struct Damaged(Arc<Mutex<BTreeMap<Key, (u64, String)>>>);

impl Damaged {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, (u64, String)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says to who works for a call that nobody waits for it any more.
#[derive(Default)]
struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Images {
    /// Every layer that is unpacked and whose blob is there: each once, and what it lies on before it.
    pub async fn unpacked(&self) -> Result<Vec<Unpacked>> {
        let (mut all, mut met) = (Vec::new(), BTreeSet::new());
        let spaces = namespaces::names(&self.meta.read()?)?;
        for ns in spaces {
            let mut after: Option<Name> = None;
            loop {
                let page = match self.list(&ns, after.as_ref().map(Name::as_str), PAGE) {
                    Ok(page) => page,
                    // The check of the records tells which row it is; the others' layers don't wait for its end.
                    Err(error) => {
                        tracing::warn!(namespace = %ns, %error, "images can't be read: their layers are not compared");
                        break;
                    }
                };
                let Some(last) = page.last() else { break };
                after = Some(last.name.clone());
                for image in page {
                    // What isn't here can't be compared with.
                    for platform in self.platforms(&ns, &image.target).await.unwrap_or_default() {
                        if let Ok(image) = self.slot.call(question(&ns, &image.target, &platform)).await {
                            self.add(&ns, &image, &mut met, &mut all)?;
                        }
                    }
                }
            }
        }
        Ok(all)
    }

    fn add(
        &self,
        ns: &Namespace,
        image: &ResolvedImage,
        met: &mut BTreeSet<Key>,
        all: &mut Vec<Unpacked>,
    ) -> Result<()> {
        let view = self.meta.read()?;
        for driver in self.snapshots.drivers() {
            let mut below = Vec::new();
            for (n, (blob, diff_id)) in image.layers.iter().zip(&image.config.diff_ids).enumerate() {
                let chain = &image.chain_ids[n];
                let found = readable(snapshots::find(&view, ns, driver, &chain.to_string()))?.flatten();
                // A snapshot of that name which somebody made is his own, and so is what lies on it. What can't be read can't be
                // compared.
                if found.is_none_or(|found| found.layer.as_ref() != Some(chain))
                    || readable(layers::find(&view, driver, chain))?.is_none()
                {
                    break;
                }
                let one = Arc::new(Unpacked::of(ns, driver, (blob, diff_id, chain), &below));
                if self.has_blob(&one) && met.insert(one.key()) {
                    all.push(Unpacked::clone(&one));
                }
                below.push(one);
            }
        }
        Ok(())
    }

    /// Compares one with its blob, and reads so many bytes a second at most for it. One that isn't what it should be is
    /// logged, an event, and told by [`Images::check_layers`] from then on. Dropped, it stops.
    pub async fn examine(&self, one: Unpacked, rate: u64) -> Result<()> {
        let (cancel, images) = (CancelOnDrop::default(), self.clone());
        let over = cancel.0.clone();
        let job = move || images.look(&one, &paced(rate, &over, std::thread::sleep)).map(drop);
        self.healing.run(job).await
    }

    /// Says whether it is right, where that could be found out.
    pub(crate) fn look(&self, one: &Unpacked, pace: Pace<'_>) -> Result<Option<bool>> {
        // What is copied from what it lies on is wrong where that is. What is gone the check finds without this.
        let on_damaged = || one.below.iter().any(|lower| self.is_damaged(lower));
        if self.is_lost(one)? || (!self.snapshots.detached(&one.driver)? && on_damaged()) {
            return Ok(None);
        }
        let Some(Layer { dir, usage, .. }) = self.record(one)? else { return Ok(None) };
        // It is made in full beside the one that there is, and is not worth a full disk.
        let (size, free) = (usage.size, self.snapshots.free(&one.driver)?);
        if free < size.saturating_mul(2) {
            tracing::warn!(driver = one.driver, chain = %one.chain, size, free, "too little room to compare a layer");
            return Ok(None);
        }
        let (stage, borrows) = self.make_again(one, pace)?;
        let found = self.snapshots.difference(&stage, dir, pace);
        // Removed or replaced meanwhile, its tree is anything; and so is what was made of one that was.
        if self.dir(one)? != Some(dir) || !self.snapshots.stands(&stage)? {
            return Ok(None);
        }
        let Some(what) = found? else {
            self.damaged.lock().remove(&one.key());
            return Ok(Some(true));
        };
        drop(stage);
        if borrows && !self.is_right_below(one, pace)? {
            return Ok(None);
        }
        let news = {
            let mut damaged = self.damaged.lock();
            damaged.len() < MOST && damaged.insert(one.key(), (dir, what.clone())).is_none_or(|(other, _)| other != dir)
        };
        if !news {
            return Ok(Some(false));
        }
        tracing::error!(driver = one.driver, chain = %one.chain, dir, what, "an unpacked layer is not what its blob says");
        let (driver, chain) = one.key();
        self.meta.write_blocking(&Authority::system(), move |tx| replace::damaged(tx, &driver, &chain))?;
        Ok(Some(false))
    }

    /// Whether all that a layer lies on is right now. What is made again with files of a damaged one differs from one that is
    /// right, as may what is made with files of one that can't be compared.
    fn is_right_below(&self, one: &Unpacked, pace: Pace<'_>) -> Result<bool> {
        for lower in &one.below {
            if self.is_damaged(lower) || !self.has_blob(lower) || self.look(lower, pace)? != Some(true) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn is_damaged(&self, one: &Unpacked) -> bool {
        self.damaged.lock().contains_key(&one.key())
    }

    fn has_blob(&self, one: &Unpacked) -> bool {
        self.content.job_holds(&one.namespace, &one.blob.digest).is_ok()
    }

    /// Tells of the layers that were found to be damaged. With `repair` they, and those that are gone, are unpacked again
    /// and put in the place of what is there: what is made from then on lies on them.
    pub async fn check_layers(&self, repair: bool) -> Vec<Finding> {
        let mut found = Findings::default();
        let mut left = self.damaged.lock().clone();
        if repair {
            let all = self.unpacked().await.unwrap_or_else(|error| {
                found.unchecked("layers", &error);
                Vec::new()
            });
            let mut replaced = BTreeSet::new();
            for one in all {
                let known = left.remove(&one.key()).is_some();
                // What was copied from a damaged one has the damage too: all of it with drivers that copy, and with the others
                // a file of it that a layer above links to.
                let copied = one.below.iter().any(|lower| replaced.contains(&lower.key()));
                match self.repair(&one, known, copied, &mut found).await {
                    Ok(true) => drop(replaced.insert(one.key())),
                    Ok(false) => {}
                    Err(error) => found.unchecked(format!("layer/{}/{}", one.driver, one.chain), &error),
                }
            }
        }
        for (key, (dir, what)) in left {
            let (driver, chain) = &key;
            let layer = self.meta.read().and_then(|view| Ok(readable(layers::find(&view, driver, chain))?.flatten()));
            match layer {
                Ok(Some(layer)) if layer.dir == dir => {}
                Ok(_) => {
                    self.damaged.lock().remove(&key);
                    continue;
                }
                // What is known of it is told all the same.
                Err(error) => found.unchecked(format!("layer/{driver}/{chain}"), &error),
            }
            let then = match repair {
                true => "no image that is here has its blob: pull one that has, and check again",
                false => "--repair unpacks it again",
            };
            let id = format!("snapshot/{driver}/{dir}");
            found.add(Fault::SnapshotDamaged, id, format!("{what} in layer {chain}: {then}"), false);
        }
        found.done()
    }

    /// Unpacks a layer again that is gone, or is `known` to be damaged or may be, having been `copied`. Whether it has another tree
    /// by now.
    async fn repair(&self, one: &Unpacked, known: bool, copied: bool, found: &mut Findings) -> Result<bool> {
        let lost = self.is_lost(one)?;
        if !lost && !known && !copied {
            return Ok(false);
        }
        let Some(dir) = self.dir(one)? else { return Ok(false) };
        let (images, theirs) = (self.clone(), one.clone());
        let id = format!("snapshot/{}/{dir}", one.driver);
        let fault = if lost { Fault::SnapshotLost } else { Fault::SnapshotDamaged };
        match self.healing.run(move || images.mend(&theirs, lost)).await {
            Ok(Some(what)) => {
                found.add(fault, id, format!("{what}: layer {} was unpacked again", one.chain), true);
                return Ok(true);
            }
            // It is right by now.
            Ok(None) => {}
            // Who owns it tells what is gone.
            Err(error) if lost => tracing::warn!(%error, chain = %one.chain, "a layer can't be unpacked again"),
            Err(error) => {
                let is = if known { "is damaged" } else { "lies on one that was" };
                let why = format!("layer {} {is}, and can't be unpacked again: {error}", one.chain);
                found.add(fault, id, why, false);
            }
        }
        Ok(false)
    }

    /// Makes those layers of an image anew that the disk has lost, or is known to have changed: an image of which all blobs are here
    /// again is to work. The blobs are in the namespace, or placed for it; layers are given the lowest first.
    pub(crate) async fn mend_chain<'l>(
        &self,
        ns: &Namespace,
        driver: &str,
        layers: impl Iterator<Item = (&'l Descriptor, &'l Digest, &'l Digest)>,
    ) -> Result<()> {
        let (mut below, mut replaced) = (Vec::<Arc<Unpacked>>::new(), BTreeSet::new());
        for (blob, diff_id, chain) in layers {
            let one = Arc::new(Unpacked::of(ns, driver, (blob, diff_id, chain), &below));
            let lost = self.is_lost(&one)?;
            let copied = below.iter().any(|lower| replaced.contains(&lower.key()));
            below.push(one.clone());
            if !lost && !copied && !self.is_damaged(&one) {
                continue;
            }
            let (images, theirs) = (self.clone(), one.clone());
            match self.healing.run(move || images.mend(&theirs, lost)).await {
                Ok(Some(what)) => {
                    tracing::warn!(driver, %chain, what, "a layer was unpacked again");
                    replaced.insert(one.key());
                }
                Ok(None) => {}
                // Somebody else has done it.
                Err(error)
                    if error.code == Code::FailedPrecondition && !self.is_lost(&one)? && !self.is_damaged(&one) => {}
                Err(error) => {
                    return Err(error.context("a layer that the disk has lost or changed can't be unpacked again"));
                }
            }
        }
        Ok(())
    }

    pub(crate) fn mend(&self, one: &Unpacked, lost: bool) -> Result<Option<String>> {
        let at_once = |_| Ok(());
        let Some(Layer { dir, usage, .. }) = self.record(one)? else { return Ok(None) };
        // What is there stays until the new one is whole.
        let (size, free) = (usage.size, self.snapshots.free(&one.driver)?);
        if free < size {
            let why = format!("takes {size} bytes beside the one that is there, and {free} are free: make room");
            return Err(Error::resource_exhausted("layer", &one.chain, why));
        }
        let (stage, borrows) = self.make_again(one, &at_once)?;
        let what = match lost {
            true => Some("its tree was gone".to_owned()),
            false => self.snapshots.difference(&stage, dir, &at_once)?,
        };
        if what.is_some() && !lost && borrows && !self.is_right_below(one, &at_once)? {
            let why = "has files of a layer below it which is damaged, or can't be compared: repair that one first";
            return Err(Error::failed_precondition("layer", &one.chain, why));
        }
        if what.is_some() {
            block_on(self.snapshots.replace_layer(&one.driver, stage, dir, lost))?;
        }
        self.damaged.lock().remove(&one.key());
        Ok(what)
    }

    /// Its tree as its blob has it, beside the one that there is; and whether anything in it is of the trees below.
    fn make_again(&self, one: &Unpacked, pace: Pace<'_>) -> Result<(Stage, bool)> {
        let parent = one.below.last().map(|lower| &lower.chain);
        let stage = block_on(self.snapshots.stage_again(&one.driver, &one.chain, parent))?;
        let below = one.below.iter().map(|lower| self.snapshots.layer_tree(&one.driver, &lower.chain));
        let below = below.collect::<Result<_>>()?;
        self.diff.again(&one.namespace, (&one.blob, &one.diff_id), stage, below, pace)
    }

    fn record(&self, one: &Unpacked) -> Result<Option<Layer>> {
        layers::find(&self.meta.read()?, &one.driver, &one.chain)
    }

    fn dir(&self, one: &Unpacked) -> Result<Option<u64>> {
        Ok(self.record(one)?.map(|layer| layer.dir))
    }

    fn is_lost(&self, one: &Unpacked) -> Result<bool> {
        match self.snapshots.layer_tree(&one.driver, &one.chain) {
            Ok(_) => Ok(false),
            // Its record may have gone.
            Err(e) if e.code == Code::NotFound => Ok(self.dir(one)?.is_some()),
            Err(e) => Err(e),
        }
    }
}

/// Has who read so many bytes wait for as long as that is to take, until it is over.
pub(crate) fn paced(
    rate: u64,
    over: &AtomicBool,
    wait: impl Fn(Duration) + Sync,
) -> impl Fn(usize) -> Result<()> + Sync {
    move |bytes| {
        if over.load(Ordering::Relaxed) {
            return Err(Error::cancelled("layer", "", "nobody waits for it any more"));
        }
        if bytes > 0 {
            wait(Duration::from_secs_f64(bytes as f64 / rate as f64));
        }
        Ok(())
    }
}

impl Unpacked {
    /// Which driver has it.
    #[cfg(test)]
    pub(crate) fn driver(&self) -> &str {
        &self.driver
    }

    fn key(&self) -> Key {
        (self.driver.clone(), self.chain.clone())
    }
}
