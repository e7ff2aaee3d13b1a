//! Bringing one image in: each layer in one pass from wherever it comes to the store and, while it comes, to its tree ([`crate::lanes`]);
//! then everything visible at once.
//!
//! The order that a crash can't hurt: layers and documents are moved to where blobs are, trees are completed, one sync makes
//! all of it durable, one commit makes it visible, with the name. What fails before that is dropped: ingests are aborted,
//! stages go to the trash. What the daemon's own end interrupts stays for the next pull.

use std::{
    collections::{HashMap, HashSet},
    io::Read,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use cofferdam_content::{Commit, Ingest, Placed};
use cofferdam_images::{Manifest, ResolvedImage, content_labels};
use cofferdam_kernel::block_on;
use cofferdam_metadata::records::Resource;
use cofferdam_types::{Authority, Descriptor, Digest, Labels, Name, Namespace, Result, media};

use crate::{
    Cancel,
    choose::{Choice, Page},
    flights::{Key, Turn},
    job::{Arrived, Job},
    lanes::{Lane, fetch},
    progress::Phase,
    transfer::Core,
};

/// How long the ingests of a failed job wait for room to be deleted in: there will be some as soon as its trees are gone,
/// which are being deleted beside this.
const ROOM: Duration = Duration::from_secs(10);

/// Where the layers of an image come from.
pub(crate) trait Supply: Sync {
    /// The bytes of a layer from an offset to its end.
    fn open<'s>(&'s self, layer: &Descriptor, offset: u64) -> Result<Box<dyn Read + Send + 's>>;

    /// What has been taken in already, for it to become a blob.
    fn ingested(&self, _layer: &Descriptor) -> Option<Ingest> {
        None
    }

    /// Whether an ingest that a dead daemon left is worth a record: the bytes come from afar.
    fn far(&self) -> bool {
        false
    }

    /// Whether parts of a layer may be had side by side.
    fn parts(&self) -> bool {
        false
    }

    /// The bytes of a layer from `from` up to `to`, or to its end where there are no parts; and where they end.
    fn own<'s>(&'s self, layer: &Descriptor, from: u64, _to: u64) -> Result<(Box<dyn Read + Send + 's>, u64)> {
        Ok((self.open(layer, from)?, layer.size))
    }

    /// The bytes of a part; `None` where there are no parts.
    fn part<'s>(&'s self, _layer: &Descriptor, _from: u64, _to: u64) -> Result<Option<Box<dyn Read + Send + 's>>> {
        Ok(None)
    }
}

/// What is the same for all images of a job.
pub(crate) struct Landing<'a> {
    pub core: &'a Core,
    pub job: &'a Job,
    /// Ends the parts of the job together.
    pub word: &'a Cancel,
    pub auth: &'a Authority,
    pub ns: &'a Namespace,
    /// The driver that unpacks; `None` leaves the image packed.
    pub driver: Option<&'a str>,
    /// Layers at once.
    pub lanes: usize,
    /// Of the blobs that come.
    pub labels: Labels,
    /// Where they come from: who brings the same from there is waited for.
    pub route: Arc<str>,
    /// The largest zstd window of its layers; 0: the usual.
    pub window: u64,
}

/// All that comes in under one target.
pub(crate) struct Load {
    /// What the names will stand for.
    pub target: Descriptor,
    /// Manifests, indexes and configs.
    pub pages: Vec<Page>,
    /// All else.
    pub blobs: Vec<Descriptor>,
    /// The image that is unpacked, all of which is among these.
    pub image: Option<ResolvedImage>,
}

impl Load {
    /// One image.
    pub fn of(choice: &Choice) -> Load {
        let image = &choice.image;
        let mut pages = choice.path.clone();
        pages.push((image.config_descriptor.clone(), image.config_bytes.clone()));
        let blobs = image.layers.iter().chain(&choice.parts).cloned().collect();
        Load { target: image.target.clone(), pages, blobs, image: Some(image.clone()) }
    }
}

