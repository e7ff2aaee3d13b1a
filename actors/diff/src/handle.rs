//! The handle that the other subsystems hold, and the two ends of a layer that is extracted while it arrives.

use std::{
    collections::{HashMap, VecDeque},
    future::Future,
    io::{self, BufWriter, Read, Write},
    os::fd::{AsFd, OwnedFd},
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    thread::available_parallelism,
    time::Duration,
};

use cofferdam_archive::{Budget, Limits};
use cofferdam_content::{BlobReader, Content, Ingest};
use cofferdam_kernel::{Kernel, Placement, Pool, Slot, SlotConfig};
use cofferdam_snapshots::{Changes, Pace, Stage};
use cofferdam_types::{Algorithm, Code, Descriptor, Digest, Digester, Error, Namespace, Result};
use tokio::sync::oneshot;

use crate::{
    actor::DiffActor,
    create::{self, Trees},
    differs, extract,
    feed::{Sender, Source, pipe},
    list::Listing,
    messages::{Apply, Extracted, Rung, Settle, Verify},
    pack::Word,
};

/// How many jobs may wait for a thread.
const QUEUE: usize = 256;
/// Layers that are extracted while they arrive: more than all that transfers fetch at once.
const FEEDS: usize = 256;
const BOUND: usize = 512;
/// How many blobs' diff ids are remembered.
const KNOWN: usize = 4096;

/// Layers into trees. Cheap to clone.
#[derive(Clone)]
pub struct Diff {
    slot: Slot<DiffActor>,
    core: Arc<Core>,
}

pub(crate) struct Core {
    pub(crate) content: Content,
    pub(crate) pool: Pool,
    /// For what is fed. It waits for a network, and nobody else for that.
    feeds: Pool,
    room: Room,
    known: Mutex<Known>,
}

/// What inflating may take.
#[derive(Clone, Debug)]
pub struct Room {
    /// Bytes for all layers at once.
    pub budget: Budget,
    /// The largest window of a zstd layer that anybody may ask for: what is here already was let in with no more.
    pub most_window: u64,
}

impl Default for Room {
    fn default() -> Room {
        Room { budget: Budget::default(), most_window: 128 << 20 }
    }
}

/// Which tar a blob inflates to: a fact about its bytes, so it never goes stale. The oldest is forgotten first.
#[derive(Default)]
struct Known {
    diff_ids: HashMap<Digest, Digest>,
    order: VecDeque<Digest>,
}

impl Core {
    /// For what somebody was allowed before.
    pub(crate) fn ceiling(&self) -> Limits {
        self.limits(self.room.most_window)
    }

