//! The word that ends a job: seen by loops, by waits and by blocked sockets alike.

use std::{
    fmt,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use cofferdam_types::{Error, Result};

type Hook = Box<dyn FnOnce() + Send>;

/// Said once, heard everywhere. Clones are the same word.
#[derive(Clone, Default)]
pub struct Cancel(Arc<Inner>);

#[derive(Default)]
struct Inner {
    said: AtomicBool,
    hooks: Mutex<Vec<Hook>>,
    woken: Condvar,
}

impl Cancel {
    /// Not said yet.
    pub fn new() -> Cancel {
        Cancel::default()
    }

    /// Says it: waits end, hooks run.
    pub fn cancel(&self) {
        self.0.said.store(true, Ordering::Release);
        let hooks = std::mem::take(&mut *self.hooks());
        self.0.woken.notify_all();
        for hook in hooks {
            hook();
        }
    }

    /// A word of its own that is also said when this one is: for the parts of a job that end together.
    pub fn child(&self) -> Cancel {
        let child = Cancel::new();
        let theirs = child.clone();
        self.on_cancel(move || theirs.cancel());
        child
    }

    /// The flag itself, for code that polls one.
    pub fn flag(&self) -> &AtomicBool {
        &self.0.said
    }

    /// Fails once it has been said.
    pub fn check(&self) -> Result<()> {
        match self.0.said.load(Ordering::Acquire) {
            false => Ok(()),
            true => Err(cancelled()),
        }
    }

    /// Runs `hook` when it is said; at once if it has been.
    pub fn on_cancel(&self, hook: impl FnOnce() + Send + 'static) {
        let mut hooks = self.hooks();
        if !self.0.said.load(Ordering::Acquire) {
            hooks.push(Box::new(hook));
            return;
        }
        drop(hooks);
        hook();
    }

    /// Does something, which is dropped as soon as it is said.
    pub async fn until<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let (tell, told) = tokio::sync::oneshot::channel::<()>();
        self.on_cancel(move || drop(tell));
        tokio::select! {
            biased;
            _ = told => Err(cancelled()),
            done = work => done,
        }
    }

    /// Waits for `time`, or fails as soon as it is said.
    pub fn wait(&self, time: Duration) -> Result<()> {
        let until = Instant::now() + time;
        let mut hooks = self.hooks();
        loop {
            self.check()?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            hooks = self.0.woken.wait_timeout(hooks, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn hooks(&self) -> MutexGuard<'_, Vec<Hook>> {
        self.0.hooks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn cancelled() -> Error {
    Error::cancelled("job", "", "was cancelled")
}

impl fmt::Debug for Cancel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cancel({})", self.0.said.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_when_it_is_said() {
        let cancel = Cancel::new();
        let other = cancel.clone();
        let waiter = std::thread::spawn(move || other.wait(Duration::from_secs(3600)));
        cancel.cancel();
        assert_eq!(waiter.join().unwrap().unwrap_err().code, cofferdam_types::Code::Cancelled);
        assert!(cancel.check().is_err());
    }

    #[test]
    fn what_is_done_until_it_is_said_is_dropped_then() {
        let cancel = Cancel::new();
        assert_eq!(cofferdam_kernel::block_on(cancel.until(async { Ok(7) })).unwrap(), 7);
        let (other, (gone, dropped)) = (cancel.clone(), std::sync::mpsc::channel::<()>());
        let waiter = std::thread::spawn(move || {
            let never = async {
                let _gone = gone;
                std::future::pending::<Result<()>>().await
            };
            cofferdam_kernel::block_on(other.until(never))
        });
        cancel.cancel();
        assert_eq!(waiter.join().unwrap().unwrap_err().code, cofferdam_types::Code::Cancelled);
        assert!(dropped.recv().is_err());
    }

    #[test]
    fn a_child_ends_with_its_parent_and_not_the_reverse() {
        let parent = Cancel::new();
        let (one, two) = (parent.child(), parent.child());
        one.cancel();
        assert!(one.check().is_err() && two.check().is_ok() && parent.check().is_ok());
        parent.cancel();
        assert!(two.check().is_err() && parent.child().check().is_err());
    }

    #[test]
    fn hooks_run_once_early_or_late() {
        let cancel = Cancel::new();
        let count = Arc::new(Mutex::new(0));
        let hook = || {
            let count = count.clone();
            move || *count.lock().unwrap() += 1
        };
        cancel.on_cancel(hook());
        assert_eq!(*count.lock().unwrap(), 0);
        cancel.cancel();
        cancel.cancel();
        assert_eq!(*count.lock().unwrap(), 1);
        cancel.on_cancel(hook());
        assert_eq!(*count.lock().unwrap(), 2);
    }
}