impl<'a> Landing<'a> {
    /// One layer at a time, of blobs without labels, from what lies at hand.
    pub fn new(core: &'a Core, job: &'a Job, word: &'a Cancel, auth: &'a Authority, driver: Option<&'a str>) -> Self {
        let (ns, labels, route) = (job.namespace(), Labels::new(), Arc::from(""));
        Landing { core, job, word, auth, ns, driver, lanes: 1, labels, route, window: 0 }
    }

    /// Brings an image in and names it.
    pub fn land(&self, names: &[Name], choice: &Choice, supply: &dyn Supply) -> Result<Vec<Arrived>> {
        self.load(names, &Load::of(choice), supply)
    }

    /// Brings in what a target leads to, and names that.
    pub fn load(&self, names: &[Name], load: &Load, supply: &dyn Supply) -> Result<Vec<Arrived>> {
        let board = self.job.board();
        let mut items: HashMap<Digest, usize> = HashMap::new();
        for blob in &load.blobs {
            items.entry(blob.digest.clone()).or_insert_with(|| board.item(&blob.digest, blob.size));
        }
        // What is there already stays there, though nothing refers to it before the name does.
        let all = load.blobs.iter().chain(load.pages.iter().map(|(page, _)| page));
        let all = all.map(|blob| Resource::Content(blob.digest.clone())).collect();
        let _pin = block_on(self.core.meta.pin(self.ns, all))?;
        let turn = self.turn(load, &items, supply)?;
        self.shown(&turn, self.bring(names, load, &items, supply))
    }

    /// All of it, while nobody else is at it whom it may wait for.
    fn bring(
        &self,
        names: &[Name],
        load: &Load,
        items: &HashMap<Digest, usize>,
        supply: &dyn Supply,
    ) -> Result<Vec<Arrived>> {
        let board = self.job.board();
        let unpacked = self.driver.zip(load.image.as_ref());
        let mut unpack = match unpacked {
            Some((driver, image)) => {
                let manifest = Manifest { config: image.config_descriptor.clone(), layers: image.layers.clone() };
                let begun = self.core.images.begin_unpack(self.auth, self.ns, &manifest, &image.config, driver);
                let mut begun = block_on(begun)?;
                begun.allow_window(self.window);
                Some(begun)
            }
            None => None,
        };
        let mut lanes = self.missing(load, items, |_| true);
        for lane in &mut lanes {
            lane.feed = unpack.as_mut().and_then(|unpack| unpack.feed(&lane.layer.digest));
        }
        let mut commits = fetch(self, lanes, supply)?;
        let taken = self.pages(load).and_then(|pages| {
            commits.extend(pages);
            self.word.check()
        });
        if let Err(error) = taken {
            self.drop_all(commits);
            return Err(error);
        }
        board.stage("storing");
        let placed = self.core.content.place(self.auth, commits)?;
        let named = match unpack {
            None => self.name(names, &load.target, &placed),
            Some(mut unpack) => {
                board.stage("unpacking");
                unpack.name(names, &load.target);
                block_on(unpack.finish(Some(&placed))).map(drop)
            }
        };
        if let Err(error) = named {
            placed.withdraw(Instant::now() + ROOM);
            return Err(error);
        }
        placed.done();
        for item in items.values() {
            board.phase(*item, Phase::Done);
        }
        Ok(names.iter().map(|name| self.arrived(name, load)).collect())
    }

