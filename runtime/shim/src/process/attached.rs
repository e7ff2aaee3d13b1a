//! Clients that follow a process.

use std::{cell::Cell, os::fd::OwnedFd, rc::Rc};

use cofferdam_types::{Error, Result, Timestamp};
use tokio::task::JoinHandle;

use super::Process;
use crate::{output::Output, sink::Sink, stdio::Wish};

/// How many may follow one process at a time: each takes a few buffers, of which one who reads slowly has all full.
const MOST: usize = 64;

impl Process {
    /// Follows its output from now on, and feeds its input.
    pub fn attach(&self, stdin: Wish, stdout: Wish, stderr: Wish) -> Result<Attachment> {
        let outputs = self.outputs.borrow();
        let first = outputs.first().cloned().ok_or_else(|| {
            let why =
                "was started with its pipes handed over: only a process with a log or a terminal can be attached to";
            Error::failed_precondition("process", self.name(), why)
        })?;
        let place = Place::take(&self.followed).ok_or_else(|| {
            let why = format!("is followed by {MOST} already, which is the most at a time: detach one of them first");
            Error::resource_exhausted("process", self.name(), why)
        })?;
        let (feeder, held) = match stdin {
            // Nothing is read any more; its end is what is to be had.
            _ if self.life.borrow().exited != Timestamp(0) => (None, None),
            Wish::Fd(fd) => (Some(self.feed_from(fd, self.over())?), None),
            Wish::Fifo(fd, hold) => (Some(self.feed_from(fd, self.over())?), Some(hold)),
            _ => (None, None),
        };
        // Where one of them fails this falls, and what was attached is detached.
        let mut attachment = Attachment { sinks: Vec::new(), first, feeder, _held: held, _place: place };
        for (output, wish) in outputs.iter().zip([stdout, stderr]) {
            if let Some(sink) = wish.late_sink()? {
                output.attach(sink.clone());
                attachment.sinks.push(sink);
            }
        }
        Ok(attachment)
    }
}

/// A client that follows a process. Dropping it detaches.
pub struct Attachment {
    sinks: Vec<Sink>,
    /// Of the process: its end is what there is to wait for without a sink.
    first: Output,
    feeder: Option<JoinHandle<()>>,
    _held: Option<OwnedFd>,
    _place: Place,
}

/// One of those that may follow a process.
struct Place(Rc<Cell<usize>>);

impl Place {
    fn take(followed: &Rc<Cell<usize>>) -> Option<Place> {
        let n = followed.get();
        (n < MOST).then(|| {
            followed.set(n + 1);
            Place(followed.clone())
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Attachment {
    /// Waits until one of its streams is over, or what it only feeds, and says why.
    pub async fn over(&self) -> &'static str {
        if self.sinks.is_empty() {
            self.first.over().await;
            return "exit";
        }
        let each = self.sinks.iter().map(|sink| Box::pin(sink.over()));
        futures::future::select_all(each).await.0
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        for sink in &self.sinks {
            sink.cut("detached");
        }
        if let Some(feeder) = &self.feeder {
            feeder.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_follow_at_a_time() {
        let followed = Rc::default();
        let mut all: Vec<_> = (0..MOST).map(|_| Place::take(&followed).unwrap()).collect();
        assert!(Place::take(&followed).is_none());
        all.pop();
        assert!(Place::take(&followed).is_some(), "who detaches gives his place back");
        assert_eq!(followed.get(), MOST - 1);
    }
}
