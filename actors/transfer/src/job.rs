//! A job: what it does has a name, a progress, an end, and can be cancelled; whoever holds it may ask and go.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use cofferdam_kernel::panic_text;
use cofferdam_types::{Descriptor, Digest, Error, Name, Namespace, Result, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{Cancel, Progress, progress::Board};

/// Jobs that have ended and are still listed.
const KEPT: usize = 64;

/// An image that a job brought.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arrived {
    /// Its name.
    pub name: Name,
    /// What the name stands for.
    pub target: Descriptor,
    /// The manifest for the platform that was asked for.
    pub manifest: Digest,
    /// The topmost layer, if it was unpacked.
    pub chain: Option<Digest>,
}

/// What there is to say about a job.
#[derive(Clone, Debug)]
pub struct Status {
    /// Its id.
    pub id: u64,
    /// `pull`, `import`, …
    pub kind: &'static str,
    /// What it is about.
    pub subject: String,
    /// Where.
    pub namespace: Namespace,
    /// When it was accepted.
    pub started: Timestamp,
    /// How far it is.
    pub progress: Progress,
    /// What came of it; `None` while it runs.
    pub outcome: Option<Result<Vec<Arrived>>>,
}

/// A handle on a job. It goes on when the last handle is dropped; [`Job::cancel`] ends it.
#[derive(Clone)]
pub struct Job(Arc<Inner>);

struct Inner {
    id: u64,
    kind: &'static str,
    subject: String,
    namespace: Namespace,
    started: Timestamp,
    cancel: Cancel,
    /// Its turn has come, or won't.
    begun: AtomicBool,
    board: Board,
    outcome: watch::Sender<Option<Result<Vec<Arrived>>>>,
}

impl Job {
    /// Its id: unique while the daemon runs.
    pub fn id(&self) -> u64 {
        self.0.id
    }

    /// The namespace that it works in.
    pub fn namespace(&self) -> &Namespace {
        &self.0.namespace
    }

    /// Ends it soon: it fails with `cancelled`, and what it had brought so far is dropped. One whose turn hasn't come ends at once:
    /// those that it waits for may never be done.
    pub fn cancel(&self) {
        self.0.cancel.cancel();
        if !self.0.begun.swap(true, Ordering::AcqRel) {
            self.end(self.0.cancel.check().map(|()| Vec::new()));
        }
    }

    /// How far it is, as it goes.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.0.board.watch()
    }

    /// What comes of it. Any number may wait.
    pub async fn wait(&self) -> Result<Vec<Arrived>> {
        let mut outcome = self.0.outcome.subscribe();
        match outcome.wait_for(Option::is_some).await.map(|outcome| outcome.clone()) {
            Ok(Some(result)) => result,
            _ => Err(Error::internal("job", self.0.id, "ended without an outcome")),
        }
    }

    /// [`Job::wait`] for threads.
    pub fn wait_blocking(&self) -> Result<Vec<Arrived>> {
        cofferdam_kernel::block_on(self.wait())
    }

    /// All there is to say about it.
    pub fn status(&self) -> Status {
        let inner = &self.0;
        Status {
            id: inner.id,
            kind: inner.kind,
            subject: inner.subject.clone(),
            namespace: inner.namespace.clone(),
            started: inner.started,
            progress: inner.board.watch().borrow().clone(),
            outcome: inner.outcome.borrow().clone(),
        }
    }

    pub(crate) fn word(&self) -> &Cancel {
        &self.0.cancel
    }

    pub(crate) fn board(&self) -> &Board {
        &self.0.board
    }

    /// Does it, unless it has ended. A panic is the job's own end and nobody else's.
    pub(crate) fn run(&self, work: impl FnOnce(&Job) -> Result<Vec<Arrived>>) {
        if self.0.begun.swap(true, Ordering::AcqRel) {
            return;
        }
        let result = self.0.cancel.check().and_then(|()| {
            catch_unwind(AssertUnwindSafe(|| work(self))).unwrap_or_else(|payload| {
                let text = panic_text(&*payload);
                tracing::error!(job = self.0.id, "a job panicked: {text}");
                Err(Error::internal("job", self.0.id, format!("panicked: {text}")))
            })
        });
        // A cancelled job fails in the strangest places: what matters is that it was cancelled.
        let result = result.or_else(|e| self.0.cancel.check().and(Err(e)));
        self.end(result);
    }

    /// The first end is the end.
    pub(crate) fn end(&self, result: Result<Vec<Arrived>>) {
        if self.ended() {
            return;
        }
        match result {
            Ok(_) => self.0.board.finish(),
            Err(_) => self.0.board.stage("failed"),
        }
        self.0.outcome.send_replace(Some(result));
    }

    fn ended(&self) -> bool {
        self.0.outcome.borrow().is_some()
    }
}

