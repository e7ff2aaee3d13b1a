//! The logic: queue, log and row together.

use std::{
    collections::VecDeque,
    os::fd::OwnedFd,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use cofferdam_metadata::{Metadata, records::audit as records};
use cofferdam_segments::Retention;
use cofferdam_types::{Authority, Code, Error, Peer, Result};
use nix::unistd::geteuid;
use tokio::sync::{Notify, oneshot, watch};

use crate::{
    Filter, Found, Place, Record, Report,
    log::{Log, Seen},
    often::{Often, REFUSALS, USES},
    verify::verify,
};

/// Records that may wait. Some 80 bytes of each, and what it says.
const WAITING: usize = 4096;
/// Records that are written at once.
const BATCH: usize = 256;

struct Waiting {
    record: Record,
    /// Of one for which somebody waits.
    answer: Option<oneshot::Sender<Result<()>>>,
}

struct Queue {
    waiting: VecDeque<Waiting>,
    refusals: Often,
    uses: Often,
    /// Records for which there was no room.
    lost: u64,
}

impl Queue {
    fn new() -> Queue {
        Queue { waiting: VecDeque::new(), refusals: Often::new(REFUSALS), uses: Often::new(USES), lost: 0 }
    }
}

/// Whether it is of the daemon itself, or of who could write the log himself.
fn is_own(record: &Record) -> bool {
    let own = |Peer::Unix { uid, .. }: Peer| uid == geteuid().as_raw();
    record.grants.is_empty() && record.peer.is_none_or(own)
}

/// What all lives of the actor share.
pub(crate) struct Core {
    meta: Metadata,
    queue: Mutex<Queue>,
    /// Held by the one that writes.
    log: Mutex<Log>,
    seen: Mutex<Seen>,
    /// Whether there is no room ahead of the end of the log.
    full: AtomicBool,
    /// Whether the row stands behind the log, and that was said.
    behind: AtomicBool,
    /// Told when something waits, where nothing did.
    pub wake: Notify,
    /// Told when somebody waits.
    pub urgent: Notify,
    /// The last record that is on disk.
    pub last: watch::Sender<u64>,
}

/// No invariant spans a panic under these locks: a log that fails half-way is as it was before.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Core {
    /// Opens the log. What there is to say of that is its first record.
    pub fn open(meta: Metadata, dir: OwnedFd, retention: Retention) -> Result<Core> {
        let head = records::head(&meta.read()?).unwrap_or_else(|error| {
            tracing::error!(%error, "where the audit log ends is not on record");
            None
        });
        let (log, said) = Log::open(dir, retention, head)?;
        let fresh = said.is_none() && log.head().last == 0;
        let core = Core {
            meta,
            queue: Mutex::new(Queue::new()),
            seen: Mutex::new(log.seen()),
            last: watch::Sender::new(log.head().last),
            log: Mutex::new(log),
            full: AtomicBool::new(false),
            behind: AtomicBool::new(false),
            wake: Notify::new(),
            urgent: Notify::new(),
        };
        if let Some(said) = said {
            tracing::error!("the audit log is not what was written: {said}; coffer audit verify says where");
            core.add(Record::own(said));
        } else if fresh {
            core.add(Record { verdict: crate::Verdict::Allowed, ..Record::own("the log begins") });
        }
        Ok(core)
    }

    /// Puts a record into the queue, and waits for nobody. Of very many of one not all are told.
    pub fn add(&self, record: Record) {
        let mut queue = lock(&self.queue);
        let told = if is_own(&record) { Some(record.fit()) } else { queue.uses.add(record.fit(), Instant::now()) };
        self.tell(queue, told);
    }

    /// The same of a call that was refused: of many a few are told.
    pub fn refused(&self, record: Record) {
        let mut queue = lock(&self.queue);
        let told = queue.refusals.add(record.fit(), Instant::now());
        self.tell(queue, told);
    }

    fn tell(&self, mut queue: MutexGuard<'_, Queue>, told: Option<Record>) {
        match told {
            Some(record) => self.push(&mut queue, record, None),
            None => self.wake.notify_one(),
        }
    }

    /// A record for which somebody waits: it is written at once, with all that is before it.
    pub fn append(&self, record: Record) -> oneshot::Receiver<Result<()>> {
        let (answer, answered) = oneshot::channel();
        let mut queue = lock(&self.queue);
        self.push(&mut queue, record.fit(), Some(answer));
        drop(queue);
        self.urgent.notify_one();
        answered
    }

    fn push(&self, queue: &mut Queue, record: Record, answer: Option<oneshot::Sender<Result<()>>>) {
        if queue.waiting.len() >= WAITING {
            match answer {
                // Its receiver is told so.
                Some(answer) => drop(answer.send(Err(Error::unavailable("audit", "", "too many records wait")))),
                None => queue.lost += 1,
            }
            return;
        }
        if queue.waiting.is_empty() {
            self.wake.notify_one();
        }
        queue.waiting.push_back(Waiting { record, answer });
    }

    /// Whether something is to be written now.
    pub fn soon(&self) -> bool {
        let queue = lock(&self.queue);
        !queue.waiting.is_empty() || queue.lost > 0
    }

    /// Whether something is, now or in a while.
    pub fn waits(&self) -> bool {
        let often = |queue: &Queue| queue.refusals.waits() || queue.uses.waits();
        self.soon() || often(&lock(&self.queue))
    }

    /// Whether there is no room ahead of the end of the log, as far as is known: one load.
    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Acquire)
    }

    /// Looks whether there is.
    pub fn room(&self) -> Result<()> {
        self.hold(&mut lock(&self.log))
    }

    fn hold(&self, log: &mut Log) -> Result<()> {
        let held = log.hold();
        self.full.store(held.is_err(), Ordering::Release);
        held.map_err(|e| e.context("what can't be put on record is refused"))
    }

    /// What is to be written next. Without room it is that for which somebody waits, and nothing else.
    fn batch(&self, room: bool) -> Vec<Waiting> {
        let mut queue = lock(&self.queue);
        if !room {
            let (urgent, rest) = std::mem::take(&mut queue.waiting).into_iter().partition(|one| one.answer.is_some());
            queue.waiting = rest;
            return urgent.into();
        }
        let now = Instant::now();
        let due = [queue.refusals.due(now), queue.uses.due(now)].concat();
        for record in due {
            self.push(&mut queue, record, None);
        }
        let many = queue.waiting.len().min(BATCH);
        let mut batch: Vec<Waiting> = queue.waiting.drain(..many).collect();
        if queue.lost > 0 {
            let lost = std::mem::take(&mut queue.lost);
            let record = Record::own(format!("{lost} records are lost: more came than could be written"));
            batch.push(Waiting { record, answer: None });
        }
        batch
    }

    /// Writes what waits. Blocks: for workers alone.
    pub fn flush(&self) -> Result<()> {
        let mut log = lock(&self.log);
        loop {
            let room = self.hold(&mut log);
            let mut batch = self.batch(room.is_ok());
            if batch.is_empty() {
                return room;
            }
            let records: Vec<Record> = batch.iter().map(|one| one.record.clone()).collect();
            if let Err(error) = log.append(&records) {
                if error.code == Code::ResourceExhausted {
                    self.full.store(true, Ordering::Release);
                }
                let mut queue = lock(&self.queue);
                for one in batch.into_iter().rev() {
                    match one.answer {
                        Some(answer) => drop(answer.send(Err(error.clone()))),
                        None => queue.waiting.push_front(one),
                    }
                }
                return Err(error);
            }
            let urgent = batch.iter().any(|one| one.answer.is_some());
            let gone = log.retire();
            let recorded = self.set_head(&log, urgent);
            let news = self.is_news(recorded.is_err());
            match &recorded {
                Ok(()) => log.remove(&gone),
                // The records are on disk all the same: the next that are written move it.
                Err(error) if news => tracing::warn!(%error, "where the audit log ends can't be put on record"),
                Err(_) => {}
            }
            *lock(&self.seen) = log.seen();
            self.last.send_replace(log.head().last);
            for one in &mut batch {
                if let Some(answer) = one.answer.take() {
                    let _ = answer.send(Ok(()));
                }
            }
        }
    }

    /// Whether the row stands behind the log for the first time since it didn't: it may for as long as the daemon runs.
    pub(crate) fn is_news(&self, behind: bool) -> bool {
        !self.behind.swap(behind, Ordering::Relaxed) && behind
    }

    fn set_head(&self, log: &Log, urgent: bool) -> Result<()> {
        let (head, authority) = (log.head(), Authority::system());
        let set = move |tx: &mut cofferdam_metadata::Tx<'_>| records::set_head(tx, &head);
        cofferdam_kernel::block_on(async {
            if urgent { self.meta.write(&authority, set).await } else { self.meta.write_lazily(&authority, set).await }
        })
    }

    /// What is not told yet of what came often, and all that waits: at the end.
    pub fn finish(&self) {
        let mut queue = lock(&self.queue);
        let rest = [queue.refusals.rest(), queue.uses.rest()].concat();
        for record in rest {
            self.push(&mut queue, record, None);
        }
        drop(queue);
        if let Err(error) = self.flush() {
            tracing::error!(%error, "the audit log can't be written, and what was left to write is lost");
        }
    }

    pub fn read(&self, place: &mut Place, max: usize, filter: &Filter) -> Result<(Vec<Found>, bool)> {
        let seen = lock(&self.seen).clone();
        seen.read(place, max, filter)
    }

    /// Reads all of it again. What is appended or dropped meanwhile is no fault of the log's.
    pub fn verify(&self) -> Result<Report> {
        // What can't be written is no fault of what was.
        let _ = self.flush();
        loop {
            let log = lock(&self.log);
            let (seen, now) = (log.seen(), log.head());
            drop(log);
            // As it is on record: that is what the log has to lead to.
            let head = records::head(&self.meta.read()?)?.unwrap_or(now);
            let report = verify(seen.dir(), &head)?;
            let begins = records::head(&self.meta.read()?)?.unwrap_or(now).first;
            if begins == head.first {
                return Ok(report);
            }
        }
    }
}
