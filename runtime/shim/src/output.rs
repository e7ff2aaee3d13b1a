//! One output of a process: read by the shim, written to the log and to every sink.
//!
//! The log comes first and may make the process wait. At an exit [`Output::finish`] puts into the log what the process had
//! written, so that nothing of it comes after the news of its end. Those who follow it get it as fast as they read; a
//! descendant that keeps the pipe open delays nothing, and what it writes then interests the log alone.

use std::{
    cell::{Cell, RefCell},
    io,
    os::fd::OwnedFd,
    rc::Rc,
    time::Duration,
};

use cofferdam_log::{Stream, Writer};
use cofferdam_types::{Error, Result};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::Notify,
};

use crate::sink::{Sink, watch};

/// Where the log goes, and as which stream.
#[derive(Clone)]
pub struct Log {
    /// Of the whole container.
    pub writer: Rc<RefCell<Writer>>,
    /// Which of its streams.
    pub stream: Stream,
}

struct State {
    source: AsyncFd<OwnedFd>,
    log: Option<Log>,
    sinks: RefCell<Vec<Sink>>,
    /// In the log, and not with the sinks yet: what the process had left.
    left: RefCell<Vec<u8>>,
    /// From the process's end on: so many bytes of its own there may be in the source still.
    owed: Cell<Option<usize>>,
    /// Something is on its way to the sinks.
    giving: Cell<bool>,
    /// Nothing goes to the sinks any more; those that there were have yet to write what they hold.
    over: Cell<bool>,
    /// The pump is to look again.
    probe: Notify,
    changed: Notify,
}

impl State {
    fn log(&self, bytes: &[u8]) {
        if let Some(log) = &self.log {
            log.writer.borrow_mut().write(log.stream, bytes);
        }
    }

    /// The source gives no more.
    fn end_log(&self) {
        if let Some(log) = &self.log {
            log.writer.borrow_mut().end(log.stream);
        }
    }

    /// So many bytes were read of what the process left.
    fn paid(&self, bytes: usize) {
        self.owed.set(self.owed.get().map(|owed| owed.saturating_sub(bytes)));
    }

    /// Ends the sinks if they have all that the process wrote.
    fn settle(&self) {
        if self.owed.get() == Some(0) && !self.giving.get() && self.left.borrow().is_empty() && !self.over.replace(true)
        {
            self.sinks.borrow().iter().for_each(|sink| sink.end("exit"));
            self.changed.notify_waiters();
        }
    }
}

/// See the module.
#[derive(Clone)]
pub struct Output(Rc<State>);

impl Output {
    /// Reads `source`, which must be non-blocking, until its end.
    pub fn new(source: OwnedFd, interest: Interest, log: Option<Log>, sinks: Vec<Sink>) -> Result<Output> {
        let source = watch(source, interest).map_err(|e| Error::io("output", "", "can't be watched", &e))?;
        let state = Rc::new(State {
            source,
            log,
            sinks: RefCell::new(sinks),
            left: RefCell::default(),
            owed: Cell::new(None),
            giving: Cell::new(false),
            over: Cell::new(false),
            probe: Notify::new(),
            changed: Notify::new(),
        });
        tokio::task::spawn_local(pump(state.clone()));
        Ok(Output(state))
    }

    /// The descriptor that it reads (a terminal's master is written to as well).
    pub fn source(&self) -> &AsyncFd<OwnedFd> {
        &self.0.source
    }

    /// Follows from here on.
    pub fn attach(&self, sink: Sink) {
        if self.0.over.get() {
            sink.end("exit");
        } else {
            self.0.sinks.borrow_mut().push(sink);
        }
    }

    /// The process has ended: what it left in the source goes into the log at once, and then to those who follow it.
    pub fn finish(&self) {
        let state = &self.0;
        // There can't be more of its own than fits, whatever its descendants add meanwhile.
        state.owed.set(Some(capacity(state.source.get_ref())));
        let followed = !state.sinks.borrow().is_empty();
        let most = if followed { AHEAD } else { usize::MAX };
        let mut buffer = vec![0; BUFFER];
        while state.owed.get() != Some(0) && state.left.borrow().len() < most {
            match nix::unistd::read(state.source.get_ref(), &mut buffer) {
                Ok(n) if n > 0 => {
                    state.log(&buffer[..n]);
                    state.paid(n);
                    if followed {
                        state.left.borrow_mut().extend(&buffer[..n]);
                    }
                }
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) => state.owed.set(Some(0)),
                // The end: the pump comes upon it too.
                _ => {
                    state.end_log();
                    state.owed.set(Some(0));
                }
            }
        }
        state.settle();
        state.probe.notify_one();
    }

    /// Whether all that the process wrote is where it goes. Only from its end on.
    pub fn is_delivered(&self) -> bool {
        self.0.over.get() && !self.0.sinks.borrow().iter().any(Sink::pending)
    }

    /// Waits until there is no more of it.
    pub async fn over(&self) {
        loop {
            let changed = self.0.changed.notified();
            if self.0.over.get() {
                break;
            }
            changed.await;
        }
    }

    /// Waits until it is delivered.
    pub async fn delivered(&self) {
        self.over().await;
        let sinks: Vec<Sink> = self.0.sinks.borrow().clone();
        for sink in sinks {
            sink.flushed().await;
        }
    }
}