/// All jobs, running and lately ended.
#[derive(Default)]
pub(crate) struct Jobs(Mutex<Table>);

#[derive(Default)]
struct Table {
    last: u64,
    jobs: BTreeMap<u64, Job>,
}

impl Jobs {
    pub fn begin(&self, kind: &'static str, subject: String, ns: &Namespace) -> Job {
        let mut table = self.table();
        table.last += 1;
        let job = Job(Arc::new(Inner {
            id: table.last,
            kind,
            subject,
            namespace: ns.clone(),
            started: Timestamp::now(),
            cancel: Cancel::new(),
            begun: AtomicBool::new(false),
            board: Board::new(),
            outcome: watch::Sender::new(None),
        }));
        table.jobs.insert(job.id(), job.clone());
        let ended: Vec<u64> = table.jobs.values().filter(|j| j.ended()).map(Job::id).collect();
        for id in ended.iter().take(ended.len().saturating_sub(KEPT)) {
            table.jobs.remove(id);
        }
        job
    }

    pub fn find(&self, ns: &Namespace, id: u64) -> Result<Job> {
        let job = self.table().jobs.get(&id).filter(|job| job.namespace() == ns).cloned();
        job.ok_or_else(|| Error::not_found("job", id, "does not exist, or ended long ago"))
    }

    pub fn list(&self, ns: &Namespace, after: u64, max: usize) -> Vec<Job> {
        let table = self.table();
        let later = table.jobs.range(after.saturating_add(1)..);
        later.map(|(_, job)| job).filter(|job| job.namespace() == ns).take(max).cloned().collect()
    }

    pub fn cancel_all(&self) {
        let running: Vec<Job> = self.table().jobs.values().filter(|job| !job.ended()).cloned().collect();
        for job in running {
            job.cancel();
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use cofferdam_types::Code;

    use super::*;

    fn ns() -> Namespace {
        Namespace::default_namespace()
    }

    #[test]
    fn a_job_has_one_end_that_all_see() {
        let jobs = Jobs::default();
        let job = jobs.begin("pull", "x".into(), &ns());
        let other = job.clone();
        let waiting = std::thread::spawn(move || other.wait_blocking());
        assert!(job.status().outcome.is_none());
        job.run(|_| Ok(Vec::new()));
        assert_eq!(waiting.join().unwrap().unwrap(), []);
        assert_eq!(job.status().progress.stage, "done");
    }

    #[test]
    fn a_panic_is_contained_and_a_cancelled_job_says_so() {
        let jobs = Jobs::default();
        let job = jobs.begin("pull", "x".into(), &ns());
        job.run(|_| panic!("on purpose"));
        let error = job.wait_blocking().unwrap_err();
        assert_eq!(error.code, Code::Internal);
        assert!(error.message.contains("on purpose"));
        let job = jobs.begin("pull", "x".into(), &ns());
        job.run(|job| {
            job.cancel();
            Err(Error::data_loss("blob", "", "whatever"))
        });
        assert_eq!(job.wait_blocking().unwrap_err().code, Code::Cancelled);
        // Before its turn has come: at once.
        let job = jobs.begin("pull", "x".into(), &ns());
        job.cancel();
        assert_eq!(job.wait_blocking().unwrap_err().code, Code::Cancelled);
        job.run(|_| panic!("must not begin"));
        job.end(Err(Error::unavailable("pool", "", "overloaded")));
        assert_eq!(job.wait_blocking().unwrap_err().code, Code::Cancelled);
    }

    #[test]
    fn ended_jobs_are_forgotten_in_the_end_and_running_ones_never() {
        let jobs = Jobs::default();
        let running = jobs.begin("pull", "x".into(), &ns());
        for _ in 0..3 * KEPT {
            jobs.begin("pull", "y".into(), &ns()).end(Ok(Vec::new()));
        }
        let all = jobs.list(&ns(), 0, usize::MAX);
        assert!(all.len() <= KEPT + 2 && all[0].id() == running.id());
        assert_eq!(jobs.list(&ns(), running.id(), 5).len(), 5);
        assert!(jobs.find(&ns(), running.id()).is_ok());
        // Another namespace's job is as if it were not.
        let other = Namespace::new("other").unwrap();
        assert_eq!(jobs.find(&other, running.id()).err().unwrap().code, Code::NotFound);
        assert!(jobs.list(&other, 0, 100).is_empty());
        jobs.cancel_all();
        assert!(running.word().check().is_err());
    }
}
