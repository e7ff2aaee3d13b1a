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
        let pipe =
            watch(write, Interest::WRITABLE).map_err(|e| Error::io("stdin", self.name(), "can't be watched", &e))?;
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
        self.given.take().iter().for_each(|sink| sink.cut("revoked"));
    }
}

/// Who is waited for ends with whoever waits.
struct Falls(tokio::task::AbortHandle);

impl Drop for Falls {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::RING;

    /// What an ended process wrote and nobody has taken yet is no more for who was given it.
    #[test]
    fn what_waits_for_its_reader_is_cut_as_well() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let here = Rc::new(std::fs::File::open(dir.path()).unwrap().into());
            let process = Process::new(here, "box.life".into(), "", "", false).unwrap();
            let (_read, write) = nix::unistd::pipe().unwrap();
            let sink = Sink::fd(write, true).unwrap();
            // The pipe is full with the first of these.
            for _ in 0..2 {
                assert!(sink.push(&vec![0; RING]).await);
            }
            process.gave([sink.clone()]);
            sink.end("exit");
            assert!(sink.pending());
            process.cut();
            assert!(!sink.pending());
            assert_eq!(sink.over().await, "revoked");
        });
    }
}