impl Output {
    /// Waits for that no longer than each takes something within `limit`, of what is left for him.
    pub async fn drain(self, limit: Duration) {
        let mut drain = Drain::default();
        drain.look(&self);
        loop {
            tokio::select! {
                () = self.delivered() => return,
                () = tokio::time::sleep(limit) => drain.look(&self),
            }
        }
    }
}

/// Who took how much by when it was looked at last.
#[derive(Default)]
struct Drain(Vec<(Sink, u64)>);

impl Drain {
    /// Ends those who have taken nothing since, though there was something.
    fn look(&mut self, output: &Output) {
        let before = std::mem::take(&mut self.0);
        for sink in output.0.sinks.borrow().iter().filter(|sink| sink.pending()) {
            let taken = sink.taken();
            if before.iter().any(|(other, then)| other.is(sink) && *then == taken) {
                // As one who falls behind a process that goes on.
                sink.cut("overflow");
            } else {
                self.0.push((sink.clone(), taken));
            }
        }
    }
}

/// What is read at once.
const BUFFER: usize = 16 << 10;
/// How much is read ahead of those who follow, for the log's sake: as much as a pipe can hold that nobody privileged made
/// larger.
const AHEAD: usize = 1 << 20;

/// How much may lie in a pipe or a terminal.
fn capacity(source: &OwnedFd) -> usize {
    use nix::fcntl::{FcntlArg, fcntl};
    // A terminal is no pipe, and holds less.
    fcntl(source, FcntlArg::F_GETPIPE_SZ).ok().and_then(|size| usize::try_from(size).ok()).unwrap_or(AHEAD)
}

async fn pump(state: Rc<State>) {
    let mut buffer = Vec::new();
    loop {
        let left = state.left.take();
        if !left.is_empty() {
            give(&state, &left).await;
            continue;
        }
        state.settle();
        buffer.resize(BUFFER, 0);
        match nix::unistd::read(state.source.get_ref(), &mut buffer) {
            Ok(n) if n > 0 => {
                state.log(&buffer[..n]);
                state.paid(n);
                if !state.over.get() {
                    give(&state, &buffer[..n]).await;
                }
                // A log takes its time, and a process may write faster than that: others are served in between.
                tokio::task::yield_now().await;
            }
            Err(nix::Error::EINTR) => {}
            Err(nix::Error::EAGAIN) => {
                if state.owed.get().is_some() {
                    state.owed.set(Some(0));
                    state.settle();
                }
                // A process that is silent costs no memory.
                buffer = Vec::new();
                tokio::select! {
                    ready = state.source.ready(Interest::READABLE) => match ready {
                        // Only the read above says whether there is something: ask again next time.
                        Ok(mut guard) => guard.clear_ready(),
                        Err(_) => break,
                    },
                    () = state.probe.notified() => {}
                }
            }
            // End of file; a terminal says EIO when the last process has closed it.
            _ => break,
        }
    }
    state.end_log();
    // The process may live on, and has closed it.
    state.owed.set(Some(0));
    state.settle();
}

/// To the sinks, in pieces that fit.
async fn give(state: &State, bytes: &[u8]) {
    state.giving.set(true);
    for piece in bytes.chunks(BUFFER) {
        let sinks: Vec<Sink> = state.sinks.borrow().clone();
        let mut lost = false;
        for sink in &sinks {
            lost |= !sink.push(piece).await;
        }
        if lost {
            let mut left = state.sinks.borrow_mut();
            left.retain(|sink| !sink.is_over());
        }
    }
    state.giving.set(false);
}

/// Makes our end of a pipe non-blocking. It is our own opening: the process's end keeps its flags.
pub fn nonblocking(fd: &OwnedFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read as _, Write as _},
    };

    use super::*;

    /// However little he takes: what he took of a pipe makes no room in it before a page is free.
    #[test]
    fn who_takes_something_is_waited_for_and_who_takes_nothing_is_not() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let (source, process) = nix::unistd::pipe().unwrap();
            nonblocking(&source).unwrap();
            let (read, write) = nix::unistd::pipe().unwrap();
            let mut reader = File::from(read);
            let sink = Sink::fd(write, true).unwrap();
            let output = Output::new(source, Interest::READABLE, None, vec![sink.clone()]).unwrap();
            // More than his pipe holds, and less than all that lies between him and the process.
            let mut process = File::from(process);
            let written = tokio::task::spawn_blocking(move || process.write_all(&vec![7; 200 << 10]));
            written.await.unwrap().unwrap();
            output.finish();
            while !sink.pending() || sink.taken() != 0 {
                tokio::task::yield_now().await;
            }
            let mut drain = Drain::default();
            drain.look(&output);
            for _ in 0..3 {
                reader.read_exact(&mut [0]).unwrap();
                drain.look(&output);
                assert!(!output.is_delivered() && !sink.is_over());
            }
            drain.look(&output);
            assert_eq!(sink.over().await, "overflow");
            output.delivered().await;
            let rest = tokio::task::spawn_blocking(move || {
                let mut bytes = Vec::new();
                reader.read_to_end(&mut bytes).map(|_| bytes.len())
            });
            assert_eq!(rest.await.unwrap().unwrap(), (64 << 10) - 3, "what lay in his pipe, and the end");
        });
    }
}
