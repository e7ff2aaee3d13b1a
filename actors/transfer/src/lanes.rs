//! Layers side by side, each in one pass: from wherever it comes into its ingest, hashed, and while it comes into its tree. A lane
//! without a layer of its own helps with a large one.

use std::{
    io::{self, Read, Write},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use cofferdam_content::{Ahead, Commit, Ingest, IngestOptions};
use cofferdam_diff::LayerFeed;
use cofferdam_types::{Code, Descriptor, Error, Name, Result};

use crate::{
    from_io,
    land::{Landing, Supply},
    parts::{Hunger, PART, Parts, Step},
    progress::{Counted, Phase},
};

const BUFFER: usize = 64 << 10;
/// What a lane holds in memory: its buffers, those of its connection, and what waits to be unpacked.
const LANE: u64 = 1 << 20;
/// How often a lane with nothing to do looks whether it can help.
const LOOK: Duration = Duration::from_millis(20);

/// A layer to be fetched: which one, and where its bytes go beside the store.
pub(crate) struct Lane {
    pub layer: Descriptor,
    pub item: usize,
    pub feed: Option<LayerFeed>,
}

/// A large layer that is open.
struct Open {
    layer: Descriptor,
    item: usize,
    ahead: Ahead,
    parts: Parts,
}

/// What all lanes of a job share.
struct Crew<'a> {
    landing: &'a Landing<'a>,
    supply: &'a dyn Supply,
    left: Mutex<Vec<Lane>>,
    open: Mutex<Vec<Arc<Open>>>,
    /// Layers that are or will be open.
    large: AtomicUsize,
    haul: Mutex<Haul>,
}

/// What the lanes leave.
#[derive(Default)]
struct Haul {
    commits: Vec<Commit>,
    error: Option<Error>,
}

/// All lanes, a bounded number at once; the first error ends the others.
pub(crate) fn fetch(landing: &Landing<'_>, mut lanes: Vec<Lane>, supply: &dyn Supply) -> Result<Vec<Commit>> {
    // The largest first (from the end): the one that takes longest should not be the one that starts last.
    lanes.sort_by_key(|lane| lane.layer.size);
    let large = lanes.iter().filter(|lane| splits(&lane.layer, supply)).count();
    let most = if large > 0 { landing.lanes } else { landing.lanes.min(lanes.len()) };
    let (left, open, haul) = (Mutex::new(lanes), Mutex::default(), Mutex::default());
    let crew = Crew { landing, supply, left, open, large: AtomicUsize::new(large), haul };
    std::thread::scope(|scope| {
        for _ in 1..most {
            // Fewer lanes do it too.
            let Some(share) = landing.core.budget.spare(LANE) else { break };
            let crew = &crew;
            let work = move || {
                crew.work();
                drop(share);
            };
            if std::thread::Builder::new().name("transfer-lane".into()).spawn_scoped(scope, work).is_err() {
                break;
            }
        }
        crew.work();
    });
    let Haul { commits, error } = crew.haul.into_inner().unwrap_or_else(PoisonError::into_inner);
    match error {
        None => Ok(commits),
        Some(error) => {
            landing.drop_all(commits);
            Err(error)
        }
    }
}

/// Whether parts of a layer may be fetched side by side.
fn splits(layer: &Descriptor, supply: &dyn Supply) -> bool {
    supply.parts() && layer.size >= 2 * PART
}