    /// For layers whose windows are at most so large; 0: the usual.
    fn limits(&self, window: u64) -> Limits {
        let usual = Limits::default();
        let max_window = if window == 0 { usual.max_window } else { window };
        let budget = Some(self.room.budget.clone());
        Limits { max_window: max_window.min(self.room.most_window), budget, ..usual }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Diff {
    /// Hosts the actor. As many jobs as there are processors run at once, beside those that are fed: inflating is what takes the time.
    pub fn start(kernel: &Kernel, placement: Placement, content: Content, room: Room) -> Diff {
        let threads = available_parallelism().map_or(2, usize::from).max(2);
        let (pool, feeds) = (Pool::new("diff", threads, QUEUE), Pool::new("diff-feed", FEEDS, QUEUE));
        let core = Arc::new(Core { content, pool, feeds, room, known: Mutex::default() });
        let config =
            SlotConfig { bound: BOUND, heartbeat: Duration::from_secs(30), ..SlotConfig::new("diff", placement) };
        let theirs = core.clone();
        Diff { slot: kernel.spawn(config, move || DiffActor(theirs.clone())), core }
    }

    /// Extracts a blob of the namespace into a stage and verifies its diff id (`data_loss` names both). A zstd window larger than
    /// `window` (0: the usual 32 MiB) is `resource_exhausted`. Dropped, it stops.
    pub async fn apply(
        &self,
        ns: &Namespace,
        layer: &Descriptor,
        diff_id: &Digest,
        stage: Stage,
        window: u64,
    ) -> Result<Extracted> {
        let (cancel, limits) = (CancelOnDrop::default(), self.core.limits(window));
        let (namespace, layer, diff_id) = (ns.clone(), layer.clone(), diff_id.clone());
        self.slot.call(Apply { namespace, layer, diff_id, stage, limits, cancel: cancel.flag() }).await
    }

    /// Whether a blob of the namespace inflates to the tar with this diff id; remembered, and else found out by doing
    /// so. Dropped, it stops.
    pub async fn verify(&self, ns: &Namespace, layer: &Descriptor, diff_id: &Digest) -> Result<()> {
        if self.knows(&layer.digest, diff_id) {
            // Knowing grants nothing: the namespace must hold it.
            return self.core.content.job_holds(ns, &layer.digest);
        }
        let cancel = CancelOnDrop::default();
        let (namespace, diff) = (ns.clone(), diff_id.clone());
        self.slot.call(Verify { namespace, layer: layer.clone(), diff_id: diff, cancel: cancel.flag() }).await?;
        self.learn(&layer.digest, diff_id);
        Ok(())
    }

    /// Whether it is remembered that a blob inflates to the tar with this diff id. That grants nothing.
    pub fn knows(&self, blob: &Digest, diff_id: &Digest) -> bool {
        self.core.known().diff_ids.get(blob) == Some(diff_id)
    }

    /// Remembers what a blob inflates to. Only for who has seen the very bytes of the blob give that diff id.
    pub fn learn(&self, blob: &Digest, diff_id: &Digest) {
        let mut known = self.core.known();
        if known.diff_ids.insert(blob.clone(), diff_id.clone()).is_none() {
            known.order.push_back(blob.clone());
        }
        if known.order.len() > KNOWN
            && let Some(oldest) = known.order.pop_front()
        {
            known.diff_ids.remove(&oldest);
        }
    }

    /// A layer that is extracted while its (compressed) bytes arrive: write them into the feed. The job takes a thread
    /// at the first byte, so that feeds nobody writes to hold up nobody. `window` as in [`Diff::apply`].
    pub fn feed(&self, layer: &Descriptor, diff_id: &Digest, stage: Stage, window: u64) -> (LayerFeed, Pending) {
        let cancel = CancelOnDrop::default();
        let finished = Arc::new(AtomicBool::new(false));
        let (sender, source) = pipe();
        let (answer, answered) = oneshot::channel();
        let job = Job {
            pool: self.core.feeds.clone(),
            source,
            layer: layer.clone(),
            diff_id: diff_id.clone(),
            stage,
            limits: self.core.limits(window),
            cancel: cancel.flag(),
            answer,
        };
        let feed = LayerFeed { sender, job: Some(job), finished: finished.clone() };
        (feed, Pending { layer: layer.digest.clone(), answered, finished, _cancel: cancel })
    }

    /// Extracts a blob of the namespace on top of what `root` shows, such as the mount of a new snapshot, and verifies
    /// its diff id. Dropped, it stops.
    pub async fn apply_onto(&self, ns: &Namespace, layer: &Descriptor, diff_id: &Digest, root: OwnedFd) -> Result<()> {
        let cancel = CancelOnDrop::default();
        let (content, ns, layer, diff_id) = (self.core.content.clone(), ns.clone(), layer.clone(), diff_id.clone());
        let (flag, limits) = (cancel.flag(), self.core.ceiling());
        let job = move || {
            let source = content.reader(&ns, &layer.digest)?;
            blame(&content, &layer, extract::onto(source, &layer, &diff_id, root, &limits, &flag))
        };
        self.core.pool.run(job).await
    }

    /// What was changed in a snapshot, as a layer of this media type that is not a blob of the namespace yet. On the
    /// caller's thread.
    pub fn create(&self, ns: &Namespace, changes: &Changes, media_type: &str, word: Word<'_>) -> Result<Created> {
        self.write(ns, media_type, |out| {
            let lower = changes.lower.as_ref().map(AsFd::as_fd);
            let trees = Trees { lower, upper: changes.upper.as_fd(), overlay: changes.overlay };
            create::create(&trees, BufWriter::with_capacity(256 << 10, out), word)
        })
    }

    /// A tar, as a layer of this media type that is not a blob of the namespace yet. On the caller's thread.
    pub fn pack(&self, ns: &Namespace, tar: &mut dyn Read, media_type: &str, word: Word<'_>) -> Result<Created> {
        self.write(ns, media_type, |out| {
            let (mut buffer, mut total) = (vec![0; 256 << 10], 0);
            let most = cofferdam_archive::Limits::default().max_bytes;
            loop {
                word()?;
                // Always as much as there is room for: what becomes of bytes depends on how many come at once.
                let mut n = 0;
                while n < buffer.len() {
                    match tar.read(&mut buffer[n..]) {
                        Ok(0) => break,
                        Ok(more) => n += more,
                        Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                        Err(e) => return Err(unread(e)),
                    }
                }
                if n == 0 {
                    return Ok(total > 0);
                }
                total += n as u64;
                if total > most {
                    return Err(Error::resource_exhausted("layer", "", format!("inflates to more than {most} bytes")));
                }
                out.write_all(&buffer[..n]).map_err(broken)?;
            }
        })
    }

    fn write(
        &self,
        ns: &Namespace,
        media_type: &str,
        fill: impl FnOnce(&mut dyn Write) -> Result<bool>,
    ) -> Result<Created> {
        let differ = differs::writer(media_type)?;
        let mut ingest = self.core.content.scratch(ns, Algorithm::Sha256)?;
        let (diff_id, filled) = {
            let packed = differ.pack(Box::new(&mut ingest)).map_err(broken)?;
            let mut out = Hashed { inner: packed, digester: Digester::new(Algorithm::Sha256) };
            let filled = fill(&mut out)?;
            out.inner.end().map_err(broken)?;
            (out.digester.finish(), filled)
        };
        let layer = Descriptor::new(media_type, ingest.digest_so_far(), ingest.offset());
        Ok(Created { ingest, layer, diff_id, filled })
    }

    /// The same on a thread of the pool. Dropped, it stops.
    pub async fn compare(&self, ns: &Namespace, changes: Changes, media_type: &str) -> Result<Created> {
        differs::writer(media_type)?;
        let cancel = CancelOnDrop::default();
        let (diff, ns, media_type, flag) = (self.clone(), ns.clone(), media_type.to_owned(), cancel.flag());
        let word = move || match flag.load(Ordering::Relaxed) {
            true => Err(Error::cancelled("layer", "", "nobody waits for it any more")),
            false => Ok(()),
        };
        self.core.pool.run(move || diff.create(&ns, &changes, &media_type, &word)).await
    }

    /// What was changed in a snapshot, to be read in blocks.
    pub fn list(&self, changes: Changes) -> Listing {
        Listing::new(self.core.pool.clone(), changes)
    }

    /// Whether layers of this media type are written.
    pub fn writes(&self, media_type: &str) -> Result<()> {
        differs::writer(media_type).map(drop)
    }

    /// Extracts a blob of the namespace, or one that is placed for it, once more, into a stage of a layer that is there, on top of the trees below it (the
    /// lowest first). On the caller's thread, at the pace that is set: told what is read of the blob. Says too whether it took
    /// anything from those trees.
    pub fn again(
        &self,
        ns: &Namespace,
        (layer, diff_id): (&Descriptor, &Digest),
        stage: Stage,
        below: Vec<OwnedFd>,
        pace: Pace<'_>,
    ) -> Result<(Stage, bool)> {
        let (broken, mut borrows) = (Mutex::new(None), false);
        let open = |layer: &Descriptor| {
            let blob = self.core.content.job_reader(ns, &layer.digest)?;
            Ok(Paced { blob, pace, broken: &broken })
        };
        let (go, limits) = (AtomicBool::new(false), self.core.ceiling());
        let extracted = extract::extract(open(layer)?, layer, diff_id, stage, &limits, &go).and_then(|extracted| {
            borrows = !below.is_empty() && extracted.borrows();
            let rungs = below.into_iter().map(Rung::There).chain([Rung::New(Box::new(extracted))]).collect();
            // All of it is blamed below.
            extract::settle(rungs, open, |_, done| done, &limits, &go)
        });
        let ended = broken.lock().unwrap_or_else(PoisonError::into_inner).take();
        let extracted = match (extracted, ended) {
            (Err(_), Some(error)) => Err(error),
            (extracted, _) => blame(&self.core.content, layer, extracted),
        };
        let stage = extracted?.pop().flatten();
        let stage = stage.ok_or_else(|| Error::internal("layer", &layer.digest, "was extracted and is not there"))?;
        Ok((stage, borrows))
    }

    /// Completes layers that were extracted without their parents, the lowest first, and gives back the stages of the
    /// new ones at their places. The blobs of the new ones are in the namespace. Dropped, it stops.
    pub async fn settle(&self, ns: &Namespace, rungs: Vec<Rung>) -> Result<Vec<Option<Stage>>> {
        let cancel = CancelOnDrop::default();
        self.slot.call(Settle { namespace: ns.clone(), rungs, cancel: cancel.flag() }).await
    }
}

/// What can't be unpacked may be what the disk has made of it: then that is on record from here on, and who brings the blob again
/// is let. Without that it would be there for everybody who asks, and good for nobody.
pub(crate) fn blame<R>(content: &Content, layer: &Descriptor, done: Result<R>) -> Result<R> {
    // What is wrong with the image, or with us, costs another look at the blob.
    let other = [Code::Cancelled, Code::Unavailable, Code::ResourceExhausted, Code::Unimplemented];
    if done.as_ref().is_err_and(|error| !other.contains(&error.code)) {
        content.suspect(&layer.digest);
    }
    done
}

fn broken(error: io::Error) -> Error {
    match error.get_ref().and_then(|e| e.downcast_ref::<Error>()) {
        Some(ours) => ours.clone(),
        None => Error::io("layer", "", "can't be written", &error),
    }
}

fn unread(error: io::Error) -> Error {
    match error.get_ref().and_then(|e| e.downcast_ref::<Error>()) {
        Some(ours) => ours.clone(),
        // What the decoder says about its bytes.
        None => Error::data_loss("layer", "", format!("can't be inflated: {error}")),
    }
}

/// A layer that [`Diff::create`] or [`Diff::pack`] wrote, on its way to be a blob.
pub struct Created {
    /// Its bytes.
    pub ingest: Ingest,
    /// What it will be.
    pub layer: Descriptor,
    /// The digest of its tar.
    pub diff_id: Digest,
    /// Whether there is anything in it.
    pub filled: bool,
}

/// A blob that is read no faster than it is to be.
struct Paced<'a> {
    blob: BlobReader,
    pace: Pace<'a>,
    /// Why it is read no further.
    broken: &'a Mutex<Option<Error>>,
}

impl Read for Paced<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.blob.read(buffer)?;
        (self.pace)(count).map_err(|error| {
            *self.broken.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.clone());
            io::Error::other(error)
        })?;
        Ok(count)
    }
}

