//! Bringing one image in: each layer in one pass from wherever it comes to the store and, while it comes, to its tree;
//! then everything visible at once.
//!
//! The order that a crash can't hurt: layers and documents are moved to where blobs are, trees are completed, one sync makes
//! all of it durable, one commit makes it visible, with the name. What fails before that is dropped: ingests are aborted,
//! stages go to the trash.

use std::{
    collections::{HashMap, HashSet},
    io::{Read, Write},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use cofferdam_content::{Commit, Ingest, IngestOptions, Placed};
use cofferdam_diff::LayerFeed;
use cofferdam_images::{Manifest, content_labels};
use cofferdam_kernel::block_on;
use cofferdam_metadata::records::Resource;
use cofferdam_types::{Authority, Code, Descriptor, Digest, Error, Labels, Name, Namespace, Result};

use crate::{
    Cancel,
    choose::Choice,
    from_io,
    job::{Arrived, Job},
    progress::{Counted, Phase},
    transfer::Core,
};

const BUFFER: usize = 64 << 10;
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
}

/// A layer to be fetched: which one, and where its bytes go beside the store.
struct Lane {
    index: usize,
    item: usize,
    feed: Option<LayerFeed>,
}

/// What the lanes leave.
#[derive(Default)]
struct Haul {
    commits: Vec<Commit>,
    error: Option<Error>,
}

impl<'a> Landing<'a> {
    /// One layer at a time, of blobs without labels.
    pub fn new(core: &'a Core, job: &'a Job, word: &'a Cancel, auth: &'a Authority, driver: Option<&'a str>) -> Self {
        Landing { core, job, word, auth, ns: job.namespace(), driver, lanes: 1, labels: Labels::new() }
    }

