//! Jobs that come through grants. They have threads of their own: one may wait for bytes that its holder never sends, or for a reader
//! who never reads, and the operator's go on. Of these threads each grant that the operator made has a few, with all that come
//! from it; what it wants beyond that waits for its own.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use cofferdam_kernel::Pool;
use cofferdam_types::{Error, GrantId, Result};
use tokio::sync::Semaphore;

/// Jobs at once of one grant, and how many more of it may wait.
const EACH: usize = 4;
const WAITING: usize = 64;
/// Jobs at once of all of them. Most of the threads do nothing, where there are so many: what layers hold has a bound of its own.
const ALL: usize = 32;

/// See the module.
pub(crate) struct Theirs {
    pool: Pool,
    turns: Mutex<HashMap<GrantId, Weak<Turns>>>,
}

/// Of one grant.
struct Turns {
    begun: Semaphore,
    running: Semaphore,
}

impl Default for Theirs {
    fn default() -> Theirs {
        Theirs { pool: Pool::new("transfer-grants", ALL, ALL * 8), turns: Mutex::default() }
    }
}

impl Theirs {
    /// Runs a job when it is its grant's turn.
    pub async fn run<R: Send + 'static>(
        &self,
        whose: GrantId,
        job: impl FnOnce() -> Result<R> + Send + 'static,
    ) -> Result<R> {
        let turns = self.turns(whose);
        let Ok(_begun) = turns.begun.try_acquire() else {
            let why =
                format!("has {EACH} jobs that run and {WAITING} that wait, with those that come from it: wait for one");
            return Err(Error::resource_exhausted("grant", whose, why));
        };
        let closed = |_| Error::internal("grant", whose, "has no turns any more");
        let _running = turns.running.acquire().await.map_err(closed)?;
        self.pool.run(job).await
    }

    fn turns(&self, whose: GrantId) -> Arc<Turns> {
        let mut all = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turns) = all.get(&whose).and_then(Weak::upgrade) {
            return turns;
        }
        all.retain(|_, turns| turns.strong_count() > 0);
        let turns = Arc::new(Turns { begun: Semaphore::new(EACH + WAITING), running: Semaphore::new(EACH) });
        all.insert(whose, Arc::downgrade(&turns));
        turns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_has_its_turns_and_keeps_nobody_elses() {
        let theirs = Arc::new(Theirs::default());
        let (one, other) = (GrantId(1), GrantId(2));
        actix_rt::System::new().block_on(async {
            // What each waits for comes when its end is dropped.
            let hung: Vec<_> = (0..EACH + WAITING)
                .map(|_| {
                    let (end, wait) = std::sync::mpsc::sync_channel::<()>(0);
                    let theirs = theirs.clone();
                    let job = move || {
                        let _ = wait.recv();
                        Ok(())
                    };
                    (end, actix_rt::spawn(async move { theirs.run(one, job).await }))
                })
                .collect();
            // All have begun behind that.
            tokio::task::yield_now().await;
            let error = theirs.run(one, || Ok(())).await.unwrap_err();
            assert_eq!(error.code, cofferdam_types::Code::ResourceExhausted);
            assert!(error.message.contains("4 jobs that run and 64 that wait"), "{error}");
            theirs.run(other, || Ok(())).await.expect("another's runs");
            for (end, job) in hung {
                drop(end);
                job.await.unwrap().unwrap();
            }
            theirs.run(one, || Ok(())).await.expect("it may again");
        });
        assert!(theirs.turns.lock().unwrap().values().all(|turns| turns.strong_count() == 0));
    }
}