/// What passes is hashed.
struct Hashed<W> {
    inner: W,
    digester: Digester,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.digester.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

struct Job {
    pool: Pool,
    source: Source,
    layer: Descriptor,
    diff_id: Digest,
    stage: Stage,
    limits: Limits,
    cancel: Arc<AtomicBool>,
    answer: oneshot::Sender<Result<Extracted>>,
}

impl Job {
    fn start(self) -> io::Result<()> {
        let Job { pool, source, layer, diff_id, stage, limits, cancel, answer } = self;
        let job = move || {
            let result = extract::extract(source, &layer, &diff_id, stage, &limits, &cancel);
            // Nobody waits any more: the stage is dropped with the answer.
            let _ = answer.send(result);
            Ok(())
        };
        // One poll hands the job over; it then runs whether or not anyone asks again.
        match pin!(pool.run(job)).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Err(error)) => Err(io::Error::other(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
        }
    }
}

/// Where the bytes of a layer are written to. Writing blocks while the extraction is behind. Dropped without
/// [`LayerFeed::finish`], nothing is extracted.
pub struct LayerFeed {
    sender: Sender,
    job: Option<Job>,
    finished: Arc<AtomicBool>,
}

impl LayerFeed {
    /// That was all.
    pub fn finish(mut self) -> io::Result<()> {
        self.begin()?;
        self.finished.store(true, Ordering::Relaxed);
        self.sender.finish()
    }