    /// Brings an image in and names it.
    pub fn land(&self, names: &[Name], choice: &Choice, supply: &dyn Supply) -> Result<Vec<Arrived>> {
        let image = &choice.image;
        let board = self.job.board();
        let mut items: HashMap<Digest, usize> = HashMap::new();
        let blobs: Vec<Descriptor> = image.layers.iter().chain(&choice.parts).cloned().collect();
        for layer in &blobs {
            items.entry(layer.digest.clone()).or_insert_with(|| board.item(&layer.digest, layer.size));
        }
        let digests = blobs.iter().map(|layer| layer.digest.clone());
        let _turn = self.core.flights.take(self.ns, digests, self.word, |digest| {
            if let Some(item) = items.get(digest) {
                board.phase(*item, Phase::Elsewhere);
            }
        })?;
        // What is there already stays there, though nothing refers to it before the name does.
        let all =
            blobs.iter().chain([&image.config_descriptor]).chain(choice.path.iter().map(|(document, _)| document));
        let all = all.map(|blob| Resource::Content(blob.digest.clone())).collect();
        let _pin = block_on(self.core.meta.pin(self.ns, all))?;
        let mut unpack = match self.driver {
            Some(driver) => {
                let manifest = Manifest { config: image.config_descriptor.clone(), layers: image.layers.clone() };
                let begun = self.core.images.begin_unpack(self.auth, self.ns, &manifest, &image.config, driver);
                Some(block_on(begun)?)
            }
            None => None,
        };
        let mut seen = HashSet::new();
        let mut lanes = Vec::new();
        for (index, layer) in blobs.iter().enumerate() {
            let Some(item) = items.get(&layer.digest).copied().filter(|_| seen.insert(&layer.digest)) else { continue };
            if self.core.content.info(self.ns, &layer.digest).is_ok() {
                board.phase(item, Phase::Present);
                continue;
            }
            let unpacked = index < image.layers.len();
            let feed = unpack.as_mut().filter(|_| unpacked).and_then(|unpack| unpack.feed(&layer.digest));
            lanes.push(Lane { index, item, feed });
        }
        let mut commits = self.fetch(&blobs, lanes, supply)?;
        let taken = self.documents(choice).and_then(|documents| {
            commits.extend(documents);
            self.word.check()
        });
        if let Err(error) = taken {
            self.drop_all(commits);
            return Err(error);
        }
        board.stage("storing");
        let placed = self.core.content.place(self.auth, commits)?;
        let named = match unpack {
            None => self.name(names, &image.target, &placed),
            Some(mut unpack) => {
                board.stage("unpacking");
                unpack.name(names, &image.target);
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
        Ok(names.iter().map(|name| self.arrived(name, choice)).collect())
    }

    /// The names of an image that stays packed.
    fn name(&self, names: &[Name], target: &Descriptor, placed: &Placed) -> Result<()> {
        placed.sync_blocking()?;
        block_on(self.core.images.put_all(self.auth, self.ns, names, target, placed.rows()))
    }

    fn arrived(&self, name: &Name, choice: &Choice) -> Arrived {
        Arrived {
            name: name.clone(),
            target: choice.image.target.clone(),
            manifest: choice.image.manifest.digest.clone(),
            chain: self.driver.and_then(|_| choice.image.top().cloned()),
        }
    }

    /// All lanes, a bounded number at once; the first error ends the others.
    fn fetch(&self, layers: &[Descriptor], mut lanes: Vec<Lane>, supply: &dyn Supply) -> Result<Vec<Commit>> {
        // The largest first (from the end): the one that takes longest should not be the one that starts last.
        lanes.sort_by_key(|lane| layers[lane.index].size);
        let threads = self.lanes.clamp(1, lanes.len().max(1));
        let (lanes, haul) = (Mutex::new(lanes), Mutex::new(Haul::default()));
        let work = || {
            loop {
                let Some(lane) = lock(&lanes).pop() else { return };
                if lock(&haul).error.is_some() {
                    return;
                }
                let item = lane.item;
                match self.layer(&layers[lane.index], lane, supply) {
                    Ok(commit) => {
                        self.job.board().phase(item, Phase::Unpacking);
                        lock(&haul).commits.extend(commit);
                    }
                    Err(error) => {
                        lock(&haul).error.get_or_insert(error);
                        self.word.cancel();
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..threads {
                let spawned = std::thread::Builder::new().name("transfer-lane".into()).spawn_scoped(scope, work);
                if spawned.is_err() {
                    // Fewer lanes do it too.
                    break;
                }
            }
            work();
        });
        let Haul { commits, error } = haul.into_inner().unwrap_or_else(PoisonError::into_inner);
        match error {
            None => Ok(commits),
            Some(error) => {
                self.drop_all(commits);
                Err(error)
            }
        }
    }

    /// One layer; `None` if it turned out to be there.
    fn layer(&self, layer: &Descriptor, lane: Lane, supply: &dyn Supply) -> Result<Option<Commit>> {
        self.job.board().phase(lane.item, Phase::Fetching);
        if let Some(ingest) = supply.ingested(layer) {
            return self.checked(layer, ingest).map(Some);
        }
        let mut ingest = match self.open(layer, supply.far()) {
            Ok(ingest) => ingest,
            Err(e) if e.code == Code::AlreadyExists => return Ok(None),
            Err(e) => return Err(e),
        };
        let done = self.pour(layer, lane, supply, &mut ingest);
        match done {
            Ok(()) => self.checked(layer, ingest).map(Some),
            Err(error) => {
                self.abort(ingest);
                Err(error)
            }
        }
    }

    fn open(&self, layer: &Descriptor, far: bool) -> Result<Ingest> {
        let (content, algorithm) = (&self.core.content, layer.digest.algorithm());
        if !far {
            return content.scratch(self.ns, algorithm);
        }
        let reference = Name::new(format!("layer-{}", layer.digest))?;
        let options =
            IngestOptions { reference, total: Some(layer.size), expected: Some(layer.digest.clone()), algorithm };
        match content.ingest_blocking(self.auth, self.ns, options) {
            // A client writes under our ref, or has begun it with another size: that is its own business.
            Err(e) if matches!(e.code, Code::Unavailable | Code::InvalidArgument) => {
                content.scratch(self.ns, algorithm)
            }
            other => other,
        }
    }

    /// The bytes, once: into the ingest and, while they come, into the tree.
    fn pour(&self, layer: &Descriptor, lane: Lane, supply: &dyn Supply, ingest: &mut Ingest) -> Result<()> {
        let (item, mut feed) = (lane.item, lane.feed);
        if ingest.offset() > layer.size {
            ingest.truncate()?;
        }
        let resumed = ingest.offset();
        self.job.board().at(item, resumed);
        if resumed > 0 {
            // The tree needs the beginning too; it is made from the store afterwards.
            feed = None;
        }
        let inner = supply.open(layer, resumed)?;
        let mut source = Counted { inner, board: self.job.board(), number: item, cancel: self.word };
        let mut buffer = vec![0; BUFFER];
        loop {
            let n = match source.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(from_io("layer", &layer.digest, "can't be read", e)),
            };
            ingest.append(&buffer[..n])?;
            // An extraction that ended early has its own error, which comes out at the end. The bytes are taken in
            // nevertheless: if it is they that are wrong, the digest says so, and better.
            if feed.as_mut().is_some_and(|feed| feed.write_all(&buffer[..n]).is_err()) {
                feed = None;
            }
        }
        drop(source);
        if let Err(error) = verdict(layer, ingest) {
            if resumed == 0 {
                return Err(error);
            }
            // What was resumed may be what is wrong. Once more from the beginning.
            ingest.truncate()?;
            return self.pour(layer, Lane { index: lane.index, item, feed: None }, supply, ingest);
        }
        ingest.write_out();
        // Only now may the tree count as whole.
        if let Some(feed) = feed {
            let _ = feed.finish();
        }
        Ok(())
    }

    fn checked(&self, layer: &Descriptor, ingest: Ingest) -> Result<Commit> {
        match verdict(layer, &ingest) {
            Ok(()) => Ok(Commit {
                ingest,
                size: Some(layer.size),
                expected: Some(layer.digest.clone()),
                labels: self.labels.clone(),
            }),
            Err(error) => {
                self.abort(ingest);
                Err(error)
            }
        }
    }

    /// The manifest, what leads to it, and the config, on their way to be blobs.
    fn documents(&self, choice: &Choice) -> Result<Vec<Commit>> {
        let image = &choice.image;
        let mut commits = Vec::new();
        for (descriptor, bytes) in &choice.path {
            commits.push(self.small(descriptor, bytes, content_labels(descriptor, bytes)?)?);
        }
        commits.push(self.small(&image.config_descriptor, &image.config_bytes, self.labels.clone())?);
        Ok(commits)
    }

    fn small(&self, descriptor: &Descriptor, bytes: &[u8], labels: Labels) -> Result<Commit> {
        let mut ingest = self.core.content.scratch(self.ns, descriptor.digest.algorithm())?;
        ingest.append(bytes)?;
        Ok(Commit { ingest, size: Some(descriptor.size), expected: Some(descriptor.digest.clone()), labels })
    }

    fn drop_all(&self, commits: Vec<Commit>) {
        let until = Instant::now() + ROOM;
        commits.into_iter().for_each(|commit| commit.ingest.give_up(self.auth, until));
    }

    fn abort(&self, ingest: Ingest) {
        ingest.give_up(self.auth, Instant::now() + ROOM);
    }
}

/// Whether what came is what was announced.
fn verdict(layer: &Descriptor, ingest: &Ingest) -> Result<()> {
    let (want, size) = (&layer.digest, ingest.offset());
    if size != layer.size {
        let message = format!("unexpected size {size}, expected {}: what should hold it is damaged", layer.size);
        return Err(Error::data_loss("layer", want, message));
    }
    match ingest.digest_so_far() {
        found if found == *want => Ok(()),
        found => {
            Err(Error::data_loss("layer", want, format!("unexpected digest {found}: what came is not what was named")))
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
