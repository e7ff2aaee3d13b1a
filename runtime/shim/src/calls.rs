//! Calls of drivers. One that is over in a moment is made where it is asked for. One that may wait, for a program of
//! somebody else's or for the kernel, has a thread of its own for as long as it takes: the shim goes on meanwhile with
//! what its containers write, with their ends and with whoever asks about them.
//!
//! What such a call starts is a child of the shim like any other, and may end before it is known whose it is: while one
//! is at work, the reaper leaves alone what it doesn't know.

use std::{
    cell::{Cell, RefCell},
    os::fd::OwnedFd,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use cofferdam_sys::program;
use cofferdam_types::{Error, Result};
use futures::FutureExt as _;
use tokio::sync::{Notify, oneshot};

use crate::stdio::pipe;

/// What is read by a driver needs no more.
const STACK: usize = 1 << 20;

/// Those that are at work.
#[derive(Default)]
pub struct Calls {
    at_work: Cell<usize>,
    /// One of them is over: what it started may have ended before it was known, and others may be at work for long.
    pub over: Notify,
}

/// A call on a thread of its own, until what it gave is where it belongs.
pub struct Busy(Rc<Calls>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.at_work.set(self.0.at_work.get() - 1);
        self.0.over.notify_one();
    }
}

impl Calls {
    /// Whether there is any.
    pub fn any(&self) -> bool {
        self.at_work.get() > 0
    }

    /// Makes a call here and now, unless it may be `slow`.
    pub async fn make<T: Send + 'static>(
        self: &Rc<Self>,
        slow: bool,
        patience: &Patience,
        call: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<(T, Option<Busy>)> {
        self.make_or(slow, patience, call, drop).await
    }

    /// [`Calls::make`] for as long as `limit`, where it is slow: what hangs in the kernel can't be given up in another way. What it
    /// gives all the same, later, is for `late`.
    pub async fn make_within<T: Send + 'static>(
        self: &Rc<Self>,
        limit: Duration,
        slow: bool,
        patience: &Patience,
        call: impl FnOnce() -> Result<T> + Send + 'static,
        late: impl FnOnce(T) + Send + 'static,
    ) -> Result<(T, Option<Busy>)> {
        let made = tokio::time::timeout(limit, self.make_or(slow, patience, call, late)).await;
        made.unwrap_or_else(|_| {
            let why = format!("has not ended within {limit:?}, and is not waited for any more");
            Err(Error::deadline_exceeded("call", "", why))
        })
    }

    async fn make_or<T: Send + 'static>(
        self: &Rc<Self>,
        slow: bool,
        patience: &Patience,
        call: impl FnOnce() -> Result<T> + Send + 'static,
        late: impl FnOnce(T) + Send + 'static,
    ) -> Result<(T, Option<Busy>)> {
        if !slow {
            return call().map(|done| (done, None));
        }
        let (tell, told) = oneshot::channel();
        self.at_work.set(self.at_work.get() + 1);
        let busy = Busy(self.clone());
        let given_up = patience.end()?;
        // Not one of a pool: a thread is in the mount namespace that the shim was in when the thread began.
        let thread = std::thread::Builder::new().name("call".into()).stack_size(STACK);
        let begun = thread.spawn(move || {
            // Whoever asked may be gone with the shim's loop, or for want of patience.
            if let Err(Ok(given)) = tell.send(program::until(given_up, call)) {
                late(given);
            }
        });
        begun.map_err(|e| Error::io("shim", "", "can't have a thread for a call", &e))?;
        let gone = || Error::internal("shim", "", "a call ended without an answer");
        let done = told.await.map_err(|_| gone())??;
        Ok((done, Some(busy)))
    }
}

/// With the calls for one container. What they are given up by is a pipe in which something is: that its writer has gone would
/// not be seen, for a child that is not its program yet has our descriptors, and may be the one that stands still.
#[derive(Default)]
pub struct Patience(RefCell<Option<(Arc<OwnedFd>, OwnedFd)>>);

impl Patience {
    fn end(&self) -> Result<Arc<OwnedFd>> {
        let mut ends = self.0.borrow_mut();
        if ends.is_none() {
            let (read, write) = pipe()?;
            *ends = Some((read.into(), write));
        }
        let gone = || Error::internal("shim", "", "a pipe is gone");
        ends.as_ref().map(|(read, _)| read.clone()).ok_or_else(gone)
    }

    /// Gives up those that are at work; what comes later is another matter.
    pub fn lose(&self) {
        if let Some((_, write)) = self.0.take() {
            // An empty pipe has room.
            let _ = nix::unistd::write(&write, b".");
        }
    }
}

/// Does something to its end, whatever becomes of who asked for it. What is over at once is done here.
pub async fn through<T: 'static>(work: impl Future<Output = Result<T>> + 'static) -> Result<T> {
    let mut work = Box::pin(work);
    match work.as_mut().now_or_never() {
        Some(done) => done,
        None => {
            let gone = |e| Error::internal("shim", "", format!("a call ended without an answer: {e}"));
            tokio::task::spawn_local(work).await.map_err(gone)?
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn what_hangs_is_not_waited_for_and_what_it_gives_later_is_undone() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let (calls, patience) = (Rc::new(Calls::default()), Patience::default());
            let (go, wait) = mpsc::channel::<()>();
            let (undone, seen) = mpsc::channel();
            let hangs = move || {
                wait.recv().map_err(|_| Error::internal("test", "", "nobody said go"))?;
                Ok(7)
            };
            let limit = Duration::from_millis(20);
            let late = move |given| undone.send(given).unwrap();
            let error = calls.make_within(limit, true, &patience, hangs, late).await.err().unwrap();
            assert_eq!(error.code, cofferdam_types::Code::DeadlineExceeded, "{error}");
            assert!(!calls.any(), "nobody waits for it");
            go.send(()).unwrap();
            assert_eq!(seen.recv(), Ok(7));
            // One that is over in time is undone by nobody.
            let made =
                calls.make_within(Duration::from_secs(60), true, &patience, || Ok(8), |_| panic!("undone")).await;
            assert_eq!(made.unwrap().0, 8);
        });
    }
}
