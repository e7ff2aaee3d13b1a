//! Worker threads for work that a client can hold up: it may wait for bytes that never come, or for a reader who never reads.
//!
//! What comes through grants has threads of its own, so that the operator's goes on, and of these each grant that the operator made has
//! a few, with all that come from it. What it wants beyond that waits for its own.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use cofferdam_types::{Error, GrantId, Result};
use tokio::sync::Semaphore;

use crate::Pool;

/// See the module. Clones share them.
#[derive(Clone)]
pub struct Fair(Arc<Shared>);

struct Shared {
    name: &'static str,
    own: Pool,
    theirs: Pool,
    ours: Arc<Turns>,
    /// At once, of one grant, and how many more of it may wait.
    each: usize,
    waiting: usize,
    turns: Mutex<HashMap<GrantId, Weak<Turns>>>,
}

/// Of the operator, or of one grant. A job is given to its pool when its turn has come: until then who gives it up takes it with him.
struct Turns {
    begun: Arc<Semaphore>,
    running: Arc<Semaphore>,
}

impl Turns {
    fn new(running: usize, waiting: usize) -> Arc<Turns> {
        let so_many = |most| Arc::new(Semaphore::new(most));
        Arc::new(Turns { begun: so_many(running + waiting), running: so_many(running) })
    }
}

impl Fair {
    /// At most so many threads for the operator, and room for `queue` waiting jobs. A grant has half as many, and as much room, and all
    /// grants four times as many: most of those do nothing, where there are so many.
    pub fn new(name: &'static str, threads: usize, queue: usize) -> Fair {
        Fair(Arc::new(Shared {
            name,
            own: Pool::new(name, threads, queue),
            theirs: Pool::new(name, threads * 4, queue * 4),
            ours: Turns::new(threads, queue),
            each: threads.div_ceil(2),
            waiting: queue,
            turns: Mutex::default(),
        }))
    }

    /// Runs a job on a worker, when it is its turn, and waits for what it gives. `whose` is the outermost grant that it comes
    /// through; none: it is the operator's. Too many are refused. A job whose turn came runs even if its caller goes away, and one
    /// whose turn hadn't is let go of.
    pub async fn run<R: Send + 'static>(
        &self,
        whose: Option<GrantId>,
        job: impl FnOnce() -> Result<R> + Send + 'static,
    ) -> Result<R> {
        let Shared { name, own, theirs, ours, each, waiting, .. } = &*self.0;
        let (turns, pool) = match whose {
            None => (ours.clone(), own),
            Some(grant) => (self.turns(grant), theirs),
        };
        let Ok(begun) = turns.begun.clone().try_acquire_owned() else {
            return Err(match whose {
                None => Error::unavailable("pool", name, format!("overloaded: {waiting} jobs wait; try again")),
                Some(grant) => {
                    let why = format!(
                        "has {each} jobs that run and {waiting} that wait, with those that come from it: wait for one"
                    );
                    Error::resource_exhausted("grant", grant, why)
                }
            });
        };
        let closed = |_| Error::internal("pool", name, "has no turns any more");
        let running = turns.running.clone().acquire_owned().await.map_err(closed)?;
        // Until it is over: whoever waits for it may go away before.
        let job = move || {
            let _held = (turns, begun, running);
            job()
        };
        pool.run(job).await
    }

    fn turns(&self, grant: GrantId) -> Arc<Turns> {
        let mut all = self.0.turns.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turns) = all.get(&grant).and_then(Weak::upgrade) {
            return turns;
        }
        all.retain(|_, turns| turns.strong_count() > 0);
        let turns = Turns::new(self.0.each, self.0.waiting);
        all.insert(grant, Arc::downgrade(&turns));
        turns
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{SyncSender, sync_channel};

    use futures::{FutureExt as _, future::join_all};

    use super::*;

    #[test]
    fn a_grant_has_its_turns_and_keeps_nobody_elses() {
        let fair = Fair::new("test", 8, 10);
        let (one, other) = (Some(GrantId(1)), Some(GrantId(2)));
        // What each waits for comes when its end is dropped.
        let hang = || {
            let (end, wait) = sync_channel::<()>(0);
            let job = move || {
                let _ = wait.recv();
                Ok(())
            };
            (end, fair.run(one, job))
        };
        futures::executor::block_on(async {
            let (ends, hung): (Vec<SyncSender<()>>, Vec<_>) = (0..14).map(|_| hang()).unzip();
            let mut hung = Box::pin(join_all(hung));
            assert!((&mut hung).now_or_never().is_none(), "all have begun");
            let error = fair.run(one, || Ok(())).await.unwrap_err();
            assert_eq!(error.code, cofferdam_types::Code::ResourceExhausted);
            assert!(error.message.contains("4 jobs that run and 10 that wait"), "{error}");
            assert_eq!(fair.run(other, || Ok(7)).await.unwrap(), 7, "another's runs");
            assert_eq!(fair.run(None, || Ok(8)).await.unwrap(), 8, "and the operator's");
            drop(ends);
            assert!(hung.await.iter().all(Result::is_ok));
            fair.run(one, || Ok(())).await.expect("it may again");
        });
    }

    // Whoever gives up has no place any more, whether or not his turn had come.
    #[test]
    fn who_gives_up_makes_room() {
        let fair = Fair::new("test", 2, 3);
        let one = Some(GrantId(1));
        futures::executor::block_on(async {
            for _ in 0..20 {
                let (end, wait) = sync_channel::<()>(0);
                let job = move || {
                    let _ = wait.recv();
                    Ok(())
                };
                let mut hung = Box::pin(fair.run(one, job));
                assert!((&mut hung).now_or_never().is_none());
                let mut waits = Box::pin(fair.run(one, || Ok(())));
                assert!((&mut waits).now_or_never().is_none());
                drop((waits, hung, end));
                fair.run(one, || Ok(())).await.unwrap();
            }
        });
    }

    #[test]
    fn who_gives_up_before_his_turn_takes_it_with_him() {
        for whose in [Some(GrantId(1)), None] {
            // One at a time.
            let fair = Fair::new("test", 1, 3);
            let (end, wait) = sync_channel::<()>(0);
            let mut hung = Box::pin(fair.run(whose, move || {
                let _ = wait.recv();
                Ok(())
            }));
            assert!((&mut hung).now_or_never().is_none());
            let thing = Arc::new(());
            for _ in 0..20 {
                let its = thing.clone();
                let mut waits = Box::pin(fair.run(whose, move || {
                    drop(its);
                    Ok(())
                }));
                assert!((&mut waits).now_or_never().is_none(), "{whose:?}: there is room");
                drop(waits);
                assert_eq!(Arc::strong_count(&thing), 1, "{whose:?}");
            }
            drop(end);
            futures::executor::block_on(hung).unwrap();
        }
    }
}
