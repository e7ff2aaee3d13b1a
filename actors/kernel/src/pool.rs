//! Worker threads that an actor owns, for what must not run in its mailbox's thread: hashing, tar, fsync, mount.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use cofferdam_types::{Error, Result};
use tokio::sync::oneshot;

use crate::panics::panic_text;

/// A thread that finds nothing to do for so long ends; the next job starts another.
const IDLE: Duration = Duration::from_secs(10);

/// At most so many threads and so many waiting jobs. Threads start when there is work. Clones share them; when the
/// last clone is gone the queue is worked off and the threads end.
#[derive(Clone)]
pub struct Pool(Arc<Handle>);

struct Handle(Arc<Shared>);

struct Shared {
    name: &'static str,
    threads: usize,
    queue: usize,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Box<dyn FnOnce() + Send>>,
    threads: usize,
    idle: usize,
    closed: bool,
}

impl Pool {
    /// A pool of at most `threads` threads with room for `queue` waiting jobs.
    pub fn new(name: &'static str, threads: usize, queue: usize) -> Pool {
        let shared = Shared { name, threads: threads.max(1), queue, state: Mutex::default(), wake: Condvar::new() };
        Pool(Arc::new(Handle(Arc::new(shared))))
    }

    /// Runs a job on a worker and waits for what it gives. A full queue is `unavailable`, a panic `internal`. A job
    /// that was accepted runs even if its caller goes away.
    pub async fn run<R: Send + 'static>(&self, job: impl FnOnce() -> Result<R> + Send + 'static) -> Result<R> {
        let name = self.0.0.name;
        let answered = self.submit(job)?;
        answered.await.unwrap_or_else(|_| Err(Error::internal("pool", name, "lost a job")))
    }

    /// [`Pool::run`] for threads. Never from one of the pool's own workers: all of them could come to wait so.
    pub fn run_blocking<R: Send + 'static>(&self, job: impl FnOnce() -> Result<R> + Send + 'static) -> Result<R> {
        futures::executor::block_on(self.run(job))
    }

    /// Has a job run that nobody waits for. `false`: the queue is full, and it won't run.
    pub fn push(&self, job: impl FnOnce() + Send + 'static) -> bool {
        let job = move || {
            job();
            Ok(())
        };
        self.submit(job).is_ok()
    }

    fn submit<R: Send + 'static>(
        &self,
        job: impl FnOnce() -> Result<R> + Send + 'static,
    ) -> Result<oneshot::Receiver<Result<R>>> {
        let shared = &self.0.0;
        let name = shared.name;
        let (answer, answered) = oneshot::channel();
        let job = Box::new(move || {
            let result = catch_unwind(AssertUnwindSafe(job)).unwrap_or_else(|payload| {
                let text = panic_text(&*payload);
                tracing::error!(pool = name, "a job panicked: {text}");
                Err(Error::internal("pool", name, format!("a job panicked: {text}")))
            });
            let _ = answer.send(result);
        });
        let mut state = shared.lock();
        if state.jobs.len() >= state.idle && state.threads < shared.threads {
            let worker = shared.clone();
            match thread::Builder::new().name(name.to_owned()).spawn(move || work(&worker)) {
                Ok(_) => state.threads += 1,
                Err(e) if state.threads == 0 => return Err(Error::io("pool", name, "starting a thread", &e)),
                Err(_) => {} // Those that run will get to it.
            }
        } else if state.jobs.len() >= state.idle + shared.queue {
            return Err(Error::unavailable("pool", name, format!("overloaded: {} jobs wait; try again", shared.queue)));
        }
        state.jobs.push_back(job);
        drop(state);
        shared.wake.notify_one();
        Ok(answered)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn work(shared: &Shared) {
    let mut state = shared.lock();
    loop {
        if let Some(job) = state.jobs.pop_front() {
            drop(state);
            job();
            state = shared.lock();
            continue;
        }
        if state.closed {
            break;
        }
        state.idle += 1;
        let (woken, waited) = shared.wake.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
        state = woken;
        state.idle -= 1;
        if waited.timed_out() && state.jobs.is_empty() {
            break;
        }
    }
    state.threads -= 1;
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.wake.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use cofferdam_types::Code;
    use futures::{FutureExt, executor::block_on};

    use super::*;

    /// A job that says that it runs and waits until the sender is dropped.
    fn held(pool: &Pool) -> (mpsc::Sender<()>, impl Future<Output = Result<u32>>) {
        let (release, word) = mpsc::channel();
        let (entered, inside) = mpsc::channel();
        let pool = pool.clone();
        let mut job = Box::pin(async move {
            pool.run(move || {
                let _ = entered.send(());
                let _: Result<(), _> = word.recv();
                Ok(7)
            })
            .await
        });
        assert!((&mut job).now_or_never().is_none());
        inside.recv().unwrap();
        (release, job)
    }

    #[test]
    fn threads_and_queue_are_bounded() {
        let pool = Pool::new("test", 2, 1);
        assert_eq!(pool.0.0.lock().threads, 0, "none before there is work");
        let (release, first) = held(&pool);
        let (release_too, second) = held(&pool);
        let mut third = Box::pin(pool.run(|| Ok(8)));
        assert!((&mut third).now_or_never().is_none());
        let refused = block_on(pool.run(|| Ok(9))).unwrap_err();
        assert_eq!(refused.code, Code::Unavailable);
        assert_eq!(pool.0.0.lock().threads, 2);
        drop((release, release_too));
        assert_eq!(block_on(async { (first.await.unwrap(), second.await.unwrap(), third.await.unwrap()) }), (7, 7, 8));
        assert_eq!(pool.run_blocking(|| Ok(10)).unwrap(), 10);
    }

    #[test]
    fn a_job_that_nobody_waits_for_runs_or_is_refused() {
        let pool = Pool::new("test", 1, 1);
        let (release, first) = held(&pool);
        let (done, seen) = mpsc::channel();
        assert!(pool.push(move || done.send(()).unwrap()));
        assert!(!pool.push(|| ()), "the queue is full");
        drop(release);
        assert_eq!((block_on(first).unwrap(), seen.recv()), (7, Ok(())));
    }

    #[test]
    fn a_panic_is_an_error_and_the_pool_lives() {
        let pool = Pool::new("test", 1, 1);
        let error = pool.run_blocking(|| -> Result<()> { panic!("a defect") }).unwrap_err();
        assert_eq!((error.code, error.message.as_str()), (Code::Internal, "a job panicked: a defect"));
        assert_eq!(pool.run_blocking(|| Ok(1)).unwrap(), 1);
    }

    #[test]
    fn the_queue_is_worked_off_when_the_pool_is_gone() {
        let pool = Pool::new("test", 1, 4);
        let (release, _first) = held(&pool);
        let (done, seen) = mpsc::channel();
        let job = pool.submit(move || Ok(done.send(()).is_ok())).unwrap();
        let shared = pool.0.0.clone();
        drop(_first);
        drop(pool);
        drop(release);
        seen.recv().unwrap();
        assert!(block_on(job).unwrap().unwrap());
        // Its threads end: each holds the shared part.
        while Arc::strong_count(&shared) > 1 {
            thread::yield_now();
        }
    }
}