impl Crew<'_> {
    fn work(&self) {
        loop {
            let lane = lock(&self.left).pop();
            if lock(&self.haul).error.is_some() {
                return;
            }
            let done = match lane {
                Some(lane) => self.own(lane),
                None => match self.help() {
                    Ok(true) => continue,
                    Ok(false) => return,
                    Err(error) => Err(error),
                },
            };
            if let Err(error) = done {
                lock(&self.haul).error.get_or_insert(error);
                self.landing.word.cancel();
            }
        }
    }

    fn own(&self, lane: Lane) -> Result<()> {
        let (item, large) = (lane.item, splits(&lane.layer, self.supply));
        let done = self.layer(lane);
        if large {
            self.large.fetch_sub(1, Ordering::Release);
        }
        let commit = done?;
        self.landing.job.board().phase(item, Phase::Unpacking);
        lock(&self.haul).commits.extend(commit);
        Ok(())
    }

    /// Fetches a part of a layer that somebody else has. False: there is nothing to help with, now or later.
    fn help(&self) -> Result<bool> {
        let open: Vec<Arc<Open>> = lock(&self.open).clone();
        for one in &open {
            if let Some((index, from, to)) = one.parts.claim() {
                // Its owner hears of it, and says so.
                if let Err(error) = self.part(one, index, from, to) {
                    one.parts.failed(index, error);
                }
                return Ok(true);
            }
        }
        let all = open.len() == self.large.load(Ordering::Acquire);
        if all && open.iter().all(|one| one.parts.is_spread()) {
            return Ok(false);
        }
        self.landing.word.wait(LOOK)?;
        Ok(true)
    }

    fn part(&self, open: &Open, index: usize, from: u64, to: u64) -> Result<()> {
        let Some(inner) = self.supply.part(&open.layer, from, to)? else {
            open.parts.alone(Some(index));
            return Ok(());
        };
        let (board, cancel) = (self.landing.job.board(), self.landing.word);
        let mut source = Counted { inner, board, number: open.item, cancel };
        let (mut at, mut buffer) = (from, vec![0; BUFFER]);
        while at < to {
            match read(&mut source, &mut buffer, &open.layer)? {
                0 => return Err(Error::data_loss("layer", &open.layer.digest, "ended before its end")),
                count => {
                    open.ahead.write_at(&buffer[..count], at)?;
                    at += count as u64;
                    open.parts.wrote(index, at);
                }
            }
        }
        Ok(())
    }

    /// One layer; `None` if it turned out to be there.
    fn layer(&self, lane: Lane) -> Result<Option<Commit>> {
        let (landing, layer) = (self.landing, lane.layer.clone());
        landing.job.board().phase(lane.item, Phase::Fetching);
        if let Some(ingest) = self.supply.ingested(&layer) {
            return landing.checked(&layer, ingest).map(Some);
        }
        let mut ingest = match self.ingest(&layer) {
            Ok(ingest) => ingest,
            Err(e) if e.code == Code::AlreadyExists => return Ok(None),
            Err(e) => return Err(e),
        };
        match self.pour(lane, &mut ingest) {
            Ok(()) => landing.checked(&layer, ingest).map(Some),
            Err(error) => {
                landing.abort(ingest);
                Err(error)
            }
        }
    }

    fn ingest(&self, layer: &Descriptor) -> Result<Ingest> {
        let Landing { core, auth, ns, .. } = self.landing;
        let (content, algorithm) = (&core.content, layer.digest.algorithm());
        if !self.supply.far() {
            return content.scratch(ns, algorithm);
        }
        let total = Some(layer.size);
        // Through a grant that chooses images nobody goes on with what others have fetched, and what is here is no reason not to.
        let (reference, expected) = match auth.ceiling.images.is_all() {
            true => (format!("layer-{}", layer.digest), Some(layer.digest.clone())),
            false => (format!("layer-{}-{}", layer.digest, auth.grant()), None),
        };
        let reference = Name::new(reference)?;
        match content.ingest_blocking(auth, ns, IngestOptions { reference, total, expected, algorithm, unread: true }) {
            // A client writes under our ref, or has begun it with another size: that is its own business.
            Err(e) if matches!(e.code, Code::Unavailable | Code::InvalidArgument) => content.scratch(ns, algorithm),
            other => other,
        }
    }

    /// All of it into the ingest and into its tree.
    fn pour(&self, lane: Lane, ingest: &mut Ingest) -> Result<()> {
        let Lane { layer, item, mut feed } = lane;
        let found: u64 = ingest.left().iter().map(|(from, to)| to - from).sum();
        if found > 0 {
            tracing::debug!(digest = %layer.digest, found, size = layer.size, "a layer is gone on with");
        }
        self.landing.job.board().at(item, found);
        self.take(&layer, item, &mut feed, ingest)?;
        if let Err(error) = verdict(&layer, ingest) {
            if found == 0 {
                return Err(error);
            }
            // What was there may be what is wrong. Once more from the beginning; its tree is made from the store afterwards.
            feed = None;
            ingest.truncate()?;
            self.landing.job.board().at(item, 0);
            self.take(&layer, item, &mut feed, ingest)?;
        }
        if feed.is_some() || self.landing.driver.is_none() {
            // It is not read again soon.
            ingest.write_out();
        }
        // Only now may the tree count as whole.
        if let Some(feed) = feed {
            let _ = feed.finish();
        }
        Ok(())
    }

    fn take(&self, layer: &Descriptor, item: usize, feed: &mut Option<LayerFeed>, ingest: &mut Ingest) -> Result<()> {
        let ahead = if splits(layer, self.supply) { ingest.ahead()? } else { None };
        let parts = Parts::new(layer.size, ingest.left(), ahead.is_some());
        let Some(ahead) = ahead else { return self.walk(layer, item, feed, ingest, &parts) };
        let open = Arc::new(Open { layer: layer.clone(), item, ahead, parts });
        lock(&self.open).push(open.clone());
        let done = self.walk(layer, item, feed, ingest, &open.parts);
        lock(&self.open).retain(|other| !Arc::ptr_eq(other, &open));
        done
    }

    /// From the beginning to the end, whoever fetches it.
    fn walk(
        &self,
        layer: &Descriptor,
        item: usize,
        feed: &mut Option<LayerFeed>,
        ingest: &mut Ingest,
        parts: &Parts,
    ) -> Result<()> {
        let (board, cancel) = (self.landing.job.board(), self.landing.word);
        let mut buffer = vec![0; BUFFER];
        let mut hunger = Hunger::new(parts);
        // An extraction that ended early has its own error, which comes out at the end. The bytes are taken in nevertheless: if
        // it is they that are wrong, the digest says so, and better.
        let mut unpack = |bytes: &[u8]| {
            if feed.as_mut().is_some_and(|feed| feed.write_all(bytes).is_err()) {
                *feed = None;
            }
        };
        while ingest.offset() < layer.size {
            let began = Instant::now();
            let step = parts.next(ingest.offset(), cancel)?;
            hunger.waited(began.elapsed());
            let to = match step {
                Step::Read(to) => {
                    while ingest.offset() < to {
                        cancel.check()?;
                        let piece = usize::try_from(to - ingest.offset()).unwrap_or(BUFFER).min(BUFFER);
                        ingest.recover(&mut buffer[..piece])?;
                        unpack(&buffer[..piece]);
                    }
                    continue;
                }
                Step::Fetch(to) => to,
            };
            let (inner, end) = self.supply.own(layer, ingest.offset(), to)?;
            if end > to {
                parts.alone(None);
            }
            let mut source = Counted { inner, board, number: item, cancel };
            while ingest.offset() < end {
                let began = Instant::now();
                let count = read(&mut source, &mut buffer, layer)?;
                hunger.waited(began.elapsed());
                if count == 0 {
                    // It is shorter than it should be: so says who compares.
                    return Ok(());
                }
                ingest.append(&buffer[..count])?;
                unpack(&buffer[..count]);
            }
            if end == layer.size && read(&mut source, &mut buffer[..1], layer)? > 0 {
                let why = format!("unexpected size, expected {}: what should hold it is damaged", layer.size);
                return Err(Error::data_loss("layer", &layer.digest, why));
            }
        }
        Ok(())
    }
}

impl Landing<'_> {
    /// An ingest that has all of a layer, on its way to be a blob.
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
}

fn read(source: &mut impl Read, buffer: &mut [u8], layer: &Descriptor) -> Result<usize> {
    loop {
        match source.read(buffer) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other.map_err(|e| from_io("layer", &layer.digest, "can't be read", e)),
        }
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
