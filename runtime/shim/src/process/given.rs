//! What the maker of a container gave its first process as streams. Where he made it through a grant they go through the shim,
//! all of them, so that they can be cut when that ends: the container goes on, and is no way for him to hear of it or to
//! tell it anything.

use std::{os::fd::OwnedFd, rc::Rc};

use cofferdam_types::{Error, Result};
use tokio::io::Interest;

use super::{Process, watch};
use crate::sink::Sink;

impl Process {
    /// Those of them that are sinks.
    pub fn gave(&self, sinks: impl IntoIterator<Item = Sink>) {
        self.given.borrow_mut().extend(sinks);
    }

    /// The maker's descriptor is read into the process's pipe, whose end is that of the descriptor.
    pub(super) fn feed_through(self: &Rc<Self>, write: OwnedFd, source: OwnedFd) -> Result<()> {
        let pipe = watch(write, Interest::WRITABLE).map_err(|e| Error::io("stdin", "", "can't be watched", &e))?;
        *self.stdin.borrow_mut() = Some(Rc::new(pipe));
        let feeder = self.feed_from(source, self.over())?;
        let (process, abort) = (Rc::downgrade(self), feeder.abort_handle());
        self.feeder.set(Some(tokio::task::spawn_local(async move {
            let _falls = Falls(abort);
            let _ = feeder.await;
            if let Some(process) = process.upgrade() {
                process.close_stdin();
            }
        })));
        Ok(())
    }

    /// Nothing of what its maker gave it is read or written any more.
    pub fn cut(&self) {
        if let Some(feeder) = self.feeder.take() {
            feeder.abort();
            if !self.terminal {
                self.close_stdin();
            }
        }
        self.given.take().iter().for_each(|sink| sink.end("revoked"));
    }
}

/// Who is waited for ends with whoever waits.
struct Falls(tokio::task::AbortHandle);

impl Drop for Falls {
    fn drop(&mut self) {
        self.0.abort();
    }
}