    fn begin(&mut self) -> io::Result<()> {
        self.job.take().map_or(Ok(()), Job::start)
    }
}

impl Write for LayerFeed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.begin()?;
        self.sender.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sender.flush()
    }
}

/// The extraction at the other end of a [`LayerFeed`]. Dropped, it stops.
pub struct Pending {
    layer: Digest,
    answered: oneshot::Receiver<Result<Extracted>>,
    finished: Arc<AtomicBool>,
    _cancel: CancelOnDrop,
}

impl Pending {
    /// Waits for it. `cancelled`: the feed was given up before its end.
    pub async fn wait(self) -> Result<Extracted> {
        let result = self.answered.await;
        match result {
            Ok(Ok(extracted)) => Ok(extracted),
            Ok(Err(error)) if self.finished.load(Ordering::Relaxed) || error.code == Code::ResourceExhausted => {
                Err(error)
            }
            _ if self.finished.load(Ordering::Relaxed) => {
                Err(Error::internal("layer", &self.layer, "its extraction ended without an answer; the log says why"))
            }
            _ => Err(Error::cancelled("layer", &self.layer, "its bytes stopped before their end")),
        }
    }
}

/// Says to who works for a call that nobody waits for it any more.
#[derive(Default)]
pub(crate) struct CancelOnDrop(Arc<AtomicBool>);

impl CancelOnDrop {
    pub(crate) fn flag(&self) -> Arc<AtomicBool> {
        self.0.clone()
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