    /// Waits until nobody else brings any of it from there, and keeps others from it. While others bring some, the rest is
    /// fetched, and made to count: then nothing is held. What another failed to bring isn't waited for again.
    fn turn(&self, load: &Load, items: &HashMap<Digest, usize>, supply: &dyn Supply) -> Result<Turn<'_, Key>> {
        let board = self.job.board();
        let mut in_vain: HashSet<Key> = HashSet::new();
        loop {
            let key = |blob: &Descriptor| (self.ns.clone(), self.route.clone(), blob.digest.clone());
            let (turn, mut others) = self.core.flights.take(load.blobs.iter().map(key));
            others.retain(|other| !in_vain.contains(&other.key));
            if others.is_empty() {
                return Ok(turn);
            }
            for item in others.iter().filter_map(|other| items.get(&other.key.2)) {
                board.phase(*item, Phase::Elsewhere);
            }
            let mine: HashSet<&Digest> = turn.keys().iter().map(|(.., digest)| digest).collect();
            let commits = fetch(self, self.missing(load, items, |digest| mine.contains(digest)), supply);
            let counts = commits.and_then(|commits| match commits.is_empty() {
                true => Ok(()),
                false => self.core.content.commit_many_blocking(self.auth, commits).map(drop),
            });
            self.shown(&turn, counts)?;
            drop(mine);
            drop(turn);
            in_vain.extend(self.core.flights.wait(others, self.word)?);
        }
    }

    /// Who waits for it hears of a failure. One that was cancelled has shown nothing of where it comes from.
    fn shown<T>(&self, turn: &Turn<'_, Key>, result: Result<T>) -> Result<T> {
        if result.is_err() && self.job.word().check().is_ok() {
            turn.failed();
        }
        result
    }

    /// Those of the blobs that aren't here, or not whole, or that the job has to bring all the same; each once.
    fn missing(&self, load: &Load, items: &HashMap<Digest, usize>, wanted: impl Fn(&Digest) -> bool) -> Vec<Lane> {
        let mut seen = HashSet::new();
        let mut lanes = Vec::new();
        for blob in load.blobs.iter().filter(|blob| wanted(&blob.digest)) {
            let Some(item) = items.get(&blob.digest).copied().filter(|_| seen.insert(&blob.digest)) else { continue };
            let had = self.core.is_had(self.auth, self.ns, &blob.digest);
            match had.and_then(|had| Ok(had && self.core.content.is_whole(self.ns, &blob.digest)?)) {
                Ok(true) => self.job.board().phase(item, Phase::Present),
                _ => lanes.push(Lane { layer: blob.clone(), item, feed: None }),
            }
        }
        lanes
    }

    /// The names of an image that stays packed.
    fn name(&self, names: &[Name], target: &Descriptor, placed: &Placed) -> Result<()> {
        placed.sync_blocking()?;
        block_on(self.core.images.put_all(self.auth, self.ns, names, target, placed.rows()))
    }

    fn arrived(&self, name: &Name, load: &Load) -> Arrived {
        let image = load.image.as_ref();
        Arrived {
            name: name.clone(),
            target: load.target.clone(),
            manifest: image.map_or(&load.target, |image| &image.manifest).digest.clone(),
            chain: image.filter(|_| self.driver.is_some()).and_then(|image| image.top().cloned()),
        }
    }

    /// The documents, on their way to be blobs.
    fn pages(&self, load: &Load) -> Result<Vec<Commit>> {
        let mut commits = Vec::new();
        for (descriptor, bytes) in &load.pages {
            let document = matches!(media::kind(&descriptor.media_type), media::Kind::Manifest | media::Kind::Index);
            let mut labels = if document { content_labels(descriptor, bytes)? } else { Labels::new() };
            labels.extend(self.labels.clone());
            let mut ingest = self.core.content.scratch(self.ns, descriptor.digest.algorithm())?;
            ingest.append(bytes)?;
            let (size, expected) = (Some(descriptor.size), Some(descriptor.digest.clone()));
            commits.push(Commit { ingest, size, expected, labels });
        }
        Ok(commits)
    }

    pub(crate) fn drop_all(&self, commits: Vec<Commit>) {
        let until = Instant::now() + ROOM;
        commits.into_iter().for_each(|commit| self.give_up(commit.ingest, until));
    }

    pub(crate) fn abort(&self, ingest: Ingest) {
        self.give_up(ingest, Instant::now() + ROOM);
    }

    fn give_up(&self, ingest: Ingest, until: Instant) {
        // The next daemon goes on with what has a record.
        if !self.core.closing.load(Ordering::Acquire) {
            ingest.give_up(self.auth, until);
        }
    }
}
